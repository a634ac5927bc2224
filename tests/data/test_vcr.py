"""VCR."""

from __future__ import annotations

import json

import pytest

from kshot.data.task import load_task
from kshot.data.vcr_text import MODES
from kshot.errors import DataError, OptionError
from kshot.metrics.base import metrics
from tests.data import answer_formats, formats
from tests.data.answer_formats import vcr_item

HERE = "[0.250,0.333,0.500,0.583]"  # person3 at (3, 2) to (6, 5) of 12 x 8 pixels, padded by 2 above
CAR = "[0.000,0.500,1.000,0.833]"
PAIR = "[0.000,0.167,0.500,0.833;0.500,0.167,1.000,0.833]"
CHOOSE = "You should decide on the best choice and output the corresponding letter."


@pytest.fixture
def options(tmp_path):
    return answer_formats.vcr(tmp_path)


def test_the_official_task_asks_twice(options, tmp_path):
    task = load_task("vcr", **options)
    answer, reason = task.queries[0], task.queries[1]
    assert len(task.queries) == 12
    assert (answer.id, reason.id) == ("val-8/answer", "val-8/rationale")
    assert answer.question == (
        "Does person3 feel comfortable?\nA. Yes because person1 and person2 sit next to her.\nB. No she isn't.\n"
        "C. Yes, person3 is near car4.\nD. Yes, she is cold."
    )
    assert reason.question == (
        "Does person3 feel comfortable?\nAnswer: Yes because person1 and person2 sit next to her.\nWhy?\n"
        "A. There is snow on the ground.\nB. person3 stands with her arms crossed.\nC. She sits very rigidly.\n"
        "D. person3 is lying in bed."
    )
    assert (answer.answer, reason.answer) == ("A", "B")
    assert task.candidates(answer) == ("A", "B", "C", "D")
    name = "lsmdc_3015_FILM/3015_FILM_00.23.57.4@0.jpg"
    assert answer.images[0].name == str(tmp_path / "vcr1images" / name)
    assert answer.metadata["image_id"] == name


def test_demonstrations_ask_for_the_same_as_the_query(options):
    task = load_task("vcr", **options)
    for query in task.queries[:2]:
        pool = task.pool(query)
        assert len(pool) == 6
        assert {d.metadata["part"] for d in pool} == {query.metadata["part"]}
        assert {d.id.split("-")[0] for d in pool} == {"train"}


UPSTREAM = {
    "q-a": (f"QUESTION: Does {HERE} feel comfortable ?", f"Yes because {PAIR} sit next to her ."),
    "q-ra": (
        f"QUESTION: Does {HERE} feel comfortable ?",
        f"{HERE} stands with her arms crossed . Yes because {PAIR} sit next to her .",
    ),
    "qc-a": (
        f"QUESTION: Does {HERE} feel comfortable ? \nOPTIONS: (A) Yes because {PAIR} sit next to her . (B) No she isn ' t . "
        f"(C) Yes , {HERE} is near {CAR} . (D) Yes , she is cold . {CHOOSE}",
        "The answer is (A).",
    ),
    "qa-r": (
        f"QUESTION: Does {HERE} feel comfortable ? \nANSWER: Yes because {PAIR} sit next to her . "
        "You should explain the reason for the above answer.",
        f"{HERE} stands with her arms crossed .",
    ),
    "qac-r": (
        f"QUESTION: Does {HERE} feel comfortable ? \nANSWER: Yes because {PAIR} sit next to her . \nRATIONALE OPTIONS: "
        f"(A) There is snow on the ground . (B) {HERE} stands with her arms crossed . (C) She sits very rigidly . "
        f"(D) {HERE} is lying in bed . You should decide on the best choice that explains the above answer and output the "
        "corresponding letter.",
        "The answer is (B).",
    ),
    "q-a-q-r": (
        f"QUESTION: Does {HERE} feel comfortable ?\nASSISTANT: Yes because {PAIR} sit next to her .\n"
        "USER: You should explain the reason for the above answer.",
        f"{HERE} stands with her arms crossed .",
    ),
}
UPSTREAM["qc-ra"] = (UPSTREAM["qc-a"][0], f"{HERE} stands with her arms crossed . The answer is (A).")
UPSTREAM["qc-rac"] = (
    UPSTREAM["qc-a"][0],
    f"{HERE} stands with her arms crossed . Yes because {PAIR} sit next to her . The answer is (A).",
)
UPSTREAM["q-ar"] = UPSTREAM["qac-r"]
UPSTREAM["qc-a-qc-r"] = (
    UPSTREAM["qc-a"][0] + "\nASSISTANT: The answer is (A).\nUSER: " + UPSTREAM["qac-r"][0].split("\n")[2],
    "The answer is (B).",
)


