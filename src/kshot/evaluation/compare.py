"""``kshot compare``: several runs in one table and one picture."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kshot.errors import OptionError
from kshot.evaluation import plots, report
from kshot.evaluation.results import Evaluation, Row
from kshot.evaluation.runs import read_json, write_bytes, write_text

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Comparison:
    """Runs side by side.

    Attributes:
        names: one a run: its folder's name, made unique.
        results: one a run.
        warnings: why figures may not be comparable (other queries, another metric).
    """

    names: tuple[str, ...]
    results: tuple[Evaluation, ...]
    warnings: tuple[str, ...] = ()

    @property
    def cells(self) -> list[tuple[str, int]]:
        """Kinds and shots that occur, in the order of first appearance, shots ascending."""
        kinds = list(dict.fromkeys(row.kind for result in self.results for row in result.rows))
        found = {(row.kind, row.shots) for result in self.results for row in result.rows}
        return sorted(found, key=lambda column: (kinds.index(column[0]), column[1]))

    def cell(self, result: Evaluation, column: tuple[str, int]) -> Row | None:
        """A run's row for a column, if it has one."""
        return next((row for row in result.rows if (row.kind, row.shots) == column), None)

    def table_rows(self) -> tuple[list[str], list[list[str]]]:
        """Head and body of the table as text: a column for each run, under its name and what distinguishes it."""
        facts = ("model", "task", "metric")
        differing = [fact for fact in facts if len({getattr(result, fact) for result in self.results}) > 1]
        body = [[fact, "", *(str(getattr(result, fact)) for result in self.results)] for fact in differing]
        for kind, shots in self.cells:
            label = report.row_label(kind, shots)
            body.append([label, str(shots), *(_figure(self.cell(r, (kind, shots))) for r in self.results)])
        return ["demonstrations", "shots", *self.names], body

    @property
    def title(self) -> str:
        """What all runs have in common."""
        common = [
            values.pop()
            for values in (
                {r.model for r in self.results},
                {r.task for r in self.results},
                {r.metric for r in self.results},
            )
            if len(values) == 1
        ]
        return ", ".join(common) or "runs"

    def markdown(self) -> str:
        """The table as Markdown, with warnings below."""
        head, body = self.table_rows()
        lines = [f"# {self.title}", "", *report.markdown_table(head, body), "", "In brackets: 95 % intervals."]
        return "\n".join([*lines, *(f"\n**Careful:** {warning}." for warning in self.warnings)]) + "\n"

    def csv(self) -> str:
        """All figures, one line for each run, kind and number of shots."""
        lines: list[tuple[Any, ...]] = []
        for name, result in zip(self.names, self.results, strict=True):
            lines += [(name, *report.fields(result, row)) for row in result.rows]
        return report.to_csv([("run", *report.FIELDS)], lines)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write ``comparison.md``, ``comparison.csv`` and ``comparison.png``."""
        place = Path(folder)
        write_text(place / "comparison.md", self.markdown())
        write_text(place / "comparison.csv", self.csv())
        write_bytes(place / "comparison.png", plots.plot(self.results, self.title, self.names))

    def __rich__(self) -> Table:
        from rich.table import Table

        head, body = self.table_rows()
        caption = "".join(f"Careful: {warning}. " for warning in self.warnings).strip() or None
        table = Table(title=self.title, title_justify="left", caption=caption, caption_justify="left")
        for i, column in enumerate(head):
            table.add_column(column, justify="left" if i == 0 else "right")
        previous = ""
        for line in body:
            if previous and line[0] != previous:
                table.add_section()
            previous = line[0]
            table.add_row(*line)
        return table

    def __str__(self) -> str:
        return self.markdown()


def compare(runs: Sequence[str | os.PathLike[str]], *, out: str | os.PathLike[str] | None = None) -> Comparison:
    """Put finished runs side by side.

    Args:
        runs: run folders.
        out: folder for the table (Markdown and csv) and the picture.

    Raises:
        OptionError: no run was given.
        DataError: a folder holds no finished run.
    """
    if isinstance(runs, (str, os.PathLike)):
        runs = [runs]
    folders = [Path(run) for run in runs]
    if not folders:
        raise OptionError("give one or more run folders")
    results = tuple(load_run(folder) for folder in folders)
    comparison = Comparison(_names(folders), results, tuple(_warnings(folders, results)))
    if out is not None:
        comparison.save(out)
    return comparison


def load_run(folder: str | os.PathLike[str]) -> Evaluation:
    """The figures of a finished run.

    Raises:
        DataError: the folder holds none.
    """
    place = Path(folder)
    return Evaluation.from_json(read_json(place / "metrics.json"), place)


def _warnings(folders: Sequence[Path], results: Sequence[Evaluation]) -> list[str]:
    warnings = []
    if len({(result.task, result.metric) for result in results}) > 1:
        warnings.append("the runs are of several tasks or metrics")
    else:
        queries = {str(read_json(folder / "config.json").get("queries")) for folder in folders}
        if len(queries) > 1:
            warnings.append("the runs answered different queries")
    if len({(result.scoring, result.candidates) for result in results}) > 1:
        warnings.append("some answers were generated, others chosen by likelihood, or from other candidates")
    if any(row.skipped for result in results for row in result.rows):
        warnings.append("queries were skipped in some runs")
    return warnings


def _names(folders: Sequence[Path]) -> tuple[str, ...]:
    """The shortest ends of the paths that tell them apart."""
    parts = [folder.resolve().parts for folder in folders]
    for depth in range(1, max(map(len, parts)) + 1):
        names = tuple("/".join(part[-depth:]) for part in parts)
        if len(set(names)) == len(set(parts)):
            return names
    return tuple(str(folder) for folder in folders)


def _figure(row: Row | None) -> str:
    if row is None:
        return ""
    low, high = row.interval
    return f"{report.number(row.value)} [{report.number(low)}, {report.number(high)}]"
