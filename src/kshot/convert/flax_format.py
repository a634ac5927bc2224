"""The part of msgpack that Flax writes arrays with, read by place: headers only, whatever lies between them is passed over."""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from typing import Any

import torch

Key = tuple[str, ...]

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
"""Types of weights, as NumPy and ml_dtypes call them. (A train state also holds numbers of steps, which are left alone.)"""
NAMES = {dtype: name for name, dtype in DTYPES.items()}

ARRAY, SCALAR = 1, 3
"""Flax's codes for arrays and for NumPy's scalars."""
CHUNKED = "__msgpack_chunked_array__"
MAX_CHUNK = 2**30
"""Flax writes larger arrays in pieces of so many bytes."""
DEEPEST = 64


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies in a file.

    Attributes:
        shape: of the tensor.
        dtype: NumPy's name of its type.
        pieces: (place, bytes) of its values, row by row, in order.
    """

    shape: tuple[int, ...]
    dtype: str
    pieces: tuple[tuple[int, int], ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(size for _, size in self.pieces)


class Short(Exception):
    """The file ends too early."""


class Malformed(Exception):
    """Something that Flax does not write."""


@dataclass(frozen=True)
class Head:
    """What stands at a place: its kind, its size (bytes, or number of items), where its content begins, a plain value."""

    kind: str
    size: int
    start: int
    value: Any = None


class Reader:
    """The part of msgpack that Flax uses, by place: the content of large objects is passed over, not read."""

    def __init__(self, content: mmap.mmap):
        self.content, self.end = content, len(content)

    def check(self, at: int, size: int) -> None:
        if at + size > self.end:
            raise Short

    def number(self, at: int, form: str) -> Any:
        size = struct.calcsize(form)
        self.check(at, size)
        return struct.unpack(form, self.content[at : at + size])[0]

    def head(self, at: int) -> Head:
        tag = self.number(at, ">B")
        if tag <= 0x7F or tag >= 0xE0:
            return Head("number", 0, at + 1, tag if tag <= 0x7F else tag - 256)
        if tag <= 0x8F:
            return Head("map", tag & 0x0F, at + 1)
        if tag <= 0x9F:
            return Head("array", tag & 0x0F, at + 1)
        if tag <= 0xBF:
            return Head("text", tag & 0x1F, at + 1)
        if tag in _PLAIN:
            return Head("nothing" if tag == 0xC0 else "bool", 0, at + 1, _PLAIN[tag])
        if tag in _NUMBERS:
            form = _NUMBERS[tag]
            return Head("number", 0, at + 1 + struct.calcsize(form), self.number(at + 1, form))
        if tag in _SIZED:
            kind, form = _SIZED[tag]
            start = at + 1 + struct.calcsize(form)
            size = self.number(at + 1, form)
            return Head(kind, size, start + 1, self.number(start, ">b")) if kind == "ext" else Head(kind, size, start)
        if 0xD4 <= tag <= 0xD8:
            return Head("ext", 1 << (tag - 0xD4), at + 2, self.number(at + 1, ">b"))
        raise Malformed(f"byte {tag:#x} at {at:,} begins nothing")

    def value(self, at: int, depth: int = 0) -> tuple[Any, int]:
        """A small value (key, shape, name of a type), and where it ends."""
        head = self.head(at)
        if depth > DEEPEST:
            raise Malformed("it is nested too deeply")
        if head.kind in ("text", "bytes"):
            self.check(head.start, head.size)
            raw = self.content[head.start : head.start + head.size]
            try:
                return raw.decode("utf-8"), head.start + head.size
            except UnicodeDecodeError:
                raise Malformed(f"no text at byte {at:,}") from None
        if head.kind == "array":
            at, items = head.start, []
            for _ in range(head.size):
                item, at = self.value(at, depth + 1)
                items.append(item)
            return items, at
        if head.kind in ("map", "ext"):
            raise Malformed(f"{head.kind} at byte {at:,} where a name or a number was expected")
        return head.value, head.start

    def tree(self, at: int, depth: int = 0) -> tuple[dict[Key, Stored], int]:
        """All arrays in what stands at a place (a map of maps, or one array), and where it ends."""
        head = self.head(at)
        if depth > DEEPEST:
            raise Malformed("it is nested too deeply")
        if head.kind == "ext":
            self.check(head.start, head.size)
            end = head.start + head.size
            return ({(): self.array(head.start, end)} if head.value in (ARRAY, SCALAR) else {}), end
        if head.kind == "map":
            found: dict[Key, Stored] = {}
            at, chunked = head.start, False
            sizes: dict[str, int] = {}
            for _ in range(head.size):
                name, at = self.value(at)
                if name == CHUNKED:
                    chunked = True
                if chunked and name == "shape":
                    sizes, at = self.sizes(at)
                    continue
                inner, at = self.tree(at, depth + 1)
                found |= {(str(name), *key): stored for key, stored in inner.items()}
            return ({(): _whole(found, sizes)} if chunked else found), at
        if head.kind == "array":
            at = head.start
            for _ in range(head.size):
                _, at = self.tree(at, depth + 1)
            return {}, at
        self.check(head.start, head.size)
        return {}, head.start + head.size

    def sizes(self, at: int) -> tuple[dict[str, int], int]:
        """A shape that is written as a map."""
        head = self.head(at)
        at, held = head.start, {}
        for _ in range(head.size if head.kind == "map" else 0):
            name, at = self.value(at)
            held[str(name)], at = self.value(at)
        return held, at

    def array(self, at: int, end: int) -> Stored:
        """An array's shape, type and values: ``[shape, name of the type, bytes]``."""
        head = self.head(at)
        if head.kind != "array" or head.size != 3:
            raise Malformed(f"no array at byte {at:,}")
        shape, at = self.value(head.start)
        name, at = self.value(at)
        values = self.head(at)
        if values.kind not in ("bytes", "text") or values.start + values.size > end or not isinstance(shape, list):
            raise Malformed(f"no array at byte {at:,}")
        stored = Stored(tuple(shape), str(name), ((values.start, values.size),))
        _check_size(stored)
        return stored


