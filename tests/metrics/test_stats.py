"""Bootstrap intervals: coverage, exactness, memory."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kshot.errors import DataError, OptionError
from kshot.metrics import bootstrap_interval, standard_error
from kshot.metrics.stats import macro_interval


def test_coverage():
    """Of 600 samples of 100 scores, the share whose 90 % interval holds the true mean: 0.90, give or take 4 standard errors."""
    generator = np.random.default_rng(7)
    samples = generator.binomial(1, 0.3, size=(600, 100)).astype(float)
    held = 0
    for number, sample in enumerate(samples):
        low, high = bootstrap_interval(sample, level=0.9, resamples=400, seed=number)
        held += low <= 0.3 <= high
    assert abs(held / len(samples) - 0.9) < 4 * math.sqrt(0.9 * 0.1 / len(samples))


def test_macro_interval_is_that_of_the_mean_over_classes():
    # A frequent class that is always right and a rare one at random: 0.75 over classes, whatever the share of right answers.
    generator = np.random.default_rng(5)
    held = 0
    for number in range(200):
        items = [1.0] * 90 + [float(x) for x in generator.random(30) < 0.5]
        labels = [0] * 90 + [1] * 30
        low, high = macro_interval(items, labels, resamples=300, seed=number)
        held += low <= 0.75 <= high
        if number == 0:
            assert (low, high) == macro_interval(items, labels, resamples=300, seed=0)
            rare = float(np.mean(items[90:]))
            assert low < (1 + rare) / 2 < high
            width = 1.96 * math.sqrt(rare * (1 - rare) / 30)  # half of the rare class' own interval, twice
            assert high - low == pytest.approx(width, rel=0.25)
    assert abs(held / 200 - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 200)


def test_macro_interval_of_odd_input():
    assert macro_interval([0.5, 0.5, 0.5], [0, 1, 1]) == (0.5, 0.5)
    with pytest.raises(DataError, match="2 class labels for 3 scores"):
        macro_interval([0.0, 1.0, 1.0], [0, 1])
    with pytest.raises(OptionError, match="level"):
        macro_interval([0.0, 1.0], [0, 1], level=1)


def test_width_agrees_with_the_normal_interval():
    scores = np.random.default_rng(3).normal(size=2000)
    low, high = bootstrap_interval(scores)
    assert high - low == pytest.approx(2 * 1.96 * standard_error(scores), rel=0.08)
    assert (low + high) / 2 == pytest.approx(scores.mean(), abs=0.01)


def test_level_widens_the_interval():
    scores = np.random.default_rng(3).random(50)
    inner, outer = bootstrap_interval(scores, level=0.5), bootstrap_interval(scores, level=0.99)
    assert outer[0] < inner[0] < inner[1] < outer[1]


@given(st.floats(-1e6, 1e6), st.integers(1, 50))
def test_constant_scores_are_exact(value, number):
    assert bootstrap_interval([value] * number, resamples=10) == (value, value)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.integers(0, 2**32))
def test_interval_lies_within_the_scores_and_repeats(scores, seed):
    low, high = bootstrap_interval(scores, resamples=50, seed=seed)
    assert min(scores) - 1e-12 <= low <= high <= max(scores) + 1e-12
    assert bootstrap_interval(scores, resamples=50, seed=seed) == (low, high)


def test_another_seed_gives_another_interval():
    scores = np.random.default_rng(3).random(50)
    assert bootstrap_interval(scores, seed=1) != bootstrap_interval(scores, seed=2)


def test_40000_items_stay_under_200_megabytes():
    scores = np.random.default_rng(0).random(40_000)
    tracemalloc.start()
    bootstrap_interval(scores, resamples=300)  # three blocks: more only repeat them
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200e6


def test_bad_input():
    with pytest.raises(DataError, match="no scores"):
        bootstrap_interval([])
    with pytest.raises(DataError, match="not a finite"):
        bootstrap_interval([0.0, math.nan])
    with pytest.raises(OptionError, match="level"):
        bootstrap_interval([0.0], level=95)
    with pytest.raises(OptionError, match="resamples"):
        bootstrap_interval([0.0], resamples=0)


def test_standard_error():
    assert standard_error([0.0, 1.0]) == pytest.approx(0.5)  # standard deviation sqrt(1/2) over sqrt(2)
    assert standard_error([1.0, 2.0, 3.0, 4.0]) == pytest.approx(math.sqrt(5 / 3) / 2)
    assert math.isnan(standard_error([1.0]))
