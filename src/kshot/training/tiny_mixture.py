"""What the language model of the embedded model is trained on: shares of kinds of episodes, and batches drawn from them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from kshot.training.tiny_batches import Encoder, TokenBatch
from kshot.training.tiny_episodes import (
    Namer,
    TinyEpisode,
    character_episode,
    name_kind,
    renamed_episode,
    scene_episode,
    training_names,
)
from kshot.training.tiny_prompts import Wording, random_wording, short_wording

if TYPE_CHECKING:
    from kshot.training.tiny_language import Features


@dataclass(frozen=True)
class Mixture:
    """What training episodes are made of.

    Attributes:
        tokens: tokens in a batch, about.
        scenes, renamed: shares of the episodes of scenes and of renamed scenes; the rest are characters.
        short: share of batches in the short wording after the short stage.
        forms: share of wordings that are made of random words.
        wordings, tolerance: wordings in a batch, and how much the length of their demonstrations may differ (as a fraction).
        balanced: whether characters, scenes and renamed scenes weigh the same in the loss, per answer and not per token. (Names of
            characters have several tokens, so that most of a loss per token is about spelling.)
        one_kind: whether the names in a batch are mostly of one kind (less padding).
        hint, prototype, agreement, values, match, attention: weights of losses beside that of the answers, see
            :mod:`kshot.training.tiny_losses` and :mod:`kshot.training.tiny_matching`.
        closed: share of batches in which renamed scenes can only be answered by the last layer.
        constant: share of renamed scenes in which some attributes, drawn at random, are the same in all pictures.
        lengths: numbers of pictures in an episode and their weights.
    """

    tokens: int = 6500
    scenes: float = 0.22
    renamed: float = 0.28
    short: float = 0.1
    forms: float = 0.12
    wordings: int = 6
    tolerance: float = 0.2
    one_kind: bool = False
    balanced: bool = False
    hint: float = 0.0
    prototype: float = 0.0
    agreement: float = 0.0
    values: float = 0.0
    match: float = 0.0
    attention: float = 0.0
    closed: float = 0.0
    constant: float = 0.0
    lengths: tuple[tuple[int, float], ...] = ((9, 0.6), (4, 0.05), (6, 0.07), (17, 0.08), (21, 0.13), (33, 0.07))

    def weights(self) -> dict[str, float]:
        """The weights that are not 0, by the names of the losses."""
        names = ("hint", "prototype", "agreement", "values", "match", "attention")
        return {f"{name}_loss": getattr(self, name) for name in names if getattr(self, name)}


def training_batch(
    rng: np.random.Generator, features: Features, encoder: Encoder, mixture: Mixture, names: Namer, *, short: bool
) -> TokenBatch:
    """A batch of episodes of one length, in a few wordings of similar length."""
    numbers = np.array([n for n, _ in mixture.lengths])
    weights = np.array([w for _, w in mixture.lengths])
    pictures = 9 if short else int(rng.choice(numbers, p=weights / weights.sum()))
    if short or rng.random() < mixture.short:
        wordings = [short_wording()]
    else:
        wordings = _similar_wordings(rng, encoder, mixture, longest=22 if pictures > 9 else 40)
    if mixture.one_kind and names is training_names:
        names = partial(training_names, kind=name_kind(rng))
    length = pictures * float(np.mean([encoder.length(w) for w in wordings]))
    rows = max(2, round(mixture.tokens / length))
    if short:
        rows = min(rows, 64)
    episodes = [_episode(rng, features, mixture, names, pictures) for _ in range(rows)]
    chosen = [wordings[i % len(wordings)] for i in range(rows)]
    return encoder.batch(episodes, chosen, list(rng.random(rows) < 0.85))


def _similar_wordings(rng: np.random.Generator, encoder: Encoder, mixture: Mixture, longest: int) -> list[Wording]:
    """Wordings whose demonstrations have about the same length, so that little of a batch is padding."""
    wordings: list[Wording] = []
    size = 0
    while len(wordings) < mixture.wordings:
        wording = random_wording(rng, mixture.forms)
        length = encoder.length(wording)
        if length <= longest and (not wordings or abs(length - size) <= mixture.tolerance * size):
            size = size or length
            wordings.append(wording)
    return wordings


def _episode(
    rng: np.random.Generator, features: Features, mixture: Mixture, names: Namer, pictures: int
) -> TinyEpisode:
    fate = rng.random()
    scenes = len(features.shapes)
    if fate < mixture.scenes:
        return scene_episode(rng, scenes, features.attributes, pictures=pictures)
    if fate < mixture.scenes + mixture.renamed:
        ways = int(rng.choice([2, 2, 2, 3, 4]))
        words = None if rng.random() < 0.35 else names
        known = features.attributes if rng.random() < mixture.constant else None
        return renamed_episode(
            rng, scenes, features.by_value, pictures=pictures, ways=ways, names=words, constant=known
        )
    most = [w for w in (2, 2, 2, 3, 4, 5, 5, 8, 10, 15, 20, 20) if w < max(3, pictures)]
    if pictures > 9:
        most = [w for w in most if w in (2, 4) or w >= 5]
    source = int(rng.integers(len(features.shapes)))
    draw = partial(character_episode, rng, source, *features.shapes[source])
    return draw(pictures=pictures, ways=int(rng.choice(most)), names=names)
