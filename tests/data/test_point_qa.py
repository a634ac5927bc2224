"""PointQA and Visual7W's pointing questions."""

from __future__ import annotations

import json

import pytest

from kshot.data.task import load_task
from kshot.episode import Episode
from kshot.errors import DataError, OptionError
from kshot.metrics import metrics
from kshot.prompt import render_plain
from tests.data import box_formats
from tests.data.formats import write_lines

# 12 x 8 pixels stand 2 pixels below the top of a square of 12.
BOXES = (
    "[0.000,0.167,0.500,0.500]",
    "[0.500,0.500,1.000,0.833]",
    "[0.250,0.333,0.750,0.667]",
    "[0.125,0.208,0.354,0.812]",
)


def edit(path, change):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    change(rows)
    write_lines(path, rows)


def test_local_questions_show_a_point_or_a_box(tmp_path):
    options = box_formats.pointqa_local(tmp_path)
    point, box = (load_task("pointqa_local", **options, version=version) for version in "pb")
    assert point.queries[0].question == "What color is this shirt?[0.250,0.333]"
    assert box.queries[0].question == f"What color is this shirt?{BOXES[0]}"
    assert (point.queries[1].answer, point.queries[1].references) == ("dark blue", ("dark blue",))
    assert load_task("pointqa_local", **options).queries[0].question == point.queries[0].question  # upstream's default
    assert point.queries[0].images[0].load().size == (12, 12)
    text = render_plain(Episode((point.support[0],), point.queries[0]), point.template).text()
    question = "<image>Question:What color is this shirt?[0.250,0.333] Short answer:"
    assert text == f"{question}red.\n\n{question}"
    assert point.parse(" dark blue. Question: and") == "dark blue"


def test_upstreams_statement(tmp_path):
    task = load_task("pointqa_local", **box_formats.pointqa_local(tmp_path), style="upstream")
    assert task.queries[1].answer == "The answer is dark blue ."
    assert task.queries[1].references == ("dark blue",)
    text = render_plain(Episode((task.support[0],), task.queries[0]), task.template).text()
    assert "USER: <image> What color is this shirt?[0.250,0.333] ASSISTANT: The answer is red . USER:" in text
    said = task.parse("The answer is dark blue . USER: more")
    assert said == "dark blue"
    assert metrics.get(task.metric)([said], [task.queries[1]]).value == 1


def test_point_or_box_is_drawn_for_each_question_and_stays(tmp_path):
    rows = [
        {"file_path": "VG_100K/0.jpg", "question": f"{n}?", "answer": "x", "bbox": [0, 0, 6, 4], "point": [3, 2]}
        for n in range(400)
    ]
    box_formats.vg_picture(tmp_path, 0)
    write_lines(tmp_path / "pointQA_local_val.jsonl", rows)

    def shown(**options) -> list[str]:
        task = load_task("pointqa_local", root=tmp_path, version="bp", **options)
        drawn = [q.metadata["about"] for q in task.queries]
        assert all(
            q.question.endswith({"p": "[0.250,0.333]", "b": BOXES[0]}[a])
            for q, a in zip(task.queries, drawn, strict=True)
        )
        return drawn

    assert shown() == shown()
    assert shown() != shown(seed=1)
    assert 150 < shown().count("p") < 250
    assert 330 < shown(point_share=0.9).count("p") < 390
    assert set(shown(point_share=0)) == {"b"}
    with pytest.raises(OptionError, match="point_share=2: must be between 0 and 1"):
        shown(point_share=2)


@pytest.mark.parametrize(
    ("version", "question"),
    [
        ("oq-p", "How many zebras are there?[0.292,0.333]"),
        ("sq-p", "How many animals are there?[0.292,0.333]"),
        ("gq-p", "How many of these are there?[0.292,0.333]"),
        ("oq-b", f"How many zebras are there?{BOXES[0]}"),
        ("sq-b", f"How many animals are there?{BOXES[0]}"),
        ("gq-b", f"How many of these are there?{BOXES[0]}"),
    ],
)
def test_look_twice_questions(tmp_path, version, question):
    task = load_task("pointqa_twice", **box_formats.pointqa_twice(tmp_path), version=version)
    assert (task.queries[0].question, task.queries[0].answer) == (question, "1")
    assert [e.answer for e in task.pool(task.queries[0])] == ["3", "4", "5", "6"]  # the first two show the same picture


