"""How weights are loaded: which files, in what type, on which device, quantized or not."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import BitsAndBytesConfig, PretrainedConfig
from transformers.utils import logging as hf_logging

from kshot.errors import MissingExtra, ModelError, OptionError


def load_weights(place: str, config: PretrainedConfig, maker: Any, **options: Any) -> Any:
    """A model with its weights, from safetensors only.

    Args:
        place: folder or Hub id.
        config: of the model.
        maker: the class of transformers that loads it.
        options: further arguments of ``from_pretrained``; those that are ``None`` are left out.

    Raises:
        ModelError: weights are missing or damaged.
    """
    options = {key: value for key, value in options.items() if value is not None}
    try:
        with quiet_unless_watched():
            loaded: Any = maker.from_pretrained(
                place, config=config, use_safetensors=True, trust_remote_code=False, output_loading_info=True, **options
            )
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise ModelError(f"the weights of {place} cannot be loaded: {sentence_of(error)}") from error
    model, report = loaded
    missing = sorted(report["missing_keys"])
    if missing:
        # transformers would go on with random values in their place.
        raise ModelError(
            f"the weights of {place} are not complete: {len(missing)} are missing ({', '.join(missing[:3])} ...); if the model does "
            "not need them, load it with transformers and give it to kshot.models.VLM(model, processor)"
        )
    return model


@contextmanager
def quiet_unless_watched() -> Iterator[None]:
    """No progress bars of transformers in log files."""
    shown = hf_logging.is_progress_bar_enabled()
    if not sys.stderr.isatty():
        hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            hf_logging.enable_progress_bar()


def dtype_of(dtype: str | torch.dtype) -> str | torch.dtype:
    """A dtype by its name; ``"auto"`` stays.

    Raises:
        OptionError: there is no such floating-point type.
    """
    if isinstance(dtype, torch.dtype) or dtype == "auto":
        return dtype
    found = getattr(torch, dtype, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise OptionError(f"unknown dtype {dtype!r}: use 'auto', 'float32', 'bfloat16' or 'float16'")
    return found


def default_device() -> str:
    """The accelerator, or else the CPU."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator.type if accelerator is not None else "cpu"


def quantization_of(quantization: str | None) -> BitsAndBytesConfig | None:
    """The settings of bitsandbytes.

    Raises:
        OptionError: an unknown name.
        MissingExtra: bitsandbytes is not installed.
    """
    if quantization is None:
        return None
    if quantization not in ("8bit", "4bit"):
        raise OptionError(f"unknown quantization {quantization!r}: use '8bit' or '4bit'")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingExtra("bitsandbytes", "quantization", f"loading in {quantization}")
    if quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)


def sentence_of(error: Exception) -> str:
    """The first line of an error's message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
