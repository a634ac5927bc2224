"""The embedded model links pictures to names: without the pictures, or with the labels dealt out anew, it is at chance.

Bounds are loose, because few questions are asked: chance is 0.5, and 32 answers at chance stay within 0.3 of it 999 times in 1,000.
"""

from __future__ import annotations

from pathlib import Path

import pytest

import kshot
from kshot.data.isekai import Isekai
from kshot.data.task import load_task
from kshot.evaluation.controls import SETS

QUERIES = 32


@pytest.fixture(scope="module")
def tiny():
    return kshot.load_model("tiny")


def test_blank_or_shuffled_support_drops_accuracy_to_chance(tiny):
    task = load_task("glyphs", style="link", ways=2, names="unseen", episodes=QUERIES, seed=7)
    result = kshot.evaluate(tiny, task, shots=4, scoring="likelihood", style="chat")
    assert result.value(4) >= 0.85
    for control in ("blank-support", "shuffled-labels", "text-only"):
        assert 0.2 <= result.value(4, control) <= 0.8, control
        assert result.gap(4, control).interval[0] > 0, control
    swapped = result.row(4, "swapped-labels")
    assert swapped.value <= 0.25
    assert swapped.seeds[0].details["follows"] >= 0.75  # it goes where the names go
    assert result.gap(4, "chance").interval[0] > 0


def test_the_published_example_pictures_run_end_to_end(tiny, shared_data: Path, tmp_path: Path):
    """It runs; four queries and a model of glyphs say nothing about accuracy."""
    root = shared_data / "isekai"
    if not root.is_dir():
        pytest.skip("the ISEKAI example pictures are not among the real data")
    task = Isekai(root)
    result = kshot.evaluate(tiny, task, shots="0,2", max_new_tokens=6, out=tmp_path / "run", prediction_form="lcl")
    assert {row.kind for row in result.rows} == {"demonstrations", *SETS["link"]}
    assert all(row.queries == 4 for row in result.rows)
    assert set(result.row(2).categories()) >= {"group: airstone", "group: cactihog"}
    assert (
        len((tmp_path / "run" / "predictions" / "shots-2_seed-0_extra_prediction.jsonl").read_text().splitlines()) == 4
    )
    invented = Isekai(root, names="invented")
    likely = kshot.evaluate(tiny, invented, shots=2, scoring="likelihood", controls="none")
    assert likely.row(2).queries == 4
    assert not {"airstone", "stone"} & set(invented.queries[0].choices)
