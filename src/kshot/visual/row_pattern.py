"""Which lengths of sentences share a row."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray


class RowPattern:
    """How many sentences of which length share a row: as many as fit, the longest first (first-fit decreasing).

    It depends only on how many sentences of each length an epoch has, so it is the same in every epoch; which sentences fill the
    slots, and the order of the rows, is drawn for each.

    Attributes:
        rows: their number.
        begins: (rows + 1,) the first slot of each row.
        slots: (sentences,) for each slot which sentence of the epoch it holds, where those are sorted by length, longest first.
    """

    def __init__(self, lengths: Mapping[int, int], room: int, extra: int):
        sizes = [size + extra for size in lengths]
        left = list(lengths.values())
        following = [0, *np.cumsum(left)[:-1].tolist()]  # the next sentence of each length
        slots: list[NDArray[np.int64]] = []
        widths: list[NDArray[np.int64]] = []
        while any(left):
            free, taken = room, [0] * len(sizes)
            for kind, size in enumerate(sizes):
                taken[kind] = min(left[kind], free // size)
                free -= taken[kind] * size
            times = min(left[kind] // count for kind, count in enumerate(taken) if count)
            columns = []
            for kind, count in enumerate(taken):
                columns.append(following[kind] + np.arange(times * count).reshape(times, count))
                following[kind] += times * count
                left[kind] -= times * count
            slots.append(np.concatenate(columns, axis=1).reshape(-1))
            widths.append(np.full(times, sum(taken)))
        self.slots = np.concatenate(slots)
        self.begins = np.concatenate([[0], np.cumsum(np.concatenate(widths))])
        self.rows = len(self.begins) - 1
