"""The table of a comparison: rows, csv, Markdown and the picture."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kshot.evaluation import report
from kshot.evaluation.plots import COLOURS
from kshot.evaluation.runs import write_bytes, write_json, write_text

if TYPE_CHECKING:
    from rich.table import Table

FIRST = "first_token_ms"
ZERO, FEW = "zero_shot", "few_shot"
LINE, POINTS, WORD = 0.05, 250, 0.2
"""Height of a line of text in the picture, in units of the score; points a unit; width of a name, as a share of the picture."""
NO = math.nan


@dataclass(frozen=True)
class Figure:
    """A score with its 95 % interval."""

    value: float = NO
    low: float = NO
    high: float = NO

    def __bool__(self) -> bool:
        return not math.isnan(self.value)

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]" if self else ""

    def signed(self) -> str:
        """With the sign of each number, for differences."""
        return f"{self.value:+.3f} [{self.low:+.3f}, {self.high:+.3f}]" if self else ""


@dataclass(frozen=True)
class MethodRow:
    """A method, and what it gains and costs. What was not measured is ``nan``.

    Attributes:
        method: its name, or ``zero_shot``, ``format_only``, ``few_shot``.
        kind: ``baseline``, ``trained`` or ``estimated``.
        shots: demonstrations in the prompt when it answers.
        seeds: how many seeds the figures are means of.
        score: the task's metric on the queries.
        spread: standard deviation of the score between seeds.
        gain: score minus that without demonstrations, paired by query.
        parameters, adapter_bytes: what is stored.
        training_seconds, training_cpu_seconds, training_peak_mb: to obtain it, means and maximum over seeds.
        first_token_ms, first_token_ratio, token_ms, token_ratio: time to the first token and for each further one, and their ratios to
            the bare model on the query alone, measured in alternation.
        peak_mb: most memory while answering.
        with_demonstrations: score where the demonstrations are left in the prompt.
        transfer: score on another task, without demonstrations.
        note: what to know about the row.
    """

    method: str
    kind: str
    shots: int
    seeds: int
    score: Figure
    spread: float = NO
    gain: Figure = field(default_factory=Figure)
    parameters: int = 0
    adapter_bytes: int = 0
    training_seconds: float = NO
    training_cpu_seconds: float = NO
    training_peak_mb: float = NO
    first_token_ms: float = NO
    first_token_ratio: float = NO
    token_ms: float = NO
    token_ratio: float = NO
    peak_mb: float = NO
    with_demonstrations: Figure = field(default_factory=Figure)
    transfer: Figure = field(default_factory=Figure)
    note: str = ""

    def flat(self) -> dict[str, Any]:
        """Columns of the csv; empty where nothing was measured."""
        columns: dict[str, Any] = {}
        for part in fields(self):
            value = getattr(self, part.name)
            if isinstance(value, Figure):
                columns |= {part.name: value.value, f"{part.name}_low": value.low, f"{part.name}_high": value.high}
            else:
                columns[part.name] = value
        return {name: "" if isinstance(v, float) and math.isnan(v) else v for name, v in columns.items()}


@dataclass(frozen=True)
class MethodComparison:
    """What :func:`~kshot.comparison.compare_methods` found.

    Attributes:
        rows: baselines first, then methods in the order asked for.
        facts: what all rows have in common: model, task, metric, support, seeds, budget, versions.
        agreement: the diagnostic, in words; its figures are in ``facts``.
        left_out: methods that the model or the task cannot take, and why.
        folder: where everything was written.
    """

    rows: tuple[MethodRow, ...]
    facts: Mapping[str, Any]
    agreement: str
    left_out: Mapping[str, str]
    folder: Path

    def row(self, method: str) -> MethodRow:
        """The row of a method."""
        return next(row for row in self.rows if row.method == method)

    @property
    def title(self) -> str:
        """One line."""
        f = self.facts
        return f"{f['model']}, {f['task']}: {f['samples']} labelled examples, {f['budget_shots']} shots" + (
            f", {f['epochs']:g} epochs" if f["epochs"] else ""
        )

    def table_rows(self) -> tuple[list[str], list[list[str]]]:
        """Head and body of the table, as text; columns without any entry are left out."""
        columns = {
            "method": lambda r: r.method,
            str(self.facts["metric"]): lambda r: str(r.score),
            "gain over zero-shot": lambda r: r.gain.signed(),
            "sd of seeds": lambda r: _number(r.spread, ".3f"),
            "parameters": lambda r: f"{r.parameters:,}" if r.parameters else "",
            "adapter kB": lambda r: f"{r.adapter_bytes / 1000:,.1f}" if r.adapter_bytes else "",
            "training s": lambda r: _number(r.training_seconds, ",.1f"),
            "first token ms": lambda r: _times(r.first_token_ms, r.first_token_ratio),
            "ms a token": lambda r: _times(r.token_ms, r.token_ratio),
            "peak MB": lambda r: _number(r.peak_mb, ",.0f"),
            "demonstrations left in": lambda r: str(r.with_demonstrations),
            f"on {self.facts['transfer_task'] or 'another task'}": lambda r: str(r.transfer),
            "note": lambda r: r.note,
        }
        body = [[show(row) for show in columns.values()] for row in self.rows]
        kept = [place for place in range(len(columns)) if any(line[place] for line in body)]
        return [list(columns)[place] for place in kept], [[line[place] for place in kept] for line in body]

    def markdown(self) -> str:
        """Table, diagnostic and what to know, as Markdown."""
        head, body = self.table_rows()
        lines = [f"# {self.title}", "", *report.markdown_table(head, body), "", self.agreement, "", NOTES]
        lines += [f"\nLeft out: {name} ({why})." for name, why in self.left_out.items()]
        return "\n".join(lines) + "\n"

    def csv(self) -> str:
        """All figures and facts, one line a row."""
        lines = [row.flat() | {name: _cell(value) for name, value in self.facts.items()} for row in self.rows]
        return report.to_csv([list(lines[0])], [list(line.values()) for line in lines])

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write ``methods.csv``, ``methods.md``, ``methods.json`` and ``methods.png``."""
        place = Path(folder)
        write_text(place / "methods.csv", self.csv())
        write_text(place / "methods.md", self.markdown())
        rows = [{k: _plain(v) for k, v in asdict(row).items()} for row in self.rows]
        write_json(place / "methods.json", {"facts": dict(self.facts), "rows": rows, "left_out": dict(self.left_out)})
        write_bytes(place / "methods.png", picture(self))

    def __rich__(self) -> Table:
        from rich.table import Table

        head, body = self.table_rows()
        caption = " ".join([self.agreement, *(f"Left out: {name} ({why})." for name, why in self.left_out.items())])
        table = Table(title=self.title, title_justify="left", caption=caption, caption_justify="left")
        for number, name in enumerate(head):
            table.add_column(name, justify="left" if not number else "right")
        for row, line in zip(self.rows, body, strict=True):
            if (
                row.kind != "baseline"
                and not table.rows[-1].end_section
                and self.rows[len(table.rows) - 1].kind == "baseline"
            ):
                table.rows[-1].end_section = True
            table.add_row(*line)
        return table

    def __str__(self) -> str:
        return self.markdown()


