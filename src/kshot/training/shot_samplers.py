"""How many demonstrations a training episode has.

A sampler gives weights of the possible totals; the names are those of the Link-Context Learning paper (arXiv 2308.07891):
``fixed`` is its [2-way], ``uniform`` its [2-way-random], ``exponential`` its [2-way-weight]. The released code swaps two of the names
and has other weights, see ``docs/methods/link_context_learning.md``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kshot.errors import OptionError
from kshot.registry import Registry

Weigher = Callable[[Sequence[int], float], Sequence[float]]
"""Logarithms of the (unnormalised) weights of some totals, given in ascending order, and the base."""

shot_samplers: Registry[Weigher] = Registry("shot sampler", "kshot.shot_samplers", ("kshot.training.shot_samplers",))

BASES = ("paper", "release")
"""Named bases of ``exponential``."""


@shot_samplers.register("fixed")
def fixed(totals: Sequence[int], base: float) -> list[float]:
    """Always the largest total."""
    return [-math.inf] * (len(totals) - 1) + [0.0]


@shot_samplers.register("uniform")
def uniform(totals: Sequence[int], base: float) -> list[float]:
    """All totals alike."""
    return [0.0] * len(totals)


@shot_samplers.register("exponential")
def exponential(totals: Sequence[int], base: float) -> list[float]:
    """Total j with a weight of base ** j: many demonstrations are far more frequent than few."""
    return [total * math.log(base) for total in totals]


@dataclass(frozen=True)
class Shots:
    """A distribution over numbers of demonstrations.

    Attributes:
        sampler: name of the sampler.
        ways: classes an episode, all with equally many demonstrations.
        per_side: the possible numbers of demonstrations of a class, ascending.
        probabilities: of each of them.
        base: of ``exponential``, over totals.
    """

    sampler: str
    ways: int
    per_side: tuple[int, ...]
    probabilities: tuple[float, ...]
    base: float

    @property
    def most(self) -> int:
        """The largest number of demonstrations of a class that occurs."""
        return max(count for count, p in zip(self.per_side, self.probabilities, strict=True) if p > 0)

    def draw(self, rng: np.random.Generator) -> int:
        """Draw the number of demonstrations of each class."""
        return int(self.per_side[rng.choice(len(self.per_side), p=self.probabilities)])

    def describe(self) -> dict[str, Any]:
        """For the record of a run."""
        base = {"base": self.base} if self.sampler == "exponential" else {}
        shots = {"shots_per_side": self.per_side[-1], "min_shots_per_side": self.per_side[0]}
        return {"sampler": self.sampler, "ways": self.ways, **shots, **base}


def make_shots(
    sampler: str,
    *,
    ways: int = 2,
    shots_per_side: int | None = None,
    total_shots: int | None = None,
    min_shots_per_side: int = 1,
    base: float | str = "paper",
) -> Shots:
    """The distribution that some options mean.

    Args:
        sampler: registered name: ``fixed``, ``uniform`` or ``exponential``.
        ways: classes an episode ("sides").
        shots_per_side: most demonstrations of a class; the paper trains with up to 8.
        total_shots: the same for all classes together (``ways`` times as many). One of the two is needed.
        min_shots_per_side: fewest demonstrations of a class.
        base: of ``exponential``: a number b, so that total j has a probability proportional to b ** j; ``"paper"`` = e;
            ``"release"`` = what the released code does, exp(s / 2) with s demonstrations of each class.

    Raises:
        OptionError: no number of shots, two that contradict each other, or a value out of range.
        UnknownName: no such sampler.
    """
    weigher = shot_samplers.get(sampler)
    if ways < 2:
        raise OptionError(f"ways={ways}: must be 2 or more")
    if shots_per_side is None and total_shots is None:
        raise OptionError(
            f"how many shots? Give shots_per_side= or total_shots= (the paper: 8 per side, {ways * 8} here)"
        )
    if total_shots is not None and total_shots % ways:
        raise OptionError(
            f"total_shots={total_shots}: must be a multiple of ways={ways}, each class is shown equally often"
        )
    most = shots_per_side if shots_per_side is not None else int(total_shots or 0) // ways
    if total_shots is not None and total_shots != most * ways:
        raise OptionError(
            f"shots_per_side={shots_per_side} and total_shots={total_shots} contradict each other with ways={ways}; give one of them"
        )
    if most < 1:
        raise OptionError(f"{most} shots per side: must be 1 or more, a novel name cannot be known otherwise")
    if not 1 <= min_shots_per_side <= most:
        raise OptionError(f"min_shots_per_side={min_shots_per_side}: must be 1 to {most}, the most shots per side")
    number = _base(base, ways)
    per_side = tuple(range(min_shots_per_side, most + 1))
    logs = np.asarray(weigher([ways * count for count in per_side], number), dtype=np.float64)
    weights = np.exp(logs - logs.max())  # base ** 1000 would be too large a number
    return Shots(sampler, ways, per_side, tuple((weights / weights.sum()).tolist()), number)


def _base(base: float | str, ways: int) -> float:
    if base == "paper":
        return math.e
    if base == "release":
        return math.exp(0.5 / ways)
    if isinstance(base, (str, bool)) or not (math.isfinite(base) and base > 0):
        raise OptionError(f"base={base!r}: must be a number greater than 0, or one of {', '.join(BASES)}")
    return float(base)
