"""Orders of mixtures: every sentence is used, shares hold, and nothing but seed, epoch and place matters."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kshot.errors import OptionError
from kshot.visual.mixture import MixtureOrder, apportion, shuffled

LENGTHS = st.lists(st.lists(st.sampled_from([4, 8, 12]), min_size=1, max_size=9), min_size=1, max_size=3)


def arrays(lengths):
    return [np.array(held) for held in lengths]


def places(order, epoch):
    drawn = order.epoch(epoch)
    return list(zip(drawn.store.tolist(), drawn.sentence.tolist(), strict=True))


@given(LENGTHS, st.integers(0, 3), st.integers(0, 4))
def test_without_weights_an_epoch_holds_every_sentence_once(lengths, seed, epoch):
    order = MixtureOrder(arrays(lengths), seed=seed)
    everything = [(number, i) for number, held in enumerate(lengths) for i in range(len(held))]
    assert sorted(places(order, epoch)) == everything
    drawn = order.epoch(epoch)
    assert [lengths[s][i] for s, i in places(order, epoch)] == drawn.length.tolist()
    assert order.tokens_per_epoch == sum(map(sum, lengths))


@settings(max_examples=30)
@given(LENGTHS, st.lists(st.floats(0.05, 20), min_size=3, max_size=3), st.integers(0, 3))
def test_with_weights_all_sentences_are_used_evenly_and_lengths_are_those_of_any_epoch(lengths, weights, seed):
    order = MixtureOrder(arrays(lengths), weights[: len(lengths)], seed)
    for epoch in range(3):
        found = places(order, epoch)
        if epoch == 0:
            assert set(found) == {(s, i) for s, held in enumerate(lengths) for i in range(len(held))}
        assert len(found) == order.sentences_per_epoch
        assert Counter(s for s, _ in found) == dict(enumerate(order.counts))
        assert Counter(order.epoch(epoch).length.tolist()) == order.lengths
        # Within a pass nothing comes twice, so no sentence is more than one use ahead of another of its length.
        for store, held in enumerate(lengths):
            used = Counter(i for e in range(epoch + 1) for s, i in places(order, e) if s == store)
            for kind in set(held):
                counts = [used[i] for i, length in enumerate(held) if length == kind]
                assert max(counts) - min(counts) <= 1


def test_shares_are_the_weights():
    order = MixtureOrder([np.full(100, 4), np.full(1000, 4), np.full(50, 16)], [1, 2, 1])
    assert order.counts == [500, 1000, 500]
    by_tokens = MixtureOrder([np.full(100, 4), np.full(50, 16)], [1, 1], shares="tokens")
    assert [count * size for count, size in zip(by_tokens.counts, (4, 16), strict=True)] == [800, 800]


def test_orders_differ_between_epochs_and_seeds_and_are_the_same_each_time():
    order, again, other = (MixtureOrder([np.full(200, 4)], seed=seed) for seed in (0, 0, 1))
    assert places(order, 3) == places(again, 3)
    assert len({tuple(places(order, epoch)) for epoch in range(5)}) == 5
    assert places(order, 0) != places(other, 0)
    assert [order.place(450 + i) for i in range(3)] == places(again, 2)[50:53]
    with pytest.raises(IndexError):
        order.place(-1)


def test_an_order_is_the_same_on_every_machine():
    assert shuffled(8, 0, "epoch", 0).tolist() == [5, 7, 6, 1, 4, 0, 3, 2]


def test_permutations_are_uniform():
    firsts = np.bincount([int(shuffled(5, 7, number)[0]) for number in range(5000)], minlength=5)
    assert np.abs(firsts - 1000).max() < 150  # five standard deviations
    pairs = Counter(tuple(shuffled(3, number).tolist()) for number in range(6000))
    assert len(pairs) == 6
    assert max(abs(count - 1000) for count in pairs.values()) < 150


@given(st.integers(0, 500), st.lists(st.floats(0.01, 100), min_size=1, max_size=6))
def test_apportioned_numbers_are_the_nearest(total, shares):
    counts = apportion(total, shares)
    assert sum(counts) == total
    assert all(abs(c - total * s / sum(shares)) < 1 + 1e-6 for c, s in zip(counts, shares, strict=True))


@pytest.mark.parametrize(
    ("lengths", "weights", "match"),
    [
        ([], None, "at least one"),
        ([[4], []], None, "store 2 of the mixture is empty"),
        ([[4], [4]], [1.0], "1 weights for 2"),
        ([[4], [4]], [1.0, 0.0], "greater than 0"),
        ([[4], [4]], [1.0, float("nan")], "greater than 0"),
    ],
)
def test_weights_that_make_no_sense(lengths, weights, match):
    with pytest.raises(OptionError, match=match):
        MixtureOrder(arrays(lengths), weights)
