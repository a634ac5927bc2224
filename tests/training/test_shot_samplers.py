"""The numbers of demonstrations: the published distributions, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kshot.errors import OptionError, UnknownName
from kshot.training.shot_samplers import make_shots


def percent(shots) -> list[float]:
    return [round(100 * p, 1) for p in shots.probabilities]


def test_exponential_with_the_base_of_the_release():
    shots = make_shots("exponential", shots_per_side=8, base="release")
    assert percent(shots) == [1.2, 2.0, 3.3, 5.4, 8.9, 14.7, 24.3, 40.1]  # as its own code gives them


def test_exponential_of_the_paper_is_e_to_the_total():
    shots = make_shots("exponential", total_shots=16)
    weights = np.exp(np.arange(2, 17, 2.0))
    assert shots.probabilities == pytest.approx(weights / weights.sum())
    assert shots.per_side == tuple(range(1, 9))


def test_the_release_counts_shots_per_side_whatever_the_ways():
    by_ways = [make_shots("exponential", ways=ways, shots_per_side=4, base="release") for ways in (2, 3, 7)]
    for shots in by_ways[1:]:
        assert shots.probabilities == pytest.approx(by_ways[0].probabilities)


def test_fixed_and_uniform():
    assert make_shots("fixed", shots_per_side=8).probabilities == (0.0,) * 7 + (1.0,)
    assert make_shots("uniform", total_shots=16).probabilities == pytest.approx([1 / 8] * 8)
    assert make_shots("uniform", total_shots=16, min_shots_per_side=3).per_side == (3, 4, 5, 6, 7, 8)


@pytest.mark.parametrize("sampler", ["fixed", "uniform", "exponential"])
def test_draws_follow_the_probabilities(sampler):
    shots = make_shots(sampler, shots_per_side=4, base=1.3)
    rng = np.random.default_rng(0)
    drawn = np.bincount([shots.draw(rng) for _ in range(4000)], minlength=5)[1:]
    expected = 4000 * np.asarray(shots.probabilities)
    assert np.all(np.abs(drawn - expected) <= 5 * np.sqrt(expected + 1e-12))


@given(
    st.sampled_from(["fixed", "uniform", "exponential"]),
    st.integers(2, 6),
    st.integers(1, 200),
    st.integers(1, 200),
    st.floats(0.01, 1000),
)
def test_every_distribution_is_one(sampler, ways, most, least, base):
    least = min(least, most)
    shots = make_shots(sampler, ways=ways, total_shots=ways * most, min_shots_per_side=least, base=base)
    assert sum(shots.probabilities) == pytest.approx(1)
    assert all(math.isfinite(p) and p >= 0 for p in shots.probabilities)
    assert shots.per_side == tuple(range(least, most + 1))
    assert least <= shots.most <= most
    assert least <= shots.draw(np.random.default_rng(0)) <= most


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, "shots_per_side= or total_shots="),
        ({"shots_per_side": 4, "total_shots": 16}, "contradict"),
        ({"total_shots": 7}, "multiple of ways=2"),
        ({"shots_per_side": 0}, "1 or more"),
        ({"total_shots": 0}, "1 or more"),
        ({"shots_per_side": 2, "min_shots_per_side": 3}, "min_shots_per_side=3"),
        ({"shots_per_side": 2, "min_shots_per_side": 0}, "min_shots_per_side=0"),
        ({"shots_per_side": 2, "ways": 1}, "ways=1"),
        ({"shots_per_side": 2, "base": 0.0}, "base=0.0"),
        ({"shots_per_side": 2, "base": "e"}, "paper, release"),
        ({"shots_per_side": 2, "base": math.nan}, "base=nan"),
    ],
)
def test_what_is_refused(options, told):
    with pytest.raises(OptionError, match=told):
        make_shots("exponential", **options)


def test_both_ways_to_say_it_agree():
    assert make_shots("uniform", shots_per_side=8, total_shots=16) == make_shots("uniform", total_shots=16)


def test_an_unknown_sampler_is_named():
    with pytest.raises(UnknownName, match="did you mean 'exponential'"):
        make_shots("exponental", shots_per_side=2)
