"""How processors write images into text.

A transformers processor replaces the mark of an image by a run of placeholder tokens, and some of them change the text around it
as well. A :class:`Dialect` says what a processor does, one piece of the prompt at a time, so that the prompt's pieces still know
what they are when it is tokenized. The token ids are those that the processor itself gives for the whole prompt.

The right dialect is found by what a processor can do, never by its name; :class:`Dialect` itself serves all processors that
can write one image on its own (``replace_image_token``), which are nearly all.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from transformers import ProcessorMixin

from kshot.errors import ModelError, OptionError
from kshot.prompt import Prompt, Segment

Images = Sequence[Sequence[Image.Image]]
"""Images of each prompt of a batch."""


class Dialect:
    """Processors that write each image by itself (``replace_image_token``).

    Attributes:
        image_token: what stands for an image in the text that the processor takes and its chat template writes.
        reserved: strings that the tokenizer takes for something else than text, longest first.
        image_options: what the image processor is called with.
        takes_suffix: whether answers are a second text, behind the prompt (prefix language models).
        enclosure: special tokens that the chat template writes before and behind an image; plain prompts write them, too.
        equal_counts: whether the prompts of a batch must have equally many images, so as not to disturb each other.
    """

    equal_counts = False

    def __init__(self, processor: Any):
        self.processor = processor
        self.image_token: str = getattr(processor, "image_token", None) or "<image>"
        self.takes_suffix = "suffix" in inspect.signature(type(processor).__call__).parameters
        merged = processor._merge_kwargs(tokenizer_init_kwargs=processor.tokenizer.init_kwargs)
        self.image_options: dict[str, Any] = dict(merged["images_kwargs"]) | {"return_tensors": "pt"}
        self._adds_special_tokens = bool(merged["text_kwargs"].get("add_special_tokens", True))
        self.reserved = _reserved(processor)
        self.enclosure = self._enclosure()
        self._rewrites = type(processor).prepare_inputs_layout is not ProcessorMixin.prepare_inputs_layout

    def enclose(self, prompt: Prompt) -> Prompt:
        """A plain prompt with each image enclosed as in training (``<|vision_start|>`` ... ``<|vision_end|>``)."""
        before, behind = self.enclosure
        if not before and not behind:
            return prompt
        segments: list[Segment] = []
        prefix = 0
        for number, segment in enumerate(prompt.segments):
            around = [replace(segment, text=text, picture=None) for text in (before, behind)]
            parts = [around[0], segment, around[1]] if segment.picture is not None else [segment]
            segments += [part for part in parts if part.text or part.picture is not None]
            if number < prompt.prefix_segments:
                prefix = len(segments)
        return replace(prompt, segments=tuple(segments), prefix_segments=prefix)

    def arrange(self, prompt: Prompt) -> Prompt:
        """The prompt with what the processor adds to its text (``<s>`` behind the images, a line end ...)."""
        if not self._rewrites:
            return prompt
        segments = list(prompt.segments)
        # An answer behind a prefix is no part of the text that the processor arranges.
        answer = [s for s in segments if s.role == "answer"] if self.takes_suffix else []
        segments = segments[: len(segments) - len(answer)]
        before = "".join(self.image_token if s.picture is not None else s.text for s in segments)
        images = [[_BLANK] * sum(s.picture is not None for s in segments)]
        after = self.processor.prepare_inputs_layout(text=[before], images=images if images[0] else None)[1][0]
        if after != before:
            prompt = _insert(prompt, segments, after.split(self.image_token))
            segments = list(prompt.segments)
        if answer:
            end = self.processor.tokenizer.eos_token or ""  # what the processor appends to a suffix
            segments += [*answer, replace(answer[-1], text=end, picture=None)]
        return replace(prompt, segments=tuple(segments))

    def expansion(self, image: Image.Image, *, alone: bool = True) -> str:
        """The text that stands for an image; it depends on the image's size only, and on whether its prompt has others."""
        row = [image] if alone else [image, image]
        return str(self.processor._process_images([row], **self.image_options)[1][0])

    def fit(self, prompt: Prompt, expansions: Sequence[str]) -> list[str]:
        """Expansions as they are written at their places in the prompt (next to other images, before a word)."""
        return list(expansions)

    def adds_special_tokens(self, prompt: Prompt, text: str) -> bool:
        """Whether the tokenizer adds its own ``<s>``: not to a chat prompt that has one."""
        first = self.processor.tokenizer.bos_token
        return self._adds_special_tokens and not (prompt.style == "chat" and first and text.startswith(first))

    def pixels(self, images: Images) -> dict[str, Any]:
        """Everything that the image processor gives for the images of a batch (at least one image)."""
        return dict(self.processor._process_images([list(row) for row in images], **self.image_options)[0])

    def masks(self, ids: torch.Tensor, counts: Sequence[int], pixels: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Inputs that say which token sees which image.

        Args:
            ids: token ids [batch, tokens], left-padded.
            counts: number of images of each prompt.
            pixels: what :meth:`pixels` gave; empty if the batch has no images.
        """
        if not getattr(self.processor, "return_mm_token_type_ids", False):
            return {}
        kinds = torch.tensor(self.processor.create_mm_token_type_ids(ids.tolist()), dtype=ids.dtype)
        return {"mm_token_type_ids": kinds, "token_type_ids": kinds}  # models take the one or the other

    def reference(self, prompt: Prompt, images: Sequence[Image.Image]) -> Any:
        """The processor's own encoding of a prompt without an answer, to check this dialect by."""
        text = prompt.text(self.image_token)
        options = {} if self.adds_special_tokens(prompt, text) else {"add_special_tokens": False}
        return self.processor(text=[text], images=[list(images)] if images else None, return_tensors="pt", **options)

    def _enclosure(self) -> tuple[str, str]:
        if not getattr(self.processor, "chat_template", None):
            return "", ""
        content = [{"type": "text", "text": "\ue000"}, {"type": "image"}, {"type": "text", "text": "\ue001"}]
        try:
            text = str(self.processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False))
        except Exception:  # templates are programs of other people: any exception may come out of them
            return "", ""
        before, _, behind = text.partition("\ue000")[2].partition("\ue001")[0].partition(self.image_token)
        # Only special tokens: line ends and the like belong to the chat.
        one = "|".join(map(re.escape, self.reserved))
        begin, end = re.search(f"(?:{one})*$", before), re.match(f"(?:{one})*", behind)
        return begin.group() if begin else "", end.group() if end else ""


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


