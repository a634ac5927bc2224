"""Every method of the registry on the embedded model: six small tasks, one support set, one budget, unseen queries.

    python benchmarks/methods.py
    python benchmarks/methods.py --only live,mimic --tasks colour,count

Teacher and few-shot prompts have eight demonstrations; answers are greedy over the full vocabulary, right if they equal the word.
Scenes are asked about with pairs of colour and shape that the model never saw, characters with drawings that no method saw.
``all`` labelled examples are 256 scenes, or the 256 drawings of a pair of characters; ``few`` are 32 in all, each of which is query
and demonstration. Times are CPU seconds to obtain an adapter, evaluation left out, means over seeds.

Whatever ``--work`` holds is not done again, and ``results/methods.csv`` is written after each method: the table may be made in parts.
"""

from __future__ import annotations

import argparse
import csv
import statistics
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

import kshot
from kshot.comparison.figures import parameters_in, units_of
from kshot.comparison.obtain import Budget, adapter_in, trainable, wanted_methods
from kshot.comparison.table import FEW, ZERO
from kshot.data.derived import digest
from kshot.data.task import Task, load_task
from kshot.evaluation.cells import DEMONSTRATIONS
from kshot.evaluation.evaluate import evaluate
from kshot.evaluation.gaps import interval_of
from kshot.evaluation.results import Evaluation, Row
from kshot.evaluation.runs import read_json
from kshot.models.adapters import WEIGHTS
from kshot.models.vlm import VLM
from kshot.training.distill_plans import plan_of

RESULTS = Path(__file__).resolve().parents[1] / "results" / "methods.csv"
SHOTS, QUERIES, SEEDS, BATCH = 8, 500, 3, 50
SECONDS = 30
"""CPU seconds that an adapter may take."""


@dataclass(frozen=True)
class Case:
    """A task, and what LIVE and MimIC were to reach on it.

    Attributes:
        task, options: of ``load_task``.
        targets: least accuracy by method.
    """

    task: str
    options: dict[str, Any]
    targets: dict[str, float]


def scenes(attribute: str, live: float, mimic: float) -> Case:
    """Questions about one attribute of scenes."""
    return Case("scenes", {"tasks": [attribute], "episodes": QUERIES}, {"live": live, "mimic": mimic})


