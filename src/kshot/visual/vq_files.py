"""``diffusers.VQModel`` on disk: ``config.json`` and ``diffusion_pytorch_model.safetensors``, read strictly.

The folders are those that ``VQModel.from_pretrained`` and ``save_pretrained`` read and write. Reading here differs in three ways: a
missing, left-over or wrongly shaped weight is an error instead of a line in the log; pickled weights are not read; and a folder
is never looked up on the Hub by mistake.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from kshot.errors import CannotWrite, MissingExtra, ModelError
from kshot.whole_file import whole_file, write_text

CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
PICKLED = ("diffusion_pytorch_model.bin", "pytorch_model.bin")


def vq_class() -> Any:
    """``diffusers.VQModel``; importing diffusers logs nothing.

    Raises:
        MissingExtra: diffusers is not installed.
    """
    try:
        with _quiet():
            return importlib.import_module("diffusers").VQModel
    except ImportError as error:
        raise MissingExtra("diffusers", "visual", "the visual tokenizer") from error


def build(config: Mapping[str, Any]) -> Any:
    """A ``VQModel`` with random weights.

    Args:
        config: parameters of ``VQModel``; names with a leading underscore (class, version) are passed over.

    Raises:
        ModelError: a parameter that ``VQModel`` does not have, or values that make no network.
    """
    found = vq_class()
    given = {name: value for name, value in config.items() if not name.startswith("_")}
    try:
        with _quiet():
            return found(**given)
    except (TypeError, ValueError, ZeroDivisionError, AttributeError, RuntimeError) as error:
        raise ModelError(f"this configuration makes no VQModel: {error}") from error


def read_vq(folder: Path) -> Any:
    """The ``VQModel`` in a folder, in float32 on the CPU.

    Raises:
        ModelError: a file is missing or damaged, the configuration is of another class, or the weights do not fit it.
        MissingExtra: diffusers is not installed.
    """
    config = read_config(folder)
    path = folder / WEIGHTS
    if not path.is_file():
        pickled = [name for name in PICKLED if (folder / name).is_file()]
        raise ModelError(
            f"{folder} has no {WEIGHTS}"
            + (f"; {pickled[0]} is a pickle and is not read: kshot convert lvm-tokenizer" if pickled else "")
        )
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dictionary
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is damaged or not complete: {error}; download or copy it again") from error
    try:
        with torch.device("meta"):
            vq = build(config)
    except ModelError as error:
        raise ModelError(f"{folder / CONFIG}: {error}") from error
    wanted = {name: tuple(tensor.shape) for name, tensor in vq.state_dict().items()}
    check_weights({name: tuple(tensor.shape) for name, tensor in weights.items()}, wanted, path)
    vq.load_state_dict({name: weights[name].float() for name in wanted}, assign=True)
    return vq


def read_config(folder: Path) -> dict[str, Any]:
    """The configuration of a ``VQModel``.

    Raises:
        ModelError: it is missing, damaged, or of another class.
    """
    path = folder / CONFIG
    if not folder.is_dir():
        raise ModelError(f"no folder {str(folder)!r}: give the folder of a VQModel ({CONFIG} and {WEIGHTS})")
    if not path.is_file():
        raise ModelError(f"{folder} holds no VQModel: it has no {CONFIG}")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{path} is no valid JSON: {error}") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path} does not hold a JSON object")
    name = config.get("_class_name")
    if name == "VQGANModel":
        raise ModelError(f"{folder} is a VQGANModel as the LVM publishes it: kshot convert lvm-tokenizer {folder}")
    if name != "VQModel":
        raise ModelError(f"{path} is the configuration of {name or 'no class of diffusers'}, not of VQModel")
    return config


def check_weights(
    found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]], path: Path, of: str = "VQModel"
) -> None:
    """Refuse weights that are not exactly those of a network.

    Args:
        found: shapes by name, as they are in the file.
        wanted: shapes by name, as the network has them.
        path: the file, for the message.
        of: the network's name, for the message.

    Raises:
        ModelError: names the first weights that are missing, left over or of another shape, and counts them.
    """
    missing, extra = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    wrong = [name for name in wanted if name in found and found[name] != wanted[name]]
    problems = [f"lacks {_some(missing)}"] if missing else []
    problems += [f"has {_some(extra)}, which the network does not"] if extra else []
    if wrong:
        name = wrong[0]
        others = f" and {len(wrong) - 1} others" if len(wrong) > 1 else ""
        problems.append(
            f"has {name} of shape {list(found[name])}{others} where the configuration says {list(wanted[name])}"
        )
    if problems:
        raise ModelError(f"{path} does not fit its {of}: it {'; it '.join(problems)}")


def write_vq(vq: Any, folder: Path) -> None:
    """Write a ``VQModel`` as ``save_pretrained`` does; each file appears under its name when it is whole."""
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in vq.state_dict().items()}
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with whole_file(folder / WEIGHTS) as temporary:
            save_file(weights, temporary, metadata={"format": "pt"})
        write_text(folder / CONFIG, vq.to_json_string())


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn what the system says about a folder that cannot be written into an error for the user."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        problem = getattr(error, "strerror", None) or str(error)
        raise CannotWrite(folder, problem, "choose another folder") from error


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return f"{shown} and {len(names) - 3} others" if len(names) > 3 else shown


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """diffusers warns of optional packages it has not found and of options it does not know; neither concerns the reader of a log."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
