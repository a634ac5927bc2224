"""How a processor writes images into text: what nearly all of them do.

A transformers processor replaces the mark of an image by a run of placeholder tokens, and some of them change the text around it
as well. A :class:`Dialect` says what a processor does, one piece of the prompt at a time, so that the prompt's pieces still know
what they are when it is tokenized. The token ids are those that the processor itself gives for the whole prompt.
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

from kshot.errors import OptionError
from kshot.prompt import Prompt, Segment

Images = Sequence[Sequence[Image.Image]]
"""Images of each prompt of a batch."""
_BLANK = Image.new("RGB", (8, 8))


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
