from __future__ import annotations

import os
import stat

import pytest

from kshot.whole_file import whole_file, write_text


def test_the_file_appears_at_the_end_with_folders_and_usual_permissions(tmp_path):
    path = tmp_path / "a" / "b.txt"
    with whole_file(path) as temporary:
        temporary.write_text("new")
        assert temporary.parent == path.parent
        assert not path.exists()
    assert path.read_text() == "new"
    assert os.listdir(path.parent) == ["b.txt"]
    plain = tmp_path / "plain"
    plain.touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_after_an_error_the_old_file_is_there_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old ü")

    def fail():
        with whole_file(path) as temporary:
            temporary.write_text("half")
            raise ValueError("no space")

    with pytest.raises(ValueError, match="no space"):
        fail()
    assert path.read_text(encoding="utf-8") == "old ü"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    path = tmp_path / "a.txt"
    with whole_file(path) as first, whole_file(path) as second:
        first.write_text("first")
        second.write_text("second")
        assert first != second
    assert path.read_text() == "first"  # the block that ends last
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_block_that_writes_nothing_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), whole_file(tmp_path / "a.txt"):
        pass
