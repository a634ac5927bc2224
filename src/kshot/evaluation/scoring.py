"""From prediction rows to figures with intervals."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kshot.episode import Example
from kshot.errors import DataError
from kshot.evaluation.cells import DEMONSTRATIONS, Cell
from kshot.evaluation.controls import controls as control_registry
from kshot.evaluation.gaps import RESAMPLES, Gap, Units, interval_of, to_chance, to_control, widened
from kshot.evaluation.results import Row, SeedResult
from kshot.metrics.base import Metric, MetricResult, PictureMetric, wants_raw
from kshot.metrics.stats import bootstrap_interval, macro_interval
from kshot.metrics.text import GROUP
from kshot.picture import FilePicture


@dataclass(frozen=True)
class CellScores:
    """A cell's metric with what intervals need: scores of units, keyed by the queries that make them, whose mean is the figure.

    Attributes:
        result: the figures.
        units: scores of the units of the main metric.
        per_query: for each answered query the score of its unit, as the metric gives it.
        note, name: the metric's.
        further: scores of the units of further metrics, by metric.
        members: units of each category that consists of units.
    """

    result: SeedResult
    units: Units
    per_query: tuple[float, ...]
    note: str
    name: str
    further: Mapping[str, Units] = field(default_factory=dict)
    members: Mapping[str, tuple[tuple[str, ...], ...]] = field(default_factory=dict)


def score_cell(
    cell: Cell,
    rows: Sequence[Mapping[str, Any]],
    queries: Mapping[str, Example],
    metric: Metric | PictureMetric,
    *,
    further: Mapping[str, Metric | PictureMetric] | None = None,
    followed: Callable[[Example], tuple[str, ...] | None] | None = None,
    opening: str = "",
    pictures: Path | None = None,
) -> CellScores:
    """Apply the metric to a cell's predictions.

    Args:
        rows: its prediction rows; those with ``"skipped"`` are counted and left out.
        queries: the task's queries by id.
        metric: the main metric.
        further: further metrics by name.
        followed: the answers of a model that follows a control, see :class:`~kshot.evaluation.controls.Control`.
        opening: what the prompts had already said of the answer; metrics that judge the raw text see it before that.
        pictures: the folder of the predictions, where they are names of picture files.

    Raises:
        DataError: every query was skipped.
    """
    answered = [row for row in rows if "skipped" not in row]
    skipped = tuple({"id": row["id"], "reason": row["skipped"]} for row in rows if "skipped" in row)
    if not answered:
        reason = f"; the first reason: {skipped[0]['reason']}" if skipped else ""
        raise DataError(f"no query of {cell.name!r} could be answered ({len(skipped)} skipped{reason})")
    asked = [queries[row["id"]] for row in answered]
    said: Any = [row["prediction"] for row in answered]
    if pictures is not None:
        said = [FilePicture(pictures / name) for name in said]
    raw: Any = [f"{opening}{row['raw'].strip()}" if "raw" in row else row["prediction"] for row in answered]
    result = metric(raw if wants_raw(metric) else said, asked)
    beside = {name: other(raw if wants_raw(other) else said, asked) for name, other in (further or {}).items()}
    details = {k: float(v) for k, v in result.details.items()}
    if followed is not None and all(expected := [followed(query) for query in asked]):
        led = [query.with_(references=texts) for query, texts in zip(asked, expected, strict=True)]
        details["follows"] = float(metric(raw if wants_raw(metric) else said, led).value)
    ids = [row["id"] for row in answered]
    keys = _keys(result, ids)
    return CellScores(
        SeedResult(
            cell.seed,
            float(result.value),
            len(answered),
            details,
            {k: (float(v), int(n)) for k, (v, n) in result.categories.items()},
            skipped,
            {name: float(other.value) for name, other in beside.items()},
        ),
        _units(result, ids),
        tuple(float(result.items[unit]) for unit in result.units or range(len(answered))),
        result.note,
        result.name,
        {name: _units(other, ids) for name, other in beside.items()},
        {name: tuple(keys[unit] for unit in units) for name, units in result.members.items()},
    )


def _keys(result: MetricResult, ids: Sequence[str]) -> dict[int, tuple[str, ...]]:
    """The queries that make each unit."""
    members: dict[int, list[str]] = defaultdict(list)
    for name, unit in zip(ids, result.units or range(len(ids)), strict=True):
        members[unit].append(name)
    return {unit: tuple(names) for unit, names in members.items()}


def _units(result: MetricResult, ids: Sequence[str]) -> Units:
    """Scores by unit, scaled so that their mean is the figure."""
    mean = math.fsum(result.items) / len(result.items)
    scale = float(result.value) / mean if mean else 1.0
    return {key: float(result.items[unit]) * scale for unit, key in _keys(result, ids).items()}


def summarise(cell: Cell, scores: Sequence[CellScores]) -> Row:
    """One row from the cells of all its seeds. ``cell`` is any of them."""
    values = [score.result.value for score in scores]
    spread = statistics.stdev(values) if len(values) > 1 else None
    chances = [score.result.details["chance"] for score in scores if "chance" in score.result.details]
    return Row(
        cell.kind,
        cell.shots,
        statistics.fmean(values),
        spread,
        interval_over_seeds(scores),
        tuple(score.result for score in scores),
        statistics.fmean(chances) if chances else None,
        {name: _further(name, scores) for name in scores[0].further} | _macros(scores),
        _category_intervals(scores),
    )


def interval_over_seeds(scores: Sequence[CellScores]) -> tuple[float, float]:
    """Confidence interval of the mean over seeds: see :data:`INTERVAL` and :func:`~kshot.evaluation.gaps.interval_of`."""
    return interval_of([score.units for score in scores], [score.result.value for score in scores])


def gaps_of(rows: Sequence[Row], scores: Mapping[tuple[str, int], Sequence[CellScores]]) -> tuple[Gap, ...]:
    """What intact demonstrations score more than chance, and than each control, by number of shots.

    Args:
        rows: the run's rows.
        scores: the cells of each row, by kind and shots.
    """
    found: list[Gap | None] = []
    kinds = list(dict.fromkeys(row.kind for row in rows if row.kind in control_registry))
    for row in rows:
        if row.kind != DEMONSTRATIONS:
            continue
        if row.chance is not None:
            found.append(to_chance(row.shots, row.value, row.interval, row.chance))
        intact = {score.result.seed: score.units for score in scores[row.kind, row.shots]}
        for kind in kinds:
            changed = {score.result.seed: score.units for score in scores.get((kind, row.shots), ())}
            found.append(to_control(row.shots, kind, intact, changed))
    return tuple(gap for gap in found if gap is not None)


def _further(name: str, scores: Sequence[CellScores]) -> dict[str, float]:
    """A further metric's mean over seeds, and its interval."""
    values = [score.result.further[name] for score in scores]
    low, high = interval_of([score.further[name] for score in scores], values)
    return {"value": statistics.fmean(values), "low": low, "high": high}


