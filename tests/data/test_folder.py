"""Folders of images by class."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from kshot.data.task import load_task
from kshot.errors import DataError, OptionError
from tests.data import formats


def test_folders_are_classes(tmp_path):
    task = load_task("image_folder", **formats.image_folder(tmp_path))
    assert task.labels == ("cacti hog", "hedgehog", "octopus")
    assert Counter(e.answer for e in task.support) == Counter(e.answer for e in task.queries)
    assert len(task.support) == len(task.queries) == 6
    assert not {e.id for e in task.support} & {e.id for e in task.queries}
    query = task.queries[0]
    assert query.images[0].name.endswith(f"photos/{query.id}")
    assert query.metadata["class"] == query.answer == query.id.split("/")[0]
    assert task.candidates(query) == task.labels
    assert task.retriever == "balanced"


def test_files_that_are_no_images_are_counted(tmp_path):
    task = load_task("image_folder", **formats.image_folder(tmp_path))
    assert task.describe()["skipped"] == {"files that are no images": 1}


def test_the_split_of_a_class_depends_on_the_seed_but_not_on_other_classes(tmp_path):
    options = formats.image_folder(tmp_path)

    def aside(seed):
        return {e.id for e in load_task("image_folder", **options, seed=seed).support}

    before = [aside(seed) for seed in range(6)]
    assert len({frozenset(ids) for ids in before}) > 1
    for number in range(4):
        formats.picture(tmp_path / "photos" / "zebra" / f"{number}.png", 90 + number)
    after = [aside(seed) for seed in range(6)]
    assert all(b <= a for b, a in zip(before, after, strict=True))


def test_separate_folders_and_names(tmp_path):
    for part, first in (("train", 0), ("test", 10)):
        for kind, folder in enumerate(("n01", "n02")):
            for number in range(2):
                formats.picture(tmp_path / part / folder / "more" / f"{number}.JPEG", first + kind * 5 + number)
    names = formats.write_json(tmp_path / "names.json", {"n01": "kit fox"})
    task = load_task("image_folder", support=tmp_path / "train", queries=tmp_path / "test", names=names)
    assert task.labels == ("kit fox", "n02")
    assert [e.answer for e in task.queries] == ["kit fox", "kit fox", "n02", "n02"]
    assert task.support[0].images[0].digest != task.queries[0].images[0].digest
    (tmp_path / "train" / "n02").rename(tmp_path / "train" / "n03")
    with pytest.raises(DataError, match="class 'n02' is not in the support set"):
        load_task("image_folder", support=tmp_path / "train", queries=tmp_path / "test")


def test_folders_that_cannot_be_used(tmp_path):
    options = formats.image_folder(tmp_path)
    with pytest.raises(DataError, match=r"hedgehog: class 'hedgehog' has 4 images|'cacti hog' has 4 images, too few"):
        load_task("image_folder", root=options["root"], support_per_class=4)
    (options["root"] / "empty").mkdir()
    with pytest.raises(DataError, match="empty: class without images"):
        load_task("image_folder", **options)
    with pytest.raises(DataError, match="no class folders"):
        load_task("image_folder", root=options["root"] / "octopus")
    with pytest.raises(DataError, match="no such folder"):
        load_task("image_folder", root=tmp_path / "none")


def test_two_folders_with_one_name_are_refused(tmp_path):
    options = formats.image_folder(tmp_path)
    with pytest.raises(DataError, match="'hedgehog' occurs twice"):
        load_task("image_folder", **options, names={"octopus": "hedgehog"})
    bad = formats.write_json(tmp_path / "names.json", ["x"])
    with pytest.raises(DataError, match="an object from folder name to label"):
        load_task("image_folder", **options, names=bad)


def test_options_that_do_not_fit(tmp_path):
    for options in ({}, {"support": tmp_path}, {"root": tmp_path, "support": tmp_path, "queries": tmp_path}):
        with pytest.raises(OptionError, match="either root=, or both"):
            load_task("image_folder", **options)
    with pytest.raises(OptionError, match="at least 1"):
        load_task("image_folder", root=tmp_path, support_per_class=0)


def test_the_description_is_json(tmp_path):
    described = load_task("image_folder", **formats.image_folder(tmp_path)).describe()
    assert json.loads(json.dumps(described))["labels"] == ["cacti hog", "hedgehog", "octopus"]
