"""From a folder of pairs to an answer: the commands of docs/how_to/picture_pairs.md, on pictures that a user might have."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from kshot.cli import main
from kshot.data.functions import Functions

PAGE = Path(__file__).resolve().parents[1] / "docs" / "how_to" / "picture_pairs.md"
COMMANDS = dict(re.findall(r"<!-- commands: (\w+) -->\n```sh\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL))


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Sixteen pairs of a function and two new pictures, in the current folder."""
    monkeypatch.chdir(tmp_path)
    task = Functions("recolour_red", episodes=18)
    for number, example in enumerate(task.queries):
        places = [("new", f"q{number - 16}", example.images[0])] if number >= 16 else []
        places += (
            [] if number >= 16 else [("before", f"{number}", example.images[0]), ("after", f"{number}", example.answer)]
        )
        for folder, name, picture in places:
            (tmp_path / folder).mkdir(exist_ok=True)
            picture.load().save(tmp_path / folder / f"{name}.png")
    return tmp_path


def run(name: str) -> None:
    lines = COMMANDS[name].strip().splitlines()
    assert len(lines) == 2  # two commands, as the page promises
    for line in lines:
        words = shlex.split(line)
        assert words[0] == "kshot"
        assert main(words[1:]) == 0, line


def test_pairs_are_measured_and_new_pictures_are_answered(folders):
    run("show")
    rows = json.loads((folders / "measured" / "metrics.json").read_text())["rows"]
    none, two = (next(row for row in rows if row["shots"] == shots) for shots in (0, 2))
    assert two["value"] < none["value"]  # an error: the pairs are used
    assert Image.open(next((folders / "answers").rglob("*.png"))).size[0] >= 64
    assert (folders / "answers" / "results.json").is_file()


def test_pairs_become_an_adapter(folders):
    run("distil")
    assert (folders / "adapter" / "adapter_config.json").is_file()
    assert list((folders / "answered").rglob("*.png"))
