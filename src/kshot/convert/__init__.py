"""Checkpoints of other programs, made into models and adapters that transformers and :func:`kshot.load_model` read.

Each kind of checkpoint has a function ``(source, *, out, ...) -> Path`` in a module of its own; :data:`CONVERSIONS` is the table of
them. Importing this package is cheap; the modules bring in torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kshot.errors import UnknownName


@dataclass(frozen=True)
class Conversion:
    """A kind of checkpoint that can be converted.

    Attributes:
        target: ``module:function`` that does it; its first parameter is the checkpoint's folder or file.
        summary: one line for ``kshot convert --help``.
        report: ``module:function`` that tells of a converted folder in words.
    """

    target: str
    summary: str
    report: str = "kshot.convert.record:describe"

    def function(self) -> Callable[..., Path]:
        """Import the function."""
        module, name = self.target.split(":")
        found: Callable[..., Path] = getattr(importlib.import_module(module), name)
        return found


CONVERSIONS = {
    "lcl": Conversion(
        "kshot.convert.lcl:convert_lcl", "Link-Context Learning (and other LLaVA checkpoints with a linear projector)"
    ),
    "live": Conversion(
        "kshot.convert.live:convert_live",
        "vectors learnt by LIVE (icv_cpk.pth), as an adapter",
        report="kshot.convert.adapters:describe",
    ),
    "mimic": Conversion(
        "kshot.convert.mimic:convert_mimic",
        "shifts learnt by MimIC (epoch folders), as an adapter",
        report="kshot.convert.adapters:describe",
    ),
    "lvm": Conversion(
        "kshot.convert.lvm:convert_lvm",
        "a large vision model (an EasyLM stream, or its published folder) as LlamaForCausalLM",
        report="kshot.convert.lvm_record:describe",
    ),
    "easylm": Conversion(
        "kshot.convert.lvm:convert_easylm",
        "back: a large vision model as a stream of EasyLM",
        report="kshot.convert.lvm:describe_easylm",
    ),
    "lvm-tokenizer": Conversion(
        "kshot.convert.lvm_tokenizer:convert_lvm_tokenizer",
        "the visual tokenizer of the LVM (VQGANModel), as a VQModel of diffusers",
        report="kshot.convert.lvm_tokenizer:describe",
    ),
    "token-lines": Conversion(
        "kshot.visual.upstream_lines:import_lines",
        "JSON lines of base64 tokens, as the LVM's programs write them, as a token store",
        report="kshot.visual.store_report:describe_folder",
    ),
    "token-store": Conversion(
        "kshot.visual.upstream_lines:export_lines",
        "a token store, as JSON lines for the LVM's programs",
        report="kshot.visual.store_report:describe_file",
    ),
}


def conversion(kind: str) -> Conversion:
    """The conversion of that name.

    Args:
        kind: a name in :data:`CONVERSIONS`.

    Raises:
        UnknownName: there is none; the message suggests the nearest names.
    """
    if kind not in CONVERSIONS:
        raise UnknownName("kind of checkpoint", kind, CONVERSIONS)
    return CONVERSIONS[kind]


def convert(kind: str, source: str, **options: Any) -> Path:
    """Convert the checkpoint in ``source``; the options are those of the kind's own function."""
    return conversion(kind).function()(source, **options)