CASES = {
    "colour": scenes("colour", 0.93, 0.97),
    "hollow shape": scenes("outline_shape", 0.98, 0.99),
    "count": scenes("count", 0.99, 0.99),
    **{
        f"invented pair {pair}": Case("concept_pair", {"pair": pair, "queries": QUERIES}, {"live": 0.98, "mimic": 0.98})
        for pair in range(3)
    },
}
SETTINGS: dict[str, dict[str, Any]] = {"all": {"samples": 256}, "few": {"samples": 32, "held": 0}}
OF_FEW_SHOT = 0.96
"""Share of its own few-shot accuracy that MimIC was to reach with few labelled examples."""
UNDER_FEW_SHOT = 0.01
"""MimIC was to be no more than that under its own few-shot prompt."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="all", help="methods, with commas")
    parser.add_argument("--tasks", default=",".join(CASES), help="names of tasks, with commas")
    parser.add_argument("--labelled", default=",".join(SETTINGS), help="all, few")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--work", type=Path, default=Path("runs/methods-benchmark"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    vlm = kshot.load_model("tiny")
    asked = {(name, setting) for name in given.tasks.split(",") for setting in given.labelled.split(",")}
    methods = wanted_methods(given.only)
    work = given.work / vlm.describe()["weights"][:8]
    for name, case in CASES.items():
        bench = Bench(vlm, name, case, work / name.replace(" ", "-"), range(given.seeds))
        for setting in SETTINGS:
            for method in methods if (name, setting) in asked else ():
                bench.obtain(setting, method)
                write(given.out, name, bench.lines())
                line = bench.line(setting, method)
                print(
                    {k: line[k] for k in ("task", "labelled", "method", "accuracy", "few_shot", "cpu_seconds", "met")},
                    flush=True,
                )


@dataclass(frozen=True)
class Bench:
    """The methods on one task.

    Attributes:
        vlm: the bare model.
        name, case: the task.
        folder: of all runs and adapters.
        seeds: of samples, demonstrations and initial values.
    """

    vlm: VLM
    name: str
    case: Case
    folder: Path
    seeds: range

    @cached_property
    def task(self) -> Task:
        """The task; its queries are never in its support set."""
        return load_task(self.case.task, **self.case.options)

    @cached_property
    def base(self) -> Evaluation:
        """The bare model without demonstrations, and with those of each seed."""
        return self.asked(self.folder / "base", shots=(0, SHOTS), seeds=len(self.seeds), seed=self.seeds[0])

    def asked(self, out: Path, **options: Any) -> Evaluation:
        """A run, unless it is there."""
        if (out / "metrics.json").exists():
            return Evaluation.from_json(read_json(out / "metrics.json"), out)
        common: dict[str, Any] = {"limit": QUERIES, "controls": "none", "batch_size": BATCH}
        return evaluate(self.vlm, self.task, out=out, **common, **options)

    def place(self, setting: str, method: str, seed: int) -> Path:
        """Folder of an adapter: another one where the method is trained otherwise."""
        plan = repr(plan_of(method, self.vlm.anatomy.parameters)) if trainable(method) else ""
        return self.folder / setting / f"{method}-{digest(plan)[:6]}" / f"seed-{seed}"

    def obtain(self, setting: str, method: str) -> None:
        """Adapters of all seeds, and what they answer, unless they are there."""
        budget = Budget(SHOTS, batch_size=BATCH, **SETTINGS[setting])
        for seed in self.seeds:
            place = self.place(setting, method, seed)
            budget.obtain(self.vlm, self.task, method, seed, place, {})
            if not (place / "queries" / "metrics.json").exists():
                with adapter_in(self.vlm, place / "adapter", f"{method}, seed {seed}"):
                    self.asked(place / "queries", shots=(0,), seed=seed)

    def done(self, setting: str, method: str) -> bool:
        """Whether that is there."""
        places = (self.place(setting, method, seed) for seed in self.seeds)
        return all((place / "queries" / "metrics.json").exists() for place in places)

    def lines(self) -> list[dict[str, Any]]:
        """All that is there, the bare model first."""
        found = [self.described("", method, row) for method, row in zip((ZERO, FEW), self.base.rows, strict=True)]
        return found + [
            self.line(setting, method)
            for setting in SETTINGS
            for method in wanted_methods("all")
            if self.done(setting, method)
        ]

    def line(self, setting: str, method: str) -> dict[str, Any]:
        """The figures of a method."""
        places = {seed: self.place(setting, method, seed) for seed in self.seeds}
        runs = {seed: self.asked(place / "queries") for seed, place in places.items()}
        values = [run.rows[0].value for run in runs.values()]
        units = [units_of(run, DEMONSTRATIONS, 0, seed) for seed, run in runs.items()]
        score = statistics.fmean(values)
        seconds = statistics.fmean(read_json(place / "fit.json")["cpu_seconds"] for place in places.values())
        weights = places[self.seeds[0]] / "adapter" / WEIGHTS
        few = self.base.rows[1].value
        target = self.case.targets.get(method) if setting == "all" else OF_FEW_SHOT * few if method == "mimic" else None
        reached = target is not None and score >= target and seconds <= SECONDS
        if method == "mimic" and setting == "all":
            reached = reached and score >= few - UNDER_FEW_SHOT
        low, high = interval_of(units, values)
        return self.facts(setting, method) | {
            "accuracy": round(score, 4),
            "low": round(low, 4),
            "high": round(high, 4),
            "sd_of_seeds": round(statistics.stdev(values), 4) if len(values) > 1 else "",
            "few_shot": round(few, 4),
            "target": "" if target is None else round(target, 4),
            "met": "" if target is None else "yes" if reached else "no",
            "cpu_seconds": round(seconds, 1),
            "parameters": parameters_in(weights),
            "adapter_bytes": weights.stat().st_size,
        }

    def described(self, setting: str, method: str, row: Row) -> dict[str, Any]:
        """The figures of the bare model."""
        nothing = dict.fromkeys(("target", "met", "cpu_seconds", "parameters", "adapter_bytes"), "")
        return (
            self.facts(setting, method)
            | {
                "accuracy": round(row.value, 4),
                "low": round(row.interval[0], 4),
                "high": round(row.interval[1], 4),
                "sd_of_seeds": "" if row.spread is None else round(row.spread, 4),
                "few_shot": round(self.base.rows[1].value, 4),
            }
            | nothing
        )

    def facts(self, setting: str, method: str) -> dict[str, Any]:
        """What it is that was measured."""
        about = self.vlm.describe()
        return {
            "task": self.name,
            "labelled": SETTINGS[setting]["samples"] if setting else "",
            "method": method,
            "seeds": len(self.seeds),
            "queries": self.base.rows[0].queries,
            "shots": SHOTS,
            "weights": about["weights"],
            **about["versions"],
        }


def write(path: Path, task: str, lines: list[dict[str, Any]]) -> None:
    """Put the lines of a task into the table, in place of those it has; whole or not at all."""
    held: list[dict[str, Any]] = []
    if path.exists():
        with path.open(encoding="utf-8", newline="") as file:
            held = [
                row for row in csv.DictReader(file) if row["task"] != task and row["weights"] == lines[0]["weights"]
            ]
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted([*held, *lines], key=lambda row: list(CASES).index(row["task"])))
    temporary.replace(path)


if __name__ == "__main__":
    main()
