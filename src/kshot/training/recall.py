"""What distillation need not do again in each epoch: encode the same query, ask the teacher about the same prompt."""

from __future__ import annotations

from collections.abc import Callable

from kshot.episode import Episode
from kshot.models.memory import BudgetedCache, tensor_bytes
from kshot.picture import BytesPicture
from kshot.training.alignment import Row
from kshot.training.teacher_cache import Signals

BUDGET = 1 << 30
"""Bytes of what the teacher said that are kept in memory."""
ROWS = 4096
"""Encoded queries that are kept."""


class Recall:
    """Rows of queries without demonstrations, and (with ``said``) the teacher's signals, in memory.

    The signals lie on the CPU. Those of a large model may be more than fits; a teacher cache on disk is for them.

    Args:
        said: whether the teacher says the same of a query in all epochs.
        budget: bytes of signals to keep.
    """

    def __init__(self, *, said: bool, budget: int = BUDGET):
        self.said = said
        self._signals: BudgetedCache[Signals] = BudgetedCache(budget)
        self._rows: BudgetedCache[tuple[Episode, Row]] = BudgetedCache(ROWS)

    def row(self, episode: Episode, encode: Callable[[Episode], Row]) -> Row:
        """The row of an episode, encoded now unless it is known."""
        query = episode.query
        if episode.demonstrations or any(isinstance(picture, BytesPicture) for picture in query.images):
            return encode(episode)  # demonstrations are redrawn; bytes of whole files are not kept
        held = self._rows.get(query.id)
        if held is not None and held[0] == episode:  # files of users may give two examples one id
            return held[1]
        row = encode(episode)
        self._rows.put(query.id, (episode, row), 1)
        return row

    def signals(self, number: int) -> Signals | None:
        """What the teacher said of a query, or ``None`` if it is not known."""
        return self._signals.get(number) if self.said else None

    def keep(self, number: int, signals: Signals) -> None:
        """Keep what the teacher said of a query."""
        if self.said:
            held = signals.cpu()
            self._signals.put(number, held, tensor_bytes(t for t in held.tensors().values() if t is not None))
