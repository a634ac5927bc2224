"""Runs that were killed (kill -9) and started again end with the same bits as one that was left alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.models import tiny
from tests.training.processes import kill_thrice, launch, train


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model with dropout, so that the state of the random numbers matters."""
    folder = tmp_path_factory.mktemp("model") / "llava"
    made, processor = tiny.build("llava", attention_dropout=0.1)
    made.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def words(model: Path, out: Path, *, batch: int, steps: int = 17) -> list[str]:
    """Four steps an epoch, so that the run ends within one."""
    return [
        *("--model", str(model), "--out", str(out), "--seed", "3", "--summary", "0.3", "--data.glyphs.kind", "task"),
        *("--data.glyphs.task", "glyphs", "--data.glyphs.of", "queries", "--data.glyphs.shots", "2"),
        *("--data.glyphs.options.episodes", "7", "--trainer.max_steps", str(steps), "--trainer.save_steps", "2"),
        *("--trainer.per_device_train_batch_size", str(batch), "--trainer.learning_rate", "1e-3"),
        *("--trainer.logging_steps", "1"),
    ]


def assert_same_weights(a: Path, b: Path) -> None:
    first, second = load_file(a / "model.safetensors"), load_file(b / "model.safetensors")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_that_was_killed_again_and_again_ends_with_the_same_weights(ranks, model, tmp_path):
    def start(name):
        return train(words(model, tmp_path / name, batch=2 // ranks), tmp_path / f"{name}-{ranks}.said", ranks)

    whole = start("whole")
    assert whole.wait() == [0] * ranks, whole.said
    phases = kill_thrice(lambda: start("cut"), tmp_path / "cut.work", tmp_path / "cut", seed=ranks)
    assert {"beginning", "writing", "between"} <= set(phases), phases
    last = start("cut")
    assert last.wait() == [0] * ranks, last.said
    assert_same_weights(tmp_path / "whole", tmp_path / "cut")
    steps = [[e["step"] for e in log(tmp_path / name) if "loss" in e] for name in ("whole", "cut")]
    assert steps[0] == steps[1] == list(range(1, 18))


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_so_do_the_real_commands(ranks, model, tmp_path):
    """``kshot train`` in an interpreter of its own, and under torchrun."""

    def start(name):
        return launch(words(model, tmp_path / name, batch=2 // ranks), tmp_path / f"{name}.said", ranks)

    whole = start("whole")
    assert whole.wait() == [0], whole.said
    phases = kill_thrice(lambda: start("cut"), tmp_path / "cut.work", tmp_path / "cut", seed=10 + ranks)
    assert len([phase for phase in phases if phase != "missed"]) >= 3, phases
    last = start("cut")
    assert last.wait() == [0], last.said
    assert_same_weights(tmp_path / "whole", tmp_path / "cut")


def log(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "training" / "log.jsonl").read_text().splitlines()]
