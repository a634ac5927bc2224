"""The classes that training draws from: every source, what is kept of it, and what is said about wrong ones."""

from __future__ import annotations

import pickle
from collections import Counter
from pathlib import Path

import pytest

from kshot.data.imagenet_lists import held_out_classes
from kshot.data.link_class import LinkClass, LinkClasses, Neighbour
from kshot.data.link_classes import load_link_classes
from kshot.data.omniglot import Omniglot
from kshot.data.worlds import Glyphs
from kshot.errors import DataError, KshotError, OptionError, UnknownName
from kshot.picture import BytesPicture, FilePicture
from tests.data.concept_files import (
    omniglot_members,
    photo,
    train900_rows,
    write_folder,
    write_jsonl,
    write_zip,
)


def write_list(root: Path, rows: list[dict[str, object]] | None = None) -> Path:
    """A list of training classes and the images that it names."""
    rows = train900_rows() if rows is None else rows
    names = {path for row in rows for path in [*row["samples"], *(n[2] for n in row["neighbors"])]}  # type: ignore[misc,has-type]
    write_folder(root, {name: photo(number) for number, name in enumerate(sorted(names))})
    return write_jsonl(root / "train900_pairs.jsonl", rows)


def test_a_list_of_training_classes(tmp_path: Path) -> None:
    classes = load_link_classes(write_list(tmp_path))
    assert [(c.key, c.name) for c in classes] == [
        ("1", "kit fox"),
        ("2", "english setter"),
        ("3", "crane"),
        ("4", "crane"),
    ]
    setter = classes.by_key("2")
    assert setter is classes[1]
    assert [p.name for p in setter.pictures] == [str(tmp_path / f"train/n1/n1_{i}.JPEG") for i in range(3)]
    assert setter.pictures[0].load().size == (24, 16)
    assert [n.key for n in setter.neighbours] == ["1", "3", "4"]
    assert setter.neighbours[0].picture == FilePicture(tmp_path / "train/n0/n0_9.JPEG")


def test_namesakes_never_meet(tmp_path: Path) -> None:
    classes = load_link_classes(write_list(tmp_path))
    crane, machine = classes.by_key("3"), classes.by_key("4")
    assert classes.namesakes(crane) == ("4",)
    assert not classes.may_meet(crane, machine)
    assert not classes.may_meet(crane, crane)
    assert classes.may_meet(crane, classes[0])
    assert [n.key for n in crane.neighbours] == ["1", "2"]
    assert [n.key for n in machine.neighbours] == ["1", "2"]


def test_paths_are_found_in_an_imagenet_folder(tmp_path: Path) -> None:
    write_list(tmp_path / "ILSVRC" / "Data" / "CLS-LOC")
    file = write_jsonl(tmp_path / "list.jsonl", train900_rows())
    classes = load_link_classes(file, root=tmp_path / "ILSVRC")
    assert classes[0].pictures[0].load().size == (24, 16)
    assert classes.describe() == load_link_classes(file, root=tmp_path / "ILSVRC" / "Data" / "CLS-LOC").describe()


def test_missing_images_are_listed_with_their_lines(tmp_path: Path) -> None:
    file = write_list(tmp_path)
    for name in ("n1/n1_0.JPEG", "n2/n2_9.JPEG"):
        (tmp_path / "train" / name).unlink()
    message = (
        r"jsonl:1: 2 of 16 images not found under .*: train/n2/n2_9.JPEG \(line 1\), train/n1/n1_0.JPEG \(line 2\)"
    )
    with pytest.raises(DataError, match=message):
        load_link_classes(file)
    assert len(load_link_classes(file, check_images=False)) == 4
    rows = train900_rows()
    rows[3]["samples"] = ["x" * 300]
    with pytest.raises(DataError, match=r"images not found under .*xxx \(line 4\)"):
        load_link_classes(write_jsonl(tmp_path / "long.jsonl", rows))
    with pytest.raises(DataError, match="image folder not found"):
        load_link_classes(file, root=tmp_path / "nowhere")


