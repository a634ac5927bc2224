"""Upstream's token lines: written byte for byte, read with file and line in every complaint."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kshot.cli import main
from kshot.errors import CannotWrite, DataError, OptionError
from kshot.visual.store import TokenStore
from kshot.visual.upstream_lines import decode_line, encode_line, export_lines, import_lines
from tests.visual.stores import make_store

OPTIONS = {"codes": 1000, "tokens_per_image": 4}


def line_of(tokens):
    return json.dumps({"tokens": base64.b64encode(np.array(tokens, "<i4").tobytes()).decode()})


def test_a_line_as_upstream_writes_it():
    assert encode_line([1, 258, 8191]) == '{"tokens": "AQAAAAIBAAD/HwAA"}'
    assert len(encode_line(np.zeros(4096, np.uint16)) + "\n") == 21_863  # bytes of a sentence of 16 pictures


@given(st.lists(st.integers(0, 2**31 - 1), max_size=40))
def test_lines_there_and_back(tokens):
    assert decode_line(encode_line(tokens)).tolist() == tokens


@given(st.one_of(st.binary(max_size=60), st.text(max_size=30).map(lambda t: json.dumps({"tokens": t + "!"}).encode())))
def test_any_other_line_is_an_error_with_its_place(line):
    with pytest.raises(DataError, match=r"^some\.jsonl:3"):
        decode_line(line, "some.jsonl", 3)


def test_a_file_becomes_a_store_and_the_same_file_again(tmp_path):
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, 1000, 4 * pictures).tolist() for pictures in (4, 2, 6, 2, 2)]
    file = tmp_path / "lines.jsonl"
    file.write_text(
        "".join(line_of(row) + "\n" for row in rows[:2]) + "\n" + "".join(line_of(r) + "\n" for r in rows[2:])
    )
    out = import_lines(file, out=str(tmp_path / "s"), type="pairs", roles="x,y", shard_sentences=2, **OPTIONS)
    store = TokenStore(out)
    assert [sentence.tokens.tolist() for sentence in store] == rows
    assert [sentence.id for sentence in store] == ["1", "2", "4", "5", "6"]  # the line it stood in
    assert store[1].roles == ("x", "y")
    assert store.tokenizer.fingerprint is None
    again = export_lines(out, out=str(tmp_path / "again.jsonl"))
    assert again.read_text() == "".join(line_of(row) + "\n" for row in rows)
    with pytest.raises(CannotWrite, match="exists"):
        export_lines(out, out=str(again))


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ("{", "not valid JSON"),
        ("[1]", "not a JSON object"),
        ('{"token": "AAAA"}', "no field 'tokens'"),
        ('{"tokens": [1, 2]}', "not a text in base64"),
        ('{"tokens": "AAA"}', "not base64"),
        ('{"tokens": "AAAA"}', "3 bytes are no whole number"),
        (line_of([1, 2, 3]), "3 tokens are no whole number of pictures of 4"),
        (line_of([]), "0 tokens"),
        (line_of([1, 2, 3, 1000]), "code 1000, but the tokenizer has 1000.*BOS"),
        (line_of([1, 2, -3, 4]), "code -3"),
    ],
)
def test_a_bad_line_is_named_and_may_be_listed(tmp_path, line, match):
    (tmp_path / "in").mkdir()
    file = tmp_path / "in" / "b.jsonl"
    (tmp_path / "in" / "a.jsonl").write_text(line_of([5, 6, 7, 8]) + "\n")
    file.write_text(f"{line_of([1, 2, 3, 4])}\n{line}\n{line_of([4, 3, 2, 1])}\n")
    with pytest.raises(DataError, match=rf"b\.jsonl:2.*{match}"):
        import_lines(tmp_path / "in", out=str(tmp_path / "s"), **OPTIONS)
    assert not (tmp_path / "s" / "store.json").exists()
    store = TokenStore(import_lines(tmp_path / "in", out=str(tmp_path / "t"), on_bad="list", **OPTIONS))
    assert [sentence.id for sentence in store] == ["a.jsonl:1", "b.jsonl:1", "b.jsonl:3"]
    listed = [json.loads(entry) for entry in (tmp_path / "t" / "skipped.jsonl").read_text().splitlines()]
    assert [(entry["file"], entry["line"]) for entry in listed] == [("b.jsonl", 2)]
    assert store.record["skipped"] == 1


def test_an_import_carries_on_when_the_line_is_mended(tmp_path):
    file = tmp_path / "a.jsonl"
    good = [line_of([n, n, n, n]) for n in range(6)]
    file.write_text("\n".join([*good[:5], good[5].replace("A", "?")]) + "\n")
    with pytest.raises(DataError, match=r"a\.jsonl:6"):
        import_lines(file, out=str(tmp_path / "s"), shard_sentences=2, **OPTIONS)
    first = (tmp_path / "s" / "shard-00000.arrow").stat().st_mtime_ns
    file.write_text("\n".join(good) + "\n")
    store = TokenStore(import_lines(file, out=str(tmp_path / "s"), shard_sentences=2, **OPTIONS))
    assert (tmp_path / "s" / "shard-00000.arrow").stat().st_mtime_ns == first
    assert [int(store.tokens(i)[0]) for i in range(6)] == list(range(6))


def test_nothing_to_import(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        import_lines(tmp_path / "none.jsonl", out=str(tmp_path / "s"))
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(DataError, match="no lines"):
        import_lines(tmp_path / "empty.jsonl", out=str(tmp_path / "s"))
    with pytest.raises(OptionError, match="roles"):
        import_lines(tmp_path / "empty.jsonl", out=str(tmp_path / "s"), roles="x,,y")


def test_the_commands(tmp_path, capsys):
    store = make_store(tmp_path / "s", [2, 3])
    lines, back = str(tmp_path / "l.jsonl"), str(tmp_path / "b")
    assert main(["convert", "token-store", str(store.folder), "--out", lines]) == 0
    sizes = ["--codes", "1000", "--tokens-per-image", "4"]
    assert main(["convert", "token-lines", lines, "--out", back, "--roles", "x,y", *sizes]) == 0
    assert main(["tokens", back, "--verify", "true"]) == 0
    assert "checksums are right" in capsys.readouterr().out
    assert [s.tokens.tolist() for s in TokenStore(back)] == [s.tokens.tolist() for s in store]
