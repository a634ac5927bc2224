"""Link-context evaluation on a toy of sides: controls, gaps, the published scoring, and the published form of predictions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import kshot
from kshot.data.imagenet import ImageNet100
from kshot.data.isekai import Isekai
from kshot.episode import Episode, Example
from kshot.errors import DataError, OptionError, UnknownName
from kshot.evaluation.controls import SETS, controls, expand
from kshot.evaluation.gaps import interval_of, to_control
from kshot.evaluation.published import opening_of, target_of
from kshot.evaluation.runs import read_jsonl
from kshot.metrics.link import upstream_correct, upstream_target
from kshot.metrics.stats import bootstrap_interval
from kshot.prompt import render_plain
from tests.data.concept_files import write_test100
from tests.evaluation.toys import Lookup, colour_of, swatch

LINK = SETS["link"]
PICTURES = 16


class Linker(Lookup):
    """A perfect learner that answers in the published sentence; where it sees nothing it says so."""

    def _one(self, episode: Episode) -> str:
        seen = [d for d in episode.demonstrations if d.images]
        return super()._one(Episode(tuple(seen), episode.query))

    def answer(self, episodes, *, template=None, **options):
        self.calls.append([episode.query.id for episode in episodes])
        return [f'{self._one(e)}" in the image' for e in episodes]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Two groups of folders: red against green, green against blue."""
    folder = tmp_path_factory.mktemp("isekai")
    for number, (one, other) in enumerate((("red", "green"), ("green", "blue"))):
        for side, colour in (("pos", one), ("neg", other)):
            place = folder / f"group {number}" / f"{side}-{number}{colour}"
            place.mkdir(parents=True)
            for i in range(PICTURES):
                swatch(colour, 1000 * number + i + 500 * (side == "pos")).save(place / f"{i:02d}.png")
    return folder


@pytest.fixture(scope="module")
def task(root) -> Isekai:
    return Isekai(root)