def test_a_class_with_too_few_pictures_is_named(tmp_path: Path) -> None:
    rows = train900_rows()
    rows[1]["samples"] = rows[1]["samples"][:2]  # type: ignore[index]
    classes = load_link_classes(write_list(tmp_path, rows))
    classes.check(1)
    message = r"1 of 4 classes have fewer than the 3 pictures that 2 shots per side .* take: 2 english setter \(2\)"
    with pytest.raises(DataError, match=message):
        classes.check(2)
    classes.check(2, queries=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r[1]["samples"].append("train/n0/n0_1.JPEG"), "listed twice, in lines 1 and 2"),
        (lambda r: r[1]["samples"].append("train/n1/n1_1.JPEG"), "listed twice, in lines 2 and 2"),
        (lambda r: r[1].update(class_id="1"), "'1' occurs twice"),
        (lambda r: r[1]["neighbors"].append(["77", "owl", "train/n0/n0_9.JPEG"]), ":2 field 'neighbors': .*: 77"),
    ],
)
def test_wrong_lists(tmp_path: Path, change, message: str) -> None:  # type: ignore[no-untyped-def]
    rows = train900_rows()
    change(rows)
    with pytest.raises(DataError, match=message):
        load_link_classes(write_list(tmp_path, rows))


def test_one_folder_a_class(tmp_path: Path) -> None:
    members = {f"{folder}/{n}.png": photo(n) for folder in ("n01", "n02") for n in range(3)}
    root = write_folder(tmp_path / "mine", members)
    classes = load_link_classes(root, names={"n01": "Owl"})
    assert [(c.key, c.name, len(c.pictures), c.neighbours) for c in classes] == [
        ("n01", "Owl", 3, ()),
        ("n02", "n02", 3, ()),
    ]
    assert classes[1].pictures[2].name == str(root / "n02" / "2.png")
    moved = write_folder(tmp_path / "elsewhere" / "mine", members)
    assert load_link_classes(moved, names={"n01": "Owl"}).describe() == classes.describe()
    assert load_link_classes(moved).describe() != classes.describe()
    with pytest.raises(DataError, match="two classes of one name: n01 and n02"):
        load_link_classes(root, names={"n01": "owl", "n02": "Owl"})
    with pytest.raises(DataError, match="names= holds no folders of the root: n03"):
        load_link_classes(root, names={"n03": "owl"})


def test_omniglot_archives_and_folders(tmp_path: Path) -> None:
    members = omniglot_members({"Greek": 2, "Tifinagh": 3})
    archive = write_zip(tmp_path / "images_background.zip", members)
    classes = load_link_classes(archive)
    assert [c.key for c in classes][:3] == ["Greek/character01", "Greek/character02", "Tifinagh/character01"]
    assert {len(c.pictures) for c in classes} == {4}
    assert classes.kind == "omniglot"
    folder = write_folder(tmp_path / "unpacked", {n: d for n, d in members.items() if "__MACOSX" not in n})
    assert [c.key for c in load_link_classes(folder)] == [c.key for c in classes]
    assert load_link_classes(folder / "images_background").kind == "omniglot"


def test_tasks(tmp_path: Path) -> None:
    archive = write_zip(tmp_path / "images_background.zip", omniglot_members({"Greek": 5}))
    task = Omniglot(archive)
    classes = load_link_classes(task)
    assert [(c.key, len(c.pictures)) for c in classes] == [(c.key, len(c.pictures)) for c in task.concepts]
    assert load_link_classes("omniglot", root=archive).describe() == classes.describe()
    glyphs = load_link_classes("glyphs", classes=7, split="train")
    assert [c.key for c in glyphs] == [c.key for c in Glyphs(classes=7, split="train").concepts]
    digits = load_link_classes("digits")
    assert sum(len(c.pictures) for c in digits) == 1000  # the others are queries of the evaluation