def test_unknown_versions(tmp_path):
    for name, write, version in (
        ("pointqa_local", box_formats.pointqa_local, "pb"),
        ("pointqa_twice", box_formats.pointqa_twice, "gq"),
        ("visual7w", box_formats.visual7w, "bp"),
    ):
        with pytest.raises(OptionError, match=f"version='{version}': must be one of"):
            load_task(name, **write(tmp_path / name), version=version)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda rows: rows[1].pop("file_path"), "field 'file_path': field is missing"),
        (lambda rows: rows[1].pop("question"), "field 'question': field is missing"),
        (lambda rows: rows[1].update(question=" "), "field 'question': the text is empty"),
        (lambda rows: rows[1].pop("answer"), "field 'answer': field is missing"),
        (lambda rows: rows[1].update(answer=["x"]), "field 'answer': a text or a number"),
        (lambda rows: rows[1].pop("bbox"), "field 'bbox': field is missing"),
        (lambda rows: rows[1].update(bbox=[6, 0, 0, 4]), "field 'bbox': the box's corners"),
        (lambda rows: rows[1].update(point=[3]), "field 'point': 2 numbers are expected"),
    ],
)
def test_files_that_do_not_fit(tmp_path, change, problem):
    options = box_formats.pointqa_local(tmp_path)
    edit(tmp_path / "pointQA_local_val.jsonl", change)
    with pytest.raises(DataError, match=rf"pointQA_local_val\.jsonl:2 {problem}"):
        load_task("pointqa_local", **options)


def test_a_point_outside_the_picture_shows_when_it_is_looked_at(tmp_path):
    options = box_formats.pointqa_local(tmp_path)
    edit(tmp_path / "pointQA_local_val.jsonl", lambda rows: rows[1].update(point=[30, 2]))
    task = load_task("pointqa_local", **options)
    with pytest.raises(DataError, match=r"val\.jsonl:2 field 'point': \[30.0, 2.0\] is outside the picture of 12 x 8"):
        _ = task.queries[1]


def test_pointing_lists_the_candidates_in_an_order_of_its_own(tmp_path):
    options = box_formats.visual7w(tmp_path)
    plain = load_task("visual7w", **options, shuffle=False)
    assert plain.queries[1].question == (
        f"Which animal is in the middle? Candidates: {' '.join(BOXES)} answer in box format."
    )
    assert (plain.queries[1].answer, plain.queries[1].metadata["right"]) == (BOXES[1], 1)
    assert plain.queries[1].choices == BOXES
    task, again, other = (load_task("visual7w", **options, seed=seed) for seed in (0, 0, 5))
    assert [q.question for q in task.queries] == [q.question for q in again.queries]
    assert [q.question for q in task.queries] != [q.question for q in other.queries]
    for place, query in enumerate(task.queries):
        assert query.answer == BOXES[place]
        assert sorted(query.choices) == sorted(BOXES)
        assert query.choices[query.metadata["right"]] == query.answer
        assert f"Candidates: {' '.join(query.choices)} answer" in query.question
    assert len({q.choices for q in task.queries}) > 1


def test_pointing_by_a_point(tmp_path):
    task = load_task("visual7w", **box_formats.visual7w(tmp_path), version="p", shuffle=False)
    query = task.queries[0]
    assert query.question.endswith(" answer in point format.")
    assert (query.answer, query.choices) == ("[0.250,0.250]", ())
    result = metrics.get(task.metric)([q.answer for q in task.queries], task.queries)
    assert (result.value, result.details["exact"]) == (1, 1)


