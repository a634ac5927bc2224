"""``kshot compare-methods``: obtain each method from the same support set with the same budget, and measure all of them alike."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kshot.comparison.comparing import Comparing
from kshot.comparison.obtain import wanted_methods
from kshot.comparison.table import MethodComparison
from kshot.data.task import Task, load_task
from kshot.errors import DataError, OptionError, UnknownName
from kshot.evaluation.answering import check_answers
from kshot.evaluation.loading import load_any
from kshot.models.base import PromptStyle
from kshot.models.visual_sentence import VisualSentenceModel
from kshot.models.vlm import VLM


def compare_methods(
    model: str | VLM | VisualSentenceModel,
    task: str | Task,
    *,
    methods: str | Sequence[str] = ("live", "mimic"),
    shots: int = 8,
    samples: int = 200,
    epochs: float | None = None,
    held_out: int | None = None,
    seeds: int = 1,
    seed: int = 0,
    limit: int | None = 500,
    out: str | os.PathLike[str] = "runs/methods",
    transfer: str | Task | None = None,
    with_demonstrations: bool = True,
    rounds: int = 5,
    tokens: int = 16,
    style: PromptStyle = "auto",
    batch_size: int | None = None,
    csv: str | os.PathLike[str] | None = None,
    trainer: dict[str, Any] | None = None,
    options: dict[str, Any] | None = None,
    task_options: Mapping[str, Any] | None = None,
    model_options: Mapping[str, Any] | None = None,
    transfer_options: dict[str, Any] | None = None,
) -> MethodComparison:
    """Compare methods on one model and task: what each gains over the bare model, and what it costs.

    Args:
        model: name ("tiny"), folder or hub id of a model, or a loaded one.
        task: name of a task with a support set that all queries share, or a task.
        methods: names with commas, or "all": everything that is registered, and LoRA.
        shots: demonstrations: in few-shot prompts, and in those that the methods learn from.
        samples: labelled examples of the support set for each method, its demonstrations included, and those by which it makes its
            choices (half of them for estimated methods).
        epochs: passes over them, for methods that are trained. Default: each as it is trained by itself, see kshot distill.
        held_out: those of the samples by which the best epoch of trained methods is chosen. Default: a quarter, at most 100; 0: none,
            the last epoch is kept.
        seeds: number of seeds, from which samples, demonstrations and initial values derive.
        seed: the first of them.
        limit: a random sample of that many queries, the same for all rows.
        out: folder; what it holds of this comparison already is not done again.
        transfer: another task, on which everything is asked without demonstrations, too. Its options: --transfer-options.NAME VALUE.
        with_demonstrations: also measure the methods with demonstrations left in the prompt.
        rounds: rounds in which times are measured, bare model and method in turn; 0: no times.
        tokens: further tokens generated in each.
        style: "plain" (interleaved text), "chat" (the model's chat template) or "auto".
        batch_size: episodes a batch, when answering.
        csv: also write the table to this file.
        trainer: arguments of transformers' TrainingArguments for all methods that are trained: --trainer.learning_rate 1e-3.
        options: options of single methods, of the method itself or of kshot distill: --options.mimic.ce 1.0.
        task_options: the task's own options, e.g. root. On the command line: --root FILE.
        model_options: arguments of load_model, e.g. dtype. On the command line: --dtype bfloat16.
        transfer_options: options of the other task.

    Raises:
        UnknownName, OptionError, DataError, ModelError: all of them :class:`~kshot.errors.KshotError` with a remedy.
    """
    for name, number, least in (
        ("shots", shots, 1), ("samples", samples, 8), ("seeds", seeds, 1), ("seed", seed, 0), ("rounds", rounds, 0),
        ("tokens", tokens, 1),
    ):  # fmt: skip
        if number < least:
            raise OptionError(f"{name}={number}: must be {least} or more")
    if held_out is not None and not 0 <= held_out < samples - shots:
        raise OptionError(f"held_out={held_out}: must leave more than {shots} of {samples} samples to learn from")
    if epochs is not None and not epochs > 0:
        raise OptionError(f"epochs={epochs}: must be more than 0")
    wanted = wanted_methods(methods)
    strangers = sorted(set(options or {}) - set(wanted))
    if strangers:
        raise UnknownName("method in options", strangers[0], wanted)
    the_task = load_task(task, **dict(task_options or {}))
    if not len(the_task.support):
        raise DataError(
            f"the task {the_task.name!r} has no support set that all its queries share: nothing could be learnt from it",
            remedy="take another task, e.g. concept_pair in place of glyphs or digits",
        )
    other = load_task(transfer, **(transfer_options or {})) if transfer is not None else None
    vlm = load_any(model, model_options)
    if not isinstance(vlm, VLM | VisualSentenceModel):
        raise OptionError(f"{type(vlm).__name__} is no model that an adapter can be put into")
    check_answers(vlm, the_task)
    if getattr(vlm.model, "peft_config", None):
        raise OptionError(f"{vlm.name} has an adapter already: compare the methods on the bare model")
    work = Comparing(
        vlm, the_task, other, Path(out), shots, samples, epochs, held_out, range(seed, seed + seeds), limit, with_demonstrations,
        rounds, tokens, style, batch_size, trainer or {}, options or {},
    )  # fmt: skip
    work.start()
    found = work.compare(wanted)
    found.save(out)
    if csv is not None:
        Path(csv).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(Path(out) / "methods.csv", csv)
    return found
