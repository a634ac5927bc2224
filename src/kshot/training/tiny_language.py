"""Second half of the recipe: a language model that learns from context, over the frozen vision tower.

Left alone, such a model stays at guessing among the names it has read. What makes in-context matching emerge within a few hundred
steps is the *summary loss*: after the first layer, a linear probe at the answer's cue and at each of its tokens must reconstruct
the mean feature of the picture just before. Each answer then carries its picture, and a later layer can look up the answer whose
picture is most alike. The probe is thrown away afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm
from transformers import LlavaForConditionalGeneration

from kshot.data.drawing import SCENE_TASKS
from kshot.training.tiny_banks import Banks
from kshot.training.tiny_batches import IGNORED, Encoder, TokenBatch
from kshot.training.tiny_checkpoint import load_checkpoint, save_checkpoint
from kshot.training.tiny_episodes import (
    Namer,
    TinyEpisode,
    character_episode,
    name_kind,
    renamed_episode,
    scene_episode,
    scenes_by_value,
    training_names,
)
from kshot.training.tiny_model import ImageEncoder, learning_rate
from kshot.training.tiny_prompts import Wording, random_wording, short_wording
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
        self.image_direction = nn.Parameter(torch.randn(width))

    def start(self, label_ids: list[int]) -> None:
        """Word vectors on the scale of image tokens; pieces of labels share a direction ("I am part of an answer").

        Word vectors of this length would make tied logits enormous, so the last normalisation starts small.
        """
        self.decoder.norm.weight.data.fill_(0.15)
        vectors = self.decoder.embed_tokens.weight.data
        vectors.normal_(0, 1)
        vectors[label_ids] = (vectors[label_ids] + torch.randn(vectors.shape[1])) / 2**0.5

    def states(self, embeddings: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Hidden states (rows, length, width) of embeddings: final, after the first layer, before the last two, before the last."""
        positions = torch.arange(embeddings.shape[1])[None]
        rotary = self.decoder.rotary_emb(embeddings, positions)
        hidden = first = late = last = embeddings
        for number, layer in enumerate(self.decoder.layers):
            hidden = layer(hidden, attention_mask=None, position_ids=positions, position_embeddings=rotary)
            first = hidden if number == 0 else first
            late = hidden if number == len(self.decoder.layers) - 3 else late
            last = hidden if number == len(self.decoder.layers) - 2 else last
        return self.decoder.norm(hidden), first, late, last

    def embed(self, batch: TokenBatch, features: Tensor) -> Tensor:
        """Input embeddings: word vectors, and at the placeholders the pictures' features."""
        words = self.decoder.embed_tokens(batch.ids)
        return words.index_put(tuple(batch.image_at.T), features.flatten(0, 1) + self.image_direction)


@dataclass(frozen=True)
class Mixture:
    """What training episodes are made of.

    Attributes:
        tokens: tokens in a batch, about.
        scenes, renamed: shares of the episodes of scenes and of renamed scenes; the rest are characters.
        short: share of batches in the short wording after the short stage.
        wordings, tolerance: wordings in a batch, and how much the length of their demonstrations may differ (as a fraction).
        balanced: whether characters, scenes and renamed scenes weigh the same in the loss, per answer and not per token. (Names of
            characters have several tokens, so that most of a loss per token is about spelling.)
        one_kind: whether the names in a batch are mostly of one kind (less padding).
        hint, prototype: weights of the hint loss and of the prototype loss.
        constant: share of renamed scenes in which some attributes, drawn at random, are the same in all pictures.
        lengths: numbers of pictures in an episode and their weights.
    """

    tokens: int = 6500
    scenes: float = 0.22
    renamed: float = 0.28
    short: float = 0.1
    wordings: int = 6
    tolerance: float = 0.2
    one_kind: bool = False
    balanced: bool = False
    hint: float = 0.0
    prototype: float = 0.0
    constant: float = 0.0
    lengths: tuple[tuple[int, float], ...] = ((9, 0.6), (4, 0.05), (6, 0.07), (17, 0.08), (21, 0.13), (33, 0.07))


