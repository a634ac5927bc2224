"""Messages that say where and what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from kshot import errors
from kshot.errors import BadImage, DataError, KshotError, MissingExtra, UnknownName


def test_an_unknown_name_suggests_the_nearest():
    assert str(UnknownName("task", "vqa2", ["vqav2", "mme"])) == "unknown task 'vqa2': did you mean 'vqav2'?"
    assert "known: a, b" in str(UnknownName("task", "zzzzzz", ["b", "a"]))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "it is bad"),
        ({"file": Path("a/b.json")}, "a/b.json: it is bad"),
        ({"file": "b.json", "line": 3}, "b.json:3: it is bad"),
        ({"file": "b.json", "line": 3, "field": "id"}, "b.json:3 field 'id': it is bad"),
        ({"field": "id"}, "field 'id': it is bad"),
        ({"file": "b.json", "remedy": "mend it"}, "b.json: it is bad (mend it)"),
    ],
)
def test_data_errors_name_the_place_and_the_remedy(given, message):
    error = DataError("it is bad", **given)
    assert str(error) == message
    assert (error.problem, error.line, error.field) == ("it is bad", given.get("line"), given.get("field"))


def test_a_missing_extra_names_the_command():
    assert "pip install 'kshot[text]'" in str(MissingExtra("nltk", "text", "stemming"))


def test_all_errors_of_ours_are_one_kind_and_bad_images_are_bad_data():
    kinds = [v for v in vars(errors).values() if isinstance(v, type) and issubclass(v, Exception)]
    assert len(kinds) >= 7
    assert all(issubclass(kind, KshotError) and kind.exit_code == 2 for kind in kinds)
    assert issubclass(BadImage, DataError)
