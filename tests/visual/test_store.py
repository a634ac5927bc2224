"""Token stores: what goes in comes out, damage is found, and a store is there when it is whole."""

from __future__ import annotations

import json
import pickle
import shutil

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kshot.errors import DataError, ModelError, OptionError
from kshot.visual.loader import TokenRows
from kshot.visual.store import StoredSentence, TokenizerRecord, TokenStore, check_same_tokenizer, open_stores
from kshot.visual.store_report import describe_store
from kshot.visual.store_writer import StoreWriter
from tests.visual.stores import CODES, RECORD, SIZE, make_store, sentence

SENTENCE = st.tuples(
    st.integers(1, 5), st.text(min_size=0, max_size=8), st.sampled_from(["pairs", "images", "Zweierlei ü"])
)


@settings(max_examples=12)
@given(st.lists(SENTENCE, min_size=1, max_size=12), st.integers(1, 5), st.sampled_from([2, 300, 2**16]))
def test_what_goes_in_comes_out(tmp_path_factory, described, shard, codes):
    folder = tmp_path_factory.mktemp("store") / "s"
    rng = np.random.default_rng(len(described))
    put = [
        StoredSentence(
            rng.integers(0, codes, pictures * SIZE).astype(np.uint16),
            name,
            kind,
            tuple(f"r{i}" for i in range(pictures)),
        )
        for pictures, name, kind in described
    ]
    writer = StoreWriter(folder, TokenizerRecord(codes, SIZE, "f"), {"any": ["thing"]}, shard_sentences=shard)
    store = writer.finish(writer.extend(iter(put)))
    assert len(store) == len(put)
    for got, gave in zip(store, put, strict=True):
        assert got.tokens.dtype == np.uint16
        assert np.array_equal(got.tokens, gave.tokens)
        assert (got.id, got.type, got.roles) == (gave.id, gave.type, gave.roles)
    assert store.lengths.tolist() == [len(gave.tokens) for gave in put]
    assert store.record["tokens"] == sum(len(gave.tokens) for gave in put)
    assert [s.id for s in store[1:4]] == [s.id for s in put[1:4]]
    assert store[-1].id == put[-1].id
    store.verify()
    with pytest.raises(IndexError):
        store.tokens(len(put))
    assert not (folder / "unfinished").exists()


def test_tokens_are_views_of_the_file(tmp_path):
    store = make_store(tmp_path / "s", [4, 2, 3])
    before = pa.total_allocated_bytes()
    views = [store.tokens(i) for i in range(3)]
    assert not any(view.flags.writeable or view.flags.owndata for view in views)
    assert pa.total_allocated_bytes() - before < 4096
    assert store.roles(1) == ("x", "y")
    again = pickle.loads(pickle.dumps(store))
    assert np.array_equal(again.tokens(2), views[2])


def test_two_bytes_a_token_and_little_more(tmp_path):
    """For the LVM's sentences, everything in the folder counted: 2.05 at most."""
    rng = np.random.default_rng(0)
    writer = StoreWriter(tmp_path / "s", TokenizerRecord(8192, 256, "a" * 32), shard_sentences=64)
    names = ("pairs", "frames", "colorization")
    put = (
        StoredSentence(
            rng.integers(0, 8192, 4096).astype(np.uint16), f"{names[i % 3]}:0:{i:09d}", names[i % 3], ("x", "y") * 8
        )
        for i in range(128)
    )
    writer.finish(writer.extend(put))
    size = sum(path.stat().st_size for path in (tmp_path / "s").iterdir())
    assert size / (128 * 4096) <= 2.05


def test_datasets_reads_the_shards(tmp_path):
    from datasets import Dataset

    store = make_store(tmp_path / "s", [2, 3, 1])
    rows = Dataset.from_file(str(tmp_path / "s" / "shard-00000.arrow"))
    assert rows[1] == {"tokens": store.tokens(1).tolist(), "id": "pairs:0:1", "type": "pairs", "roles": "x y x"}


