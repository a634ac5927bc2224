"""Batches of rows for one of several processes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader

from kshot.errors import OptionError
from kshot.visual.loader import TokenRows


class RowLoader:
    """Batches of rows for one of several processes, which knows how far it was read.

    Global batch ``k`` is the rows from ``k * batch_size`` on; process ``rank`` of ``world`` gets its part of them, in order. So the
    batches put together are the same for any number of processes, and a state may be loaded by another number of them.

    Args:
        rows: the rows.
        batch_size: rows of a batch over all processes.
        rank, world: which process this is, and how many there are.
        workers: processes that read ahead; what they have read but nobody was given does not count as read.
        stop: number of the row before which to end; default: never.

    Raises:
        OptionError: the batch cannot be divided among the processes.
    """

    def __init__(
        self,
        rows: TokenRows,
        batch_size: int,
        *,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        stop: int | None = None,
    ):
        if not 0 <= rank < world:
            raise OptionError(f"rank {rank} of {world} processes")
        if batch_size < 1 or batch_size % world:
            raise OptionError(f"batch_size={batch_size} cannot be divided among {world} processes")
        self.rows, self.batch_size, self.rank, self.world, self.workers = rows, batch_size, rank, world, workers
        self.stop, self.cursor = stop, 0

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Batches (rows of this process, length) from where reading stopped; the last one may be cut short by ``stop``."""
        for batch in DataLoader(self.rows, batch_sampler=self._batches(self.cursor), num_workers=self.workers):
            self.cursor += self.batch_size
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """How far all processes together have come; JSON."""
        return {"row": self.cursor, "rows": self.rows.describe()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Carry on where another loader stood.

        Raises:
            OptionError: it read other rows.
        """
        changed = [k for k, v in self.rows.describe().items() if _plain(v) != _plain(state["rows"].get(k))]
        if changed:
            raise OptionError(
                f"the state belongs to other rows ({', '.join(changed)} differ): they would not carry on where it stopped"
            )
        self.cursor = int(state["row"])

    def _batches(self, start: int) -> Iterator[list[int]]:
        own = self.batch_size // self.world
        while self.stop is None or start < self.stop:
            first = start + self.rank * own
            yield [row for row in range(first, first + own) if self.stop is None or row < self.stop]
            start += self.batch_size


def _plain(value: Any) -> Any:
    """As JSON gives it back."""
    if isinstance(value, Mapping):
        return {str(name): _plain(held) for name, held in value.items()}
    return [_plain(held) for held in value] if isinstance(value, list | tuple) else value