def train_language(
    model: LlavaForConditionalGeneration,
    tokenizer: object,
    features: Features,
    checkpoint: Path,
    *,
    steps: int,
    short_steps: int,
    single_steps: int,
    mixture: Mixture,
    peak: float = 1.5e-3,
    seed: int = 0,
    compile: bool = False,
    save_every: int = 250,
    stop_after: int | None = None,
) -> TinyLanguage:
    """Train the language model of ``model`` in place and return it with its additions.

    Args:
        model, tokenizer: what is trained, and its tokenizer.
        features: features of the training pictures.
        checkpoint: where the state is saved; a run resumes from it.
        steps: optimiser steps; the first ``short_steps`` see episodes of nine pictures in the short wording only.
        single_steps: as long, all labels are single tokens: matching is learnt before spelling.
        mixture: what episodes are made of.
        peak: learning rate.
        seed: batches derive from (seed, step).
        compile: use torch.compile (about twice as fast after some minutes; other rounding).
        save_every: steps between checkpoints.
        stop_after: stop after this step although the schedule goes on (to look at the model on the way).
    """
    encoder = Encoder(tokenizer, features.tables[0].shape[1])
    single = single_token_namer(tokenizer)
    language = TinyLanguage(model, seed)
    language.start(label_piece_ids(tokenizer))
    parameters = list(language.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=peak, weight_decay=0.0, betas=(0.9, 0.98))
    begin = load_checkpoint(checkpoint, {"language": language}, optimizer)
    run = torch.compile(language.states, dynamic=True) if compile else language.states
    model.train()
    last = min(steps, stop_after or steps)
    bar = tqdm(range(begin, last), initial=begin, total=steps, desc="language", disable=None)
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, peak, warm_up=150, hold=0.5)
        rng = np.random.default_rng([seed, 30, step])
        namer = single if step < single_steps else training_names
        batch = training_batch(rng, features, encoder, mixture, namer, short=step < short_steps)
        answers, summary, hint, prototype = losses(language, run, batch, features, balanced=mixture.balanced)
        (answers + summary + mixture.hint * hint + mixture.prototype * prototype).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        bar.set_postfix(
            loss=f"{answers.item():.3f}", summary=f"{summary.item():.3f}", hint=f"{hint.item():.3f}", refresh=False
        )
        if (step + 1) % save_every == 0 or step + 1 == last:
            save_checkpoint(checkpoint, {"language": language}, optimizer, step + 1)
    model.eval()
    return language


def losses(
    language: TinyLanguage, run: object, batch: TokenBatch, features: Features, *, balanced: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The loss of the answers (see :class:`Mixture` for ``balanced``), and the summary, hint and prototype losses."""
    pictures = features.look_up(batch)
    final, first, late, last = run(language.embed(batch, pictures))  # type: ignore[operator]
    graded = batch.targets != IGNORED
    answers = F.cross_entropy(language.head(final[graded]), batch.targets[graded], reduction="none")
    if balanced:
        kind_of = batch.kinds[graded.nonzero()[:, 0]]
        sums = torch.zeros(len(batch.answers)).index_add(0, kind_of, answers)
        loss = (sums / batch.answers.clamp(min=1)).sum() / (batch.answers > 0).sum()
    else:
        loss = answers.mean()
    known = language.probe(first[tuple(batch.summary_at.T)])
    summary = F.mse_loss(known, pictures.mean(1)[batch.summary_of])
    means = pictures.mean(1)
    shape = len(batch.group_at), means.shape[1]
    counts = torch.bincount(batch.group_of, minlength=shape[0]).unsqueeze(1)
    prototypes = means.new_zeros(shape).index_add(0, batch.group_of, means[batch.group_pictures]) / counts
    prototype = F.mse_loss(language.prototype(late[tuple(batch.group_at.T)]), prototypes)
    if not len(batch.task_of):
        return loss, summary, loss.new_zeros(()), prototype
    return loss, summary, F.cross_entropy(language.hint(last[tuple(batch.task_at.T)]), batch.task_of), prototype


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


def fold(model: LlavaForConditionalGeneration, language: TinyLanguage, features: Features) -> None:
    """Write the features' centring and the shared image direction into the projector, so that a plain LLaVA remains."""
    linear = model.model.multi_modal_projector.linear_2
    with torch.no_grad():
        linear.weight /= features.scale
        linear.bias.copy_((linear.bias - features.mean) / features.scale + language.image_direction)


def _similar_wordings(rng: np.random.Generator, encoder: Encoder, mixture: Mixture, longest: int) -> list[Wording]:
    """Wordings whose demonstrations have about the same length, so that little of a batch is padding."""
    wordings: list[Wording] = []
    size = 0
    while len(wordings) < mixture.wordings:
        wording = random_wording(rng)
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
