"""A run that was stopped and carried on, or spread over processes, leaves the same files as one that was not."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import kshot
from kshot.errors import OptionError
from kshot.evaluation import evaluate as module
from kshot.evaluation.runs import RunFolder, differences, read_jsonl, write_text
from kshot.evaluation.workers import Worker
from tests.evaluation.toys import Lookup, Swatches

OPTIONS = {"shots": (0, 3), "seeds": 2, "controls": ("shuffled-labels",), "baselines": ("format_only",)}
ROOT = Path(__file__).resolve().parents[2]


class Killed(BaseException):
    """What a process sees of a kill: nothing after it."""


class Mortal(Lookup):
    """Dies at its n-th step."""

    def __init__(self, lives: int):
        super().__init__()
        self.lives = lives

    def answer(self, episodes, **options):
        if len(self.calls) == self.lives:
            raise Killed
        return super().answer(episodes, **options)


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    kshot.evaluate(Lookup(), Swatches(), out=folder, **OPTIONS)
    return files(folder)


@pytest.mark.parametrize("draw", range(6))
def test_killed_again_and_again_at_random_places(draw, tmp_path, undisturbed):
    chance = random.Random(draw)
    run, calls = tmp_path / "run", 0
    for _ in range(20):
        model = Mortal(chance.randrange(6))
        try:
            kshot.evaluate(model, Swatches(), out=run, **OPTIONS)
        except Killed:
            # The last write may be torn anywhere.
            journals = sorted((run / "unfinished").glob("*")) if (run / "unfinished").exists() else []
            if journals and chance.random() < 0.7:
                data = journals[-1].read_bytes()
                journals[-1].write_bytes(data[: chance.randrange(len(data) + 1)])
        else:
            break
        finally:
            calls += len(model.calls)
    else:
        kshot.evaluate(Lookup(), Swatches(), out=run, **OPTIONS)
    assert files(run) == undisturbed
    assert calls > 0


def test_a_finished_step_is_never_answered_again(tmp_path):
    first, second = Mortal(2), Lookup()
    with pytest.raises(Killed):
        kshot.evaluate(first, Swatches(), shots=3, out=tmp_path / "run")
    kshot.evaluate(second, Swatches(), shots=3, out=tmp_path / "run")
    asked = [query for call in [*first.calls, *second.calls] for query in call]
    assert sorted(asked) == sorted(f"q{i}" for i in range(150))
    third = Lookup()
    kshot.evaluate(third, Swatches(), shots=3, out=tmp_path / "run")
    assert third.calls == []


def test_a_torn_line_is_as_if_it_had_never_been_written(tmp_path):
    folder = RunFolder(tmp_path)
    folder.append("cell", 0, [{"id": "a"}], 0)
    folder.append("cell", 1, [{"id": "b"}], 0)
    path = tmp_path / "unfinished" / "cell.0.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    assert sorted(folder.steps("cell")) == [0]
    folder.append("cell", 2, [{"id": "ü\u2028\ud800"}], 0)
    assert folder.steps("cell") == {0: [{"id": "a"}], 2: [{"id": "ü\u2028\ud800"}]}
    folder.finish("cell", [{"id": "ü\u2028\ud800"}])
    assert read_jsonl(folder.predictions("cell")) == [{"id": "ü\u2028\ud800"}]
    assert not (tmp_path / "unfinished").exists()


def test_cells_whose_names_begin_alike_keep_their_journals_apart(tmp_path):
    folder = RunFolder(tmp_path)
    folder.append("shots-3_seed-1", 0, [], 0)
    folder.append("shots-3_seed-1_shuffled-labels", 1, [], 0)
    assert sorted(folder.steps("shots-3_seed-1")) == [0]


def test_another_configuration_is_refused_with_what_changed(tmp_path):
    run = tmp_path / "run"
    kshot.evaluate(Lookup(), Swatches(queries=9), shots=(0, 3), out=run)
    before = files(run)
    with pytest.raises(OptionError, match="another configuration") as refused:
        kshot.evaluate(Lookup(), Swatches(queries=9), shots=(0, 3), num_beams=3, seeds=2, out=run)
    assert "num_beams: 1 -> 3" in str(refused.value)
    assert "cells" in str(refused.value)
    assert "template" not in str(refused.value)
    assert files(run) == before


def test_a_run_that_failed_before_it_had_any_result_does_not_hold_its_folder(tmp_path):
    """As after a mistyped option: the command put right needs no other folder."""
    folder = RunFolder(tmp_path / "run")
    folder.start({"top_p": 2}, {})
    folder.start({"top_p": 1}, {})
    folder.append("cell", 0, [{"id": "a"}], 0)
    with pytest.raises(OptionError, match="another configuration: top_p: 1 -> 2"):
        folder.start({"top_p": 2}, {})
    folder.start({"top_p": 1}, {})


def test_a_folder_of_other_things_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(OptionError, match="neither empty nor a run folder"):
        kshot.evaluate(Lookup(), Swatches(queries=9), shots=0, out=tmp_path)
    with pytest.raises(OptionError, match="is a file"):
        kshot.evaluate(Lookup(), Swatches(queries=9), shots=0, out=tmp_path / "thesis.tex")
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_differences_name_the_field():
    assert list(differences({"a": {"b": 1}, "c": [1]}, {"a": {"b": 2}, "c": [1]})) == ["a.b: 1 -> 2"]
    assert list(differences({"a": 1}, {"b": 1})) == ["a: 1 -> null", "b: null -> 1"]


def test_a_file_is_written_in_full_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "file.txt"
    write_text(path, "old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file.txt"]


@pytest.mark.parametrize("world", [2, 5])
def test_several_workers_leave_the_same_files(world, tmp_path, undisturbed, monkeypatch):
    run, results, models = tmp_path / "run", {}, {}
    here = threading.local()
    monkeypatch.setattr(module.Worker, "from_environment", classmethod(lambda cls: here.worker))

    def work(rank: int) -> None:
        here.worker = Worker(rank, world)
        models[rank] = Lookup()
        results[rank] = kshot.evaluate(models[rank], Swatches(), out=run, **OPTIONS)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in reversed(range(world))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert files(run) == undisturbed
    assert len(results) == world  # every worker came to the end
    assert len(set(map(str, results.values()))) == 1
    steps = [len(models[rank].calls) for rank in range(world)]
    assert sum(steps) == 6 * 3  # nothing was answered twice
    assert min(steps[:3]) > 0


def test_a_run_of_two_workers_is_carried_on_by_one(tmp_path, undisturbed, monkeypatch):
    run = tmp_path / "run"
    monkeypatch.setattr(module.Worker, "from_environment", classmethod(lambda cls: Worker(0, 2)))
    monkeypatch.setattr("kshot.evaluation.workers.PATIENCE", 0.1)
    with pytest.raises(kshot.KshotError, match="in vain"):  # the other worker never comes
        kshot.evaluate(Lookup(), Swatches(), out=run, **OPTIONS)
    monkeypatch.undo()
    kshot.evaluate(Lookup(), Swatches(), out=run, **OPTIONS)
    assert files(run) == undisturbed


def test_several_processes_need_a_run_folder(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(OptionError, match="run folder"):
        kshot.evaluate(Lookup(), Swatches(queries=3), shots=0)
    monkeypatch.setenv("RANK", "two")
    with pytest.raises(OptionError, match="whole numbers"):
        kshot.evaluate(Lookup(), Swatches(queries=3), shots=0)


SCRIPT = """
import sys, time
sys.path.insert(0, {root!r})
import kshot
from tests.evaluation.test_resume import OPTIONS
from tests.evaluation.toys import Lookup, Swatches

