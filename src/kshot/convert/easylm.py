"""Checkpoints of EasyLM (JAX, Flax), read and written without either.

EasyLM streams tensors into one file: msgpack arrays ``[key, value]`` one behind the other, where the key is a path such as
``("transformer", "h", "0", "attention", "wq", "kernel")`` and the value is what Flax's ``to_bytes`` makes of the tensor. Flax itself
writes all of it as one nested map. Both are read here through an index of where each tensor lies, made from the headers alone, so
that a checkpoint is never held in memory, and nothing in it is ever run (which cannot be said of the pickles beside it).
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import torch

from kshot.convert.flax_format import ARRAY, CHUNKED, DTYPES, MAX_CHUNK, NAMES, Key, Malformed, Reader, Short, Stored
from kshot.convert.shards import octets
from kshot.errors import ModelError


class EasyLMFile:
    """The tensors of a checkpoint, by key. To be used in a ``with`` statement.

    Args:
        path: a file that EasyLM (``streaming_params``, ``streaming_train_state``) or Flax (``to_bytes``) has written.

    Attributes:
        tensors: where each tensor lies, in the order of the file.

    Raises:
        ModelError: no such file, or it is truncated or something else; the message names the last key that is whole.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            self._file: BinaryIO = path.open("rb")
            self._bytes = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # an empty file cannot be mapped
            raise ModelError(f"{path} cannot be read: {error}") from error
        self.tensors: dict[Key, Stored] = {}
        try:
            self._index()
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> EasyLMFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._bytes.close()
        self._file.close()

    def get(self, key: Key) -> torch.Tensor:
        """A tensor, copied out of the file.

        Raises:
            ModelError: it holds no floating-point numbers.
        """
        stored = self.tensors[key]
        dtype = self.dtype(key)
        values = torch.empty(stored.size, dtype=torch.uint8)
        held, at = memoryview(values.numpy().data), 0
        for place, size in stored.pieces:
            held[at : at + size] = self._bytes[place : place + size]
            at += size
        return values.view(dtype).reshape(stored.shape)

    def dtype(self, key: Key) -> torch.dtype:
        """The type of a tensor.

        Raises:
            ModelError: it holds no floating-point numbers.
        """
        name = self.tensors[key].dtype
        if name not in DTYPES:
            raise ModelError(f"{self.path}: {'/'.join(key)} holds {name}, which is no type of weights")
        return DTYPES[name]

    def _index(self) -> None:
        reader, end, last = Reader(self._bytes), len(self._bytes), ""
        try:
            if reader.head(0).kind == "map":
                self.tensors.update(reader.tree(0)[0])
                return
            at = 0
            while at < end:
                head = reader.head(at)
                if head.kind != "array" or head.size != 2:
                    raise Malformed(
                        f"a pair of a key and a tensor was expected, but there is {head.kind} at byte {at:,}"
                    )
                parts, at = reader.value(head.start)
                key = tuple(str(part) for part in parts) if isinstance(parts, list) else (str(parts),)
                last = "/".join(key)
                packed = reader.head(at)
                if packed.kind not in ("bytes", "text"):
                    raise Malformed(f"{last} holds {packed.kind} in place of packed bytes")
                reader.check(packed.start, packed.size)
                found, _ = reader.tree(packed.start)
                self.tensors.update({key + inner: stored for inner, stored in found.items()})
                at = packed.start + packed.size
        except Short:
            whole = list(self.tensors)[-1:]
            behind = f"behind {'/'.join(whole[0])}" if whole and "/".join(whole[0]) != last else "at its beginning"
            within = f"within {last}" if last and (not whole or last != "/".join(whole[0])) else behind
            raise ModelError(f"{self.path} is truncated: it ends {within}; download or copy it again") from None
        except Malformed as error:
            raise ModelError(
                f"{self.path} is no checkpoint of EasyLM or Flax: {error}; give the file streaming_params or streaming_train_state"
            ) from None


def write_easylm(
    path: Path,
    entries: Iterable[tuple[Key, Callable[[], torch.Tensor]]],
    *,
    written: Callable[[int], object] = lambda count: None,
) -> None:
    """Write tensors as EasyLM streams them, one at a time.

    Args:
        path: the file.
        entries: keys, and what gives their tensors; called once each, in this order.
        written: called with 1 when a tensor has been written.
    """
    with path.open("wb") as file:
        for key, make in entries:
            tensor = make()
            head, pieces = _packed(tensor)
            size = sum(len(part) for part in pieces)
            file.write(b"\x92" + _array(len(key)) + b"".join(map(_text, key)))
            file.write(_sized(0xC6, len(head) + size) + head)
            file.writelines(pieces)
            written(1)


def _packed(tensor: torch.Tensor) -> tuple[bytes, list[bytes | memoryview]]:
    """What Flax's ``to_bytes`` gives for a tensor: its first bytes, and the rest in parts that are not copied."""
    values = memoryview(octets(tensor).numpy().data)
    if len(values) <= MAX_CHUNK:
        return b"", list(_ext(tuple(tensor.shape), tensor.dtype, values))
    step = MAX_CHUNK // tensor.dtype.itemsize * tensor.dtype.itemsize
    shape = b"".join(_text(str(n)) + _number(size) for n, size in enumerate(tensor.shape))
    head = b"\x83" + _text(CHUNKED) + b"\xc3" + _text("shape") + _map(tensor.dim()) + shape + _text("chunks")
    starts = range(0, len(values), step)
    parts: list[bytes | memoryview] = [_map(len(starts))]
    for number, start in enumerate(starts):
        chunk = values[start : start + step]
        parts += [_text(str(number)), *_ext((len(chunk) // tensor.dtype.itemsize,), tensor.dtype, chunk)]
    return head, parts


def _ext(shape: tuple[int, ...], dtype: torch.dtype, values: memoryview) -> Iterator[bytes | memoryview]:
    inner = (
        b"\x93" + _array(len(shape)) + b"".join(map(_number, shape)) + _text(NAMES[dtype]) + _sized(0xC6, len(values))
    )
    yield _sized(0xC9, len(inner) + len(values)) + bytes([ARRAY]) + inner
    yield values


def _sized(tag: int, size: int) -> bytes:
    return bytes([tag]) + struct.pack(">I", size)


def _text(text: str) -> bytes:
    raw = text.encode("utf-8")
    return (bytes([0xA0 | len(raw)]) if len(raw) < 32 else b"\xd9" + bytes([len(raw)])) + raw


def _number(number: int) -> bytes:
    return bytes([number]) if number < 128 else b"\xce" + struct.pack(">I", number)


def _array(count: int) -> bytes:
    return bytes([0x90 | count])


def _map(count: int) -> bytes:
    return bytes([0x80 | count]) if count < 16 else b"\xde" + struct.pack(">H", count)
