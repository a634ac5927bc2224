"""Weights on disk, read one tensor at a time.

A checkpoint of 27 GB must not need 27 GB of memory: tensors of pickled files (``.bin``) are mapped into memory and those of
safetensors files are read by name, so that only what is being copied is held. Pickles are read with ``weights_only``: one that
would run code is refused.
"""

from __future__ import annotations

import json
import pickle
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from kshot.errors import ModelError

SAFETENSORS = ("model.safetensors", "model.safetensors.index.json")
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")
OPEN_PICKLES = 2
"""Mapped files that are kept open; tensors are asked for file by file."""


class Weights:
    """The tensors of a model folder, by name. To be used in a ``with`` statement.

    Args:
        folder: holds ``model.safetensors`` or ``pytorch_model.bin``, or the shards of one of them with their index.

    Attributes:
        files: the file that holds each tensor, in the order in which it is best to read them.

    Raises:
        ModelError: there are no weights, a shard is missing, or a file is damaged.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._stack = ExitStack()
        self._safe: dict[Path, Any] = {}
        self._mapped: OrderedDict[Path, Mapping[str, Any]] = OrderedDict()
        shards, listed = _shards(folder)
        self.files: dict[str, Path] = {}
        for path in shards:
            for name in self._names(path):
                self.files.setdefault(name, path)
        lost = sorted(set(listed) - set(self.files))
        if lost:
            raise ModelError(
                f"{folder}: the index lists {len(lost)} weights that no shard holds ({', '.join(lost[:3])} ...)"
            )

    def __enter__(self) -> Weights:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._mapped.clear()
        self._safe.clear()
        self._stack.close()

    def __contains__(self, name: object) -> bool:
        return name in self.files

    def get(self, name: str) -> torch.Tensor:
        """A tensor; read from disk as it is used.

        Raises:
            ModelError: it is no tensor, or its file is damaged.
        """
        path = self.files[name]
        try:
            tensor = self._open_safe(path).get_tensor(name) if _is_safe(path) else self._load(path)[name]
        except (SafetensorError, OSError) as error:
            raise _damaged(path, error) from error
        if not isinstance(tensor, torch.Tensor):
            raise ModelError(f"{path}: {name!r} is no tensor but a {type(tensor).__name__}")
        return tensor.detach()

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        return tuple(self.get(name).shape)

    def _names(self, path: Path) -> list[str]:
        return list(self._open_safe(path).keys()) if _is_safe(path) else list(self._load(path))

    def _open_safe(self, path: Path) -> Any:
        if path not in self._safe:
            try:
                self._safe[path] = self._stack.enter_context(safe_open(path, framework="pt", device="cpu"))
            except (SafetensorError, OSError) as error:
                raise _damaged(path, error) from error
        return self._safe[path]

    def _load(self, path: Path) -> Mapping[str, Any]:
        """The tensors of a pickled file, mapped into memory."""
        if path in self._mapped:
            self._mapped.move_to_end(path)
            return self._mapped[path]
        try:
            held = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except pickle.UnpicklingError as error:
            # torch reports in the same way what it takes for code and what it cannot make sense of.
            raise ModelError(
                f"{path} holds something else than tensors, or is damaged, and is not read (pickled files can run code): "
                f"{_sentence(error)}"
            ) from error
        except (RuntimeError, OSError, EOFError, ValueError) as error:
            if "mmap can only be used" in str(error):
                raise ModelError(
                    f"{path} is no whole file in the zip format of torch: it is truncated, or was written by a torch before 1.6 "
                    "(load it there and save it again)"
                ) from error
            raise _damaged(path, error) from error
        if not isinstance(held, Mapping):
            raise ModelError(f"{path} holds a {type(held).__name__}, not the weights of a model by their names")
        self._mapped[path] = held
        if len(self._mapped) > OPEN_PICKLES:
            self._mapped.popitem(last=False)
        return held


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file with an object; empty if there is no file.

    Raises:
        ModelError: it holds something else.
    """
    if not path.is_file():
        return {}
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{path} is no valid JSON: {error}") from error
    if not isinstance(held, dict):
        raise ModelError(f"{path} does not hold a JSON object")
    return held


def _shards(folder: Path) -> tuple[list[Path], list[str]]:
    """The files with weights, in order, and the names that an index says they hold (none without an index)."""
    for single, index in (SAFETENSORS, PICKLED):
        if (folder / single).is_file():
            return [folder / single], []
        if (folder / index).is_file():
            return _indexed(folder / index)
    loose = sorted([*folder.glob("pytorch_model-*-of-*.bin"), *folder.glob("model-*-of-*.safetensors")])
    if loose:
        raise ModelError(
            f"{folder} has shards ({loose[0].name} ...) but not their index: {SAFETENSORS[1]} or {PICKLED[1]} is missing"
        )
    raise ModelError(
        f"{folder} has no weights: neither {SAFETENSORS[0]} nor {PICKLED[0]} nor the index of their shards"
    )


def _indexed(index: Path) -> tuple[list[Path], list[str]]:
    try:
        places: dict[str, str] = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{index} is no index of shards: {_sentence(error)}") from error
    names = sorted(set(places.values()))
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise ModelError(f"{index.parent} is not complete; missing: {', '.join(missing)} (of {len(names)} shards)")
    return [index.parent / name for name in names], list(places)


def _is_safe(path: Path) -> bool:
    return path.suffix == ".safetensors"


def _damaged(path: Path, error: Exception) -> ModelError:
    return ModelError(f"{path} is damaged or not complete: {_sentence(error)}; download or copy it again")


def _sentence(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