def test_equal_sentences_give_equal_bytes_whatever_was_stopped(tmp_path):
    whole = make_store(tmp_path / "whole", [2] * 20, shard=6)
    writer = StoreWriter(tmp_path / "stopped", RECORD, {"test": "pairs"}, shard_sentences=6)
    writer.write(0, [sentence(i, 2) for i in range(6)])
    writer.write(2, [sentence(i, 2) for i in range(12, 18)])
    kept = (tmp_path / "stopped" / "shard-00002.arrow").stat().st_mtime_ns
    (tmp_path / "stopped" / ".shard-00001.arrow.1").write_bytes(b"torn")
    with pytest.raises(DataError, match="not finished"):
        TokenStore(tmp_path / "stopped")
    again = make_store(tmp_path / "stopped", [2] * 20, shard=6)
    assert (tmp_path / "stopped" / "shard-00002.arrow").stat().st_mtime_ns == kept
    files = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "stopped").iterdir())
    assert all((whole.folder / name).read_bytes() == (again.folder / name).read_bytes() for name in files)
    assert again.fingerprint == whole.fingerprint


def test_a_shard_cut_short_while_writing_is_written_again(tmp_path):
    writer = StoreWriter(tmp_path / "s", RECORD, shard_sentences=2)
    writer.write(0, [sentence(0, 2), sentence(1, 1)])
    file = tmp_path / "s" / "shard-00000.arrow"
    file.write_bytes(file.read_bytes()[:-8])
    assert not writer.has(0)
    with pytest.raises(DataError, match="shard 0 is not written"):
        writer.finish(1)


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    make_store(tmp_path / "s", [2, 2])
    assert StoreWriter(tmp_path / "s", RECORD, {"test": "pairs"}, shard_sentences=7).complete
    with pytest.raises(OptionError, match="another grammar"):
        StoreWriter(tmp_path / "s", RECORD, {"test": "frames"}, shard_sentences=7)
    with pytest.raises(OptionError, match=r"another tokenizer.*two and one"):
        StoreWriter(tmp_path / "s", TokenizerRecord(CODES, SIZE, "two"), {"test": "pairs"}, shard_sentences=7)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    with pytest.raises(OptionError, match="no token store"):
        StoreWriter(tmp_path / "mine", RECORD)


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        (StoredSentence(np.array([1, 2, 3]), "i", "t", ("x",)), "3 tokens, which is not a number of pictures of 4"),
        (StoredSentence(np.array([], np.uint16), "i", "t", ()), "0 tokens"),
        (StoredSentence(np.array([1, 2, 3, CODES]), "i", "t", ("x",)), "code 1000, but the tokenizer has 1000"),
        (StoredSentence(np.array([1, 2, -3, 4]), "i", "t", ("x",)), "code -3"),
        (StoredSentence(np.array([1, 2, 3, 4]), "i", "t", ("x", "y")), "1 pictures, but 2 roles"),
        (StoredSentence(np.array([1, 2, 3, 4]), "i", "t", ("x y",)), "role with blanks"),
    ],
)
def test_sentences_that_cannot_be(tmp_path, bad, match):
    with pytest.raises(DataError, match=match):
        StoreWriter(tmp_path / "s", RECORD).write(0, [bad])
    assert not list((tmp_path / "s").glob("*shard*"))


def test_truncated_and_missing_shards_are_found_when_a_store_is_opened(tmp_path):
    store = make_store(tmp_path / "s", [2] * 10)
    file = tmp_path / "s" / "shard-00001.arrow"
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    with pytest.raises(DataError, match=r"shard-00001\.arrow: shard is truncated"):
        TokenStore(store.folder)
    file.unlink()
    with pytest.raises(DataError, match=r"shard-00001\.arrow: shard is missing"):
        TokenStore(store.folder)


