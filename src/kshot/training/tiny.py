"""Train the embedded model from nothing: pictures, tokenizer, vision tower, language model, export.

Budgets are in steps and every random choice derives from (seed, step), so the same arguments on the same machine and software give the
same weights, whether a run was interrupted or not.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from kshot.errors import OptionError
from kshot.training.tiny_banks import Banks, build_banks
from kshot.training.tiny_checkpoint import checkpoint_step, load_checkpoint
from kshot.training.tiny_export import export
from kshot.training.tiny_language import Features, Mixture, TinyLanguage, fold, train_language
from kshot.training.tiny_model import ImageEncoder, TinyShape, build_model
from kshot.training.tiny_tokenizer import build_tokenizer
from kshot.training.tiny_vision import train_vision
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
    language_stop: int | None = None,
    refine_steps: int | None = None,
    refine_rate: float = 8e-4,
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
        language_steps: steps of the language model.
        early_vision, early_language: the first ``early_language`` steps of the language model look through the vision tower as it was
            after ``early_vision`` steps, the rest through the finished one. (What is learnt first is hardly about vision, and
            on two cores both halves can then be trained side by side.)
        late_language: from this step on, the three kinds of episodes weigh the same in the loss, and batches hold less padding.
        language_stop: end after this step although the learning rate's schedule is laid out for ``language_steps``.
        refine_steps: then go on to this step, with a schedule of so many steps and the peak rate ``refine_rate``: a second descent.
        refine_rate: see ``refine_steps``.
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
        early_language, late_language, language_steps, language_stop = 2, 3, 4, None
        refine_steps = 5
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
    shape = TinyShape()
    tokenizer = build_tokenizer(seed=seed, positions=shape.positions)
    model = build_model(shape, tokenizer, seed)
    checkpoint = folder / "vision.safetensors"
    train_vision(
        model,
        banks,
        checkpoint,
        steps=vision_steps,
        classes=batch_classes,
        seed=seed,
        snapshots=(early_vision,),
        compile=compile,
    )

    def language_until(
        stop: int, features: Features, mixture: Mixture, *, steps: int = language_steps, peak: float = 1.5e-3
    ) -> TinyLanguage:
        return train_language(
            model,
            tokenizer,
            features,
            folder / "language.safetensors",
            steps=steps,
            short_steps=short_steps,
            single_steps=single_steps,
            mixture=mixture,
            peak=peak,
            seed=seed,
            compile=compile,
            stop_after=stop,
        )

    mixture = Mixture(tokens=batch_tokens)
    late_mixture = replace(
        mixture,
        tokens=round(1.1 * batch_tokens),
        scenes=0.27,
        renamed=0.26,
        wordings=3,
        tolerance=0.1,
        one_kind=True,
        balanced=True,
    )
    if checkpoint_step(folder / "language.safetensors") < early_language:
        early = ImageEncoder(build_model(shape, tokenizer, seed).eval())
        load_checkpoint(checkpoint.with_name(f"vision-{early_vision}.safetensors"), {"encoder": early})
        language_until(early_language, Features(early, banks), mixture)
    features = Features(ImageEncoder(model), banks)
    if checkpoint_step(folder / "language.safetensors") < late_language:
        language_until(late_language, features, mixture)
    language = language_until(language_stop or language_steps, features, late_mixture)
    if refine_steps:
        language = language_until(refine_steps, features, late_mixture, steps=refine_steps, peak=refine_rate)
    fold(model, language, features)
    return export(model, tokenizer, out, patch=shape.patch)
