"""Figures of runs: scores by query, means over seeds with intervals, sizes of adapters."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open

from kshot.comparison.table import Figure
from kshot.errors import KshotError
from kshot.evaluation.cells import DEMONSTRATIONS, Cell
from kshot.evaluation.gaps import Units, interval_of
from kshot.evaluation.results import Evaluation
from kshot.evaluation.runs import RunFolder


def units_of(found: Evaluation, kind: str, shots: int, seed: int) -> Units:
    """Scores by query, scaled so that their mean is the figure."""
    if found.folder is None:
        raise KshotError("the run was not kept")
    rows = [row for row in RunFolder(found.folder).rows(Cell(kind, shots, seed).name) if "score" in row]
    value = next(
        one.value
        for row in found.rows
        if (row.kind, row.shots) == (kind, shots)
        for one in row.seeds
        if not shots or one.seed == seed
    )
    mean = statistics.fmean(row["score"] for row in rows)
    scale = value / mean if mean else 1.0
    return {(row["id"],): row["score"] * scale for row in rows}


def over_seeds(runs: Mapping[int, Evaluation], shots: int) -> Figure:
    """The mean of the seeds' scores and its interval."""
    if not runs:
        return Figure()
    values = [found.rows[0].value for found in runs.values()]
    units = [units_of(found, DEMONSTRATIONS, shots, seed) for seed, found in runs.items()]
    return Figure(statistics.fmean(values), *interval_of(units, values))


def figure_of(found: Evaluation | None, place: int) -> Figure:
    """A row's score and its interval; nothing without a run."""
    return Figure() if found is None else Figure(found.rows[place].value, *found.rows[place].interval)


def parameters_in(weights: Path) -> int:
    """Number of parameters in a safetensors file."""
    with safe_open(weights, "pt") as file:
        return sum(torch.Size(file.get_slice(name).get_shape()).numel() for name in file.keys())  # noqa: SIM118
