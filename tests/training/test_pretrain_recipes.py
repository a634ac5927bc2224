"""Recipes of pretraining: what they say, and that they run, at a tiny scale."""

from __future__ import annotations

import json
from importlib.resources import files

import pytest
import yaml

from kshot.cli import main
from kshot.models.visual_presets import new_visual_model, visual_config
from kshot.training.pretrain import _plan
from kshot.visual.loader import TokenRows
from kshot.visual.store import TokenizerRecord
from tests.visual.stores import make_store

FOLDER = files("kshot").joinpath("recipes", "pretrain")
NAMES = sorted(path.name.removesuffix(".yaml") for path in FOLDER.iterdir() if path.name.endswith(".yaml"))
RECORD = TokenizerRecord(1000, 4, "one", "float32", "squash", 8)
SMALL = ["--length", "48", "--batch", "2", "--tokens", "200", "--warmup-tokens", "0", "--decay-tokens", "300"]


def held(name: str) -> dict:
    return yaml.safe_load(FOLDER.joinpath(f"{name}.yaml").read_text(encoding="utf-8"))


@pytest.fixture
def store(tmp_path):
    make_store(tmp_path / "store", [4, 2, 6, 2, 4, 2, 8, 4], record=RECORD)
    return tmp_path / "store"


def test_the_recipes():
    assert NAMES == ["lvm-300m", "lvm-300m-upstream", "lvm-7b-finetune"]


def test_upstreams_schedule_is_what_it_really_is(store):
    given = held("lvm-300m-upstream")
    rows = TokenRows(store, length=given["length"], packing="stream", bos=1000, eos=1001)
    plan = _plan(
        rows,
        given["tokens"],
        given["batch"],
        given["learning_rate"],
        given["min_rate"],
        given["warmup_tokens"],
        given["decay_tokens"],
    )
    assert plan.steps == 100_000
    assert plan.schedule.per_step == 524_288
    assert plan.schedule.warmup / plan.schedule.per_step == 8_000
    assert plan.schedule.end / plan.schedule.per_step == 288_000
    assert plan.schedule.rate(plan.schedule.tokens(plan.steps)) == pytest.approx(1.21e-4, rel=5e-3)
    ours = held("lvm-300m")
    assert (
        _plan(rows, ours["tokens"], ours["batch"], 1.5e-4, 3e-5, ours["warmup_tokens"], None).schedule.end
        == given["tokens"]
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_runs(name, store, tmp_path):
    words = ["pretrain", "--config", str(FOLDER.joinpath(f"{name}.yaml")), "--store", str(store), *SMALL]
    words += ["--out", str(tmp_path / "out"), "--trainer.bf16", "false", "--trainer.dataloader_num_workers", "0"]
    if "model" in held(name):
        new_visual_model(visual_config("debug", 1000)).save_pretrained(tmp_path / "model")
        words += ["--model", str(tmp_path / "model")]
    else:
        words += ["--preset", "debug"]
    assert main(words) == 0
    record = json.loads((tmp_path / "out" / "training" / "config.json").read_text())
    assert record["request"]["packing"] == held(name)["packing"]
    assert list((tmp_path / "out").glob("*model.safetensors"))
