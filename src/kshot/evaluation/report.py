"""Tables of a run, and all its reports in its folder."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kshot.evaluation.cells import DEMONSTRATIONS
from kshot.evaluation.gaps import CHANCE, Gap
from kshot.evaluation.plots import kind_label, plot
from kshot.evaluation.results import INTERVAL, Evaluation, Row
from kshot.evaluation.runs import write_bytes, write_json, write_text

if TYPE_CHECKING:
    from rich.table import Table

COLUMNS = (
    "demonstrations",
    "shots",
    "score",
    "95 % interval",
    "between seeds",
    "queries",
    "skipped",
    "gap",
    "95 % of it",
)


def save(result: Evaluation, folder: Path) -> None:
    """Write all reports into the run folder; ``metrics.json`` last, as a sign that all is there."""
    write_text(folder / "results.md", markdown(result))
    write_text(folder / "results.csv", to_csv([FIELDS], [fields(result, row) for row in result.rows]))
    categories = category_rows(result)
    if categories:
        write_text(folder / "categories.csv", to_csv([_CATEGORY_FIELDS], categories))
    write_bytes(folder / "accuracy.png", plot([result]))
    write_json(folder / "metrics.json", result.to_json())


def row_label(kind: str, shots: int) -> str:
    """How the demonstrations of a row are called."""
    return "none" if kind == DEMONSTRATIONS and not shots else kind_label(kind)


def gap_of(result: Evaluation, row: Row) -> Gap | None:
    """The gap that is shown with a row: of intact demonstrations to chance, of a control to intact demonstrations."""
    against = CHANCE if row.kind == DEMONSTRATIONS else row.kind
    return next((gap for gap in result.gaps if (gap.shots, gap.against) == (row.shots, against)), None)


def cells_of(row: Row, gap: Gap | None = None) -> tuple[str, ...]:
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
        "" if gap is None else number(gap.value),
        "" if gap is None else f"{number(gap.interval[0])} .. {number(gap.interval[1])}",
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
    shown = _shown(result)
    for number_, column in enumerate(shown):
        table.add_column(COLUMNS[column], justify="left" if number_ == 0 else "right")
    previous = None
    for row in result.rows:
        if previous is not None and previous != row.kind:
            table.add_section()
        previous = row.kind
        cells = cells_of(row, gap_of(result, row))
        table.add_row(*(cells[column] for column in shown))
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
    shown = _shown(result, always=7)
    cells = [cells_of(row, gap_of(result, row)) for row in result.rows]
    lines += markdown_table([COLUMNS[c] for c in shown], [[line[c] for c in shown] for line in cells])
    lines += ["", f"Interval: {INTERVAL}."]
    if result.gaps:
        lines += ["", "## Gaps", "", _GAPS, ""]
        lines += markdown_table(("shots", "score", "against", "its score", "gap", "95 % interval"), gap_rows(result))
    further = further_rows(result)
    if further:
        lines += ["", "## Further metrics and means", ""]
        lines += markdown_table(("figure", "demonstrations", "shots", "value", "95 % interval"), further)
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
        columns = [(row.categories(), row.category_intervals) for row in result.rows]
        body = [
            (name, str(counts[name]), *(_with_interval(name, figures, ranges) for figures, ranges in columns))
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


_GAPS = (
    "What intact demonstrations score more than chance, and more than the same demonstrations under a control (paired by query). "
    "A model that learns from the pictures of its context has an interval above zero in every line."
)


def gap_rows(result: Evaluation) -> list[tuple[str, ...]]:
    """All gaps as text: shots, score, against what, its score, gap, interval."""
    lines: list[tuple[str, ...]] = []
    for gap in result.gaps:
        row = result.row(gap.shots)
        other = row.chance if gap.against == CHANCE else result.value(gap.shots, gap.against)
        interval = f"{number(gap.interval[0])} .. {number(gap.interval[1])}"
        lines.append((str(gap.shots), number(row.value), gap.against, _or_blank(other), number(gap.value), interval))
    return lines


def further_rows(result: Evaluation) -> list[tuple[str, ...]]:
    """Further metrics as text: metric, demonstrations, shots, value, interval."""
    return [
        (
            name,
            row_label(row.kind, row.shots),
            str(row.shots),
            number(f["value"]),
            f"{number(f['low'])} .. {number(f['high'])}",
        )
        for name in sorted({name for row in result.rows for name in row.further})
        for row in result.rows
        if (f := row.further.get(name)) is not None
    ]


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
    "chance",
    "gap_to",
    "gap",
    "gap_low",
    "gap_high",
)
_CATEGORY_FIELDS = ("demonstrations", "shots", "category", "value", "queries", "low", "high")


def fields(result: Evaluation, row: Row) -> tuple[Any, ...]:
    """A row's figures, in the order of :data:`FIELDS`."""
    spread, gap = "" if row.spread is None else row.spread, gap_of(result, row)
    towards = "" if gap is None else CHANCE if gap.against == CHANCE else DEMONSTRATIONS
    return (
        result.model, result.task, result.metric, row.kind, row.shots, row.value, *row.interval, spread,
        len(row.seeds), row.queries, row.skipped, "" if row.chance is None else row.chance,
        towards, *(("", "", "") if gap is None else (gap.value, *gap.interval)),
    )  # fmt: skip


def category_rows(result: Evaluation) -> list[tuple[Any, ...]]:
    """Rows of ``categories.csv``."""
    return [
        (row.kind, row.shots, name, value, count, *row.category_intervals.get(name, ("", "")))
        for row in result.rows
        for name, (value, count) in sorted(row.categories().items())
    ]


def _shown(result: Evaluation, always: int = 0) -> list[int]:
    """Columns that say something: no spread without several seeds, no skips where none were skipped, no gap where none is known.

    The first ``always`` columns are shown in any case.
    """
    empty = {4} if all(row.spread is None for row in result.rows) else set()
    empty |= {6} if all(not row.skipped for row in result.rows) else set()
    empty |= {7, 8} if not result.gaps else set()
    return [i for i in range(len(COLUMNS)) if i < always or i not in empty]


def _caption(result: Evaluation) -> str:
    parts = [f"Likelihood scoring over {result.candidates}." if result.candidates else ""]
    parts += [result.note, f"Chance {number(result.chance)}." if result.chance is not None else ""]
    controlled = any(gap.against != CHANCE for gap in result.gaps)
    to_control = "; of a control: from it to intact demonstrations, paired by query" if controlled else ""
    parts += [f"Gap: above chance{to_control}." if result.gaps else ""]
    return " ".join(part for part in parts if part)


def _with_interval(
    name: str, figures: Mapping[str, tuple[float, int]], ranges: Mapping[str, tuple[float, float]]
) -> str:
    """A category's figure, and its interval where it is known."""
    if name not in figures:
        return ""
    text = number(figures[name][0])
    return f"{text} [{number(ranges[name][0])}, {number(ranges[name][1])}]" if name in ranges else text


def _or_blank(value: float | None) -> str:
    return "" if value is None else number(value)
