"""Data sets of the Hugging Face library."""

from __future__ import annotations

import pytest

from kshot.data.task import load_task
from kshot.errors import BadImage, DataError, OptionError
from tests.data import formats

datasets = pytest.importorskip("datasets")


def test_class_labels_become_names_and_the_closed_set(tmp_path):
    task = load_task("hf", **formats.hf(tmp_path))
    assert [q.id for q in task.queries] == ["test0", "test1", "test2", "test3"]
    assert [q.answer for q in task.queries] == ["cat", "dog", "cat", "dog"]
    assert task.labels == ("cat", "dog")
    assert task.support[0].id == "train0"
    assert task.queries[0].images[0].load().size == (12, 8)


def test_images_are_decoded_only_when_looked_at(tmp_path):
    features = datasets.Features({"image": datasets.Image(), "answer": datasets.Value("string")})
    rows = {"image": [{"bytes": b"no image", "path": None}] * 2, "answer": ["a", "b"]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path / "d"))
    task = load_task("hf", path=tmp_path / "d", answer="answer", support_size=1)
    query = task.queries[0]
    with pytest.raises(BadImage, match=r"d/test\[\d\]\.image: not an image"):
        query.images[0].load()


def test_columns_of_several_kinds(tmp_path):
    picture = str(formats.picture(tmp_path / "a.png", 1))
    features = datasets.Features(
        {
            "views": datasets.List(datasets.Image()),
            "file": datasets.Value("string"),
            "q": datasets.Value("string"),
            "right": datasets.Value("int64"),
            "options": datasets.List(datasets.Value("string")),
            "said": datasets.List({"answer": datasets.Value("string"), "answer_id": datasets.Value("int32")}),
            "kind": datasets.Value("string"),
        }
    )
    said = [{"answer": "y", "answer_id": 1}, {"answer": "z", "answer_id": 2}]
    row = {
        "views": [picture] * 2,
        "file": "a.png",
        "q": "q?",
        "right": 1,
        "options": ["x", "y"],
        "said": said,
        "kind": "k",
    }
    datasets.Dataset.from_list([row, row | {"right": -1}, row | {"right": 5}], features=features).save_to_disk(
        str(tmp_path / "d")
    )
    common = {"path": tmp_path / "d", "support_split": "test", "images": tmp_path, "image": ["views", "file"]}
    task = load_task(
        "hf", **common, question="q", answer="right", choices="options", references="said", metadata=["kind"]
    )
    query = task.queries[0]
    assert [p.load().size for p in query.images] == [(12, 8)] * 3
    assert (query.question, query.answer, query.choices) == ("q?", "y", ("x", "y"))
    assert query.references == ("y", "z")
    assert dict(query.metadata) == {"kind": "k"}
    assert query.id == "test-0"
    only = load_task("hf", **common, question="q", answer="right", choices="options")
    assert only.queries[1].answer is None  # -1: kept secret
    with pytest.raises(DataError, match="the answer 5 is the number of none of the 2 choices"):
        _ = only.queries[2]
    assert load_task("hf", **common, references="said").queries[0].answer == "y"


def test_one_parquet_file(tmp_path):
    features = datasets.Features({"image": datasets.Image(), "answer": datasets.Value("string")})
    images = [{"bytes": formats.picture(tmp_path / f"{n}.png", n).read_bytes(), "path": None} for n in range(6)]
    rows = datasets.Dataset.from_dict({"image": images, "answer": list("abcdef")}, features=features)
    rows.to_parquet(str(tmp_path / "x.parquet"))
    options = {"path": tmp_path / "x.parquet", "answer": "answer", "support_size": 2, "cache_dir": tmp_path / "cache"}
    task = load_task("hf", **options)
    assert (len(task.queries), len(task.support)) == (4, 2)
    assert sorted(e.answer for e in (*task.queries, *task.support)) == list("abcdef")
    assert [e.id for e in task.support] == [e.id for e in load_task("hf", **options).support]
    assert task.queries[0].images[0].load().size == (12, 8)
    assert task.describe()["files"]["data"]["name"] == "x.parquet"


def test_options_and_data_that_do_not_fit(tmp_path):
    options = formats.hf(tmp_path)
    with pytest.raises(OptionError, match="no column 'pixels'; its columns are: picture, label, key"):
        load_task("hf", **options | {"image": "pixels"})
    with pytest.raises(OptionError, match="no split 'dev'; its splits are: train, test"):
        load_task("hf", **options, split="dev")
    with pytest.raises(OptionError, match="answer= or references="):
        load_task("hf", path=options["path"])
    with pytest.raises(OptionError, match="between 1 and 3"):
        load_task("hf", **options, support_size=4)
    with pytest.raises(DataError, match="field 'label': '0' occurs twice"):
        load_task("hf", **options | {"id": "label"})
    text = tmp_path / "x.txt"
    text.write_text("x")
    with pytest.raises(DataError, match=r"a file of kind \.parquet"):
        load_task("hf", path=text, answer="a")
    with pytest.raises(DataError, match="cannot be loaded"):
        load_task("hf", path=tmp_path / "none", answer="a")
