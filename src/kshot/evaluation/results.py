"""Figures of a run: what :func:`kshot.evaluate` returns and ``metrics.json`` holds."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kshot.errors import DataError, OptionError
from kshot.evaluation.cells import DEMONSTRATIONS
from kshot.evaluation.gaps import Gap

if TYPE_CHECKING:
    from rich.table import Table

INTERVAL = (
    "95 %: queries are resampled with replacement (percentile bootstrap, 2,000 times) on their scores averaged over the seeds; "
    "with several seeds the standard error between seeds (standard deviation / sqrt(seeds), times 1.96) is added in quadrature. "
    "Where every query scores the same this interval has no width; the true figure may still be off by 3 / queries"
)


@dataclass(frozen=True)
class SeedResult:
    """Figures of one cell.

    Attributes:
        value: the main figure.
        queries: number of answered queries.
        details: further figures of the metric.
        categories: main figure and number of queries per category.
        skipped: queries left out: ``{"id": ..., "reason": ...}``.
        further: figures of further metrics, by their name.
    """

    seed: int
    value: float
    queries: int
    details: Mapping[str, float] = field(default_factory=dict)
    categories: Mapping[str, tuple[float, int]] = field(default_factory=dict)
    skipped: tuple[Mapping[str, str], ...] = ()
    further: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """One kind and number of shots, over all seeds.

    Attributes:
        value: mean of the seeds' main figures.
        spread: standard deviation between seeds; ``None`` for a single seed.
        interval: 95 % confidence interval of ``value`` (see :data:`INTERVAL`).
        chance: expected figure of a guess, where the metric knows it.
        further: further figures, ``{name: {"value": ..., "low": ..., "high": ...}}``, mean over seeds and its interval: those of
            further metrics, and the mean over classes (``macro``) and over groups (``macro_groups``).
        category_intervals: 95 % confidence intervals of categories, where the metric says what they consist of.
    """

    kind: str
    shots: int
    value: float
    spread: float | None
    interval: tuple[float, float]
    seeds: tuple[SeedResult, ...]
    chance: float | None = None
    further: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    category_intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def queries(self) -> int:
        """Answered queries, of the seed with the fewest."""
        return min(seed.queries for seed in self.seeds)

    @property
    def skipped(self) -> int:
        """Queries left out, in all seeds together."""
        return sum(len(seed.skipped) for seed in self.seeds)

    def categories(self) -> dict[str, tuple[float, int]]:
        """Mean over seeds of each category's figure, and its number of queries (of the seed with the fewest)."""
        found: dict[str, list[tuple[float, int]]] = defaultdict(list)
        for seed in self.seeds:
            for name, (value, count) in seed.categories.items():
                found[name].append((value, count))
        return {
            name: (statistics.fmean(v for v, _ in figures), min(c for _, c in figures))
            for name, figures in found.items()
        }


@dataclass(frozen=True)
class Evaluation:
    """The result of :func:`kshot.evaluate`.

    Attributes:
        model, task: their names.
        metric: name of the main figure.
        rows: figures; first the demonstrations by number of shots, then baselines and controls.
        scoring: ``"generate"`` or ``"likelihood"``.
        candidates: what likelihood scoring chose from, in words; empty for generated answers.
        note: how the metric was computed, where that varies.
        chance: expected figure of a guess, where the task knows it.
        passed_over: examples of the support set that could not be demonstrations, by reason (the most at any number of shots).
        gaps: what intact demonstrations score more than chance, and than each control, at each number of shots.
        folder: the run folder, if one was kept.
    """

    model: str
    task: str
    metric: str
    rows: tuple[Row, ...]
    scoring: str = "generate"
    candidates: str = ""
    note: str = ""
    chance: float | None = None
    passed_over: Mapping[str, int] = field(default_factory=dict)
    gaps: tuple[Gap, ...] = ()
    folder: Path | None = None

    def row(self, shots: int, kind: str = DEMONSTRATIONS) -> Row:
        """The row of a number of shots.

        Raises:
            OptionError: there is none.
        """
        for row in self.rows:
            if (row.kind, row.shots) == (kind, shots):
                return row
        raise OptionError(
            f"the run has no {kind!r} with {shots} shots; it has {[(r.kind, r.shots) for r in self.rows]}"
        )

    def value(self, shots: int, kind: str = DEMONSTRATIONS) -> float:
        """The main figure at a number of shots."""
        return self.row(shots, kind).value

    def gap(self, shots: int, against: str) -> Gap:
        """What intact demonstrations score more than a control, or than ``"chance"``.

        Raises:
            OptionError: the run does not tell.
        """
        for gap in self.gaps:
            if (gap.shots, gap.against) == (shots, against):
                return gap
        raise OptionError(
            f"the run has no gap to {against!r} with {shots} shots; it has {[(g.against, g.shots) for g in self.gaps]}"
        )

    @property
    def title(self) -> str:
        """Model and task in one line."""
        return f"{self.model} on {self.task}"

    def to_json(self) -> dict[str, Any]:
        """The content of ``metrics.json``."""
        data = asdict(self)
        data.pop("folder")
        return data | {"interval": INTERVAL}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], folder: Path | None = None) -> Evaluation:
        """Read :meth:`to_json` back.

        Raises:
            DataError: it is not the content of a ``metrics.json``.
        """
        try:
            rows = tuple(_row(row) for row in data["rows"])
            gaps = tuple(Gap(**(gap | {"interval": _pair(gap["interval"])})) for gap in data.get("gaps", ()))
            rest = {k: v for k, v in data.items() if k not in ("rows", "gaps", "interval")}
            return cls(rows=rows, gaps=gaps, folder=folder, **rest)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"not the figures of a run ({error})", file=folder and folder / "metrics.json") from None

    def markdown(self) -> str:
        """The result as a Markdown table."""
        from kshot.evaluation.report import markdown

        return markdown(self)

    def __rich__(self) -> Table:
        from kshot.evaluation.report import terminal_table

        return terminal_table(self)

    def __str__(self) -> str:
        from kshot.evaluation.report import plain_text

        return plain_text(self)


def _row(data: Mapping[str, Any]) -> Row:
    seeds = tuple(
        SeedResult(
            **(seed | {"categories": {k: (v, n) for k, (v, n) in seed["categories"].items()}})
            | {"skipped": tuple(seed["skipped"])}
        )
        for seed in data["seeds"]
    )
    low_high = _pair(data["interval"])
    intervals = {name: _pair(found) for name, found in data.get("category_intervals", {}).items()}
    further = data.get("further", {})
    chance = data.get("chance")
    return Row(data["kind"], data["shots"], data["value"], data["spread"], low_high, seeds, chance, further, intervals)


def _pair(data: Sequence[float]) -> tuple[float, float]:
    low, high = data
    return low, high