def _reserved(processor: Any) -> tuple[str, ...]:
    """All strings that the tokenizer takes for something else than text."""
    added = getattr(processor.tokenizer, "added_tokens_decoder", {}).values()
    marks = {token.content for token in added if token.special}
    marks |= set(processor.tokenizer.all_special_tokens)
    for name in ("image_token", "boi_token", "eoi_token", "fake_image_token", "video_token"):
        marks |= {
            value for owner in (processor, processor.tokenizer) if isinstance(value := getattr(owner, name, None), str)
        }
    # Longest first: a mark inside another must not be broken up before it.
    return tuple(sorted((mark for mark in marks if len(mark) > 1), key=lambda mark: (-len(mark), mark)))


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


_BLANK = Image.new("RGB", (8, 8))


def _insert(prompt: Prompt, segments: Sequence[Segment], texts: Sequence[str]) -> Prompt:
    """The prompt's segments, with what the texts between its images have more than the segments' own.

    ``texts`` has the text before, between and behind the images, as the processor arranged it.
    """
    runs: list[list[Segment]] = [[]]
    for segment in segments:
        runs[-1].append(segment)
        if segment.picture is not None:
            runs.append([])
    if len(runs) != len(texts):
        raise OptionError("the processor adds or removes images of its own")
    result: list[Segment] = []
    sizes: list[int] = []  # for each old segment, how many segments there are when it has been written
    for run, text in zip(runs, texts, strict=True):
        own = "".join(s.text for s in run)
        before, found, behind = text.partition(own) if own else ("", "", text)
        if own and not found:
            raise OptionError("the model's processor rewrites prompts, so that their pieces cannot be located")
        nearest = run[0] if run else (result[-1] if result else Segment(""))
        words = [s for s in run if s.picture is None]
        if before or (behind and not words):
            result.append(replace(nearest, text=before or behind, picture=None, is_answer=False))
        for segment in run:
            if segment.picture is not None and behind and words:
                result.append(replace(words[-1], text=behind, is_answer=False))
                behind = ""
            result.append(segment)
            sizes.append(len(result))
        if behind and words:
            result.append(replace(words[-1], text=behind, is_answer=False))
    prefix = sizes[prompt.prefix_segments - 1] if prompt.prefix_segments else 0
    return replace(prompt, segments=tuple(result), prefix_segments=prefix)
