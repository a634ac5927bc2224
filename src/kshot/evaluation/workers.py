"""Several processes on one run, as ``torchrun`` starts them. They share nothing but the run folder.

There is no collective operation and nothing to initialise: each process writes its own journal, and process 0 waits for the
others' steps to appear. So a run may even be carried on with another number of processes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from kshot.errors import KshotError, OptionError

T = TypeVar("T")

PATIENCE = float(os.environ.get("KSHOT_PATIENCE", 3600))
"""Seconds without any progress of the others after which a waiting process gives up."""


@dataclass(frozen=True)
class Worker:
    """One of ``world`` processes; the one with rank 0 also merges and reports."""

    rank: int = 0
    world: int = 1

    @classmethod
    def from_environment(cls) -> Worker:
        """As ``torchrun`` and ``accelerate launch`` say it in RANK and WORLD_SIZE; one process where they do not.

        Raises:
            OptionError: the two make no sense.
        """
        try:
            worker = cls(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))
        except ValueError:
            raise OptionError("the environment variables RANK and WORLD_SIZE must be whole numbers") from None
        if not 0 <= worker.rank < worker.world:
            raise OptionError(f"RANK={worker.rank} is not below WORLD_SIZE={worker.world}")
        return worker

    @property
    def leads(self) -> bool:
        """Whether this process merges and reports."""
        return self.rank == 0

    def takes(self, step: int) -> bool:
        """Whether a step is this process's own."""
        return step % self.world == self.rank


def wait_for(find: Callable[[], T | None], what: str, progress: Callable[[], object] = lambda: None) -> T:
    """Poll until ``find`` gives something other than ``None``.

    Args:
        find: what is waited for.
        what: its name, for the message.
        progress: anything that changes while the others are still working.

    Raises:
        KshotError: nothing changed for :data:`PATIENCE` seconds: another process has probably died.
    """
    pause, state, since = 0.02, progress(), time.monotonic()
    while True:
        found = find()
        if found is not None:
            return found
        now = progress()
        if now != state:
            state, since = now, time.monotonic()
        elif time.monotonic() - since > PATIENCE:
            raise KshotError(f"waited {PATIENCE:.0f} s in vain for {what}; has another process died?")
        time.sleep(pause)
        pause = min(pause * 1.5, 2.0)
