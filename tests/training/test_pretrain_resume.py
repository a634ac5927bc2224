"""Pretraining that was killed (kill -9) and started again ends with the same bits as a run that was left alone."""

from __future__ import annotations

import json

from safetensors.torch import load_file

from kshot.visual.store import TokenizerRecord
from tests.training.processes import Group, command, complete, incomplete, kill_when
from tests.visual.stores import make_store

RECORD = TokenizerRecord(1000, 4, "one", "float32", "squash", 8)


def test_a_run_that_was_killed_twice_ends_with_the_same_bits(tmp_path):
    make_store(tmp_path / "one", [4, 2, 6, 2, 4], record=RECORD)
    make_store(tmp_path / "two", [2, 2, 8], first=50, record=RECORD)

    def start(name):
        words = [
            "pretrain",
            "--store",
            f"{tmp_path / 'one'},{tmp_path / 'two'}",
            "--weights",
            "3,1",
            "--preset",
            "debug",
        ]
        words += [
            "--out",
            str(tmp_path / name),
            "--length",
            "40",
            "--batch",
            "2",
            "--tokens",
            "2000",
            "--learning-rate",
            "3e-3",
        ]
        words += [
            "--trainer.save_steps",
            "2",
            "--trainer.logging_steps",
            "1",
            "--trainer.per_device_train_batch_size",
            "1",
        ]
        return Group(command, [words], tmp_path / f"{name}.said")

    whole = start("whole")
    assert whole.wait() == [0], whole.said
    work = tmp_path / "cut.work"
    # once between two checkpoints, once (if the moment is met) while one is written
    assert kill_when(start("cut"), lambda: max(complete(work), default=0) >= 4)
    killed = kill_when(start("cut"), lambda: max(complete(work), default=0) >= 8 and bool(incomplete(work)))
    assert killed
    assert not (tmp_path / "cut").exists()
    last = start("cut")
    assert last.wait() == [0], last.said
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert first.keys() == second.keys()
    assert all((first[name] == second[name]).all() for name in first)
    logs = [
        [json.loads(line) for line in (tmp_path / name / "training" / "log.jsonl").read_text().splitlines()]
        for name in ("whole", "cut")
    ]
    steps = [[(e["step"], e["loss"], e["learning_rate"], e["tokens"]) for e in log if "loss" in e] for log in logs]
    assert steps[0] == steps[1]
    assert len(steps[0]) > 20
