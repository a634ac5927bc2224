"""COCO and Flickr30k captions."""

from __future__ import annotations

import json

import pytest

from kshot.data.task import load_task
from kshot.episode import Episode
from kshot.errors import DataError, OptionError
from kshot.prompt import render_plain
from tests.data import formats

FIRST = "A man riding wave number {} on a surfboard."


def test_coco2014_uses_karpathys_split(tmp_path):
    task = load_task("coco2014", **formats.coco2014(tmp_path))
    assert [q.id for q in task.queries] == ["103", "104"]
    assert [s.id for s in task.support] == ["100", "101", "105"]  # train and restval
    query = task.queries[0]
    assert query.answer == FIRST.format(3)
    assert len(query.references) == 5
    assert query.images[0].name == str(tmp_path / "val2014" / "COCO_val2014_000000000103.jpg")
    assert [q.id for q in load_task("coco2014", root=tmp_path, split="val").queries] == ["102"]
    assert (task.metric, task.max_new_tokens) == ("cider", 20)


def test_the_prompt_is_that_of_live(tmp_path):
    task = load_task("coco2014", **formats.coco2014(tmp_path))
    text = render_plain(Episode((task.support[0],), task.queries[0]), task.template).text()
    assert text == f"<image>Caption:{FIRST.format(0)}\n\n<image>Caption:"


def test_a_caption_may_begin_with_any_word(tmp_path):
    task = load_task("coco2014", **formats.coco2014(tmp_path))
    assert task.parse(" Image of a cat\nCaption:") == "Image of a cat"
    assert task.parse(" A cat. Caption: A dog.") == "A cat."


def test_flickr30k_reads_both_layouts(tmp_path):
    one = load_task("flickr30k", **formats.flickr30k(tmp_path / "a"))
    other = load_task("flickr30k", **formats.flickr30k_tokens(tmp_path / "b"))
    for task in (one, other):
        assert (len(task.queries), len(task.support)) == (2, 2)
        assert len(task.queries[0].references) == 5
    for a, b in zip((*one.queries, *one.support), (*other.queries, *other.support), strict=True):
        assert a.images[0].digest == b.images[0].digest
        assert b.references == tuple(f"{r} ." for r in a.references)  # the token file holds tokenized sentences


def test_a_token_file_needs_the_split_lists(tmp_path):
    options = formats.flickr30k_tokens(tmp_path)
    (tmp_path / "test.txt").unlink()
    with pytest.raises(DataError, match=r"test\.txt: file not found .*Flickr30k Entities"):
        load_task("flickr30k", **options)
    (tmp_path / "test.txt").write_text("77\n")
    with pytest.raises(DataError, match=r"image 77 of test\.txt has no captions"):
        load_task("flickr30k", **options)
    (tmp_path / "results_20130124.token").write_text("1.jpg a caption\n")
    with pytest.raises(DataError, match=r"token:1: not of the form"):
        load_task("flickr30k", **options)


def test_coco2017_gathers_captions_by_image(tmp_path):
    task = load_task("coco2017", **formats.coco2017(tmp_path))
    assert [q.id for q in task.queries] == ["210", "211", "212"]
    assert task.queries[1].references[0] == FIRST.format(211)
    assert all(len(e.references) == 5 for e in (*task.queries, *task.support))
    assert task.support[0].images[0].load().size == (12, 8)
    given = load_task(
        "coco2017",
        captions=tmp_path / "annotations" / "captions_val2017.json",
        images=tmp_path / "val2017",
        support_captions=tmp_path / "annotations" / "captions_train2017.json",
        support_images=tmp_path / "train2017",
    )
    assert [e.images[0].digest for e in given.support] == [e.images[0].digest for e in task.support]
    assert [e.images[0].digest for e in given.queries] == [e.images[0].digest for e in task.queries]


def test_results_are_written_as_the_server_wants_them(tmp_path):
    task = load_task("coco2017", **formats.coco2017(tmp_path))
    task.write_results({"210": "a “wave”"}, tmp_path / "r.json")
    assert json.loads((tmp_path / "r.json").read_text()) == [{"image_id": 210, "caption": "a “wave”"}]
    with pytest.raises(DataError, match="not in this split"):
        task.write_results({"1": "x"}, tmp_path / "r.json")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda d: d["images"][0].pop("split"), ":1 field 'split': field is missing"),
        (lambda d: d["images"][3].pop("filename"), ":4 field 'filename': field is missing"),
        (lambda d: d["images"][3].update(sentences=[]), ":4 field 'sentences': the image has no captions"),
        (lambda d: d["images"][3]["sentences"][1].pop("raw"), ":4 field 'raw': field is missing"),
        (lambda d: d["images"][3].update(cocoid=104), "'104' occurs twice"),
        (lambda d: d["images"][3].update(cocoid="x"), "cocoid"),
        (lambda d: [i.update(split="train") for i in d["images"]], "no images of the split test"),
    ],
)
def test_karpathy_files_that_are_wrong(tmp_path, change, problem):
    options = formats.coco2014(tmp_path)
    file = tmp_path / "dataset_coco.json"
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))
    with pytest.raises(DataError, match=problem):
        load_task("coco2014", **options)


def test_coco2017_captions_without_image_and_the_reverse(tmp_path):
    options = formats.coco2017(tmp_path)
    file = tmp_path / "annotations" / "captions_val2017.json"
    data = json.loads(file.read_text())
    file.write_text(json.dumps(data | {"images": data["images"][1:]}))
    with pytest.raises(DataError, match="caption of image 210, which is not under 'images'"):
        load_task("coco2017", **options)
    file.write_text(json.dumps(data | {"annotations": data["annotations"][:1]}))
    with pytest.raises(DataError, match="image 211 has no captions"):
        load_task("coco2017", **options)


def test_missing_files_and_splits(tmp_path):
    with pytest.raises(DataError, match=r"there is no dataset_coco\.json here .*karpathy"):
        load_task("coco2014", root=tmp_path)
    with pytest.raises(DataError, match=r"dataset_flickr30k\.json or results_20130124\.token"):
        load_task("flickr30k", root=tmp_path)
    with pytest.raises(OptionError, match="needs root="):
        load_task("coco2014")
    with pytest.raises(OptionError, match="no split 'dev'"):
        load_task("coco2017", root=tmp_path, split="dev")
