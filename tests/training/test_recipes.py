"""The embedded model's recipes run from the command line, at a tiny scale; for the others see ``test_link_recipes``."""

from __future__ import annotations

from importlib.resources import files

import pytest

from kshot.cli import main

RECIPES = sorted(
    str(path)
    for path in files("kshot").joinpath("recipes").iterdir()
    if path.name.endswith(".yaml") and "\nomniglot:" in path.read_text(encoding="utf-8")
)


def test_there_are_recipes():
    assert RECIPES


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.rsplit("/", 1)[-1])
def test_a_recipe_runs(recipe, tmp_path):
    out = tmp_path / "model"
    words = ["train", "--config", recipe, "--quick", "true", "--omniglot", "null", "--out", str(out)]
    assert main(words) == 0
    assert (out / "model.safetensors").exists()
    assert (out / "processor_config.json").exists()


def test_a_wrong_option_is_named(capsys):
    assert main(["train", "--config", RECIPES[0], "--languge-steps", "3"]) == 2
    assert "language-steps" in capsys.readouterr().err
