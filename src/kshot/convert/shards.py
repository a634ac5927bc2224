"""Writing safetensors one tensor at a time.

``safetensors.torch.save_file`` wants all tensors of a file at once and makes a copy of each; here a file's header is written first,
from names, types and shapes, and then each tensor as it comes. The files and their index are those that
``save_pretrained`` writes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
}
"""Types of weights, and what the format calls them."""


@dataclass(frozen=True)
class Entry:
    """A tensor to be written.

    Attributes:
        name: its name in the new file.
        dtype, shape: what it will be.
        make: gives it; called once, when it is written.
        origin: what it was made from, for the record; empty if it is new.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    make: Callable[[], torch.Tensor]
    origin: str = ""

    @property
    def size(self) -> int:
        """Bytes."""
        return self.dtype.itemsize * torch.Size(self.shape).numel()


def write_sharded(
    folder: Path, entries: Sequence[Entry], *, limit: int, written: Callable[[int], object] = lambda count: None
) -> list[Path]:
    """Write tensors to ``model.safetensors``, or to shards with their index.

    Args:
        folder: an existing folder.
        entries: the tensors, in the order in which they are made.
        limit: most bytes of tensors in a file; a larger tensor gets a file of its own.
        written: called with 1 when a tensor has been written.

    Returns:
        The files with tensors.
    """
    shards = _divide(entries, limit)
    names = (
        ["model.safetensors"]
        if len(shards) == 1
        else [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    )
    for name, shard in zip(names, shards, strict=True):
        _write(folder / name, shard, written)
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(entry.size for entry in entries)},
            "weight_map": {e.name: name for name, shard in zip(names, shards, strict=True) for e in shard},
        }
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")
    return [folder / name for name in names]


def _divide(entries: Iterable[Entry], limit: int) -> list[list[Entry]]:
    shards: list[list[Entry]] = [[]]
    held = 0
    for entry in entries:
        if shards[-1] and held + entry.size > limit:
            shards.append([])
            held = 0
        shards[-1].append(entry)
        held += entry.size
    return shards


def _write(path: Path, entries: Sequence[Entry], written: Callable[[int], object]) -> None:
    entries = sorted(
        entries, key=lambda entry: -entry.dtype.itemsize
    )  # so that each tensor begins at a multiple of its type
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    place = 0
    for entry in entries:
        header[entry.name] = {
            "dtype": DTYPES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [place, place + entry.size],
        }
        place += entry.size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format wants tensors aligned
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for entry in entries:
            tensor = entry.make()
            if tensor.dtype != entry.dtype or tuple(tensor.shape) != entry.shape:
                raise AssertionError(f"{entry.name}: {tensor.dtype} {tuple(tensor.shape)} is not what was announced")
            octets(tensor).numpy().tofile(file)  # NumPy has no bfloat16
            written(1)


def octets(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor's bytes, ``[size]``; no copy if it is contiguous."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