NOTES = (
    "In brackets: 95 % intervals; gains are paired by query. Times are those of one prompt at a time, no demonstrations reused; "
    "in brackets: ratio to the bare model on the query alone, measured in alternation in one process. Adapters are measured unmerged. "
    "Memory: the process (CPU) or allocated (CUDA), weights included."
)


def picture(found: MethodComparison) -> bytes:
    """Score against what an answer costs, and against what the adapter cost, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    panels = [("milliseconds to the first token", FIRST), ("seconds to obtain it", "training_seconds")]
    panels = [
        panel for panel in panels if sum(not math.isnan(getattr(row, panel[1])) for row in found.rows) > 1
    ] or panels[:1]
    canvas = Canvas(figsize=(5.2 * len(panels) + 0.6, 4.4), dpi=150, layout="constrained")
    FigureCanvasAgg(canvas)
    lowest = min(0.0, *(row.score.low for row in found.rows)) - 0.02
    highest = max(1.04, *(row.score.high for row in found.rows))
    for place, axes in enumerate(canvas.subplots(1, len(panels), sharey=True, squeeze=False)[0]):
        label, attribute = panels[place]
        points = [row for row in found.rows if not math.isnan(getattr(row, attribute))]
        for row in points:
            colour = COLOURS[found.rows.index(row) % len(COLOURS)]
            below, above = (
                max(0.0, gap) for gap in (row.score.value - row.score.low, row.score.high - row.score.value)
            )
            marker = {"baseline": "s", "trained": "o"}.get(row.kind, "^")
            axes.errorbar(
                getattr(row, attribute), row.score.value, yerr=[[below], [above]], fmt=marker, color=colour, capsize=3
            )
        few = next((row for row in found.rows if row.method == FEW), None)
        if few is not None:
            axes.axhline(few.score.value, color="#9a9a9a", linewidth=0.8, linestyle="--", zorder=0)
        axes.set_xlabel(label)
        _scale(axes, [getattr(row, attribute) for row in points] or [1.0])
        axes.set_ylim(lowest, highest)
        _annotate(axes, [(getattr(row, attribute), row.score.value, row.method) for row in points])
        axes.grid(alpha=0.25)
    first = canvas.axes[0]
    first.set_ylabel(str(found.facts["metric"]))
    canvas.suptitle(found.title, fontsize="medium", x=0.01, ha="left")
    image = io.BytesIO()
    canvas.savefig(image, format="png", metadata={"Software": None})
    return image.getvalue()


def _scale(axes: Any, values: Sequence[float]) -> None:
    """Costs from zero, or by powers of ten where they differ that much; plain numbers at the marks."""
    from matplotlib.ticker import LogLocator, NullFormatter

    if max(values) > 10 * min(values) > 0:
        axes.set_xscale("log")
        axes.set_xlim(min(values) / 1.6, max(values) * 2.5)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_xlim(0, 1.3 * max(values))
    axes.xaxis.set_major_formatter("{x:,g}")


def _annotate(axes: Any, points: Sequence[tuple[float, float, str]]) -> None:
    """Names beside points; one that would lie on another is moved down, with a line to its point."""
    taken: list[tuple[float, float]] = []
    for x, y, name in sorted(points, key=lambda point: (-point[1], point[0])):
        across, place = axes.transAxes.inverted().transform(axes.transData.transform((x, y)))[0], y
        for other, height in taken:  # from top to bottom
            if abs(across - other) < WORD and abs(place - height) < LINE:
                place = height - LINE
        taken.append((across, place))
        taken.sort(key=lambda held: -held[1])
        moved = {"arrowprops": {"arrowstyle": "-", "color": "#b0b0b0", "lw": 0.6}} if y - place > LINE / 3 else {}
        at = (8 + 8 * bool(moved), (place - y) * POINTS)
        axes.annotate(name, (x, y), xytext=at, textcoords="offset points", fontsize="small", va="center", **moved)


def _number(value: float, form: str) -> str:
    return "" if math.isnan(value) else format(value, form)


def _times(milliseconds: float, ratio: float) -> str:
    return "" if math.isnan(milliseconds) else f"{milliseconds:,.1f} ({ratio:.2f})"


def _cell(value: Any) -> Any:
    return value if isinstance(value, str | int | float) else " ".join(str(value).split())


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value
