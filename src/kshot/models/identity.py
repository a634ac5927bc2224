"""What identifies a model in a run folder."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
import transformers

from kshot.version import __version__

SAMPLED = 64
"""Values read of each weight: enough to tell checkpoints apart, few enough for models of any size."""


def identity(model: Any, processor: Any) -> dict[str, Any]:
    """Architecture, hash of the weights, dtype, device and versions; JSON-serialisable."""
    quantization = getattr(model.config, "quantization_config", None)
    return {
        "architecture": type(model).__name__,
        "model_type": model.config.model_type,
        "parameters": sum(p.numel() for p in model.parameters()),
        "weights": weight_hash(model),
        "dtype": str(model.dtype).removeprefix("torch."),
        "quantization": str(getattr(quantization, "quant_method", "")) or None,
        "device": torch.device(model.device).type,
        "attention": getattr(model.config, "_attn_implementation", None),
        "processor": type(processor).__name__,
        "chat_template": _text_hash(getattr(processor, "chat_template", None)),
        "versions": {"kshot": __version__, "torch": torch.__version__, "transformers": transformers.__version__},
    }


def weight_hash(model: torch.nn.Module) -> str:
    """A hash of names, shapes and evenly spaced values of all parameters and buffers.

    Cheap (a few kilobytes are read of each tensor) and changed by any training step, though not by an edit of one single value.
    """
    hasher = hashlib.blake2b(digest_size=16)
    state = sorted([*model.named_parameters(), *model.named_buffers()], key=lambda item: item[0])
    for name, tensor in state:
        hasher.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        if tensor.is_meta or not tensor.numel():
            continue
        flat = tensor.detach().reshape(-1)
        places = torch.linspace(0, flat.numel() - 1, min(SAMPLED, flat.numel()), dtype=torch.float64).long()
        hasher.update(flat[places.to(flat.device)].double().cpu().numpy().tobytes())
    return hasher.hexdigest()


def _text_hash(text: Any) -> str | None:
    return hashlib.blake2b(repr(text).encode(), digest_size=8).hexdigest() if text else None