@pytest.mark.parametrize("mode", MODES)
def test_upstreams_modes(options, mode):
    queries = load_task("vcr", **options, style="upstream", references="boxes", mode=mode).queries
    query = queries[1 if queries[0].id.endswith("/answer") else 0]
    assert (query.question, query.answer) == UPSTREAM[mode]
    assert query.images[0].load().size == (12, 12)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("style", ["plain", "upstream"])
def test_right_answers_are_right_in_every_mode(options, mode, style):
    task = load_task("vcr", **options, mode=mode, style=style)
    queries = list(task.queries)
    metric = metrics.get("vcr")
    assert metric([task.parse(f"{q.answer}{task.stop[-1]} more") for q in queries], queries).value == 1
    assert metric([q.answer for q in queries], queries).value == 1  # as likelihood scoring hands them over
    for query in queries:
        candidates = task.candidates(query)
        assert (query.answer in candidates) if candidates else mode in ("q-ra", "qc-ra", "qc-rac")


def test_boxes_in_the_lines_themselves(tmp_path):
    boxes = [[0, 0, 6, 8, 0.99], [6.0, 0.0, 12.0, 8.0, 0.98], [3, 2, 6, 5, 0.9], [0, 4, 12, 8, 0.7]]
    item = vcr_item("val", 8, boxes=boxes)
    del item["metadata_fn"], item["annot_id"]
    formats.picture(tmp_path / item["img_fn"], 1)
    file = formats.write_lines(tmp_path / "vcr_val.jsonl", [item])
    task = load_task("vcr", questions=file, images=tmp_path, style="upstream", references="boxes", mode="q-a")
    assert task.queries[0].question == UPSTREAM["q-a"][0]
    assert task.queries[0].id == "vcr_val.jsonl:1"
    both = load_task("vcr", questions=file, images=tmp_path, references="both", mode="q-a").queries[0]
    assert both.question == f"Does person3 {HERE} feel comfortable?"


def test_the_test_split_asks_for_the_reason_of_each_answer(options, tmp_path):
    hidden = [vcr_item("test", number) for number in range(2)]
    for item in hidden:
        del item["answer_label"], item["rationale_label"]
    formats.write_lines(tmp_path / "vcr1annots" / "test.jsonl", hidden)
    task = load_task("vcr", **options, split="test")
    assert [q.id for q in task.queries[:5]] == ["test-0/answer", *(f"test-0/rationale/{a}" for a in "ABCD")]
    assert len(task.queries) == 10
    assert {q.answer for q in task.queries} == {None}
    assert "\nAnswer: Yes, person3 is near car4.\nWhy?" in task.queries[3].question
    assert len(load_task("vcr", **options, split="test", mode="qc-a").queries) == 2


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"answer_label": 4}, r"val\.jsonl:1 field 'answer_label': the label must be 0 to 3"),
        ({"question": ["Does", [4], "?"]}, "field 'question': a reference to object 4, of 4 objects"),
        ({"question": ["Does", [], "?"]}, "a reference to no object"),
        ({"question": ["Does", 3]}, "a sentence holds words and lists of object numbers"),
        ({"answer_choices": [["Yes"]]}, "field 'answer_choices': 4 lists of words are expected"),
        ({"objects": "person"}, "field 'objects': a list is expected"),
        ({"annot_id": "val-9"}, "'val-9' occurs twice, in items 1 and 2"),
    ],
)
def test_files_that_are_wrong(options, tmp_path, change, problem):
    file = tmp_path / "vcr1annots" / "val.jsonl"
    items = [json.loads(line) for line in file.read_text().splitlines()]
    items[0] |= change
    formats.write_lines(file, items)
    with pytest.raises(DataError, match=problem):
        load_task("vcr", **options)


def test_boxes_that_are_missing_or_wrong(options, tmp_path):
    place = tmp_path / "vcr1images" / "lsmdc_3015_FILM" / "3015_FILM_00.23.57.4@0.json"
    task = load_task("vcr", **options, references="boxes")
    data = json.loads(place.read_text())
    place.write_text(json.dumps(data | {"boxes": data["boxes"][:3]}))
    with pytest.raises(DataError, match="3 boxes for 4 objects"):
        _ = task.queries[0]
    place.write_text(json.dumps(data | {"boxes": [[1, 2]] * 4}))
    with pytest.raises(DataError, match="not a box"):
        _ = task.queries[0]
    place.write_text("{")
    with pytest.raises(DataError, match="not valid JSON"):
        _ = task.queries[0]
    place.unlink()
    with pytest.raises(DataError, match=r"boxes of the objects \(or references='names'\)"):
        _ = task.queries[0]
    with pytest.raises(OptionError, match="mode='qa'"):
        load_task("vcr", **options, mode="qa")
