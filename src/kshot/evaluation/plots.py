"""Plots of runs."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kshot.evaluation.cells import DEMONSTRATIONS, FORMAT_ONLY
from kshot.evaluation.gaps import CHANCE
from kshot.evaluation.results import Evaluation

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#1f5fa8", "#c8553d", "#3a8f5c", "#8d5fa8", "#b08a2e", "#4d4d4d", "#2a9db0", "#b0457b")


def kind_label(kind: str) -> str:
    """How a kind of cell is called in tables."""
    return {DEMONSTRATIONS: "intact", FORMAT_ONLY: "none, format told"}.get(kind, kind)


def plot(results: Sequence[Evaluation], title: str | None = None, names: Sequence[str] | None = None) -> bytes:
    """Score against shots as a PNG: a line with its interval for each kind, a level for each baseline without demonstrations."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    gaps = len(results) == 1 and any(gap.against != CHANCE for gap in results[0].gaps)
    figure = Figure(figsize=(6.4, 6.4 if gaps else 4.2), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes, *below = figure.subplots(1 + gaps, 1, height_ratios=(3, 2)[: 1 + gaps], squeeze=False)[:, 0]
    draw(axes, results, names)
    if below:
        draw_gaps(below[0], results[0])
    axes.set_title(title or (results[0].title if len(results) == 1 else "score against demonstrations"), loc="left")
    image = io.BytesIO()
    # Without the version of matplotlib in the file the same figures give the same bytes.
    figure.savefig(image, format="png", metadata={"Software": None})
    return image.getvalue()


def draw(axes: Axes, results: Sequence[Evaluation], names: Sequence[str] | None = None) -> None:
    """Draw results into axes. With several results their lines bear ``names``; equal kinds share a line style."""
    shots = sorted({row.shots for result in results for row in result.rows if row.kind != FORMAT_ONLY})
    place = {number_: i for i, number_ in enumerate(shots)}  # evenly spaced: 0, 1, 4, 32 would be unreadable to scale
    kinds = list(dict.fromkeys(row.kind for result in results for row in result.rows))
    styles = dict(zip(kinds, ("-", "--", ":", "-.") * len(kinds), strict=False))
    for i, result in enumerate(results):
        for j, kind in enumerate(kinds):
            rows = [row for row in result.rows if row.kind == kind]
            if not rows:
                continue
            colour = COLOURS[(j if len(results) == 1 else i) % len(COLOURS)]
            prefix = "" if len(results) == 1 else f"{(names or [r.title for r in results])[i]}, "
            what = {DEMONSTRATIONS: "demonstrations", FORMAT_ONLY: "no demonstrations, format told"}.get(kind, kind)
            label = prefix + what if len(kinds) > 1 or len(results) == 1 else prefix.rstrip(", ")
            style = "-" if len(results) == 1 else styles[kind]
            if kind == FORMAT_ONLY:
                axes.axhline(rows[0].value, color=colour, linewidth=1, linestyle=(0, (5, 2)), label=label)
                continue
            xs, ys = [place[row.shots] for row in rows], [row.value for row in rows]
            axes.plot(xs, ys, marker="o", markersize=4, color=colour, linestyle=style, label=label)
            lows, highs = zip(*(row.interval for row in rows), strict=True)
            axes.fill_between(xs, lows, highs, color=colour, alpha=0.15, linewidth=0)
    chances = {result.chance for result in results}
    if len(chances) == 1 and (chance := chances.pop()) is not None:
        axes.axhline(chance, color="#999999", linewidth=1, linestyle=":", label="chance")
    axes.set_xticks(range(len(shots)), [str(number_) for number_ in shots])
    axes.set_xlabel("demonstrations in the prompt (shots)")
    metrics = sorted({result.metric for result in results})
    axes.set_ylabel(metrics[0] if len(metrics) == 1 else "score")
    values = [v for result in results for row in result.rows for v in (row.value, *row.interval)]
    if values and min(values) >= 0 and max(values) <= 1:
        axes.set_ylim(-0.02, 1.02)
    axes.grid(axis="y", linewidth=0.5, alpha=0.4)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize="small")


def draw_gaps(axes: Axes, result: Evaluation) -> None:
    """Draw what intact demonstrations score more than chance and than each control, by shots, in the colours of :func:`draw`."""
    shots = sorted({row.shots for row in result.rows if row.kind != FORMAT_ONLY})
    kinds = list(dict.fromkeys(row.kind for row in result.rows))
    for against in dict.fromkeys(gap.against for gap in result.gaps):
        gaps = [gap for gap in result.gaps if gap.against == against]
        colour = "#777777" if against == CHANCE else COLOURS[kinds.index(against) % len(COLOURS)]
        xs = [shots.index(gap.shots) for gap in gaps]
        label = f"to {against}" if against == CHANCE else f"to {kind_label(against)}"
        axes.plot(xs, [gap.value for gap in gaps], marker="o", markersize=4, color=colour, label=label)
        lows, highs = zip(*(gap.interval for gap in gaps), strict=True)
        axes.fill_between(xs, lows, highs, color=colour, alpha=0.15, linewidth=0)
    axes.axhline(0, color="#999999", linewidth=1, linestyle=":")
    axes.set_xticks(range(len(shots)), [str(number_) for number_ in shots])
    axes.set_xlabel("demonstrations in the prompt (shots)")
    axes.set_ylabel("gap of intact demonstrations")
    axes.grid(axis="y", linewidth=0.5, alpha=0.4)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize="small")
