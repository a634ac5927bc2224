"""MimIC's epoch folders (arXiv 2504.08851) as adapters of method ``mimic``.

Upstream saves ``encoder.pth`` into ``epoch-N``: ``attn_shift [layers, heads, head width]`` and, per layer,
``log_Z1_lin.N.weight [heads, head width]`` and ``log_Z1_lin.N.bias [heads]``; without a learnt scale the shifts alone. Without
``MULTI_HEAD`` shifts are ``[layers, heads x head width]``, and there is one scale for all heads: ``weight [1, heads x head width]``,
``bias [1]``. With ``ffn_strategy``, ``ffn_shift [layers, width]`` is added to the outputs of MLPs, which keep their lengths. LoRA
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
from kshot.methods.layers import ShiftLayer
from kshot.methods.mimic import MimicConfig, MimicFeedForwardLayer
from kshot.models.adapters import CONFIG
from kshot.models.anatomy import Anatomy

SHIFT, FFN, SCALE = "attn_shift", "ffn_shift", "log_Z1_lin"


@dataclass(frozen=True)
class Shifts:
    """What was learnt.

    Attributes:
        shift: ``[layers, heads, head width]``, or ``[layers, heads x head width]``, which is the same but for the scale.
        weight: ``[heads, head width]`` of each layer, or ``[1, heads x head width]``; none without a learnt scale.
        bias: ``[heads]`` of each layer, or ``[1]``.
        ffn: ``[layers, width]``, if there are shifts of MLPs.
    """

    shift: torch.Tensor
    weight: tuple[torch.Tensor, ...]
    bias: tuple[torch.Tensor, ...]
    ffn: torch.Tensor | None = None

    @property
    def joint(self) -> bool:
        """Whether all heads have one scale."""
        return bool(self.weight) and self.shift.ndim == 2


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
        scale="joint" if found.joint else "learned" if found.weight else "fixed",
        ffn=found.ffn is not None,
        ffn_rescaled=found.ffn is not None,
        paper_code=paper_code and bool(found.weight),
        query="post_rope",
    )

    def values(part: ShiftLayer) -> dict[str, torch.Tensor]:
        layer = part.number
        if isinstance(part, MimicFeedForwardLayer):
            assert found.ffn is not None
            return {"mimic_ffn": found.ffn[layer]}
        if not found.weight:
            return {"mimic_shift": shift[layer]}
        weight = found.weight[layer].reshape(shift[layer].shape)
        return {"mimic_shift": shift[layer], "mimic_weight": weight, "mimic_bias": found.bias[layer]}

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
    ffn = tensor(held, FFN, path) if FFN in held else None
    if ffn is not None and SHIFT not in held:
        raise ModelError(f"{path} shifts the outputs of MLPs alone, as LIVE without a learnt scale: kshot convert live")
    shift = tensor(held, SHIFT, path)
    numbers = sorted({int(found[1]) for name in held if (found := re.fullmatch(rf"{SCALE}\.(\d+)\.\w+", name))})
    known = {SHIFT, FFN, *(f"{SCALE}.{number}.{part}" for number in numbers for part in ("weight", "bias"))}
    odd = sorted(set(held) - known)
    if odd:
        raise ModelError(f"{path} holds {', '.join(odd[:3])}, which no published version of MimIC learns")
    if numbers and numbers != list(range(len(shift))):
        raise ModelError(f"{path} has shifts for {len(shift)} layers, but scales for layers {numbers}")
    weight = tuple(tensor(held, f"{SCALE}.{number}.weight", path) for number in numbers)
    bias = tuple(tensor(held, f"{SCALE}.{number}.bias", path) for number in numbers)
    joint = shift.ndim == 2
    sizes_ = ((1, *shift.shape[1:]), (1,)) if joint else (tuple(shift.shape[1:]), tuple(shift.shape[1:2]))
    for number, (rows, numbers_) in enumerate(zip(weight, bias, strict=True)):
        if (tuple(rows.shape), tuple(numbers_.shape)) != sizes_:
            raise ModelError(
                f"{path}: layer {number} has shifts {_shape(shift[number])}, weights {_shape(rows)} and biases {_shape(numbers_)}"
            )
    return Shifts(shift, weight, bias, ffn)


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
    if found.ffn is not None and tuple(found.ffn.shape) != (wanted[0], anatomy.hidden_size):
        raise ModelError(
            f"{path} has shifts of MLPs of the shape {_shape(found.ffn)}, but {sizes(anatomy)}: give the model they were trained on"
        )
    return found.shift.reshape(wanted)


def _shape(value: Any) -> list[int]:
    return list(value.shape)
