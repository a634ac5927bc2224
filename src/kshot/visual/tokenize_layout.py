"""Where the pictures of all sentences stand, and the tokens of each."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kshot.visual.tokenize_parts import TokenParts

HASHED = 1_000_000
"""Places that are hashed at a time."""


@dataclass(frozen=True)
class Layout:
    """The pictures of all sentences, one behind the other, and where their tokens are.

    Attributes:
        ends: (sentences,) the place behind each sentence's last picture.
        rows: (places,) the row of each picture's tokens, -1 where there are none.
        parts: holds the rows.
        problems: why there are none, by place.
        distinct: number of different pictures.
    """

    ends: NDArray[np.int64]
    rows: NDArray[np.int64]
    parts: TokenParts
    problems: Mapping[int, str]
    distinct: int

    @property
    def whole(self) -> NDArray[np.bool_]:
        """(sentences,) whether all pictures are usable."""
        return np.logical_and.reduceat(self.rows >= 0, np.concatenate([[0], self.ends[:-1]]))

    @property
    def fingerprint(self) -> str:
        """Hash of which pictures stand where."""
        hasher = hashlib.blake2b(self.ends.tobytes(), digest_size=16)
        hasher.update((self.rows >= 0).tobytes())
        for start in range(0, len(self.rows), HASHED):
            own = self.rows[start : start + HASHED]
            hasher.update(self.parts.digests[own[own >= 0]].tobytes())
        return hasher.hexdigest()

    def bad(self) -> Iterator[tuple[int, int, str]]:
        """Sentence, place in it, and problem of every picture that cannot be used."""
        for place, problem in sorted(self.problems.items()):
            yield *sentence_of(self.ends, place), problem


def sentence_of(ends: NDArray[np.int64], place: int) -> tuple[int, int]:
    """Sentence and place in it of a picture by its place among all."""
    sentence = int(np.searchsorted(ends, place, side="right"))
    return sentence, place - (int(ends[sentence - 1]) if sentence else 0)
