"""ISEKAI: annotation files with either spelling, folders of pictures, and what is said about wrong ones."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from kshot.data.demonstrations import choose
from kshot.data.isekai import Isekai, isekai_from_folders, read_isekai, write_isekai
from kshot.data.naming import Names
from kshot.errors import DataError, KshotError, OptionError
from tests.data.concept_files import isekai_rows, photo, write_folder, write_jsonl


@pytest.fixture
def annotated(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "ISEKAI-10.json", isekai_rows(tmp_path))


def test_annotation_files(annotated: Path) -> None:
    task = Isekai(file=annotated)
    queries = list(task.queries)
    assert [q.answer for q in queries] == ["MushroomHaven", "mushroom", "cactihog", "hedgehog"]
    assert all(set(q.choices) == {"MushroomHaven", "mushroom"} for q in queries[:2])
    for query in queries:
        pool = list(task.pool(query))
        assert Counter(e.answer for e in pool) == dict.fromkeys(query.choices, 3)
        assert all(f"/{e.answer}/" in e.images[0].name for e in (*pool, query))
        assert query.images[0].load().mode == "RGB"
    tasks = [Isekai(file=annotated, seed=seed) for seed in range(25)]
    places = Counter(q.choices.index(q.text_answer) for task in tasks for q in task.queries)
    assert abs(places[0] - 50) < 4 * 5  # of 100


def test_either_spelling_is_read_and_the_published_one_is_written(annotated: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in annotated.read_text().splitlines()]
    for row in rows[1:]:
        for side in ("positive", "negative"):
            row[f"{side}_prompt"] = row.pop(f"{side}_promt")
    assert read_isekai(write_jsonl(tmp_path / "right.json", rows)) == read_isekai(annotated)
    write_isekai(read_isekai(annotated), tmp_path / "again.json")
    assert (tmp_path / "again.json").read_text() == annotated.read_text()


def test_names_are_verbatim_or_invented(annotated: Path) -> None:
    assert Isekai(file=annotated).queries[0].answer == "MushroomHaven"
    task = Isekai(file=annotated, names="invented")
    first, second, third, _ = (set(q.choices) for q in task.queries)
    assert first == second
    assert not first & third
    assert not first & {"MushroomHaven", "mushroom"}


def test_queries_of_a_group_share_their_demonstrations(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "ISEKAI-10.json", isekai_rows(tmp_path, pictures=4))
    names: tuple[Names, ...] = ("classes", "invented")
    for chosen in names:
        task = Isekai(file=file, names=chosen)
        shown: dict[int, list[list[tuple[str, str | None]]]] = {}
        for shots in (2, 4, 8):
            episodes = choose(task, task.retriever, shots, 0).episodes(task)
            shown[shots] = [[(d.images[0].name, d.text_answer) for d in e.demonstrations] for e in episodes]
            assert shown[shots][0] == shown[shots][1] != shown[shots][2] == shown[shots][3]
            assert Counter(name for _, name in shown[shots][0]) == dict.fromkeys(task.queries[0].choices, shots // 2)
        # The published protocol: the first pictures of each list.
        first = {(tmp_path / f"MushroomHaven/{side}/0.png").as_posix() for side in ("MushroomHaven", "mushroom")}
        assert {name for name, _ in shown[2][0]} == first
        assert set(shown[2][0]) < set(shown[4][0]) < set(shown[8][0])
    orders = {choose(task, "first", 8, seed).episodes(task)[0].demonstrations[0].text_answer for seed in range(12)}
    assert len(orders) == 2  # the arrangement is drawn


def test_groups_and_sides_are_told(annotated: Path) -> None:
    query = Isekai(file=annotated).queries[0]
    assert query.metadata["group"] == "MushroomHaven/mushroom"
    assert query.metadata["sides"] == ("MushroomHaven", "mushroom")
    assert "sides" not in Isekai(file=annotated, names="invented").queries[0].metadata


def test_a_query_in_its_own_list_is_not_shown(tmp_path: Path) -> None:
    rows = isekai_rows(tmp_path)
    rows[0]["image_name"] = rows[0]["positive_list"][1]  # type: ignore[index]
    rows[0]["positive_list"].append(rows[0]["image_name"])  # type: ignore[attr-defined]
    task = Isekai(file=write_jsonl(tmp_path / "a.json", rows))
    query = task.queries[0]
    pool = task.pool(query)
    assert len(pool) == 5
    assert query.images[0].name not in {e.images[0].name for e in pool}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"negative_promt": "mushroomhaven"}, "a.json:1: both classes are called 'MushroomHaven'"),
        (
            {"label_name": "Mushroom"},
            "a.json:1 field 'label_name': 'Mushroom' is neither 'MushroomHaven' nor 'mushroom'",
        ),
        (
            {"image_name": "MushroomHaven/mushroom/0.png"},
            "field 'image_name': the query is among the pictures of the other",
        ),
        (
            {"positive_list": ["MushroomHaven/MushroomHaven/9.png"]},
            "1 of 17 images not found under .*: MushroomHaven/Mush",
        ),
        ({"negative_list": []}, r"a.json:1: 0 pictures of 'mushroom' beside the query .*, 1 shots per class"),
        ({"positive_list": ["MushroomHaven/MushroomHaven/3.png"]}, "0 pictures of 'MushroomHaven' beside the query"),
        ({"positive_promt": 7}, "a.json:1 field 'positive_promt': text is expected"),
    ],
)
def test_wrong_annotations(tmp_path: Path, change: dict, message: str) -> None:
    rows = isekai_rows(tmp_path)
    file = write_jsonl(tmp_path / "a.json", [rows[0] | change, *rows[1:]])
    with pytest.raises(KshotError, match=message):
        Isekai(file=file)


def test_missing_options_and_files(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"give file= .* or root="):
        Isekai()
    with pytest.raises(DataError, match="file not found"):
        Isekai(file=tmp_path / "ISEKAI-10.json")
    with pytest.raises(DataError, match="no queries"):
        Isekai(file=write_jsonl(tmp_path / "empty.json", []))
    with pytest.raises(DataError, match="nowhere: folder not found"):
        Isekai(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no groups found"):
        Isekai(tmp_path)


def sides(group: str, positive: str, negative: str, pictures: int = 3) -> dict[str, bytes]:
    names = [(side, n) for side in (f"pos-{positive}", f"neg-{negative}") for n in range(pictures)]
    return {f"{group}/{side}/{n}.png": photo(7 * k) for k, (side, n) in enumerate(names)}


def test_folders_of_positive_and_negative_pictures(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "ISEKAI-20", sides("cactus boxer", "cactus boxer", "boxer"))
    task = Isekai(root)
    assert [q.answer for q in task.queries] == ["cactus boxer"] * 3 + ["boxer"] * 3
    for query in task.queries:
        pool = list(task.pool(query))
        assert Counter(e.answer == query.answer for e in pool) == {True: 2, False: 3}
        assert query.images[0].name not in {e.images[0].name for e in pool}
        assert all(("/pos-" in e.images[0].name) == (e.answer == "cactus boxer") for e in (*pool, query))


def test_a_negative_name_that_folders_do_not_tell(tmp_path: Path) -> None:
    root = write_folder(tmp_path, sides("cactus boxer", "cactus boxer", "cactus boxer"))
    with pytest.raises(OptionError, match="what is the negative class of 'cactus boxer' called"):
        Isekai(root)
    assert set(Isekai(root, labels={"cactus boxer": ("cactus boxer", "dog")}).queries[0].choices) == {
        "cactus boxer",
        "dog",
    }
    assert len(set(Isekai(root, names="invented").queries[0].choices)) == 2
    with pytest.raises(OptionError, match="needs two different names"):
        Isekai(root, labels={"cactus boxer": ("dog", "dog")})


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"g/pos-g/1.png": photo(1)}, "/g: no pictures of neg"),
        ({"g/pos-g/1.png": photo(1), "g/neg-g/": b""}, "/g: no pictures of neg"),
        ({"g/pos1.jpg": photo(1), "g/neg1.jpg": photo(2)}, "/g: no pictures of infer"),
        (sides("cactihog", "cactihog", "hedgehog", 1), "0 pictures of 'cactihog' beside the query"),
    ],
)
def test_groups_without_enough_pictures(tmp_path: Path, members: dict[str, bytes], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Isekai(write_folder(tmp_path, members))


def test_the_published_example_pictures(shared_data: Path) -> None:
    root = shared_data / "isekai"
    if not root.is_dir():
        pytest.skip("the ISEKAI example pictures are not among the real data")
    names = [(r.positive_name, r.negative_name, r.label) for r in isekai_from_folders(root)]
    pairs = [("airstone", "stone"), ("cactihog", "hedgehog"), ("cctovac", "octopus"), ("icemic", "ice cream")]
    assert names == [(positive, negative, positive) for positive, negative in pairs]
    task = Isekai(root)
    assert [len(task.pool(q)) for q in task.queries] == [4, 2, 2, 2]
    for query in task.queries:
        assert query.images[0].name.endswith("infer1.jpg")
        for example in (query, *task.pool(query)):
            assert min(example.images[0].load().size) > 200
            side = "neg" if example.answer in ("stone", "hedgehog", "octopus", "ice cream") else "pos"
            assert example is query or Path(example.images[0].name).name.startswith(side)
