"""In which order the sentences of one or several stores are read: a pure function of (seed, epoch, place).

Every epoch of a mixture holds the same number of sentences of each store, and of each length within a store; so the rows that they
fill are as many in every epoch, too. A store (more exactly: its sentences of one length) is walked through in an order drawn anew
for every pass, and a pass ends only when all of its sentences were used, however many epochs that takes. A store with a larger share
than its size begins its next pass in the same epoch.

Orders come from a fixed integer hash, not from a library's random generator: they are the same with every version of NumPy, on every
machine.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kshot.errors import OptionError

Shares = Literal["sentences", "tokens"]


@dataclass(frozen=True)
class EpochOrder:
    """The sentences of an epoch in their order.

    Attributes:
        store: (sentences,) number of the store.
        sentence: (sentences,) number of the sentence in its store.
        length: (sentences,) its tokens.
    """

    store: NDArray[np.int32]
    sentence: NDArray[np.int64]
    length: NDArray[np.int64]


class MixtureOrder:
    """The order in which a mixture is read.

    Args:
        lengths: for each store the tokens of its sentences.
        weights: each store's share, any positive numbers; only their ratios count. Default: by size, so that an epoch holds every
            sentence once. With weights, an epoch is as short as it can be for every store to give as many sentences as it has.
        seed: of the order.
        shares: what the weights are shares of: ``sentences`` (as upstream, where a file of lines is mixed), or ``tokens``.

    Attributes:
        counts: sentences an epoch of each store.
        sentences_per_epoch: their sum.
        tokens_per_epoch: tokens of the sentences of an epoch.

    Raises:
        OptionError: no stores, an empty one, or weights that are not one positive number a store.
    """

    def __init__(
        self,
        lengths: Sequence[NDArray[np.int64]],
        weights: Sequence[float] | None = None,
        seed: int = 0,
        shares: Shares = "sentences",
    ):
        _check(lengths, weights, shares)
        self.weights, self.seed, self.shares = None if weights is None else tuple(map(float, weights)), seed, shares
        sizes = [len(held) for held in lengths]
        self.counts = sizes if weights is None else _counts(sizes, weights, lengths, shares)
        self._strata: list[_Stratum] = []
        for number, held in enumerate(lengths):
            kinds, which = np.unique(held, return_inverse=True)
            members = [np.flatnonzero(which == kind) for kind in range(len(kinds))]
            counts = apportion(self.counts[number], [len(some) for some in members])
            for kind, some, count in zip(kinds.tolist(), members, counts, strict=True):
                self._strata.append(_Stratum(number, int(kind), some, count))
        self.sentences_per_epoch = sum(stratum.count for stratum in self._strata)
        self.tokens_per_epoch = sum(stratum.count * stratum.length for stratum in self._strata)
        self._epochs: dict[int, EpochOrder] = {}

    @property
    def lengths(self) -> dict[int, int]:
        """How many sentences of which length an epoch has; the same in every epoch. Longest first."""
        found: dict[int, int] = {}
        for stratum in self._strata:
            found[stratum.length] = found.get(stratum.length, 0) + stratum.count
        return dict(sorted(found.items(), reverse=True))

    def epoch(self, epoch: int) -> EpochOrder:
        """The order of an epoch (the last two are kept)."""
        found = self._epochs.get(epoch)
        if found is None:
            found = self._drawn(epoch)
            self._epochs = {number: order for number, order in self._epochs.items() if abs(number - epoch) == 1}
            self._epochs[epoch] = found
        return found

    def place(self, number: int) -> tuple[int, int]:
        """Store and sentence that come at a place of the endless sequence of all epochs."""
        if number < 0:
            raise IndexError(f"sentence {number}")
        epoch, at = divmod(number, self.sentences_per_epoch)
        order = self.epoch(epoch)
        return int(order.store[at]), int(order.sentence[at])

    def describe(self) -> dict[str, Any]:
        """JSON; two orders with equal descriptions, of equal stores, are equal."""
        return {"weights": self.weights, "shares": self.shares, "seed": self.seed, "sentences_an_epoch": self.counts}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_epochs": {}}

    def _drawn(self, epoch: int) -> EpochOrder:
        if epoch < 0:
            raise IndexError(f"epoch {epoch}")
        parts = [stratum.of_epoch(epoch, self.seed) for stratum in self._strata]
        sizes = [stratum.count for stratum in self._strata]
        order = shuffled(self.sentences_per_epoch, self.seed, "epoch", epoch)
        return EpochOrder(
            np.repeat(np.array([s.store for s in self._strata], np.int32), sizes)[order],
            np.concatenate(parts)[order],
            np.repeat(np.array([s.length for s in self._strata], np.int64), sizes)[order],
        )


@dataclass(frozen=True)
class _Stratum:
    """The sentences of one length in one store, of which ``count`` are used in an epoch."""

    store: int
    length: int
    members: NDArray[np.int64]
    count: int

    def of_epoch(self, epoch: int, seed: int) -> NDArray[np.int64]:
        size = len(self.members)
        begin, end = epoch * self.count, (epoch + 1) * self.count
        parts = []
        for passed in range(begin // size, -(-end // size)):
            order = shuffled(size, seed, "pass", self.store, self.length, passed)
            parts.append(order[max(0, begin - passed * size) : end - passed * size])
        found: NDArray[np.int64] = self.members[np.concatenate(parts)]
        return found


def shuffled(size: int, *key: int | str) -> NDArray[np.int64]:
    """A permutation of ``range(size)`` that depends on the key and on nothing else.

    Numbers are sorted by a hash (the finalizer of SplitMix64, a bijection, so that there are no ties) of themselves and the key.
    """
    digest = hashlib.blake2b("\0".join(map(str, key)).encode(), digest_size=8).digest()
    mixed = np.arange(size, dtype=np.uint64) + np.uint64(int.from_bytes(digest, "little"))
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed ^= mixed >> np.uint64(shift)
        mixed *= np.uint64(factor)
    mixed ^= mixed >> np.uint64(31)
    return np.argsort(mixed)


def apportion(total: int, shares: Sequence[float]) -> list[int]:
    """Whole numbers that sum to ``total``, as close to the shares as possible (largest remainders; the first of equals)."""
    whole = math.fsum(shares)
    exact = [total * share / whole for share in shares]
    counts = [math.floor(value + 1e-9) for value in exact]
    by_remainder = sorted(range(len(shares)), key=lambda i: counts[i] - exact[i])
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    return counts


def _counts(
    sizes: Sequence[int], weights: Sequence[float], lengths: Sequence[NDArray[np.int64]], shares: Shares
) -> list[int]:
    parts = list(map(float, weights))
    if shares == "tokens":
        parts = [part / float(held.mean()) for part, held in zip(parts, lengths, strict=True)]
    whole = math.fsum(parts)
    total = math.ceil(max(size * whole / part for size, part in zip(sizes, parts, strict=True)) - 1e-6)
    # Rounding must not take from a store the last sentence of its pass.
    return [max(size, count) for size, count in zip(sizes, apportion(total, parts), strict=True)]


def _check(lengths: Sequence[NDArray[np.int64]], weights: Sequence[float] | None, shares: str) -> None:
    if not lengths:
        raise OptionError("a mixture needs at least one token store")
    for number, held in enumerate(lengths):
        if not len(held):
            raise OptionError(f"token store {number + 1} of the mixture is empty")
    if shares not in ("sentences", "tokens"):
        raise OptionError(f"shares={shares!r}: weights are shares of 'sentences' or of 'tokens'")
    if weights is None:
        return
    if len(weights) != len(lengths):
        raise OptionError(f"{len(weights)} weights for {len(lengths)} token stores: give one a store, or none")
    for weight in weights:
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
            raise OptionError(f"weight {weight!r}: must be a number greater than 0; leave the store out instead")
