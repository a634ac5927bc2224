"""What is made when it is asked for, the same each time: lazy sequences, and randomness and digests that derive from words."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar, overload

import numpy as np

T = TypeVar("T")


class LazySequence(Sequence[T], Generic[T]):
    """A sequence whose items are made when they are asked for.

    Args:
        size: how many there are.
        make: makes item i; must make the same one each time.
    """

    def __init__(self, size: int, make: Callable[[int], T]):
        self._size, self._make = size, make

    def __len__(self) -> int:
        return self._size

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...
    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        chosen = range(self._size)[index]
        if isinstance(chosen, range):
            return LazySequence(len(chosen), lambda i: self._make(chosen[i]))
        return self._make(chosen)


def generator(seed: int, *parts: str | int) -> np.random.Generator:
    """A random generator that depends on ``seed`` and ``parts`` and on nothing else."""
    key = hashlib.blake2b("\0".join(map(str, (seed, *parts))).encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(key, "big"))


def digest(text: str) -> str:
    """A short hash of a text, for the records of a run."""
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
