"""``kshot tokenize``: the right tokens, once a picture, the same bytes however the work is done, and nothing for bad pictures."""

from __future__ import annotations

import importlib.util
import json
import pickle
import shutil
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from kshot.cli import main
from kshot.errors import ContextTooLong, DataError, KshotError, OptionError
from kshot.picture import DrawnPicture, FilePicture
from kshot.visual import tokenize_run as module
from kshot.visual import tokenize_workers
from kshot.visual.grammar import Sentence, sentence_plan, sentences_of
from kshot.visual.store import TokenStore
from kshot.visual.tokenize import tokenize, tokenize_sentences
from kshot.visual.tokenize_parts import TokenParts, group
from kshot.visual.tokenize_units import Bench, Outcome, digest_unit, token_unit
from kshot.visual.tokenize_workers import Actor
from kshot.visual.tokenizer import VisualTokenizer
from tests.visual.crashing import Crashing
from tests.visual.tiny import noise, tiny_tokenizer

PAIRS = 9


class Listed(Sequence[Sentence]):
    """A plan of given pictures, so many a sentence."""

    type = "images"

    def __init__(self, pictures, size=2):
        self.pictures, self.size = pictures, size

    def __len__(self):
        return len(self.pictures) // self.size

    def __getitem__(self, index):
        own = tuple(self.pictures[index * self.size : (index + 1) * self.size])
        return Sentence(f"s{index}", "images", own, ("image",) * self.size, tuple(p.name for p in own))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Pairs of pictures (two of them equal under other names) and a tokenizer."""
    root = tmp_path_factory.mktemp("pictures")
    for side in (0, 1):
        (root / "xy"[side]).mkdir()
        for number in range(PAIRS):
            noise(100 * side + number).save(root / "xy"[side] / f"{number}.png")
    shutil.copy(root / "x" / "1.png", root / "x" / "2.png")
    tiny_tokenizer().save_pretrained(root / "vq")
    return root


def pairs(folders, **changes):
    options = {"x": str(folders / "x"), "y": str(folders / "y"), "shots": 2, "epochs": 3}
    return {
        "sentences": "pairs",
        "sentences_options": options | changes,
        "tokenizer": str(folders / "vq"),
        "batch_size": 4,
    }


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def whole(folders):
    return tokenize(out=str(folders / "whole"), shard_sentences=5, **pairs(folders))


def test_a_sentence_is_the_tokens_of_its_pictures(folders, whole):
    tokenizer = VisualTokenizer.from_pretrained(folders / "vq")
    plan = sentence_plan("pairs", x=folders / "x", y=folders / "y", shots=2, epochs=3)
    assert len(whole.store) == len(plan) == 12
    for stored, sentence in zip(whole.store, plan, strict=True):
        assert stored.tokens.tolist() == tokenizer.encode(sentence.pictures, 1).flatten().tolist()
        assert (stored.id, stored.type, stored.roles) == (sentence.id, "pairs", ("x", "y") * 2)
    whole.store.verify()
    record = whole.store.record
    assert record["tokenizer"]["fingerprint"] == tokenizer.fingerprint
    assert record["grammar"][0]["options"]["shots"] == 2
    assert record["special_ids"] == {"bos": 16, "eos": 17, "pad": 18}


def test_a_picture_is_tokenized_once_however_often_it_is_shown(whole):
    assert whole.pictures == 12 * 4
    assert whole.distinct == whole.tokenized == 2 * PAIRS - 1


def test_the_same_command_again_does_nothing(folders, whole):
    before = contents(folders / "whole")
    again = tokenize(out=str(folders / "whole"), shard_sentences=5, **pairs(folders))
    assert again.tokenized == 0
    assert (again.pictures, again.distinct) == (whole.pictures, whole.distinct)
    assert contents(folders / "whole") == before
    with pytest.raises(OptionError, match="another grammar"):
        tokenize(out=str(folders / "whole"), shard_sentences=5, **pairs(folders, epochs=2))


@pytest.mark.parametrize("stop", ["write_part", "write", "finish"])
def test_a_stopped_run_carries_on_to_the_same_bytes(folders, whole, tmp_path, monkeypatch, stop):
    monkeypatch.setattr(module, "MOST_PICTURES", 4)
    target = module if stop == "write_part" else module.StoreWriter
    real, calls = getattr(target, stop), []

    def stopping(*args, **kwargs):
        calls.append(stop)
        if len(calls) == (1 if stop == "finish" else 3):
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(target, stop, stopping)
    out = tmp_path / "s"
    with pytest.raises(KeyboardInterrupt):
        tokenize(out=str(out), shard_sentences=5, **pairs(folders))
    monkeypatch.setattr(target, stop, real)
    again = tokenize(out=str(out), shard_sentences=5, **pairs(folders))
    assert again.tokenized == (whole.distinct - 8 if stop == "write_part" else 0)
    assert contents(out) == contents(folders / "whole")


def test_bad_pictures_are_listed_and_nothing_is_put_in_their_place(folders, tmp_path):
    for side in "xy":
        shutil.copytree(folders / side, tmp_path / side)
    truncated, empty = tmp_path / "y" / "4.png", tmp_path / "x" / "7.png"
    truncated.write_bytes(truncated.read_bytes()[:50])
    empty.write_bytes(b"")
    (tmp_path / "x" / "lonely.png").write_bytes(b"no partner")
    options = pairs(folders, x=str(tmp_path / "x"), y=str(tmp_path / "y"))
    done = tokenize(out=str(tmp_path / "s"), **options)
    lines = [json.loads(line) for line in (tmp_path / "s" / "skipped.jsonl").read_text().splitlines()]
    sources = [line for line in lines if "source" in line]
    assert [(line["source"], line["problem"][:10]) for line in sources] == [
        (str(tmp_path / "x" / "lonely.png"), "no partner")
    ]
    pictures = {line["picture"]: line for line in lines if "picture" in line}
    assert set(pictures) == {str(truncated), str(empty)}
    assert "truncated" in pictures[str(truncated)]["problem"]
    assert "empty" in pictures[str(empty)]["problem"]
    assert [line["record"] for line in pictures.values()] in (["4", "7"], ["7", "4"])
    # The good pictures beside them are in other sentences now: as if the bad ones had never been there.
    for side in "xy":
        for number in "47":
            (tmp_path / side / f"{number}.png").unlink()
    expected = tokenize(out=str(tmp_path / "t"), **options)
    assert [(s.id, s.tokens.tolist()) for s in done.store] == [(s.id, s.tokens.tolist()) for s in expected.store]
    assert (done.skipped, done.left_out, len(done.store)) == (3, 3, 9)
    assert done.store.record["sentences_left_out"] == 3


def test_bad_pictures_are_an_error_if_the_sentences_want_it_so_or_nothing_is_left(folders, tmp_path):
    for side in "xy":
        shutil.copytree(folders / side, tmp_path / side)
    (tmp_path / "y" / "4.png").write_bytes(b"nothing")
    options = pairs(folders, x=str(tmp_path / "x"), y=str(tmp_path / "y"), on_bad="error")
    with pytest.raises(DataError, match=r"4: .*4\.png: not an image"):
        tokenize(out=str(tmp_path / "s"), **options)
    for file in (tmp_path / "x").iterdir():
        file.write_bytes(b"nothing")
    options = pairs(folders, x=str(tmp_path / "x"), y=str(tmp_path / "y"))
    with pytest.raises(DataError, match=r"no whole sentence.*9 sources were left out"):
        tokenize(out=str(tmp_path / "t"), **options)


def test_a_picture_that_vanishes_is_listed(folders, tmp_path):
    pictures = [
        FilePicture(folders / "x" / "0.png"),
        FilePicture(tmp_path / "gone.png"),
        *map(FilePicture, [folders / "x" / "3.png"] * 2),
    ]
    done = tokenize_sentences([Listed(pictures)], folders / "vq", tmp_path / "s")
    assert [sentence.id for sentence in done.store] == ["s1"]
    line = json.loads((tmp_path / "s" / "skipped.jsonl").read_text())
    assert line["sentences"] == ["s0"]
    assert "not found" in line["problem"]
    with pytest.raises(DataError, match=r"no sentence could be tokenized.*not found"):
        tokenize_sentences([Listed(pictures[:2])], folders / "vq", tmp_path / "t")


def test_tokens_do_not_depend_on_the_company(folders, tmp_path):
    """Batches are filled up, so every picture goes through the same arithmetic."""
    seen = []

    class Watched(VisualTokenizer):
        def encode(self, pictures, batch_size=16):
            seen.append((len(pictures), batch_size))
            return super().encode(pictures, batch_size)

    tokenizer = Watched.from_pretrained(folders / "vq")
    pictures = [DrawnPicture(lambda n=n: noise(n), f"noise {n}") for n in range(7)]
    done = tokenize_sentences([Listed(pictures, 1)], tokenizer, tmp_path / "s", batch_size=4, threads=3)
    assert seen == [(4, 4), (4, 4)]
    expected = tokenizer.encode(pictures, 1)
    assert torch.equal(torch.tensor(np.stack([s.tokens for s in done.store]).astype(np.int64)), expected)


def test_a_cache_serves_other_runs(folders, whole, tmp_path):
    first = tokenize(out=str(tmp_path / "a"), cache=str(tmp_path / "cache"), **pairs(folders, epochs=1))
    assert first.tokenized >= 4
    other = tokenize(out=str(tmp_path / "b"), cache=str(tmp_path / "cache"), shard_sentences=5, **pairs(folders))
    assert other.tokenized == whole.distinct - first.tokenized
    assert contents(tmp_path / "b") == contents(folders / "whole")
    part = next((tmp_path / "cache").rglob("*.arrow"))
    content = bytearray(part.read_bytes())
    content[-100] ^= 1
    part.write_bytes(bytes(content))
    with pytest.warns(UserWarning, match="damaged file of tokens"):
        again = tokenize(out=str(tmp_path / "c"), cache=str(tmp_path / "cache"), shard_sentences=5, **pairs(folders))
    assert again.tokenized > 0
    assert contents(tmp_path / "c") == contents(folders / "whole")


def test_several_types_in_one_store(folders, tmp_path):
    mix = [
        {"type": "images", "folder": str(folders / "x")},
        {"type": "images", "folder": str(folders / "y")},
        {"type": "colorization", "folder": str(folders / "x"), "shots": 2},
    ]
    done = tokenize(mix=mix, tokenizer=str(folders / "vq"), out=str(tmp_path / "s"))
    assert done.store.record["types"] == {"colorization": 4, "images": 18}
    ids = [sentence.id for sentence in done.store]
    assert len(set(ids)) == 22
    assert ids[:2] == ["0/images:0:0", "0/images:0:1"]
    shown = {picture.digest for one in mix for sentence in sentences_of(one) for picture in sentence.pictures}
    assert done.distinct == len(shown) < done.pictures == 18 + 4 * 4


def test_the_command(folders, tmp_path, capsys):
    words = ["tokenize", "--sentences", "pairs", "--x", str(folders / "x"), "--y", str(folders / "y"), "--shots", "2"]
    words += ["--tokenizer", str(folders / "vq"), "--out", str(tmp_path / "s"), "--batch-size", "4"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "4  sentences (4 pairs) in 1 shards" in out
    assert "images/s" in out
    assert len(TokenStore(tmp_path / "s")) == 4
    described = {
        "tokenizer": str(folders / "vq"),
        "mix": [{"type": "images", "folder": str(folders / side)} for side in "xy"],
    }
    (tmp_path / "mix.yaml").write_text(json.dumps(described | {"batch_size": 4}))  # JSON is YAML
    assert main(["tokenize", "--config", str(tmp_path / "mix.yaml"), "--out", str(tmp_path / "t")]) == 0
    assert len(TokenStore(tmp_path / "t")) == 2 * PAIRS
    assert main(["tokenize", "--sentences", "pears", "--x", "here", "--tokenizer", "vq", "--out", "u"]) == 2
    assert "did you mean 'pairs'" in capsys.readouterr().err


def test_options_that_make_no_sense(folders, tmp_path):
    with pytest.raises(OptionError, match="either --sentences"):
        tokenize(tokenizer=str(folders / "vq"), out=str(tmp_path / "s"))
    with pytest.raises(ContextTooLong, match="= 16 tokens"):
        tokenize(out=str(tmp_path / "s"), context=15, **pairs(folders))
    with pytest.raises(OptionError, match="at least 1"):
        tokenize(out=str(tmp_path / "s"), workers=0, **pairs(folders))
    blank = Sentence("s", "t", (FilePicture(folders / "x" / "0.png"),), ("surface normals",), ("0.png",))
    with pytest.raises(OptionError, match=r"'surface normals'.*blanks"):
        tokenize_sentences([[blank]], tiny_tokenizer(), tmp_path / "t")
    drawn = Listed([DrawnPicture(lambda: noise(0), "drawn")], 1)
    with pytest.raises(OptionError, match="cannot be sent to other processes"):
        tokenize_sentences([drawn], tiny_tokenizer(), tmp_path / "t", workers=2)


@pytest.mark.slow
def test_several_processes_write_the_same_bytes_though_one_of_them_dies(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(tokenize_workers, "AHEAD", 1)  # so that some units are given out when others are done
    files = [folders / side / f"{number}.png" for number in range(PAIRS) for side in "xy"]
    alone = tokenize_sentences(
        [Listed(list(map(FilePicture, files)))], folders / "vq", tmp_path / "alone", batch_size=4
    )
    for file in files:
        shutil.copy(file, tmp_path)
    crashing = [Crashing(files[5]) if place == 5 else FilePicture(file) for place, file in enumerate(files)]
    several = tokenize_sentences([Listed(crashing)], folders / "vq", tmp_path / "several", batch_size=4, workers=2)
    assert files[5].with_suffix(".mark").exists()
    files[5].with_suffix(".mark").unlink()
    assert several.tokenized == alone.tokenized
    assert contents(tmp_path / "several") == contents(tmp_path / "alone")
    poisonous = [Crashing(files[5], always=True) if place == 5 else FilePicture(f) for place, f in enumerate(files)]
    with pytest.raises(KshotError, match="died 3 times in a row"):
        tokenize_sentences([Listed(poisonous)], folders / "vq", tmp_path / "poison", batch_size=4, workers=2)
    (tokens,) = (tmp_path / "poison" / "unfinished" / "tokens").iterdir()
    kept = TokenParts(tokens, 4)
    assert len(kept.digests) >= 12  # what the others had done is kept
    files[5].with_suffix(".mark").unlink()


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed (extra 'ray')")
def test_ray_writes_the_same_bytes(folders, whole, tmp_path):
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        done = tokenize(out=str(tmp_path / "s"), shard_sentences=5, workers=2, ray="auto", **pairs(folders))
    finally:
        ray.shutdown()
    assert done.tokenized == whole.tokenized
    assert contents(tmp_path / "s") == contents(folders / "whole")


def test_an_actor_gives_what_the_process_itself_would(folders):
    """What Ray runs, without Ray: units go in as rows, and come back as rows."""
    plan = sentence_plan("pairs", x=folders / "x", y=folders / "y", shots=2)
    bench = Bench(plan, str(folders / "vq"), batch_size=4)
    actor = Actor(pickle.dumps(bench))
    for unit in (digest_unit(0, 3), token_unit([(0, 1), (2, 3), (1, 0)])):
        row, expected = actor({"number": 7, "unit": unit}), bench.do(unit)
        assert (row["number"], row["data"], row["told"]) == (7, expected.data, expected.told)
        assert row["pictures"] == (12 if "digests" in unit else 3)
    lost = Actor(pickle.dumps(Bench(plan, str(folders / "x"))))({"number": 0, "unit": unit})
    with pytest.raises(KshotError, match=r"config\.json"):
        Outcome(lost["data"], lost["told"]).read()


def test_equal_digests_are_grouped_in_the_order_they_come():
    rng = np.random.default_rng(0)
    digests = rng.integers(0, 256, (40, 16), dtype=np.uint8)[rng.integers(0, 40, 200)]
    groups, firsts = group(digests)
    seen: dict[bytes, int] = {}
    expected = [seen.setdefault(row.tobytes(), len(seen)) for row in digests]
    assert groups.tolist() == expected
    assert [expected.index(number) for number in range(len(seen))] == firsts.tolist()
    assert len(group(np.empty((0, 16), np.uint8))[0]) == 0
