"""``kshot tokenize`` again, after pictures were put right: old problems are not believed, and old digests and shards are not used."""

from __future__ import annotations

import json
import shutil

import pytest

from kshot.errors import DataError
from kshot.visual import tokenize_run as module
from kshot.visual.tokenize import tokenize
from tests.visual.tiny import noise, tiny_tokenizer

PAIRS = 9
BAD = ("4", "7")


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """Pairs of good pictures, a tokenizer, and the store of them."""
    root = tmp_path_factory.mktemp("good")
    for side in (0, 1):
        (root / "xy"[side]).mkdir()
        for number in range(PAIRS):
            noise(100 * side + number).save(root / "xy"[side] / f"{number}.png")
    tiny_tokenizer().save_pretrained(root / "vq")
    tokenize(out=str(root / "whole"), **options(root, root))
    return root


@pytest.fixture
def spoilt(good, tmp_path):
    """The same with two bad pictures, of the same bytes, so that they have the same digest."""
    for side in "xy":
        shutil.copytree(good / side, tmp_path / side)
    junk = (tmp_path / "x" / "0.png").read_bytes()[:50]
    for number in BAD:
        (tmp_path / "x" / f"{number}.png").write_bytes(junk)
    return tmp_path


def options(pictures, good, **changes):
    described = {"x": str(pictures / "x"), "y": str(pictures / "y"), "shots": 2, "epochs": 3}
    return {
        "sentences": "pairs",
        "sentences_options": described | changes,
        "tokenizer": str(good / "vq"),
        "batch_size": 4,
        "shard_sentences": 5,
    }


def put_right(good, spoilt, *numbers):
    for number in numbers:
        shutil.copy(good / "x" / f"{number}.png", spoilt / "x")


def bad_of(store):
    listed = store.folder / "skipped.jsonl"
    lines = listed.read_text().splitlines() if listed.exists() else []
    return sorted(json.loads(line)["record"] for line in lines)


def held(store):
    return [(s.id, s.tokens.tolist()) for s in store]


def stop_at(monkeypatch, name, calls):
    """Stop at a call of a step, counted from 1, as Ctrl-C does."""
    target = module if name == "write_part" else module.StoreWriter
    real, made = getattr(target, name), []

    def stopping(*args, **kwargs):
        made.append(name)
        if len(made) == calls:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(target, name, stopping)


@pytest.mark.parametrize("cached", [False, True])
def test_a_finished_store_is_made_again_with_what_was_put_right(good, spoilt, cached):
    command = options(spoilt, good) | {"out": str(spoilt / "s")} | ({"cache": str(spoilt / "kept")} if cached else {})
    first = tokenize(**command)
    assert bad_of(first.store) == list(BAD)
    before = (spoilt / "s" / "store.json").read_bytes()
    assert tokenize(**command).tokenized == 0  # nothing was put right: nothing to do
    assert (spoilt / "s" / "store.json").read_bytes() == before
    put_right(good, spoilt, "4")
    half = tokenize(**command)
    assert bad_of(half.store) == ["7"]
    put_right(good, spoilt, "7")
    done = tokenize(**command)
    assert (done.skipped, done.left_out, bad_of(done.store)) == (0, 0, [])
    assert done.tokenized == (1 if cached else 2 * PAIRS)
    expected = tokenize(out=str(good / "whole"), **options(good, good)).store
    assert held(done.store) == held(expected)
    done.store.verify()
    assert not (spoilt / "s" / "skipped.jsonl").exists()
    assert sorted(p.name for p in (spoilt / "s").iterdir()) == sorted(p.name for p in expected.folder.iterdir())


@pytest.mark.parametrize(("step", "calls"), [("write_part", 1), ("write_part", 3), ("write", 2), ("finish", 1)])
def test_a_stopped_run_goes_on_with_what_was_put_right(good, spoilt, monkeypatch, step, calls):
    """Stopped after digests, amid the tokens, and when shards were laid out without the bad pictures."""
    with monkeypatch.context() as patched:
        patched.setattr(module, "MOST_PICTURES", 4)
        stop_at(patched, step, calls)
        with pytest.raises(KeyboardInterrupt):
            tokenize(out=str(spoilt / "s"), **options(spoilt, good))
    put_right(good, spoilt, *BAD)
    done = tokenize(out=str(spoilt / "s"), **options(spoilt, good))
    assert (done.skipped, bad_of(done.store)) == (0, [])
    assert held(done.store) == held(tokenize(out=str(good / "whole"), **options(good, good)).store)


def test_a_run_that_failed_goes_on_with_what_was_put_right(good, spoilt):
    command = options(spoilt, good, on_bad="error") | {"out": str(spoilt / "s")}
    (spoilt / "y" / "3.png").write_bytes(b"")
    for _ in range(2):
        with pytest.raises(DataError, match=r"\.png"):
            tokenize(**command)
    put_right(good, spoilt, *BAD)
    shutil.copy(good / "y" / "3.png", spoilt / "y")
    done = tokenize(**command)
    assert done.skipped == 0
    assert done.tokenized < 2 * PAIRS  # what was good the first time is not tokenized again
    assert held(done.store) == held(tokenize(out=str(good / "whole"), **options(good, good)).store)


def test_a_run_that_failed_goes_on_with_other_options(good, spoilt):
    with pytest.raises(DataError, match=r"\.png"):
        tokenize(out=str(spoilt / "s"), **options(spoilt, good, on_bad="error"))
    done = tokenize(out=str(spoilt / "s"), **options(spoilt, good))
    assert bad_of(done.store) == list(BAD)
    assert done.tokenized == 0  # the tokens of good pictures are those of the run that failed
