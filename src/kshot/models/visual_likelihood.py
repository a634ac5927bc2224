"""How likely a model of visual sentences finds given pictures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from kshot.errors import ContextTooLong, DataError, OptionError
from kshot.models.batching import BatchRunner
from kshot.models.visual_prompts import as_prompt
from kshot.models.visual_window import Overflow, Plan, plan
from kshot.picture import Picture, PictureLike

BATCH_SIZE = 8
"""Sentences that are read together."""


class Likelihood:
    """The part of :class:`~kshot.models.visual_sentence.VisualSentenceModel` that reads pictures instead of making them."""

    name: str
    model: Any
    processor: Any
    tokenizer: Any
    tokens: int
    codes: int
    max_context: int
    _context_pictures: int | None

    @property
    def device(self) -> torch.device:
        """Where inputs have to be."""
        return torch.device(self.model.device)

    @torch.inference_mode()
    def nll_ids(
        self,
        contexts: Sequence[torch.Tensor],
        targets: Sequence[torch.Tensor],
        *,
        bos: bool | None = None,
        batch_size: int | None = None,
    ) -> list[torch.Tensor]:
        """Negative log-likelihood of each target token, in nats, computed in float32 over the whole vocabulary.

        Args:
            contexts: ids before each target; may be empty with ``bos``.
            targets: ids whose likelihood is asked for.
            bos: begin with the token for the beginning of a sentence; ``None``: as the model was trained.
            batch_size: sentences that are read together; halved if memory runs out.

        Returns:
            For each target a float32 tensor as long as it is, on the CPU.

        Raises:
            ContextTooLong: context and target do not fit together.
        """
        if len(contexts) != len(targets):
            raise OptionError(f"{len(contexts)} contexts for {len(targets)} targets")
        bos = self.begun(bos)
        start = torch.tensor([self.processor.bos_token_id] if bos else [], dtype=torch.long)
        pairs = []
        for number, (context, target) in enumerate(zip(contexts, targets, strict=True), 1):
            context, target = (
                self.checked(context, f"context {number}"),
                self.checked(target, f"target {number}"),
            )
            if (not len(context) and not bos) or not len(target):
                raise DataError(f"example {number} has no {'target' if len(context) else 'context'}")
            self.check_fit(len(context) // self.tokens, len(target) // self.tokens, bos, f"example {number}")
            pairs.append((torch.cat([start, context, target]), len(target)))
        runner = BatchRunner(BATCH_SIZE if batch_size is None else batch_size)
        kinds = {found: kind for kind, found in enumerate(dict.fromkeys((len(ids), n) for ids, n in pairs))}

        def work(batch: list[int]) -> list[torch.Tensor]:
            ids = torch.stack([pairs[number][0] for number in batch]).to(self.model.device)
            count = pairs[batch[0]][1]
            logits = self.model(input_ids=ids[:, :-1], use_cache=False, logits_to_keep=count).logits
            # Sentence by sentence: the float32 copy of all logits would be the largest tensor of all.
            return [
                torch.nn.functional.cross_entropy(row.float(), wanted, reduction="none").cpu()
                for row, wanted in zip(logits, ids[:, -count:], strict=True)
            ]

        return runner.run([len(ids) for ids, _ in pairs], work, [kinds[len(ids), n] for ids, n in pairs])

    def perplexity(
        self,
        contexts: Sequence[Sequence[PictureLike]],
        targets: Sequence[Sequence[PictureLike]],
        *,
        bos: bool | None = None,
        batch_size: int | None = None,
    ) -> list[float]:
        """Perplexity of each target behind its context: exp of the mean negative log-likelihood over the target's tokens.

        Raises:
            ContextTooLong: context and target do not fit together.
            BadImage: a picture cannot be decoded.
        """
        shown = [as_prompt(pictures, f"context {n}").pictures for n, pictures in enumerate(contexts, 1)]
        wanted = [as_prompt(pictures, f"target {n}").pictures for n, pictures in enumerate(targets, 1)]
        ids = self.codes_of([*shown, *wanted])
        found = self.nll_ids(ids[: len(shown)], ids[len(shown) :], bos=bos, batch_size=batch_size)
        return [float(nll.double().mean().exp()) for nll in found]

    def begun(self, bos: bool | None) -> bool:
        """Whether sentences begin with the token for it: as is asked for, or else as the model was trained."""
        return self.processor.begins if bos is None else bos

    def capacity(self, *, bos: bool | None = None) -> int:
        """Pictures that fit into the context, the last new one included (whose last token is never read)."""
        fit = (self.max_context + 1 - self.begun(bos)) // self.tokens
        return fit if self._context_pictures is None else min(fit, self._context_pictures)

    def plan(
        self, pictures: int, frames: int, bos: bool | None, overflow: Overflow, slide: int, group: int, name: str
    ) -> Plan:
        """What is seen when ``frames`` are imagined behind so many pictures; see :func:`kshot.models.visual_window.plan`.

        Raises:
            ContextTooLong: they do not fit; ``name`` says which prompt it is.
        """
        try:
            return plan(pictures, frames, self.capacity(bos=bos), overflow=overflow, slide=slide, group=group)
        except ContextTooLong as error:
            raise ContextTooLong(f"{name}: {error}; {self.name} reads {self.max_context:,} tokens") from None

    def codes_of(self, sentences: Sequence[Sequence[Picture]]) -> list[torch.Tensor]:
        """The ids of sentences of pictures, one-dimensional, on the CPU; a picture that is shown again is encoded once."""
        different = list(dict.fromkeys(picture for sentence in sentences for picture in sentence))
        codes = self.tokenizer.encode(different).cpu() if different else torch.empty(0, self.tokens, dtype=torch.long)
        place = {picture: number for number, picture in enumerate(different)}
        return [codes[[place[picture] for picture in sentence]].flatten() for sentence in sentences]

    def checked(self, ids: torch.Tensor | Iterable[int], name: str) -> torch.Tensor:
        """Ids as a one-dimensional int64 tensor on the CPU.

        Raises:
            DataError: they are no whole pictures, or no codes.
        """
        held = torch.as_tensor(ids).cpu().long().flatten()
        if len(held) % self.tokens:
            raise DataError(f"{name} has {len(held):,} ids, which are no whole pictures of {self.tokens} tokens")
        if len(held) and (int(held.min()) < 0 or int(held.max()) >= self.codes):
            raise DataError(
                f"{name} holds ids outside the codes 0 to {self.codes - 1:,}",
                remedy="were they made by another tokenizer?",
            )
        return held

    def check_fit(self, context: int, target: int, bos: bool | None, name: str) -> None:
        """Refuse what is longer than the context.

        Args:
            context, target: pictures before the target, and in it.
            bos: whether the token for the beginning stands in front.
            name: of the example, for the message.

        Raises:
            ContextTooLong: see above.
        """
        most = self.capacity(bos=bos)
        if context + target > most:
            raise ContextTooLong(
                f"{name} has {context} + {target} pictures, but {self.name} reads {self.max_context:,} tokens: "
                f"{most} pictures of {self.tokens} tokens, the last included"
            )
