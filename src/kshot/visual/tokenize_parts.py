"""Tokens by the content of pictures, on disk: what a run has tokenized so far, or several runs with the same tokenizer.

A *part* is an Arrow file of some hundred pictures: the digest of each, its tokens, and a checksum. Pictures that could not be decoded
are not kept: whoever meets them again tries again.
Parts are written under another name, renamed, and never changed, so that any number of processes may share a folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
import warnings
from bisect import bisect_right
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from kshot.errors import CannotWrite
from kshot.visual.store import Tokens

DIGEST = 16
"""Bytes of a picture's digest."""

Digests = NDArray[np.uint8]


def write_part(folder: Path, digests: Digests, tokens: Tokens) -> None:
    """Write what was made of some pictures.

    Args:
        folder: of the parts; made if absent.
        digests: (pictures, 16).
        tokens: (pictures, tokens of one).

    Raises:
        CannotWrite: no space, no permission.
    """
    told = "{}"
    schema = _schema(tokens.shape[1]).with_metadata(
        {"checksum": _checksum(digests, tokens, told.encode()), "problems": told}
    )
    values = pa.array(np.ascontiguousarray(tokens, np.uint16).reshape(-1))
    columns = [
        pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(DIGEST), len(digests), [None, pa.py_buffer(np.ascontiguousarray(digests).tobytes())]
        ),
        pa.FixedSizeListArray.from_arrays(values, tokens.shape[1]),
    ]
    name = uuid.uuid4().hex
    temporary = folder / f".{name}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file, pa.ipc.new_stream(file, schema) as stream:
            stream.write_batch(pa.record_batch(columns, schema=schema))
        os.replace(temporary, folder / f"{name}.arrow")
    except OSError as error:
        raise CannotWrite(
            folder, str(error.strerror or error), "make room, run the command again: it carries on"
        ) from None
    finally:
        temporary.unlink(missing_ok=True)


class TokenParts:
    """The parts in a folder, as they are now; damaged ones are deleted, with a warning, and their pictures tokenized again.

    Args:
        folder: it need not exist.
        width: tokens of a picture.

    Attributes:
        digests: (rows, 16), of the rows of all parts one behind the other.
    """

    def __init__(self, folder: Path, width: int):
        self._tokens: list[Tokens] = []
        self._starts = [0]
        digests = [np.empty((0, DIGEST), np.uint8)]
        for path in sorted(folder.glob("*.arrow")):
            try:
                own, tokens = _read(path, width)
            except (pa.ArrowException, OSError, ValueError, KeyError) as error:
                warnings.warn(f"damaged file of tokens {path} is deleted and made again: {error}", stacklevel=2)
                path.unlink(missing_ok=True)
                continue
            digests.append(own)
            self._tokens.append(tokens)
            self._starts.append(self._starts[-1] + len(own))
        self.digests: Digests = np.concatenate(digests)

    def tokens(self, row: int) -> Tokens:
        """(tokens of a picture,) of a row."""
        part = bisect_right(self._starts, row) - 1
        return self._tokens[part][row - self._starts[part]]


def group(digests: Digests) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which digests are equal.

    Returns:
        (digests,) the number of each one's group, groups numbered in the order in which they first come; and (groups,) the first place
        of each group.
    """
    if not len(digests):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    halves = np.ascontiguousarray(digests).view(np.uint64)
    order = np.lexsort((halves[:, 1], halves[:, 0]))  # stable: equal ones stay in their order
    sorted_halves = halves[order]
    begins = np.append(True, (sorted_halves[1:] != sorted_halves[:-1]).any(1))
    of_sorted = np.cumsum(begins) - 1
    firsts = order[begins]
    by_first = np.argsort(firsts)
    renumbered = np.empty_like(by_first)
    renumbered[by_first] = np.arange(len(by_first))
    groups = np.empty(len(digests), np.int64)
    groups[order] = renumbered[of_sorted]
    return groups, firsts[by_first]


def _schema(width: int) -> pa.Schema:
    return pa.schema([pa.field("digest", pa.binary(DIGEST)), pa.field("tokens", pa.list_(pa.uint16(), width))])


def _read(path: Path, width: int) -> tuple[Digests, Tokens]:
    table = pa.ipc.open_stream(pa.memory_map(str(path))).read_all()
    if not table.schema.equals(_schema(width)) or table["digest"].num_chunks != 1:
        raise ValueError("other columns")
    column = table["digest"].chunk(0)
    digests = np.frombuffer(column.buffers()[1], np.uint8)[: len(column) * DIGEST].reshape(-1, DIGEST)
    tokens = table["tokens"].chunk(0).flatten().to_numpy(zero_copy_only=True).reshape(-1, width)
    told = table.schema.metadata[b"problems"]
    if table.schema.metadata[b"checksum"].decode() != _checksum(digests, tokens, told):
        raise ValueError("wrong checksum")
    bad = [
        int(row) for row in json.loads(told)
    ]  # in files of kshot 0.1's first days: pictures that could not be decoded
    return (np.delete(digests, bad, 0), np.delete(tokens, bad, 0)) if bad else (digests, tokens)


def _checksum(digests: Digests, tokens: Tokens, told: bytes) -> str:
    hasher = hashlib.blake2b(told, digest_size=16)
    hasher.update(np.ascontiguousarray(digests).data)
    hasher.update(np.ascontiguousarray(tokens, np.uint16).data)
    return hasher.hexdigest()
