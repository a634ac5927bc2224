"""Evaluation on a task and a model whose figures are known beforehand."""

from __future__ import annotations

import json

import pytest

import kshot
from kshot.errors import BadImage, DataError, OptionError, UnknownName
from kshot.evaluation.cells import plan
from kshot.evaluation.evaluate import STEP, _sample
from kshot.evaluation.runs import read_jsonl
from tests.evaluation.toys import Lookup, Swatches


def test_figures_of_a_perfect_learner(tmp_path):
    result = kshot.evaluate(
        Lookup(),
        Swatches(),
        shots="0,1,3",
        seeds=3,
        baselines="format_only",
        controls=("shuffled-labels", "blank-images", "no-query-image"),
        out=tmp_path / "run",
    )
    assert result.value(0) == 0
    assert result.value(3) == 1
    assert 0.2 < result.value(1) < 0.45  # one of three colours is shown
    assert 0.2 < result.value(3, "shuffled-labels") < 0.45
    assert result.value(3, "blank-images") == 0
    assert 0.2 < result.value(3, "no-query-image") < 0.45
    assert len(result.row(0).seeds) == 1
    assert len(result.row(1).seeds) == 3
    assert [seed.seed for seed in result.row(1).seeds] == [0, 1, 2]
    # Controls that cannot change anything are left out: a single label, no demonstrations.
    assert {(row.kind, row.shots) for row in result.rows if row.kind == "shuffled-labels"} == {("shuffled-labels", 3)}
    assert {row.shots for row in result.rows if row.kind == "blank-images"} == {1, 3}
    assert {row.shots for row in result.rows if row.kind == "no-query-image"} == {0, 1, 3}
    assert result.row(3).categories() == {"red": (1.0, 50), "green": (1.0, 50), "blue": (1.0, 50)}


def test_the_run_folder_says_everything(tmp_path):
    run = tmp_path / "run"
    result = kshot.evaluate(Lookup(), Swatches(), shots=(0, 3), seeds=2, out=run)
    names = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    assert names == {
        "config.json",
        "environment.json",
        "metrics.json",
        "results.md",
        "results.csv",
        "categories.csv",
        "accuracy.png",
        "choices/shots-3_seed-0.json",
        "choices/shots-3_seed-1.json",
        "predictions/shots-0.jsonl",
        "predictions/shots-3_seed-0.jsonl",
        "predictions/shots-3_seed-1.jsonl",
    }
    rows = read_jsonl(run / "predictions" / "shots-3_seed-1.jsonl")
    assert [row["id"] for row in rows] == [f"q{i}" for i in range(150)]
    assert rows[0]["prediction"] == "dax"
    assert rows[0]["raw"] == " dax\nand so on"
    assert rows[0]["references"] == ["dax"]
    assert rows[0]["score"] == 1.0
    chosen = json.loads((run / "choices" / "shots-3_seed-1.json").read_text())["choices"]["q0"]
    assert rows[0]["demonstrations"] == [name for _, name in chosen]
    held = json.loads((run / "metrics.json").read_text())
    assert kshot.Evaluation.from_json(held, run) == result
    assert "versions" not in json.loads((run / "config.json").read_text())["model"]
    assert json.loads((run / "environment.json").read_text())[0]["versions"]["torch"]


def test_format_only_tells_the_format_and_shows_nothing():
    class Told(Lookup):
        def answer(self, episodes, *, template=None, **options):
            assert all(e.shots == 0 for e in episodes)
            assert all(e.instruction == "Answer with one word.\n" for e in episodes)
            return ["dax" for _ in episodes]

    result = kshot.evaluate(Told(), Swatches(), shots=(), baselines="format_only")
    assert [(row.kind, row.shots) for row in result.rows] == [("format_only", 0)]
    assert result.rows[0].value == pytest.approx(1 / 3)


def test_likelihood_chooses_among_all_labels_of_the_task():
    class Watched(Lookup):
        def score(self, episodes, candidates, **options):
            assert tuple(candidates) == ("dax", "wug", "fep")
            return super().score(episodes, candidates, **options)

    result = kshot.evaluate(Watched(), Swatches(), shots=3, scoring="likelihood")
    assert result.value(3) == 1
    assert result.candidates == "all 3 labels of the task"
    assert "all 3 labels" in result.markdown()


def test_likelihood_falls_back_to_the_querys_own_choices():
    class Choices(Swatches):
        labels = ()

        def __init__(self):
            super().__init__(queries=6)
            self._queries = [
                q.with_(choices=("dax", "wug") if i % 2 else ("fep", "dax", "wug")) for i, q in enumerate(self._queries)
            ]

    result = kshot.evaluate(Lookup(), Choices(), shots=3, scoring="likelihood")
    assert result.candidates == "the 2 to 3 choices that each query itself offers"

    class Nothing(Swatches):
        labels = ()

    with pytest.raises(OptionError, match="neither labels nor"):
        kshot.evaluate(Lookup(), Nothing(), shots=3, scoring="likelihood")