class Slow(Lookup):
    def answer(self, episodes, **options):
        time.sleep({pause})
        return super().answer(episodes, **options)

kshot.evaluate(Slow(), Swatches(), out=sys.argv[1], **OPTIONS)
"""


@pytest.mark.slow
def test_torchrun_with_two_processes_one_killed_and_carried_on(tmp_path, undisturbed):
    run = tmp_path / "run"
    slow, fast = tmp_path / "slow.py", tmp_path / "fast.py"
    slow.write_text(SCRIPT.format(root=str(ROOT), pause=0.5))
    fast.write_text(SCRIPT.format(root=str(ROOT), pause=0))
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
    alone = subprocess.Popen([sys.executable, str(slow), str(run)], env=environment)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not list(run.glob("unfinished/*")):
        time.sleep(0.05)
    alone.send_signal(signal.SIGKILL)
    alone.wait()
    assert not (run / "metrics.json").exists()
    together = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        str(fast),
        str(run),
    ]
    subprocess.run(together, env=environment, check=True, timeout=300, capture_output=True)
    assert files(run) == undisturbed


@pytest.mark.slow
def test_the_command_line_under_torchrun_leaves_the_files_of_one_process(tmp_path):
    if not (Path(kshot.__file__).parent / "assets" / "tiny" / "config.json").exists():
        pytest.skip("the embedded model is not there")
    words = [
        "-m",
        "kshot.cli",
        "evaluate",
        "--model",
        "tiny",
        "--task",
        "digits",
        "--episodes",
        "150",
        "--shots",
        "0,2",
    ]
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    said = [
        subprocess.run(
            [sys.executable, *launcher, *words, "--out", str(tmp_path / name)],
            env=environment,
            check=True,
            timeout=600,
            capture_output=True,
            text=True,
        ).stdout
        for name, launcher in (("one", []), ("two", torchrun))
    ]
    assert files(tmp_path / "one") == files(tmp_path / "two")
    assert said[0] == said[1]  # printed once, by the first process
