"""First half of the recipe: a vision tower whose mean feature tells characters apart and knows the attributes of scenes.

Characters are learnt by a supervised contrastive loss (Khosla et al., 2020) over many classes a batch, scenes by a linear head per
attribute. Nothing here knows of language; the language model is trained on the frozen result.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm
from transformers import LlavaForConditionalGeneration

from kshot.data.drawing import SCENE_TASKS
from kshot.training.tiny_banks import UNNAMED, Banks, Pixels
from kshot.training.tiny_checkpoint import load_checkpoint, save_checkpoint
from kshot.training.tiny_model import ImageEncoder, learning_rate, normalise

VIEWS = 4
"""Drawings of a class in a batch."""
TEMPERATURE = 0.1


def train_vision(
    model: LlavaForConditionalGeneration,
    banks: Banks,
    checkpoint: Path,
    *,
    steps: int,
    classes: int = 64,
    scenes: int = 64,
    peak: float = 1e-3,
    seed: int = 0,
    snapshots: tuple[int, ...] = (),
    compile: bool = False,
    save_every: int = 1000,
    stop_after: int | None = None,
) -> None:
    """Train the vision tower and projector of ``model`` in place.

    Args:
        model: the model; its language model is not touched.
        banks: the pictures.
        checkpoint: where the state is saved; a run resumes from it.
        steps: optimiser steps.
        classes, scenes: character classes (:data:`VIEWS` drawings each) and scenes in a batch.
        peak: learning rate.
        seed: batches derive from (seed, step).
        snapshots: steps after which a copy is kept as ``<checkpoint stem>-<step>.safetensors``.
        compile: use torch.compile (faster after some minutes; other rounding).
        save_every: steps between checkpoints.
        stop_after: stop after this step although the schedule goes on (to look at the model on the way).
    """
    encoder = ImageEncoder(model)
    width = encoder.projector.linear_2.out_features
    torch.manual_seed(seed)
    heads = nn.ModuleList(nn.Linear(width, len(words)) for words in SCENE_TASKS.values())
    modules = {"encoder": encoder, "heads": heads}
    parameters = [p for module in modules.values() for p in module.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=peak, weight_decay=0.01, betas=(0.9, 0.98))
    begin = load_checkpoint(checkpoint, modules, optimizer)
    run = torch.compile(encoder, dynamic=False) if compile else encoder
    model.train()
    last = min(steps, stop_after or steps)
    for step in tqdm(range(begin, last), initial=begin, total=steps, desc="vision", disable=None):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, peak, warm_up=200, hold=0.3)
        characters, pictures, attributes = _batch(banks, np.random.default_rng([seed, 10, step]), classes, scenes)
        features = run(torch.cat([normalise(characters), normalise(pictures)])).mean(1)
        loss = contrastive_loss(features[: len(characters)], VIEWS)
        logits = [head(features[len(characters) :]) for head in heads]
        named = (attributes != UNNAMED).sum(0).clamp(min=1)
        wrong = [
            F.cross_entropy(a, attributes[:, i], ignore_index=UNNAMED, reduction="sum") for i, a in enumerate(logits)
        ]
        loss = loss + (torch.stack(wrong) / named).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) % save_every == 0 or step + 1 == last:
            save_checkpoint(checkpoint, modules, optimizer, step + 1)
        if step + 1 in snapshots:
            save_checkpoint(
                checkpoint.with_name(f"{checkpoint.stem}-{step + 1}.safetensors"), modules, optimizer, step + 1
            )
    model.eval()


def contrastive_loss(features: Tensor, views: int) -> Tensor:
    """Supervised contrastive loss of features (classes * views, width), the views of a class next to each other."""
    z = F.normalize(features, dim=-1)
    similarity = (z @ z.T / TEMPERATURE).masked_fill(torch.eye(len(z), dtype=torch.bool), -1e4)
    owner = torch.arange(len(z)) // views
    same = (owner[:, None] == owner[None]) & ~torch.eye(len(z), dtype=torch.bool)
    return -(similarity.log_softmax(1) * same).sum(1).mean() / (views - 1)


def _batch(banks: Banks, rng: np.random.Generator, classes: int, scenes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Characters (classes * VIEWS, EDGE, EDGE), scenes (n, EDGE, EDGE, 3) and their attributes (n, 8).

    The sources share the classes evenly; a weaker ink now and then teaches that darkness means nothing.
    """
    drawn: list[Pixels] = []
    shares = np.diff(np.linspace(0, classes, len(banks.characters) + 1).round().astype(int))
    for source, share in zip(banks.characters, shares, strict=True):
        for c in rng.choice(len(source), int(share), replace=False):
            drawn.append(source[c][rng.choice(source.shape[1], VIEWS, replace=False)])
    characters = np.concatenate(drawn)
    ink = np.where(rng.random(len(characters)) < 0.3, rng.uniform(0.5, 1.0, len(characters)), 1.0)
    characters = (255 - (255 - characters.astype(np.float32)) * ink[:, None, None].astype(np.float32)).astype(np.uint8)
    chosen = rng.choice(len(banks.free_scenes), scenes, replace=False)
    return (
        torch.from_numpy(characters),
        torch.from_numpy(banks.free_scenes[chosen]),
        torch.from_numpy(banks.free_attributes[chosen]),
    )


@torch.no_grad()
def embed(encoder: ImageEncoder, pixels: Pixels, batch: int = 2048) -> Tensor:
    """Features (n, tokens, width) of pixels (n, EDGE, EDGE[, 3])."""
    parts = [encoder(normalise(torch.from_numpy(pixels[i : i + batch]))) for i in range(0, len(pixels), batch)]
    return torch.cat(parts)
