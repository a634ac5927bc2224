"""CLEVR."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kshot.data.clevr import _Steps
from kshot.data.clevr_program import ANSWERS, answer_of, program_text, question_type, run_program
from kshot.data.splits import read_records
from kshot.data.task import load_task
from kshot.errors import DataError, OptionError
from kshot.metrics.base import metrics
from tests.data import answer_formats, formats
from tests.data.answer_formats import clevr_program, clevr_scene

COLORS, SHAPES = ("red", "blue"), ("cube", "sphere")


@pytest.fixture
def options(tmp_path):
    return answer_formats.clevr(tmp_path)


def edit(path, change):
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def test_the_official_files(options):
    task = load_task("clevr", **options)
    assert (len(task.queries), len(task.support)) == (10, 10)
    query = task.queries[2]
    assert (query.id, query.answer) == ("val/2", "metal")
    assert query.images[0].name.endswith("CLEVR_v1.0/images/val/CLEVR_val_000000.png")
    assert dict(query.metadata) == {
        "image_id": "CLEVR_val_000000.png",
        "type": "query",
        "function": "query_material",
        "family": 2,
    }
    kinds = [q.metadata["type"] for q in task.queries[:5]]
    assert kinds == ["exist", "count", "query", "compare integer", "compare attribute"]
    assert len(task.labels) == 28 == len(set(task.labels))
    queries = list(task.queries)
    assert metrics.get("clevr")(["2"] * 10, queries).categories["type: count"] == (1.0, 2)


REASONS = {
    "q-a": "The answer is metal.",
    "q-s": "scene -> filter_color:blue[0] -> unique[1] -> relate:right[2] -> unique[3] -> query_material[4] The answer is metal.",
    # the blue ball is at (6, 4), right of it is the ball at (10, 6); of 12 x 8 pixels, padded by 2 above
    "q-bs": "scene -> filter_color:blue[0] -> unique[1][0.500,0.500] -> relate:right[2][0.833,0.667] -> unique[3][0.833,0.667] -> "
    "query_material[4] The answer is metal.",
}


@pytest.mark.parametrize("version", REASONS)
def test_upstreams_answers(options, version):
    task = load_task("clevr", **options, style="upstream", version=version)
    assert task.queries[2].answer == REASONS[version]
    assert task.queries[2].images[0].load().size == ((12, 12) if version == "q-bs" else (12, 8))
    assert task.support[2].answer == REASONS[version]
    assert len(task.labels) == (28 if version == "q-a" else 0)
    for query in task.queries:
        assert task.parse(query.answer) == query.references[0]


def test_objects_are_pointed_out_where_upstream_does_so(options, tmp_path):
    def nothing(data):
        program = clevr_program("scene", "filter_color:green[0]", "exist[1]")
        data["questions"][0].update(program=program, answer="no")

    edit(tmp_path / "CLEVR_v1.0" / "questions" / "CLEVR_val_questions.json", nothing)
    first, second = load_task("clevr", **options, style="upstream", version="q-bs").queries[:2]
    assert first.answer == "scene -> filter_color:green[0] Found no object. -> exist[1] The answer is no."
    assert second.answer == "scene -> filter_shape:sphere[0][0.833,0.667;0.500,0.500] -> count[1] The answer is 2."


def test_the_json_lines_of_upstream(options, tmp_path):
    program = clevr_program("scene", "filter_color:blue[0]", "unique[1]", "query_shape[2]")
    steps = [step | {"ans": ans} for step, ans in zip(program, ([0, 1, 2], [2], 2, "sphere"), strict=True)]
    row = {"image_filename": "CLEVR_val_000000.png", "image_index": 1, "question": "Which shape?", "answer": "sphere"}
    file = formats.write_lines(tmp_path / "CLEVR_val_questions_with_ans.jsonl", [row | {"program": steps}])
    scenes = formats.write_lines(tmp_path / "scenes.jsonl", [{"objects": []}, clevr_scene(1, "val")])
    images = tmp_path / "CLEVR_v1.0" / "images"
    task = load_task("clevr", questions=file, images=images, scenes=scenes, style="upstream", version="q-bs")
    assert task.queries[0].answer == (
        "scene -> filter_color:blue[0] -> unique[1][0.500,0.500] -> query_shape[2] The answer is sphere."
    )


def test_the_test_split_has_neither_answers_nor_programs(options, tmp_path):
    row = {"image_index": 0, "image_filename": "CLEVR_test_000000.png", "question_index": 0, "question": "What?"}
    formats.write_json(options["root"] / "questions" / "CLEVR_test_questions.json", {"info": {}, "questions": [row]})
    task = load_task("clevr", **options, split="test")
    assert (task.queries[0].answer, dict(task.queries[0].metadata)) == (None, {"image_id": "CLEVR_test_000000.png"})
    task.write_results({"test/0": "cube"}, tmp_path / "out.txt")
    assert (tmp_path / "out.txt").read_text() == "cube\n"
    with pytest.raises(DataError, match="1 questions have no prediction, the first is 'test/0'"):
        task.write_results({}, tmp_path / "out.txt")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda q: q[1].pop("image_filename"), ":2 field 'image_filename': field is missing"),
        (lambda q: q[1].update(question_index=0), "'0' occurs twice, in items 1 and 2"),
        (lambda q: q[1].pop("program"), ":2 field 'program': field is missing"),
        (lambda q: q[1].update(program=[]), "the program has no steps"),
        (lambda q: q[1].update(program=[{"function": "scene"}]), "a step needs 'function' and 'inputs'"),
        (lambda q: q[1].update(image_index=7), "there is no scene of image 7"),
    ],
)
def test_files_that_are_wrong(options, change, problem):
    edit(options["root"] / "questions" / "CLEVR_val_questions.json", lambda data: change(data["questions"]))
    with pytest.raises(DataError, match=problem):
        load_task("clevr", **options, style="upstream", version="q-bs")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"answer": "3"}, ":2 field 'program': the program gives '2' in its scene, the answer is '3'"),
        ({"program": clevr_program("scene", "unique[0]", "query_size[1]")}, "unique .3 objects"),
        ({"program": clevr_program("scene", "filter_mood:glad[0]", "count[1]")}, "filter_mood"),
        ({"program": clevr_program("scene", "count[4]")}, "which are not before it"),
    ],
)
def test_programs_that_do_not_fit_their_scene(options, change, problem):
    file = options["root"] / "questions" / "CLEVR_val_questions.json"
    edit(file, lambda data: data["questions"][1].update(change))
    task = load_task("clevr", **options, style="upstream", version="q-bs")
    with pytest.raises(DataError, match=problem):
        _ = task.queries[1]


def test_what_is_missing_is_named(options):
    (options["root"] / "scenes" / "CLEVR_val_scenes.json").unlink()
    with pytest.raises(DataError, match=r"there is no CLEVR_val_scenes\.json"):
        load_task("clevr", **options, style="upstream", version="q-bs")
    with pytest.raises(OptionError, match="give style='upstream' with it"):
        load_task("clevr", **options, version="q-s")


def test_programs_give_the_answers_of_the_fixture():
    scene = clevr_scene(0, "val")
    for _, answer, steps in answer_formats.CLEVR_QUESTIONS:
        program = clevr_program(*steps)
        assert answer_of(run_program(program, scene)[-1]) == answer
        assert answer in ANSWERS
        assert program_text(program) == " -> ".join(steps)


solids = st.lists(st.tuples(st.sampled_from(COLORS), st.sampled_from(SHAPES)), min_size=1, max_size=6)


@given(solids, st.sampled_from(COLORS), st.sampled_from(SHAPES))
def test_sets_of_objects_are_those_found_by_looking(things, color, shape):
    scene = {"objects": [{"color": c, "shape": s} for c, s in things], "relationships": {}}
    colored = {n for n, (c, _) in enumerate(things) if c == color}
    shaped = {n for n, (_, s) in enumerate(things) if s == shape}
    either = ("scene", f"filter_color:{color}[0]", "scene", f"filter_shape:{shape}[2]")
    for name, expected in (("union", colored | shaped), ("intersect", colored & shaped)):
        program = clevr_program(*either, f"{name}[1,3]", "count[4]")
        values = run_program(program, scene)
        assert values[4] == sorted(expected)
        assert answer_of(values[5]) == str(len(expected))
        assert question_type(program) == "count"
    compared = clevr_program(*either, "count[1]", "count[3]", "less_than[4,5]")
    assert answer_of(run_program(compared, scene)[-1]) == ("yes" if len(colored) < len(shaped) else "no")
    if len(colored) == 1:
        (own,) = colored
        same = run_program(clevr_program("scene", f"filter_color:{color}[0]", "unique[1]", "same_shape[2]"), scene)[-1]
        assert same == [n for n, (_, s) in enumerate(things) if s == things[own][1] and n != own]


def test_equal_steps_are_kept_once(options):
    task = load_task("clevr", **options)
    file = options["root"] / "questions" / "CLEVR_val_questions.json"
    steps = _Steps()
    records = [row for _, row in read_records(file, "questions", object_hook=steps.share)]
    assert [row["program"] for row in records] == [row["program"] for row in json.loads(file.read_text())["questions"]]
    first, second = (row["program"][0] for row in records[:2])
    assert first is second
    told = {"function": "scene", "inputs": [], "value_inputs": [], "ans": [0]}
    assert steps.share(told) is told
    assert steps.share({"inputs": [[]], "value_inputs": [[1]], "function": "x"})["function"] == "x"
    assert len(task.queries) == len(records)
