"""The dialects of processors that write images into text in a way of their own, and which dialect a processor has.

The right one is found by what a processor can do, never by its name; :class:`~kshot.models.dialect.Dialect` itself serves all
processors that can write one image on its own (``replace_image_token``), which are nearly all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from transformers import ProcessorMixin

from kshot.errors import ModelError
from kshot.models.dialect import Dialect, Images
from kshot.prompt import Prompt, Segment


class CrossAttentionDialect(Dialect):
    """Images are seen through cross-attention layers; a mask says which token sees which image (Mllama)."""

    equal_counts = True  # text before the first image attends to all images of the batch's row, padding included

    def masks(self, ids: torch.Tensor, counts: Sequence[int], pixels: dict[str, Any]) -> dict[str, torch.Tensor]:
        if not pixels:
            return {}
        mark = self.processor.image_token_id
        tiles = pixels["num_tiles"]
        shape = (*ids.shape, max(counts), self.processor.image_processor.max_image_tiles)
        mask = torch.zeros(shape, dtype=torch.long)
        for row, row_ids in enumerate(ids):
            places = torch.nonzero(row_ids == mark).flatten().tolist()
            # An image is seen from its mark up to the next image; images side by side are seen as one group.
            end = ids.shape[1]
            for number in reversed(range(len(places))):
                following = places[number + 1] if number + 1 < len(places) else None
                if following is not None and following != places[number] + 1:
                    end = following
                mask[row, places[number] : end, number, : int(tiles[row][number])] = 1
        return {"cross_attention_mask": mask}


class FencedDialect(Dialect):
    """Images between boundary tokens; neighbours share one (Idefics2)."""

    def __init__(self, processor: Any):
        super().__init__(processor)
        self._fence: str = processor.fake_image_token
        tiles = 5 if processor.image_processor.do_image_splitting else 1
        self._tile = self.image_token * processor.image_seq_len + self._fence
        self._expansion = self._tile * tiles

    def expansion(self, image: Image.Image, *, alone: bool = True) -> str:
        return self._fence + self._expansion

    def fit(self, prompt: Prompt, expansions: Sequence[str]) -> list[str]:
        fitted = list(expansions)
        number = -1
        for place, segment in enumerate(prompt.segments):
            if segment.picture is None:
                continue
            number += 1
            before, after = prompt.segments[place - 1] if place else None, prompt.segments[place + 1 : place + 2]
            if before is not None and before.picture is not None:
                fitted[number] = fitted[number].removeprefix(self._fence)
            text = after[0].text if after else ""
            if text and not text[0].isspace() and text[0] != "<":
                fitted[number] += " "
        return fitted

    def pixels(self, images: Images) -> dict[str, Any]:
        return dict(self.processor.image_processor([list(row) for row in images], **self.image_options))


class InterleavedDialect(Dialect):
    """Prompts are lists of texts and images; texts lose spaces at their ends, cross-attention masks say what is seen (Idefics)."""

    fence = "<fake_token_around_image>"

    def arrange(self, prompt: Prompt) -> Prompt:
        texts = _strip_runs(prompt.segments)
        begin = replace(
            prompt.segments[0], text=self.processor.tokenizer.bos_token or "", picture=None, is_answer=False
        )
        segments = [begin, *(replace(s, text=text) for s, text in zip(prompt.segments, texts, strict=True))]
        return replace(
            prompt, segments=tuple(segments), prefix_segments=prompt.prefix_segments and prompt.prefix_segments + 1
        )

    def expansion(self, image: Image.Image, *, alone: bool = True) -> str:
        return self.fence + self.image_token + self.fence

    def fit(self, prompt: Prompt, expansions: Sequence[str]) -> list[str]:
        pictures = [s.picture is not None for s in prompt.segments]
        follows = [pictures[i - 1] for i, is_picture in enumerate(pictures) if is_picture]
        pairs = zip(expansions, follows, strict=True)
        return [text.removeprefix(self.fence) if neighbour else text for text, neighbour in pairs]

    def pixels(self, images: Images) -> dict[str, Any]:
        rows = [self.processor.image_processor(list(row), **self.image_options) for row in images if row]
        most, shape = max(len(row) for row in images), rows[0].shape[1:]
        values = torch.zeros((len(images), most, *shape))
        found = iter(rows)
        for number, row in enumerate(images):
            if row:
                values[number, : len(row)] = next(found)
        return {"pixel_values": values}

    def masks(self, ids: torch.Tensor, counts: Sequence[int], pixels: dict[str, Any]) -> dict[str, torch.Tensor]:
        if not max(counts):
            size = self.processor.image_processor.image_size
            nothing = torch.zeros((len(ids), 1, self.processor.image_processor.image_num_channels, size, size))
            return {"pixel_values": nothing, "image_attention_mask": torch.zeros((*ids.shape, 1), dtype=torch.bool)}
        # A token sees the last image before it, unless the text ended (</s>) in between.
        starts = ids == self.processor.image_token_id
        image = starts.cumsum(-1) - 1
        order = torch.arange(ids.shape[1])
        ends = torch.where(ids == self.processor.tokenizer.eos_token_id, order, -1).cummax(-1).values
        last_image = torch.where(starts, order, -1).cummax(-1).values
        ended = (ends > last_image) & (ends < order)
        image = image.masked_fill(ended, -1)
        mask = torch.nn.functional.one_hot(image.clamp_min(0), max(counts)) * (image >= 0).unsqueeze(-1)
        return {"image_attention_mask": mask}

    def reference(self, prompt: Prompt, images: Sequence[Image.Image]) -> Any:
        found = iter(images)
        texts = prompt.text(self.image_token).split(self.image_token)
        items = [item for text in texts for item in (text, next(found, "")) if item != ""]
        return self.processor(text=[items], return_tensors="pt")


def dialect_of(processor: Any) -> Dialect:
    """The dialect of a processor, found by what it can do.

    Raises:
        ModelError: the processor writes images in a way that is not known here.
    """
    inputs = processor.model_input_names
    if type(processor).replace_image_token is not ProcessorMixin.replace_image_token:
        return CrossAttentionDialect(processor) if "cross_attention_mask" in inputs else Dialect(processor)
    if "image_attention_mask" in inputs:
        return InterleavedDialect(processor)
    if hasattr(processor, "fake_image_token") and hasattr(processor, "image_seq_len"):
        return FencedDialect(processor)
    raise ModelError(
        f"{type(processor).__name__} does not say how it writes images into text, so prompts with several images cannot be made "
        "for this model"
    )


def _strip_runs(segments: Sequence[Segment]) -> list[str]:
    """The texts of the segments, without spaces at both ends of each run of texts between images."""
    texts = [s.text for s in segments]
    for order in (range(len(segments)), range(len(segments) - 1, -1, -1)):
        forward = order.step > 0
        at_edge = True
        for i in order:
            if segments[i].picture is not None:
                at_edge = True
            elif at_edge:
                texts[i] = texts[i].lstrip(" ") if forward else texts[i].rstrip(" ")
                at_edge = not texts[i]
    return texts
