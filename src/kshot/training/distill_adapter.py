"""Adapters for distillation: any trainable method in a model, its parameters in groups, its folder with a model card."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kshot.errors import OptionError, UnknownName
from kshot.methods import methods
from kshot.methods.of_peft import OF_PEFT, peft_config
from kshot.models.anatomy import Anatomy
from kshot.models.loading import quiet_unless_watched
from kshot.models.soft_prompts import SoftPrompt, is_soft
from kshot.models.visual_sentence import VisualSentenceModel
from kshot.models.vlm import VLM
from kshot.training.outcome import RECORD
from kshot.training.show import plot_log

LORA = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.05}
SOFT, SOFT_TOKENS = ("prompt_tuning", "prefix_tuning"), 20


def config_of(method: str) -> Any:
    """The configuration class of a method that can be trained.

    Raises:
        UnknownName: there is no such method.
        OptionError: it cannot be trained.
    """
    if method in methods:
        held = methods.get(method)
        if not held.trainable:
            raise OptionError(f"method {method!r} is not trained: it is estimated from demonstrations")
        return held.config
    if method not in OF_PEFT:
        raise UnknownName("method", method, {*methods, *OF_PEFT})
    return peft_config(method)


def add_adapter(vlm: VLM | VisualSentenceModel, method: str, options: Mapping[str, Any], seed: int) -> Any:
    """Put a new adapter into a model, which is frozen otherwise.

    Args:
        vlm: the model; its layers are changed in place, so that it answers with the adapter.
        method: a trainable method.
        options: of its configuration.
        seed: of its initial values, unless the options have one.

    Returns:
        The model of PEFT.

    Raises:
        ModelError: the model cannot take the method; the message says why.
        OptionError, UnknownName: wrong options.
    """
    from peft import get_peft_model

    kind = config_of(method)
    if method in methods:
        methods.get(method).check(vlm.anatomy)
    known = {field.name for field in dataclasses.fields(kind) if field.init}
    for name in options:
        if name not in known:
            raise UnknownName(f"option of method {method}", name, known)
    given = dict(options)
    if "seed" in known:
        given.setdefault("seed", seed)
    if method == "lora":
        given = {**LORA, "target_modules": attention_maps(vlm.anatomy, vlm.model), **given}
    elif method in OF_PEFT:
        given = {"num_virtual_tokens": SOFT_TOKENS, "task_type": "CAUSAL_LM", **given}
    if method in SOFT and not isinstance(vlm, VLM):
        raise OptionError(f"method {method}: models of visual sentences cannot read what stands before a prompt")
    vlm.model.requires_grad_(False)
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            made = get_peft_model(vlm.model, kind(**given))
    except (TypeError, ValueError) as error:
        raise OptionError(f"method {method}: {error}") from error
    if isinstance(vlm, VLM) and is_soft(made):
        vlm.soft = SoftPrompt(made)
    return made


def remove_adapter(vlm: VLM | VisualSentenceModel, made: Any) -> None:
    """Take an adapter out of a model, which then is as it was."""
    if isinstance(vlm, VLM):
        vlm.soft = None
    if not is_soft(made):
        made.unload()
    if hasattr(vlm.model, "peft_config"):
        del vlm.model.peft_config


def attention_maps(anatomy: Anatomy, model: nn.Module) -> list[str]:
    """Names of the linear maps of the text decoder's self-attention (q, k, v, o)."""
    inside = {id(part) for module in anatomy.attention for part in module.modules()}
    return [name for name, module in model.named_modules() if id(module) in inside and isinstance(module, nn.Linear)]


def parameter_groups(
    model: nn.Module,
    learning_rate: float,
    rates: Mapping[str, float],
    weight_decay: float,
    asked: Iterable[str] | None = None,
) -> list[dict[str, Any]]:
    """What is trained, by learning rate and weight decay, for an optimiser.

    Args:
        model: with an adapter.
        learning_rate: of what ``rates`` does not name.
        rates: learning rates by a part of parameters' names, as they are saved.
        weight_decay: of everything but biases.
        asked: those of ``rates`` that must be the name of something; default: all.

    Raises:
        OptionError: nothing bears one of the names.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    used: set[str] = set()
    names = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        names.append(name)
        key = max((part for part in rates if part in name), key=len, default=None)
        used |= {key} if key is not None else set()
        rate = learning_rate if key is None else rates[key]
        own = [part for part in name.split(".") if part not in ("default", "weight")][-1]
        decay = 0.0 if own.endswith("bias") else weight_decay
        groups.setdefault((float(rate), decay), []).append(parameter)
    lost = sorted(set(rates if asked is None else asked) - used)
    if lost:
        known = sorted({part for name in names for part in name.split(".") if not part.isdigit()})
        raise OptionError(
            f"rates.{lost[0]}: no trained parameter bears this name; parts of their names are {', '.join(known)}"
        )
    return [{"params": held, "lr": rate, "weight_decay": decay} for (rate, decay), held in groups.items()]


def trained_parameters(model: nn.Module) -> int:
    """Number of parameters that are trained."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def write_adapter(adapter: Path, out: Path, card: str, record: Mapping[str, Any], logs: Sequence[Path]) -> None:
    """Write the result: the adapter's files, the model card and the record of training; all of it or nothing.

    Args:
        adapter: folder with what PEFT has saved.
        out: the folder to write; it must not exist, or be empty.
        card: the text of README.md.
        record: becomes ``training/config.json``.
        logs: logs of the runs, by seed; the first is the chosen one's.
    """
    unfinished = out.with_name(f".{out.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.copytree(adapter, unfinished)
    (unfinished / "README.md").write_text(card, encoding="utf-8")
    folder = unfinished / RECORD
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(record, indent=1, default=str), encoding="utf-8")
    for number, log in enumerate(logs):
        shutil.copy(log, folder / ("log.jsonl" if not number else f"log-{number}.jsonl"))
    plot_log(folder / "log.jsonl", folder / "loss.png")
    for weights in unfinished.glob("*.safetensors"):
        weights.chmod(0o644)  # written readable by its owner only
    unfinished.replace(out)


def save_adapter(made: Any, folder: Path, base: str) -> None:
    """Save the adapter as PEFT does, whole or not at all.

    Args:
        made: the model of PEFT.
        folder: where to.
        base: the name of the base model, as users name it (not where it lies on this machine).
    """
    for config in made.peft_config.values():
        config.base_model_name_or_path = base
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    with quiet_unless_watched():
        made.save_pretrained(unfinished, save_embedding_layers=False)
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.replace(folder)
