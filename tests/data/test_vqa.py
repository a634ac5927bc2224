"""VQAv2 and OK-VQA."""

from __future__ import annotations

import json
import shutil
import zipfile

import pytest

from kshot.data.task import load_task
from kshot.episode import Episode
from kshot.errors import DataError, OptionError
from kshot.prompt import render_plain
from tests.data import formats


def edit(path, change):
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def test_vqav2_queries_are_validation_and_support_is_training(tmp_path):
    task = load_task("vqav2", **formats.vqav2(tmp_path))
    query = task.queries[0]
    assert (len(task.queries), len(task.support)) == (8, 8)
    assert query.id == "42000"
    assert query.question == "What is the man doing in the street?"
    assert query.answer == "walking"
    assert query.references == ("walking",) * 6 + ("crossing street",) * 3 + ("jaywalking",)
    assert dict(query.metadata) == {"image_id": 42, "question_type": "what is", "answer_type": "other"}
    assert query.images[0].name == str(tmp_path / "val2014" / "COCO_val2014_000000000042.jpg")
    assert task.support[0].images[0].name == str(tmp_path / "train2014" / "COCO_train2014_000000000030.jpg")
    assert task.metric == "vqa_accuracy"


def test_the_prompt_is_that_of_live_and_mimic(tmp_path):
    task = load_task("vqav2", **formats.vqav2(tmp_path))
    prompt = render_plain(Episode((task.support[0], task.support[1]), task.queries[0]), task.template)
    assert prompt.text() == (
        "Provide an answer to the question. Use the image to answer.\n"
        "<image>Question:What is the man doing in the street? Short answer:walking.\n\n"
        "<image>Question:How many dogs are there? Short answer:2.\n\n"
        "<image>Question:What is the man doing in the street? Short answer:"
    )


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("walking.\n\nQuestion:what", "walking"),
        (" 2.5.", "2.5"),
        ("red Question: what", "red"),
        ("red. Short answer:", "red"),
        ("red. Image", "red"),
        ("St. Louis. Answer:", "St. Louis"),
        ("", ""),
    ],
)
def test_answers_end_where_the_next_example_would_begin(tmp_path, text, answer):
    assert load_task("vqav2", **formats.vqav2(tmp_path)).parse(text) == answer


def test_okvqa_shows_the_most_frequent_answer(tmp_path):
    task = load_task("okvqa", **formats.okvqa(tmp_path))
    assert (task.queries[0].answer, task.queries[1].answer) == ("walking", "2")
    assert len(task.queries[0].references) == 10
    assert task.metric == "okvqa_accuracy"


def test_the_test_split_has_no_answers_and_its_predictions_can_be_written(tmp_path):
    task = load_task("vqav2", **formats.vqav2(tmp_path), split="test-dev")
    query = task.queries[0]
    assert (query.answer, query.references) == (None, ())
    assert query.images[0].name.endswith("test2015/COCO_test2015_000000000060.jpg")
    assert query.images[0].load().size == (12, 8)
    assert task.support[0].answer == "walking"
    task.write_results({"60001": "2", "60000": "walking"}, tmp_path / "out" / "results.json")
    rows = json.loads((tmp_path / "out" / "results.json").read_text())
    assert rows == [{"question_id": 60001, "answer": "2"}, {"question_id": 60000, "answer": "walking"}]
    with pytest.raises(DataError, match="not in this split: '7'"):
        task.write_results({"7": "x"}, tmp_path / "x.json")


def test_files_may_be_given_one_by_one(tmp_path):
    formats.vqav2(tmp_path)
    task = load_task(
        "vqav2",
        questions=tmp_path / "v2_OpenEnded_mscoco_val2014_questions.json",
        annotations=tmp_path / "v2_mscoco_val2014_annotations.json",
        images=tmp_path / "val2014",
    )
    assert task.queries[0].images[0].load().size == (12, 8)
    with pytest.raises(OptionError, match=r"needs the file v2_OpenEnded_mscoco_train2014_questions\.json"):
        _ = task.support


def test_images_may_stay_in_their_zip(tmp_path):
    options = formats.vqav2(tmp_path)
    before = [q.images[0].digest for q in load_task("vqav2", **options).queries]
    with zipfile.ZipFile(tmp_path / "val2014.zip", "w") as archive:
        for path in sorted((tmp_path / "val2014").iterdir()):
            archive.write(path, f"val2014/{path.name}")
    shutil.rmtree(tmp_path / "val2014")
    for more in ({}, {"images": tmp_path / "val2014.zip"}):
        task = load_task("vqav2", **options, **more, check_images=True)
        assert [q.images[0].digest for q in task.queries] == before


