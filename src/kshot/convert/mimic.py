"""MimIC's epoch folders (arXiv 2504.08851) as adapters of method ``mimic``.

Upstream saves ``encoder.pth`` into ``epoch-N``: ``attn_shift [layers, heads, head width]`` and, per layer,
``log_Z1_lin.N.weight [heads, head width]`` and ``log_Z1_lin.N.bias [heads]``; without a learnt scale the shifts alone. LoRA
trained in the same run stands beside it in PEFT's own format.

Upstream takes the normaliser of the attention over all keys, masked ones included, and the vectors were learnt so. The adapter
therefore has ``paper_code=True`` unless the caller wants otherwise.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kshot.convert.adapters import base_of, sizes, write_adapter
from kshot.convert.folder import check_free
from kshot.convert.live import ENCODER, find_file
from kshot.convert.pickled import load_pickled, tensor
from kshot.errors import ModelError, OptionError
from kshot.methods.mimic import MimicConfig
from kshot.models.adapters import CONFIG
from kshot.models.anatomy import Anatomy

SHIFT, SCALE = "attn_shift", "log_Z1_lin"


@dataclass(frozen=True)
class Shifts:
    """What was learnt.

    Attributes:
        shift: ``[layers, heads, head width]``, or ``[layers, heads x head width]``, which is the same where there is no scale.
        weight: ``[heads, head width]`` of each layer; none without a learnt scale.
        bias: ``[heads]`` of each layer.
    """

    shift: torch.Tensor
    weight: tuple[torch.Tensor, ...]
    bias: tuple[torch.Tensor, ...]


def convert_mimic(
    source: str | os.PathLike[str],
    *,
    model: str | os.PathLike[str],
    out: str | os.PathLike[str],
    paper_code: bool = True,
    without_lora: bool = False,
) -> Path:
    """Convert an epoch folder of MimIC into an adapter for kshot, PEFT and transformers.

    Nothing in the file is run (``weights_only``), and of the base model only the configuration is read. The numbers keep their type;
    the adapter is compared with the source when it is written.

    Args:
        source: an epoch folder (``epoch-4``), or its ``encoder.pth``.
        model: the base model: folder or Hub id.
        out: the new folder; must not exist, or be empty.
        paper_code: compute the normaliser as upstream does, over masked keys, too; otherwise over the keys that a token attends to,
            so that results depend neither on padding nor on whether a prompt is read at once.
        without_lora: leave out the LoRA adapter that was trained together with the shifts, where the folder has one.

    Returns:
        ``out``.

    Raises:
        ModelError: the source is not there, damaged, would run code, holds something that method mimic cannot do, or does not fit the
            base model.
        OptionError: the folder also has a LoRA adapter, or ``out`` is not empty.
    """
    folder, target = Path(source).expanduser(), Path(out).expanduser()
    path = find_file(folder, (ENCODER,), "MimIC")
    check_free(target)
    found = read_mimic(path)
    notes = []
    if (path.parent / CONFIG).is_file():
        if not without_lora:
            raise OptionError(
                f"{path.parent} also holds a LoRA adapter that was trained together with the shifts; --without-lora converts the "
                f"shifts alone (kshot's --adapter takes the LoRA adapter from {path.parent} as it is)"
            )
        notes.append("the LoRA adapter that was trained together with the shifts is left out")
    base, anatomy = base_of(model)
    shift = _check(found, anatomy, path)
    if found.weight:
        notes.append(
            "normaliser over masked keys, too, as upstream: results depend on padding (--paper-code false: they do not)"
            if paper_code
            else "normaliser over the keys that are attended to; upstream trained it over masked keys, too"
        )
    config = MimicConfig(
        scale="learned" if found.weight else "fixed", paper_code=paper_code and bool(found.weight), query="post_rope"
    )

    def values(layer: int) -> dict[str, torch.Tensor]:
        learnt = {"mimic_weight": found.weight[layer], "mimic_bias": found.bias[layer]} if found.weight else {}
        return {"mimic_shift": shift[layer]} | learnt

    return write_adapter(
        target, kind="mimic", source=path, model=model, base=base, config=config, values=values, notes=notes
    )


def read_mimic(path: Path) -> Shifts:
    """The shifts in a file.

    Raises:
        ModelError: it holds something else, or a variant that method mimic cannot do; the message says which.
    """
    held = load_pickled(path)
    if not held:
        raise ModelError(
            f"{path} is empty, as upstream writes it for LoRA: kshot's --adapter takes {path.parent} as it is"
        )
    if "ffn_shift_scale" in held or "attn_shift_scale" in held:
        raise ModelError(f"{path} is LIVE, trained by MimIC's code: kshot convert live")
    if "ffn_shift" in held:
        raise ModelError(
            f"{path} also shifts and rescales the outputs of MLPs (ffn_strategy VECTOR_SHIFT), which method mimic does not offer"
        )
    shift = tensor(held, SHIFT, path)
    numbers = sorted({int(found[1]) for name in held if (found := re.fullmatch(rf"{SCALE}\.(\d+)\.\w+", name))})
    known = {SHIFT, *(f"{SCALE}.{number}.{part}" for number in numbers for part in ("weight", "bias"))}
    odd = sorted(set(held) - known)
    if odd:
        raise ModelError(f"{path} holds {', '.join(odd[:3])}, which no published version of MimIC learns")
    if numbers and numbers != list(range(len(shift))):
        raise ModelError(f"{path} has shifts for {len(shift)} layers, but scales for layers {numbers}")
    weight = tuple(tensor(held, f"{SCALE}.{number}.weight", path) for number in numbers)
    bias = tuple(tensor(held, f"{SCALE}.{number}.bias", path) for number in numbers)
    if weight and shift.ndim == 2:
        raise ModelError(
            f"{path} was trained without MULTI_HEAD: one scale for all heads from the mean of their normalisers, which method mimic "
            "does not offer"
        )
    for number, (rows, numbers_) in enumerate(zip(weight, bias, strict=True)):
        if rows.shape != shift.shape[1:] or numbers_.shape != shift.shape[1:2]:
            raise ModelError(
                f"{path}: layer {number} has shifts {_shape(shift[number])}, weights {_shape(rows)} and biases {_shape(numbers_)}"
            )
    return Shifts(shift, weight, bias)


def _check(found: Shifts, anatomy: Anatomy, path: Path) -> torch.Tensor:
    """The shifts as ``[layers, heads, head width]``.

    Raises:
        ModelError: they are those of another model.
    """
    wanted = (len(anatomy.layers), anatomy.heads, anatomy.head_dim)
    shape = tuple(found.shift.shape)
    flat = len(shape) == 2 and shape == (wanted[0], wanted[1] * wanted[2])
    if shape != wanted and not flat:
        words = (
            f"{shape[0]} layers with {shape[1]} heads of {shape[2]}" if len(shape) == 3 else f"the shape {list(shape)}"
        )
        raise ModelError(f"{path} has shifts for {words}, but {sizes(anatomy)}: give the model they were trained on")
    return found.shift.reshape(wanted)


def _shape(value: Any) -> list[int]:
    return list(value.shape)
