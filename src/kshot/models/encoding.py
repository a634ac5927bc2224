"""From prompts to the inputs of a model.

:class:`Encoder` turns a :class:`~kshot.prompt.Prompt` into token ids that know what they are, and a batch of them into the tensors
that the model takes. The ids equal those that the processor gives for the whole prompt, but each image is only looked at for
its size until its pixels are needed, and where demonstration, query and answer lie is known by construction.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from transformers import __version__ as hf_version

from kshot.errors import ModelError
from kshot.models.dialects import dialect_of
from kshot.models.memory import BudgetedCache
from kshot.picture import DrawnPicture, Picture
from kshot.prompt import Prompt, Segment, TokenizedPrompt, tokenize

Known = Callable[[Picture], str | None]
DECODED_BYTES = 256 * 2**20
"""Memory for decoded images that are waiting to be batched."""
SIZES_KEPT = 8192


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as a model takes it, images still undecoded.

    Attributes:
        tokens: ids and spans.
        pictures: the images in order.
        prefix_pictures: how many of them belong to instruction and demonstrations.
    """

    tokens: TokenizedPrompt
    pictures: tuple[Picture, ...]
    prefix_pictures: int

    def __len__(self) -> int:
        return len(self.tokens)


class Encoder:
    """Encodes prompts for one model.

    Args:
        model: a transformers model of images and text.
        processor: its processor.

    Attributes:
        image_token: what stands for an image in chat templates.
        reserved: strings that mean something to the tokenizer, to be broken up where data contain them.
        company_matters: whether an image is processed in another way if its prompt has several (LLaVA-OneVision cuts only
            single images into tiles); found out by :meth:`check`.

    Raises:
        ModelError: the processor writes images in an unknown way.
    """

    def __init__(self, model: Any, processor: Any):
        self.processor, self.tokenizer = processor, processor.tokenizer
        self.dialect = dialect_of(processor)
        self.image_token = self.dialect.image_token
        self.reserved = self.dialect.reserved
        self.accepted = frozenset(inspect.signature(model.forward).parameters)
        self.first_position = _first_position(model) if "position_ids" in self.accepted else None
        pad = self.tokenizer.pad_token_id
        self.pad_id: int = pad if pad is not None else (self.tokenizer.eos_token_id or 0)
        self._images: BudgetedCache[Image.Image] = BudgetedCache(DECODED_BYTES)
        self._expansions: dict[tuple[tuple[int, int], bool], str] = {}
        self.company_matters = False

    @property
    def fingerprint(self) -> str:
        """Hash of all that decides what the vision tower is given for an image, and what stands for it in the text."""
        images = self.processor.image_processor
        settings = {name: value for name, value in vars(self.processor).items() if isinstance(value, str | int | float)}
        options = sorted(self.dialect.image_options.items())
        parts = (type(images).__name__, images.to_json_string(), options, sorted(settings.items()), hf_version)
        return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()

    def encode(self, prompt: Prompt, *, known: Known | None = None, after: str | None = None) -> EncodedPrompt:
        """Token ids and spans of a prompt.

        Args:
            prompt: the prompt.
            known: the text that stands for a picture (see :meth:`expansion`) where it is already known, else ``None``; such
                pictures are not decoded.
            after: the prompt is only the end of one, and this beginning of its first piece is encoded already. Nothing is put
                before it.

        Raises:
            BadImage: an image cannot be decoded.
        """
        arranged = self.dialect.arrange(prompt)
        expansions = self._expansions_in(arranged, known)
        begin = prompt.segments[0].text if prompt.segments else ""
        special = after is None and self.dialect.adds_special_tokens(prompt, begin)
        if after:
            first, *others = arranged.segments
            if first.picture is not None:
                expansions[0] = expansions[0].removeprefix(after)
            arranged = replace(arranged, segments=(replace(first, text=first.text.removeprefix(after)), *others))
        tokens = tokenize(arranged, self.tokenizer, expansions, add_special_tokens=special)
        before = sum(s.picture is not None for s in arranged.segments[: arranged.prefix_segments])
        return EncodedPrompt(tokens, arranged.pictures, before)

    def opening(self, prompt: Prompt, *, known: Known | None = None) -> str:
        """The text that a prompt begins with: its first text, or what stands for its first image."""
        arranged = self.dialect.arrange(prompt)
        first = arranged.segments[:1]
        if not first or first[0].picture is None:
            return first[0].text if first else ""
        return self._expansions_in(arranged, known)[0]

    def _expansions_in(self, arranged: Prompt, known: Known | None) -> list[str]:
        alone = len(arranged.pictures) < 2
        texts = [
            (known(picture) if known is not None else None) or self.expansion(picture, alone=alone)
            for picture in arranged.pictures
        ]
        return self.dialect.fit(arranged, texts)

    def collate(self, batch: Sequence[EncodedPrompt], *, pixels: bool = True) -> dict[str, torch.Tensor]:
        """Inputs of the model's ``forward`` for a batch: left-padded, on the CPU.

        Args:
            batch: encoded prompts.
            pixels: whether to decode the images; without, the caller adds what the vision tower would have given.

        Returns:
            ``input_ids``, ``attention_mask``, ``position_ids`` (where the model has one position a token) [batch, tokens] and
            whatever else the model takes.
        """
        ids, mask = self.pad([encoded.tokens.ids for encoded in batch])
        counts = [len(encoded.pictures) for encoded in batch]
        images = self.pixels([encoded.pictures for encoded in batch]) if pixels and any(counts) else {}
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
        if self.first_position is not None:
            # Explicit, because forward would count the padding (generate would not), and rotary queries would differ.
            inputs["position_ids"] = (mask.cumsum(-1) - 1).clamp_min(0) + self.first_position * mask
        if self.dialect.takes_suffix:
            rows = [[int(spoken) for spoken in _in_answer(encoded.tokens)] for encoded in batch]
            inputs["token_type_ids"] = self.pad(rows, 0)[0]
        inputs |= images | self.dialect.masks(ids, counts, images)
        return {name: value for name, value in inputs.items() if name in self.accepted}

    def pixels(self, pictures: Sequence[Sequence[Picture]]) -> dict[str, Any]:
        """What the image processor gives for the pictures of each prompt of a batch (not only what the model takes).

        Raises:
            BadImage: an image cannot be decoded.
        """
        return self.dialect.pixels([[self._image(picture) for picture in row] for row in pictures])

    def expansion(self, picture: Picture, *, alone: bool = True) -> str:
        """The text that stands for a picture: its placeholders and what encloses them.

        Args:
            picture: the picture; only its size matters.
            alone: whether it is the only one of its prompt; see :attr:`company_matters`.

        Raises:
            BadImage: the picture cannot be decoded.
        """
        image = self._image(picture)
        key = (image.size, alone or not self.company_matters)
        text = self._expansions.get(key)
        if text is None:
            text = self.dialect.expansion(image, alone=key[1])
            if len(self._expansions) >= SIZES_KEPT:
                self._expansions.clear()
            self._expansions[key] = text
        return text

    def pad(self, rows: Sequence[Sequence[int]], fill: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows of numbers as one tensor, padded on the left, and its mask (1 = not padding)."""
        longest = max(len(row) for row in rows)
        values = torch.full((len(rows), longest), self.pad_id if fill is None else fill, dtype=torch.long)
        mask = torch.zeros((len(rows), longest), dtype=torch.long)
        for number, row in enumerate(rows):
            if row:
                values[number, -len(row) :] = torch.tensor(row)
                mask[number, -len(row) :] = 1
        return values, mask

    def check(self) -> None:
        """Compare with the processor's own encoding of a small prompt with images apart and side by side.

        Raises:
            ModelError: they differ; the model cannot be used with this version of transformers.
        """
        pictures = [_probe(number) for number in range(3)]
        pieces: list[str | Picture] = [pictures[0], "One red.\n", pictures[1], pictures[2], "two"]
        segments = [
            Segment(piece, role="query") if isinstance(piece, str) else Segment("", piece, "query") for piece in pieces
        ]
        prompt = Prompt(tuple(segments), "plain", 0)
        try:
            image = pictures[0].load()
            self.company_matters = self.dialect.expansion(image) != self.dialect.expansion(image, alone=False)
            expected = self.dialect.reference(prompt, [picture.load() for picture in pictures])["input_ids"][0].tolist()
            found = list(self.encode(prompt).tokens.ids)
        except Exception as error:
            raise ModelError(
                f"{type(self.processor).__name__} cannot encode a prompt with several images: {error}"
            ) from error
        if found != expected:
            raise ModelError(
                f"{type(self.processor).__name__} writes prompts with several images in a way that is not known here: "
                f"{len(expected)} tokens where {len(found)} were expected"
            )

    def _image(self, picture: Picture) -> Image.Image:
        image = self._images.get(picture)
        if image is None:
            image = picture.load()
            self._images.put(picture, image, 3 * image.width * image.height)
        return image


def _probe(number: int) -> Picture:
    """A small picture; each has another size, and none is square."""
    return DrawnPicture(lambda: Image.new("RGB", (112 + 16 * number, 96), (90 * number, 30, 60)), f"probe {number}")


def _in_answer(tokens: TokenizedPrompt) -> list[bool]:
    """True from the first token of the query's answer on."""
    span = tokens.span("answer")
    start = span[0] if span else len(tokens)
    return [position >= start for position in range(len(tokens))]


def _first_position(model: Any) -> int | None:
    """The position of a prompt's first token (0 or 1), or ``None`` if the model makes positions of its own (several axes)."""
    if hasattr(getattr(model, "base_model", model), "get_rope_index"):
        return None
    one = torch.ones((1, 1), dtype=torch.long)
    prepared = model.prepare_inputs_for_generation(
        one, attention_mask=one, position_ids=one - 1, is_first_iteration=True, use_cache=False
    )
    positions = prepared.get("position_ids")
    return 0 if positions is None else int(positions.flatten()[0])
