"""A run in progress: choosing demonstrations, answering step by step, and the figures in the end."""

from __future__ import annotations

import contextlib
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from kshot.data.demonstrations import Choices, choose
from kshot.data.retrieval import Order
from kshot.episode import Episode, Example
from kshot.evaluation.answering import Answering, candidate_set
from kshot.evaluation.cells import FORMAT_ONLY, Cell
from kshot.evaluation.controls import controls as control_registry
from kshot.evaluation.published import lines_of
from kshot.evaluation.results import Evaluation
from kshot.evaluation.runs import Rows, RunFolder, write_text
from kshot.evaluation.scoring import CellScores, gaps_of, score_cell, summarise
from kshot.evaluation.workers import Worker, wait_for
from kshot.metrics.base import metrics, picture_metrics, wants_raw
from kshot.registry import Registry

STEP = 64
"""Queries answered (and noted in the journal) at a time. Fixed, so that batches are the same for any number of processes."""


@dataclass
class Run:
    """A run in progress: see :mod:`kshot.evaluation.runs` for what is written where."""

    folder: RunFolder
    worker: Worker
    answering: Answering
    cells: Sequence[Cell]
    queries: Sequence[Example]
    retriever: str
    order: Order | None
    retriever_options: Mapping[str, Any]
    max_new_tokens: int | None = None

    def __post_init__(self) -> None:
        self.bounds = [(i, min(i + STEP, len(self.queries))) for i in range(0, len(self.queries), STEP)]
        self.passed_over: dict[str, int] = {}
        self._queries = {query.id: query for query in self.queries}
        self._zero_shot = self._without_demonstrations()

    def choose(self) -> None:
        """Choose all demonstrations and write them down, before anything is answered."""
        task = self.answering.task
        for shots, seed in dict.fromkeys((cell.shots, cell.seed) for cell in self.cells if cell.shots):
            path = self.folder.choices(shots, seed)
            if self.worker.leads:
                choices = choose(
                    task, self.retriever, shots, seed,
                    queries=self.queries, order=self.order, out=path, options=self.retriever_options,
                    on_bad_image=self.answering.on_bad_image,
                )  # fmt: skip
                for reason, count in choices.passed_over.items():
                    self.passed_over[reason] = max(count, self.passed_over.get(reason, 0))
            else:
                wait_for(lambda path=path: path.exists() or None, "the choice of demonstrations")  # type: ignore[misc]

    def write_prompts(self) -> None:
        """Write down the first prompt of each cell, if the model shows its prompts."""
        show = getattr(self.answering.model, "prompt", None)
        for cell in self.cells if show is not None and self.worker.leads else ():
            path = self.folder.path / "prompts" / f"{cell.name}.txt"
            if show is not None and not path.exists():
                episode = self.episodes(cell)(self.queries[:1])[0]
                write_text(path, show(episode, self.form(cell).template, self.answering.style).text())

    def episodes(self, cell: Cell) -> Callable[[Sequence[Example]], list[Episode]]:
        """What makes the episodes of a cell's queries."""
        task = self.answering.task
        if not cell.shots:
            asked, form = self.asked(cell), self.form(cell).task
            told = f"{task.template.instruction}{task.template.short_instruction}\n"
            if cell.kind == FORMAT_ONLY:
                make = lambda queries: [Episode((), asked[query.id], instruction=told) for query in queries]  # noqa: E731
            else:
                make = lambda queries: [form.without_demonstrations(asked[query.id]) for query in queries]  # noqa: E731
        else:
            choices = Choices.load(self.folder.choices(cell.shots, cell.seed))
            make = lambda queries: choices.episodes(task, queries)  # noqa: E731
        if cell.kind not in control_registry:
            return make
        change = control_registry.get(cell.kind).change
        return lambda queries: [change(episode, cell.seed) for episode in make(queries)]

    def form(self, cell: Cell) -> Answering:
        """How a cell is asked: without demonstrations, a task may have a form of its own."""
        own = self._zero_shot is not None and not cell.shots and cell.kind != FORMAT_ONLY
        return self._zero_shot[0] if own and self._zero_shot is not None else self.answering

    def asked(self, cell: Cell) -> Mapping[str, Example]:
        """The queries of a cell by id."""
        form = self.form(cell)
        return self._queries if form is self.answering or self._zero_shot is None else self._zero_shot[1]

    def answer(self) -> None:
        """Answer this process's steps of all cells; the leading process also merges what is complete."""
        own = [step for step in range(len(self.bounds)) if self.worker.takes(step)]
        size = {step: last - first for step, (first, last) in enumerate(self.bounds)}
        total = len(self.cells) * sum(size[step] for step in own)
        quiet = not (sys.stderr.isatty() and self.worker.leads)
        with tqdm(total=total, unit="query", disable=quiet) as bar:
            for cell in self.cells:
                bar.set_description(cell.name)
                done = self.folder.steps(
                    cell.name
                )  # read before asking whether it is finished: merging removes the journals
                left = [] if self.folder.finished(cell.name) else [step for step in own if step not in done]
                bar.update(sum(size[step] for step in own if step not in left))
                if left:
                    episodes = self.episodes(cell)
                for step in left:
                    first, last = self.bounds[step]
                    rows = self.form(cell).rows(episodes(self.queries[first:last]), self.folder.pictures(cell.name))
                    self.folder.append(cell.name, step, rows, self.worker.rank)
                    bar.update(size[step])
                if self.worker.leads:
                    self._merge(cell)
        if self.worker.leads:
            for cell in self.cells:
                wait_for(lambda cell=cell: self._merge(cell) or None, f"cell {cell.name!r}", self.progress)  # type: ignore[misc]

    def results(self, folder: Path | None) -> Evaluation:
        """The figures of all cells, from their prediction files."""
        groups: dict[tuple[str, int], list[Cell]] = defaultdict(list)
        for cell in self.cells:
            groups[cell.kind, cell.shots].append(cell)
        scores = {cell: self._score(cell, self.folder.rows(cell.name)) for cell in self.cells}
        some = scores[self.cells[0]]
        likelihood = self.answering.scoring == "likelihood"
        rows = tuple(summarise(cells[0], [scores[cell] for cell in cells]) for cells in groups.values())
        # A form of its own without demonstrations (choosing among all names) has another chance: that of the others is drawn.
        chances = {row.chance for row in rows if row.shots} or {row.chance for row in rows}
        return Evaluation(
            model=self.answering.model.name,
            task=self.answering.task.name,
            metric=some.name,
            rows=rows,
            scoring=self.answering.scoring,
            candidates=candidate_set(self.answering.task, self.queries) if likelihood else "",
            note=some.note,
            chance=chances.pop() if len(chances) == 1 else None,
            passed_over={reason: count for reason, count in sorted(self.passed_over.items()) if count},
            gaps=gaps_of(rows, {key: [scores[cell] for cell in cells] for key, cells in groups.items()}),
            folder=folder,
        )

    def write_published_form(self) -> None:
        """Write each cell's predictions also in the form of the published code, anew each time."""
        for cell in self.cells:
            form, path = self.form(cell), self.folder.predictions(cell.name)
            lines = lines_of(self.folder.rows(cell.name), self.asked(cell), form.template, form.opening)
            write_text(path.with_name(f"{cell.name}_extra_prediction.jsonl"), lines)

    def _without_demonstrations(self) -> tuple[Answering, dict[str, Example]] | None:
        """How queries are asked without demonstrations, and the queries in that form, where the task has one."""
        task = self.answering.task.zero_shot_task
        if task is None or all(cell.shots for cell in self.cells):
            return None
        form = replace(self.answering, task=task, max_new_tokens=self.max_new_tokens or task.max_new_tokens)
        return form, {query.id: query for query in task.queries if query.id in self._queries}

    def _score(self, cell: Cell, rows: Rows) -> CellScores:
        form = self.form(cell)
        drawn = form.task.answers == "picture"
        registry: Registry[Any] = picture_metrics if drawn else metrics
        further = {name: registry.get(name) for name in form.task.further_metrics}
        if form.scoring == "likelihood":  # nothing was generated that they could judge
            further = {name: metric for name, metric in further.items() if not wants_raw(metric)}
        return score_cell(
            cell,
            rows,
            self.asked(cell),
            registry.get(form.task.metric),
            further=further,
            followed=control_registry.get(cell.kind).followed if cell.kind in control_registry else None,
            opening=form.opening,
            pictures=self.folder.pictures(cell.name) if drawn else None,
        )

    def _merge(self, cell: Cell) -> bool:
        """Make the journals into the prediction file if all steps are there; whether the file exists."""
        if self.folder.finished(cell.name):
            return True
        steps = self.folder.steps(cell.name)
        if len(steps) < len(self.bounds):
            return False
        rows = [row for step in sorted(steps) for row in steps[step]]
        scores = self._score(cell, rows)
        values = iter(scores.per_query)
        self.folder.finish(cell.name, [row if "skipped" in row else row | {"score": next(values)} for row in rows])
        return True

    def progress(self) -> object:
        """Changes while other processes are at work."""
        sizes = []
        for path in self.folder.journals():
            with contextlib.suppress(FileNotFoundError):  # the leading process removes what it has merged
                sizes.append((path.name, path.stat().st_size))
        return sizes
