"""Episodes of pictures in the terms in which prompts of text are trained on: token ids and what each of them is."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from kshot.episode import Episode
from kshot.errors import ContextTooLong, DataError
from kshot.models.encoding import EncodedPrompt
from kshot.models.memory import BudgetedCache
from kshot.models.prefix import Prefix
from kshot.models.reuse import Group
from kshot.models.visual_prompts import prompt_of
from kshot.picture import Picture
from kshot.prompt import Role, Span, TokenizedPrompt

PICTURES_KEPT = 65_536
"""Pictures whose codes are kept: they are drawn again in each epoch, and encoding is most of the work with a small model."""


@dataclass(frozen=True)
class PictureDialect:
    """What prompts of pictures ask of a batch: nothing."""

    equal_counts: bool = False


class VisualEncoder:
    """Encodes episodes whose answers are pictures.

    Args:
        model: a causal language model.
        tokens: tokens of a picture.
        encode: gives the codes of pictures, one row each.
        fingerprint: what the codes depend on.
        pad_id: what fills up shorter rows; no code.
        begin_id: what each sentence begins with, if the model was trained so.
        max_context: most tokens that the model reads.
        name: of the model, for messages.
    """

    dialect = PictureDialect()

    def __init__(
        self,
        model: Any,
        *,
        tokens: int,
        encode: Callable[[Sequence[Picture]], torch.Tensor],
        fingerprint: str,
        pad_id: int,
        max_context: int,
        name: str,
        begin_id: int | None = None,
    ):
        self.accepted = frozenset(inspect.signature(model.forward).parameters)
        self.tokens, self.fingerprint, self.pad_id, self.max_context = tokens, fingerprint, pad_id, max_context
        self._encode, self._name = encode, name
        self._begin = () if begin_id is None else (begin_id,)
        self._codes: BudgetedCache[tuple[int, ...]] = BudgetedCache(PICTURES_KEPT)

    def encode(self, episode: Episode, answer: Picture | None = None, *, new_tokens: int = 0) -> EncodedPrompt:
        """An episode ``x1 y1 ... xq``, and its answer: ids, and which of them are what.

        Args:
            episode: demonstrations and query.
            answer: the query's answer, to be put at the end.
            new_tokens: to be generated behind it.

        Raises:
            DataError: a demonstration's answer, or the answer, is no picture.
            ContextTooLong: it does not fit into the model's context.
        """
        prompt = prompt_of(episode)
        if answer is not None and not isinstance(answer, Picture):
            raise DataError(f"query {episode.query.id!r} has no picture as its answer")
        pictures = (*prompt.pictures, *([answer] if answer is not None else []))
        start = len(self._begin)
        length = start + len(pictures) * self.tokens
        if length + new_tokens - 1 > self.max_context:  # the last token is never read
            raise ContextTooLong(
                f"episode {episode.id!r} with {episode.shots} demonstrations has {len(pictures)} pictures, {length:,} tokens"
                + (f" and {new_tokens:,} more to imagine" if new_tokens else "")
                + f", but {self._name} takes {self.max_context:,}: use fewer shots"
            )
        ids = (*self._begin, *(code for codes in self._codes_of(pictures) for code in codes))
        each = prompt.group
        spans = [Span(0, start, "instruction")] if start else []
        for place in range(len(pictures)):
            role: Role = "query" if place < len(prompt.pictures) else "answer"
            index, shown = -1, place // each
            if shown < episode.shots:
                role, index = "demonstration", shown
            is_answer = role == "answer" or place in prompt.answers
            first = start + place * self.tokens
            spans.append(Span(first, first + self.tokens, role, index, is_answer))
        before = episode.shots * each
        return EncodedPrompt(TokenizedPrompt(ids, tuple(spans), start + before * self.tokens), pictures, before)

    def pad(self, rows: Sequence[Sequence[int]], fill: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows of numbers as one tensor, padded on the left, and its mask (1 = not padding)."""
        longest = max(len(row) for row in rows)
        values = torch.full((len(rows), longest), self.pad_id if fill is None else fill)
        mask = torch.zeros_like(values)
        for number, row in enumerate(rows):
            if row:
                values[number, -len(row) :] = torch.tensor(row)
                mask[number, -len(row) :] = 1
        return values, mask

    def collate(self, batch: Sequence[EncodedPrompt]) -> dict[str, torch.Tensor]:
        """Inputs of the model's ``forward``: left-padded ``input_ids``, ``attention_mask`` and ``position_ids``, on the CPU."""
        ids, mask = self.pad([encoded.tokens.ids for encoded in batch])
        return {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp_min(0)}

    def _codes_of(self, pictures: Sequence[Picture]) -> list[tuple[int, ...]]:
        keys = [picture.digest for picture in pictures]
        known = {key: found for key in keys if (found := self._codes.get(key)) is not None}
        new = {key: picture for key, picture in zip(keys, pictures, strict=True) if key not in known}
        if new:
            for key, codes in zip(new, self._encode(list(new.values())).tolist(), strict=True):
                known[key] = tuple(codes)
                self._codes.put(key, known[key], 1)
        return [known[key] for key in keys]


class CodesOnly:
    """Stands where a vision-language model has its caches: codes are looked up, there are no features of pictures to keep."""

    no_features = "pictures are codes"
    feature_cache = False
    expansion = None

    def __init__(self, encoder: VisualEncoder, device: Callable[[], torch.device]):
        self._encoder, self._device = encoder, device

    def inputs(self, batch: Sequence[EncodedPrompt], after: Prefix | None = None) -> dict[str, torch.Tensor]:
        """What ``model.forward`` takes for a batch, on the model's device."""
        assert after is None, "no prefix is ever given out"
        return {name: value.to(self._device()) for name, value in self._encoder.collate(batch).items()}

    def groups(self, prompts: Sequence[EncodedPrompt], new_tokens: int = 0) -> Iterator[Group]:
        """All prompts in one group, none of which has been read yet."""
        yield Group(list(range(len(prompts))), list(prompts))

    def refresh(self) -> None:
        """Nothing depends on the weights."""
