"""The LVM's visual tokenizer (arXiv 2312.00785) as a folder of ``diffusers.VQModel``.

Upstream publishes ``pytorch_model.bin``, a pickle, with the configuration of its class ``VQGANModel``. The conversion is exact: each
weight keeps its type and every bit under another name, and the network computes the same latents to the last bit.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from kshot.convert.folder import check_free, check_space, new_folder
from kshot.convert.lvm_layout import Layout, read_layout, upstream_name, upstream_shape
from kshot.convert.pickled import load_pickled
from kshot.convert.record import RECORD
from kshot.convert.shards import octets
from kshot.convert.weights import read_json
from kshot.errors import ModelError
from kshot.version import __version__
from kshot.visual.tokenizer import VisualTokenizer
from kshot.visual.vq_files import WEIGHTS, build, check_weights, write_vq

CONFIG, CLASS = "config.json", "VQGANModel"
FILES = ("model.safetensors", "pytorch_model.bin")


def convert_lvm_tokenizer(source: str | os.PathLike[str], *, out: str | os.PathLike[str]) -> Path:
    """Convert the LVM's tokenizer into a folder that ``diffusers.VQModel.from_pretrained`` and kshot read.

    Nothing in a pickle is run (``weights_only``). Other widths, depths and codebooks than the released ones are told from
    ``config.json`` and, where that is missing or silent, from the weights. What was written is read back and compared with the source.

    Args:
        source: upstream's folder, or the file with its weights (``pytorch_model.bin`` or safetensors).
        out: the new folder; must not exist, or be empty.

    Returns:
        ``out``.

    Raises:
        ModelError: the source is not there, damaged, would run code, is of another network (MaskGitVQGAN, a VQModel already, ...), or
            its weights are not exactly those that its configuration says.
        OptionError: ``out`` is not empty, or its disk is full.
        MissingExtra: diffusers is not installed.
    """
    given, target = Path(source).expanduser(), Path(out).expanduser()
    check_free(target)
    path = _find(given)
    config = _read_config(path.parent)
    weights = _read(path)
    layout = read_layout({name: tuple(tensor.shape) for name, tensor in weights.items()}, config, path)
    with torch.device("meta"):
        vq = build(layout.config())
    names = key_map(vq)
    shapes = {name: tuple(tensor.shape) for name, tensor in vq.state_dict().items()}
    check_weights(
        {name: tuple(tensor.shape) for name, tensor in weights.items() if not layout.unused(name)},
        {old: upstream_shape(new, shapes[new]) for old, new in names.items()},
        path,
        of=f"{CLASS} of widths {list(layout.widths)}",
    )
    renamed = {new: weights[old].reshape(shapes[new]) for old, new in names.items()}
    check_space(target, sum(tensor.nbytes for tensor in renamed.values()))
    vq.load_state_dict(renamed, assign=True)
    with new_folder(target) as place:
        write_vq(vq, place)
        _compare(place / WEIGHTS, renamed)
        _write_record(place, path, layout, vq, _notes(layout, weights, config))
    return target


def key_map(vq: Any) -> dict[str, str]:
    """Upstream's name of each weight, and the one in diffusers: 277 pairs for the released network.

    Args:
        vq: a ``VQModel``; on the meta device, too.
    """
    levels = len(vq.config.block_out_channels)
    return {upstream_name(name, levels): name for name in vq.state_dict()}


def describe(folder: Path) -> str:
    """The record of a conversion, in a few lines."""
    record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    lines = [
        f"{folder}: VQModel from {record['source']}, {record['parameters']:,} parameters ({', '.join(record['dtypes'])})",
        f"{record['size']} x {record['size']} pixels are {record['tokens']} tokens of {record['codes']} codes; "
        f"fingerprint {record['fingerprint']}",
        *(f"note: {note}" for note in record["notes"]),
        f"self-test: all {record['weights']} tensors in the new file equal their source bit for bit",
    ]
    return "\n".join(lines)


def _find(source: Path) -> Path:
    """The file with the weights.

    Raises:
        ModelError: it is not there; the message says what is.
    """
    if source.is_file():
        return source
    if not source.is_dir():
        raise ModelError(f"no file or folder {str(source)!r}: give upstream's folder, or its {FILES[1]}")
    for name in FILES:
        if (source / name).is_file():
            return source / name
    _read_config(source)
    if (source / WEIGHTS).is_file():
        return source / WEIGHTS
    for inside in ("vqvae", "vqgan"):
        if (source / inside).is_dir():
            raise ModelError(f"{source} has no weights of its own: give {source / inside}")
    raise ModelError(f"{source} is no checkpoint of the LVM's tokenizer: it has neither {' nor '.join(FILES)}")


def _read_config(folder: Path) -> dict[str, Any]:
    """Upstream's configuration; empty if there is none.

    Raises:
        ModelError: it is of another class.
    """
    config = read_json(folder / CONFIG)
    name = config.get("_class_name")
    if name == "VQModel":
        raise ModelError(f"{folder} is a VQModel of diffusers already: load it as it is, or copy it")
    if config and name not in (None, CLASS):
        hint = ": another network, without equivalent in diffusers" if name == "MaskGitVQGAN" else ""
        raise ModelError(f"{folder / CONFIG} is the configuration of {name}, not of {CLASS}{hint}")
    if name is None and ("model_type" in config or "architectures" in config):
        raise ModelError(
            f"{folder} is a model of transformers ({config.get('model_type')}), not the tokenizer's {CLASS}"
        )
    return config


def _read(path: Path) -> dict[str, torch.Tensor]:
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dictionary
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path} is damaged or not complete: {error}; download or copy it again") from error
    held = load_pickled(path)
    for name, value in held.items():
        if not isinstance(value, torch.Tensor):
            raise ModelError(f"{path}: {name!r} is no tensor but a {type(value).__name__}; give the weights alone")
    return held


def _compare(path: Path, expected: Mapping[str, torch.Tensor]) -> None:
    with safe_open(path, framework="pt", device="cpu") as file:
        for name, wanted in expected.items():
            found = file.get_tensor(name)
            if found.dtype != wanted.dtype or not torch.equal(octets(found), octets(wanted)):
                raise AssertionError(f"{name} differs from its source in {path}, which must not be")


def _notes(layout: Layout, weights: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> list[str]:
    notes = []
    if config.get("resolution") is None:
        notes.append(f"no configuration says at which size it was trained: {layout.resolution} pixels are assumed")
    unused = sum(map(layout.unused, weights))
    if unused:
        notes.append(
            f"{unused} weights of attention in the encoder were left out: upstream skips it where a level has one block"
        )
    return notes


def _write_record(place: Path, source: Path, layout: Layout, vq: Any, notes: list[str]) -> None:
    state = vq.state_dict()
    record = {
        "kind": "lvm-tokenizer",
        "source": f"{source.resolve().parent.name}/{source.name}",
        "weights": len(state),
        "parameters": sum(tensor.numel() for tensor in state.values()),
        "dtypes": sorted({str(tensor.dtype).removeprefix("torch.") for tensor in state.values()}),
        "size": layout.resolution,
        "tokens": (layout.resolution // 2 ** (len(layout.widths) - 1)) ** 2,
        "codes": layout.codes,
        "fingerprint": VisualTokenizer(vq).fingerprint if layout.channels == 3 else None,
        "notes": notes,
        "versions": {"kshot": __version__, "torch": torch.__version__},
    }
    (place / RECORD).write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
