"""What the tasks with a file for each split share."""

from __future__ import annotations

import json

import pytest

from kshot.data.splits import after_turns, is_json_lines, read_records, record_id
from kshot.errors import DataError

ROWS = [{"id": 1, "a": "x"}, {"id": 2, "a": "ü\u2028y"}]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("rows.jsonl", "\n".join(map(json.dumps, ROWS))),
        ("lines.json", "\n".join(map(json.dumps, ROWS)) + "\n\n"),  # published so more than once
        ("list.json", json.dumps(ROWS)),
        ("pretty.json", json.dumps(ROWS, indent=2)),
        ("under_key.json", json.dumps({"info": {}, "rows": ROWS})),
        ("by_id.json", json.dumps({str(row["id"]): row for row in ROWS})),
        ("by_id_pretty.json", json.dumps({str(row["id"]): row for row in ROWS}, indent=1)),
    ],
)
def test_records_are_read_in_every_form(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert read_records(tmp_path / name, "rows", id_field="id") == [(1, ROWS[0]), (2, ROWS[1])]


def test_a_single_line_is_a_record(tmp_path):
    file = tmp_path / "one.json"
    file.write_text(json.dumps(ROWS[0]) + "\n")
    assert not is_json_lines(file)
    assert read_records(file) == [(1, ROWS[0])]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[1]", ":1: an object is expected, not a whole number"),
        ("5", "a list, or an object with 'rows', is expected, not a whole number"),
        ('{"rows": 5}', "is expected, not an object"),
        ('[{"a": 1}', "JSON ends too early"),
        ('{"a": 1}\n{"a": \n', ":2"),
        ("", "file is empty"),
    ],
)
def test_files_that_hold_no_records(tmp_path, text, problem):
    file = tmp_path / "wrong.json"
    file.write_text(text)
    with pytest.raises(DataError, match=problem):
        read_records(file, "rows")


def test_ids_are_the_first_field_there_is_or_the_place(tmp_path):
    file = tmp_path / "f.json"
    assert record_id({"id": 3, "key": "k"}, ("key", "id"), file, 9) == "k"
    assert record_id({"id": 3}, ("key", "id"), file, 9) == "3"
    assert record_id({}, ("key", "id"), file, 9) == "f.json:9"
    with pytest.raises(DataError, match="text or a whole number is expected"):
        record_id({"id": True}, ("id",), file, 9)


def test_earlier_turns_stand_before_the_question():
    assert after_turns([], "why?") == "why?"
    assert after_turns([("a?", "b"), ("c?", "d")], "e?") == "a?\nASSISTANT: b\nUSER: c?\nASSISTANT: d\nUSER: e?"
