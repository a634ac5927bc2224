"""Readers: every way in which a file can be wrong is an error that says where."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kshot.data.jsonl import read_examples
from kshot.data.readers import (
    check_unique,
    find_file,
    fingerprint,
    get,
    get_texts,
    index_by,
    read_json,
    read_json_lines,
    shuffled,
)
from kshot.errors import DataError, KshotError


@pytest.fixture
def file(tmp_path):
    def write(content: str | bytes):
        path = tmp_path / "data.json"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def test_a_missing_file_says_where_to_get_it(tmp_path):
    with pytest.raises(DataError, match=r"file not found \(get it from example\.org\)"):
        read_json(tmp_path / "none.json", remedy="get it from example.org")
    with pytest.raises(DataError, match="this is a folder"):
        read_json(tmp_path)
    with pytest.raises(DataError, match="cannot be read"):
        read_json("a\0b")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b'{"a": 1,\n "b": "\xe4"}', r"data\.json:2: not UTF-8 text: byte 0xe4 at position 16"),
        (b"\xff\xfe{\x00}\x00", "not UTF-8 text: byte 0xff"),
        ('{"questions": [{"a": 1}, {"b"', "JSON ends too early, after 29 characters"),
        ('{"questions": ["what is', "JSON ends too early"),
        ('{"a": 1,\n"b": nope}', r"data\.json:2: not valid JSON: Expecting value at column 6 \(there stands 'nope}'\)"),
        ("", "file is empty"),
        (" \n", "file is empty"),
        ("[" * 100_000, "JSON"),
        ("9" * 5000, "not usable JSON"),
    ],
)
def test_json_that_cannot_be_read(file, content, problem):
    with pytest.raises(DataError, match=problem) as caught:
        read_json(file(content))
    assert "\n" not in str(caught.value)


def test_a_byte_order_mark_is_dropped(file):
    assert read_json(file(b"\xef\xbb\xbf[1]")) == [1]


def test_json_lines(file):
    assert read_json_lines(file('{"a": "x\u2028y"}\r\n\n{"b": 2}')) == [(1, {"a": "x\u2028y"}), (3, {"b": 2})]
    for content, problem in (
        ('{"a": 1}\n[1]\n', r":2: an object is expected, not a list"),
        ('{"a": 1}\n\n{"a": \n', r":3: JSON ends too early"),
        ('{"a": "\\ud800"}', ":1: text with half a surrogate pair"),
    ):
        with pytest.raises(DataError, match=problem):
            read_json_lines(file(content))


@pytest.mark.parametrize(
    ("record", "kind", "problem"),
    [
        ([], str, "an object is expected, not a list"),
        ({"b": 1}, str, r"f\.json:4 field 'a': field is missing \(the record has: b\)"),
        ({"a": 1}, str, "text is expected, not a whole number"),
        ({"a": True}, int, "a whole number is expected, not true or false"),
        ({"a": None}, (str, list), "text or a list is expected, not null"),
        ({"a": "\ud800"}, str, "half a surrogate pair"),
    ],
)
def test_fields(record, kind, problem):
    with pytest.raises(DataError, match=problem):
        get(record, "a", kind, "f.json", 4)


def test_good_fields():
    assert get({"a": 1}, "a", (int, str), "f") == 1
    assert get({"a": False}, "a", bool, "f") is False
    assert get_texts({"a": ["x"]}, "a", "f") == ["x"]
    with pytest.raises(DataError, match="it holds a whole number"):
        get_texts({"a": ["x", 1]}, "a", "f")


def test_ids_that_occur_twice_are_both_named():
    with pytest.raises(DataError, match=r"f\.json:3 field 'id': 7 occurs twice, in items 1 and 3"):
        index_by([{"id": 7}, {"id": 8}, {"id": 7}], "id", "f.json")
    with pytest.raises(DataError, match="'a' occurs twice, in items 2 and 9"):
        check_unique(["a", "b", "a"], "f", lines=[2, 5, 9])
    check_unique(["a", "b"], "f")


def test_files_are_looked_for_in_several_places(tmp_path):
    with pytest.raises(
        DataError, match=re.escape("there is no x.json here (looked in it and in sub) (get it from web")
    ):
        find_file(tmp_path, ["x.json"], (".", "sub"), source="web")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "x.json").write_text("1")
    assert find_file(tmp_path, ["x.json"], (".", "sub")) == tmp_path / "sub" / "x.json"
    with pytest.raises(DataError, match="no such folder"):
        find_file(tmp_path / "none", ["x.json"])


def test_fingerprints_follow_the_content(file):
    first = fingerprint(file("one"))
    assert fingerprint(file("other")) != first
    assert fingerprint(file("one")) == first


@given(st.sets(st.text()), st.text(), st.integers())
def test_an_order_depends_on_seed_and_key_alone(keys, extra, seed):
    order = shuffled(keys, "name", seed)
    assert sorted(order) == sorted(keys)
    with_extra = shuffled(keys | {extra}, "name", seed)
    assert [key for key in with_extra if key in keys and key != extra] == [key for key in order if key != extra]


def test_seeds_give_other_orders():
    keys = [str(n) for n in range(50)]
    assert shuffled(keys, 0) != shuffled(keys, 1)
    assert shuffled(keys, "a", 0) != shuffled(keys, "b", 0)


relaxed = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
fields = st.sampled_from(
    ["image", "images", "question", "answer", "answers", "references", "choices", "id", "metadata", "x"]
)


def outcome(path, content: bytes):
    """The examples of the file, or ``None`` where it is refused; anything else is a failure."""
    path.write_bytes(content)
    try:
        examples = list(read_examples(path))
    except KshotError as error:
        message = str(error)
        examples = None
    if examples is None:
        assert "\n" not in message
        return None
    assert examples
    assert len({e.id for e in examples}) == len(examples)
    for example in examples:
        json.dumps([example.question, example.answer, example.references, example.choices]).encode()
        assert all(isinstance(text, str) for text in (*example.references, *example.choices, example.question))
    return examples


@relaxed
@given(
    st.binary(max_size=80) | st.lists(values, max_size=3).map(lambda rows: "\n".join(map(json.dumps, rows)).encode())
)
def test_any_bytes_are_examples_or_an_error(tmp_path, content):
    outcome(tmp_path / "x.jsonl", content)


@relaxed
@given(st.lists(st.dictionaries(fields, values, max_size=4), max_size=3))
def test_any_objects_are_examples_or_an_error(tmp_path, rows):
    outcome(tmp_path / "x.jsonl", "\n".join(map(json.dumps, rows)).encode())


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@relaxed
@given(st.lists(st.fixed_dictionaries({"question": texts, "answer": texts, "choices": st.lists(texts)}), min_size=1))
def test_what_is_written_is_read(tmp_path, rows):
    content = "\n".join(json.dumps(row, ensure_ascii=bool(len(rows) % 2)) for row in rows).encode()
    examples = outcome(tmp_path / "x.jsonl", content)
    read = [{"question": e.question, "answer": e.answer, "choices": list(e.choices)} for e in examples]
    assert read == rows
