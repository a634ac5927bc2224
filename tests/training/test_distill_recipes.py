"""The recipes of distillation: all of them are read as the command line reads them, and one of each task is run."""

from __future__ import annotations

import json
from importlib.resources import files

import pytest

from kshot.cli import COMMANDS, main, parse
from kshot.training.distill import distill
from kshot.training.distill_plans import chosen_losses, plan_of
from tests.data.formats import all_fixtures, write_lines

FOLDER = files("kshot").joinpath("recipes", "distill")
NAMES = sorted(path.name.removesuffix(".yaml") for path in FOLDER.iterdir() if path.name.endswith(".yaml"))
MODELS = {
    "idefics-9b": "HuggingFaceM4/idefics-9b",
    "idefics2-8b": "HuggingFaceM4/idefics2-8b-base",
    "llava-interleave-7b": "llava-hf/llava-interleave-qwen-7b-hf",
}
TASKS = {
    "vqav2": "vqav2",
    "okvqa": "okvqa",
    "coco": "coco2014",
    "flickr30k": "flickr30k",
    "mme": "mme",
    "seedbench": "seedbench",
}
FIXTURES = all_fixtures()


def test_every_published_setting_has_a_recipe():
    live = {f"live-{task}-{model}" for task in list(TASKS)[:3] for model in list(MODELS)[:2]}
    others = {f"{method}-{task}-{model}" for method in ("mimic", "lora") for task in TASKS for model in MODELS}
    assert set(NAMES) == {*live, *others, "mimic-vqav2-qwen3-vl-8b", "mimic-vqav2-smolvlm"}


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_says_what_the_papers_say(name):
    given = parse("distill", COMMANDS["distill"], distill, ["--config", str(FOLDER.joinpath(f"{name}.yaml"))])
    method, task, model = name.split("-", 2)
    trainer = given["trainer"]
    assert (given["method"], given["task"]) == (method, TASKS[task])
    assert given["model"] == MODELS.get(model, given["model"])
    weights = {key: given[key] for key in ("kl", "align", "ce", "temperature", "align_to", "align_by")}
    assert chosen_losses(plan_of(method), None, **weights) == plan_of(method).losses
    assert (trainer["warmup_steps"], trainer["lr_scheduler_type"], trainer["max_grad_norm"]) == (0.1, "cosine", 1.0)
    if method == "live":
        assert given["shots"] == (32 if model == "idefics-9b" else 1)
        assert given["samples"] == 8000
        assert given["rates"] == {"live_vector": 5e-3 if task == "okvqa" else 1e-3, "live_alpha": 1e-2}
        assert trainer["per_device_train_batch_size"] * trainer["gradient_accumulation_steps"] == 64
        assert given["method_options"] == {"placement": "layer" if model == "idefics-9b" else "mlp"}
    else:
        assert 500 <= given["samples"] <= 1000
        assert trainer["per_device_train_batch_size"] * trainer["gradient_accumulation_steps"] == 4
        assert trainer["learning_rate"] == (5e-3 if method == "mimic" else 5e-4)
    assert trainer["weight_decay"] == (0.0 if method == "lora" else 1e-3)


@pytest.mark.parametrize(
    "name",
    [
        *("live-vqav2-idefics2-8b", "mimic-okvqa-idefics-9b", "live-coco-idefics-9b"),
        *("lora-flickr30k-idefics2-8b", "mimic-mme-llava-interleave-7b", "lora-seedbench-idefics-9b"),
    ],
)
def test_a_recipe_runs(name, tmp_path):
    task = TASKS[name.split("-")[1]]
    options = FIXTURES[task](tmp_path / "data")
    if task in ("mme", "seedbench"):
        letters = {"choices": ["red", "blue"]} if task == "seedbench" else {}
        answer = "A" if letters else "Yes"
        lines = [
            {"id": f"s{number}", "images": [], "question": f"Is it {number}?", "answer": answer, **letters}
            for number in range(3)
        ]
        options |= {"support": write_lines(tmp_path / "support.jsonl", lines)}
    words = ["distill", "--config", str(FOLDER.joinpath(f"{name}.yaml")), "--model", "tiny", "--dtype", "float32"]
    words += ["--shots", "1", "--samples", "2", "--held-out", "0", "--out", str(tmp_path / "out"), "--style", "plain"]
    for option, value in options.items():
        words += [f"--task.{option}", str(value)]
    words += ["--trainer.max_steps", "1", "--trainer.bf16", "false", "--trainer.gradient_accumulation_steps", "1"]
    assert main(words) == 0
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()
    record = json.loads((tmp_path / "out" / "training" / "config.json").read_text())
    assert record["seeds"]["0"]["steps"] == 1
