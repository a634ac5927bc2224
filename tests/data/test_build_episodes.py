"""``kshot build-episodes``: what it makes is in the published formats, and the tasks read it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from kshot.cli import main
from kshot.data import embeddings
from kshot.data.build_episodes import build_episodes
from kshot.data.class_similarity import neighbour_bins, ranked
from kshot.data.imagenet import ImageNet100
from kshot.data.imagenet_lists import held_out_classes, read_test100, read_train900
from kshot.data.imagenet_train import read_class_map, shipped_names, write_train900
from kshot.data.isekai import Isekai, read_isekai
from kshot.data.link_classes import load_link_classes
from kshot.errors import DataError, KshotError, OptionError
from tests.data.concept_files import photo, write_folder
from tests.data.contrastive import save_contrastive

TRAIN = {"n02119789": "kit_fox", "n02100735": "English_setter", "n02012849": "crane", "n03126707": "crane"}
WHIPPET, DEERHOUND, AIREDALE = "n02091134", "n02092002", "n02096051"


def imagenet_members(per_class: int = 5, kit: bool = True) -> dict[str, bytes]:
    """An ILSVRC folder: four training classes, a test pair and half of another one, flat validation images, the kit."""
    wnids = [*TRAIN, WHIPPET, DEERHOUND, AIREDALE]
    members = {
        f"Data/CLS-LOC/train/{wnid}/{wnid}_{number}.JPEG": photo(100 * k + number)
        for k, wnid in enumerate(wnids)
        for number in range(per_class)
    }
    members |= {f"Data/CLS-LOC/val/ILSVRC2012_val_{n:08d}.JPEG": photo(900 + n) for n in range(1, 5)}
    members["Data/CLS-LOC/test/ILSVRC2012_test_00000001.JPEG"] = photo(1)
    ids = shipped_names()
    truth = [ids[WHIPPET][0], ids["n02119789"][0], "490", ids[DEERHOUND][0]]
    members["devkit/data/ILSVRC2015_clsloc_validation_ground_truth.txt"] = "".join(f"{n}\n" for n in truth).encode()
    if kit:
        names = {**{wnid: name.replace(" ", "_") for wnid, (_, name) in ids.items()}, **TRAIN}
        members["devkit/data/map_clsloc.txt"] = "".join(f"{w} {ids[w][0]} {names[w]}\n" for w in sorted(ids)).encode()
    return members


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("ILSVRC"), imagenet_members())


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_contrastive(tmp_path_factory.mktemp("clip"))


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_imagenet(imagenet: Path, tmp_path: Path) -> None:
    built = build_episodes("imagenet", root=str(imagenet), out=str(tmp_path), context=2)
    assert {path.name for path in tmp_path.iterdir()} == {"train900_pairs.jsonl", "test100_pairs.jsonl"}

    train = lines(tmp_path / "train900_pairs.jsonl")
    assert [(r["class_id"], r["class_name"]) for r in train] == [
        ("1", "kit fox"),
        ("2", "English setter"),
        ("429", "crane"),
        ("545", "crane"),
    ]
    by_id = {row["class_id"]: row for row in train}
    for row, wnid in zip(train, TRAIN, strict=True):
        assert list(row) == ["class_id", "class_name", "samples", "neighbors"]
        own = {f"train/{wnid}/{wnid}_{n}.JPEG" for n in range(5)}
        own |= {"val/ILSVRC2012_val_00000002.JPEG"} if row["class_id"] == "1" else set()
        assert len(row["samples"]) == len(own)
        assert set(row["samples"]) == own
        assert (
            len({n[0] for n in row["neighbors"]}) == len(row["neighbors"]) == (2 if row["class_name"] == "crane" else 3)
        )
        for class_id, name, path in row["neighbors"]:
            assert by_id[class_id]["class_name"] == name
            assert name != "crane" or row["class_name"] != "crane"
            assert path in by_id[class_id]["samples"]  # every image of so small a class is a sample

    test = lines(tmp_path / "test100_pairs.jsonl")
    assert [(r["class_id"], r["class_name"]) for r in test] == [("20", "whippet"), ("21", "Scottish deerhound")]
    for row, wnid, val in zip(test, (WHIPPET, DEERHOUND), (1, 4), strict=True):
        assert list(row) == ["class_id", "class_name", "context_samples", "test_samples"]
        assert len(row["context_samples"]) == 2
        own = {f"train/{wnid}/{wnid}_{n}.JPEG" for n in range(5)} | {f"val/ILSVRC2012_val_{val:08d}.JPEG"}
        assert {*row["context_samples"], *row["test_samples"]} == own
        assert len(row["context_samples"]) + len(row["test_samples"]) == 6

    assert built.counts == {
        "training classes": 4,
        "training images": 21,
        "neighbours": 10,
        "test classes": 2,
        "images for demonstrations": 4,
        "test images": 8,
    }
    said = str(built)
    assert "993 classes have no folder in train/" in said
    assert "98 of 100 test classes are left out" in said
    assert "neighbours are random" in said
    assert "4 classes have fewer than 36 images: kit fox (6), English setter (5), crane (5), crane (5)" in said
    assert "4 classes are too few for 36 neighbours each: some have 2" in said
    assert f"image root: {imagenet}/Data/CLS-LOC" in said


def test_what_is_made_can_be_read(imagenet: Path, tmp_path: Path) -> None:
    build_episodes("imagenet", root=str(imagenet), out=str(tmp_path), context=2)
    classes = load_link_classes(tmp_path / "train900_pairs.jsonl", root=imagenet)
    classes.check(4)
    assert classes[0].pictures[0].load().size == (24, 16)
    for base in (imagenet, imagenet / "Data" / "CLS-LOC"):
        task = ImageNet100(base, tmp_path / "test100_pairs.jsonl", episodes_per_class=2)
        assert [q.answer for q in task.queries] == ["whippet"] * 2 + ["scottish deerhound"] * 2
        assert all(e.images[0].load().size == (24, 16) for q in task.queries for e in (q, *task.pool(q)))


def test_the_same_seed_gives_the_same_bytes(imagenet: Path, tmp_path: Path) -> None:
    written = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        build_episodes("imagenet", root=str(imagenet), out=str(tmp_path / name), context=2, seed=seed)
        written[name] = [path.read_bytes() for path in sorted((tmp_path / name).iterdir())]
    assert written["a"] == written["b"]
    assert all(one != other for one, other in zip(written["a"], written["c"], strict=True))


def test_the_inner_folder_will_do_and_so_will_no_kit(imagenet: Path, tmp_path: Path) -> None:
    bare = write_folder(tmp_path / "bare", imagenet_members(kit=False))
    for name, root in (("whole", imagenet), ("inner", imagenet / "Data" / "CLS-LOC"), ("bare", bare)):
        built = build_episodes("imagenet", root=str(root), out=str(tmp_path / "out" / name), context=2)
        assert ("no map_clsloc.txt found" in str(built)) == (name == "bare")
    whole, *others = [
        [(tmp_path / "out" / name / f).read_bytes() for f in ("train900_pairs.jsonl", "test100_pairs.jsonl")]
        for name in ("whole", "inner", "bare")
    ]
    assert others == [whole, whole]


def test_similar_neighbours(imagenet: Path, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"root": str(imagenet), "clip": str(clip), "context": 2, "cache": str(tmp_path / "cache")}
    built = build_episodes("imagenet", out=str(tmp_path / "out"), bins=2, **options)
    assert not any("random" in notice for notice in built.notices)
    with safe_open(tmp_path / "out" / "class_similarity.safetensors", framework="numpy") as file:
        order = ranked(file.get_tensor("similarity"))
        wnids = json.loads(file.metadata()["classes"])
    assert wnids == list(TRAIN)
    rows = lines(tmp_path / "out" / "train900_pairs.jsonl")
    ids = [row["class_id"] for row in rows]
    cranes = {2, 3}
    for number, row in enumerate(rows):
        expected = []
        for cut in neighbour_bins(4, 2):
            own = {ids[order[number, rank]] for rank in cut if not {number, order[number, rank]} <= cranes}
            expected += [own] if own else []
        assert len(row["neighbors"]) == len(expected)
        assert all(n[0] in own for n, own in zip(row["neighbors"], expected, strict=True))

    # A rerun takes the similarity from the file: the model sees no picture.
    monkeypatch.setattr(embeddings.ContrastiveEmbedder, "images", lambda *_: pytest.fail("computed again"))
    before = (tmp_path / "out" / "train900_pairs.jsonl").read_bytes()
    build_episodes("imagenet", out=str(tmp_path / "out"), bins=2, **options)
    assert (tmp_path / "out" / "train900_pairs.jsonl").read_bytes() == before
    # Elsewhere the features come from the cache.
    build_episodes("imagenet", out=str(tmp_path / "again"), bins=2, **options)
    assert (tmp_path / "again" / "train900_pairs.jsonl").read_bytes() == before
    # Other images: neither will do.
    fresh = {"cache": str(tmp_path / "new"), "images_per_class": 2}
    with pytest.raises(pytest.fail.Exception, match="computed again"):
        build_episodes("imagenet", out=str(tmp_path / "out"), bins=2, **(options | fresh))


def test_damaged_images_are_listed_and_not_drawn(clip: Path, tmp_path: Path) -> None:
    members = {f"{name}/{n}.jpg": photo(n) for name in ("cat", "dog") for n in range(3)} | {"cat/bad.jpg": b"no image"}
    root = write_folder(tmp_path / "mine", members)
    built = build_episodes(
        "folders", root=str(root), out=str(tmp_path / "list.jsonl"), clip=str(clip), cache=str(tmp_path)
    )
    for _ in range(2):
        assert built.skipped.keys() == {"cat/bad.jpg"}
        assert "1  images skipped" in str(built)
        assert "cat/bad.jpg: " in str(built)
        assert "bad.jpg" not in (tmp_path / "list.jsonl").read_text()
        built = build_episodes(
            "folders", root=str(root), out=str(tmp_path / "list.jsonl"), clip=str(clip), cache=str(tmp_path)
        )
    assert {p.name for p in built.files.values()} == {"list.jsonl", "list.class_similarity.safetensors"}


def test_folders_of_your_own(tmp_path: Path) -> None:
    root = write_folder(
        tmp_path / "mine", {f"{c}/deep/{n}.png": photo(n) for c in ("owl", "Elk", "n01") for n in range(4)}
    )
    out = tmp_path / "list.jsonl"
    built = build_episodes("folders", root=str(root), out=str(out), names={"n01": "kit fox"}, samples=3, bins=1)
    assert built.counts == {"training classes": 3, "training images": 9, "neighbours": 3}
    assert [(r["class_id"], r["class_name"]) for r in lines(out)] == [("1", "Elk"), ("2", "kit fox"), ("3", "owl")]
    classes = load_link_classes(out, root=root)
    assert [len(c.pictures) for c in classes] == [3, 3, 3]
    assert all(p.load() and "deep" in p.name for c in classes for p in c.pictures)
    with pytest.raises(DataError, match="two classes of one name: Elk, elk"):
        build_episodes("folders", root=str(root), out=str(out), names={"owl": "elk"})


def isekai_members() -> dict[str, bytes]:
    groups = [("cactihog", "hedgehog"), ("MushroomHaven", "mushroom"), ("icemic", "ice cream")]
    return {
        f"{positive}/{side}-{name}/{n}.png": photo(1000 * g + 100 * s + n)
        for g, (positive, negative) in enumerate(groups)
        for s, (side, name) in enumerate((("pos", positive), ("neg", negative)))
        for n in range(3)
    }


def test_isekai(tmp_path: Path) -> None:
    root, out = write_folder(tmp_path / "ISEKAI-10", isekai_members()), tmp_path / "out" / "ISEKAI-10.json"
    built = build_episodes("isekai", root=str(root), out=str(out))
    rows = lines(out)
    assert list(rows[0]) == [
        "image_name",
        "positive_list",
        "negative_list",
        "positive_promt",
        "negative_promt",
        "label_name",
    ]
    assert built.counts == {
        "pairs of classes": 3,
        "queries of the positive class": 9,
        "queries of the negative class": 9,
    }
    first = rows[0]
    assert first["label_name"] == first["positive_promt"] == "MushroomHaven"
    assert first["positive_list"] == [f"MushroomHaven/pos-MushroomHaven/{n}.png" for n in range(3)]
    assert first["negative_list"] == [f"MushroomHaven/neg-mushroom/{n}.png" for n in range(3)]
    task = Isekai(root, out)
    assert len(task.queries) == 18
    assert all(len(task.pool(query)) == 5 for query in task.queries)
    for queries, count in (("positive", 9), ("negative", 9)):
        build_episodes("isekai", root=str(root), out=str(out), queries=queries)  # type: ignore[arg-type]
        labels = {(r["label_name"] == r["positive_promt"]) for r in lines(out)}
        assert (labels, len(lines(out))) == ({queries == "positive"}, count)


def test_isekai_pairs(tmp_path: Path) -> None:
    """Each picture of an invented concept is paired with every other invented concept, and both are queries."""
    root, out = write_folder(tmp_path / "ISEKAI-pair", isekai_members()), tmp_path / "ISEKAI-pair.json"
    built = build_episodes("isekai", root=str(root), out=str(out), pairs=True)
    records = read_isekai(out)
    concepts = {"cactihog", "MushroomHaven", "icemic"}
    assert built.counts["pairs of classes"] == 3
    asked = [(r.image, ({r.positive_name, r.negative_name} - {r.label}).pop()) for r in records]
    expected = {(f"{one}/pos-{one}/{n}.png", other) for one in concepts for n in range(3) for other in concepts - {one}}
    assert len(asked) == len(set(asked)) == 18
    assert set(asked) == expected
    for record in records:
        assert record.positive == tuple(f"{record.positive_name}/pos-{record.positive_name}/{n}.png" for n in range(3))
    assert all(len(task_pool) == 5 for task in [Isekai(root, out)] for task_pool in map(task.pool, task.queries))


def test_the_published_example_pictures(shared_data: Path, tmp_path: Path) -> None:
    if not (shared_data / "isekai").is_dir():
        pytest.skip("the ISEKAI example pictures are not among the real data")
    built = build_episodes("isekai", root=str(shared_data / "isekai"), out=str(tmp_path / "a.json"))
    assert built.notices == ("flat folders hold queries of the positive class only",)
    assert [r.label for r in read_isekai(tmp_path / "a.json")] == ["airstone", "cactihog", "cctovac", "icemic"]
    build_episodes("isekai", root=str(shared_data / "isekai"), out=str(tmp_path / "b.json"), pairs=True)
    task = Isekai(shared_data / "isekai", tmp_path / "b.json")
    pictures = {"airstone": 3, "cactihog": 2, "cctovac": 2, "icemic": 2}
    assert len(task.queries) == sum(3 * count for count in pictures.values())
    assert {len(task.pool(q)) for q in task.queries} == {3, 4}


def test_the_command(imagenet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build-episodes", "imagenet", "--root", str(imagenet), "--out", str(tmp_path), "--context", "2"]) == 0
    said = capsys.readouterr().out
    assert "4  training classes" in said
    assert "2  test classes" in said
    assert "0  images skipped" in said
    root = write_folder(
        tmp_path / "flat", {f"g/{n}": photo(k) for k, n in enumerate(("pos1.jpg", "neg1.jpg", "infer1.jpg"))}
    )
    words = ["build-episodes", "isekai", "--root", str(root), "--out", str(tmp_path / "i.json")]
    assert main([*words, "--labels", '{"g": ["owl", "elk"]}']) == 0
    assert "an odd number of lines" in capsys.readouterr().out
    assert main(words) == 2
    assert "what is the negative class of 'g' called" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("imagenette", {}, "kind='imagenette': must be one of imagenet, folders, isekai"),
        ("isekai", {"clip": "x"}, "--clip is no option of isekai; it takes pairs, queries, labels"),
        ("folders", {"context": 3}, "--context is no option of folders"),
        ("imagenet", {"neighbours": "similar"}, "needs --clip"),
        ("imagenet", {"context": 0}, "--context 0: must be 1 or more"),
        ("imagenet", {"context": 6}, r"classes with 6 images or fewer: n02091134 .whippet.: 6, .*lower context"),
        ("imagenet", {"root": "nowhere"}, "nowhere: folder not found"),
        ("imagenet", {"class_map": "nowhere.txt"}, "nowhere.txt: file not found"),
    ],
)
def test_wrong_options(imagenet: Path, tmp_path: Path, kind: str, options: Mapping[str, Any], message: str) -> None:
    with pytest.raises(KshotError, match=message):
        build_episodes(kind, **({"root": str(imagenet), "out": str(tmp_path / "out")} | dict(options)))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("n02119789 1 kit_fox\nn02100735 English_setter\n", "map.txt:2: expected a wnid, a class number and a name"),
        ("n02119789 1 kit_fox\nn02100735 1 setter\n", "map.txt:2 field 'class id': '1' occurs twice"),
        ("n02119789 1 kit_fox\nn02119789 2 setter\n", "map.txt:2 field 'wnid': 'n02119789' occurs twice"),
        ("\n", "map.txt: no classes"),
    ],
)
def test_wrong_class_maps(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "map.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        read_class_map(tmp_path / "map.txt")


def test_other_class_ids_and_folders_are_noticed(imagenet: Path, tmp_path: Path) -> None:
    members = {f"train/{wnid}/{n}.JPEG": photo(n) for wnid in (*TRAIN, WHIPPET, DEERHOUND, "mine") for n in range(3)}
    root = write_folder(tmp_path / "mini", members)
    wnids = [*TRAIN, WHIPPET, DEERHOUND]
    (root / "map_clsloc.txt").write_text("".join(f"{w} {k} name_{k}\n" for k, w in enumerate(wnids, 1)))
    built = build_episodes("imagenet", root=str(root), out=str(tmp_path / "out"), context=1)
    assert "1 folders in train/ are none of the known classes: mine" in built.notices
    assert any("not the published ones: n02091134 is 20 there" in notice for notice in built.notices)
    assert [r.class_name for r in read_test100(tmp_path / "out" / "test100_pairs.jsonl")] == ["name 5", "name 6"]
    only = write_folder(
        tmp_path / "only", {f"train/{w}/{n}.JPEG": photo(n) for w in (WHIPPET, DEERHOUND) for n in range(3)}
    )
    built = build_episodes("imagenet", root=str(only), out=str(tmp_path / "test"), context=1)
    assert "all classes are held out: there is no list of training classes" in built.notices
    assert built.files.keys() == {"test classes"}
    one = write_folder(tmp_path / "one", {f"train/n02119789/{n}.JPEG": photo(n) for n in range(3)})
    with pytest.raises(DataError, match="1 training classes: there must be two or more"):
        build_episodes("imagenet", root=str(one), out=str(tmp_path / "test"), context=1)


def test_the_shipped_class_list() -> None:
    names = shipped_names()
    assert len(names) == 1000
    assert sorted(int(class_id) for class_id, _ in names.values()) == list(range(1, 1001))
    assert names["n02119789"] == ("1", "kit fox")
    for class_id, wnid, lower in held_out_classes():
        assert (names[wnid][0], names[wnid][1].lower()) == (class_id, lower)


def test_the_published_file_is_written_as_it_was_read(shared_data: Path, tmp_path: Path) -> None:
    """Byte for byte; and its ids, names and folders are those of the shipped list."""
    file = shared_data / "imagenet" / "train900_pairs.jsonl"
    if not file.exists():
        pytest.skip(f"{file.name} is not among the real data")
    read = read_train900(file, warn=False)
    write_train900(read.classes, tmp_path / "again.jsonl")
    assert (tmp_path / "again.jsonl").read_bytes() == file.read_bytes()
    names = shipped_names()
    held_out = {wnid for _, wnid, _ in held_out_classes()}
    folders = {next(p for p in row.samples if p.startswith("train")).split("/")[1]: row for row in read.classes}
    assert folders.keys() == names.keys() - held_out
    assert all(names[wnid] == (row.class_id, row.class_name) for wnid, row in folders.items())


def test_unusable_option_values_are_told_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="--samples 0"):
        build_episodes("folders", root=str(tmp_path / "nowhere"), out=str(tmp_path / "out"), samples=0)