def test_bad_images_are_an_error_unless_they_are_to_be_skipped(tmp_path):
    task = Swatches(bad=(5, 100))
    with pytest.raises(BadImage, match=r"broken5\.png"):
        kshot.evaluate(Lookup(), task, shots=3)
    result = kshot.evaluate(Lookup(), task, shots=3, on_bad_image="skip", out=tmp_path / "run")
    row = result.row(3)
    assert (row.value, row.queries, row.skipped) == (1, 148, 2)
    assert [left["id"] for left in row.seeds[0].skipped] == ["q5", "q100"]
    assert "broken5.png" in row.seeds[0].skipped[0]["reason"]
    report = (tmp_path / "run" / "results.md").read_text()
    assert "## Skipped (2)" in report
    assert "broken100.png" in report
    line = read_jsonl(tmp_path / "run" / "predictions" / "shots-3_seed-0.jsonl")[5]
    assert line["id"] == "q5"
    assert "not an image" in line["skipped"]
    assert "prediction" not in line


def test_a_demonstrations_bad_image_skips_the_queries_it_is_shown_with():
    result = kshot.evaluate(Lookup(), Swatches(bad_demonstration=True), shots=3, on_bad_image="skip")
    row = result.row(3)
    assert row.skipped > 0
    assert row.queries + row.skipped == 150
    assert all("demonstration 's0'" in left["reason"] for left in row.seeds[0].skipped)
    with pytest.raises(BadImage, match=r"empty\.png"):
        kshot.evaluate(Lookup(), Swatches(bad_demonstration=True), shots=3)


def test_when_nothing_can_be_answered_there_are_no_figures():
    with pytest.raises(DataError, match="no query"):
        kshot.evaluate(Lookup(), Swatches(queries=2, bad=(0, 1)), shots=3, on_bad_image="skip")


def test_seeds_choose_other_demonstrations_and_zero_shots_need_one_seed():
    cells = plan((4, 0), (0, 1, 2), baselines=("zero_shot",))
    assert [(c.shots, c.seed) for c in cells] == [(0, 0), (4, 0), (4, 1), (4, 2)]
    assert [c.name for c in cells] == ["shots-0", "shots-4_seed-0", "shots-4_seed-1", "shots-4_seed-2"]


def test_shots_per_class_are_counted_for_each_label():
    result = kshot.evaluate(Lookup(), Swatches(queries=9), shots_per_class="0,1,2")
    assert [row.shots for row in result.rows] == [0, 3, 6]
    task = kshot.load_task("digits", ways=5, episodes=3)
    assert [row.shots for row in kshot.evaluate(Constant(), task, shots_per_class=2).rows] == [10]


def test_a_limit_is_a_random_sample_that_keeps_questions_on_one_image_together():
    task = Swatches(queries=300)
    sample = _sample(task.queries, 30)
    assert len(sample) == 30
    places = [int(q.id[1:]) for q in sample]
    assert places == sorted(places)
    assert places != list(range(30))
    by_file = [q.with_(images=(f"{i // 2}.png",), id=f"p{i}") for i, q in enumerate(task.queries[:100])]
    by_name = [q.with_(metadata={"image_id": i // 2}, id=f"p{i}") for i, q in enumerate(task.queries[:100])]
    for paired in (by_file, by_name):
        chosen = [int(q.id[1:]) for q in _sample(paired, 20)]
        assert len(chosen) == 20
        assert all((i ^ 1) in chosen for i in chosen)
    assert kshot.evaluate(Lookup(), Swatches(), shots=0, limit=10).rows[0].queries == 10


def test_batches_are_steps_of_fixed_size_in_the_tasks_order():
    model = Lookup()
    kshot.evaluate(model, Swatches(queries=STEP + 5), shots=0)
    assert [len(call) for call in model.calls] == [STEP, 5]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shots": 13}, "13 shots, but the support set holds only 12"),
        ({"shots": -1}, "negative"),
        ({"shots": "1,x"}, "whole numbers"),
        ({"shots": 1, "shots_per_class": 1}, "not both"),
        ({"seeds": 0}, "seeds=0"),
        ({"seed": -1}, "seed=-1"),
        ({"limit": 0}, "limit=0"),
        ({"scoring": "guess"}, "scoring"),
        ({"style": "loud"}, "style"),
        ({"on_bad_image": "ignore"}, "on_bad_image"),
        ({"num_beams": 0}, "num_beams"),
        ({"batch_size": 0}, "batch_size"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
    ],
)
def test_impossible_options_are_refused_before_anything_is_answered(options, message, tmp_path):
    model = Lookup()
    with pytest.raises(OptionError, match=message):
        kshot.evaluate(model, Swatches(queries=6), out=tmp_path / "run", **options)
    assert model.calls == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"controls": "shufled-labels"}, "did you mean 'shuffled-labels'"),
        ({"baselines": "zeroshot"}, "did you mean 'zero_shot'"),
        ({"retriever": "balancd"}, "did you mean 'balanced'"),
    ],
)
def test_unknown_names_suggest_the_nearest(options, message):
    with pytest.raises(UnknownName, match=message):
        kshot.evaluate(Lookup(), Swatches(queries=6), **options)


def test_format_only_needs_a_short_instruction():
    class Silent(Swatches):
        template = kshot.Template("<image>{answer}")

    with pytest.raises(OptionError, match="short instruction"):
        kshot.evaluate(Lookup(), Silent(queries=3), shots=0, baselines="format_only")


class Constant(Lookup):
    """Always says the same."""

    def answer(self, episodes, **options):
        return ["always" for _ in episodes]
