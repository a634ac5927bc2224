"""Train the embedded model from nothing: pictures, tokenizer, vision tower, language model, export.

Budgets are in steps and every random choice derives from (seed, step), so the same arguments on the same machine and software give the
same weights, whether a run was interrupted or not.
"""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.torch import load_model

from kshot.errors import OptionError
from kshot.training.tiny_banks import Banks, build_banks
from kshot.training.tiny_export import export
from kshot.training.tiny_language import Features, LanguageObjective, Stage, blend, fold, train_language
from kshot.training.tiny_mixture import Mixture
from kshot.training.tiny_model import ImageEncoder, TinyShape, build_model, deepen, learning_rate, narrow
from kshot.training.tiny_tokenizer import build_tokenizer
from kshot.training.tiny_vision import VisionObjective, snapshot, train_vision
from kshot.training.train import objectives


@objectives.register("embedded")
def train_tiny(
    out: str,
    *,
    trainer: dict[str, Any] | None = None,
    omniglot: str | None = None,
    vision_steps: int = 10000,
    language_steps: int = 3000,
    early_vision: int = 6000,
    early_language: int = 750,
    late_language: int = 1500,
    language_stop: int = 2750,
    refine_steps: int = 4000,
    refine_rate: float = 8e-4,
    deep_layers: int = 2,
    deep_units: int = 352,
    deep_steps: int = 4500,
    deep_rate: float = 1e-3,
    deep_scenes: float = 0.2,
    deep_renamed: float = 0.45,
    deep_short: float = 0.35,
    deep_constant: float = 0.5,
    matching_steps: int = 5000,
    matching_rate: float = 1e-3,
    forms_steps: int = 1200,
    forms_rate: float = 7e-4,
    forms_share: float = 0.5,
    short_steps: int = 400,
    single_steps: int = 250,
    invented: int = 10000,
    drawings: int = 12,
    merged: int = 3000,
    scenes: int = 40000,
    batch_classes: int = 72,
    batch_tokens: int = 6000,
    seed: int = 0,
    compile: bool = True,
    workers: int = 2,
    work: str | None = None,
    quick: bool = False,
) -> Path:
    """Train a tiny LLaVA that learns from context, and write it as a Hugging Face folder.

    Args:
        out: the model folder to write.
        trainer: arguments of transformers' TrainingArguments, for all stages.
        omniglot: archive of Omniglot characters for training (``images_background_small1.zip``); without it, all characters are
            invented, and real handwriting is recognised less well.
        vision_steps: steps of the vision tower.
        language_steps: steps that the learning rate of the language model is first laid out for.
        early_vision, early_language: the first ``early_language`` steps of the language model look through the vision tower as it was
            after ``early_vision`` steps, the rest through the finished one. (What is learnt first is hardly about vision, and
            on two cores both halves can then be trained side by side.)
        late_language: from this step on, the three kinds of episodes weigh the same in the loss, and batches hold less padding.
        language_stop: leave the learning rate's schedule of ``language_steps`` at this step.
        refine_steps: and go on to this step with a schedule of so many steps and the peak rate ``refine_rate``: a second descent.
        refine_rate: see ``refine_steps``.
        deep_layers: layers that are then inserted before the last one; at first they change nothing.
        deep_units: what the feed-forward layers are cut to, to pay for them.
        deep_steps, deep_rate: steps and peak rate of a run in which all is trained with the prototype, agreement and hint losses.
        deep_scenes, deep_renamed, deep_short, deep_constant: its mixture, see :class:`~kshot.training.tiny_mixture.Mixture`.
        matching_steps, matching_rate: the same of a run in which the last layer learns to find the query's class by all that the
            pictures of a label have in common, see :mod:`kshot.training.tiny_matching`; its last tenth has more characters.
        forms_steps, forms_rate: the same of the last run, with many more forms of random words.
        forms_share: the weights that are kept are the mean of those before and behind the last run, which count for so much (robust
            fine-tuning, arXiv 2109.01903): what was learnt before suffers less, and wordings gain no less.
        short_steps: how many of the language model's steps use the short wording only.
        single_steps: how many of them use labels of a single token only.
        invented, drawings: invented characters, and drawings of each.
        merged: characters merged from two real ones.
        scenes: scenes of each kind.
        batch_classes: character classes in a vision batch.
        batch_tokens: tokens in a language batch, about.
        seed: everything derives from it.
        compile: use torch.compile for training (about twice as fast; needs a C++ compiler; rounds differently).
        workers: processes that draw.
        work: folder of pictures and checkpoints, from which an interrupted run resumes (default: ``<out>.work``).
        quick: a run of seconds with tiny budgets that exercises every part and learns nothing.

    Returns:
        The model folder.
    """
    if min(vision_steps, language_steps) < 1:
        raise OptionError("vision_steps and language_steps must be at least 1")
    if not 1 <= early_vision <= vision_steps and not quick:
        raise OptionError(f"early_vision must be between 1 and vision_steps ({vision_steps}), not {early_vision}")
    if quick:
        vision_steps, early_vision, short_steps, single_steps = 4, 2, 2, 1
        early_language, late_language, language_steps, language_stop, refine_steps = 2, 3, 4, 4, 5
        deep_steps, matching_steps, forms_steps = 2, 2, 2
        invented, drawings, merged, scenes, batch_classes, batch_tokens = 40, 5, 2 if omniglot else 0, 300, 9, 900
        compile, workers = False, 1
    folder = Path(work) if work is not None else Path(f"{os.fspath(out).rstrip('/')}.work")
    banks: Banks = build_banks(
        folder / "pictures",
        omniglot=omniglot,
        invented=invented,
        drawings=drawings,
        merged=merged,
        scenes=scenes,
        seed=seed,
        workers=workers,
    )
    pictures = {"invented": invented, "drawings": drawings, "merged": merged, "scenes": scenes, "real": bool(omniglot)}
    shape = TinyShape()
    tokenizer = build_tokenizer(seed=seed, positions=shape.positions)
    model = build_model(shape, tokenizer, seed)
    towers = folder / "vision"
    seeing = VisionObjective(model, banks, steps=vision_steps, classes=batch_classes, seed=seed, compile=compile)
    train_vision(seeing, towers, snapshots=(early_vision,), trainer=trainer, config=pictures)
    model.eval()

    def features(early: bool) -> Features:
        encoder = ImageEncoder(model)
        if early:
            encoder = ImageEncoder(build_model(shape, tokenizer, seed).eval())
            load_model(encoder, snapshot(towers, early_vision))
        return Features(encoder, banks)

    mixture = Mixture(tokens=batch_tokens)
    late = replace(
        mixture,
        tokens=round(1.1 * batch_tokens),
        scenes=0.27,
        renamed=0.26,
        wordings=3,
        tolerance=0.1,
        one_kind=True,
        balanced=True,
    )
    speaking = LanguageObjective(
        model,
        tokenizer,
        features,
        [Stage(early_language, mixture, early=True), Stage(late_language, mixture), Stage(refine_steps, late)],
        single_steps=single_steps,
        short_steps=short_steps,
        seed=seed,
        compile=compile,
    )

    def descents(step: int) -> float:
        """The learning rate goes down twice: the second descent begins where the first one stops."""
        if step < language_stop:
            return learning_rate(step, language_steps, 1.5e-3, warm_up=150, hold=0.5)
        return learning_rate(step, refine_steps, refine_rate, warm_up=0, hold=0.5)

    train_language(speaking, folder / "language", descents, trainer=trainer, config=pictures)
    deepen(model, at=shape.layers - 1, count=deep_layers)
    narrow(model, deep_units)
    deep = replace(
        late,
        scenes=deep_scenes,
        renamed=deep_renamed,
        short=deep_short,
        constant=deep_constant,
        hint=0.5,
        prototype=1.0,
        agreement=10.0,
    )
    matching = replace(
        deep,
        wordings=mixture.wordings,
        tolerance=mixture.tolerance,
        hint=0.25,
        prototype=0.4,
        values=10.0,
        match=0.5,
        attention=1.0,
        closed=0.5,
    )
    settling = replace(matching, scenes=0.22, renamed=0.35, short=0.15)
    worded = replace(settling, scenes=0.28, short=0.1, forms=0.3)
    last = speaking
    runs = (
        ("deep", [Stage(deep_steps, deep)], deep_rate),
        ("matching", [Stage(int(0.9 * matching_steps), matching), Stage(matching_steps, settling)], matching_rate),
        ("forms", [Stage(forms_steps, worded)], forms_rate),
    )
    for number, (name, stages, peak) in enumerate(runs, start=1):
        steps = stages[-1].until
        objective = LanguageObjective(
            model, tokenizer, features, stages, seed=seed, number=number, fresh=False, compile=compile
        )
        objective.model.take_additions(last.model)
        before = {name: weight.detach().clone() for name, weight in objective.model.named_parameters()}
        rate = partial(learning_rate, steps=steps, peak=peak, warm_up=150, hold=0.5)
        train_language(objective, folder / name, rate, trainer=trainer, config=pictures)
        last = objective
    blend(last.model, before, forms_share)
    model.eval()
    fold(model, last.model, last.features(False))
    return export(model, tokenizer, out, patch=shape.patch)