def test_pointing_as_upstream_states_it(tmp_path):
    task = load_task("visual7w", **box_formats.visual7w(tmp_path), style="upstream")
    query = task.queries[0]
    assert query.answer == f"The answer is {BOXES[0]} ."
    assert query.answer in query.choices
    assert task.parse(f"The answer is {BOXES[0]} . USER:") == BOXES[0]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda rows: rows[1].update(answer=[0, 0, 1, 1]), "field 'answer': the answer is none of the candidates"),
        (lambda rows: rows[1].update(candidates=[]), "field 'answer': the answer is none of the candidates"),
        (lambda rows: rows[1].pop("candidates"), "field 'candidates': field is missing"),
        (lambda rows: rows[1]["candidates"].append([4, 4, 0, 0]), "field 'candidates': the box's corners"),
        (lambda rows: rows[1].pop("answer"), "field 'answer': field is missing"),
    ],
)
def test_pointing_files_that_do_not_fit(tmp_path, change, problem):
    options = box_formats.visual7w(tmp_path)
    edit(tmp_path / "v7w_pointing_val.jsonl", change)
    with pytest.raises(DataError, match=rf"v7w_pointing_val\.jsonl:2 {problem}"):
        load_task("visual7w", **options)


def test_a_point_is_needed_only_where_it_is_the_answer(tmp_path):
    options = box_formats.visual7w(tmp_path)
    edit(tmp_path / "v7w_pointing_val.jsonl", lambda rows: rows[1].pop("point"))
    assert len(load_task("visual7w", **options).queries) == 4
    with pytest.raises(DataError, match=":2 field 'point': field is missing"):
        load_task("visual7w", **options, version="p")


def test_the_release_of_visual7w(tmp_path):
    options = box_formats.visual7w_release(tmp_path)
    task = load_task("visual7w", **options, check_images=True)
    assert [q.id for q in task.queries] == ["900", "901", "902", "903"]
    assert [q.id for q in task.support] == ["904", "905"]
    assert [q.answer for q in task.queries] == list(BOXES)
    assert all(sorted(q.choices) == sorted(BOXES) for q in task.queries)
    # In the order of their ids (3, 5, 7, 9) the answer's place says nothing: the release itself names the answer first.
    in_order = load_task("visual7w", **options, shuffle=False)
    assert [q.metadata["right"] for q in in_order.queries] == [2, 0, 3, 1]
    assert in_order.queries[0].choices == (BOXES[1], BOXES[3], BOXES[0], BOXES[2])
    point = load_task("visual7w", **options, version="p").queries[0]
    assert point.answer == "[0.250,0.333]"  # the middle of [0, 0, 6, 4], two pixels lower
    file = tmp_path / "dataset_v7w_pointing.json"
    given = load_task("visual7w", questions=file, support_questions=file, images=tmp_path / "images")
    assert [q.id for q in given.support] == ["904", "905"]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda d: d["boxes"].pop(1), r":1 field 'qa_pairs': question 900: box 3 is not under 'boxes'"),
        (lambda d: d["boxes"].append(d["boxes"][0]), r"field 'box_id': 7 occurs twice"),
        (lambda d: d["boxes"][0].pop("width"), r"field 'width': field is missing"),
        (lambda d: d["boxes"][0].update(width=-2), r"field 'box 7': the box has a negative width or height"),
        (lambda d: d["images"][1]["qa_pairs"][0].pop("answer"), r":2 field 'answer': field is missing"),
        (lambda d: d["images"][1]["qa_pairs"][0].update(qa_id=900), r":2 field 'qa_id': '900' occurs twice"),
        (lambda d: [i.update(split="train") for i in d["images"]], "no questions of the split 'val'"),
        (lambda d: d.pop("images"), "field 'images': field is missing"),
    ],
)
def test_a_release_that_does_not_fit(tmp_path, change, problem):
    options = box_formats.visual7w_release(tmp_path)
    file = tmp_path / "dataset_v7w_pointing.json"
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))
    with pytest.raises(DataError, match=rf"dataset_v7w_pointing\.json.*{problem}"):
        load_task("visual7w", **options)
