"""The recipes of Link-Context Learning run from the command line, at a tiny scale, on data in the published formats."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

import pytest
import yaml

from kshot.cli import main
from tests.data.box_formats import rec_lines
from tests.data.formats import all_fixtures, write_lines
from tests.training.link_toys import write_list

FOLDER = files("kshot").joinpath("recipes")
TRAINED = ("2way-fixed", "2way-random", "2way-weight", "mix", "mix2")
EVALUATED = {"test100": "imagenet100", "isekai10": "isekai", "isekai-pair": "isekai"}
EMBEDDED = ("tiny", "tiny-visual")  # run by test_tiny.py and test_tiny_visual.py
FIXTURES = all_fixtures()


def held(name: str) -> dict:
    return yaml.safe_load(FOLDER.joinpath(f"{name}.yaml").read_text(encoding="utf-8"))


def test_every_recipe_is_tested():
    ours = {path.name.removesuffix(".yaml") for path in FOLDER.iterdir() if path.name.endswith(".yaml")}
    assert ours == {*TRAINED, *EVALUATED, *EMBEDDED}


@pytest.fixture(scope="module")
def lists(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("imagenet")
    write_list(folder, count=4, pictures=10, neighbours=2)
    return folder


@pytest.mark.parametrize("name", TRAINED)
def test_a_training_recipe_runs(name, lists, tmp_path, tmp_path_factory):
    words = [
        "train",
        "--config",
        str(FOLDER.joinpath(f"{name}.yaml")),
        "--model",
        "tiny",
        "--out",
        str(tmp_path / "out"),
    ]
    for source, entry in held(name)["data"].items():
        if entry["kind"] == "task":
            for option, value in _files(entry, tmp_path_factory).items():
                words += [f"--data.{source}.options.{option}", str(value)]
            continue
        words += [f"--data.{source}.source", str(lists / "train900_pairs.jsonl"), f"--data.{source}.root", str(lists)]
        if entry["kind"] == "jigsaw":
            words += [f"--data.{source}.pieces", "[4]"]
        else:
            words += [f"--data.{source}.total_shots", "null", f"--data.{source}.shots_per_side", "2"]
    words += ["--trainer.max_steps", "1", "--trainer.gradient_accumulation_steps", "2", "--trainer.bf16", "false"]
    assert main(words) == 0
    assert (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.parametrize("name", EVALUATED)
def test_an_evaluation_recipe_runs(name, tmp_path):
    options = FIXTURES[EVALUATED[name]](tmp_path / "data")
    words = ["evaluate", "--config", str(FOLDER.joinpath(f"{name}.yaml")), "--model", "tiny", "--limit", "2"]
    words += [
        "--shots",
        "2",
        "--out",
        str(tmp_path / "out"),
        "--task.root",
        str(options.get("root", tmp_path / "data")),
    ]
    for option in options.keys() - {"root"}:
        words += [f"--task.{option}", str(options[option])]
    assert main(words) == 0
    assert json.loads((tmp_path / "out" / "config.json").read_text())


def test_the_recipes_say_what_the_paper_says():
    fixed, uniform, weight = (held(name)["data"]["episodes"] for name in TRAINED[:3])
    assert (fixed["sampler"], 2 * fixed["shots_per_side"]) == ("fixed", 16)
    assert (uniform["sampler"], uniform["total_shots"]) == ("uniform", 16)
    assert (weight["sampler"], weight["total_shots"], weight["base"]) == ("exponential", 16, "paper")
    for name in TRAINED:
        recipe = held(name)
        trainer = recipe["trainer"]
        assert (trainer["learning_rate"], trainer["lr_scheduler_type"]) == (2e-5, "cosine")
        assert (trainer["warmup_steps"], trainer["weight_decay"]) == (0.03, 0)
        assert recipe["freeze"] == "vision"
        shares = [entry.get("share", 1) for entry in recipe["data"].values()]
        assert sum(shares) == pytest.approx(1)
    mixed = held("mix")["data"]
    assert sum(entry["share"] for entry in mixed.values() if entry["kind"] == "link") == 0.5
    kinds = {kind: sum(e["share"] for e in held("mix2")["data"].values() if e["kind"] == kind) for kind in
             ("link", "reference", "jigsaw", "task")}  # fmt: skip
    assert kinds == pytest.approx({"link": 0.15, "reference": 0.15, "jigsaw": 0.2, "task": 0.5})


def _files(entry: dict, factory) -> dict:
    """Files of a task in its official format, and the options that say where they are."""
    folder = factory.mktemp(entry["task"])
    if entry["options"].get("dataset") == "vg":
        write_lines(folder / "GC_genome196_train.jsonl", rec_lines(folder, 0, 2))
        return {"root": folder}
    return FIXTURES[entry["task"]](folder)
