"""The quickstart: with a random model that all of it is there, with the embedded model that it learns."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from kshot import __file__ as package
from kshot.cli import main
from kshot.errors import OptionError
from kshot.models import VLM
from kshot.quickstart import quickstart
from tests.models.tiny import build


def test_everything_is_written_and_said(tmp_path):
    found = quickstart(out=tmp_path, questions=4, model=VLM(*build("llava_llama"), name="random"), samples=16)
    held = {"digits", "scenes", "methods", "prompt.png", "accuracy.png", "results.md"}
    assert {p.name for p in tmp_path.iterdir()} == held
    for name in ("prompt.png", "accuracy.png"):
        assert Image.open(tmp_path / name).size[0] > 1000
    assert [row.shots for row in found.digits.rows] == [0, 2, 4, 8, 2, 4, 8]
    assert [row.shots for row in found.scenes.rows] == [0, 1, 2, 4, 8, 2, 4, 8]
    console = Console(file=io.StringIO(), width=120)
    console.print(found)
    said = console.file.getvalue()
    assert "8 (4 of each)" in said
    commands = [line.strip() for line in said.splitlines() if line.strip().startswith("kshot ")]
    assert len(commands) == 3
    assert str(tmp_path / "prompt.png") in said
    for table in (said, (tmp_path / "results.md").read_text(encoding="utf-8")):
        table = " ".join(table.split())
        assert all(word in table for word in ("LIVE", "MimIC", "16 labelled pictures", "colour of a scene"))
    for name, compared in found.learnt.items():
        assert [row.method for row in compared.rows] == ["zero_shot", "format_only", "few_shot", "live", "mimic"]
        assert (tmp_path / "methods" / name / "mimic" / "seed-0" / "adapter" / "adapter_model.safetensors").exists()


def test_the_commands_it_proposes_are_understood(tmp_path, capsys):
    found = quickstart(out=tmp_path, questions=1, model=VLM(*build("llava_llama"), name="random"), samples=0)
    assert not found.learnt
    for _, command in found.next_steps():
        words = command.split()[1:]
        if "PICTURES" in words:  # stops at the missing folder, after all options were understood
            assert main(words) == 2
            assert "PICTURES" in capsys.readouterr().err
        else:
            from kshot.cli import COMMANDS, parse

            name = words[0]
            values = parse(name, COMMANDS[name], COMMANDS[name].function(), words[1:])
            assert values["model"] == "tiny"
            assert values["task"] in ("scenes", "glyphs")


def test_no_questions_no_answers():
    with pytest.raises(OptionError, match="questions=0"):
        quickstart(questions=0)
    with pytest.raises(OptionError, match="samples=3"):
        quickstart(samples=3)


@pytest.mark.slow
@pytest.mark.skipif(
    not (Path(package).parent / "assets" / "tiny" / "config.json").exists(), reason="the embedded model is not there"
)
def test_the_embedded_model_learns_real_digits_and_hidden_tasks(tmp_path):
    found = quickstart(out=tmp_path, questions=150)
    assert found.digits.value(8) >= 0.9
    assert found.digits.value(0) == 0
    assert found.digits.value(8, "shuffled-labels") < 0.62  # chance is 0.5, standard error 0.04
    assert found.scenes.value(0) <= 0.25
    assert found.scenes.value(8) >= 0.7  # a floor; the model's card has the figure
    for name, compared in found.learnt.items():
        scores = {row.method: row.score.value for row in compared.rows}
        assert scores["zero_shot"] <= 0.3, name
        # Floors; results/methods.csv has the figures of a longer training.
        assert scores["mimic"] >= scores["few_shot"] - 0.1, name
    assert found.learnt["colours"].row("live").score.value >= 0.7
