"""Train a vision-language model on the answers of episodes: ``kshot train`` with the objective ``answers``.

Link-context training (arXiv 2308.07891) is this with sources of the kind ``link``; its mixtures add sources of the kind ``task``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from kshot.errors import ModelError, OptionError
from kshot.models.features import vision_modules
from kshot.models.image_mode import IMAGE_MODE
from kshot.models.loading import Quantization, load_model
from kshot.models.vlm import VLM
from kshot.training.answers import AnswerObjective, frozen_vision
from kshot.training.items import Source, load_source
from kshot.training.mixture import Mixture
from kshot.training.outcome import export, finished
from kshot.training.run import lasting, run
from kshot.training.summary import PROBE
from kshot.training.train import objectives
from kshot.training.trainer import writing

Freeze = Literal["nothing", "vision", "vision+projector"]


@objectives.register("answers")
def train_answers(
    out: str,
    *,
    model: str,
    data: dict[str, Any] | None = None,
    items: int | None = None,
    style: Literal["auto", "plain", "chat"] | None = None,
    method: Literal["full", "lora"] = "full",
    lora: dict[str, Any] | None = None,
    freeze: Freeze = "vision",
    packed: bool = False,
    features: bool = False,
    summary: float = 0.0,
    dtype: str = "float32",
    quantization: Quantization | None = None,
    seed: int = 0,
    trainer: dict[str, Any] | None = None,
    keep: int = 2,
    work: str | None = None,
) -> Path:
    """Train a vision-language model on the answers of episodes.

    Args:
        out: the folder to write: a model, or with ``method: lora`` an adapter.
        model: what to begin with: ``"tiny"``, a folder, or a Hub id.
        data: the sources by name, each with its ``kind``, the kind's own options, and its ``share`` of the items.
        items: items an epoch (default: until each source was used whole).
        style: plain or chat prompts, for all sources that do not say it themselves.
        method: ``full`` (all parameters that are not frozen) or ``lora``; with ``quantization`` the latter is QLoRA.
        lora: arguments of PEFT's LoraConfig; default: rank 16, scale 32, on all linear layers of the text decoder.
        freeze: what is not trained: ``nothing``, the ``vision`` tower (as the paper), or ``vision+projector``. LoRA trains neither.
        packed: one row of prompts a batch in place of padding.
        features: encode each picture once; needs ``freeze: vision+projector`` or LoRA.
        summary: weight of the summary loss (see docs), which makes learning from context emerge early; 0: the paper's loss.
        dtype: of the weights; mixed precision is ``trainer.bf16``.
        quantization: ``8bit`` or ``4bit``, for LoRA.
        seed: everything random derives from it; sources take it unless they have their own.
        trainer: arguments of transformers' TrainingArguments.
        keep: number of checkpoints to keep.
        work: folder of checkpoints (default: ``<out>.work``).

    Returns:
        The folder written, or found complete: a run that is finished is not repeated.

    Raises:
        OptionError: wrong or contradictory options; ``out`` exists and is something else than the result of this very run.
        CannotWrite: ``out``, or a checkpoint.
        ContextTooLong: an episode that does not fit into the model's context, found before the first step.
    """
    made_before = finished(Path(out), request := {
        "model": str(model), "data": data, "items": items, "style": style, "method": method, "lora": lora or {},
        "freeze": freeze, "packed": packed, "features": features, "summary": summary, "dtype": dtype,
        "quantization": quantization, "seed": seed, "trainer": lasting(trainer or {}),
    })  # fmt: skip
    if made_before:
        return Path(out)
    folder = Path(work) if work is not None else Path(f"{str(out).rstrip('/')}.work")
    source = _source(data or {}, items, style, seed)
    _check(method, lora, quantization, features, freeze, summary)
    # The Trainer moves the model, in each process to its own device; but quantized weights stay where they are loaded.
    device = {"": int(os.environ.get("LOCAL_RANK", 0))} if quantization and torch.accelerator.is_available() else "cpu"
    # Whatever a converted checkpoint was shown before: what is trained here is trained on all images of its prompts.
    vlm = load_model(model, dtype=dtype, quantization=quantization, device_map=device, image_mode="all")
    if not isinstance(vlm, VLM):
        raise ModelError(
            f"{model} is a model of visual sentences, which gives no text: kshot pretrain trains such models further"
        )
    if hasattr(vlm.model.config, IMAGE_MODE):
        setattr(vlm.model.config, IMAGE_MODE, "all")
    identity = vlm.describe()
    config = {
        "model": {key: identity[key] for key in identity if key not in ("source", "device")},
        "data": source.describe(),
        "options": {
            "method": method, "lora": lora or {}, "freeze": freeze, "packed": packed, "features": features, "summary": summary,
            "dtype": dtype, "quantization": quantization, "seed": seed,
        },
    }  # fmt: skip
    if method == "lora":
        trained = _adapted(vlm, lora or {}, quantization, trainer or {}, seed)
    else:
        _freeze(vlm, freeze)
        trained = vlm.model
    if features and not frozen_vision(vlm.model):
        raise OptionError("features: the projector is trained, so features change; set freeze: vision+projector")
    objective = AnswerObjective(
        vlm, source, model=trained, packed=packed, features=features, summary=summary, seed=seed
    )
    made = run(objective, folder, config=config, trainer=trainer or {}, seed=seed, keep=keep)
    state = made.full_state()
    if objective.summary is not None:
        objective.summary.remove()
        state = state and {name: value for name, value in state.items() if not name.startswith(f"{PROBE}.")}
    if made.args.should_save:
        with writing(Path(out), "free some space; the same command writes it again without training"):
            export(trained, vlm.processor, Path(out), folder, request, state)
    made.accelerator.wait_for_everyone()
    return Path(out)


def _source(data: Mapping[str, Any], items: int | None, style: str | None, seed: int) -> Source:
    """The sources of a recipe as one.

    Raises:
        OptionError: entries that are no sources; shares for some of them only.
    """
    if not data:
        raise OptionError(
            "data: name at least one source, e.g. --data.episodes.kind link --data.episodes.source FOLDER"
        )
    parts: dict[str, Source] = {}
    shares: dict[str, float] = {}
    for name, entry in data.items():
        if not isinstance(entry, Mapping):
            raise OptionError(
                f"data.{name}={entry!r}: must hold options, at least a kind (data: {{{name}: {{kind: link}}}})"
            )
        own = dict(entry)
        share = own.pop("share", None)
        if share is not None:
            if isinstance(share, bool) or not isinstance(share, int | float):
                raise OptionError(f"data.{name}.share={share!r}: must be a number, the source's part of the items")
            shares[name] = float(share)
        if style is not None:
            own.setdefault("style", style)
        own.setdefault("seed", seed)
        parts[name] = load_source(own, where=f"data.{name}")
    return Mixture(parts, shares or None, items=items, seed=seed)


def _check(method: str, lora: Any, quantization: Any, features: bool, freeze: Freeze, summary: float) -> None:
    if freeze not in ("nothing", "vision", "vision+projector"):
        raise OptionError(f"freeze={freeze!r}: must be nothing, vision or vision+projector")
    if method not in ("full", "lora"):
        raise OptionError(f"method={method!r}: must be full or lora")
    if lora and method != "lora":
        raise OptionError("lora: options of LoRA are given, but method is not lora")
    if quantization and method != "lora":
        raise OptionError(f"quantization={quantization!r}: quantized weights cannot be trained; set method: lora")
    if features and method == "full" and freeze != "vision+projector":
        raise OptionError(
            "features: what the decoder sees of a picture changes while the projector is trained; set freeze: vision+projector"
        )
    if summary and method == "lora":
        raise OptionError("summary: needs method: full")


def _freeze(vlm: VLM, freeze: Freeze) -> None:
    """Switch gradients off for what is not trained."""
    vlm.model.requires_grad_(True)
    if freeze == "nothing":
        return
    if freeze == "vision+projector":
        parts = vision_modules(vlm.model)
        if not parts:  # they are within what the model calls its decoder
            raise OptionError(f"freeze: {vlm.name} does not tell its projector; use vision or nothing")
        for module in parts:
            module.requires_grad_(False)
        return
    tower = vlm.model.get_encoder(modality="image")
    if not isinstance(tower, nn.Module) or any(tower is part for part in (vlm.model, vlm.model.base_model)):
        raise OptionError(f"freeze: {vlm.name} does not tell its vision tower; use vision+projector or nothing")
    tower.requires_grad_(False)


def _adapted(vlm: VLM, lora: Mapping[str, Any], quantization: Any, trainer: Mapping[str, Any], seed: int) -> Any:
    """A LoRA model around the model, whose layers are replaced in place, so that ``vlm`` answers with them."""
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    vlm.model.requires_grad_(False)
    checkpointing = bool(trainer.get("gradient_checkpointing") or trainer.get("activation_checkpointing"))
    if quantization:
        prepare_model_for_kbit_training(vlm.model, use_gradient_checkpointing=checkpointing)
    parts = (*vlm.anatomy.layers, *vlm.anatomy.cross_attention)  # some decoders hold the vision tower as well
    inside = {id(module) for part in parts for module in part.modules()}
    linear = [
        name for name, module in vlm.model.named_modules() if id(module) in inside and isinstance(module, nn.Linear)
    ]
    options: dict[str, Any] = {"r": 16, "lora_alpha": 32, "target_modules": linear, **lora}
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            adapted = get_peft_model(vlm.model, LoraConfig(**options))
    except (TypeError, ValueError) as error:
        raise OptionError(f"lora: {error}") from error
    for settings in adapted.peft_config.values():
        settings.base_model_name_or_path = vlm.source  # as it was named, not where it lies on this machine
    if checkpointing:
        adapted.enable_input_require_grads()
    return adapted
