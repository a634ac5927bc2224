"""VQA-E and VQA-X."""

from __future__ import annotations

import json

import pytest

from kshot.data.task import load_task
from kshot.errors import DataError, OptionError
from kshot.metrics.base import metrics
from tests.data import answer_formats, formats


@pytest.fixture
def e(tmp_path):
    return answer_formats.vqa_e(tmp_path)


@pytest.fixture
def x(tmp_path):
    return answer_formats.vqa_x(tmp_path)


def test_vqa_e_as_published(e, tmp_path):
    task = load_task("vqa_e", **e)
    assert (len(task.queries), len(task.support)) == (6, 6)
    query = task.queries[1]
    assert query.answer == "A man in a coat goes down slope 410. So the answer is yes."
    assert query.references == ("yes",) * 7 + ("no",) * 3
    assert dict(query.metadata) == {
        "explanations": ["A man in a coat goes down slope 410."],
        "image_id": "COCO_val2014_000000000410.jpg",
        "question_type": "is it",
        "answer_type": "yes/no",
    }
    assert query.images[0].name == str(tmp_path / "val2014" / "COCO_val2014_000000000410.jpg")
    assert task.support[0].images[0].name == str(tmp_path / "train2014" / "COCO_train2014_000000000400.jpg")
    assert query.id == "VQA-E_val_set.json:2"
    assert task.parse(f" {query.answer}\nQuestion: next") == query.answer


def test_vqa_x_as_published(x):
    task = load_task("vqa_x", **x)
    query = task.queries[0]
    assert query.id == "444000"
    assert query.question == "What is the man doing in the street?"
    assert query.answer == "he is on the road near sign 444000 So the answer is walking."
    assert query.metadata["explanations"] == ["he is on the road near sign 444000", "his feet move"]
    assert query.references == ("walking",) * 6 + ("crossing street",) * 3 + ("jaywalking",)
    assert query.images[0].name.endswith("val2014/COCO_val2014_000000000444.jpg")
    assert (len(task.queries), len(task.support)) == (4, 8)
    assert {q.id[:3] for q in load_task("vqa_x", **x, split="val").queries} == {"442", "443"}
    assert set(task.describe()["files"]) == {
        *("queries", "queries VQA questions", "queries VQA annotations"),
        *("support", "support VQA questions", "support VQA annotations"),
    }


def test_vqa_files_may_be_elsewhere(x, tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "Annotations" / "test_exp_anno.json").rename(tmp_path / "own" / "test_exp_anno.json")
    given = {"questions": tmp_path / "own" / "test_exp_anno.json", "images": tmp_path}
    assert len(load_task("vqa_x", **given, vqa=tmp_path).queries) == 4
    with pytest.raises(DataError, match=r"there is no v2_OpenEnded_mscoco_val2014_questions\.json"):
        load_task("vqa_x", **given)


def test_vqa_x_of_nlx_gpt(x, tmp_path):
    rows = {
        "444000": {
            "question": "Is it cold?",
            "image_id": "444",
            "image_name": "COCO_val2014_000000000444.jpg",
            "explanation": ["there is  snow\non the ground", "people wear coats"],
            "answers": [{"answer": "yes", "answer_confidence": "yes", "answer_id": n} for n in range(1, 11)],
        }
    }
    file = formats.write_json(tmp_path / "nlx" / "vqaX_test.json", rows)
    query = load_task("vqa_x", questions=file, images=tmp_path, check_images=False).queries[0]
    assert (query.id, query.answer) == ("444000", "there is snow on the ground So the answer is yes.")
    assert query.references == ("yes",) * 10
    assert query.images[0].load().size == (12, 8)


UPSTREAM = {
    "vqa_e": {"explanation": ["He wears a coat.", 0.8], "multiple_answers": "yes"},
    "vqa_x": {"justification": ["He wears a coat."], "multiple_choice_answer": "yes"},
}


@pytest.mark.parametrize("name", UPSTREAM)
def test_the_json_lines_of_upstream(name, x, tmp_path):
    row = {"file_path": "val2014/COCO_val2014_000000000444.jpg", "question": "Is it cold?"} | UPSTREAM[name]
    file = formats.write_lines(tmp_path / "own.jsonl", [row, row])
    task = load_task(name, questions=file, images=tmp_path, style="upstream", support_questions=file)
    query = task.queries[0]
    assert (query.answer, query.references) == ("He wears a coat. So the answer is yes.", ("yes",))
    assert [q.id for q in task.queries] == ["own.jsonl:1", "own.jsonl:2"]
    assert query.images[0].load().size == (12, 8)
    assert task.parse(query.answer + " USER: and") == query.answer


def test_the_metric_sees_answers_and_reasons(e, monkeypatch):
    pytest.importorskip("pycocoevalcap")
    monkeypatch.setenv("KSHOT_CAPTION_TOKENIZER", "python")
    task = load_task("vqa_e", **e)
    queries = list(task.queries)
    result = metrics.get(task.metric)([task.parse(q.answer) for q in queries], queries)
    assert result.value == 1
    assert result.details["cider"] > 1
    assert result.categories["answer_type: yes/no"] == (1.0, 3)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda r: r.pop("question"), ":2 field 'question': field is missing"),
        (lambda r: r.pop("explanation"), ":2 field 'explanation': field is missing"),
        (lambda r: r.update(explanation=[0.9]), ":2 field 'explanation': there is no explanation"),
        (lambda r: r.pop("answers"), ":2 field 'answers': there is no answer"),
        (lambda r: r.pop("img_id"), ":2: no field names the image"),
        (lambda r: r.update(img_id="x"), ":2 field 'img_id': not the number of a COCO image"),
        (lambda r: r.update(answers=[1]), "an object is expected, not"),
    ],
)
def test_files_that_are_wrong(e, tmp_path, change, problem):
    file = tmp_path / "VQA-E_val_set.json"
    rows = json.loads(file.read_text())
    change(rows[1])
    formats.write_json(file, rows)
    with pytest.raises(DataError, match=problem):
        load_task("vqa_e", **e)


def test_explanations_of_unknown_questions(x, tmp_path):
    formats.write_json(tmp_path / "Annotations" / "test_exp_anno.json", {"444000": ["why"], "77": ["why"]})
    with pytest.raises(DataError, match=r"test_exp_anno\.json:2: question 77 is not in v2_OpenEnded"):
        load_task("vqa_x", **x)
    with pytest.raises(OptionError, match="split='testing'"):
        load_task("vqa_x", **x, split="testing")


def test_a_missing_training_file_is_reported_when_demonstrations_are_wanted(x, tmp_path):
    (tmp_path / "Annotations" / "v2_mscoco_train2014_annotations.json").unlink()
    task = load_task("vqa_x", **x)
    assert len(task.queries) == 4
    assert "support" not in task.describe()["files"]
    for _ in range(2):
        with pytest.raises(DataError, match=r"there is no v2_mscoco_train2014_annotations\.json"):
            _ = task.support
