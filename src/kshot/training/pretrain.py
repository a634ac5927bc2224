"""``kshot pretrain``: a model of visual sentences from token stores, from nothing or from a trained one."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kshot.errors import OptionError
from kshot.models.rope_table import RopeTable
from kshot.models.visual_presets import special_ids
from kshot.training.outcome import export, finished
from kshot.training.pretrain_start import Start, open_start, with_lora
from kshot.training.rows import RowObjective
from kshot.training.run import lasting, run
from kshot.training.token_schedule import TokenSchedule
from kshot.training.trainer import writing
from kshot.visual.loader import Loss, Packing, TokenRows
from kshot.visual.mixture import Shares

WARM_UP = 8_000 / 288_000
"""Share of the schedule that upstream warms up in."""

OURS = {
    "max_steps": "use tokens",
    "num_train_epochs": "use tokens",
    "learning_rate": "use learning_rate",
    "warmup_steps": "use warmup_tokens",
    "warmup_ratio": "use warmup_tokens",
    "lr_scheduler_type": "use warmup_tokens, decay_tokens and min_rate",
    "lr_scheduler_kwargs": "use warmup_tokens, decay_tokens and min_rate",
    "gradient_accumulation_steps": "use batch, and per_device_train_batch_size for how many rows fit at a time",
    "weight_decay": "use weight_decay",
    "max_grad_norm": "use clip",
}
"""Arguments of the Trainer that follow from options of the command."""


def pretrain(
    store: str,
    out: str,
    *,
    preset: str | None = None,
    model: str | None = None,
    tokenizer: str | None = None,
    weights: str | None = None,
    shares: Shares = "sentences",
    length: int | None = None,
    packing: Packing = "isolated",
    loss: Loss = "all",
    bos: bool = False,
    eos: bool = False,
    tokens: float | None = None,
    batch: int = 8,
    learning_rate: float = 1.5e-4,
    min_rate: float | None = None,
    warmup_tokens: float | None = None,
    decay_tokens: float | None = None,
    weight_decay: float = 0.1,
    decay: Literal["matrices", "all"] = "matrices",
    clip: float = 1.0,
    method: Literal["full", "lora"] = "full",
    lora: dict[str, Any] | None = None,
    rope_table_dtype: RopeTable | None = None,
    seed: int = 0,
    trainer: dict[str, Any] | None = None,
    keep: int = 2,
    work: str | None = None,
) -> Path:
    """Train a model of visual sentences on token stores; a run that was interrupted goes on where it was.

    Args:
        store: a folder that ``kshot tokenize`` has written, or several with commas.
        out: the folder to write: a model, or with ``method: lora`` an adapter.
        preset: the model's size (``tiny``, ``debug``, ``100m`` ... ``30b``), with random weights.
        model: in place of a preset, a folder with a trained model to go on from.
        tokenizer: folder of the visual tokenizer that made the stores; it is saved beside the weights, so that ``load_model`` needs
            nothing else. Default: the model's.
        weights: each store's share, with commas. Default: by size, so that an epoch holds every sentence once.
        shares: what the weights are shares of: ``sentences`` or ``tokens``.
        length: tokens a row. Default: the model's context.
        packing: ``isolated`` (sentences do not see each other) or ``stream`` (upstream's: one behind the other, cut every row).
        loss: grade ``all`` tokens, or those of ``answers`` (pictures in the role y).
        bos: begin each sentence with the id of that (the first behind the codes).
        eos: end each sentence with the id of that (the second).
        tokens: tokens to train on, without padding. Default: one epoch.
        batch: rows of an optimiser step, on all processes together.
        learning_rate: at the end of the warm-up.
        min_rate: at the end of the schedule. Default: a fifth of the learning rate, as upstream.
        warmup_tokens: of the warm-up, from a rate of 0. Default: 1/36 of the schedule, as upstream.
        decay_tokens: where the schedule ends, counted from the beginning. Default: where training ends.
        weight_decay: of AdamW (with betas 0.9 and 0.95, unless ``trainer`` says others).
        decay: what decays: ``matrices`` (all but norms and the embedding), or ``all``, as upstream.
        clip: largest norm of the gradient.
        method: ``full`` or ``lora``.
        lora: arguments of PEFT's LoraConfig; default: rank 16, scale 32, on all linear layers of the blocks.
        rope_table_dtype: the table of rotary angles, float32 or bfloat16. Default: the model's, or float32.
        seed: everything random derives from it.
        trainer: arguments of transformers' TrainingArguments (``--trainer.bf16 true``, ``--trainer.per_device_train_batch_size 4``,
            ``--trainer.fsdp ...``, ``--trainer.parallelism_config.tp_size 2``).
        keep: number of checkpoints to keep.
        work: folder of checkpoints (default: ``<out>.work``).

    Returns:
        The folder written, or found complete: a run that is finished is not repeated.

    Raises:
        OptionError: wrong or contradictory options; ``out`` exists and is something else than the result of this very run.
        ModelError: the model or the tokenizer cannot be used, or the stores hold tokens of another tokenizer.
        DataError: a store that cannot be read, or stores of different tokenizers.
        ContextTooLong: a sentence that is longer than a row.
        CannotWrite: ``out``, or a checkpoint.
    """
    trainer = dict(trainer or {})
    for name in trainer:
        if name in OURS:
            raise OptionError(f"trainer.{name} cannot be set: {OURS[name]}")
    _check(batch, keep, clip, weight_decay, tokens, trainer)
    request = {
        "store": store, "preset": preset, "model": model, "weights": weights, "shares": shares, "length": length,
        "packing": packing, "loss": loss, "bos": bos, "eos": eos, "tokens": tokens, "batch": batch, "learning_rate": learning_rate,
        "min_rate": min_rate, "warmup_tokens": warmup_tokens, "decay_tokens": decay_tokens, "weight_decay": weight_decay,
        "decay": decay, "clip": clip, "method": method, "lora": lora or {}, "rope_table_dtype": rope_table_dtype, "seed": seed,
        "tokenizer": tokenizer, "trainer": lasting(trainer),
    }  # fmt: skip
    if finished(Path(out), request):
        return Path(out)
    if method not in ("full", "lora") or decay not in ("matrices", "all"):
        raise OptionError(f"method={method!r}, decay={decay!r}: must be full or lora, and matrices or all")
    if lora and method != "lora":
        raise OptionError("lora: options of LoRA are given, but method is not lora")
    if method == "lora" and rope_table_dtype is not None:
        raise OptionError(
            "rope_table_dtype: an adapter goes with a model as it is; kshot convert lvm writes one with the other table"
        )
    stores = [folder for folder in store.split(",") if folder]
    start = open_start(stores, preset, model, tokenizer, length, rope_table_dtype, seed)
    ids = special_ids(start.codes)
    rows = TokenRows(
        stores,
        _numbers(weights),
        start.length,
        seed,
        packing,
        bos=ids["bos_token_id"] if bos else None,
        eos=ids["eos_token_id"] if eos else None,
        loss=loss,
        shares=shares,
    )
    plan = _plan(rows, tokens, batch, learning_rate, min_rate, warmup_tokens, decay_tokens)
    trained = (
        start.model if method == "full" else with_lora(start.model, lora or {}, trainer, seed, model or str(preset))
    )
    objective = RowObjective(trained, rows, plan.steps * batch, plan.schedule, decay_all=decay == "all")
    own = {
        "per_device_train_batch_size": min(batch, 8),
        "adam_beta1": 0.9,
        "adam_beta2": 0.95,
    } | trainer
    own |= _division(batch, own) | {
        "num_train_epochs": 1, "learning_rate": learning_rate, "weight_decay": weight_decay, "max_grad_norm": clip,
    }  # fmt: skip
    config = {
        "model": start.identity,
        "data": rows.describe(),
        "options": {
            name: value for name, value in request.items() if name not in ("store", "model", "tokenizer", "trainer")
        },
        "steps": plan.steps,
    }
    _say(plan, rows, batch, start)
    folder = Path(work) if work is not None else Path(f"{str(out).rstrip('/')}.work")
    made = run(objective, folder, config=config, trainer=own, seed=seed, keep=keep)
    state = made.full_state()
    if made.args.should_save:
        with writing(Path(out), "free some space; the same command writes it again without training"):
            export(trained, start.processor if method == "full" else None, Path(out), folder, request, state)
    made.accelerator.wait_for_everyone()
    return Path(out)


def _check(
    batch: int, keep: int, clip: float, weight_decay: float, tokens: float | None, trainer: Mapping[str, Any]
) -> None:
    """Refuse numbers that cannot be meant, before anything is read.

    Raises:
        OptionError: one of them; names it.
    """
    fits = trainer.get("per_device_train_batch_size")
    counts = {"batch": batch, "keep": keep, "trainer.per_device_train_batch_size": fits}
    for name, count in counts.items():
        if isinstance(count, int) and count < 1:
            raise OptionError(f"{name}={count}: must be 1 or more")
    if not 0 < clip < math.inf:
        raise OptionError(f"clip={clip:g}: must be more than 0, the largest norm of the gradient")
    if not 0 <= weight_decay < math.inf:
        raise OptionError(f"weight_decay={weight_decay:g}: must be 0 or more")
    if tokens is not None and not 0 < tokens < math.inf:
        raise OptionError(f"tokens={tokens:g}: must be more than 0")


@dataclass(frozen=True)
class Plan:
    """How long a run is: optimiser steps, and the learning rate in each."""

    steps: int
    schedule: TokenSchedule


def _plan(
    rows: TokenRows,
    tokens: float | None,
    batch: int,
    peak: float,
    floor: float | None,
    warmup: float | None,
    end: float | None,
) -> Plan:
    """Steps and schedule from numbers of tokens.

    Raises:
        OptionError: one of them cannot be.
    """
    if batch < 1:
        raise OptionError(f"batch={batch}: a step has at least one row")
    per_step = batch * rows.length * (1 - rows.padding)
    total = float(rows.tokens_per_epoch) if tokens is None else float(tokens)
    if not total > 0:
        raise OptionError(f"tokens={total:g}: must be more than 0")
    end = total if end is None else float(end)
    warm = end * WARM_UP if warmup is None else float(warmup)
    schedule = TokenSchedule(per_step, peak, warm, end, peak / 5 if floor is None else floor)
    return Plan(math.ceil(total / per_step - 1e-9), schedule)


def _division(batch: int, trainer: Mapping[str, Any]) -> dict[str, int]:
    """How the rows of a step are divided into processes and passes.

    Raises:
        OptionError: they cannot be.
    """
    mesh = trainer.get("parallelism_config") or {}
    sizes = (
        [int(mesh.get(name) or 1) for name in ("tp_size", "cp_size", "sp_size")] if isinstance(mesh, Mapping) else []
    )
    copies = int(os.environ.get("WORLD_SIZE", 1)) // math.prod(sizes) or 1
    if batch % copies:
        raise OptionError(f"batch={batch}: must be a multiple of the {copies} processes that share the rows")
    share, most = batch // copies, int(trainer["per_device_train_batch_size"])
    micro = next(size for size in range(min(share, max(1, most)), 0, -1) if share % size == 0)
    return {"per_device_train_batch_size": micro, "gradient_accumulation_steps": share // micro}


def _numbers(weights: str | None) -> list[float] | None:
    if weights is None:
        return None
    try:
        return [float(part) for part in str(weights).split(",")]
    except ValueError:
        raise OptionError(f"weights={weights!r}: must be numbers with commas, one a store") from None


def _say(plan: Plan, rows: TokenRows, batch: int, start: Start) -> None:
    if os.environ.get("RANK", "0") != "0":
        return
    schedule = plan.schedule
    padding = f", {rows.padding:.1%} of them padding" if rows.padding else ""
    seen = schedule.tokens(plan.steps)
    lines = [
        f"{plan.steps:,} steps of {batch} rows of {rows.length:,} tokens{padding}: {seen:,.0f} tokens; an epoch has "
        f"{rows.tokens_per_epoch:,}",
        f"learning rate: 0 to {schedule.peak:g} in {schedule.warmup:,.0f} tokens, then a cosine to {schedule.floor:g} at "
        f"{schedule.end:,.0f}; {schedule.rate(seen):.3g} when training ends",
    ]
    if start.processor is None:
        lines.append(
            "no tokenizer is given: kshot loads the model only with one beside its weights (--tokenizer FOLDER)"
        )
    print("\n".join(lines), file=sys.stderr, flush=True)
