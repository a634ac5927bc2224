"""POPE."""

from __future__ import annotations

import json

import pytest

from kshot.data.task import load_task
from kshot.episode import Episode
from kshot.errors import BadImage, DataError, OptionError
from kshot.metrics.base import metrics
from kshot.prompt import render_plain
from tests.data import answer_formats, formats


@pytest.fixture
def options(tmp_path):
    return answer_formats.pope(tmp_path)


def test_three_splits_are_read_as_published(options, tmp_path):
    task = load_task("pope", **options)
    assert len(task.queries) == 54
    query = task.queries[3]
    assert (query.id, query.question, query.answer) == ("random/3", "Is there a zebra really in the image?", "no")
    assert query.images[0].name == str(tmp_path / "val2014" / "COCO_val2014_000000000310.jpg")
    assert [q.metadata["split"] for q in (task.queries[0], task.queries[18], task.queries[-1])] == [
        "random",
        "popular",
        "adversarial",
    ]
    assert task.candidates(query) == ("yes", "no")
    assert set(task.describe()["files"]) == {"queries random", "queries popular", "queries adversarial"}


def test_one_split_or_several(options):
    assert len(load_task("pope", **options, split="popular").queries) == 18
    assert len(load_task("pope", **options, split=["popular", "random"]).queries) == 36
    with pytest.raises(OptionError, match="split='popularity'"):
        load_task("pope", **options, split="popularity")


def test_demonstrations_are_of_the_split_and_of_other_images(options):
    task = load_task("pope", **options)
    for query in task.queries:
        pool = task.pool(query)
        assert len(pool) == 12
        assert {d.metadata["split"] for d in pool} == {query.metadata["split"]}
        assert query.metadata["image_id"] not in {d.metadata["image_id"] for d in pool}


def test_upstreams_style_states_the_answer(options):
    task = load_task("pope", **options, style="upstream", split="random")
    query, other = task.queries[0], task.queries[17]
    assert (query.answer, other.answer) == ("The answer is yes .", "The answer is no .")
    assert query.references == ("yes",)
    assert task.candidates(query) == ("The answer is yes .", "The answer is no .")
    assert task.parse(" The answer is no . USER: next") == "no"
    assert task.parse("no") == "no"
    queries = list(task.queries)
    assert metrics.get("pope")([q.answer for q in queries], queries).value == 1  # likelihood scoring does not parse
    text = render_plain(Episode((other,), query), task.template).text()
    assert text.endswith(
        "ASSISTANT: The answer is no . USER: <image> Is there a snowboard really in the image? ASSISTANT: "
    )


def test_files_by_split_and_lines_without_ids(options, tmp_path):
    rows = [
        {"image": "COCO_val2014_000000000310.jpg", "text": "Is there a cat?", "label": label} for label in ("Yes", "no")
    ]
    own = formats.write_lines(tmp_path / "own" / "my_pope.json", rows)
    task = load_task("pope", files={"mine": own}, images=tmp_path)
    assert [q.id for q in task.queries] == ["mine/my_pope.json:1", "mine/my_pope.json:2"]
    assert [q.answer for q in task.queries] == ["yes", "no"]
    task = load_task(
        "pope", files=[own, tmp_path / "coco_pope_popular.json"], images=tmp_path / "val2014", check_images=True
    )
    assert {q.metadata["split"] for q in task.queries} == {"my_pope", "popular"}
    alone = formats.write_lines(tmp_path / "own" / "one.json", rows[:1])
    assert len(load_task("pope", files=alone, images=tmp_path).queries) == 1
    with pytest.raises(OptionError, match="needs root="):
        load_task("pope", files=own)


def test_answers_are_written_as_the_script_reads_them(options, tmp_path):
    task = load_task("pope", **options)
    task.write_results({"popular/0": "Yes", "popular/1": "No"}, tmp_path / "out")
    lines = (tmp_path / "out" / "coco_pope_popular_answers.json").read_text().splitlines()
    assert [json.loads(line)["answer"] for line in lines] == ["Yes", "No"]
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["coco_pope_popular_answers.json"]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"label": "maybe"}, r"random\.json:2 field 'label': 'maybe' is neither yes nor no"),
        ({"text": None}, r"random\.json:2 field 'text': text is expected, not null"),
        ({"image": 5}, r"random\.json:2 field 'image': text is expected"),
        ({"question_id": 0}, r"random\.json:2 field 'question_id': '0' occurs twice, in items 1 and 2"),
    ],
)
def test_files_that_are_wrong(options, tmp_path, change, problem):
    file = tmp_path / "coco_pope_random.json"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[1] |= change
    formats.write_lines(file, rows)
    with pytest.raises(DataError, match=problem):
        load_task("pope", **options)


def test_missing_fields_files_and_images(options, tmp_path):
    (tmp_path / "val2014" / "COCO_val2014_000000000311.jpg").unlink()
    task = load_task("pope", **options)
    with pytest.raises(BadImage, match="image file not found"):
        task.queries[6].images[0].load()
    with pytest.raises(DataError, match="images of the queries are missing"):
        load_task("pope", **options, check_images=True)
    file = tmp_path / "coco_pope_random.json"
    file.write_bytes(file.read_bytes().replace(b"snowboard", b"sn\xf6wboard", 1))
    with pytest.raises(DataError, match=r"random\.json:1: not UTF-8 text"):
        load_task("pope", **options)
    formats.write_lines(file, [{"image": "x.jpg", "label": "no"}, {"image": "x.jpg", "label": "no"}])
    with pytest.raises(DataError, match=r"random\.json:1 field 'text': field is missing"):
        load_task("pope", **options)
    file.unlink()
    with pytest.raises(DataError, match=r"there is no coco_pope_random\.json or .*github\.com/AoiDragon"):
        load_task("pope", **options)
