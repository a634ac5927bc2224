"""Work that need not be done twice: where the caches of features and prefixes meet a model's batches.

:class:`Reuse` stands between encoded prompts and the model. It groups prompts that share their demonstrations, has each group's
prefix read once (:mod:`kshot.models.prefix`), gives the pictures' features in place of their pixels
(:mod:`kshot.models.features`), and falls back to plain inputs, with a logged reason, where a model allows neither. Answers and
scores are the same with and without, up to rounding.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from kshot.errors import ModelError
from kshot.models import features, prefix
from kshot.models.encoding import EncodedPrompt, Encoder
from kshot.models.features import FeatureCache, ImageFeatures
from kshot.models.image_mode import HiddenPicture, hidden_features, hides
from kshot.models.prefix import Prefix, PrefixCache
from kshot.picture import Picture
from kshot.prompt import Span, TokenizedPrompt

logger = logging.getLogger(__name__)

Switch = Literal["auto"] | bool
PICTURES_AT_ONCE = 32
"""Pictures that go through the vision tower together."""


@dataclass(frozen=True)
class Group:
    """Prompts that are run together.

    Attributes:
        numbers: their places in the sequence that was grouped.
        prompts: what has still to be read of each: the part behind the prefix, or all.
        prefix: what they have in common, already read; ``None`` if nothing.
    """

    numbers: list[int]
    prompts: list[EncodedPrompt]
    prefix: Prefix | None = None


class Reuse:
    """The caches of one model.

    Args:
        model, encoder: the model and the encoder of its prompts.
        prefix_cache: read fixed demonstrations once: ``"auto"`` where at least two prompts share them, ``True`` also for single
            prompts (worth it if more will come), ``False`` never.
        feature_cache: compute the vision features of a picture once: ``"auto"`` and ``True`` where the model can, ``False`` never.
        feature_folder: where to keep features on disk, too.
    """

    def __init__(
        self,
        model: Any,
        encoder: Encoder,
        *,
        prefix_cache: Switch = "auto",
        feature_cache: Switch = "auto",
        feature_folder: str | None = None,
    ):
        self.model, self.encoder = model, encoder
        self.prefix_cache, self.feature_cache = prefix_cache, feature_cache
        self.features = FeatureCache(model, encoder.fingerprint, folder=feature_folder)
        self.prefixes = PrefixCache(model)
        self.no_prefix, self.no_features = prefix.unsupported(model), features.unsupported(model)
        self.placeholder: int | None = _placeholder(model, encoder.processor)
        self._checked = False
        self._said: set[str] = set()

    def statistics(self) -> dict[str, dict[str, int]]:
        """Hits, misses and bytes of both caches."""
        return {"features": self.features.statistics.as_dict(), "prefixes": self.prefixes.statistics.as_dict()}

    def refresh(self) -> None:
        """Forget what a change of the model has made wrong. To be called before prompts are encoded."""
        self.features.refresh()
        self.prefixes.refresh()

    def clear(self) -> None:
        """Forget everything (in memory)."""
        self.features.clear()
        self.prefixes.clear()

    def expansion(self, picture: Picture) -> str | None:
        """The text that stands for a picture whose features are known: it need not even be decoded."""
        known = self.features.peek(picture.digest) if self._use_features() else None
        return known.expansion if known is not None else None

    def inputs(self, batch: Sequence[EncodedPrompt], after: Prefix | None = None) -> dict[str, Any]:
        """What ``model.forward`` takes for a batch, on the model's device; features instead of pixels where possible.

        Args:
            batch: whole prompts, or the parts that follow ``after``.
        """
        shown = self._features([picture for encoded in batch for picture in encoded.pictures])
        inputs: dict[str, Any] = self.encoder.collate(batch, pixels=shown is None)
        if shown:
            side = features.side_inputs(shown)
            inputs |= {name: value for name, value in side.items() if name in self.encoder.accepted}
        if after is not None and "image_attention_mask" in inputs:
            inputs["image_attention_mask"] = self._sight(batch, after)
        inputs = on_device(self.model, inputs)
        if shown:
            inputs["mm_encoder_outputs"] = features.encoder_outputs(shown)
        return inputs

    def shown(self, pictures: Sequence[Picture]) -> list[ImageFeatures]:
        """The features of pictures, in order, from the cache where it holds them.

        Raises:
            ModelError: the model's features cannot be cached; see :attr:`no_features`.
        """
        found = self._features(pictures)
        if found is None and pictures:
            raise ModelError(f"no features of pictures: {self.no_features or 'the feature cache is switched off'}")
        return found or []

    def groups(self, prompts: Sequence[EncodedPrompt], new_tokens: int = 0) -> Iterator[Group]:
        """Prompts with a common prefix together, all others in a group of their own.

        Args:
            prompts: whole prompts.
            new_tokens: tokens that will be generated behind each.
        """
        alone: list[int] = []
        for key, numbers in self._sharing(prompts).items():
            group = self._group(key, numbers, prompts) if key is not None else None
            if group is None:
                alone += numbers
                continue
            yield from _by_length(group, new_tokens)
            if group.prefix is not None:
                group.prefix.spare.clear()
        if alone:
            alone.sort()
            yield Group(alone, [prompts[i] for i in alone])

    def _sharing(self, prompts: Sequence[EncodedPrompt]) -> dict[Any, list[int]]:
        """Numbers of the prompts, by what they begin with; ``None`` for those whose beginning is not worth keeping."""
        if self.prefix_cache is False or not self._may("prefix reuse", self.no_prefix, self.prefix_cache):
            return {None: list(range(len(prompts)))}
        found: dict[Any, list[int]] = {}
        for number, encoded in enumerate(prompts):
            # The last token may reach into the query (" red" across a separator " "): it is compared later.
            length = min(encoded.tokens.prefix, _before_answer(encoded)) - 1
            key = None
            if length >= prefix.SHORTEST:
                digests = tuple(picture.digest for picture in encoded.pictures[: encoded.prefix_pictures])
                key = (encoded.tokens.ids[:length], digests)
            found.setdefault(key, []).append(number)
        return found

    def _group(self, key: Any, numbers: list[int], prompts: Sequence[EncodedPrompt]) -> Group | None:
        """The prompts behind their prefix, which is read if it is not known; ``None`` if that is not worth it."""
        ids, digests = key
        first = prompts[numbers[0]]
        end = len(ids) + 1
        limit = min(_before_answer(prompts[i]) for i in numbers)
        if end > limit or any(prompts[i].tokens.ids[end - 1] != first.tokens.ids[end - 1] for i in numbers):
            end -= 1
        name = (first.tokens.ids[:end], digests)
        if len(numbers) < 2 and self.prefix_cache == "auto" and name not in self.prefixes:
            return None
        pictures = len(digests)
        head = _part(first, 0, end, 0, pictures)
        held = self.prefixes.get(name, lambda: self.inputs([head]))
        # Cross-attention: text before the query's own images still looks at the last image of the prefix.
        from_picture = max(0, pictures - 1) if "image_attention_mask" in self.encoder.accepted else pictures
        tails = [_part(prompts[i], end, len(prompts[i]), from_picture, None) for i in numbers]
        if not self._checked and not self._agrees(first, held, tails[0]):
            return None
        return Group(numbers, tails, held)

    @torch.no_grad()
    def _agrees(self, whole: EncodedPrompt, held: Prefix, tail: EncodedPrompt) -> bool:
        """Once per model: whether prefix and query give what the whole prompt gives.

        Nobody has tried all architectures; one that keeps more state than keys and values must not give wrong answers in silence.
        """
        expected = self.model(**self.inputs([whole]), logits_to_keep=1, use_cache=False).logits[0, -1].float()
        arguments = prefix.continue_forward(self.model, held, self.inputs([tail], held))
        found = self.model(**arguments, logits_to_keep=1).logits[0, -1].float()
        tolerance = 1e-3 if self.model.dtype in (torch.float32, torch.float64) else 0.25
        difference = float((found - expected).abs().max() / expected.std().clamp_min(1e-6))
        self._checked = True
        if difference > tolerance:
            self.no_prefix = f"logits differ from those of the whole prompt by {difference:.1g} standard deviations"
            self._may("prefix reuse", self.no_prefix, True)
            self.prefixes.clear()
        return difference <= tolerance

    def _features(self, pictures: Sequence[Picture]) -> list[ImageFeatures] | None:
        """Features of pictures, computed where they are not known; ``None`` if pixels must be used."""
        keep = bool(pictures) and self._use_features()
        if not keep and not hides(pictures):
            return None
        found: dict[str, ImageFeatures] = {}
        missing: dict[str, Picture] = {}
        for picture in pictures:
            digest = picture.digest
            if digest in found or digest in missing:
                continue
            if isinstance(picture, HiddenPicture):
                found[digest] = self._hidden(picture)
                continue
            known = self.features.get(digest) if keep else None
            if known is None:
                missing[digest] = picture
            else:
                found[digest] = known
        todo = list(missing.items())
        for start in range(0, len(todo), PICTURES_AT_ONCE):
            some = todo[start : start + PICTURES_AT_ONCE]
            try:
                new = self._compute([picture for _, picture in some])
            except ValueError as error:
                self.no_features = str(error)
                if hides(pictures):
                    raise ModelError(f"images cannot be left out of prompts: {error}") from error
                return None
            for (digest, _), item in zip(some, new, strict=True):
                found[digest] = item
                if keep:
                    self.features.put(digest, item)
        return [found[picture.digest] for picture in pictures]

    def _compute(self, pictures: list[Picture]) -> list[ImageFeatures]:
        expansions = [self.encoder.expansion(picture) for picture in pictures]
        inputs = on_device(self.model, self.encoder.pixels([[picture] for picture in pictures]))
        mark = self.encoder.tokenizer.convert_ids_to_tokens(self.placeholder)
        return features.compute_features(self.model, inputs, expansions, mark)

    def _hidden(self, picture: HiddenPicture) -> ImageFeatures:
        """What the decoder sees of a picture that is not inserted."""
        if self.placeholder is None:
            raise ModelError(f"{type(self.model).__name__} does not say which token stands for an image")
        mark = self.encoder.tokenizer.convert_ids_to_tokens(self.placeholder)
        return hidden_features(self.model, self.placeholder, self.encoder.expansion(picture.source), mark)

    def _sight(self, batch: Sequence[EncodedPrompt], after: Prefix) -> torch.Tensor:
        """Which token of each query sees which of its images, where the mask depends on the whole prompt (Idefics)."""
        start = tuple(after.ids[0].tolist())
        whole, _ = self.encoder.pad([start + encoded.tokens.ids for encoded in batch])
        shown = sum(token == self.placeholder for token in start)
        repeated = min(1, shown)  # the last image of the prefix is among the queries' own
        counts = [shown - repeated + len(encoded.pictures) for encoded in batch]
        mask = self.encoder.dialect.masks(whole, counts, {})["image_attention_mask"]
        longest = max(len(encoded) for encoded in batch)
        return mask[:, -longest:, shown - repeated :]

    def _use_features(self) -> bool:
        return self.feature_cache is not False and self._may("feature cache", self.no_features, self.feature_cache)

    def _may(self, what: str, reason: str | None, wish: Switch) -> bool:
        """True if there is no reason against it; says the reason once, louder if it was asked for."""
        if reason is not None and what not in self._said:
            self._said.add(what)
            logger.log(logging.WARNING if wish is True else logging.INFO, "no %s: %s", what, reason)
        return reason is None


def on_device(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """The tensors among a model's inputs, where it is and in its dtype."""
    return {
        name: value.to(model.device, model.dtype) if value.is_floating_point() else value.to(model.device)
        for name, value in inputs.items()
        if isinstance(value, torch.Tensor)
    }


