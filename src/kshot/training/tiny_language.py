"""Second half of the recipe: a language model that learns from context, over the frozen vision tower.

Left alone, such a model stays at guessing among the names it has read. What makes in-context matching emerge within a few hundred
steps is the *summary loss*: after the first layer, a linear probe at the answer's cue and at each of its tokens must reconstruct
the mean feature of the picture just before. Each answer then carries its picture, and a later layer can look up the answer whose
picture is most alike. The probe is thrown away afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration

from kshot.data.drawing import SCENE_TASKS
from kshot.training.objective import Objective
from kshot.training.run import run_steps
from kshot.training.tiny_banks import Banks
from kshot.training.tiny_batches import Encoder, TokenBatch
from kshot.training.tiny_episodes import Namer, scenes_by_value, training_names
from kshot.training.tiny_losses import losses
from kshot.training.tiny_matching import MatchingProbes
from kshot.training.tiny_mixture import Mixture, training_batch
from kshot.training.tiny_model import ImageEncoder, decoder_states
from kshot.training.tiny_vision import embed


class Features:
    """Image features of all banks (characters first, scenes last), as the language model sees them.

    Attributes:
        tables: per bank, features (n, tokens, width) in half precision.
        shapes: per character bank, (classes, drawings).
        scale, mean: of the raw features; the tables hold ``(raw - mean) / scale``.
    """

    def __init__(self, encoder: ImageEncoder, banks: Banks):
        raw = [embed(encoder, b.reshape(-1, *b.shape[-2:])).half() for b in banks.characters]
        raw.append(embed(encoder, banks.scenes).half())
        sample = torch.cat([table[:: max(1, len(table) // 5000)].float().flatten(0, 1) for table in raw])
        self.mean, self.scale = sample.mean(0), float((sample - sample.mean(0)).std())
        self.tables = [self.centred(table).half() for table in raw]
        self.shapes = [(b.shape[0], b.shape[1]) for b in banks.characters]
        self.attributes = banks.attributes
        self.by_value = scenes_by_value(banks.attributes)

    def centred(self, raw: Tensor) -> Tensor:
        """Raw features brought to mean 0 and the scale of word vectors."""
        return (raw.float() - self.mean) / self.scale

    def look_up(self, batch: TokenBatch) -> Tensor:
        """Features (pictures, tokens, width) of a batch's pictures."""
        out = torch.empty(len(batch.pictures), *self.tables[0].shape[1:])
        for number, table in enumerate(self.tables):
            chosen = batch.sources == number
            out[chosen] = table[batch.pictures[chosen]].float()
        return out


