"""First half of the recipe: a vision tower whose mean feature tells characters apart and knows the attributes of scenes.

Characters are learnt by a supervised contrastive loss (Khosla et al., 2020) over many classes a batch, scenes by a linear head per
attribute. Nothing here knows of language; the language model is trained on the frozen result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_model
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration, TrainerCallback

from kshot.data.drawing import SCENE_TASKS
from kshot.training.objective import Objective
from kshot.training.run import run_steps
from kshot.training.tiny_banks import UNNAMED, Banks, Pixels
from kshot.training.tiny_model import ImageEncoder, learning_rate, normalise

VIEWS = 4
"""Drawings of a class in a batch."""
TEMPERATURE = 0.1


class VisionModel(nn.Module):
    """What is trained: vision tower and projector, and a linear head for each attribute of scenes."""

    def __init__(self, model: LlavaForConditionalGeneration, seed: int):
        super().__init__()
        self.encoder = ImageEncoder(model)
        torch.manual_seed(seed)
        width = self.encoder.projector.linear_2.out_features
        self.heads = nn.ModuleList(nn.Linear(width, len(words)) for words in SCENE_TASKS.values())


class VisionObjective(Objective):
    """Contrastive loss of characters, cross-entropy of scenes' attributes; an item is the batch of a step.

    Args:
        model: the model; its language model is not touched.
        banks: the pictures.
        steps: optimiser steps.
        classes, scenes: character classes (:data:`VIEWS` drawings each) and scenes in a batch.
        seed: batches derive from (seed, step).
        compile: use torch.compile (faster after some minutes; other rounding).
    """

    model: VisionModel

    def __init__(
        self,
        model: LlavaForConditionalGeneration,
        banks: Banks,
        *,
        steps: int,
        classes: int = 64,
        scenes: int = 64,
        seed: int = 0,
        compile: bool = False,
    ):
        self.model = VisionModel(model, seed)
        self.banks, self.steps, self.classes, self.scenes, self.seed = banks, steps, classes, scenes, seed
        self._encode = torch.compile(self.model.encoder, dynamic=False) if compile else self.model.encoder

    def __len__(self) -> int:
        return self.steps

    def item(self, epoch: int, index: int) -> dict[str, Tensor]:
        return _batch(self.banks, np.random.default_rng([self.seed, 10, index]), self.classes, self.scenes)

    def collate(self, items: Sequence[dict[str, Tensor]]) -> dict[str, Any]:
        return items[0]

    def loss(self, model: nn.Module, batch: Mapping[str, Any]) -> tuple[Tensor, Mapping[str, Tensor]]:
        characters, attributes = batch["characters"], batch["attributes"]
        features = self._encode(torch.cat([normalise(characters), normalise(batch["scenes"])])).mean(1)
        contrast = contrastive_loss(features[: len(characters)], VIEWS)
        logits = [head(features[len(characters) :]) for head in self.model.heads]
        named = (attributes != UNNAMED).sum(0).clamp(min=1)
        wrong = [
            F.cross_entropy(a, attributes[:, i], ignore_index=UNNAMED, reduction="sum") for i, a in enumerate(logits)
        ]
        naming = (torch.stack(wrong) / named).mean()
        return contrast + naming, {"contrastive_loss": contrast, "attribute_loss": naming}


def train_vision(
    objective: VisionObjective,
    folder: Path,
    *,
    peak: float = 1e-3,
    snapshots: tuple[int, ...] = (),
    trainer: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
) -> None:
    """Train the vision tower and projector in place.

    Args:
        objective: what to train on.
        folder: of checkpoints; a run resumes from them.
        peak: learning rate.
        snapshots: steps after which a copy of tower and projector is kept, see :func:`snapshot`.
        trainer: arguments of TrainingArguments.
        config: what else identifies the run.
    """
    optimizer = torch.optim.AdamW(objective.model.parameters(), lr=peak, weight_decay=0.01, betas=(0.9, 0.98))

    def factor(step: int) -> float:
        return learning_rate(step, objective.steps, 1.0, warm_up=200, hold=0.3)

    run_steps(
        objective,
        folder,
        optimizer,
        factor,
        trainer={"save_steps": 1000, **(trainer or {})},
        config={"peak": peak, "classes": objective.classes, "scenes": objective.scenes, **(config or {})},
        seed=objective.seed,
        callbacks=[_Keep(objective.model.encoder, folder, snapshots)],
    )


def snapshot(folder: Path, step: int) -> Path:
    """Where a copy of the vision tower as it was after ``step`` steps is kept."""
    return folder / f"vision-{step}.safetensors"


class _Keep(TrainerCallback):
    """Keeps copies of the encoder on the way."""

    def __init__(self, encoder: nn.Module, folder: Path, steps: tuple[int, ...]):
        self.encoder, self.folder, self.steps = encoder, folder, steps

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step in self.steps and args.should_save:
            path = snapshot(self.folder, state.global_step)
            save_model(self.encoder, str(path.with_suffix(".tmp")))
            path.with_suffix(".tmp").replace(path)


def contrastive_loss(features: Tensor, views: int) -> Tensor:
    """Supervised contrastive loss of features (classes * views, width), the views of a class next to each other."""
    z = F.normalize(features, dim=-1)
    similarity = (z @ z.T / TEMPERATURE).masked_fill(torch.eye(len(z), dtype=torch.bool), -1e4)
    owner = torch.arange(len(z)) // views
    same = (owner[:, None] == owner[None]) & ~torch.eye(len(z), dtype=torch.bool)
    return -(similarity.log_softmax(1) * same).sum(1).mean() / (views - 1)


def _batch(banks: Banks, rng: np.random.Generator, classes: int, scenes: int) -> dict[str, Tensor]:
    """``characters`` (classes * VIEWS, EDGE, EDGE), ``scenes`` (n, EDGE, EDGE, 3) and their ``attributes`` (n, 8).

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
    return {
        "characters": torch.from_numpy(characters),
        "scenes": torch.from_numpy(banks.free_scenes[chosen]),
        "attributes": torch.from_numpy(banks.free_attributes[chosen]),
    }


@torch.no_grad()
def embed(encoder: ImageEncoder, pixels: Pixels, batch: int = 2048) -> Tensor:
    """Features (n, tokens, width) of pixels (n, EDGE, EDGE[, 3])."""
    parts = [encoder(normalise(torch.from_numpy(pixels[i : i + batch]))) for i in range(0, len(pixels), batch)]
    return torch.cat(parts)
