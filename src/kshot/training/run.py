"""One run of the Trainer: its arguments, its record, its checkpoints."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate.parallelism_config import ParallelismConfig
from accelerate.utils import DistributedType
from torch import nn
from transformers import TrainerCallback, TrainingArguments

from kshot.errors import OptionError, UnknownName
from kshot.training.objective import Objective
from kshot.training.trainer import KshotTrainer, complete_checkpoints, resume_point, write_log, writing
from kshot.whole_file import write_text

HARMLESS = (
    *("logging_steps", "logging_strategy", "logging_first_step", "log_level", "report_to", "run_name", "disable_tqdm"),
    *(
        "save_steps",
        "save_strategy",
        "dataloader_num_workers",
        "dataloader_pin_memory",
        "dataloader_persistent_workers",
    ),
    "dataloader_prefetch_factor",
)
"""Arguments of the Trainer that a resumed run may change: they do not change its result."""

OURS = {
    "output_dir": "use out",
    "remove_unused_columns": "batches are made for the model",
    "seed": "use seed",
    "data_seed": "use seed",
    "save_total_limit": "use keep",
    "resume_from_checkpoint": "a run resumes by itself",
    "save_only_model": "a run could not go on from such checkpoints",
    "ignore_data_skip": "a run that goes on repeats no items",
    "label_names": "labels are known by construction",
    "train_sampling_strategy": "items are ordered by (seed, epoch)",
    "load_best_model_at_end": "compare checkpoints with kshot evaluate",
}
"""Arguments that are set here, and what to do instead."""

ALIASES = {
    "gradient_checkpointing": "activation_checkpointing",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
}
"""Names that all know, for which transformers has new ones."""


def training_arguments(folder: Path, trainer: Mapping[str, Any], seed: int) -> TrainingArguments:
    """TrainingArguments from a recipe's ``trainer`` entry.

    Raises:
        UnknownName: no such argument.
        OptionError: an argument that is not the user's to set, or a value that TrainingArguments refuses.
    """
    known = {field.name: str(field.type) for field in dataclasses.fields(TrainingArguments)}
    for name in trainer:
        if name in OURS:
            raise OptionError(f"trainer.{name} cannot be set: {OURS[name]}")
        if name not in known:
            raise UnknownName("argument of the trainer", name, set(known) - set(OURS))
    if trainer.get("deepspeed") and importlib.util.find_spec("deepspeed") is None:
        raise OptionError("trainer.deepspeed: the package deepspeed is not installed (pip install deepspeed)")
    defaults: dict[str, Any] = {
        "report_to": "none",
        "logging_steps": 10,
        "save_steps": 500,
        "use_cpu": not torch.accelerator.is_available(),
        "dataloader_pin_memory": torch.accelerator.is_available(),
        "disable_tqdm": not sys.stderr.isatty(),
        "ddp_find_unused_parameters": True,  # last layers of vision towers are not used; a batch may have no picture
        "weight_decay": 0.0,
    }
    own = {"output_dir": str(folder), "remove_unused_columns": False, "seed": seed, "save_total_limit": None}
    trainer = {ALIASES.get(name, name): _typed(name, value, known[name]) for name, value in trainer.items()}
    try:
        if isinstance(mesh := trainer.get("parallelism_config"), Mapping):  # as a recipe writes it
            trainer["parallelism_config"] = ParallelismConfig(**mesh)
        return TrainingArguments(**(defaults | dict(trainer) | own))
    except (ValueError, TypeError, ImportError, OSError) as error:
        raise OptionError(f"trainer: {_first_line(error)}") from error


def _typed(name: str, value: Any, declared: str) -> Any:
    """A number as a number: YAML takes 1e-4 for a text. (TrainingArguments checks hardly any types itself.)

    Raises:
        OptionError: a value of another type than the argument's.
    """
    kinds = set(re.findall(r"\b(float|int|bool|str|dict|list|tuple|\w*Strategy|\w*Type|Any)\b", declared))
    if value is None or not kinds:
        return value
    if kinds <= {"float", "int"}:
        if isinstance(value, str):
            with contextlib.suppress(ValueError):
                value = float(value)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise OptionError(f"trainer.{name}={value!r}: must be a number")
        if kinds == {"int"} and value != int(value):
            raise OptionError(f"trainer.{name}={value!r}: must be a whole number")
        return int(value) if kinds == {"int"} else value
    if kinds == {"bool"} and not isinstance(value, bool):
        raise OptionError(f"trainer.{name}={value!r}: must be true or false")
    return value


def run(
    objective: Objective,
    folder: Path,
    *,
    config: Mapping[str, Any],
    trainer: Mapping[str, Any],
    seed: int,
    keep: int = 2,
    **options: Any,
) -> KshotTrainer:
    """Train until the end, from the last complete checkpoint in ``folder`` if there is one.

    Args:
        objective: model, data, loss.
        folder: of checkpoints, of the record (``config.json``) and of the log (``log.jsonl``).
        config: what decides the result, beside ``trainer``; JSON-serialisable.
        trainer: see :func:`training_arguments`.
        seed: of what is random in the model (dropout).
        keep: number of checkpoints to keep.
        options: further arguments of the Trainer (``optimizers``, ``callbacks``).

    Returns:
        The Trainer after training.

    Raises:
        OptionError: the folder holds a run with another configuration; the Trainer cannot do what its arguments say.
        CannotWrite: the folder, or a checkpoint in it.
    """
    arguments = training_arguments(folder, _sharding(trainer, objective.model), seed)
    made = _trainer(objective, arguments, keep, options)
    record = {
        "config": _plain(config),
        "trainer": lasting(trainer),
        "world_size": arguments.world_size,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    with writing(folder, "choose another folder with work"):
        if arguments.should_save:
            folder.mkdir(parents=True, exist_ok=True)
        _check_record(folder / "config.json", record, leads=arguments.should_save)
    made.accelerator.wait_for_everyone()
    found = resume_point(folder, leads=arguments.should_save)
    made.accelerator.wait_for_everyone()
    made.train(resume_from_checkpoint=found)
    with writing(folder / "log.jsonl", "free some space; the same command finishes the run"):
        write_log(made, folder / "log.jsonl")
    return made


def lasting(trainer: Mapping[str, Any]) -> dict[str, Any]:
    """Those arguments of the Trainer that decide the result, as JSON holds them."""
    return {name: _plain(value) for name, value in sorted(trainer.items()) if name not in HARMLESS}


def _sharding(trainer: Mapping[str, Any], model: nn.Module) -> Mapping[str, Any]:
    """The Trainer's arguments with the layers that FSDP shards one by one, unless the user named them.

    accelerate takes all that an architecture lists as not to be split, and gives up if the model has not got one of them, which is
    so for nearly all models of images and text: their lists hold the layers of every tower that they could have.
    """
    settings = trainer.get("fsdp_config") or {}
    keys = {f"{prefix}{key}" for prefix in ("", "fsdp_") for key in ("transformer_layer_cls_to_wrap", "min_num_params")}
    if not trainer.get("fsdp") or not isinstance(settings, Mapping) or keys & set(settings):
        return trainer
    listed = set(getattr(model, "_no_split_modules", None) or ())
    rows = (row for row in model.modules() if isinstance(row, nn.ModuleList))
    layers = {type(layer).__name__ for row in rows for layer in row} & listed
    named = {"transformer_layer_cls_to_wrap": sorted(layers)} if layers else {}
    return {**trainer, "fsdp_config": {**settings, **named}}


def _trainer(objective: Objective, arguments: TrainingArguments, keep: int, options: Mapping[str, Any]) -> KshotTrainer:
    """The Trainer, in the kind of parallel training that was asked for.

    Raises:
        OptionError: the Trainer refuses its arguments, or would quietly do without sharding.
    """
    try:
        made = KshotTrainer(objective, arguments, keep=keep, **options)
    except (ValueError, ImportError) as error:
        raise OptionError(f"trainer: {_first_line(error)}") from error
    kind = made.accelerator.distributed_type
    if arguments.fsdp and kind != DistributedType.FSDP:
        os.environ.pop("ACCELERATE_USE_FSDP", None)  # set by accelerate, for whatever this process trains next
        # accelerate would train unsharded: replicated on several processes on the CPU, and alone without a launcher.
        where = "on the CPU" if arguments.device.type == "cpu" else "in a single process without a launcher"
        raise OptionError(
            f"trainer.fsdp: accelerate does not shard models {where} (it would train with {kind.value}); start with "
            "torchrun --nproc_per_node N on N accelerators, or leave fsdp out"
        )
    if arguments.deepspeed and kind != DistributedType.DEEPSPEED:
        raise OptionError(
            f"trainer.deepspeed: DeepSpeed was not started (accelerate would train with {kind.value}); start with torchrun "
            "--nproc_per_node N"
        )
    return made


def run_steps(
    objective: Objective,
    folder: Path,
    optimizer: torch.optim.Optimizer,
    factor: Callable[[int], float],
    *,
    trainer: Mapping[str, Any],
    config: Mapping[str, Any],
    seed: int,
    callbacks: Sequence[TrainerCallback] = (),
) -> KshotTrainer:
    """One pass over an objective whose items are whole batches, one a step, with an optimiser and a schedule of its own.

    Args:
        objective, folder, trainer, config, seed: as for :func:`run`.
        optimizer: of the objective's model.
        factor: step -> what the optimiser's learning rates are multiplied by.
        callbacks: of the Trainer.
    """
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    own = {"per_device_train_batch_size": 1, "num_train_epochs": 1, "logging_steps": 50, "max_grad_norm": 1.0}
    return run(
        objective,
        folder,
        config={"steps": len(objective), **config},
        trainer=own | dict(trainer),
        seed=seed,
        keep=1,
        optimizers=(optimizer, schedule),
        callbacks=list(callbacks),
    )


def _check_record(path: Path, record: Mapping[str, Any], *, leads: bool) -> None:
    """Compare with the record of the run that is to be resumed, or write it if there is none.

    Raises:
        OptionError: they differ.
    """
    begun = bool(complete_checkpoints(path.parent))  # before that, there is nothing that other options would spoil
    if path.exists() and begun:
        try:
            held = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise OptionError(
                f"{path} is damaged: remove {path.parent} to begin anew, or name another with work"
            ) from None
        before, now = dict(_flat(held)), dict(_flat(json.loads(json.dumps(record))))
        differing = [name for name in {**before, **now} if before.get(name) != now.get(name)]
        if differing:
            shown = "; ".join(f"{name}: {before.get(name)!r} then, {now.get(name)!r} now" for name in differing[:3])
            more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
            raise OptionError(
                f"{path.parent} holds a run that was begun with other options ({shown}{more}): use the same ones to go on, remove the "
                "folder to begin anew, or name another with work"
            )
    elif leads:
        write_text(path, json.dumps(record, indent=1))


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of nested dictionaries, by dotted name."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def _plain(value: Any) -> Any:
    """The value as JSON holds it."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, str | int | float | bool) or value is None:
        return value
    return os.fspath(value) if isinstance(value, os.PathLike) else str(value)