class TinyLanguage(nn.Module):
    """The language model of a LLaVA with what training adds: the direction that all image tokens share, and the probe."""

    def __init__(self, model: LlavaForConditionalGeneration, seed: int):
        super().__init__()
        self.decoder, self.head = model.model.language_model, model.lm_head  # the head is tied to the word vectors
        width = self.decoder.config.hidden_size
        torch.manual_seed(seed)
        self.probe = nn.Linear(width, width)
        self.hint = nn.Linear(width, len(SCENE_TASKS))
        self.prototype = nn.Linear(width, width)
        self.matching = MatchingProbes(width)
        self.image_direction = nn.Parameter(torch.randn(width))

    def start(self, label_ids: list[int]) -> None:
        """Word vectors on the scale of image tokens; pieces of labels share a direction ("I am part of an answer").

        Word vectors of this length would make tied logits enormous, so the last normalisation starts small.
        """
        self.decoder.norm.weight.data.fill_(0.15)
        vectors = self.decoder.embed_tokens.weight.data
        vectors.normal_(0, 1)
        vectors[label_ids] = (vectors[label_ids] + torch.randn(vectors.shape[1])) / 2**0.5

    def take_additions(self, other: TinyLanguage) -> None:
        """Go on with another run's image direction and probes."""
        self.image_direction.data.copy_(other.image_direction.data)
        for name in ("probe", "hint", "prototype", "matching"):
            getattr(self, name).load_state_dict(getattr(other, name).state_dict())

    def states(self, embeddings: Tensor, early_mask: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
        """Hidden states (rows, length, width) of embeddings: final, and behind each layer; see :func:`decoder_states`."""
        return decoder_states(self.decoder, embeddings, early_mask)

    def embed(self, batch: TokenBatch, features: Tensor) -> Tensor:
        """Input embeddings: word vectors, and at the placeholders the pictures' features."""
        words = self.decoder.embed_tokens(batch.ids)
        return words.index_put(tuple(batch.image_at.T), features.flatten(0, 1) + self.image_direction)


@dataclass(frozen=True)
class Stage:
    """Part of a run of the language model.

    Attributes:
        until: the step at which it ends.
        mixture: what its episodes are made of.
        early: whether it looks through the vision tower as it was early in that tower's training.
    """

    until: int
    mixture: Mixture
    early: bool = False


class LanguageObjective(Objective):
    """Answers, and what helps to learn them early: the losses of ``tiny_losses``. An item is the batch of a step.

    Args:
        model, tokenizer: the model whose language model is trained, and its tokenizer.
        features: features of the training pictures, made when they are first needed: of the finished vision tower (``False``), of the
            early one (``True``).
        stages: the parts of the run, in order; the last one ends it.
        single_steps: in the first so many steps all labels are single tokens: matching is learnt before spelling.
        short_steps: the first so many steps see episodes of nine pictures in the short wording only.
        seed: batches derive from (seed, step).
        number: of the run, if a model has several: each has batches of its own.
        fresh: whether the language model is new; its word vectors are then brought to scale.
        compile: use torch.compile (about twice as fast after some minutes; other rounding).
    """

    model: TinyLanguage

    def __init__(
        self,
        model: LlavaForConditionalGeneration,
        tokenizer: object,
        features: Callable[[bool], Features],
        stages: Sequence[Stage],
        *,
        single_steps: int = 0,
        short_steps: int = 0,
        seed: int = 0,
        number: int = 0,
        fresh: bool = True,
        compile: bool = False,
    ):
        self.model = TinyLanguage(model, seed)
        if fresh:
            self.model.start(label_piece_ids(tokenizer))
        self.stages, self.single_steps, self.short_steps = tuple(stages), single_steps, short_steps
        self.seed, self.number = seed, number
        self.features: Callable[[bool], Features] = lru_cache(maxsize=1)(features)
        self._single = single_token_namer(tokenizer)
        self._tokenizer = tokenizer
        self._run = torch.compile(self.model.states, dynamic=True) if compile else self.model.states

    def __len__(self) -> int:
        return self.stages[-1].until

    def item(self, epoch: int, index: int) -> dict[str, Any]:
        stage = self._stage(index)
        features = self.features(stage.early)
        encoder = self._encoder(features.tables[0].shape[1])
        rng = np.random.default_rng([self.seed, 30 + self.number, index])
        namer = self._single if index < self.single_steps else training_names
        batch = training_batch(rng, features, encoder, stage.mixture, namer, short=index < self.short_steps)
        return {field.name: getattr(batch, field.name) for field in fields(batch)} | {"step": index}

    def collate(self, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return items[0]

    def loss(self, model: nn.Module, batch: Mapping[str, Any]) -> tuple[Tensor, Mapping[str, Tensor]]:
        stage = self._stage(batch["step"])
        tokens = TokenBatch(**{name: value for name, value in batch.items() if name != "step"})
        mixture = stage.mixture
        features = self.features(stage.early)
        weights = mixture.weights()
        closed = np.random.default_rng([self.seed, 90 + self.number, batch["step"]]).random() < mixture.closed
        found = losses(
            self.model,
            self._run,
            tokens,
            features,
            balanced=mixture.balanced,
            wanted=tuple(weights),
            closed=bool(closed),
        )
        total = found["answer_loss"] + found["summary_loss"] + sum(weights[name] * found[name] for name in weights)
        return total, found

    def _stage(self, step: int) -> Stage:
        return next(stage for stage in self.stages if step < stage.until)

    @lru_cache(maxsize=1)  # noqa: B019 - an objective lives as long as its run
    def _encoder(self, image_tokens: int) -> Encoder:
        return Encoder(self._tokenizer, image_tokens)


def train_language(
    objective: LanguageObjective,
    folder: Path,
    rate: Callable[[int], float],
    *,
    trainer: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
) -> None:
    """Train the language model in place.

    Args:
        objective: what to train on.
        folder: of checkpoints; a run resumes from them.
        rate: step -> learning rate.
        trainer: arguments of TrainingArguments.
        config: what else identifies the run.
    """
    optimizer = torch.optim.AdamW(objective.model.parameters(), lr=1.0, weight_decay=0.0, betas=(0.9, 0.98))
    record = {
        "stages": [{"until": s.until, "early": s.early, **asdict(s.mixture)} for s in objective.stages],
        "single_steps": objective.single_steps,
        "short_steps": objective.short_steps,
        **(config or {}),
    }
    own = {"save_steps": 250, **(trainer or {})}
    run_steps(objective, folder, optimizer, rate, trainer=own, config=record, seed=objective.seed)


def label_piece_ids(tokenizer: object) -> list[int]:
    """Ids of the tokens that labels are made of: letters without a space before them."""
    vocabulary = tokenizer.get_vocab()  # type: ignore[attr-defined]
    return sorted(i for token, i in vocabulary.items() if token.isalpha() and token.isascii())


def single_token_namer(tokenizer: object) -> Namer:
    """Names of one token each, from the pieces that labels are made of."""
    pieces = [t for t in tokenizer.convert_ids_to_tokens(label_piece_ids(tokenizer)) if len(t) > 1]  # type: ignore[attr-defined]
    single = [t for t in pieces if len(tokenizer(t, add_special_tokens=False)["input_ids"]) == 1]  # type: ignore[operator]

    def names(rng: np.random.Generator, count: int) -> list[str]:
        return [single[i] for i in rng.choice(len(single), count, replace=False)]

    return names


@torch.no_grad()
def blend(language: TinyLanguage, before: Mapping[str, Tensor], share: float) -> None:
    """Make the weights, in place, ``share`` of what they are and the rest of what they were ``before`` (by name)."""
    for name, now in language.named_parameters():  # not the state dict, in which tied weights come twice
        now.lerp_(before[name], 1 - share)


def fold(model: LlavaForConditionalGeneration, language: TinyLanguage, features: Features) -> None:
    """Write the features' centring and the shared image direction into the projector, so that a plain LLaVA remains."""
    linear = model.model.multi_modal_projector.linear_2
    with torch.no_grad():
        linear.weight /= features.scale
        linear.bias.copy_((linear.bias - features.mean) / features.scale + language.image_direction)
