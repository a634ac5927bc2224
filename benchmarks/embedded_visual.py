"""Figures of the embedded visual model, through the public API: what its card states and what it was built to reach.

    python benchmarks/embedded_visual.py

Every answer is imagined greedily, token by token. ``exact`` is the share of answers all of whose tokens are those of the true answer's
picture, ``tokens`` the share of tokens that are, ``pixel_l1`` the mean difference of pixel values (0..1) to the true picture, and
``vq_l1`` what the tokenizer alone loses on the true picture. All boards are of the test split, of which training saw none.
Writes ``results/embedded_visual.csv`` (figures, 95 % bootstrap intervals over queries, targets, versions), and with ``--picture``
a sheet of examples, right and wrong as they come.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image, ImageDraw, ImageOps

import kshot
from kshot.data.derived import generator
from kshot.data.drawing.functions import BASIC, NEW, NEW_CHAINS, SEQUENCES, random_boards
from kshot.data.drawing.tiles import draw_board
from kshot.data.functions import Functions
from kshot.metrics.stats import bootstrap_interval
from kshot.picture import Picture, as_picture

RESULTS = Path(__file__).resolve().parents[1] / "results" / "embedded_visual.csv"
PAIRS = 2


@dataclass(frozen=True)
class Asked:
    """A prompt and the picture that is wanted.

    Attributes:
        prompt: ``x1 y1 ... xq``, or frames.
        truth: the true answer.
        group: the function.
    """

    prompt: tuple[Picture, ...]
    truth: Picture
    group: str


@dataclass(frozen=True)
class Judged:
    """How an answer is: all tokens right, share of right tokens, pixel differences of the answer and of the tokenizer alone."""

    exact: float
    tokens: float
    pixel_l1: float
    vq_l1: float


def pair_prompts(names: Sequence[str], per_function: int, pairs: int, **options: Any) -> list[Asked]:
    """Prompts of pairs of a function, ``per_function`` of each."""
    task = Functions(functions=list(names), episodes=per_function * len(names), seed=1, pool_size=4, **options)
    asked = []
    for query in task.queries:
        shown = [picture for example in task.pool(query)[:pairs] for picture in (example.images[0], example.answer)]
        asked.append(Asked((*shown, query.images[0]), query.answer, query.metadata["category"]))  # type: ignore[arg-type]
    return asked


def shuffled_prompts(names: Sequence[str], per_function: int) -> list[Asked]:
    """The same questions, but each example is answered by the function of another, which differs from example to example."""
    task = Functions(functions=list(names), episodes=per_function * len(names), seed=1, pool_size=4)
    functions = {function.name: function for function in BASIC}
    asked = []
    for query in task.queries:
        name = query.metadata["category"]
        rng = generator(1, "shuffled", query.id)
        others = [n for n in names if n != name]
        shown: list[Picture] = []
        for number in range(PAIRS):
            other = others.pop(int(rng.integers(len(others))))
            board = random_boards(generator(1, "shuffled", query.id, number), 1, split="test")[0]
            shown += [as_picture(draw_board(board)), as_picture(draw_board(functions[other](board)))]
        asked.append(Asked((*shown, query.images[0]), query.answer, name))  # type: ignore[arg-type]
    return asked


def frame_prompts(per_function: int, frames: int) -> list[Asked]:
    """Sequences of boards of which ``frames`` are shown."""
    asked = []
    for step in SEQUENCES:
        rng = generator(1, "sequences", step.name)
        for _ in range(per_function):
            board = random_boards(rng, 1, split="test")[0]
            shown = [board]
            while len(shown) <= frames:
                shown.append(step(shown[-1]))
            pictures = [as_picture(draw_board(frame)) for frame in shown]
            asked.append(Asked(tuple(pictures[:-1]), pictures[-1], step.name))
    return asked


def judge(model: Any, asked: Sequence[Asked]) -> list[Judged]:
    """Answer and compare."""
    answers = model.imagine([list(a.prompt) for a in asked], temperature=0, batch_size=64)
    tokenizer = model.processor.tokenizer
    true_pixels = tokenizer.pixels([a.truth for a in asked])
    true_ids = tokenizer.encode(true_pixels)
    ids = torch.stack([found.ids[0, 0] for found in answers])
    drawn, best = tokenizer.decode(ids), tokenizer.decode(true_ids)
    right = (ids == true_ids).double()
    return [
        Judged(*map(float, values))
        for values in zip(
            right.prod(1),
            right.mean(1),
            (drawn - true_pixels).abs().mean((1, 2, 3)),
            (best - true_pixels).abs().mean((1, 2, 3)),
            strict=True,
        )
    ]


def line(
    section: str, figure: str, shown: str, found: Sequence[Judged], target: str = "", met: str = ""
) -> dict[str, Any]:
    """One line of the table."""
    exact = [f.exact for f in found]
    low, high = bootstrap_interval(exact)
    return {
        "section": section,
        "figure": figure,
        "shown": shown,
        "queries": len(found),
        "exact": round(float(np.mean(exact)), 4),
        "low": round(low, 4),
        "high": round(high, 4),
        "tokens": round(float(np.mean([f.tokens for f in found])), 4),
        "pixel_l1": round(float(np.mean([f.pixel_l1 for f in found])), 5),
        "vq_l1": round(float(np.mean([f.vq_l1 for f in found])), 5),
        "target": target,
        "met": met,
    }


def yes(condition: bool) -> str:
    return "yes" if condition else "no"


def measure(model: Any, per_function: int) -> list[dict[str, Any]]:
    """All lines of the table."""
    basic = [function.name for function in BASIC]
    lines = []

    asked = pair_prompts(basic, per_function, PAIRS)
    found = judge(model, asked)
    exact = float(np.mean([f.exact for f in found]))
    lines.append(line("pairs", "25 functions", f"{PAIRS} pairs", found, "exact >= 0.80", yes(exact >= 0.80)))
    ratio = float(np.mean([f.pixel_l1 for f in found]) / np.mean([f.vq_l1 for f in found]))
    lines.append(
        line("pairs", f"pixel L1 / VQ's own = {ratio:.3f}", f"{PAIRS} pairs", found, "<= 1.5", yes(ratio <= 1.5))
    )
    for name in basic:
        own = [f for f, a in zip(found, asked, strict=True) if a.group == name]
        lines.append(line("function", name, f"{PAIRS} pairs", own))
    few = max(1, per_function // 2)
    blind = 0.0
    for pairs in (0, 1, 3, 4):
        found = judge(model, pair_prompts(basic, few, pairs))
        lines.append(line("pairs", "25 functions", f"{pairs} pairs", found))
        blind = blind if pairs else float(np.mean([f.exact for f in found]))
    control = judge(model, shuffled_prompts(basic, few))
    met = yes(float(np.mean([f.exact for f in control])) <= blind + 0.05)
    lines.append(
        line("control", "examples of other functions", f"{PAIRS} pairs", control, "0 pairs + 0.05 at most", met)
    )

    rare = judge(model, pair_prompts(basic, few, PAIRS, held_out=True))
    lines.append(line("held out", "queries with unseen pairs of colour and shape", f"{PAIRS} pairs", rare))
    for pairs in (PAIRS, 4):
        chains = judge(model, pair_prompts([f.name for f in NEW_CHAINS], max(1, few // 2), pairs))
        lines.append(line("held out", "14 chains never seen, of known parts", f"{pairs} pairs", chains))
    for function in NEW:
        new = judge(model, pair_prompts([function.name], few, PAIRS))
        lines.append(line("held out", f"{function.name}, never seen", f"{PAIRS} pairs", new))

    for frames in (2, 3, 4):
        sequences = frame_prompts(few, frames)
        found = judge(model, sequences)
        right = float(np.mean([f.tokens for f in found]))
        target = ("tokens >= 0.90", yes(right >= 0.90)) if frames == 3 else ("", "")
        lines.append(line("next frame", "rotation and motion", f"{frames} frames", found, *target))
        for step in SEQUENCES if frames == 3 else ():
            own = [f for f, a in zip(found, sequences, strict=True) if a.group == step.name]
            lines.append(line("next frame", step.name, f"{frames} frames", own))
    return lines


SHEET = (
    "recolour_yellow",
    "swap_red_blue",
    "rotate_90",
    "flip_horizontal",
    "shift_down",
    "outline",
    "segment",
    "invert",
    "remove_background",
    "enlarge",
    "to_circles",
    "rotate_180+invert",
)
HEADS = ("x1", "y1", "x2", "y2", "query", "imagined", "truth")
EDGE, GAP, LEFT, TOP = 128, 14, 250, 44


def sheet(model: Any, path: Path) -> None:
    """One episode of each function of :data:`SHEET`, the first one; answers that are not exact have a red frame."""
    asked = pair_prompts(SHEET, 1, PAIRS)
    answers = model.imagine([list(a.prompt) for a in asked], temperature=0)
    exact = [found.exact for found in judge(model, asked)]
    width, height = LEFT + len(HEADS) * (EDGE + GAP), TOP + len(asked) * (EDGE + GAP)
    page = Image.new("RGB", (width, height), (236, 236, 232))
    draw = ImageDraw.Draw(page)
    for column, head in enumerate(HEADS):
        draw.text((LEFT + column * (EDGE + GAP), 12), head, fill=(20, 20, 20), font_size=20)
    for row, (a, found) in enumerate(zip(asked, answers, strict=True)):
        y = TOP + row * (EDGE + GAP)
        draw.text((12, y + EDGE // 2 - 12), a.group.replace("+", " +\n"), fill=(20, 20, 20), font_size=20)
        shown = [*(picture.load() for picture in a.prompt), found.images[0][0], a.truth.load()]
        for column, image in enumerate(shown):
            wrong = HEADS[column] == "imagined" and not exact[row]
            framed = ImageOps.expand(
                image.resize((EDGE, EDGE), Image.Resampling.NEAREST), 2, (210, 0, 0) if wrong else (120, 120, 120)
            )
            page.paste(framed, (LEFT + column * (EDGE + GAP) - 2, y - 2))
    path.parent.mkdir(parents=True, exist_ok=True)
    page.quantize(128).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny-visual")
    parser.add_argument("--per-function", type=int, default=24, help="queries of each function")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--picture", type=Path, help="also write a sheet of examples")
    options = parser.parse_args()
    model: Any = kshot.load_model(options.model)
    if options.picture:
        sheet(model, options.picture)
    start = time.process_time()
    lines = measure(model, options.per_function)
    versions = {
        "cpu_seconds": round(time.process_time() - start, 1),
        "kshot": kshot.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "weights": model.describe().get("weights", ""),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*lines[0], *versions])
        writer.writeheader()
        for row in lines:
            writer.writerow(row | versions)
            shown = f"{row['exact']:.3f} [{row['low']:.3f}, {row['high']:.3f}]  tokens {row['tokens']:.3f}"
            print(f"{row['section']:<11}{row['figure']:<46}{row['shown']:<9}{row['queries']:>5}  {shown}  {row['met']}")


if __name__ == "__main__":
    main()
