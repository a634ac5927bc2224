"""What demonstrations are worth: the score with intact ones, minus chance, and minus the score under each control.

Both sides of a gap to a control answered the same queries with the same choice of demonstrations, so the scores are subtracted query
by query before anything is resampled: the interval of the difference is then narrower than those of its two sides suggest.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kshot.metrics.stats import bootstrap_interval

CHANCE = "chance"
RESAMPLES = 2000

Units = Mapping[tuple[str, ...], float]
"""Scores by the ids of the queries that make a unit; their mean is the figure."""


@dataclass(frozen=True)
class Gap:
    """How much more intact demonstrations score.

    Attributes:
        shots: number of demonstrations in total.
        against: ``"chance"`` or the name of a control.
        value: score with intact demonstrations minus the other one.
        interval: its 95 % confidence interval; paired by query where the other side is a control.
    """

    shots: int
    against: str
    value: float
    interval: tuple[float, float]


def to_chance(shots: int, value: float, interval: tuple[float, float], chance: float) -> Gap:
    """The gap between a score and chance, which is known exactly."""
    return Gap(shots, CHANCE, value - chance, (interval[0] - chance, interval[1] - chance))


def to_control(shots: int, control: str, intact: Mapping[int, Units], changed: Mapping[int, Units]) -> Gap | None:
    """The gap between intact demonstrations and a control.

    Args:
        intact, changed: scores by seed; only units that were scored on both sides are compared.

    Returns:
        The gap, or ``None`` if nothing was scored on both sides.
    """
    differences = []
    for seed in sorted(intact.keys() & changed.keys()):
        common = intact[seed].keys() & changed[seed].keys()
        if common:
            differences.append({unit: intact[seed][unit] - changed[seed][unit] for unit in sorted(common)})
    if not differences:
        return None
    values = [math.fsum(found.values()) / len(found) for found in differences]
    return Gap(shots, control, statistics.fmean(values), interval_of(differences, values))


def interval_of(by_seed: Sequence[Units], values: Sequence[float]) -> tuple[float, float]:
    """Confidence interval of the mean over seeds, for chance both in the queries and in the choice of demonstrations.

    A unit's score is averaged over the seeds in which it was answered, and the units are resampled. With several seeds the standard
    error between them is added in quadrature. The interaction of seeds and queries enters both parts, which makes the interval a
    little wide rather than too narrow; with two or three seeds their spread is itself known only roughly.

    Args:
        by_seed: scores of each seed.
        values: each seed's figure.
    """
    by_unit: dict[tuple[str, ...], list[float]] = defaultdict(list)
    for units in by_seed:
        for unit, item in units.items():
            by_unit[unit].append(item)
    items = [math.fsum(found) / len(found) for found in by_unit.values()]
    return widened(bootstrap_interval(items, resamples=RESAMPLES), values)


def widened(interval: tuple[float, float], values: Sequence[float]) -> tuple[float, float]:
    """An interval for chance in the queries, widened by that between the figures of several seeds."""
    centre, (low, high) = statistics.fmean(values), interval
    if len(values) > 1:
        between = 1.96 * statistics.stdev(values) / math.sqrt(len(values))
        low, high = centre - math.hypot(centre - low, between), centre + math.hypot(high - centre, between)
    return low, high
