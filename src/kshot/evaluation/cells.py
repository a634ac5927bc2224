"""What a run consists of: cells, each one number of shots, one seed, and one way of showing the demonstrations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kshot.errors import OptionError, UnknownName
from kshot.evaluation.controls import controls as control_registry
from kshot.evaluation.controls import expand

DEMONSTRATIONS = "demonstrations"
FORMAT_ONLY = "format_only"
ZERO_SHOT = "zero_shot"
BASELINES = (ZERO_SHOT, FORMAT_ONLY)


@dataclass(frozen=True)
class Cell:
    """One column of predictions.

    Attributes:
        kind: ``"demonstrations"``, ``"format_only"`` (no demonstrations, but a sentence that tells the answer's form) or the name
            of a control.
        shots: number of demonstrations in total.
        seed: what the choice of demonstrations derives from.
    """

    kind: str
    shots: int
    seed: int

    @property
    def name(self) -> str:
        """Name of its files in the run folder."""
        shots = "" if self.kind == FORMAT_ONLY else f"shots-{self.shots}"
        seed = f"seed-{self.seed}" if self.shots else ""
        kind = "" if self.kind == DEMONSTRATIONS else self.kind
        return "_".join(part for part in (shots, seed, kind) if part)


def plan(
    shots: Sequence[int], seeds: Sequence[int], baselines: Sequence[str] = (), controls: Sequence[str] = ()
) -> list[Cell]:
    """The cells of a run, in order.

    Without demonstrations nothing is chosen, so that one seed says it all. A control is left out where it could not change anything
    (see :attr:`~kshot.evaluation.controls.Control.least_shots`).

    Raises:
        OptionError: neither shots nor baselines.
        UnknownName: a control or baseline of that name does not exist.
    """
    for baseline in baselines:
        if baseline not in BASELINES:
            raise UnknownName("baseline", baseline, BASELINES)
    numbers = sorted({*shots, *([0] if ZERO_SHOT in baselines else [])})
    if not numbers and not baselines:
        raise OptionError("no number of shots was given")
    cells = [Cell(FORMAT_ONLY, 0, seeds[0])] if FORMAT_ONLY in baselines else []
    for kind in (DEMONSTRATIONS, *expand(controls)):
        least = 0 if kind == DEMONSTRATIONS else control_registry.get(kind).least_shots
        for number in numbers:
            if number >= least:
                cells += [Cell(kind, number, seed) for seed in (seeds if number else seeds[:1])]
    return cells
