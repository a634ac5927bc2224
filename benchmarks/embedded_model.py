"""Figures of the embedded model, through the public API: what its card states and what it was built to reach.

    python benchmarks/embedded_model.py --omniglot images_background_small2.zip

Every figure is the share of greedy answers over the full vocabulary that equal the name, character for character, on episodes
drawn from seeds: characters of alphabets the model never saw, names it never met, scenes with unseen pairs of colour and shape,
real digits.
Writes ``results/embedded_model.csv`` (figures, 95 % intervals, episodes, targets, versions).
"""

from __future__ import annotations

import argparse
import csv
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers

import kshot
from kshot.evaluation.results import Row
from kshot.metrics.stats import bootstrap_interval

RESULTS = Path(__file__).resolve().parents[1] / "results" / "embedded_model.csv"
SHUFFLED = "shuffled-labels"


@dataclass(frozen=True)
class Cell:
    """One figure.

    Attributes:
        what: in words.
        task, options: the task.
        shots: demonstrations in total.
        target: least value it was built for (with a control: the expected value, to be met within 0.03); ``None``: for information.
        control: control, if any.
        style: prompt style.
    """

    what: str
    task: str
    options: dict[str, Any] = field(default_factory=dict)
    shots: int = 2
    target: float | None = None
    control: str | None = None
    style: str = "auto"


def omniglot(ways: int, per_class: int, target: float | None = None, names: str = "unseen", **more: Any) -> Cell:
    """A cell of n-way episodes of unseen characters."""
    control, style = more.pop("control", None), more.pop("style", "auto")
    what = more.pop("what", f"Omniglot small2, {ways}-way, {per_class} per class, {names} names")
    options = {"ways": ways, "names": names} | more
    return Cell(what, "omniglot", options, ways * per_class, target, control, style)


def wording(name: str, template: dict[str, str], style: str = "plain") -> Cell:
    """The same 2-way episodes in other words."""
    return omniglot(2, 4, None, template=template, style=style, what=f"wording: {name} (2-way, 4 per class)")


CELLS = [
    *(
        omniglot(ways, per_class, target, names)
        for ways, per_class, target in ((2, 1, 0.97), (2, 4, 0.985), (5, 1, 0.90), (20, 1, 0.70))
        for names in ("invented", "unseen")
    ),
    omniglot(2, 4, None, "letters"),
    omniglot(2, 16, None),
    omniglot(5, 4, None),
    omniglot(2, 4, 0.5, control=SHUFFLED, what="Omniglot small2, 2-way, 4 per class, shuffled labels"),
    omniglot(5, 1, 0.2, control=SHUFFLED, what="Omniglot small2, 5-way, 1 per class, shuffled labels"),
    omniglot(2, 4, 0.5, control="blank-images", what="Omniglot small2, 2-way, 4 per class, blank images"),
    wording("plain LIVE/MimIC, no instruction", {}),
    wording(
        "plain LIVE/MimIC with instruction",
        {"instruction": "Provide an answer to the question. Use the image to answer.\n"},
    ),
    wording(
        "Question/Answer lines", {"demonstration": "<image>Question: {question} Answer: {answer}\n", "separator": ""}
    ),
    wording("captions", {"demonstration": "<image>Caption:{answer}"}),
    wording(
        "User/Assistant lines", {"demonstration": "User:<image>{question}\nAssistant: {answer}\n", "separator": ""}
    ),
    wording("never trained: label lines", {"demonstration": "<image> Label: {answer}\n", "separator": ""}),
    wording("never trained: Q/A", {"demonstration": "Q: {question} <image> A: {answer}\n", "separator": ""}),
    Cell("digits, 2-way, 1 per class", "digits", {"names": "unseen"}, 2),
    Cell("digits, 2-way, 4 per class", "digits", {"names": "unseen"}, 8, 0.90),
    Cell("digits, 2-way, 4 per class, shuffled labels", "digits", {"names": "unseen"}, 8, 0.5, SHUFFLED),
    *(Cell(f"scenes, {k} shots, unseen pairs", "scenes", {"held_out": "all"}, k) for k in (1, 2, 4)),
    Cell("scenes, 0 shots, unseen pairs (at most)", "scenes", {"held_out": "all"}, 0, 0.25),
    Cell("scenes, 8 shots, unseen pairs", "scenes", {"held_out": "all"}, 8, 0.97),
    Cell("scenes, 8 shots, invented labels", "scenes", {"held_out": "all", "labels": "invented"}, 8, 0.90),
    Cell("scenes, 8 shots, permuted labels", "scenes", {"held_out": "all", "labels": "permuted"}, 8, 0.90),
]


def measure(model: Any, cell: Cell, episodes: int, root: str) -> dict[str, Any]:
    """Evaluate one cell."""
    options = {"episodes": episodes, "seed": 1} | cell.options
    if cell.task == "omniglot":
        options["root"] = root
    task = kshot.load_task(cell.task, **options)
    start = time.process_time()
    result = kshot.evaluate(model, task, shots=cell.shots, controls=cell.control or (), style=cell.style)  # type: ignore[arg-type]
    row: Row = result.row(cell.shots, cell.control) if cell.control else result.row(cell.shots)
    exact = row.seeds[0].details.get("exact", row.seeds[0].details.get("strict", row.value))
    # Right or wrong: the interval follows from the figure and the number of episodes.
    low, high = bootstrap_interval([1.0] * round(exact * row.queries) + [0.0] * round((1 - exact) * row.queries))
    met = "" if cell.target is None else "yes" if _met(cell, exact) else "no"
    return {
        "figure": cell.what,
        "exact": round(exact, 4),
        "low": round(low, 4),
        "high": round(high, 4),
        "episodes": row.queries,
        "target": cell.target,
        "met": met,
        "prompt": cell.style,
        "cpu_seconds": round(time.process_time() - start, 1),
        "seed": 1,
        "kshot": kshot.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "weights": model.describe().get("weights", ""),
    }


def _met(cell: Cell, value: float) -> bool:
    if cell.target is None:
        return True
    if cell.control:
        return value <= cell.target + 0.03
    return value <= cell.target if "(at most)" in cell.what else value >= cell.target


def main() -> None:
    """Measure all cells, or those whose description contains a text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--omniglot", required=True, help="images_background_small2.zip")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--episodes", type=int, default=2000)
    parser.add_argument("--only", default="", help="measure cells whose description contains this")
    parser.add_argument("--targets", action="store_true", help="measure only cells that have a target")
    parser.add_argument("--part", default="0/1", help="i/n: every n-th cell from the i-th, to share the work")
    parser.add_argument("--out", type=Path, default=RESULTS)
    chosen = parser.parse_args()
    number, parts = map(int, chosen.part.split("/"))
    model = kshot.load_model(chosen.model)
    rows = []
    wanted = [c for c in CELLS if chosen.only in c.what and (c.target is not None or not chosen.targets)]
    for cell in wanted[number::parts]:
        rows.append(measure(model, cell, chosen.episodes, chosen.omniglot))
        shown = rows[-1]
        target = f"target {shown['target']} {shown['met']}" if shown["met"] else ""
        print(f"{shown['exact']:.3f} [{shown['low']:.3f}, {shown['high']:.3f}] {shown['figure']} {target}", flush=True)
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    with open(chosen.out, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
