"""Uncertainty of a score: percentile bootstrap and standard error over the units of a metric.

Both take ``MetricResult.items``, one score per independent unit (a question, an image, a pair of questions about one image), and
speak about the *mean* of these items.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from kshot.errors import DataError, OptionError

_DRAWS_AT_ONCE = 4_000_000  # 16 MB of indices and 32 MB of scores: memory does not grow with the number of resamples


def bootstrap_interval(
    items: Sequence[float], *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean (Efron and Tibshirani 1993, chapter 13).

    Units are drawn with replacement; the interval runs from the ``(1 - level) / 2`` to the ``(1 + level) / 2`` quantile of
    the resampled means. The same items, options and seed always give the same interval. Constant items give exactly
    ``(c, c)``. With few units (under about 30) the interval is somewhat too narrow, as percentile intervals are.

    Args:
        items: one finite score per unit.
        level: probability that the interval aims to cover, between 0 and 1.
        resamples: number of resamples.
        seed: seed of the draws.

    Raises:
        DataError: no items, or one that is not finite.
        OptionError: level or resamples out of range.
    """
    _check_options(level, resamples)
    scores = _finite(items)
    if scores.min() == scores.max():
        return float(scores[0]), float(scores[0])  # averaging would add rounding errors
    generator = np.random.default_rng(np.random.SeedSequence(seed))
    means = np.empty(resamples)
    block = max(1, _DRAWS_AT_ONCE // len(scores))
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        drawn = generator.integers(0, len(scores), size=(rows, len(scores)), dtype=np.int32)
        means[start : start + rows] = scores[drawn].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def macro_interval(
    items: Sequence[float], labels: Sequence[int], *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean over classes of the mean in each class.

    Units are drawn with replacement from all of them; a class of which a resample holds no unit does not enter its mean. Otherwise
    as :func:`bootstrap_interval`.

    Args:
        items: one finite score per unit.
        labels: the class of each unit, numbered from 0.

    Raises:
        DataError: no items, one that is not finite, or labels that do not fit.
        OptionError: level or resamples out of range.
    """
    _check_options(level, resamples)
    scores, classes = _finite(items), np.asarray(labels, dtype=np.int64)
    if classes.shape != scores.shape or classes.min() < 0:
        raise DataError(f"{len(classes)} class labels for {len(scores)} scores", remedy="give each unit its class")
    if scores.min() == scores.max():
        return float(scores[0]), float(scores[0])
    count = int(classes.max()) + 1
    generator = np.random.default_rng(np.random.SeedSequence(seed))
    figures = np.empty(resamples)
    block = max(1, _DRAWS_AT_ONCE // 4 // len(scores))
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        drawn = generator.integers(0, len(scores), size=(rows, len(scores)), dtype=np.int32)
        places = (classes[drawn] + np.arange(rows)[:, None] * count).ravel()
        shown = np.bincount(places, minlength=rows * count).reshape(rows, count)
        sums = np.bincount(places, weights=scores[drawn].ravel(), minlength=rows * count).reshape(rows, count)
        means = sums / np.maximum(shown, 1)
        figures[start : start + rows] = means.sum(1) / (shown > 0).sum(1)
    low, high = np.quantile(figures, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def standard_error(items: Sequence[float]) -> float:
    """Standard error of the mean: sample standard deviation (n - 1) over the root of n; ``nan`` for a single unit.

    Raises:
        DataError: no items, or one that is not finite.
    """
    scores = _finite(items)
    return float(scores.std(ddof=1) / math.sqrt(len(scores))) if len(scores) > 1 else math.nan


def _check_options(level: float, resamples: int) -> None:
    if not 0 < level < 1:
        raise OptionError(f"level must lie between 0 and 1, not {level}")
    if resamples < 1:
        raise OptionError(f"resamples must be at least 1, not {resamples}")


def _finite(items: Sequence[float]) -> np.ndarray:
    scores = np.asarray(items, dtype=np.float64)
    if scores.ndim != 1 or not len(scores):
        raise DataError("no scores to take a mean of", remedy="give one score per unit")
    if not np.isfinite(scores).all():
        raise DataError("a score is not a finite number", line=int(np.flatnonzero(~np.isfinite(scores))[0]) + 1)
    return scores
