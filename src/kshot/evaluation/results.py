"""Figures of a run: what :func:`kshot.evaluate` returns and ``metrics.json`` holds."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kshot.episode import Example
from kshot.errors import DataError, OptionError
from kshot.evaluation.cells import DEMONSTRATIONS, Cell
from kshot.metrics.base import Metric, MetricResult
from kshot.metrics.stats import bootstrap_interval

if TYPE_CHECKING:
    from rich.table import Table

RESAMPLES = 2000
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
    """

    seed: int
    value: float
    queries: int
    details: Mapping[str, float] = field(default_factory=dict)
    categories: Mapping[str, tuple[float, int]] = field(default_factory=dict)
    skipped: tuple[Mapping[str, str], ...] = ()


@dataclass(frozen=True)
class Row:
    """One kind and number of shots, over all seeds.

    Attributes:
        value: mean of the seeds' main figures.
        spread: standard deviation between seeds; ``None`` for a single seed.
        interval: 95 % confidence interval of ``value`` (see :data:`INTERVAL`).
    """

    kind: str
    shots: int
    value: float
    spread: float | None
    interval: tuple[float, float]
    seeds: tuple[SeedResult, ...]

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
            rest = {k: v for k, v in data.items() if k not in ("rows", "interval")}
            return cls(rows=rows, folder=folder, **rest)
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


@dataclass(frozen=True)
class CellScores:
    """A cell's metric with what the interval needs: the score of each unit, keyed by the queries that make it."""

    result: SeedResult
    units: Mapping[tuple[str, ...], float]
    scale: float
    per_query: tuple[float, ...]
    note: str
    name: str


def score_cell(
    cell: Cell, rows: Sequence[Mapping[str, Any]], queries: Mapping[str, Example], metric: Metric
) -> CellScores:
    """Apply the metric to a cell's predictions.

    Args:
        rows: its prediction rows; those with ``"skipped"`` are counted and left out.
        queries: the task's queries by id.

    Raises:
        DataError: every query was skipped.
    """
    answered = [row for row in rows if "skipped" not in row]
    skipped = tuple({"id": row["id"], "reason": row["skipped"]} for row in rows if "skipped" in row)
    if not answered:
        reason = f"; the first reason: {skipped[0]['reason']}" if skipped else ""
        raise DataError(f"no query of {cell.name!r} could be answered ({len(skipped)} skipped{reason})")
    result: MetricResult = metric([row["prediction"] for row in answered], [queries[row["id"]] for row in answered])
    units = result.units or tuple(range(len(answered)))
    members: dict[int, list[str]] = defaultdict(list)
    for row, unit in zip(answered, units, strict=True):
        members[unit].append(row["id"])
    mean = math.fsum(result.items) / len(result.items)
    return CellScores(
        SeedResult(
            cell.seed,
            float(result.value),
            len(answered),
            {k: float(v) for k, v in result.details.items()},
            {k: (float(v), int(n)) for k, (v, n) in result.categories.items()},
            skipped,
        ),
        {tuple(ids): float(result.items[unit]) for unit, ids in members.items()},
        float(result.value) / mean if mean else 1.0,
        tuple(float(result.items[unit]) for unit in units),
        result.note,
        result.name,
    )


def summarise(cell: Cell, scores: Sequence[CellScores]) -> Row:
    """One row from the cells of all its seeds. ``cell`` is any of them."""
    values = [score.result.value for score in scores]
    spread = statistics.stdev(values) if len(values) > 1 else None
    return Row(
        cell.kind,
        cell.shots,
        statistics.fmean(values),
        spread,
        interval_over_seeds(scores),
        tuple(score.result for score in scores),
    )


def interval_over_seeds(scores: Sequence[CellScores]) -> tuple[float, float]:
    """Confidence interval of the mean over seeds, for chance both in the queries and in the choice of demonstrations.

    See :data:`INTERVAL`. A unit's score is averaged over the seeds in which it was answered. The interaction of seeds and queries
    enters both parts, which makes the interval a little wide rather than too narrow; with two or three seeds their spread is
    itself known only roughly.
    """
    by_unit: dict[tuple[str, ...], list[float]] = defaultdict(list)
    for score in scores:
        for unit, item in score.units.items():
            by_unit[unit].append(item * score.scale)
    means = [math.fsum(items) / len(items) for items in by_unit.values()]
    values = [score.result.value for score in scores]
    centre = statistics.fmean(values)
    low, high = bootstrap_interval(means, resamples=RESAMPLES)
    if len(values) > 1:
        between = 1.96 * statistics.stdev(values) / math.sqrt(len(values))
        low, high = centre - math.hypot(centre - low, between), centre + math.hypot(high - centre, between)
    return low, high


def _row(data: Mapping[str, Any]) -> Row:
    seeds = tuple(
        SeedResult(
            **(seed | {"categories": {k: (v, n) for k, (v, n) in seed["categories"].items()}})
            | {"skipped": tuple(seed["skipped"])}
        )
        for seed in data["seeds"]
    )
    low, high = data["interval"]
    return Row(data["kind"], data["shots"], data["value"], data["spread"], (low, high), seeds)
