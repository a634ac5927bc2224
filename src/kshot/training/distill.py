"""``kshot distill``: put what demonstrations do to a model into an adapter of a few kilobytes.

Teacher and student are the same frozen model. The teacher reads demonstrations and a query, with the adapter switched off; the
student reads the query alone, with the adapter on, and learns to do the same (LIVE, arXiv 2406.13185; MimIC, arXiv 2504.08851).
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kshot.data.retrieval import Order
from kshot.data.task import Task, load_task
from kshot.errors import OptionError
from kshot.evaluation.answering import check_answers
from kshot.evaluation.loading import load_any
from kshot.evaluation.options import numbers_of
from kshot.models.base import PromptStyle
from kshot.models.identity import identity
from kshot.models.visual_sentence import VisualSentenceModel
from kshot.models.vlm import VLM
from kshot.training.alignment import AlignTo
from kshot.training.distill_adapter import config_of, write_adapter
from kshot.training.distill_card import model_card
from kshot.training.distill_items import Demonstrations, DistillItems, Pool
from kshot.training.distill_losses import AlignBy
from kshot.training.distill_plans import chosen_losses, plan_of
from kshot.training.distill_seed import SeedRun
from kshot.training.outcome import finished
from kshot.training.run import lasting
from kshot.training.trainer import writing


def distill(
    out: str,
    *,
    model: str | VLM | VisualSentenceModel,
    task: str | Task,
    method: str = "live",
    shots: int = 8,
    samples: int = 500,
    held_out: int | None = None,
    seeds: int | str | Sequence[int] = 0,
    demonstrations: Demonstrations | None = None,
    pool: Pool = "support",
    mix_demonstrations: float | None = None,
    retriever: str = "random",
    order: Order | None = None,
    style: PromptStyle = "auto",
    teacher: bool | None = None,
    kl: float | None = None,
    align: float | None = None,
    ce: float | None = None,
    temperature: float | None = None,
    align_to: AlignTo | None = None,
    align_by: AlignBy | None = None,
    align_layers: Sequence[int] | None = None,
    teacher_cache: str | None = None,
    teacher_top: int | None = None,
    features: bool | None = None,
    rates: dict[str, float] | None = None,
    trainer: dict[str, Any] | None = None,
    keep: int = 2,
    work: str | None = None,
    task_options: Mapping[str, Any] | None = None,
    model_options: Mapping[str, Any] | None = None,
    retriever_options: Mapping[str, Any] | None = None,
    method_options: Mapping[str, Any] | None = None,
) -> Path:
    """Distil demonstrations into an adapter.

    Args:
        out: the folder to write: an adapter with a model card and the record of its training.
        model: name ("tiny"), folder or hub id of a model, or a loaded one.
        task: name of a task ("kshot tasks" lists them), or a task. Only its support set is used, never its queries.
        method: live, mimic, bias, lora, prompt_tuning, prefix_tuning ...
        shots: demonstrations that the teacher sees.
        samples: training queries, drawn from the task's support set.
        held_out: further examples of the support set, by which the best epoch (and seed) is chosen. Default: 100, or a quarter of a
            small support set; 0: the last epoch is kept.
        seeds: "0" or "0,1,2": of queries, demonstrations and initial values. Of several, the adapter that is best on what is held out
            is written, with the spread.
        demonstrations: "redrawn" for each query in each epoch, as the papers, or "fixed" for each query. Default: redrawn; on small
            models fixed, so that the teacher is asked once a query.
        pool: where demonstrations come from: the "support" set, or only the "samples" (few labelled examples in all).
        mix_demonstrations: share of student prompts that keep the demonstrations, so that the adapter does not spoil few-shot prompts.
            Default: the method's.
        retriever: how demonstrations are chosen.
        order: how they are arranged. Default: the retriever's own.
        style: "plain" (interleaved text), "chat" (the model's chat template) or "auto".
        teacher: false: learn from answers alone; true: from a teacher, also for methods that have none by themselves.
        kl: weight of the divergence from the teacher over the answer. Default: the method's.
        align: weight of the distance of hidden states over query and answer. Default: the method's.
        ce: weight of the cross-entropy of the answer. Default: the method's.
        temperature: at which teacher and student are compared. Default: 1.
        align_to: hidden states are outputs of the "mlp", of "attention" or of the "layer". Default: mlp.
        align_by: "mse" or "cosine". Default: mse.
        align_layers: numbers of the layers that are compared. Default: all.
        teacher_cache: folder that keeps what the teacher says, so that further epochs (of fixed demonstrations) and further runs cost
            a pass without demonstrations.
        teacher_top: compare only that many of the teacher's log-probabilities, and the rest as one. Default: all.
        features: encode each picture once. Default: if the model can.
        rates: learning rates of parameters by a part of their name: --rates.live_alpha 0.01.
        trainer: arguments of transformers' TrainingArguments: --trainer.num_train_epochs 5.
        keep: number of checkpoints to keep.
        work: folder of checkpoints, from which an interrupted run resumes. Default: <out>.work.
        task_options: the task's own options, e.g. root. On the command line: --root FILE.
        model_options: arguments of load_model, e.g. dtype, quantization. On the command line: --dtype bfloat16.
        retriever_options: the retriever's own options. On the command line: --NAME VALUE.
        method_options: the method's own options, e.g. layers. On the command line: --method.layers 0,1.

    Returns:
        The folder written, or found complete: a run that is finished is not repeated.

    Raises:
        UnknownName, OptionError, DataError, ModelError, CannotWrite: all of them :class:`~kshot.errors.KshotError` with a remedy.
    """
    config_of(method)  # before anything is loaded
    wishes: dict[str, Any] = {
        "kl": kl, "align": align, "ce": ce, "temperature": temperature, "align_to": align_to, "align_by": align_by,
    }  # fmt: skip
    chosen_losses(plan_of(method), teacher, **wishes)  # so are wishes that contradict each other
    request: dict[str, Any] = {
        "model": model if isinstance(model, str) else {"name": model.name, "weights": model.describe()["weights"]},
        "task": task if isinstance(task, str) else task.describe(),
        "method": method, "shots": shots, "samples": samples, "held_out": held_out, "seeds": list(numbers_of(seeds, "seeds")),
        "demonstrations": demonstrations, "pool": pool, "mix_demonstrations": mix_demonstrations, "retriever": retriever,
        "order": order, "style": style, "teacher": teacher,
        "losses": {name: value for name, value in wishes.items() if value is not None},
        "align_layers": align_layers, "teacher_top": teacher_top, "rates": dict(rates or {}), "trainer": lasting(dict(trainer or {})),
        "task_options": dict(task_options or {}), "model_options": dict(model_options or {}),
        "retriever_options": dict(retriever_options or {}), "method_options": dict(method_options or {}),
    }  # fmt: skip
    if finished(Path(out), request):
        return Path(out)
    the_task = load_task(task, **dict(task_options or {}))

    def items(seed: int) -> DistillItems:
        return DistillItems(
            the_task, shots=shots, samples=samples, held_out=held_out, demonstrations=demonstrations or "redrawn", pool=pool,
            mix=mix_demonstrations or 0.0, retriever=retriever, retriever_options=retriever_options, order=order, seed=seed,
        )  # fmt: skip

    first = items(request["seeds"][0])  # what is wrong with the task is found before a model is loaded
    vlm = load_any(model, _placed(model, dict(model_options or {})))
    if not isinstance(vlm, VLM | VisualSentenceModel):
        raise OptionError(f"{type(vlm).__name__} is no model that an adapter can be put into")
    check_answers(vlm, the_task)
    plan = plan_of(method, vlm.anatomy.parameters)
    losses = chosen_losses(plan, teacher, **wishes)
    settings = plan.settings(trainer or {})
    used: dict[str, Any] = {
        "losses": vars(losses), "rates": plan.rates | dict(rates or {}), "trainer": lasting(settings),
        "demonstrations": demonstrations or plan.demonstrations,
        "mix_demonstrations": plan.mix if mix_demonstrations is None else mix_demonstrations,
    }  # fmt: skip
    base = identity(vlm.model, vlm.processor) | {"pictures": vlm.encoder.fingerprint}
    base = {name: value for name, value in base.items() if name not in ("device", "versions", "attention")}
    folder = Path(work) if work is not None else Path(f"{str(out).rstrip('/')}.work")
    done: dict[int, dict[str, Any]] = {}
    for seed in request["seeds"]:
        chosen = first if seed == request["seeds"][0] else items(seed)
        chosen.demonstrations, chosen.mix = used["demonstrations"], used["mix_demonstrations"]
        one = SeedRun(
            vlm, chosen, method, dict(method_options or {}), losses, request, used, base, settings, seed, keep
        )
        done[seed] = one.result(folder / f"seed-{seed}", teacher_cache, teacher_top, align_layers, style, features)
    best = max(done, key=lambda seed: (done[seed]["score"], -seed))
    figures = {"seeds": {str(seed): held for seed, held in done.items()}, "chosen": best, "spread": spread(done)}
    if int(os.environ.get("RANK", "0")) == 0:
        with writing(Path(out), "free some space; the same command writes it again without training"):
            adapter = folder / f"seed-{best}" / "adapter"
            record = {"request": request, "used": used, "config": {"model": base, "data": first.describe()}, **figures}
            logs = [folder / f"seed-{seed}" / "log.jsonl" for seed in sorted(done, key=lambda seed: seed != best)]
            write_adapter(adapter, Path(out), model_card(vlm, the_task, request | used, figures), record, logs)
    return Path(out)


def spread(done: Mapping[int, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Mean, standard deviation and range of the seeds' figures."""
    found: dict[str, dict[str, float]] = {}
    for name in ("held_out_loss", "held_out_metric"):
        values = [float(held[name]) for held in done.values() if held.get(name) is not None]
        if values:
            deviation = statistics.stdev(values) if len(values) > 1 else 0.0
            found[name] = {"mean": statistics.fmean(values), "sd": deviation, "min": min(values), "max": max(values)}
    return found


def _placed(model: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Model options with the place of the weights, where several processes train."""
    if isinstance(model, str) and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # The Trainer moves the model, in each process to its own device; but quantized weights stay where they are loaded.
        quantized = bool(options.get("quantization"))
        options.setdefault("device_map", {"": int(os.environ.get("LOCAL_RANK", "0"))} if quantized else "cpu")
    return options
