"""Choices for whole tasks: the same everywhere, written once, verified when read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kshot.data.demonstrations import Choices, choose
from kshot.data.retrieval import retrievers
from kshot.data.task import Task
from kshot.episode import Example
from kshot.errors import BadImage, DataError, OptionError, UnknownName
from kshot.picture import BytesPicture
from kshot.prompt import Template


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KSHOT_CACHE", str(tmp_path / "cache"))


def example(name: str, seed: int, **changes: object) -> Example:
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    answer = ("red", "green")[seed % 2]
    return Example(images=(Image.fromarray(pixels),), question=f"What is {seed}?", answer=answer, id=name).with_(
        **changes
    )


class Shared(Task):
    """One support set for all queries; a new sequence each time it is asked for, as lazy tasks make them."""

    name = "shared"
    template = Template(demonstration="<image>{question} {answer}")

    def __init__(self, size: int = 20, shift: int = 0):
        self.size, self.shift = size, shift
        self.asked = 0

    @property
    def queries(self) -> Sequence[Example]:
        return [example(f"q{i}", 1000 + i) for i in range(5)]

    @property
    def support(self) -> Sequence[Example]:
        self.asked += 1
        return [example(f"s{i + self.shift}", i) for i in range(self.size)]


class Episodic(Shared):
    """Each query its own support set."""

    name = "episodic"

    @property
    def support(self) -> Sequence[Example]:
        return ()

    def pool(self, query: Example) -> Sequence[Example]:
        number = int(query.id[1:])
        return [example(f"{query.id}-{i}", 50 * number + i) for i in range(8)]


@pytest.mark.parametrize("task", [Shared(), Episodic()], ids=["shared", "episodic"])
@pytest.mark.parametrize("name", retrievers.names())
class TestEveryRetriever:
    def test_choices_and_episodes(self, task, name):
        choices = choose(task, name, 4, 0)
        assert list(choices) == [query.id for query in task.queries]
        episodes = choices.episodes(task)
        for episode, query in zip(episodes, task.queries, strict=True):
            assert episode.query.id == query.id
            assert tuple(shown.id for shown in episode.demonstrations) == choices[query.id]
            assert len(set(choices[query.id])) == episode.shots == 4
            held = {shown.id: shown.answer for shown in task.pool(query)}
            assert all(shown.answer == held[shown.id] for shown in episode.demonstrations)

    def test_any_part_of_the_queries_in_any_order_gives_the_same(self, task, name):
        whole = dict(choose(task, name, 3, 7))
        parts = [
            dict(choose(task, name, 3, 7, queries=task.queries[part])) for part in (slice(3, None), slice(2, None, -1))
        ]
        assert parts[0] | {k: v for k, v in parts[1].items() if k in ("q0", "q1", "q2")} == whole

    def test_no_shots(self, task, name):
        choices = choose(task, name, 0, 0)
        assert set(choices.values()) == {()}
        assert [episode.shots for episode in choices.episodes(task)] == [0] * 5

    def test_file_holds_what_was_chosen(self, task, name, tmp_path):
        path = tmp_path / "deep" / "choices.json"
        made = choose(task, name, 4, 3, out=path)
        before = path.read_bytes()
        read = choose(task, name, 4, 3, out=path)
        assert path.read_bytes() == before
        assert dict(read) == dict(made)
        assert read.places == made.places
        assert read.passed_over == made.passed_over
        assert [p.name for p in path.parent.iterdir()] == ["choices.json"]
        part = choose(task, name, 4, 3, out=path, queries=task.queries[1:3])
        assert list(part) == ["q1", "q2"]

    def test_too_many_shots(self, task, name):
        with pytest.raises(OptionError, match=r"21 shots.* (20|8) examples"):
            choose(task, name, 21, 0)


def test_seed_and_shots_change_the_choice():
    task = Shared()
    chosen = {tuple(choose(task, "random", 4, seed).values()) for seed in range(5)}
    assert len(chosen) == 5
    assert all(choose(task, "random", 4, 0)[q] != choose(task, "random", 5, 0)[q][:4] for q in ("q0", "q1"))


def test_known_choices_stay_what_they_are():
    """Written down when the retriever was made: results are compared across machines and versions, of kshot and of NumPy."""
    assert choose(Shared(), "random", 3, 0).places == {
        "q0": (7, 10, 12),
        "q1": (0, 17, 1),
        "q2": (2, 1, 15),
        "q3": (3, 13, 19),
        "q4": (2, 10, 14),
    }


def test_a_support_set_is_read_once_and_never_for_no_shots():
    task = Shared()
    choose(task, "random", 0, 0).episodes(task)
    assert task.asked == 0
    choices = choose(task, "balanced", 4, 0)
    assert task.asked <= 2
    choices.episodes(task)
    assert task.asked <= 3


def test_a_large_support_set_is_not_built(monkeypatch):
    made: list[int] = []

    class Lazy(Sequence[Example]):
        def __len__(self) -> int:
            return 200_000

        def __getitem__(self, index):
            made.append(index)
            return Example(question="?", answer="a", id=f"s{index}")

    class Large(Shared):
        @property
        def support(self) -> Sequence[Example]:
            return Lazy()

    task = Large()
    for name in ("random", "fixed"):
        choose(task, name, 8, 0).episodes(task)
    assert len(made) < 500


def test_what_was_passed_over_is_counted():
    class Gaps(Shared):
        @property
        def support(self) -> Sequence[Example]:
            listed = list(super().support)
            listed[3] = listed[3].with_(answer=None)
            return [*listed, *self.queries]

    choices = choose(Gaps(), "random", 22, 0)
    assert choices.passed_over == {"without_answer": 1, "same_image": 5, "bad_images": 0}


def test_bad_images_stop_or_are_counted():
    class Broken(Shared):
        @property
        def support(self) -> Sequence[Example]:
            return [*super().support, example("bad", 99, images=(BytesPicture(b"?", "bad.png"),))]

    with pytest.raises(BadImage, match=r"bad\.png"):
        choose(Broken(), "nearest_image", 2, 0)
    choices = choose(Broken(), "nearest_image", 20, 0, on_bad_image="skip")
    assert choices.passed_over["bad_images"] == 1
    assert not any("bad" in shown for shown in choices.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shots": 5}, "made for shots 4, not 5"),
        ({"seed": 1}, "made for seed 0, not 1"),
        ({"retriever": "fixed"}, "made for retriever 'random', not 'fixed'"),
        ({"order": "shuffled"}, "made for order 'given', not 'shuffled'"),
        ({"task": Shared(size=21)}, "made for pool"),
        ({"task": Shared(shift=1)}, "made for pool"),
        ({"task": Episodic()}, "made for pool|made for task"),
    ],
)
def test_a_file_of_other_choices_is_refused(tmp_path, change, message):
    path = tmp_path / "c.json"
    given = {"task": Shared(), "retriever": "random", "shots": 4, "seed": 0}
    choose(**given, out=path)
    with pytest.raises(DataError, match=message) as caught:
        choose(**(given | change), out=path)
    assert "delete the file" in str(caught.value)
    assert "c.json" in str(caught.value)


def test_a_file_of_fewer_queries_is_refused(tmp_path):
    task = Shared()
    choose(task, "random", 4, 0, out=tmp_path / "c.json", queries=task.queries[:2])
    with pytest.raises(DataError, match="leave out 3 of 5 queries, such as 'q2'"):
        choose(task, "random", 4, 0, out=tmp_path / "c.json")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"format": "other"}', '{"format": "kshot choices, version 1"}', "\xff"]
)
def test_damaged_files_are_refused(tmp_path, text):
    path = tmp_path / "c.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=r"c\.json.*delete it"):
        choose(Shared(), "random", 4, 0, out=path)


def test_choices_cut_short_by_hand_are_refused(tmp_path):
    path = tmp_path / "c.json"
    choose(Shared(), "random", 4, 0, out=path)
    record = json.loads(path.read_text())
    record["choices"]["q1"].pop()
    path.write_text(json.dumps(record))
    with pytest.raises(DataError, match="'q1' has 3 demonstrations, not 4"):
        choose(Shared(), "random", 4, 0, out=path)


def test_episodes_notice_a_changed_support_set():
    choices = choose(Shared(), "random", 4, 0)
    with pytest.raises(DataError, match="has changed"):
        choices.episodes(Shared(shift=1))
    with pytest.raises(DataError, match="has changed"):
        choose(Shared(), "random", 20, 0).episodes(Shared(size=3))
    with pytest.raises(DataError, match="no demonstrations were chosen for query 'stranger'"):
        choices.episodes(Shared(), [example("stranger", 5)])


def test_two_queries_of_one_id():
    task = Shared()
    with pytest.raises(DataError, match=r"two queries .*'q1'"):
        choose(task, "random", 1, 0, queries=[task.queries[1], task.queries[1]])


def test_other_errors(tmp_path):
    with pytest.raises(UnknownName, match="random"):
        choose(Shared(), "randm", 1, 0)
    with pytest.raises(OptionError, match="negative: -2"):
        choose(Shared(), "random", -2, 0)
    with pytest.raises(DataError, match="not found"):
        Choices.load(tmp_path / "none.json")
    with pytest.raises(OptionError, match="nor both 0"):
        choose(Shared(), "nearest", 1, 0, options={"image_weight": 0, "text_weight": 0})
