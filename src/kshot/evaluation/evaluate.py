"""``kshot evaluate``: a model on a task, at several numbers of demonstrations, with controls and confidence intervals."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
from tqdm import tqdm

from kshot.data.demonstrations import Choices, choose
from kshot.data.retrieval import Order
from kshot.data.task import Task, load_task
from kshot.episode import Episode, Example
from kshot.errors import DataError, OptionError
from kshot.evaluation import report
from kshot.evaluation.answering import Answering, OnBadImage, Scoring, candidate_set
from kshot.evaluation.cells import FORMAT_ONLY, Cell, plan
from kshot.evaluation.controls import controls as control_registry
from kshot.evaluation.environment import configuration, environment
from kshot.evaluation.loading import load_any
from kshot.evaluation.options import names_of, numbers_of
from kshot.evaluation.results import CellScores, Evaluation, score_cell, summarise
from kshot.evaluation.runs import Rows, RunFolder, read_json, write_text
from kshot.evaluation.workers import Worker, wait_for
from kshot.metrics.base import Metric, metrics
from kshot.models.base import Model, PromptStyle
from kshot.picture import ArchivePicture, FilePicture

STEP = 64
"""Queries answered (and noted in the journal) at a time. Fixed, so that batches are the same for any number of processes."""


def evaluate(
    model: str | Model,
    task: str | Task,
    *,
    shots: int | str | Sequence[int] | None = None,
    shots_per_class: int | str | Sequence[int] | None = None,
    retriever: str | None = None,
    order: Order | None = None,
    seeds: int = 1,
    seed: int = 0,
    scoring: Scoring = "generate",
    normalize: bool = False,
    baselines: str | Sequence[str] = (),
    controls: str | Sequence[str] = (),
    limit: int | None = None,
    style: PromptStyle = "auto",
    num_beams: int = 1,
    length_penalty: float = 1.0,
    max_new_tokens: int | None = None,
    batch_size: int | None = None,
    on_bad_image: OnBadImage = "error",
    out: str | Path | None = None,
    task_options: Mapping[str, Any] | None = None,
    model_options: Mapping[str, Any] | None = None,
    retriever_options: Mapping[str, Any] | None = None,
) -> Evaluation:
    """Evaluate a model on a task with k demonstrations in the prompt.

    Results do not depend on the number of processes (``torchrun --nproc-per-node N``; they need ``out``), nor on whether the run was
    stopped and carried on.

    Args:
        model: name ("tiny"), folder or hub id of a model, or a loaded model.
        task: name of a task ("kshot tasks" lists them), or a task.
        shots: numbers of demonstrations in total: 4, "0,1,4,8" or a list. Default: the task's own.
        shots_per_class: the same, counted per class, for n-way tasks; a task of 5 ways has 5 shots at 1 per class.
        retriever: how demonstrations are chosen. Default: the task's own.
        order: how they are arranged: "given", "nearest_last", "nearest_first", "shuffled". Default: the retriever's own.
        seeds: number of seeds, from which the choice of demonstrations derives.
        seed: the first of them.
        scoring: "generate" (greedy or beams, cut at the task's stop strings) or "likelihood" (the most probable of the task's
            candidates, which are all its labels, or else the choices that the query prints).
        normalize: for likelihood: mean log-probability per token instead of the sum.
        baselines: "zero_shot" (no demonstrations) and "format_only" (none, but a sentence that tells the answer's form).
        controls: "shuffled-labels", "blank-images", "no-query-image".
        limit: a random sample of that many queries, the same for every model and setting.
        style: "plain" (interleaved text), "chat" (the model's chat template) or "auto".
        num_beams: 1 is greedy.
        length_penalty: for beams.
        max_new_tokens: room for an answer. Default: the task's own.
        batch_size: episodes a batch. Default: as many as fit.
        on_bad_image: "error", or "skip": queries with an image that cannot be decoded are left out, counted and listed.
        out: run folder. If it holds this run, unfinished, the run is carried on.
        task_options: the task's own options, e.g. root. On the command line: --root FILE.
        model_options: arguments of load_model, e.g. dtype. On the command line: --dtype bfloat16.
        retriever_options: the retriever's own options. On the command line: --NAME VALUE.

    Raises:
        UnknownName, OptionError, DataError, ModelError: all of them :class:`~kshot.errors.KshotError` with a remedy.
    """
    worker = Worker.from_environment()
    if worker.world > 1 and out is None:
        raise OptionError("several processes share their results through the run folder: give one (--out FOLDER)")
    the_task = load_task(task, **dict(task_options or {}))
    for name, value, known in (
        ("scoring", scoring, get_args(Scoring)),
        ("style", style, get_args(PromptStyle)),
        ("on_bad_image", on_bad_image, get_args(OnBadImage)),
    ):
        if value not in known:
            raise OptionError(f"{name}={value!r}: must be one of {', '.join(known)}")
    for name, number, least in (
        ("seed", seed, 0),
        ("seeds", seeds, 1),
        ("limit", limit, 1),
        ("num_beams", num_beams, 1),
        ("max_new_tokens", max_new_tokens, 1),
        ("batch_size", batch_size, 1),
    ):
        if number is not None and number < least:
            raise OptionError(f"{name}={number}: must be {least} or more")
    cells = plan(
        _total_shots(the_task, shots, shots_per_class),
        range(seed, seed + seeds),
        names_of(baselines, "baseline"),
        names_of(controls, "control"),
    )
    if any(cell.kind == FORMAT_ONLY for cell in cells) and not the_task.template.short_instruction:
        raise OptionError(f"the baseline 'format_only' needs a short instruction; task {the_task.name!r} has none")
    metric = metrics.get(the_task.metric)
    retriever = retriever or the_task.retriever
    queries = _sample(the_task.queries, limit)
    if not queries:
        raise DataError(f"task {the_task.name!r} has no queries")
    answering = Answering(
        load_any(model, model_options),
        the_task,
        scoring,
        normalize,
        style,
        num_beams,
        length_penalty,
        max_new_tokens or the_task.max_new_tokens,
        batch_size,
        on_bad_image,
    )
    config = configuration(
        answering, cells, {"name": retriever, "order": order} | dict(retriever_options or {}), queries, STEP
    )

    with _folder(out) as folder:
        if worker.leads:
            folder.start(config, environment(answering.model))
        else:
            wait_for(lambda: (folder.path / "config.json").exists() or None, "the first process to begin")
            folder.check(config)
        run = Run(folder, worker, answering, cells, queries, retriever, order, retriever_options or {}, metric)
        run.choose()
        run.write_prompts()
        run.answer()
        if not worker.leads:
            figures = folder.path / "metrics.json"
            data = wait_for(lambda: read_json(figures) if figures.exists() else None, "the results", run.progress)
            return Evaluation.from_json(data, folder.path)
        result = run.results(folder.path if out is not None else None)
        if out is not None:
            report.save(result, folder.path)
        return result


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
    metric: Metric

    def __post_init__(self) -> None:
        self.bounds = [(i, min(i + STEP, len(self.queries))) for i in range(0, len(self.queries), STEP)]
        self.passed_over: dict[str, int] = {}
        self._queries = {query.id: query for query in self.queries}

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
                write_text(path, show(episode, self.answering.template, self.answering.style).text())

    def episodes(self, cell: Cell) -> Callable[[Sequence[Example]], list[Episode]]:
        """What makes the episodes of a cell's queries."""
        task = self.answering.task
        if not cell.shots:
            told = None
            if cell.kind == FORMAT_ONLY:
                told = f"{task.template.instruction}{task.template.short_instruction}\n"
            make = lambda queries: [Episode((), query, instruction=told) for query in queries]  # noqa: E731
        else:
            choices = Choices.load(self.folder.choices(cell.shots, cell.seed))
            make = lambda queries: choices.episodes(task, queries)  # noqa: E731
        if cell.kind not in control_registry:
            return make
        change = control_registry.get(cell.kind).change
        return lambda queries: [change(episode, cell.seed) for episode in make(queries)]

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
                    rows = self.answering.rows(episodes(self.queries[first:last]))
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
        chances = {score.result.details.get("chance") for score in scores.values()}
        return Evaluation(
            model=self.answering.model.name,
            task=self.answering.task.name,
            metric=some.name,
            rows=tuple(summarise(cells[0], [scores[cell] for cell in cells]) for cells in groups.values()),
            scoring=self.answering.scoring,
            candidates=candidate_set(self.answering.task, self.queries) if likelihood else "",
            note=some.note,
            chance=chances.pop() if len(chances) == 1 else None,
            passed_over={reason: count for reason, count in sorted(self.passed_over.items()) if count},
            folder=folder,
        )

    def _score(self, cell: Cell, rows: Rows) -> CellScores:
        return score_cell(cell, rows, self._queries, self.metric)

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


def _total_shots(
    task: Task, shots: int | str | Sequence[int] | None, per_class: int | str | Sequence[int] | None
) -> tuple[int, ...]:
    if per_class is None:
        return numbers_of(task.shots if shots is None else shots, "shots")
    if shots is not None:
        raise OptionError("give shots (in total) or shots_per_class, not both")
    ways = getattr(task, "ways", None) or len(task.labels)
    if not ways:
        raise OptionError(f"shots_per_class: task {task.name!r} has no closed set of classes; give shots")
    return tuple(number * ways for number in numbers_of(per_class, "shots_per_class"))


def _sample(queries: Sequence[Example], limit: int | None) -> list[Example]:
    """A random sample in the task's order. Questions about the same images stay together, as paired benchmarks need it."""
    if limit is None or limit >= len(queries):
        return list(queries)
    groups: dict[object, list[int]] = defaultdict(list)
    for i, query in enumerate(queries):
        named = next((query.metadata[key] for key in ("pair", "image_id") if key in query.metadata), None)
        files = tuple(p.name for p in query.images if isinstance(p, (FilePicture, ArchivePicture)))
        groups[(query.metadata.get("category"), named) if named is not None else files or i].append(i)
    members = list(groups.values())
    chosen: list[int] = []
    for group in np.random.default_rng(0).permutation(len(members)):
        chosen += members[group]
        if len(chosen) >= limit:
            break
    return [queries[i] for i in sorted(chosen[:limit])]


@contextlib.contextmanager
def _folder(out: str | Path | None) -> Iterator[RunFolder]:
    """The run folder, or one that is removed afterwards."""
    if out is not None:
        yield RunFolder(out)
    else:
        with tempfile.TemporaryDirectory(prefix="kshot-") as path:
            yield RunFolder(path)
