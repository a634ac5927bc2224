"""Small pickled checkpoints, read without running anything that they hold.

Only ``torch.load(weights_only=True)`` is used. LIVE keeps a node of its settings, an object of OmegaConf, beside the tensors. Such
objects are read through :class:`Husk`: a class of ours that takes their state as plain data, whatever the package would have done.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from kshot.errors import ModelError

SETTINGS = "omegaconf."
PLAIN = frozenset(
    (
        *(f"builtins.{name}" for name in ("dict", "list", "int", "float", "str", "bool", "tuple")),
        "collections.defaultdict",
        "typing.Any",
    )
)
"""Names that objects of OmegaConf mention: as types of their entries, and the dictionary of a cache."""


class Husk:
    """Stands where an object of OmegaConf was pickled, and holds its state; it does nothing."""

    def __init__(self, *args: Any):
        pass


def _empty(*args: Any) -> dict[Any, Any]:
    return {}


def load_pickled(path: Path) -> dict[str, Any]:
    """What a file of ``torch.save`` holds: tensors and plain values by their names.

    Raises:
        ModelError: no such file, it is damaged or holds no dictionary, or objects whose reading would run code.
    """
    if not path.is_file():
        raise ModelError(f"there is no file {path}")
    try:
        foreign = get_unsafe_globals_in_checkpoint(path)
    except (ValueError, RuntimeError, OSError, EOFError, pickle.UnpicklingError) as error:
        raise ModelError(
            f"{path} is no whole file in the zip format of torch: it is damaged, or was written by a torch before 1.6 "
            f"({_sentence(error)})"
        ) from error
    code = sorted(name for name in foreign if not name.startswith(SETTINGS) and name not in PLAIN)
    if code:
        raise ModelError(
            f"{path} is not read: beside tensors it holds {', '.join(code[:3])}, and reading such objects runs code (pickle); load it "
            "where you trust it, and save its tensors alone"
        )
    husks: list[Any] = [(_empty if name == "collections.defaultdict" else Husk, name) for name in foreign]
    try:
        with safe_globals(husks):
            held = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, TypeError, pickle.UnpicklingError) as error:
        raise ModelError(f"{path} is damaged, or holds something else than tensors: {_sentence(error)}") from error
    if not isinstance(held, Mapping):
        raise ModelError(f"{path} holds a {type(held).__name__}, not tensors by their names")
    return {str(name): plain(value) for name, value in held.items()}


def plain(value: Any) -> Any:
    """Tensors, numbers, text, lists and dictionaries out of what was stored as objects of OmegaConf."""
    if isinstance(value, Husk):
        state = value.__dict__
        return plain(state["_content"] if "_content" in state else state.get("_val"))
    if isinstance(value, Mapping):
        return {name: plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return value.detach() if isinstance(value, torch.Tensor) else value


def tensor(held: Mapping[str, Any], name: str, path: Path) -> torch.Tensor:
    """A tensor of finite floating-point numbers.

    Raises:
        ModelError: it is not there, or something else.
    """
    found = held.get(name)
    if found is None:
        raise ModelError(f"{path} has no {name!r}; it holds {', '.join(sorted(held)[:6]) or 'nothing'}")
    if not isinstance(found, torch.Tensor) or not found.is_floating_point():
        raise ModelError(f"{path}: {name!r} is no tensor of floating-point numbers")
    if not bool(found.isfinite().all()):
        raise ModelError(f"{path}: {name!r} has entries that are not finite")
    return found


def _sentence(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
