"""Omniglot: official archives, unpacked folders, one-shot runs, and what is said about wrong ones."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from kshot.data.omniglot import Omniglot, OmniglotRuns, read_characters
from kshot.errors import DataError, KshotError, OptionError
from tests.data.concept_files import omniglot_members, run_members, write_folder, write_zip

ALPHABETS = {"Greek": 3, "Anglo-Saxon_Futhorc": 2, "Japanese_(katakana)": 4}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_zip(tmp_path_factory.mktemp("omniglot") / "images_background.zip", omniglot_members(ALPHABETS))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_zip(tmp_path_factory.mktemp("runs") / "all_runs.zip", run_members())


def test_an_official_archive_is_read_as_it_is(archive: Path) -> None:
    concepts = read_characters(archive)
    assert Counter(c.group for c in concepts) == ALPHABETS
    assert [c.key for c in concepts] == sorted(c.key for c in concepts)
    assert all(len(c.pictures) == 4 for c in concepts)
    first = concepts[2]
    assert (first.key, first.name) == ("Greek/character01", "Greek character01")
    assert first.pictures[0].name == f"{archive}!images_background/Greek/character01/0001_01.png"
    image = first.pictures[0].load()
    assert (image.size, image.mode) == ((105, 105), "RGB")
    assert set(np.unique(np.asarray(image))) == {0, 255}


@pytest.mark.parametrize("top", ["", "images_background/", "python/images_background/"])
def test_archives_and_folders_with_and_without_top_folder_give_the_same_episodes(
    tmp_path: Path, archive: Path, top: str
) -> None:
    members = omniglot_members(ALPHABETS, top=top)
    expected = [q.with_(images=()) for q in Omniglot(archive, ways=3, episodes=30).queries]
    for root in (write_zip(tmp_path / "a.zip", members), write_folder(tmp_path / "folder", members)):
        task = Omniglot(root, ways=3, episodes=30)
        assert [q.with_(images=()) for q in task.queries] == expected
        assert (
            task.queries[7].images[0].load().tobytes()
            == Omniglot(archive, ways=3).queries[7].images[0].load().tobytes()
        )


def test_several_archives_are_one_set(tmp_path: Path, archive: Path) -> None:
    other = write_zip(tmp_path / "images_evaluation.zip", omniglot_members({"Tengwar": 2}, top="images_evaluation/"))
    assert len(Omniglot([archive, other]).concepts) == 11
    with pytest.raises(DataError, match="two classes of one name: Anglo-Saxon_Futhorc/character01"):
        Omniglot([archive, archive])


def test_real_names_and_one_alphabet(archive: Path) -> None:
    task = Omniglot(archive, ways=3, names="classes", within_alphabet=True, episodes=40)
    assert task.left_out == ("Anglo-Saxon_Futhorc",)
    for query in task.queries:
        assert len({name.split()[0] for name in query.choices}) == 1
        assert query.answer == query.metadata["class"].replace("/", " ")
    groups = {name.split()[0] for q in Omniglot(archive, ways=3, names="classes").queries for name in q.choices}
    assert groups == set(ALPHABETS)


def test_the_query_is_of_the_class_it_is_said_to_be(archive: Path) -> None:
    for query in Omniglot(archive, episodes=30).queries:
        assert f"/{query.metadata['class']}/" in query.images[0].name


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (
            lambda m: {k: v for k, v in m.items() if "Greek/character02/0002" not in k},
            {},
            r"Greek/character02 \(0 of 2\)",
        ),
        (lambda m: m, {"shots_per_class": 4}, "too few pictures for 4 shots per class and a query: .* and 4 more"),
        (lambda m: m, {"ways": 10}, "ways=10: .*a.zip: only 9 classes there"),
        (lambda m: m, {"ways": 21}, "ways=21: must be 2..20"),
        (lambda m: {"strokes/readme.txt": b""}, {}, "no Omniglot characters found .expected Alphabet/characterNN"),
        (lambda m: run_members(1), {}, "use the task 'omniglot_runs'"),
        (
            lambda m: {"images_background.zip": b"", "strokes.zip": b""},
            {},
            "give one of the archives in it: images_background",
        ),
    ],
)
def test_unusable_archives(tmp_path: Path, change, options: dict, message: str) -> None:  # type: ignore[no-untyped-def]
    root = write_zip(tmp_path / "a.zip", change(omniglot_members(ALPHABETS)))
    with pytest.raises(KshotError, match=message):
        Omniglot(root, **options)


def test_files_that_are_no_archives(tmp_path: Path, archive: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere.zip: file or folder not found"):
        Omniglot(tmp_path / "nowhere.zip")
    broken = tmp_path / "broken.zip"
    broken.write_bytes(archive.read_bytes()[:2000])
    with pytest.raises(DataError, match=r"broken.zip: not a readable zip archive .*download it again"):
        Omniglot(broken)


def test_one_shot_runs_follow_the_label_files(runs: Path) -> None:
    task = OmniglotRuns(runs)
    queries = list(task.queries)
    assert len(queries) == 40
    for index, query in enumerate(queries):
        run, item = divmod(index, 20)
        right = f"run{run + 1:02d}/training/class{(3 * item + 1) % 20 + 1:02d}.png"
        assert query.images[0].name.endswith(f"run{run + 1:02d}/test/item{item + 1:02d}.png")
        pool = list(task.pool(query))
        assert len(pool) == 20
        assert [e.images[0].name.endswith(right) for e in pool if e.answer == query.answer] == [True]
        assert query.metadata["class"] == right
    assert task.shots == (20,)
    assert task.describe()["runs"] == 2


def test_the_queries_of_a_run_share_their_demonstrations(runs: Path) -> None:
    task = OmniglotRuns(runs)
    pools = [[(e.id, e.answer) for e in task.pool(task.queries[i])] for i in (0, 13, 19, 20)]
    assert pools[0] == pools[1] == pools[2] != pools[3]


def test_runs_of_fewer_ways_keep_the_right_class(runs: Path) -> None:
    full, task = OmniglotRuns(runs), OmniglotRuns(runs, ways=5)
    kept: Counter[str] = Counter()
    for query, whole in zip(task.queries, full.queries, strict=True):
        classes = [e.metadata["class"] for e in task.pool(query)]
        assert len(query.choices) == len(set(classes)) == 5
        assert query.metadata["class"] == whole.metadata["class"]
        assert query.metadata["class"] in classes
        kept.update(classes)
    assert len(kept) == 40
    assert task.shots == (5,)


def test_an_unpacked_folder_of_runs(tmp_path: Path, runs: Path) -> None:
    root = write_folder(tmp_path / "all_runs", run_members(top=""))
    strip = [q.with_(images=()) for q in OmniglotRuns(root).queries]
    assert strip == [q.with_(images=()) for q in OmniglotRuns(runs).queries]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (b"run01/test/item01.png\n", "class_labels.txt:1: expected two paths"),
        (
            b"\nrun01/test/item99.png run01/training/class01.png\n",
            "class_labels.txt:2: drawing not found: run01/test/item99.png",
        ),
        (
            b"run01/test/item01.png run01/test/item02.png\n",
            "class_labels.txt:1: run01/test/item02.png is not a training",
        ),
        (b"\n", "class_labels.txt: no items"),
        (b"\xff\xfe", "class_labels.txt: not UTF-8 text"),
    ],
)
def test_wrong_label_files(tmp_path: Path, labels: bytes, message: str) -> None:
    members = run_members(1) | {"all_runs/run01/class_labels.txt": labels}
    with pytest.raises(DataError, match=message):
        OmniglotRuns(write_zip(tmp_path / "runs.zip", members))


def test_options_that_runs_do_not_have(runs: Path, archive: Path) -> None:
    with pytest.raises(OptionError, match="do not tell the characters' names"):
        OmniglotRuns(runs, names="classes")
    with pytest.raises(DataError, match=r"no runNN/class_labels.txt found"):
        OmniglotRuns(archive)


@pytest.mark.parametrize(("name", "classes"), [("small1", 136), ("small2", 156)])
def test_the_real_archives(shared_data: Path, name: str, classes: int) -> None:
    root = shared_data / "omniglot" / f"images_background_{name}.zip"
    if not root.exists():
        pytest.skip(f"{root.name} is not among the real data")
    task = Omniglot(root, ways=20, episodes=10, within_alphabet=True)
    assert len(task.concepts) == classes
    assert len({c.group for c in task.concepts}) == 5
    assert {len(c.pictures) for c in task.concepts} == {20}
    query = task.queries[9]
    assert len(task.pool(query)) == 399
    assert query.images[0].load().size == (105, 105)
