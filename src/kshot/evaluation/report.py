"""Tables and the plot of a run."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kshot.evaluation.cells import DEMONSTRATIONS, FORMAT_ONLY
from kshot.evaluation.results import INTERVAL, Evaluation, Row
from kshot.evaluation.runs import write_bytes, write_json, write_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.table import Table

COLUMNS = ("demonstrations", "shots", "score", "95 % interval", "between seeds", "queries", "skipped")
COLOURS = ("#1f5fa8", "#c8553d", "#3a8f5c", "#8d5fa8", "#b08a2e", "#4d4d4d", "#2a9db0", "#b0457b")


def save(result: Evaluation, folder: Path) -> None:
    """Write all reports into the run folder; ``metrics.json`` last, as a sign that all is there."""
    write_text(folder / "results.md", markdown(result))
    write_text(folder / "results.csv", to_csv([FIELDS], [fields(result, row) for row in result.rows]))
    categories = category_rows(result)
    if categories:
        write_text(folder / "categories.csv", to_csv([_CATEGORY_FIELDS], categories))
    write_bytes(folder / "accuracy.png", plot([result]))
    write_json(folder / "metrics.json", result.to_json())


def kind_label(kind: str) -> str:
    """How a kind of cell is called in tables."""
    return {DEMONSTRATIONS: "intact", FORMAT_ONLY: "none, format told"}.get(kind, kind)


def row_label(kind: str, shots: int) -> str:
    """How the demonstrations of a row are called."""
    return "none" if kind == DEMONSTRATIONS and not shots else kind_label(kind)


def cells_of(row: Row) -> tuple[str, ...]:
    """A row as text, in the order of :data:`COLUMNS`."""
    low, high = row.interval
    return (
        row_label(row.kind, row.shots),
        str(row.shots),
        number(row.value),
        f"{number(low)} .. {number(high)}",
        "" if row.spread is None else f"± {number(row.spread)}",
        str(row.queries),
        str(row.skipped),
    )


def number(value: float) -> str:
    """A figure with three decimals if it is a rate, with one if it is larger."""
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def terminal_table(result: Evaluation) -> Table:
    """The result for a terminal."""
    from rich.table import Table

    table = Table(
        title=f"{result.title}: {result.metric}", caption=_caption(result), title_justify="left", caption_justify="left"
    )
    for number_, column in enumerate(_shown(result.rows)):
        table.add_column(COLUMNS[column], justify="left" if number_ == 0 else "right")
    previous = None
    for row in result.rows:
        if previous is not None and previous != row.kind:
            table.add_section()
        previous = row.kind
        table.add_row(*(cells_of(row)[column] for column in _shown(result.rows)))
    return table


def plain_text(result: Evaluation) -> str:
    """The result as text for a log."""
    from rich.console import Console

    console = Console(file=io.StringIO(), width=110, color_system=None)
    console.print(terminal_table(result))
    return str(console.file.getvalue())  # type: ignore[attr-defined]


def markdown(result: Evaluation) -> str:
    """The result as Markdown: figures, categories, skipped queries, and how to read them."""
    lines = [f"# {result.title}", "", f"Metric: {result.metric}. {_caption(result)}", ""]
    lines += markdown_table(COLUMNS, [cells_of(row) for row in result.rows])
    lines += ["", f"Interval: {INTERVAL}."]
    details = sorted({name for row in result.rows for seed in row.seeds for name in seed.details})
    if details:
        lines += ["", "## Further figures (first seed)", ""]
        body = [
            (
                row_label(row.kind, row.shots),
                str(row.shots),
                *(_or_blank(row.seeds[0].details.get(name)) for name in details),
            )
            for row in result.rows
        ]
        lines += markdown_table(("demonstrations", "shots", *details), body)
    names = sorted({name for row in result.rows for name in row.categories()})
    if names:
        lines += ["", "## By category", ""]
        head = ("category", "queries", *(f"{row_label(row.kind, row.shots)}, {row.shots}" for row in result.rows))
        counts = {name: max(row.categories().get(name, (0, 0))[1] for row in result.rows) for name in names}
        columns = [row.categories() for row in result.rows]
        body = [
            (name, str(counts[name]), *(_or_blank(c[name][0] if name in c else None) for c in columns))
            for name in names
        ]
        lines += markdown_table(head, body)
    if result.passed_over:
        reasons = ", ".join(f"{reason.replace('_', ' ')}: {count}" for reason, count in result.passed_over.items())
        lines += ["", f"Examples of the support set that were passed over as demonstrations: {reasons}."]
    skipped = [
        (row_label(row.kind, row.shots), str(row.shots), str(seed.seed), left["id"], left["reason"])
        for row in result.rows
        for seed in row.seeds
        for left in seed.skipped
    ]
    if skipped:
        lines += ["", f"## Skipped ({len(skipped)})", ""]
        lines += markdown_table(("demonstrations", "shots", "seed", "query", "reason"), skipped)
    return "\n".join(lines) + "\n"


def markdown_table(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    return [line(head), "|" + "---|" * len(head), *map(line, body)]


def to_csv(head: Sequence[Sequence[Any]], body: Sequence[Sequence[Any]]) -> str:
    """Rows as CSV text."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([*head, *body])
    return text.getvalue()


FIELDS = (
    "model",
    "task",
    "metric",
    "demonstrations",
    "shots",
    "value",
    "low",
    "high",
    "std_between_seeds",
    "seeds",
    "queries",
    "skipped",
)
_CATEGORY_FIELDS = ("demonstrations", "shots", "category", "value", "queries")


def fields(result: Evaluation, row: Row) -> tuple[Any, ...]:
    """A row's figures, in the order of :data:`FIELDS`."""
    spread = "" if row.spread is None else row.spread
    return (
        result.model, result.task, result.metric, row.kind, row.shots, row.value, *row.interval, spread,
        len(row.seeds), row.queries, row.skipped,
    )  # fmt: skip


def category_rows(result: Evaluation) -> list[tuple[Any, ...]]:
    """Rows of ``categories.csv``."""
    return [
        (row.kind, row.shots, name, value, count)
        for row in result.rows
        for name, (value, count) in sorted(row.categories().items())
    ]


def plot(results: Sequence[Evaluation], title: str | None = None, names: Sequence[str] | None = None) -> bytes:
    """Score against shots as a PNG: a line with its interval for each kind, a level for each baseline without demonstrations."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    draw(axes, results, names)
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


def _shown(rows: Sequence[Row]) -> list[int]:
    """Columns that say something: no spread without several seeds, no skips where none were skipped."""
    empty = {4} if all(row.spread is None for row in rows) else set()
    empty |= {6} if all(not row.skipped for row in rows) else set()
    return [i for i in range(len(COLUMNS)) if i not in empty]


def _caption(result: Evaluation) -> str:
    parts = [f"Likelihood scoring over {result.candidates}." if result.candidates else ""]
    parts += [result.note, f"Chance {number(result.chance)}." if result.chance is not None else ""]
    return " ".join(part for part in parts if part)


def _or_blank(value: float | None) -> str:
    return "" if value is None else number(value)
