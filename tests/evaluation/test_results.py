"""Figures over seeds, and the intervals around them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kshot.episode import Example
from kshot.errors import DataError, OptionError
from kshot.evaluation.cells import Cell
from kshot.evaluation.results import Evaluation
from kshot.evaluation.scoring import interval_over_seeds, score_cell, summarise
from kshot.metrics.base import MetricResult, metrics
from kshot.metrics.stats import bootstrap_interval


def cell_of(rights: list[bool], seed: int = 0, skipped: tuple[int, ...] = ()):
    rows = [
        {"id": f"q{i}", "skipped": "damaged"} if i in skipped else {"id": f"q{i}", "prediction": "a" if right else "b"}
        for i, right in enumerate(rights)
    ]
    queries = {f"q{i}": Example(answer="a", id=f"q{i}") for i in range(len(rights))}
    return score_cell(Cell("demonstrations", 4, seed), rows, queries, metrics.get("exact_match"))


def test_one_seed_gives_the_bootstrap_interval_of_its_scores():
    rights = [i % 3 == 0 for i in range(90)]
    assert interval_over_seeds([cell_of(rights)]) == bootstrap_interval([float(r) for r in rights])


def test_the_interval_counts_the_spread_between_seeds():
    # Two seeds that differ by more than their queries can explain: 90 % and 50 % on the same 400 questions.
    rng = np.random.default_rng(0)
    good, bad = ([bool(x) for x in rng.random(400) < p] for p in (0.9, 0.5))
    row = summarise(Cell("demonstrations", 4, 0), [cell_of(good, 0), cell_of(bad, 1)])
    low, high = row.interval
    means = [np.mean(good), np.mean(bad)]
    assert row.value == pytest.approx(np.mean(means))
    assert row.spread == pytest.approx(np.std(means, ddof=1))
    assert high - low > 2 * 1.96 * row.spread / np.sqrt(2) > 0.3
    assert low < row.value < high


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_interval_covers_the_truth_about_as_often_as_it_says(seeds):
    rng, covered, runs = np.random.default_rng(1), 0, 120
    for _ in range(runs):
        # Hardness of each question, and of each choice of demonstrations, around a mean of 0.6.
        questions = rng.normal(0, 0.2, 150)
        cells = []
        for seed in range(seeds):
            chance = np.clip(0.6 + questions + rng.normal(0, 0.02), 0, 1)
            cells.append(cell_of([bool(x) for x in rng.random(150) < chance], seed))
        low, high = interval_over_seeds(cells)
        covered += low <= 0.6 <= high
    assert covered / runs > 0.88


def test_queries_skipped_in_one_seed_are_averaged_over_the_others():
    row = summarise(
        Cell("demonstrations", 4, 0),
        [cell_of([True] * 10, 0), cell_of([False] * 5 + [True] * 5, 1, skipped=(0, 1))],
    )
    assert row.queries == 8
    assert row.skipped == 2
    assert row.seeds[1].skipped == ({"id": "q0", "reason": "damaged"}, {"id": "q1", "reason": "damaged"})
    assert row.seeds[1].value == pytest.approx(5 / 8)


def test_units_of_several_queries_are_resampled_together():
    def pairs(predictions, queries):
        return MetricResult("pairs", 50.0, (1.0, 0.0), tuple(i // 2 for i in range(4)))

    rows = [{"id": f"q{i}", "prediction": "a"} for i in range(4)]
    scores = score_cell(Cell("demonstrations", 0, 0), rows, {f"q{i}": Example(id=f"q{i}") for i in range(4)}, pairs)
    assert scores.units == {
        ("q0", "q1"): 100.0,
        ("q2", "q3"): 0.0,
    }  # in the unit of the figure, of which they are the mean
    assert scores.per_query == (1.0, 1.0, 0.0, 0.0)
    low, high = interval_over_seeds([scores])
    assert (low, high) == (0.0, 100.0)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=12, max_size=12), min_size=1, max_size=4))
def test_the_interval_holds_the_mean(seeds):
    row = summarise(Cell("demonstrations", 4, 0), [cell_of(rights, i) for i, rights in enumerate(seeds)])
    low, high = row.interval
    assert low <= row.value + 1e-9
    assert row.value <= high + 1e-9


def test_an_evaluation_survives_json():
    row = summarise(Cell("demonstrations", 4, 0), [cell_of([True, False], 0), cell_of([True, True], 1)])
    result = Evaluation("m", "t", "accuracy", (row,), chance=0.5, passed_over={"bad_images": 1})
    assert Evaluation.from_json(json.loads(json.dumps(result.to_json()))) == result
    assert "passed over as demonstrations: bad images: 1" in result.markdown()
    with pytest.raises(OptionError, match="has no 'demonstrations' with 8 shots"):
        result.value(8)
    with pytest.raises(DataError, match="not the figures of a run"):
        Evaluation.from_json({"rows": [{}]})
