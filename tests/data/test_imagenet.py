"""ImageNet-100: the list drawn from a folder, the list read from a file, and the 900 training classes."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from pathlib import Path

import pytest

from kshot.data.imagenet import ImageNet100
from kshot.data.imagenet_folder import find_images
from kshot.data.imagenet_lists import build_test100, held_out_classes, read_test100, read_train900
from kshot.data.imagenet_lists import write_test100 as write_list
from kshot.errors import DataError, KshotError
from tests.data.concept_files import photo, train900_rows, write_imagenet, write_jsonl, write_test100

WHIPPET, DEERHOUND = "n02091134", "n02092002"  # class ids 20 and 21, the first pair


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_imagenet(tmp_path_factory.mktemp("imagenet"))


def test_the_held_out_classes() -> None:
    classes = held_out_classes()
    assert len({i for i, _, _ in classes}) == len({w for _, w, _ in classes}) == len({n for _, _, n in classes}) == 100
    ids = [int(class_id) for class_id, _, _ in classes]
    assert ids == sorted(ids)
    pairs = [(classes[k][2], classes[k + 1][2]) for k in range(0, 100, 2)]
    assert pairs[0] == ("whippet", "scottish deerhound")
    assert ("loggerhead", "banded gecko") in pairs
    assert pairs[-1] == ("stretcher", "matchstick")


def test_a_list_drawn_from_a_folder(imagenet: Path) -> None:
    rows = build_test100(imagenet)
    assert [row.class_name for row in rows] == [name for _, _, name in held_out_classes()]
    for row, (_, wnid, _) in zip(rows, held_out_classes(), strict=True):
        assert (len(row.context_samples), len(row.test_samples)) == (32, 2)
        assert {*row.context_samples, *row.test_samples} == {f"train/{wnid}/{wnid}_{i}.JPEG" for i in range(34)}
    assert build_test100(imagenet) == rows
    assert build_test100(imagenet, seed=1)[0].context_samples != rows[0].context_samples


def test_a_drawn_list_can_be_written_and_read_back(imagenet: Path, tmp_path: Path) -> None:
    drawn = ImageNet100(imagenet, episodes_per_class=2)
    file = tmp_path / "test100_pairs.jsonl"
    write_list(drawn.classes, file)
    record = json.loads(file.read_text().splitlines()[0])
    assert list(record) == ["class_id", "class_name", "context_samples", "test_samples"]
    again = ImageNet100(imagenet, file, episodes_per_class=2)
    assert again.classes == drawn.classes
    assert [q.with_(images=()) for q in again.queries] == [q.with_(images=()) for q in drawn.queries]
    assert again.describe() == drawn.describe()


def test_episodes_are_the_published_ones(tmp_path: Path) -> None:
    task = ImageNet100(tmp_path, write_test100(tmp_path, classes=4), episodes_per_class=3)
    queries = list(task.queries)
    assert [q.answer for q in queries] == ["whippet"] * 3 + ["scottish deerhound"] * 3 + ["airedale"] * 3 + [
        "papillon"
    ] * 3
    assert all(set(q.choices) == {"whippet", "scottish deerhound"} for q in queries[:6])
    assert all(set(q.choices) == {"airedale", "papillon"} for q in queries[6:])
    assert Counter(q.choices.index(q.text_answer) for q in queries).keys() == {0, 1}
    for number, query in enumerate(queries):
        pool = list(task.pool(query))
        assert Counter(e.answer for e in pool) == dict.fromkeys(query.choices, 4)
        wnid = held_out_classes()[number // 3][1]
        assert query.images[0].name == str(tmp_path / f"train/{wnid}/{wnid}_{4 + number % 3}.JPEG")
        assert all((wnid in e.images[0].name) == (e.answer == query.answer) for e in pool)
        assert query.images[0].load().size == (24, 16)
    assert (task.shots, task.metric, task.retriever, task.style) == ((2,), "two_name", "first", "link")


def test_five_thousand_episodes(tmp_path: Path, imagenet: Path) -> None:
    rows = [{**r.__dict__, "test_samples": [f"{i}.JPEG" for i in range(60)]} for r in build_test100(imagenet)]
    task = ImageNet100(imagenet, write_jsonl(tmp_path / "list.jsonl", rows))
    assert len(task.queries) == 5000
    assert task.queries[4999].answer == "matchstick"


def test_a_pair_keeps_its_invented_names(tmp_path: Path) -> None:
    task = ImageNet100(tmp_path, write_test100(tmp_path), episodes_per_class=3, names="invented")
    names = [frozenset(q.choices) for q in task.queries]
    assert len(set(names[:6])) == 1
    called = {(q.metadata["class"], q.answer) for q in task.queries}
    assert len(called) == 4  # each class keeps its name, in whichever order the two are offered
    assert len({q.choices for q in list(task.queries)[:6]}) == 2
    assert not any(n & m for n in names[:6] for m in names[6:])


def test_the_ilsvrc_folder_with_flat_validation_images(tmp_path: Path) -> None:
    base = tmp_path / "Data" / "CLS-LOC"
    for wnid in (WHIPPET, DEERHOUND):
        (base / "train" / wnid).mkdir(parents=True)
        (base / "train" / wnid / f"{wnid}_1.JPEG").write_bytes(photo(1))
    (base / "val").mkdir()
    for number in range(1, 6):
        (base / "val" / f"ILSVRC2012_val_{number:08d}.JPEG").write_bytes(photo(number))
    classes = {WHIPPET: 20, DEERHOUND: 21}
    with pytest.warns(UserWarning, match="validation images are left out"):
        alone = find_images(tmp_path, classes)
    assert alone == {w: [f"Data/CLS-LOC/train/{w}/{w}_1.JPEG"] for w in classes}

    expected = {WHIPPET: [2, 5], DEERHOUND: [3]}
    kits = {
        "devkit/data/ILSVRC2015_clsloc_validation_ground_truth.txt": "490\n20\n21\n7\n20\n",
        "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt": "490\n20\n21\n7\n20\n",
        "LOC_val_solution.csv": "ImageId,PredictionString\n"
        f"ILSVRC2012_val_00000005,{WHIPPET} 1 2 3 4 \nILSVRC2012_val_00000001,n01751748 1 2 3 4 \n"
        f"ILSVRC2012_val_00000003,{DEERHOUND} 1 2 3 4 {DEERHOUND} 5 6 7 8 \nILSVRC2012_val_00000002,{WHIPPET} 1 2 3 4 \n",
    }
    for name, text in kits.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        found = find_images(tmp_path, classes)
        assert {wnid: [int(p[-13:-5]) for p in paths if "/val/" in p] for wnid, paths in found.items()} == expected, (
            name
        )
        assert find_images(base, classes)[WHIPPET][-1] == "val/ILSVRC2012_val_00000005.JPEG"
        file.unlink()


def test_validation_images_in_class_folders(tmp_path: Path) -> None:
    for part in ("train", "val"):
        (tmp_path / part / WHIPPET).mkdir(parents=True)
        (tmp_path / part / WHIPPET / f"{part}.JPEG").write_bytes(photo(1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert find_images(tmp_path, {WHIPPET: 20}) == {
            WHIPPET: [f"train/{WHIPPET}/train.JPEG", f"val/{WHIPPET}/val.JPEG"]
        }


def test_unusable_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: folder not found"):
        find_images(tmp_path / "nowhere", {WHIPPET: 20})
    with pytest.raises(DataError, match="no folder train/ in it"):
        find_images(tmp_path, {WHIPPET: 20})
    (tmp_path / "train" / WHIPPET).mkdir(parents=True)
    with pytest.raises(DataError, match=f"1 class folders are missing: {DEERHOUND}"):
        find_images(tmp_path, {WHIPPET: 20, DEERHOUND: 21})
    (tmp_path / "val").mkdir()
    labels = tmp_path / "labels.txt"
    labels.write_text("20\nx7\n")
    with pytest.raises(DataError, match=r"labels.txt:2: expected a class number, found 'x7'"):
        find_images(tmp_path, {WHIPPET: 20}, labels)
    with pytest.raises(DataError, match="99 class folders are missing"):
        ImageNet100(tmp_path)


def test_classes_with_too_few_images(tmp_path: Path, imagenet: Path) -> None:
    with pytest.raises(DataError, match=r"fewer images than episodes_per_class=50: whippet .2., .* and 95 more"):
        ImageNet100(imagenet)
    with pytest.raises(DataError, match="fewer images than shots_per_class=33"):
        ImageNet100(imagenet, episodes_per_class=1, shots_per_class=33)
    with pytest.raises(DataError, match=r"classes with 34 images or fewer: n02091134 \(whippet\): 34"):
        build_test100(imagenet, context=34)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[:3], "3 classes cannot be paired"),
        (lambda rows: [], "0 classes cannot be paired"),
        (lambda rows: [*rows[:3], rows[0]], "'20' occurs twice"),
        (lambda rows: [rows[0], rows[1] | {"class_name": "WHIPPET"}], "list.jsonl:2: a pair of two equal names"),
        (
            lambda rows: [rows[0] | {"test_samples": rows[0]["context_samples"]}, rows[1]],
            ":1: context images among the test",
        ),
        (lambda rows: [rows[0], {"class_id": "1"}], ":2 field 'context_samples': field is missing"),
        (
            lambda rows: [rows[0] | {"class_id": 20}, rows[1]],
            ":1 field 'class_id': text is expected, not a whole number",
        ),
    ],
)
def test_wrong_test_lists(tmp_path: Path, change, message: str) -> None:  # type: ignore[no-untyped-def]
    rows = [json.loads(line) for line in write_test100(tmp_path).read_text().splitlines()]
    with pytest.raises(KshotError, match=message):
        read_test100(write_jsonl(tmp_path / "list.jsonl", change(rows)))


def test_training_classes(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"names that several classes bear: 'crane' \(3, 4\)"):
        read = read_train900(write_jsonl(tmp_path / "train.jsonl", train900_rows()))
    assert read.duplicate_names == {"crane": ("3", "4")}
    setter = read.by_id()["2"]
    assert (setter.class_name, setter.samples[0]) == ("English setter", "train/n1/n1_0.JPEG")
    assert (setter.neighbors[0].class_id, setter.neighbors[0].class_name) == ("1", "kit fox")
    assert setter.neighbors[0].sample == "train/n0/n0_9.JPEG"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda r: r[0].update(neighbors=[["1", "kit fox", "a.JPEG"]]),
            ":1 field 'neighbors': neighbours must be other classes",
        ),
        (lambda r: r[1].update(neighbors=[["7", "owl", "a.JPEG"]]), ":2 field 'neighbors': .*: 7"),
        (lambda r: r[1].update(neighbors=[["1", "a", "b"], ["1", "a", "c"]]), "each named once: 1"),
        (
            lambda r: r[1].update(neighbors=[["1", "a"]]),
            "a neighbour is .class id, class name, image., three texts, not a list",
        ),
        (lambda r: r[1].update(class_id="1"), "'1' occurs twice"),
        (lambda r: r[0].update(samples=[]), ":1 field 'samples': a class without images"),
        (lambda r: r[0].pop("samples"), ":1 field 'samples': field is missing"),
        (lambda r: r.clear(), "no classes"),
    ],
)
def test_wrong_training_classes(tmp_path: Path, change, message: str) -> None:  # type: ignore[no-untyped-def]
    rows = train900_rows(["kit fox", "English setter"])
    change(rows)
    with pytest.raises(DataError, match=message):
        read_train900(write_jsonl(tmp_path / "train.jsonl", rows))


def test_the_published_training_classes(shared_data: Path) -> None:
    file = shared_data / "imagenet" / "train900_pairs.jsonl"
    if not file.exists():
        pytest.skip(f"{file.name} is not among the real data")
    with pytest.warns(UserWarning, match=r"'crane' \(429, 545\), 'maillot' \(782, 977\)"):
        read = read_train900(file)
    assert len(read.classes) == 900
    assert {len(c.samples) for c in read.classes} == {len(c.neighbors) for c in read.classes} == {36}
    assert not {c.class_id for c in read.classes} & {class_id for class_id, _, _ in held_out_classes()}
