"""Learnt vectors of other programs as adapters of ours.

Of the base model only the configuration is read: it is built without memory for its weights, our method is put into it, and the
vectors take the places of the method's parameters. Hence names and file format are those of an adapter that was trained here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model, get_peft_model_state_dict
from safetensors import safe_open
from torch import nn

from kshot.convert.folder import check_free, new_folder
from kshot.convert.record import RECORD
from kshot.errors import ModelError
from kshot.methods.configuration import ShiftConfig
from kshot.methods.layers import ShiftLayer
from kshot.models.adapters import WEIGHTS
from kshot.models.anatomy import Anatomy, examine
from kshot.models.loading import skeleton
from kshot.version import __version__

Values = Callable[[ShiftLayer], Mapping[str, torch.Tensor]]
"""The parameters of the method at one of its places, by name."""


def base_of(model: str | os.PathLike[str]) -> tuple[nn.Module, Anatomy]:
    """A model without weights, and its anatomy.

    Raises:
        ModelError: there is no such model.
    """
    built = skeleton(model)
    return built, examine(built)


def sizes(anatomy: Anatomy) -> str:
    """What a model's vectors must fit, in words."""
    return (
        f"{anatomy.architecture} has {len(anatomy.layers)} layers of width {anatomy.hidden_size} with {anatomy.heads} heads of "
        f"{anatomy.head_dim}"
    )


def write_adapter(
    target: Path,
    *,
    kind: str,
    source: Path,
    model: str | os.PathLike[str],
    base: nn.Module,
    config: ShiftConfig,
    values: Values,
    notes: Sequence[str] = (),
) -> Path:
    """Write an adapter folder: ``adapter_config.json``, ``adapter_model.safetensors`` and ``kshot_conversion.json``.

    Args:
        target: the new folder.
        kind: of the conversion.
        source: the file that the vectors come from.
        model: what the user called the base model.
        base: the model of :func:`base_of`; it is changed.
        config: of the method.
        values: the parameters at each place on which the method acts.
        notes: for the record.

    Raises:
        ModelError: the base model cannot take the method.
        OptionError: ``target`` is not empty.
    """
    check_free(target)
    outer: Any = get_peft_model(base, config)
    outer.peft_config["default"].base_model_name_or_path = str(model)
    expected: dict[str, torch.Tensor] = {}
    for name, layer in list(outer.named_modules()):
        if not isinstance(layer, ShiftLayer):
            continue
        given = dict(values(layer))
        for part in layer.adapter_layer_names:
            held = getattr(layer, part)
            if "default" not in held:
                continue
            value = given.pop(part)
            assert value.shape == held["default"].shape, f"{part}: {value.shape}, not {held['default'].shape}"
            held["default"] = nn.Parameter(value.contiguous().clone(), requires_grad=False)
            expected[f"{name}.{part}"] = value
        assert not given, f"no place for {', '.join(given)}"
    with new_folder(target) as place:
        outer.save_pretrained(
            place, save_embedding_layers=False
        )  # there are none, and PEFT would look for the base model
        _write_record(place, kind, source, model, expected, notes)
        _compare(place, expected, get_peft_model_state_dict(outer, save_embedding_layers=False))
    return target


def describe(folder: Path) -> str:
    """The record of a conversion, in a few lines."""
    record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    lines = [
        f"{folder}: {record['kind']} from {record['source']} for {record['base']}, {record['parameters']:,} parameters "
        f"({', '.join(record['dtypes'])})",
        *(f"note: {note}" for note in record["notes"]),
        f"self-test: all {record['weights']} tensors in the new file equal their source bit for bit",
    ]
    return "\n".join(lines)


def _write_record(
    place: Path,
    kind: str,
    source: Path,
    model: str | os.PathLike[str],
    expected: Mapping[str, torch.Tensor],
    notes: Sequence[str],
) -> None:
    record = {
        "kind": kind,
        "source": source.name if source.parent == Path() else f"{source.absolute().parent.name}/{source.name}",
        "base": Path(model).name if Path(model).is_dir() else str(model),
        "weights": len(expected),
        "parameters": sum(value.numel() for value in expected.values()),
        "dtypes": sorted({str(value.dtype).removeprefix("torch.") for value in expected.values()}),
        "notes": list(notes),
        "versions": {"kshot": __version__, "torch": torch.__version__},
    }
    (place / RECORD).write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _compare(place: Path, expected: Mapping[str, torch.Tensor], saved: Mapping[str, Any]) -> None:
    """Whether the file holds the source's numbers, all of them and nothing else."""
    with safe_open(place / WEIGHTS, "pt") as file:
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    if set(found) != set(saved) or set(found) != set(expected):
        raise ModelError(f"the adapter was not written as it must be: {sorted(set(found) ^ set(expected))[:3]}")
    wrong = [name for name, value in expected.items() if not torch.equal(found[name], value)]
    if wrong:
        raise AssertionError(f"the converted vectors differ from their source, which must not be: {wrong[:3]}")
