"""What transformers itself makes of a prompt: the processor called on the whole text, the model called on what it gives."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from PIL import Image

from kshot.models.vlm import VLM
from kshot.prompt import Prompt
from tests.models import tiny

MARK = {"gemma3": "<start_of_image>", "mllama": "<|image|>", "internvl": "<IMG_CONTEXT>"}
MARK |= dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl"), "<|image_pad|>")
NESTED = ("idefics2", "idefics3", "smolvlm", "gemma3", "mllama", "paligemma")


def mark(family: str) -> str:
    """What stands for an image in a family's texts."""
    return MARK.get(family, "<image>")


@cache
def vlm(family: str) -> VLM:
    """One model of a family, shared by all tests (which must not change it)."""
    return VLM(*tiny.build(family), name=family)


def process(
    family: str, processor: Any, texts: Sequence[str], images: Sequence[Sequence[Image.Image]], **options: Any
) -> dict[str, Any]:
    """The processor's own inputs for a batch of texts with marks for images."""
    options = {"return_tensors": "pt", "padding": True} | options
    if family == "idefics":  # takes lists of texts and images
        return dict(processor(text=[interleave(text, row) for text, row in zip(texts, images, strict=True)], **options))
    nested = [list(row) for row in images]
    shown: Any = nested if family in NESTED else [image for row in nested for image in row]
    found = dict(processor(text=list(texts), images=shown, **options))
    found.pop("labels", None)  # PaliGemma's, for training
    return found


def interleave(text: str, images: Sequence[Image.Image]) -> list[Any]:
    pieces = text.split("<image>")
    items = [item for piece, image in zip(pieces, [*images, None], strict=True) for item in (piece, image)]
    return [item for item in items if item is not None and item != ""]


def inputs_of(family: str, prompts: Sequence[Prompt], processor: Any = None, **options: Any) -> dict[str, Any]:
    """The processor's own inputs for prompts."""
    texts = [prompt.text(mark(family)) for prompt in prompts]
    images = [[picture.load() for picture in prompt.pictures] for prompt in prompts]
    return process(family, processor or vlm(family).processor, texts, images, **options)


@torch.no_grad()
def logits(family: str, inputs: dict[str, Any]) -> torch.Tensor:
    return vlm(family).model(**inputs).logits
