"""The trained model as a plain Hugging Face folder, in half precision."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoProcessor, GenerationConfig, LlavaForConditionalGeneration, LlavaProcessor
from transformers.models.clip import CLIPImageProcessorPil

from kshot.training.tiny_banks import EDGE


def build_processor(tokenizer: Any, patch: int) -> LlavaProcessor:
    """The processor: images are squeezed to EDGE x EDGE (bilinear, antialiased) and scaled to [-1, 1]."""
    images = CLIPImageProcessorPil(
        do_resize=True,
        size={"height": EDGE, "width": EDGE},
        resample=Image.Resampling.BILINEAR,
        do_center_crop=False,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return LlavaProcessor(
        images,
        tokenizer,
        patch_size=patch,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=0,
        image_token="<image>",
        chat_template=tokenizer.chat_template,
    )


def export(model: LlavaForConditionalGeneration, tokenizer: Any, out: str | os.PathLike[str], *, patch: int) -> Path:
    """Write the model folder and return its path. ``model`` is converted to float16 in place.

    An answer ends with ``<|end|>`` in chat prompts, so that is an end of sequence as well as ``</s>``.
    """
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=[tokenizer.eos_token_id, end],
        pad_token_id=tokenizer.pad_token_id,
        do_sample=False,
    )
    model.half().save_pretrained(folder)
    build_processor(tokenizer, patch).save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # it is written readable by its owner only
    return folder


def load(folder: str | os.PathLike[str]) -> tuple[LlavaForConditionalGeneration, Any]:
    """Model (in float32, for the CPU) and processor of an exported folder."""
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoProcessor.from_pretrained(folder)
