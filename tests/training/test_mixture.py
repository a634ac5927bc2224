"""A mixture uses each source whole, in exact shares, and always in the same order."""

from __future__ import annotations

import math
import pickle
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kshot.data.concepts import PLAIN
from kshot.episode import Episode, Example
from kshot.errors import OptionError
from kshot.training.items import Source, TrainingItem
from kshot.training.mixture import Mixture


class Numbers(Source):
    """Items that say where they come from."""

    def __init__(self, name: str, size: int):
        self.name, self.size = name, size

    def __len__(self) -> int:
        return self.size

    def item(self, epoch: int, index: int) -> TrainingItem:
        assert 0 <= index < self.size
        return TrainingItem(Episode((), Example(answer=f"{self.name} {epoch} {index}")), PLAIN, source=self.name)

    def describe(self):
        return {"source": self.name, "size": self.size}


def numbers(sizes: list[int]) -> dict[str, Source]:
    return {f"s{i}": Numbers(f"s{i}", size) for i, size in enumerate(sizes)}


def walk(mixture: Mixture, epoch: int) -> list[tuple[str, int, int]]:
    """Source, its epoch and its index of each item of an epoch."""
    said = [mixture.item(epoch, i).episode.query.text_answer.split() for i in range(len(mixture))]
    return [(name, int(passed), int(index)) for name, passed, index in said]


@st.composite
def mixtures(draw) -> Mixture:
    sizes = draw(st.lists(st.integers(1, 40), min_size=1, max_size=5))
    weights = [draw(st.integers(1, 20)) for _ in sizes]
    parts = numbers(sizes)
    shares = {name: weight / sum(weights) for name, weight in zip(parts, weights, strict=True)}
    if draw(st.booleans()):
        shares = None
    items = draw(st.none() | st.integers(len(sizes), 60))
    return Mixture(parts, shares, items=items, seed=draw(st.integers(0, 3)))


@settings(max_examples=80)
@given(mixtures(), st.integers(1, 5))
def test_every_item_is_used_once_a_pass(mixture, epochs):
    used = {name: [] for name in mixture.parts}
    for epoch in range(epochs):
        for name, passed, index in walk(mixture, epoch):
            used[name].append((passed, index))
    for name, part in mixture.parts.items():
        size = len(part)
        for start in range(0, len(used[name]), size):
            group = used[name][start : start + size]
            assert {passed for passed, _ in group} == {start // size}  # passes follow one another, numbered
            indices = [index for _, index in group]
            assert len(set(indices)) == len(indices)
            if len(group) == size:
                assert sorted(indices) == list(range(size))


@settings(max_examples=80)
@given(mixtures())
def test_shares_are_exact_in_every_epoch(mixture):
    counts = Counter(name for name, _, _ in walk(mixture, 0))
    assert counts == Counter(name for name, _, _ in walk(mixture, 3))
    assert sum(counts.values()) == len(mixture)
    exact = {name: len(mixture) * share for name, share in mixture.shares.items()}
    assert all(counts[name] >= 1 for name in exact)
    if min(exact.values()) >= 1:
        assert all(abs(counts[name] - value) < 1 for name, value in exact.items())
    for name, value in exact.items():
        if value == pytest.approx(round(value), abs=1e-9) and all(
            v == pytest.approx(round(v), abs=1e-9) for v in exact.values()
        ):
            assert counts[name] == max(1, round(value))


@settings(max_examples=50)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=5), st.data())
def test_an_epoch_is_as_long_as_it_takes_to_use_all_sources_whole(sizes, data):
    parts = numbers(sizes)
    weights = [data.draw(st.integers(1, 20)) for _ in sizes]
    shares = {name: weight / sum(weights) for name, weight in zip(parts, weights, strict=True)}
    mixture = Mixture(parts, shares)
    used = {(name, index) for name, passed, index in walk(mixture, 0) if passed == 0}
    assert used == {(name, index) for name, part in parts.items() for index in range(len(part))}
    # ... and no longer: with one item fewer, the largest source for its share would not be whole.
    assert len(mixture) == math.ceil(max(s * sum(weights) / w for s, w in zip(sizes, weights, strict=True)) - 1e-9)