_PLAIN: dict[int, Any] = {0xC0: None, 0xC2: False, 0xC3: True}
_NUMBERS = dict(zip(range(0xCA, 0xD4), (">f", ">d", ">B", ">H", ">I", ">Q", ">b", ">h", ">i", ">q"), strict=True))
_SIZED = {
    tag + number: (kind, form)
    for tag, kind, forms in (
        (0xC4, "bytes", (">B", ">H", ">I")),
        (0xC7, "ext", (">B", ">H", ">I")),
        (0xD9, "text", (">B", ">H", ">I")),
        (0xDC, "array", (">H", ">I")),
        (0xDE, "map", (">H", ">I")),
    )
    for number, form in enumerate(forms)
}


def _whole(found: dict[Key, Stored], sizes: dict[str, int]) -> Stored:
    """An array that was written in pieces."""
    try:
        shape = tuple(sizes[str(number)] for number in range(len(sizes)))
        chunks = {key[1]: stored for key, stored in found.items() if key[0] == "chunks"}
        pieces = [chunks[str(number)] for number in range(len(chunks))]
    except (LookupError, TypeError):
        raise Malformed("an array in pieces that do not belong together") from None
    if not pieces or len({piece.dtype for piece in pieces}) != 1:
        raise Malformed("an array in pieces of several types, or of none")
    stored = Stored(shape, pieces[0].dtype, tuple(part for piece in pieces for part in piece.pieces))
    _check_size(stored)
    return stored


def _check_size(stored: Stored) -> None:
    numbers = all(isinstance(size, int) and size >= 0 for size in stored.shape)
    if not numbers:
        raise Malformed(f"an array of shape {stored.shape}")
    if stored.dtype in DTYPES:
        expected = torch.Size(stored.shape).numel() * DTYPES[stored.dtype].itemsize
        if expected != stored.size:
            raise Malformed(f"an array {stored.shape} of {stored.dtype} that takes {stored.size:,} bytes")