def _macros(scores: Sequence[CellScores]) -> dict[str, dict[str, float]]:
    """The means over classes and over groups, where the metric gives them and says what they consist of."""
    found = {}
    for name in ("macro", "macro_groups"):
        values = [score.result.details[name] for score in scores if name in score.result.details]
        labels = _labels(scores, grouped=name == "macro_groups")
        if len(values) < len(scores) or not labels:
            continue
        items = {unit: [score.units[unit] for score in scores if unit in score.units] for unit in labels}
        interval = macro_interval(
            [statistics.fmean(items[u]) for u in labels], list(labels.values()), resamples=RESAMPLES
        )
        low, high = widened(interval, values)
        found[name] = {"value": statistics.fmean(values), "low": low, "high": high}
    return found


def _labels(scores: Sequence[CellScores], *, grouped: bool) -> dict[tuple[str, ...], int]:
    """The number of the class, or of the group, of each unit."""
    names = sorted({name for score in scores for name in score.members if name.startswith(GROUP) == grouped})
    numbers = {name: number for number, name in enumerate(names)}
    return {
        unit: numbers[name]
        for score in scores
        for name, units in score.members.items()
        if name in numbers
        for unit in units
    }


def _category_intervals(scores: Sequence[CellScores]) -> dict[str, tuple[float, float]]:
    """Intervals of the categories that consist of units, each unit's score averaged over the seeds."""
    items: dict[str, dict[tuple[str, ...], list[float]]] = {}
    for score in scores:
        for name, units in score.members.items():
            for unit in units:
                items.setdefault(name, {}).setdefault(unit, []).append(score.units[unit])
    return {
        name: bootstrap_interval([statistics.fmean(found) for found in units.values()], resamples=RESAMPLES)
        for name, units in sorted(items.items())
    }