@pytest.fixture(scope="module")
def result(task, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "link"
    return kshot.evaluate(Linker(), task, shots="0,2,4", out=out, prediction_form="lcl")


def test_controls_stand_beside_every_score_of_a_link_task(result, task):
    assert {row.kind for row in result.rows} == {"demonstrations", *LINK}
    for kind in LINK:
        assert {row.shots for row in result.rows if row.kind == kind} == {2, 4}
    assert result.value(4) == 1
    assert result.value(4, "blank-support") == result.value(4, "text-only") == 0  # it says "?"
    assert 0.25 < result.value(2, "shuffled-labels") < 0.75
    assert result.value(4, "swapped-labels") == 0
    details = result.row(4, "swapped-labels").seeds[0].details
    assert (details["follows"], details["other"]) == (1, 1)
    assert "follows" not in result.row(4).seeds[0].details
    for off in ("none", ()):
        alone = kshot.evaluate(Linker(), task, shots=2, limit=4, controls=off)
        assert {row.kind for row in alone.rows} == {"demonstrations"}
    chosen = kshot.evaluate(Linker(), task, shots=2, limit=4, controls="link,no-query-image")
    assert {row.kind for row in chosen.rows} == {"demonstrations", *LINK, "no-query-image"}


def test_without_demonstrations_the_query_stands_alone(task):
    asked = []

    class Noted(Linker):
        def answer(self, episodes, *, template=None, **options):
            asked.extend(render_plain(episode, template).text() for episode in episodes)
            return super().answer(episodes, template=template, **options)

    kshot.evaluate(Noted(), task, shots=0, limit=1)
    kshot.evaluate(Noted(), task, shots=2, limit=1, controls="none")
    alone = (
        '[FINAL QUESTION]: USER: Based on the previous examples, what is in the image <image>? ASSISTANT: there is "'
    )
    assert asked[0] == alone
    assert asked[1].startswith("You should find the causal relationship")
    assert asked[1].endswith(alone)


def test_plain_tasks_have_no_controls_of_their_own():
    task = kshot.load_task("glyphs", episodes=3)
    assert (task.controls, task.further_metrics) == ((), ())
    link = kshot.load_task("glyphs", episodes=3, style="link", ways=2)
    assert (link.controls, link.further_metrics) == (("link",), ("two_name_upstream",))
    assert kshot.load_task("glyphs", episodes=3, style="link", ways=3).further_metrics == ()


def test_names_of_sets():
    assert expand(["link", "no-query-image", "text-only"]) == (*LINK, "no-query-image")
    assert expand(["none"]) == expand([]) == ()
    assert set(LINK) <= set(controls.names())
    with pytest.raises(UnknownName, match="did you mean"):
        kshot.evaluate(Linker(), "glyphs", controls="swaped-labels", limit=2)


def test_gaps_are_paired_differences(result):
    for shots in (2, 4):
        rows = {row.kind: row for row in result.rows if row.shots == shots}
        for kind in LINK:
            gap = result.gap(shots, kind)
            assert gap.value == pytest.approx(rows["demonstrations"].value - rows[kind].value)
            assert gap.interval[0] <= gap.value <= gap.interval[1]
        chance = result.gap(shots, "chance")
        assert chance.value == rows["demonstrations"].value - 0.5
        assert chance.interval == (0.5, 0.5)
    assert result.gap(0, "chance").value == -0.5
    with pytest.raises(OptionError, match="no gap to 'text-only' with 0 shots"):
        result.gap(0, "text-only")
    assert kshot.Evaluation.from_json(json.loads(json.dumps(result.to_json())), result.folder) == result


def test_the_interval_of_a_gap_is_that_of_the_differences():
    # 200 queries of very different hardness; the control loses the same 20 for both of two seeds.
    intact = {seed: {(f"q{i}",): float(i % 2) for i in range(200)} for seed in (0, 1)}
    changed = {seed: {key: v * (i >= 40) for i, (key, v) in enumerate(intact[seed].items())} for seed in (0, 1)}
    gap = to_control(4, "blank-support", intact, changed)
    assert gap.value == pytest.approx(0.1)
    differences = [float(i % 2) * (i < 40) for i in range(200)]
    assert gap.interval == pytest.approx(bootstrap_interval(sorted(differences)), abs=0.015)
    low, high = interval_of([intact[0]], [0.5])
    assert gap.interval[1] - gap.interval[0] < 0.7 * (high - low)
    del changed[1]
    for key in list(changed[0])[40:]:
        del changed[0][key]  # skipped under the control
    assert to_control(4, "x", intact, changed).value == pytest.approx(0.5)
    assert to_control(4, "x", intact, {0: {}}) is None


def test_reports_show_gaps_further_metrics_and_groups(result):
    text = (result.folder / "results.md").read_text()
    assert "| 4 | 1.000 | text-only | 0.000 | 1.000 | 1.000 .. 1.000 |" in text
    assert "| 4 | 1.000 | chance | 0.500 | 0.500 | 0.500 .. 0.500 |" in text
    assert "| two_name_upstream | intact | 4 | 1.000 | 1.000 .. 1.000 |" in text
    assert "| group: group 0 | 32 |" in text
    assert "95 % of it" in str(result)
    row = result.row(2, "shuffled-labels")
    value, count = row.categories()["group: group 1"]
    low, high = row.category_intervals["group: group 1"]
    assert count == 2 * PICTURES
    assert low < value < high
    lines = (result.folder / "results.csv").read_text().splitlines()
    assert lines[0].endswith("chance,gap_to,gap,gap_low,gap_high")
    assert "demonstrations,1.0,1.0,1.0" in next(line for line in lines if ",text-only,4," in line)


def test_both_scorings_are_in_the_same_run(result, task):
    held = json.loads((result.folder / "metrics.json").read_text())
    rows = {(row["kind"], row["shots"]): row for row in held["rows"]}
    assert rows["demonstrations", 4]["value"] == rows["demonstrations", 4]["further"]["two_name_upstream"]["value"] == 1
    assert rows["text-only", 4]["further"]["two_name_upstream"] == {"value": 0, "low": 0, "high": 0}
    assert held["gaps"]
    row = result.row(2, "shuffled-labels")
    for name in ("macro", "macro_groups"):
        figure = row.further[name]
        assert figure["value"] == pytest.approx(row.seeds[0].details[name])
        assert figure["low"] < figure["value"] < figure["high"]

    class Loud(Linker):
        def answer(self, episodes, **options):
            return [text.upper() for text in super().answer(episodes, **options)]

    loud = kshot.evaluate(Loud(), task, shots=2, limit=20, controls="none")
    assert loud.value(2) == 1
    assert loud.row(2).further["two_name_upstream"]["value"] == 0  # capitals
    likely = kshot.evaluate(Loud(), task, shots=2, limit=20, controls="none", scoring="likelihood")
    assert likely.value(2) == 1
    assert "two_name_upstream" not in likely.row(2).further  # nothing was said that could be judged


def test_the_published_form_of_predictions(result, task):
    file = result.folder / "predictions" / "shots-4_seed-0_extra_prediction.jsonl"
    content = file.read_text()
    lines = read_jsonl(file)
    assert [set(line) for line in lines] == [{"pred", "target"}] * len(task.queries)
    queries = list(task.queries)
    assert [upstream_target(line["target"]) for line in lines] == [q.text_answer for q in queries]
    first = queries[0]
    assert lines[0] == {
        "pred": f'there is "{first.text_answer}" in the image',
        "target": "[FINAL QUESTION]: USER: Based on the previous examples, what is in the image? "
        f'ASSISTANT: there is "{first.text_answer}" in the image.',
    }
    for kind in ("", "_shuffled-labels"):
        found = read_jsonl(file.with_name(f"shots-4_seed-0{kind}_extra_prediction.jsonl"))
        correct = [
            upstream_correct(
                line["pred"], pos := upstream_target(line["target"]), next(n for n in q.choices if n != pos)
            )
            for line, q in zip(found, queries, strict=True)
        ]
        row = result.row(4, kind[1:] or "demonstrations")
        assert sum(correct) / len(correct) == row.further["two_name_upstream"]["value"]
    model = Linker()
    kshot.evaluate(model, task, shots="0,2,4", out=result.folder, prediction_form="lcl")
    assert model.calls == []
    assert file.read_text() == content  # written anew, never appended to
    with pytest.raises(OptionError, match="prediction_form='upstream': must be one of kshot, lcl"):
        kshot.evaluate(model, task, shots=2, prediction_form="upstream")


def test_the_form_of_templates_that_write_no_assistant():
    template = kshot.Template("<image>Question:{question} Short answer:{answer}.")
    assert target_of(Example((), "What is it?", "dax"), template) == "USER: What is it? ASSISTANT: dax"
    assert opening_of(template) == ""


def test_swapped_labels_of_more_than_two_classes_move_on_by_one():
    names = ("a", "b", "c")
    shown = tuple(Example((), "?", name, choices=names) for name in names)
    query = Example((), "?", "c", choices=names)
    changed = controls.get("swapped-labels").change(Episode(shown, query), 0)
    assert [d.answer for d in changed.demonstrations] == ["b", "c", "a"]
    assert [d.references for d in changed.demonstrations] == [("b",), ("c",), ("a",)]
    assert controls.get("swapped-labels").followed(query) == ("a",)
    free = Episode(tuple(d.with_(choices=()) for d in shown[:2]), query.with_(choices=()))
    assert [d.answer for d in controls.get("swapped-labels").change(free, 0).demonstrations] == ["b", "a"]
    assert controls.get("swapped-labels").followed(free.query) is None


def test_blank_all_leaves_nothing_to_see(task):
    episode = Episode(tuple(task.pool(task.queries[0])[:2]), task.queries[0])
    changed = controls.get("blank-all").change(episode, 0)
    assert {colour_of(picture) for picture in changed.pictures} == {"grey"}
    assert [d.answer for d in changed.demonstrations] == [d.answer for d in episode.demonstrations]


def test_zero_shot_with_all_names_stands_in_the_same_run(tmp_path):
    file = write_test100(tmp_path, classes=4)
    asked = []

    class Reader(Linker):
        def _one(self, episode):
            return episode.query.text_answer  # two fixture pictures may look alike; names are all that counts here

        def answer(self, episodes, *, template=None, **options):
            asked.extend((len(e.demonstrations), template.query_text, e.query) for e in episodes)
            return super().answer(episodes, template=template, **options)

    task = ImageNet100(tmp_path, file, episodes_per_class=2, zero_shot="names")
    result = kshot.evaluate(Reader(), task, shots="0,2", controls="none", out=tmp_path / "run")
    query = next(query for shots, _, query in asked if not shots)
    assert query.question == (
        "Here are 4 class names: whippet, scottish deerhound, airedale, papillon. Please answer which class this image"
    )
    assert {text for shots, text, _ in asked if not shots} == {"USER: {question} <image> belongs to? ASSISTANT:"}
    assert [row.chance for row in result.rows] == [0.25, 0.5]
    assert result.chance == 0.5
    assert result.gap(0, "chance").value == pytest.approx(result.value(0) - 0.25)
    zero = result.row(0)
    assert set(zero.seeds[0].details) >= {"unknown", "known", "macro"}
    assert set(zero.further) == {"macro", "macro_groups"}
    assert set(zero.categories()) >= {"20 whippet"}
    assert json.loads((tmp_path / "run" / "config.json").read_text())["task"]["zero_shot"] == "names"
    likely = kshot.evaluate(Reader(), task, shots="0", scoring="likelihood")
    assert likely.value(0) == 1
    with pytest.raises(OptionError, match="cannot go with names='invented'"):
        ImageNet100(tmp_path, file, episodes_per_class=2, zero_shot="names", names="invented")
    with pytest.raises(OptionError, match="zero_shot='paper': must be one of query, names"):
        ImageNet100(tmp_path, file, episodes_per_class=2, zero_shot="paper")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[2]["class_name"] = "Whippet"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match="names that several classes bear: whippet"):
        ImageNet100(tmp_path, file, episodes_per_class=2, zero_shot="names")