def test_zero_shots_need_no_training_files(tmp_path):
    options = formats.vqav2(tmp_path)
    (tmp_path / "v2_mscoco_train2014_annotations.json").unlink()
    task = load_task("vqav2", **options)
    assert len(task.queries) == 8
    with pytest.raises(DataError, match=r"there is no v2_mscoco_train2014_annotations\.json here .*visualqa\.org"):
        _ = task.support
    with pytest.raises(DataError, match="file not found"):  # but one that is named must be there
        load_task("vqav2", **options, support_annotations=tmp_path / "mine.json")


def test_missing_options_and_files(tmp_path):
    with pytest.raises(OptionError, match="needs root="):
        load_task("vqav2")
    with pytest.raises(OptionError, match="no split 'dev'; its splits are: train, val"):
        load_task("okvqa", root=tmp_path, split="dev")
    with pytest.raises(DataError, match=r"no v2_OpenEnded_mscoco_val2014_questions\.json here .*visualqa\.org"):
        load_task("vqav2", root=tmp_path)


QUESTIONS, ANNOTATIONS = "v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json"


@pytest.mark.parametrize(
    ("name", "change", "problem"),
    [
        (QUESTIONS, lambda d: d["questions"][2].pop("question"), r":3 field 'question': field is missing"),
        (QUESTIONS, lambda d: d["questions"][2].update(image_id="42"), r":3 field 'image_id': a whole number"),
        (QUESTIONS, lambda d: d["questions"].append(d["questions"][0]), "42000 occurs twice, in items 1 and 9"),
        (QUESTIONS, lambda d: d["questions"][3].update(image_id=1), "about image 1, but about image 43"),
        (QUESTIONS, lambda d: d.pop("questions"), "field 'questions': field is missing"),
        (QUESTIONS, lambda d: d["questions"].pop(), "1 annotations have no question .* first is 45001"),
        (ANNOTATIONS, lambda d: d["annotations"].pop(), "question 45001 has no annotation in"),
        (ANNOTATIONS, lambda d: d["annotations"][1].update(answers=[]), ":2 field 'answers': there are no answers"),
        (ANNOTATIONS, lambda d: d["annotations"][1]["answers"][0].pop("answer"), ":2 field 'answer': field is missing"),
        (ANNOTATIONS, lambda d: d["annotations"][1]["answers"][0].update(answer=3), "text is expected"),
        (ANNOTATIONS, lambda d: d["annotations"].append(d["annotations"][0]), "occurs twice"),
    ],
)
def test_files_that_do_not_fit(tmp_path, name, change, problem):
    options = formats.vqav2(tmp_path)
    edit(tmp_path / name, change)
    with pytest.raises(DataError, match=problem) as caught:
        load_task("vqav2", **options)
    assert name in str(caught.value)


def test_a_part_of_the_questions_is_allowed_on_demand(tmp_path):
    options = formats.vqav2(tmp_path)
    edit(tmp_path / QUESTIONS, lambda d: d["questions"].pop())
    assert len(load_task("vqav2", **options, subset=True).queries) == 7


def test_missing_images_show_when_looked_at_or_all_at_once_on_demand(tmp_path):
    options = formats.vqav2(tmp_path)
    (tmp_path / "val2014" / "COCO_val2014_000000000043.jpg").unlink()
    task = load_task("vqav2", **options)
    with pytest.raises(DataError, match=r"COCO_val2014_000000000043\.jpg: image file not found"):
        task.queries[2].images[0].load()
    with pytest.raises(DataError, match=r"1 images of the queries are missing: .*000000000043\.jpg"):
        load_task("vqav2", **options, check_images=True)


def test_the_real_question_file(shared_data, tmp_path):
    file = shared_data / "vqav2" / "v2_mscoco_val2014_question_subdata.json"
    if not file.is_file():
        pytest.skip("no VQAv2 questions in the shared data")
    questions = json.loads(file.read_text())
    annotations = tmp_path / "annotations.json"
    annotations.write_text(json.dumps(formats.vqa_annotations(questions)))
    task = load_task("vqav2", questions=file, annotations=annotations, images=tmp_path)
    assert len(task.queries) == 10_000
    first = task.queries[0]
    assert (first.id, first.question) == ("393226000", "What is the man doing in the street?")
    assert first.images[0].name == str(tmp_path / "COCO_val2014_000000393226.jpg")
    assert len({query.id for query in task.queries}) == 10_000
    shot = task.queries[1]
    text = render_plain(Episode((shot,), first), task.template).text()
    assert "Question:Are there bed headboards present in the photo? Short answer:2." in text
