"""JSON Lines of one's own. (That any file gives examples or an error: ``test_readers.py``.)"""

from __future__ import annotations

import pytest

from kshot.data.task import load_task
from kshot.errors import DataError, OptionError
from tests.data import formats


def test_all_fields(tmp_path):
    picture = formats.picture(tmp_path / "a.png", 1)
    row = {
        "images": ["a.png", str(picture)],
        "question": "q?",
        "answers": ["x", "y"],
        "choices": ["x", "z"],
        "id": 7,
        "metadata": {"category": "c"},
    }
    file = formats.write_lines(tmp_path / "f.jsonl", [row, {"image": "a.png", "answer": "z"}])
    task = load_task("jsonl", queries=file, support=file)
    first, second = task.queries
    assert [p.load().size for p in first.images] == [(12, 8)] * 2
    assert (first.id, first.answer, first.references, first.choices) == ("7", "x", ("x", "y"), ("x", "z"))
    assert first.metadata["category"] == "c"
    assert (second.id, second.question, second.references) == ("f.jsonl:2", "", ("z",))


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ([{"anwser": "x"}], r":1 field 'anwser': unknown field \(did you mean 'answer'\?\)"),
        ([{"height": 3}], "put values of your own under 'metadata'"),
        ([{"answer": "x", "id": "a"}, {"answer": "y", "id": "a"}], "'a' occurs twice, in items 1 and 2"),
        ([{"answer": 3}], "text is expected, not a whole number"),
        ([{"answer": "x"}, {"images": [1], "answer": "x"}], r":2 field 'images': a list of texts is expected"),
        ([{"image": "a.png", "images": []}], "'image' and 'images' are both given"),
        ([{"image": ""}], "not a file name"),
        ([{"question": "q?"}], "has no answer, so it cannot be a demonstration"),
        ([], "the file holds no examples"),
    ],
)
def test_files_that_are_wrong(tmp_path, rows, problem):
    good = formats.write_lines(tmp_path / "good.jsonl", [{"answer": "x"}])
    bad = formats.write_lines(tmp_path / "bad.jsonl", rows)
    with pytest.raises(DataError, match=problem):
        _ = load_task("jsonl", queries=good, support=bad).support


def one_file(folder, images: int, each: int):
    rows = [{"id": f"{i}-{k}", "image": f"{i}.png", "answer": "x"} for i in range(images) for k in range(each)]
    return formats.write_lines(folder / "all.jsonl", rows)


def test_one_file_is_split_by_the_seed_and_by_image(tmp_path):
    file = one_file(tmp_path, 10, 3)
    task = load_task("jsonl", queries=file, support_size=9, seed=1)
    support, queries = {e.id for e in task.support}, {e.id for e in task.queries}
    assert (len(support), len(queries)) == (9, 21)
    assert not support & queries
    assert not {i.split("-")[0] for i in support} & {i.split("-")[0] for i in queries}
    assert {e.id for e in load_task("jsonl", queries=file, support_size=9, seed=1).support} == support
    assert {e.id for e in load_task("jsonl", queries=file, support_size=9, seed=2).support} != support
    assert len(load_task("jsonl", queries=file, support_size=8).support) == 6  # images stay whole


def test_examples_linked_by_a_shared_image_stay_together(tmp_path):
    links = [["a", "b"], ["c"], ["b", "c"], ["d"], ["e"], ["d", "f"], ["g"]]
    rows = [{"id": str(n), "images": names, "answer": "x"} for n, names in enumerate(links)]
    file = formats.write_lines(tmp_path / "all.jsonl", rows)
    sizes = set()
    for seed in range(20):
        task = load_task("jsonl", queries=file, support_size=3, seed=seed)
        shown = {p.name for e in task.support for p in e.images}
        assert not shown & {p.name for e in task.queries for p in e.images}
        sizes.add(tuple(sorted(e.id for e in task.support)))
    assert ("0", "1", "2") in sizes
    assert len(sizes) > 1


def test_the_split_does_not_depend_on_where_the_files_are(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    ids = [
        [e.id for e in load_task("jsonl", queries=one_file(tmp_path / n, 9, 1), support_size=4).support] for n in "ab"
    ]
    assert ids[0] == ids[1]


def test_support_sizes_that_cannot_be(tmp_path):
    file = one_file(tmp_path, 2, 3)
    for size in (0, 6, -1):
        with pytest.raises(OptionError, match="between 1 and 5"):
            load_task("jsonl", queries=file, support_size=size)
    with pytest.raises(DataError, match="each image has more than 2 examples"):
        load_task("jsonl", queries=file, support_size=2)
    for options in ({}, {"support": file, "support_size": 1}):
        with pytest.raises(OptionError, match=r"either support= .* or support_size="):
            load_task("jsonl", queries=file, **options)


def test_prompt_and_metric_can_be_chosen(tmp_path):
    file = one_file(tmp_path, 2, 1)
    task = load_task(
        "jsonl",
        queries=file,
        support=file,
        template={"demonstration": "<image>It is {answer}", "instruction": "Look.\n"},
        metric="vqa_accuracy",
        labels=["x", "y"],
        stop=["!"],
    )
    assert task.template.query_text == "<image>It is "
    assert task.template.separator == "\n\n"
    assert task.candidates(task.queries[0]) == ("x", "y")
    assert task.parse("x! y") == "x"
    with pytest.raises(OptionError, match="template has no field 'demo'"):
        load_task("jsonl", queries=file, support=file, template={"demo": "{answer}"})


def test_missing_files(tmp_path):
    file = one_file(tmp_path, 2, 1)
    with pytest.raises(DataError, match=r"none\.jsonl: file not found"):
        load_task("jsonl", queries=file, support=tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="image folder not found"):
        load_task("jsonl", queries=file, support=file, images=tmp_path / "none")
    with pytest.raises(DataError, match="2 images of the queries are missing"):
        load_task("jsonl", queries=file, support=file, check_images=True)
