"""Running many prompts in batches that waste little padding and fit in memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from kshot.errors import OptionError

T = TypeVar("T")
logger = logging.getLogger(__name__)


class BatchRunner:
    """Runs items in batches of similar length; results come in the order of the items.

    When the accelerator runs out of memory the batch size is halved, for this and all later runs, and that is logged. Results do not
    depend on it beyond floating-point rounding.

    Args:
        size: number of items in a batch.

    Raises:
        OptionError: less than one.
    """

    def __init__(self, size: int):
        if size < 1:
            raise OptionError(f"batch_size={size}: must be 1 or more")
        self.size = size

    def run(
        self,
        lengths: Sequence[int],
        work: Callable[[list[int]], Sequence[T]],
        kinds: Sequence[int] | None = None,
    ) -> list[T]:
        """Results for items ``0 .. len(lengths) - 1``.

        Args:
            lengths: length of each item in tokens.
            work: gives the results for a batch, a list of item numbers.
            kinds: kind of each item; different kinds are not put in one batch.

        Raises:
            torch.OutOfMemoryError: even a single item does not fit.
        """
        # Longest first: if memory does not suffice, that shows at once. Ties stay in order, so that runs are repeatable.
        kinds = kinds or [0] * len(lengths)
        waiting = sorted(range(len(lengths)), key=lambda number: (kinds[number], -lengths[number], number))
        results: dict[int, T] = {}
        while waiting:
            batch = [number for number in waiting[: self.size] if kinds[number] == kinds[waiting[0]]]
            try:
                found = work(batch)
            except torch.OutOfMemoryError:
                if len(batch) == 1:
                    raise
                self.size = len(batch) // 2
                found = None
            if found is None:  # outside the handler: its exception would keep the tensors alive that have to go
                logger.warning("out of memory: batch size halved from %d to %d", len(batch), self.size)
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
                continue
            results.update(zip(batch, found, strict=True))
            waiting = waiting[len(batch) :]
        return [results[number] for number in range(len(lengths))]
