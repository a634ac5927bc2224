"""GQA."""

from __future__ import annotations

import json

import pytest

from kshot.data.task import load_task
from kshot.errors import DataError, OptionError
from kshot.metrics.base import metrics
from tests.data import answer_formats, formats
from tests.data.answer_formats import gqa_question, gqa_scene


@pytest.fixture
def options(tmp_path):
    return answer_formats.gqa(tmp_path)


def edit(path, change):
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def test_the_official_files(options, tmp_path):
    task = load_task("gqa", **options)
    assert (len(task.queries), len(task.support)) == (6, 6)
    query = task.queries[0]
    assert (query.id, query.question, query.answer) == ("030", "Is there a red apple on the table?", "no")
    assert query.images[0].name == str(tmp_path / "images" / "n30.jpg")
    assert dict(query.metadata) == {
        "image_id": "n30",
        "structural": "verify",
        "semantic": "rel",
        "detailed": "existAttrRel",
        "steps": 3,  # "exist" is no step
        "words": 8,
        "balanced": True,
    }
    assert task.queries[1].metadata["group"] == "color"
    assert task.support[0].images[0].name.endswith("n10.jpg")
    files = task.describe()["files"]
    assert files["support"]["name"] == "train_balanced_questions.json"


def test_all_questions_and_the_chunks_of_the_training_split(options, tmp_path):
    folder = tmp_path / "questions" / "train_all_questions"
    (tmp_path / "questions" / "train_all_questions.json").unlink()
    for chunk in (0, 1, 10, 2):
        formats.write_json(folder / f"train_all_questions_{chunk}.json", {f"c{chunk}": gqa_question(10, "n10")})
    task = load_task("gqa", **options, balanced=False, split="val")
    assert [e.id for e in task.support] == ["c0", "c1", "c2", "c10"]
    assert task.describe()["files"]["support 2"]["name"] == "train_all_questions_1.json"
    formats.write_json(folder / "train_all_questions_3.json", {"c0": gqa_question(10, "n10")})
    with pytest.raises(DataError, match="'c0' occurs twice"):
        _ = load_task("gqa", **options, balanced=False, split="val").support


VERSIONS = {
    "q-a": "The answer is no.",
    "q-s": "select: table->relate: on,subject,apple[0]->filter color: red [1]->exist: ? [2]. The answer is no.",
    "q-l": "there is an apple on tables but it is green. The answer is no.",
    "q-bs": "select: table[0.000,0.500,1.000,0.833]->relate: on,subject,apple[0.250,0.333,0.500,0.583][0]"
    "->filter color: red [1]->exist: ? [2]. The answer is no.",
    # words 4 and 5 to 6 of the full answer, "No," counted
    "q-bl": "there is an apple[0.250,0.333,0.500,0.583] on "
    "tables[0.000,0.500,1.000,0.833;0.250,0.333,0.500,0.583] but it is green. The answer is no.",
}


@pytest.mark.parametrize("version", VERSIONS)
def test_upstreams_answers(options, version):
    task = load_task("gqa", **options, split="val", style="upstream", version=version)
    query = task.queries[0]
    assert query.answer == VERSIONS[version]
    assert query.references == ("no",)
    assert task.parse(query.answer + " USER: and") == "no"
    assert query.question == "Is there a red apple on the table?"
    # 12 x 8 pixels; boxes refer to the padded square
    assert query.images[0].load().size == ((12, 12) if "b" in version else (12, 8))
    queries = list(task.queries)
    assert metrics.get("gqa")([q.answer for q in queries], queries).value == 1
    assert task.describe()["options"]["version"] == version


def test_questions_with_boxes(options):
    boxed = load_task("gqa", **options, split="val", style="upstream", version="qb-a")
    assert boxed.queries[0].question == (
        "Is there a red apple[0.250,0.333,0.500,0.583] on the table?[0.000,0.500,1.000,0.833]"
    )
    mixed = [
        load_task("gqa", **options, split="val", style="upstream", version="qbp-a", seed=seed).queries
        for seed in range(4)
    ]
    drawn = [["[" in query.question for query in queries] for queries in mixed]
    assert 0 < sum(map(sum, drawn)) < 24
    assert any(drawn[0] != other for other in drawn[1:])
    again = load_task("gqa", **options, split="val", style="upstream", version="qbp-a", seed=0).queries
    assert [q.question for q in again] == [q.question for q in mixed[0]]


