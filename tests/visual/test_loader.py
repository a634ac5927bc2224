"""Rows: every token once an epoch, sentences apart or in a stream as upstream's, and the same order for any number of processes."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kshot.errors import ContextTooLong, DataError, OptionError
from kshot.visual.loader import IGNORED, Sentences, TokenRows
from kshot.visual.row_loader import RowLoader
from kshot.visual.store import TokenizerRecord
from tests.visual.stores import CODES, SIZE, make_store

BOS, EOS, PAD = CODES, CODES + 1, CODES + 2
SPECIAL = st.sampled_from([(None, None), (BOS, None), (None, EOS), (BOS, EOS)])


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    root = tmp_path_factory.mktemp("stores")
    return [
        make_store(root / "pairs", [4, 2, 4, 6, 4, 2, 2, 4, 6, 4, 4]),
        make_store(root / "frames", [3, 3, 3, 3], first=500, kind="sequence", roles=("frame",) * 3),
    ]


def whole(store, index, bos, eos):
    return [t for t in (bos, *store.tokens(index).tolist(), eos) if t is not None]


@settings(max_examples=25)
@given(SPECIAL, st.integers(26, 64), st.integers(0, 2), st.sampled_from([None, [1.0, 3.0]]))
def test_isolated_rows_hold_whole_sentences_and_each_as_often_as_it_should(stores, special, length, seed, weights):
    bos, eos = special
    rows = TokenRows(stores, weights, length, seed, bos=bos, eos=eos)
    sentences = rows.sentences
    for epoch in (0, 2):
        found = []
        for number in range(epoch * rows.rows_per_epoch, (epoch + 1) * rows.rows_per_epoch):
            row = rows[number]
            assert rows.epoch(number) == epoch
            expected_ids, expected_positions, expected_labels = [], [], []
            for store, index in rows.sentences_of(number):
                own = whole(stores[store], index, bos, eos)
                expected_ids += own
                expected_positions += range(len(own))
                expected_labels += [IGNORED, *own[1:]]
                found.append((store, index))
            rest = length - len(expected_ids)
            assert rest >= 0
            assert row["input_ids"].tolist() == expected_ids + [PAD] * rest
            assert row["position_ids"].tolist() == expected_positions + list(range(rest))
            assert row["labels"].tolist() == expected_labels + [IGNORED] * rest
            assert row["shift_labels"].tolist() == [*row["labels"].tolist()[1:], IGNORED]
        drawn = [sentences.order.place(epoch * sentences.per_epoch + i) for i in range(sentences.per_epoch)]
        assert sorted(found) == sorted(drawn)
    assert rows.padding == pytest.approx(1 - rows.tokens_per_epoch / (rows.rows_per_epoch * length))


@settings(max_examples=25)
@given(SPECIAL, st.integers(1, 70), st.integers(0, 2))
def test_a_stream_is_the_sentences_one_behind_the_other(stores, special, length, seed):
    """Against upstream's rule: rows are consecutive pieces of the stream, targets are the stream one token on."""
    bos, eos = special
    rows = TokenRows(stores, None, length, seed, "stream", bos=bos, eos=eos)
    sentences = Sentences(stores, None, seed)
    stream: list[int] = []
    number = 0
    while len(stream) < 3 * rows.tokens_per_epoch + length + 1:
        store, index = sentences.order.place(number)
        stream += whole(stores[store], index, bos, eos)
        number += 1
    for i in range(3 * rows.tokens_per_epoch // length):
        row = rows[i]
        assert row["input_ids"].tolist() == stream[i * length : (i + 1) * length]
        assert row["labels"].tolist() == row["input_ids"].tolist()
        assert row["shift_labels"].tolist() == stream[i * length + 1 : (i + 1) * length + 1]
        assert row["position_ids"].tolist() == list(range(length))
    assert rows.rows_per_epoch == -(-rows.tokens_per_epoch // length)


@pytest.mark.parametrize("packing", ["isolated", "stream"])
def test_only_answers_are_graded_where_there_are_any(stores, packing):
    rows = TokenRows(stores, None, 40, 0, packing, bos=BOS, eos=EOS, loss="answers")
    seen = 0
    for number in range(3):
        row, expected = rows[number], []
        for store, index in rows.sentences_of(number):
            codes = stores[store].tokens(index).reshape(-1, SIZE)
            for role, picture in zip(stores[store].roles(index), codes.tolist(), strict=True):
                expected += [picture if role in ("y", "frame") else [IGNORED] * SIZE]
        graded = [label for label in row["labels"].tolist() if label != IGNORED]
        wanted = [label for picture in expected for label in picture if label != IGNORED]
        if packing == "isolated":
            assert graded == wanted
        else:  # cut at both ends
            assert "".join(map(chr, graded)) in "".join(map(chr, wanted))
        seen += len(graded)
    assert seen > 0


def test_packed_rows_waste_little(tmp_path):
    rng = np.random.default_rng(0)
    store = make_store(tmp_path / "s", rng.integers(1, 17, 400).tolist(), shard=100)
    rows = TokenRows(store, length=16 * SIZE)
    assert rows.padding < 0.05  # one sentence a row would waste 0.47


@pytest.mark.parametrize("packing", ["isolated", "stream"])
@pytest.mark.parametrize("weights", [None, [1.0, 2.0]])
def test_one_two_and_four_processes_read_the_same_and_carry_on_anywhere(stores, packing, weights):
    def rows():
        return TokenRows(stores, weights, 30, 3, packing)

    batches = 2 * rows().rows_per_epoch // 4 + 2

    def read(world, start=0):
        loaders = [RowLoader(rows(), 4, rank=rank, world=world) for rank in range(world)]
        for loader in loaders:
            loader.cursor = start
        parts = zip(*loaders, strict=True)
        return [torch.cat([part["input_ids"] for part in next(parts)]).tolist() for _ in range(batches - start // 4)]

    one = read(1)
    assert read(2) == one
    assert read(4) == one
    for step in range(batches):
        loader = RowLoader(rows(), 4)
        stream = iter(loader)
        for _ in range(step):
            next(stream)
        state = json.loads(json.dumps(loader.state_dict()))
        assert state["row"] == 4 * step
        two = [RowLoader(rows(), 4, rank=rank, world=2) for rank in range(2)]
        for part in two:
            part.load_state_dict(state)
        following = torch.cat([next(iter(part))["input_ids"] for part in two]).tolist()
        assert following == read(1, 4 * step)[0]
        if step < batches - 1:
            assert following == one[step]


def test_what_was_read_ahead_does_not_count_as_read(stores):
    loader = RowLoader(TokenRows(stores, length=30), 2, workers=1, stop=9)
    stream = iter(loader)
    first = next(stream)
    assert loader.state_dict()["row"] == 2
    assert first["input_ids"].tolist() == [loader.rows[i]["input_ids"].tolist() for i in (0, 1)]
    rest = list(stream)
    assert [len(batch["labels"]) for batch in rest] == [2, 2, 2, 1]


def test_a_state_of_other_rows_is_refused(stores):
    state = RowLoader(TokenRows(stores, length=30), 2).state_dict()
    with pytest.raises(OptionError, match=r"length, rows_an_epoch|length"):
        RowLoader(TokenRows(stores, length=32), 2).load_state_dict(state)
    with pytest.raises(OptionError, match="order"):
        RowLoader(TokenRows(stores, length=30, seed=1), 2).load_state_dict(state)
    with pytest.raises(OptionError, match="stores"):
        RowLoader(TokenRows(stores[:1], length=30), 2).load_state_dict(state)
    with pytest.raises(OptionError, match="divided"):
        RowLoader(TokenRows(stores, length=30), 3, world=2)


def test_rows_may_be_sent_to_other_processes(stores):
    rows = TokenRows(stores, length=30)
    expected = rows[3]
    again = pickle.loads(pickle.dumps(rows))
    assert all(torch.equal(again[3][name], expected[name]) for name in expected)


def test_sentences_that_do_not_fit_and_other_mistakes(stores, tmp_path):
    with pytest.raises(ContextTooLong, match=r"pairs.*2 sentences.*'pairs:0:3'.*stream"):
        TokenRows(stores, length=20)
    with pytest.raises(ContextTooLong, match="BOS"):
        TokenRows(stores, length=24, bos=BOS)
    with pytest.raises(OptionError, match="ordinary code"):
        TokenRows(stores, length=40, bos=2)
    with pytest.raises(OptionError, match="packing"):
        TokenRows(stores, length=40, packing="loose")  # type: ignore[arg-type]
    other = make_store(tmp_path / "other", [2], record=TokenizerRecord(CODES, SIZE, "two"))
    with pytest.raises(DataError, match="another tokenizer"):
        TokenRows([*stores, other], length=40)
