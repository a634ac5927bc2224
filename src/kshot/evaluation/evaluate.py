"""``kshot evaluate``: a model on a task, at several numbers of demonstrations, with controls and confidence intervals."""

from __future__ import annotations

import contextlib
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from kshot.data.retrieval import Order
from kshot.data.task import Task, load_task
from kshot.episode import Example
from kshot.errors import DataError, OptionError
from kshot.evaluation import report
from kshot.evaluation.answering import Answering, OnBadImage, Scoring
from kshot.evaluation.cells import FORMAT_ONLY, plan
from kshot.evaluation.environment import configuration, environment
from kshot.evaluation.loading import AnyModel, load_any
from kshot.evaluation.options import names_of, numbers_of
from kshot.evaluation.results import Evaluation
from kshot.evaluation.running import STEP, Run
from kshot.evaluation.runs import RunFolder, read_json
from kshot.evaluation.workers import Worker, wait_for
from kshot.models.base import PromptStyle
from kshot.picture import ArchivePicture, FilePicture

PredictionForm = Literal["kshot", "lcl"]


def evaluate(
    model: str | AnyModel,
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
    controls: str | Sequence[str] | None = None,
    limit: int | None = None,
    style: PromptStyle = "auto",
    num_beams: int = 1,
    length_penalty: float = 1.0,
    max_new_tokens: int | None = None,
    batch_size: int | None = None,
    on_bad_image: OnBadImage = "error",
    out: str | Path | None = None,
    prediction_form: PredictionForm = "kshot",
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
        controls: "shuffled-labels", "blank-support", "text-only", "swapped-labels", "no-query-image" ...; "link" is the first four,
            "none" is none. Default: the task's own (link-context tasks have "link").
        limit: a random sample of that many queries, the same for every model and setting.
        style: "plain" (interleaved text), "chat" (the model's chat template) or "auto".
        num_beams: 1 is greedy.
        length_penalty: for beams.
        max_new_tokens: room for an answer. Default: the task's own.
        batch_size: episodes a batch. Default: as many as fit.
        on_bad_image: "error", or "skip": queries with an image that cannot be decoded are left out, counted and listed.
        out: run folder. If it holds this run, unfinished, the run is carried on.
        prediction_form: "lcl" writes, beside the predictions, those of each cell as the code of Link-Context Learning does:
            CELL_extra_prediction.jsonl with {"pred": ..., "target": ...} a line.
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
        ("prediction_form", prediction_form, get_args(PredictionForm)),
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
        names_of(the_task.controls if controls is None else controls, "control"),
    )
    if any(cell.kind == FORMAT_ONLY for cell in cells) and not the_task.template.short_instruction:
        raise OptionError(f"the baseline 'format_only' needs a short instruction; task {the_task.name!r} has none")
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
        run = Run(folder, worker, answering, cells, queries, retriever, order, retriever_options or {}, max_new_tokens)
        run.choose()
        run.write_prompts()
        run.answer()
        if not worker.leads:
            figures = folder.path / "metrics.json"
            data = wait_for(lambda: read_json(figures) if figures.exists() else None, "the results", run.progress)
            return Evaluation.from_json(data, folder.path)
        result = run.results(folder.path if out is not None else None)
        if prediction_form == "lcl":
            run.write_published_form()
        if out is not None:
            report.save(result, folder.path)
        return result


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
