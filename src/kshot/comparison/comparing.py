"""A comparison of methods in progress, in a folder::

    comparison.json       what determines the results; a folder of another comparison is refused
    base/                 runs of the bare model: without demonstrations, format only, with demonstrations
    METHOD/seed-N/        adapter/, fit.json, and the runs: queries/, with_demonstrations/, transfer/
    METHOD/speed.json     times and memory
    agreement.json        the diagnostic
    methods.csv  methods.md  methods.json  methods.png

Whatever is there already is not done again: a stopped comparison carries on, and further methods can be added to a finished one.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from kshot.comparison.agreement import Agreement, shift_agreement
from kshot.comparison.cost import Speed, measure
from kshot.comparison.figures import figure_of, over_seeds, parameters_in, units_of
from kshot.comparison.obtain import Budget, adapter_in, plain_json, trainable
from kshot.comparison.table import FEW, NO, ZERO, Figure, MethodComparison, MethodRow
from kshot.data.task import Task
from kshot.episode import Episode
from kshot.errors import OptionError
from kshot.evaluation.cells import DEMONSTRATIONS, FORMAT_ONLY
from kshot.evaluation.environment import PACKAGES, environment
from kshot.evaluation.evaluate import evaluate
from kshot.evaluation.gaps import Units, to_control
from kshot.evaluation.results import Evaluation
from kshot.evaluation.runs import differences, read_json, write_json
from kshot.methods import methods as registry
from kshot.methods.activations import encoded
from kshot.methods.fit import draw
from kshot.models.adapters import WEIGHTS
from kshot.models.base import PromptStyle
from kshot.models.visual_sentence import VisualSentenceModel
from kshot.models.vlm import VLM

DIAGNOSED = 32
"""Queries on which the agreement of shifts is measured."""


@dataclass
class Comparing:
    """A comparison in progress."""

    vlm: VLM | VisualSentenceModel
    task: Task
    transfer: Task | None
    folder: Path
    shots: int
    samples: int
    epochs: float | None
    held_out: int | None
    seeds: range
    limit: int | None
    with_demonstrations: bool
    rounds: int
    tokens: int
    style: PromptStyle
    batch_size: int | None
    trainer: Mapping[str, Any]
    options: Mapping[str, Mapping[str, Any]]

    def __post_init__(self) -> None:
        self.budget = Budget(
            self.shots, self.samples, self.epochs, self.held_out, self.style, self.batch_size, self.trainer
        )
        self.common: dict[str, Any] = {
            "limit": self.limit, "style": self.style, "batch_size": self.batch_size, "controls": "none",
        }  # fmt: skip

    def start(self) -> None:
        """Begin the folder, or carry on.

        Raises:
            OptionError: it holds another comparison, or something else.
        """
        config = {
            "model": {k: v for k, v in self.vlm.describe().items() if k not in ("versions", "device", "source")},
            "task": self.task.describe(),
            "transfer": None if self.transfer is None else self.transfer.describe(),
            "shots": self.shots, "samples": self.samples, "epochs": self.epochs, "held_out": self.budget.held_out,
            "seeds": list(self.seeds), "limit": self.limit,
            "style": self.style, "batch_size": self.batch_size, "trainer": dict(self.trainer),
        }  # fmt: skip
        path = self.folder / "comparison.json"
        if path.exists():
            held = read_json(path)
            changes = list(differences(held, plain_json(config)))
            if changes:
                raise OptionError(
                    f"{self.folder} holds another comparison: {'; '.join(changes)} (choose another --out)"
                )
        elif self.folder.is_dir() and any(self.folder.iterdir()):
            raise OptionError(f"{self.folder} is neither empty nor the folder of a comparison (choose another --out)")
        else:
            write_json(path, config)

    def compare(self, wanted: Sequence[str]) -> MethodComparison:
        """All rows."""
        agreement = self.diagnose()
        base = evaluate(
            self.vlm, self.task, shots=(0, self.shots), seeds=len(self.seeds), seed=self.seeds[0],
            baselines=[FORMAT_ONLY] if self.task.template.short_instruction else [], out=self.folder / "base" / "queries",
            **self.common,
        )  # fmt: skip
        zero = {seed: units_of(base, DEMONSTRATIONS, 0, self.seeds[0]) for seed in self.seeds}
        rows = self.baselines(base, zero)
        speeds: dict[str, Speed] = {}
        left_out: dict[str, str] = {}
        for method in wanted:
            why = self.obstacle(method)
            if why is not None:
                left_out[method] = why
                continue
            rows.append(self.row(method, zero))
            speeds |= self.speed(method)
        speeds |= self.speed(None)
        rows = [_timed(row, speeds.get(row.method)) for row in rows]
        return MethodComparison(tuple(rows), self.facts(base, agreement), str(agreement), left_out, self.folder)

    def baselines(self, base: Evaluation, zero: Mapping[int, Units]) -> list[MethodRow]:
        """The rows of the bare model."""
        elsewhere = self._evaluate(self.transfer, self.folder / "base" / "transfer")
        names = {(DEMONSTRATIONS, 0): ZERO, (FORMAT_ONLY, 0): FORMAT_ONLY, (DEMONSTRATIONS, self.shots): FEW}
        rows = []
        for (kind, shots), name in names.items():
            found = next((row for row in base.rows if (row.kind, row.shots) == (kind, shots)), None)
            if found is None:  # the task has no instruction that tells the answer's form
                continue
            units = {seed: units_of(base, kind, shots, seed) for seed in (self.seeds if shots else self.seeds[:1])}
            gap = to_control(shots, ZERO, units, zero) if name != ZERO else None
            rows.append(
                MethodRow(
                    name,
                    "baseline",
                    shots,
                    len(found.seeds),
                    Figure(found.value, *found.interval),
                    NO if found.spread is None else found.spread,
                    Figure() if gap is None else Figure(gap.value, *gap.interval),
                    transfer=figure_of(elsewhere, 0) if name == ZERO else Figure(),
                )
            )
        return rows

    def obstacle(self, method: str) -> str | None:
        """Why the model cannot take a method; ``None`` if it can."""
        return registry.get(method).obstacle(self.vlm.anatomy) if method in registry else None

    def diagnose(self) -> Agreement:
        """The agreement of shifts on the support set."""
        path = self.folder / "agreement.json"
        if not path.exists():
            episodes = draw(self.task, shots=self.shots, samples=min(DIAGNOSED, self.samples), seed=self.seeds[0])
            found = shift_agreement(self.vlm, episodes, template=self.task.template, style=self.style)
            write_json(path, found.as_dict())
        held = read_json(path)
        return Agreement(held["cosine"], tuple(held["layers"]), held["queries"], held["shots"])

    def row(self, method: str, zero: Mapping[int, Units]) -> MethodRow:
        """A method's row, over all seeds."""
        runs: dict[str, dict[int, Evaluation]] = {"queries": {}, "with_demonstrations": {}, "transfer": {}}
        fits = []
        for seed in self.seeds:
            place = self._place(method, seed)
            fits.append(self.fit(method, seed))
            asked: dict[str, tuple[Task | None, int]] = {"queries": (self.task, 0), "transfer": (self.transfer, 0)}
            asked["with_demonstrations"] = (self.task if self.with_demonstrations else None, self.shots)
            if all(task is None or (place / name / "metrics.json").exists() for name, (task, _) in asked.items()):
                within: AbstractContextManager[Any] = nullcontext()  # nothing is left to be answered
            else:
                within = self.adapter(method, seed)
            with within:
                for name, (task, shots) in asked.items():
                    found = self._evaluate(task, place / name, shots, seed)
                    if found is not None:
                        runs[name][seed] = found
        units = {seed: units_of(found, DEMONSTRATIONS, 0, seed) for seed, found in runs["queries"].items()}
        gain = to_control(0, ZERO, units, zero)
        values = [found.rows[0].value for found in runs["queries"].values()]
        weights = self._place(method, self.seeds[0]) / "adapter" / WEIGHTS
        return MethodRow(
            method,
            "trained" if trainable(method) else "estimated",
            0,
            len(self.seeds),
            over_seeds(runs["queries"], 0),
            statistics.stdev(values) if len(values) > 1 else NO,
            Figure() if gain is None else Figure(gain.value, *gain.interval),
            parameters=parameters_in(weights),
            adapter_bytes=weights.stat().st_size,
            training_seconds=statistics.fmean(fit["seconds"] for fit in fits),
            training_cpu_seconds=statistics.fmean(fit["cpu_seconds"] for fit in fits),
            training_peak_mb=max(fit["peak_mb"] or NO for fit in fits),
            with_demonstrations=over_seeds(runs["with_demonstrations"], self.shots),
            transfer=over_seeds(runs["transfer"], 0),
        )

    def fit(self, method: str, seed: int) -> dict[str, Any]:
        """Obtain a method's adapter, unless it is there."""
        own = dict(self.options.get(method) or {})
        return self.budget.obtain(self.vlm, self.task, method, seed, self._place(method, seed), own)

    @contextmanager
    def adapter(self, method: str, seed: int) -> Iterator[None]:
        """The model with a method's adapter in its layers."""
        with adapter_in(self.vlm, self._place(method, seed) / "adapter", f"{method}, seed {seed}"):
            yield

    def _place(self, method: str, seed: int) -> Path:
        return self.folder / method / f"seed-{seed}"

    def speed(self, method: str | None) -> dict[str, Speed]:
        """Times of a method, or of the bare model without and with demonstrations."""
        if not self.rounds:
            return {}
        path = self.folder / (method or "base") / "speed.json"
        if not path.exists():
            query = self.task.queries[0]
            episodes = [Episode((), query)]
            if method is None:
                drawn = draw(self.task, shots=self.shots, samples=2, seed=self.seeds[0])[0]
                episodes.append(Episode(drawn.demonstrations, query))
            prompts = [encoded(self.vlm, episode, self.task.template, self.style) for episode in episodes]
            within = nullcontext if method is None else lambda: self.adapter(method, self.seeds[0])
            bare, (side,) = measure(
                self.vlm, prompts[0], [(prompts[-1], within)], rounds=self.rounds, tokens=self.tokens
            )  # fmt: skip
            found = {ZERO: bare, FEW: side} if method is None else {method: side}
            write_json(path, {name: asdict(speed) for name, speed in found.items()})
        return {name: Speed(**held) for name, held in read_json(path).items()}

    def facts(self, base: Evaluation, agreement: Agreement) -> dict[str, Any]:
        """What all rows have in common."""
        around = environment(self.vlm)
        about = self.vlm.describe()
        return {
            "model": self.vlm.name, "weights": about["weights"], "dtype": about["dtype"], "task": self.task.name,
            "task_options": {k: v for k, v in self.task.describe().items() if k != "task"}, "metric": base.metric,
            "transfer_task": "" if self.transfer is None else self.transfer.name, "budget_shots": self.shots, "samples": self.samples,
            "held_out": self.budget.held_out, "epochs": self.epochs or "", "first_seed": self.seeds[0],
            "queries": base.rows[0].queries,
            "agreement": round(agreement.cosine, 4), "device": around["accelerator"] or f"{around['processor']} CPU",
            "threads": torch.get_num_threads(), **{f"{name}_version": around["versions"].get(name, "") for name in PACKAGES[:5]},
        }  # fmt: skip

    def _evaluate(self, task: Task | None, out: Path, shots: int = 0, seed: int | None = None) -> Evaluation | None:
        """A run, unless it is there."""
        if task is None:
            return None
        if (out / "metrics.json").exists():
            return Evaluation.from_json(read_json(out / "metrics.json"), out)
        return evaluate(
            self.vlm, task, shots=(shots,), seed=self.seeds[0] if seed is None else seed, out=out, **self.common
        )


def _timed(row: MethodRow, speed: Speed | None) -> MethodRow:
    if speed is None:
        return row
    return replace(
        row, first_token_ms=speed.first, first_token_ratio=speed.first_ratio, token_ms=speed.token, token_ratio=speed.token_ratio,
        peak_mb=speed.peak,
    )  # fmt: skip
