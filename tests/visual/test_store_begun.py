"""Runs that failed: they are not in the way of the next, and nothing that they wrote looks finished or gets into another store."""

from __future__ import annotations

import json
import shutil

import pytest

from kshot.errors import DataError, OptionError
from kshot.visual.store import TokenizerRecord, TokenStore
from kshot.visual.store_writer import StoreWriter
from kshot.visual.upstream_lines import encode_line, import_lines
from tests.visual.stores import CODES, RECORD, SIZE, make_store, sentence


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def lines(path, *sentences):
    path.write_text("".join((s if isinstance(s, str) else encode_line(s)) + "\n" for s in sentences))
    return path


GOOD = [1, 2, 3, 4]
IMPORT = {"codes": 16, "tokens_per_image": 4}


def test_an_import_that_failed_at_once_leaves_nothing(tmp_path):
    source = lines(tmp_path / "bad.jsonl", "no JSON")
    with pytest.raises(DataError, match="not valid JSON"):
        import_lines(source, out=str(tmp_path / "s"), **IMPORT)
    assert not (tmp_path / "s").exists()


def test_an_import_that_failed_goes_on_when_the_line_is_put_right_or_listed(tmp_path):
    source = lines(tmp_path / "a.jsonl", GOOD, GOOD, "no JSON", GOOD)
    failing = {"out": str(tmp_path / "s"), "shard_sentences": 1, **IMPORT}
    with pytest.raises(DataError, match=r"a\.jsonl:3"):
        import_lines(source, **failing)
    with pytest.raises(DataError, match="not finished"):
        TokenStore(tmp_path / "s")
    listed = import_lines(source, on_bad="list", **failing)
    assert [s.id for s in TokenStore(listed)] == ["1", "2", "4"]
    shutil.rmtree(tmp_path / "s")
    with pytest.raises(DataError, match=r"a\.jsonl:3"):
        import_lines(source, **failing)
    lines(source, [9, 9, 9, 9], GOOD, [5, 6, 7, 8, 5, 6, 7, 8], GOOD)
    put_right = TokenStore(import_lines(source, **failing))
    assert put_right[0].tokens.tolist() == [9, 9, 9, 9]  # not the shard of the file as it was
    assert len(put_right) == 4
    put_right.verify()


def test_another_plan_takes_nothing_of_an_unfinished_one(tmp_path):
    writer = StoreWriter(tmp_path / "s", RECORD, {"test": "frames"}, shard_sentences=3)
    writer.write(0, [sentence(90 + i, 2) for i in range(3)])
    writer.write(3, [sentence(99, 2)])
    found = make_store(tmp_path / "s", [2] * 6, shard=3)
    assert contents(found.folder) == contents(make_store(tmp_path / "t", [2] * 6, shard=3).folder)


def test_tokens_of_pictures_outlive_the_plan(tmp_path):
    part = tmp_path / "s" / "unfinished" / "tokens" / "f-float32" / "part.arrow"
    StoreWriter(tmp_path / "s", RECORD, {"test": "frames"})
    part.parent.mkdir(parents=True)
    part.write_bytes(b"kept")
    StoreWriter(tmp_path / "s", TokenizerRecord(CODES, SIZE, "two"), {"test": "pairs"})
    assert part.read_bytes() == b"kept"


@pytest.mark.parametrize("left", [".plan.json.4711", "plan.json"])
def test_a_run_killed_while_it_wrote_its_plan_is_begun_again(tmp_path, left):
    (tmp_path / "s" / "unfinished").mkdir(parents=True)
    (tmp_path / "s" / "unfinished" / left).write_bytes(b"")
    assert len(make_store(tmp_path / "s", [2, 2])) == 2


def test_a_folder_called_unfinished_may_be_somebodys(tmp_path):
    (tmp_path / "s" / "unfinished").mkdir(parents=True)
    (tmp_path / "s" / "unfinished" / "novel.txt").write_text("chapter one")
    with pytest.raises(OptionError, match="no token store"):
        StoreWriter(tmp_path / "s", RECORD)


def test_a_failed_block_leaves_nothing_unless_something_was_made(tmp_path):
    def fail(folder, shards):
        with StoreWriter(folder, RECORD, {"test": "pairs"}, shard_sentences=1) as writer:
            for number in range(shards):
                writer.write(number, [sentence(number, 2)])
            raise RuntimeError("a bug")

    with pytest.raises(RuntimeError):
        fail(tmp_path / "none", 0)
    assert not (tmp_path / "none").exists()
    (tmp_path / "users").mkdir()
    with pytest.raises(RuntimeError):
        fail(tmp_path / "users", 0)
    assert not list((tmp_path / "users").iterdir())
    with pytest.raises(RuntimeError):
        fail(tmp_path / "some", 2)
    assert StoreWriter(tmp_path / "some", RECORD, {"test": "pairs"}, shard_sentences=1).has(1)


def test_two_processes_do_not_write_one_store(tmp_path):
    pytest.importorskip("fcntl")
    with StoreWriter(tmp_path / "s", RECORD, {"test": "pairs"}):
        for plan in ("pairs", "frames"):
            with pytest.raises(OptionError, match="another process is writing"):
                StoreWriter(tmp_path / "s", RECORD, {"test": plan})
    StoreWriter(tmp_path / "s", RECORD, {"test": "pairs"})


def test_a_finished_store_that_is_begun_again_is_not_finished(tmp_path):
    made = make_store(tmp_path / "s", [2] * 5, shard=2)
    before = contents(made.folder)
    options = {"shard_sentences": made.record["shard_sentences"]}
    with StoreWriter(made.folder, RECORD, {"test": "pairs"}, **options) as writer:
        assert writer.complete
        writer.begin_again()
        with pytest.raises(DataError, match="not finished"):
            TokenStore(made.folder)
        writer.finish(writer.extend(sentence(i, 2) for i in range(5)))
    assert contents(made.folder) == before
    assert json.loads(before["store.json"])["sentences"] == 5
