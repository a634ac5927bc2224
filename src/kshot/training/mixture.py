"""Several sources in given shares, each of them used whole.

Item by item the sources alternate in a shuffled order. Each source is walked through in an order of its own that is drawn anew for
every pass, and a pass ends only when all of its items were used, however many epochs of the mixture that takes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from kshot.data.derived import generator
from kshot.errors import OptionError
from kshot.training.items import Source, TrainingItem

Key = TypeVar("Key")


class Mixture(Source):
    """A mixture of sources.

    Args:
        parts: the sources, by name.
        shares: each source's share of the items; they must sum to 1. Default: equal shares.
        items: items an epoch; default: as many as it takes for each source to be used at least once, whole.
        seed: of the order.

    Raises:
        OptionError: no sources, shares of other sources than there are, shares that are not positive or do not sum to 1.
    """

    def __init__(
        self,
        parts: Mapping[str, Source],
        shares: Mapping[str, float] | None = None,
        *,
        items: int | None = None,
        seed: int = 0,
    ):
        if not parts:
            raise OptionError("a mixture needs at least one source")
        shares = dict.fromkeys(parts, 1 / len(parts)) if shares is None else dict(shares)
        _check_shares(shares, parts)
        self.parts, self.shares, self.seed = dict(parts), shares, seed
        sizes = {name: len(part) for name, part in parts.items()}
        empty = [name for name, size in sizes.items() if not size]
        if empty:
            raise OptionError(f"data.{empty[0]}: the source has no items")
        if items is not None and items < len(parts):
            raise OptionError(
                f"items={items}: an epoch must have at least one item of each of the {len(parts)} sources"
            )
        total = items or math.ceil(max(sizes[name] / shares[name] for name in parts) - 1e-9)
        self._counts = _apportion(total, list(shares.values()))
        self._names = list(parts)
        self._orders: dict[int, NDArray[np.int64]] = {}
        self._passes: dict[tuple[int, int], NDArray[np.int64]] = {}

    def __len__(self) -> int:
        return sum(self._counts)

    def item(self, epoch: int, index: int) -> TrainingItem:
        name, passed, number = self.place(epoch, index)
        return self.parts[name].item(passed, number)

    def place(self, epoch: int, index: int) -> tuple[str, int, int]:
        """Where an item comes from: the source's name, how often that source was gone through before, and the number of its item."""
        if not 0 <= index < len(self):
            raise IndexError(f"item {index} of {len(self)}")
        which, place = (int(number) for number in _kept(self._orders, epoch, self._order, 4)[index])
        name = self._names[which]
        passed, at = divmod(epoch * self._counts[which] + place, len(self.parts[name]))
        order = _kept(self._passes, (which, passed), self._pass, 2 * len(self.parts) + 2)
        return name, passed, int(order[at])

    def longest(self) -> list[TrainingItem]:
        return [item for part in self.parts.values() for item in part.longest()]

    def describe(self) -> dict[str, Any]:
        return {
            "items": len(self),
            "seed": self.seed,
            "parts": {name: {"share": self.shares[name], **part.describe()} for name, part in self.parts.items()},
        }

    def _order(self, epoch: int) -> NDArray[np.int64]:
        """For each item of an epoch, which source it is from and which of that source's items of this epoch it is."""
        which = np.repeat(np.arange(len(self._counts)), self._counts)
        which = generator(self.seed, "mixture", epoch).permutation(which)
        place = np.empty_like(which)
        for number, count in enumerate(self._counts):
            place[which == number] = np.arange(count)
        return np.stack([which, place], axis=1)

    def _pass(self, key: tuple[int, int]) -> NDArray[np.int64]:
        """The order in which a source's items are used in one pass; the key is the source's number and that of the pass."""
        which, passed = key
        name = self._names[which]
        return generator(self.seed, "pass", name, passed).permutation(len(self.parts[name]))


def _kept(held: dict[Key, NDArray[np.int64]], key: Key, make: Callable[[Key], NDArray[np.int64]], most: int) -> Any:
    """What ``make`` gives for a key, made once for the last few keys. (A cached method could not be sent to another process.)"""
    found = held.pop(key, None)
    if found is None:
        while len(held) >= most:
            held.pop(next(iter(held)), None)
        found = make(key)
    held[key] = found  # the last one used stands last
    return found


def _check_shares(shares: Mapping[str, float], parts: Mapping[str, Source]) -> None:
    if set(shares) != set(parts):
        lacking, unknown = sorted(set(parts) - set(shares)), sorted(set(shares) - set(parts))
        told = [f"{', '.join(lacking)} without a share"] if lacking else []
        told += [f"a share for {', '.join(unknown)}, which is no source"] if unknown else []
        raise OptionError(f"shares do not match the sources: {'; '.join(told)}; give each source its share, or none")
    wrong = [name for name, share in shares.items() if not (isinstance(share, int | float) and share > 0)]
    if wrong:
        raise OptionError(
            f"data.{wrong[0]}.share={shares[wrong[0]]!r}: must be a number greater than 0; leave the source out instead"
        )
    total = sum(shares.values())
    if abs(total - 1) > 1e-6:
        listed = ", ".join(f"{name} {share:g}" for name, share in shares.items())
        raise OptionError(f"shares sum to {total:g}, not to 1: {listed}")


def _apportion(total: int, shares: list[float]) -> list[int]:
    """Whole numbers that sum to ``total``, as close to the shares as possible, none of them 0 (largest remainders)."""
    exact = [total * share for share in shares]
    counts = [max(1, math.floor(value + 1e-9)) for value in exact]
    by_remainder = sorted(range(len(shares)), key=lambda i: counts[i] - exact[i])
    for i in range(total - sum(counts)):
        counts[by_remainder[i % len(counts)]] += 1
    while sum(counts) > total:  # sources raised to 1 take from the largest
        counts[counts.index(max(counts))] -= 1
    return counts