@settings(max_examples=30)
@given(mixtures(), st.randoms())
def test_items_do_not_depend_on_what_was_asked_before(mixture, random):
    places = [(epoch, index) for epoch in range(6) for index in range(0, len(mixture), 7)]
    in_order = {place: mixture.place(*place) for place in places}
    fresh = pickle.loads(pickle.dumps(Mixture(mixture.parts, mixture.shares, items=len(mixture), seed=mixture.seed)))
    random.shuffle(places)
    assert {place: fresh.place(*place) for place in places} == in_order
    assert pickle.loads(pickle.dumps(mixture)).place(*places[0]) == in_order[places[0]]


def test_epochs_and_seeds_differ_and_sources_alternate():
    parts = numbers([50, 50])
    one, other = Mixture(parts), Mixture(parts, seed=1)
    assert len({tuple(walk(one, 0)), tuple(walk(one, 1)), tuple(walk(other, 0))}) == 3
    names = "".join(name[1] for name, _, _ in walk(one, 0))
    assert max(map(len, names.replace("01", "0 1").replace("10", "1 0").split())) < 15


def test_one_source_is_walked_through_as_a_whole_each_epoch():
    mixture = Mixture(numbers([7]))
    for epoch in range(3):
        assert sorted(walk(mixture, epoch)) == [("s0", epoch, i) for i in range(7)]


def test_few_items_an_epoch_still_cover_a_large_source():
    """The trap of upstream's mixture: each epoch began at row 0, and only the first rows were ever used."""
    mixture = Mixture(numbers([5, 1000]), {"s0": 0.5, "s1": 0.5}, items=20)
    used = {index for epoch in range(100) for name, _, index in walk(mixture, epoch) if name == "s1"}
    assert used == set(range(1000))


def test_the_description_tells_mixtures_apart():
    parts = numbers([3, 4])
    made = [
        Mixture(parts),
        Mixture(parts, seed=1),
        Mixture(parts, items=5),
        Mixture(parts, {"s0": 0.25, "s1": 0.75}),
        Mixture(numbers([3, 5])),
    ]
    assert len({str(mixture.describe()) for mixture in made}) == len(made)
    assert made[3].describe()["parts"]["s1"] == {"share": 0.75, "source": "s1", "size": 4}


def test_the_longest_items_are_those_of_all_sources():
    assert {item.source for item in Mixture(numbers([3, 4])).longest()} == {"s0", "s1"}


@pytest.mark.parametrize(
    ("sizes", "options", "told"),
    [
        ([], {}, "at least one source"),
        ([2, 0], {}, "data.s1: the source has no items"),
        ([2, 2], {"shares": {"s0": 1.0}}, "s1 without a share"),
        ([2], {"shares": {"s0": 0.5, "vqa": 0.5}}, "a share for vqa, which is no source"),
        ([2, 2], {"shares": {"s0": 0.5, "s1": 0.6}}, "sum to 1.1, not to 1: s0 0.5, s1 0.6"),
        ([2, 2], {"shares": {"s0": 0.0, "s1": 1.0}}, "data.s0.share=0.0: must be a number greater than 0"),
        ([2, 2], {"shares": {"s0": -0.5, "s1": 1.5}}, "data.s0.share=-0.5"),
        ([2, 2], {"shares": {"s0": math.nan, "s1": 1.0}}, "data.s0.share=nan"),
        ([2, 2], {"shares": {"s0": "half", "s1": 0.5}}, "data.s0.share='half'"),
        ([2, 2], {"items": 1}, "items=1: an epoch must have at least one item of each of the 2 sources"),
    ],
)
def test_what_is_refused(sizes, options, told):
    with pytest.raises(OptionError) as raised:
        Mixture(numbers(sizes), **options)
    assert told in str(raised.value)


def test_there_is_no_item_beyond_the_epoch():
    mixture = Mixture(numbers([3]))
    for index in (3, -1):
        with pytest.raises(IndexError):
            mixture.item(0, index)


def test_mixtures_can_be_mixed():
    inner = Mixture(numbers([3, 3]))
    outer = Mixture({"inner": inner, "s2": Numbers("s2", 6)})
    for epoch in range(2):
        assert sorted(walk(outer, epoch)) == sorted(walk(inner, epoch) + [("s2", epoch, i) for i in range(6)])