def _by_length(group: Group, new_tokens: int) -> Iterator[Group]:
    """The group, divided by length where padding is not allowed."""
    assert group.prefix is not None
    longest = max(len(encoded) for encoded in group.prompts)
    if not prefix.needs_equal_lengths(group.prefix, longest + new_tokens):
        yield group
        return
    lengths: dict[int, list[int]] = {}
    for place, encoded in enumerate(group.prompts):
        lengths.setdefault(len(encoded), []).append(place)
    for places in lengths.values():
        yield Group([group.numbers[i] for i in places], [group.prompts[i] for i in places], group.prefix)


def _part(encoded: EncodedPrompt, start: int, end: int, first_picture: int, last_picture: int | None) -> EncodedPrompt:
    """Some tokens and pictures of a prompt."""
    spans = [
        Span(max(s.start, start) - start, min(s.end, end) - start, s.role, s.index, s.is_answer)
        for s in encoded.tokens.spans
        if s.start < end and s.end > start
    ]
    tokens = TokenizedPrompt(encoded.tokens.ids[start:end], tuple(spans), max(0, encoded.tokens.prefix - start))
    pictures = encoded.pictures[first_picture:last_picture]
    return EncodedPrompt(tokens, pictures, max(0, encoded.prefix_pictures - first_picture))


def _before_answer(encoded: EncodedPrompt) -> int:
    """How many tokens may belong to a prefix: at least one must be left, and its logits tell the answer's first token."""
    answer = encoded.tokens.span("answer")
    return (answer[0] if answer else len(encoded)) - 1


def _placeholder(model: Any, processor: Any) -> int | None:
    """Id of the token that stands for a feature of an image."""
    for owner, name in (
        (model.config, "image_token_id"),
        (model.config, "image_token_index"),
        (processor, "image_token_id"),
    ):
        value = getattr(owner, name, None)
        if isinstance(value, int):
            return value
    return None