def test_the_json_lines_of_upstream_with_their_reasons(options, tmp_path):
    cot = {
        "value": "The <ph_st>apple<ph_ed> on the <ph_st>table<ph_ed> is green. So the answer is no.",
        "boxes": [[3, 2, 6, 5], [0, 4, 12, 8]],
        "seq": [[0], [1, 0]],
    }
    file = formats.write_lines(
        tmp_path / "gqa.jsonl", [gqa_question(30, "n30", cot=cot), gqa_question(31, "n31", cot=cot)]
    )
    given = {"questions": file, "images": tmp_path / "images", "style": "upstream"}
    task = load_task("gqa", **given, version="q-c")
    assert [q.id for q in task.queries] == ["gqa.jsonl:1", "gqa.jsonl:2"]
    assert task.queries[0].answer == "The apple on the table is green. So the answer is no."
    assert task.parse(task.queries[0].answer) == "no"
    boxed = load_task("gqa", **given, version="q-bc").queries[0]
    assert boxed.answer == (
        "The apple[0.250,0.333,0.500,0.583] on the table[0.000,0.500,1.000,0.833;0.250,0.333,0.500,0.583] is green. "
        "So the answer is no."
    )
    scenes = formats.write_lines(tmp_path / "scenes.jsonl", [gqa_scene(31), gqa_scene(30)])
    index = formats.write_json(tmp_path / "index.json", {"n30": 1, "n31": 0})
    task = load_task("gqa", **given, version="qb-a", scene_graphs=scenes, scene_index=index)
    assert "apple[0.250,0.333,0.500,0.583]" in task.queries[0].question
    cot["seq"] = [[0]]
    formats.write_lines(file, [gqa_question(30, "n30", cot=cot)])
    with pytest.raises(DataError, match="phrases, their boxes and 'seq' do not match"):
        load_task("gqa", **given, version="q-bc")


def test_choices_give_validity(options, tmp_path):
    lists = {f"{kind}{n}": {"valid": ["yes", "no"], "plausible": ["no"]} for kind in "01" for n in range(20, 23)}
    choices = formats.write_json(tmp_path / "val_choices.json", lists)
    task = load_task("gqa", **options, split="val", choices=choices)
    queries = list(task.queries)
    details = metrics.get("gqa")(["yes"] * 6, queries).details
    assert (details["validity"], details["plausibility"]) == (1.0, 0.0)
    assert task.describe()["files"]["queries choices"]["name"] == "val_choices.json"


def test_test_splits_have_no_answers(options, tmp_path):
    hidden = {"9": {"imageId": "n30", "question": "What is it?", "isBalanced": True}}
    formats.write_json(tmp_path / "questions" / "test_all_questions.json", hidden)
    for style in ("plain", "upstream"):
        task = load_task("gqa", **options, split="test", style=style)
        assert (task.queries[0].answer, task.queries[0].references) == (None, ())
    task.write_results({"9": "a cat"}, tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text()) == [{"questionId": "9", "prediction": "a cat"}]
    with pytest.raises(DataError, match="not in this split: '10'"):
        task.write_results({"10": "a cat"}, tmp_path / "out.json")


@pytest.mark.parametrize(
    ("change", "version", "problem"),
    [
        (lambda q: q.pop("question"), "q-a", ":1 field 'question': field is missing"),
        (lambda q: q.pop("imageId"), "q-a", ":1 field 'imageId': field is missing"),
        (lambda q: q.pop("semanticStr"), "q-s", ":1 field 'semanticStr': field is missing"),
        (lambda q: q.pop("cot", 0), "q-c", ":1 field 'cot': field is missing"),
        (lambda q: q.update(imageId="n99"), "qb-a", ":1: image n99 has no scene graph"),
        (lambda q: q["annotations"].update(question={"4": "77"}), "qb-a", "object 77 is not in the scene graph"),
        (lambda q: q["annotations"].update(question={"14": "202"}), "qb-a", "'question' has no words 14"),
    ],
)
def test_files_that_are_wrong(options, tmp_path, change, version, problem):
    edit(tmp_path / "questions" / "val_balanced_questions.json", lambda data: change(data["020"]))
    with pytest.raises(DataError, match=problem):
        load_task("gqa", **options, split="val", style="upstream", version=version)


def test_what_is_missing_is_named(options, tmp_path):
    with pytest.raises(OptionError, match=r"version 'qb-a' needs scene graphs: .*testdev_sceneGraphs\.json"):
        load_task("gqa", **options, style="upstream", version="qb-a")
    with pytest.raises(OptionError, match="give style='upstream' with it"):
        load_task("gqa", **options, version="q-s")
    with pytest.raises(OptionError, match="must be one of q-a, q-c"):
        load_task("gqa", **options, style="upstream", version="q-x")
    (tmp_path / "questions" / "train_balanced_questions.json").unlink()
    task = load_task("gqa", **options)
    with pytest.raises(DataError, match=r"there is no train_balanced_questions\.json"):
        _ = task.support


def test_the_training_files_of_upstream_are_found_by_their_names(tmp_path):
    formats.write_lines(tmp_path / "gqa_question_balanced_with_cot.jsonl", [gqa_question(30, "n30")])
    formats.write_lines(tmp_path / "gqa_testdev_balanced_questions.jsonl", [gqa_question(31, "n31")])
    formats.write_lines(tmp_path / "gqa_scene_graph_data.jsonl", [gqa_scene(31), gqa_scene(30)])
    formats.write_json(tmp_path / "gqa_scene_graph_index.json", {"n30": 1, "n31": 0})
    task = load_task("gqa", root=tmp_path, split="train", style="upstream", version="qb-bl")
    assert "apple[0.250,0.333,0.500,0.583]" in task.queries[0].answer
    assert task.describe()["files"]["queries scene index"]["name"] == "gqa_scene_graph_index.json"
    task = load_task("gqa", root=tmp_path)
    assert [e.id for e in (*task.queries, *task.support)] == [
        "gqa_testdev_balanced_questions.jsonl:1",
        "gqa_question_balanced_with_cot.jsonl:1",
    ]