def test_sources_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="unknown task 'glyph': did you mean 'glyphs'"):
        load_link_classes("glyph")
    with pytest.raises(DataError, match="file or folder not found"):
        load_link_classes(tmp_path / "train900_pairs.jsonl")
    with pytest.raises(OptionError, match=r"task 'omniglot': missing a required argument: 'root'"):
        load_link_classes("omniglot")
    with pytest.raises(OptionError, match=r"task 'glyphs': .*unexpected keyword argument 'way'"):
        load_link_classes("glyphs", way=2)
    with pytest.raises(OptionError, match="task 'scenes' has no list of classes"):
        load_link_classes("scenes")
    with pytest.raises(OptionError, match="takes no split="):
        load_link_classes(write_list(tmp_path), split="train")
    with pytest.raises(DataError, match="no class folders"):
        load_link_classes((tmp_path / "empty").mkdir() or tmp_path / "empty")


def one(key: str, *neighbours: str, name: str = "") -> LinkClass:
    pictures = [BytesPicture(photo(number), f"{key}{number}") for number in range(2)]
    return LinkClass(key, name or key, pictures, tuple(Neighbour(n) for n in neighbours))


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ([], "no classes found"),
        ([one("a"), one("a")], "two classes of one key: 'a'"),
        ([one("a", "b")], "neighbours of 'a' that are no other classes of the list: b"),
        ([one("a", "a"), one("b")], "neighbours of 'a' that are no other classes of the list: a"),
    ],
)
def test_wrong_classes(classes: list[LinkClass], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_link_classes(classes)
    with pytest.raises(KshotError):
        LinkClasses(classes, source="here", kind="mine")


def test_an_unknown_key_is_answered_with_the_nearest() -> None:
    classes = load_link_classes([one("owl"), one("eagle")])
    assert classes.place("eagle") == 1
    with pytest.raises(UnknownName, match="unknown class 'owll': did you mean 'owl'"):
        classes.by_key("owll")


def test_loader_processes_can_be_given_the_classes(tmp_path: Path) -> None:
    """Where processes are not forked, what they work on is pickled."""
    sources = [
        load_link_classes(write_list(tmp_path)),
        load_link_classes(write_folder(tmp_path / "mine", {f"{c}/{n}.png": photo(n) for c in "ab" for n in range(2)})),
        load_link_classes(write_zip(tmp_path / "o.zip", omniglot_members({"Greek": 2}))),
    ]
    for classes in sources:
        again = pickle.loads(pickle.dumps(classes))
        assert again.describe() == classes.describe()
        assert again[1].pictures[0].load().tobytes() == classes[1].pictures[0].load().tobytes()


def test_the_digest_tells_lists_apart(tmp_path: Path) -> None:
    rows = train900_rows()
    digests = set()
    for number in range(3):
        if number == 1:
            rows[0]["samples"].reverse()  # type: ignore[attr-defined]
        elif number == 2:
            rows[0]["neighbors"].reverse()  # type: ignore[attr-defined]
        digests.add(load_link_classes(write_list(tmp_path, rows)).describe()["digest"])
    assert len(digests) == 3


def test_the_published_classes(shared_data: Path) -> None:
    """The whole file: 900 classes of 36 images and 36 neighbours, none of them held out, and two names that occur twice."""
    file = shared_data / "imagenet" / "train900_pairs.jsonl"
    if not file.exists():
        pytest.skip(f"{file.name} is not among the real data")
    classes = load_link_classes(file, check_images=False)
    classes.check(35)
    assert len(classes) == 900
    assert {len(c.pictures) for c in classes} == {len(c.neighbours) for c in classes} == {36}
    assert not {c.key for c in classes} & {class_id for class_id, _, _ in held_out_classes()}
    assert {c.name: (c.key, *classes.namesakes(c)) for c in classes if classes.namesakes(c)}.keys() == {
        "crane",
        "maillot",
    }
    parts = Counter(path.split("/")[0] for c in classes for path in c.pictures.names)  # type: ignore[attr-defined]
    assert parts == {"train": 31245, "val": 1155}
    held = {c.key: {picture.name for picture in c.pictures} for c in classes}
    own = sum(n.picture.name in held[n.key] for c in classes for n in c.neighbours if n.picture)
    assert round(own / (900 * 36), 3) == 0.026
    assert classes.describe()["digest"] == load_link_classes(file, check_images=False).describe()["digest"]
