"""``kshot train`` as processes of their own, that can be killed: one, or several that train together.

They are forked from a server that has imported everything already, so that a start takes a moment and not ten seconds; otherwise they
are what the command line and torchrun start, with torchrun's variables in their environment. :func:`launch` starts those themselves.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

PATIENCE = 300.0
"""Seconds after which a process is taken to hang."""

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(
    ["kshot.training.train_answers", "kshot.training.task_source", "tests.training.processes"]
)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Group:
    """Processes that run the same function, one a rank; their output is in ``folder``."""

    def __init__(self, function: Callable[..., Any], arguments: Sequence[Any], folder: Path, ranks: int = 1):
        folder.mkdir(parents=True, exist_ok=True)
        port = free_port()
        self.outputs = [folder / f"output-{rank}.txt" for rank in range(ranks)]
        self.members = []
        for rank, output in enumerate(self.outputs):
            environment = {
                "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
            }  # fmt: skip
            given = {key: str(value) for key, value in environment.items()} if ranks > 1 else {}
            member = _server.Process(
                target=_member, args=(function, tuple(arguments), given, str(output)), daemon=False
            )
            member.start()
            self.members.append(member)

    @property
    def alive(self) -> bool:
        return any(member.is_alive() for member in self.members)

    def kill(self) -> None:
        for member in self.members:
            if member.pid is not None and member.is_alive():
                os.kill(member.pid, signal.SIGKILL)
        for member in self.members:
            member.join()

    def wait(self) -> list[int | None]:
        """Exit codes."""
        end = time.monotonic() + PATIENCE
        for member in self.members:
            member.join(max(0.0, end - time.monotonic()))
        hung = self.alive
        if hung:
            self.kill()
        assert not hung, f"still running after {PATIENCE} s: {self.said}"
        return [member.exitcode for member in self.members]

    @property
    def said(self) -> str:
        return "\n".join(output.read_text(errors="replace") for output in self.outputs if output.exists())


class Launched:
    """A command of the system and all its descendants."""

    def __init__(self, words: Sequence[str], folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self.output = folder / "output.txt"
        with self.output.open("ab") as file:
            self.process = subprocess.Popen(words, stdout=file, stderr=file)

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def kill(self) -> None:
        top = psutil.Process(self.process.pid)
        for one in (top, *top.children(recursive=True)):
            one.kill()
        self.process.wait()

    def wait(self) -> list[int | None]:
        return [self.process.wait(PATIENCE)]

    @property
    def said(self) -> str:
        return self.output.read_text(errors="replace")


def train(words: Sequence[str], folder: Path, ranks: int = 1) -> Group:
    """Start ``kshot train`` with some options."""
    return Group(command, [["train", *words]], folder, ranks)


def launch(words: Sequence[str], folder: Path, ranks: int = 1) -> Launched:
    """Start ``kshot train`` as a user does: by itself, or with torchrun."""
    several = ["-m", "torch.distributed.run", "--nproc_per_node", str(ranks), "--master_port", str(free_port())]
    return Launched([sys.executable, *(several if ranks > 1 else []), "-m", "kshot.cli", "train", *words], folder)


def command(words: list[str]) -> int:
    from kshot.cli import main

    return main(words)


def _member(function: Callable[..., Any], arguments: tuple[Any, ...], environment: dict[str, str], output: str) -> None:
    os.environ.update(environment)
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    code = function(*arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 0)


def incomplete(work: Path) -> list[Path]:
    """Checkpoints that are just being written."""
    return [path for path in work.glob("checkpoint-*") if not (path / "complete").exists()]


def complete(work: Path) -> list[int]:
    return sorted(int(path.parent.name.rpartition("-")[2]) for path in work.glob("checkpoint-*/complete"))


def kill_when(running: Group | Launched, ready: Callable[[], bool], delay: float = 0.0) -> bool:
    """Kill as soon as something has come about, or a little later; says whether it was still running."""
    end = time.monotonic() + PATIENCE
    while running.alive and not ready():
        assert time.monotonic() < end, f"waited in vain: {running.said}"
        time.sleep(0.001)
    time.sleep(delay)
    alive = running.alive
    running.kill()
    return alive


def kill_thrice(start: Callable[[], Group | Launched], work: Path, out: Path, seed: int) -> list[str]:
    """Kill runs that begin in the same folder at points drawn from a seed, each in another phase: before the first checkpoint,
    while one is written, and between two; then once more while the result is written. Returns the phases in which it died.
    """
    rng = random.Random(seed)
    phases = []
    if kill_when(start(), lambda: (work / "config.json").exists(), rng.uniform(0, 0.05)) and not complete(work):
        phases.append("beginning")
    for _ in range(4):  # the moment may be missed on a busy machine
        after = rng.choice((2, 4))
        if kill_when(start(), lambda after=after: max(complete(work), default=0) >= after and bool(incomplete(work))):
            if incomplete(work):
                phases.append("writing")
                break
            phases.append("missed")
    last = max(complete(work), default=0)
    target = last + rng.choice((0, 2))
    if kill_when(start(), lambda: max(complete(work), default=0) >= target, rng.uniform(0, 0.03)):
        phases.append("between")
    unfinished = out.with_name(f".{out.name}.unfinished")
    if kill_when(start(), unfinished.exists, rng.uniform(0, 0.01)) and not out.exists():
        phases.append("result")
    return phases
