"""Picture functions put into adapters of the embedded visual model: what is kept when the example pairs leave the prompt.

    python benchmarks/visual_adapters.py
    python benchmarks/visual_adapters.py --methods lora,live --functions outline --seeds 1

For each function, methods are given the same 192 pairs of validation boards, of which those that are trained hold out 32 to choose the
best epoch; prompts that they learn from have two pairs. Queries are boards of the test split. ``exact`` is the share of greedily
imagined answers all of whose tokens are those of the true answer's picture, ``kept`` that share over the bare model's with two pairs
in its prompt.
Writes ``results/visual_adapters.csv`` after each method and function (means over seeds; 95 % bootstrap intervals over the queries of
all seeds).
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from embedded_visual import PAIRS, judge, pair_prompts

import kshot
from kshot.comparison.obtain import Budget, adapter_in
from kshot.data.functions import Functions
from kshot.metrics.stats import bootstrap_interval

RESULTS = Path(__file__).resolve().parents[1] / "results" / "visual_adapters.csv"
FUNCTIONS = ("recolour_red", "shift_right", "outline", "shrink", "to_squares", "flip_vertical")
METHODS = ("lora", "mimic", "live", "task_vector")
QUERIES, SEEDS = 150, 3
BUDGET = Budget(PAIRS, samples=192, held=32)
KEPT = 0.9
"""Share of the prompted accuracy that an adapter was to keep."""


def exact(model: Any, function: str, pairs: int, queries: int) -> list[float]:
    """For each query, whether the answer is exact."""
    return [found.exact for found in judge(model, pair_prompts([function], queries, pairs))]


def adapted(model: Any, function: str, method: str, seed: int, queries: int) -> tuple[list[float], float]:
    """Obtain an adapter and ask without pairs: whether each answer is exact, and the CPU seconds that the adapter took."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        made = BUDGET.obtain(model, Functions(function), method, seed, place, {})
        with adapter_in(model, place / "adapter", f"{method}, seed {seed}"):
            return exact(model, function, 0, queries), made["cpu_seconds"]


def line(function: str, method: str, right: Sequence[float], prompted: float, zero: float) -> dict[str, Any]:
    """What was found about one function."""
    low, high = bootstrap_interval(list(right))
    share = sum(right) / len(right)
    kept = share / prompted
    return {
        "function": function,
        "method": method,
        "exact": round(share, 4),
        "low": round(low, 4),
        "high": round(high, 4),
        f"prompted_{PAIRS}_pairs": round(prompted, 4),
        "prompted_0_pairs": round(zero, 4),
        "kept": round(kept, 3),
        f"kept_{KEPT}": "yes" if kept >= KEPT else "no",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default=",".join(METHODS), help="with commas")
    parser.add_argument("--functions", default=",".join(FUNCTIONS), help="with commas")
    parser.add_argument("--queries", type=int, default=QUERIES)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    bare: Any = kshot.load_model("tiny-visual")
    about = {
        "seeds": given.seeds,
        "queries": given.queries,
        "kshot": kshot.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "weights": bare.describe().get("weights", ""),
    }
    rows: list[dict[str, Any]] = []
    for function in given.functions.split(","):
        prompted = exact(bare, function, PAIRS, given.queries)
        zero = exact(bare, function, 0, given.queries)
        for method in given.methods.split(","):
            runs = [adapted(bare, function, method, seed, given.queries) for seed in range(given.seeds)]
            right = [value for values, _ in runs for value in values]
            row = line(function, method, right, sum(prompted) / len(prompted), sum(zero) / len(zero))
            rows.append(row | {"cpu_seconds": round(sum(spent for _, spent in runs) / len(runs), 1)} | about)
            print({name: value for name, value in rows[-1].items() if name not in about}, flush=True)
            write(given.out, rows)


def write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write the table, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    temporary.replace(path)


if __name__ == "__main__":
    main()