def test_what_models_learn_from_is_compared_with_its_checksums(tmp_path):
    """Shard by shard, when its first sentence is read; also by processes that read ahead."""
    made = make_store(tmp_path / "store", [2] * 6, shard=3)
    shard = made.folder / made.shards[1].file
    data = bytearray(shard.read_bytes())
    place = data.index(made.tokens(3).tobytes())
    data[place] ^= 1
    shard.write_bytes(data)
    (store,) = open_stores(str(made.folder))
    assert len(store.lengths) == 6
    assert store[2].tokens[0] == 2
    for reader in (store, pickle.loads(pickle.dumps(store))):
        for _ in range(2):
            with pytest.raises(DataError, match=r"1 of 2 shards are damaged \(wrong checksum\): shard-00001"):
                reader[3]
    with pytest.raises(DataError, match="checksum"):
        [TokenRows(made.folder, length=8)[i] for i in range(6)]


@settings(max_examples=20)
@given(st.data())
def test_every_flipped_byte_is_found_by_its_checksum(tmp_path_factory, data):
    store = make_store(tmp_path_factory.mktemp("s") / "s", [2, 3, 1])
    file = store.folder / "shard-00000.arrow"
    content = bytearray(file.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    file.write_bytes(bytes(content))
    with pytest.raises(DataError, match=r"1 of 1 shards are damaged.*shard-00000\.arrow"):
        TokenStore(store.folder).verify()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"format": "shopping list"}, "not the record"),
        ({"version": 9}, "format version 9"),
        ({"tokenizer": {"cods": 3}}, "cods"),
        ({"shards": None}, "null"),
    ],
)
def test_a_record_of_something_else(tmp_path, change, match):
    store = make_store(tmp_path / "s", [2])
    path = store.folder / "store.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DataError, match=match):
        TokenStore(store.folder)
    path.write_text("{")
    with pytest.raises(DataError, match=r"store\.json"):
        TokenStore(store.folder)


def test_a_shard_that_does_not_hold_what_is_recorded(tmp_path):
    store = make_store(tmp_path / "s", [2, 2])
    other = make_store(tmp_path / "t", [2, 2], first=9)
    record = json.loads((store.folder / "store.json").read_text())
    record["shards"][0] |= {"sentences": 3}
    (store.folder / "store.json").write_text(json.dumps(record))
    with pytest.raises(DataError, match="something else than recorded"):
        TokenStore(store.folder).tokens(0)
    shutil.copy(store.folder / "shard-00000.arrow", other.folder / "shard-00000.arrow")
    with pytest.raises(DataError, match="checksum"):
        TokenStore(other.folder).verify()


def test_tokens_of_another_tokenizer_are_refused(tmp_path):
    one = make_store(tmp_path / "one", [2])
    two = make_store(tmp_path / "two", [2], record=TokenizerRecord(CODES, SIZE, "two"))
    fewer = make_store(tmp_path / "fewer", [2], record=TokenizerRecord(CODES - 1, SIZE))
    unknown = make_store(tmp_path / "unknown", [2], record=TokenizerRecord(CODES, SIZE))
    half = make_store(tmp_path / "half", [2], record=TokenizerRecord(CODES, SIZE, "one", "bfloat16"))
    assert check_same_tokenizer(open_stores([unknown.folder, one, half])).fingerprint == "one"
    for other, match in ((two, "fingerprints one and two"), (fewer, "codes: 1000 and 999")):
        with pytest.raises(DataError, match=match):
            check_same_tokenizer([one, other])
    with pytest.raises(DataError, match="fingerprints"):
        check_same_tokenizer([unknown, one, two])  # what knows nothing must not make peace between the others
    one.check(fingerprint="one", vocab_size=CODES + 100)
    unknown.check(fingerprint="two", vocab_size=CODES)
    with pytest.raises(ModelError, match="another tokenizer"):
        one.check(fingerprint="two")
    with pytest.raises(ModelError, match="vocabulary has 512"):
        one.check(vocab_size=512)
    with pytest.raises(OptionError, match="65,536"):
        TokenizerRecord(2**16 + 1, 256)


def test_a_store_in_words(tmp_path):
    store = make_store(tmp_path / "s", [2, 4])
    told = describe_store(str(store.folder), verify=True)
    assert "2  sentences: 2 pairs" in told
    assert "24  tokens of tokenizer one (32 pixels a side, squash, float32)" in told
    assert "checksums are right" in told
