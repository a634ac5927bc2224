"""The language model of ``tiny-visual``: a small Llama on visual sentences of boards, pairs and sequences.

What is added for training and taken away at the end: word vectors and output vectors are functions of the tokenizer's code vectors, so
that tiles which look alike begin alike, and tiles that never turn up in training (held-out pairs of colour and shape) get vectors too;
and linear probes ask the layers, in turn, for the steps of the way: which square comes next (first layer), which function is shown
(third), what the square shows that the next one is made of (last but one).

Sentences begin with the token for it. Nothing else marks where pictures begin, and without that anchor functions that move things were
not learnt within 1,250 steps: places were known from the second layer on at the earliest, too late for what the others have to do. One
frequency of the rotary embedding turns exactly once a picture. The model that is written is a plain ``LlamaForCausalLM``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from kshot.data.derived import generator
from kshot.data.drawing.functions import (
    BASIC,
    CHAINS,
    CHANGES,
    IDENTITY,
    MOVES,
    SEQUENCES,
    random_boards,
    shows_held_out,
    telling,
)
from kshot.data.drawing.tiles import GROUNDS, TILES, Board
from kshot.training.objective import Objective
from kshot.training.run import run_steps
from kshot.training.tiny_model import decoder_states, learning_rate

PAIRS = 5
"""Pairs in a training sentence: every answer but the first is one to 1, 2, 3 or 4 examples."""
FRAMES = 2 * PAIRS
SQUARES = 16
KINDS = len(BASIC) + len(CHAINS) + len(SEQUENCES)


@dataclass(frozen=True)
class LanguageShape:
    """Sizes of the Llama."""

    width: int = 128
    layers: int = 5
    heads: int = 4
    units: int = 320
    vocabulary: int = 356
    positions: int = 2 * PAIRS * SQUARES

    def config(self, codes: int) -> LlamaConfig:
        # Frequency i of a head is base ** (-2 i / its width): an eighth of the way down it is to be 2 pi / 16. Most others are slow
        # enough then to compare tiles wherever they are.
        base = (SQUARES / (2 * math.pi)) ** 8
        return LlamaConfig(
            rope_parameters={"rope_type": "default", "rope_theta": base},
            vocab_size=self.vocabulary,
            hidden_size=self.width,
            intermediate_size=self.units,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.heads,
            max_position_embeddings=self.positions,
            tie_word_embeddings=False,
            bos_token_id=codes,
            eos_token_id=None,
            pad_token_id=codes + 2,
        )


@dataclass(frozen=True)
class SentenceMixture:
    """What training sentences are made of.

    Attributes:
        rows: sentences in a step.
        chains: share of the sentences of pairs that show a chain of two functions.
        moves: share of the other sentences of pairs that show a function that moves things; 0: as many as there are such functions.
        sequences: share of sequences.
        given: weight in the loss of what nothing determines: questions, and the first frame.
        guess: weight of the first answer, and of the second frame, for which there is no example yet.
    """

    rows: int = 24
    chains: float = 0.15
    moves: float = 0.0
    sequences: float = 0.1
    given: float = 0.03
    guess: float = 0.1


class BoardBank:
    """Boards to make sentences of: of the ``train`` split, without held-out pairs, by what they tell.

    Args:
        count: boards.
        seed: of the boards.
    """

    def __init__(self, count: int, seed: int):
        self.functions = (*BASIC, *CHAINS)
        self.boards = random_boards(generator(seed, "tiny-visual boards"), count, split="train")
        told = telling(self.boards, self.functions)
        self.of_function: list[NDArray[np.int64]] = []
        for number, function in enumerate(self.functions):
            told[:, number] &= ~shows_held_out(function(self.boards))
            self.of_function.append(np.flatnonzero(told[:, number]))

    def pairs(self, rng: np.random.Generator, function: int) -> Board:
        """A sentence of pairs (FRAMES, 16): questions and answers in turn."""
        known = self.of_function[function]
        questions = self.boards[known[rng.integers(len(known), size=PAIRS)]]
        return np.stack([questions, self.functions[function](questions)], 1).reshape(FRAMES, SQUARES)

    def sequence(self, rng: np.random.Generator, number: int) -> Board:
        """Frames (FRAMES, 16), each of which differs from the one before."""
        step = SEQUENCES[number]
        while True:
            frames = [self.boards[rng.integers(len(self.boards))]]
            while len(frames) < FRAMES:
                frames.append(step(frames[-1]))
            if all((a != b).any() for a, b in pairwise(frames)):
                return np.stack(frames)


class VisualLanguage(nn.Module):
    """The Llama with what training adds.

    Args:
        llama: the model.
        codebook: code vectors (codes, width of the code).
        pieces: whether there is a probe for single pieces, see :class:`SentenceObjective`.
    """

    codebook: Tensor

    def __init__(self, llama: LlamaForCausalLM, codebook: Tensor, *, pieces: bool = False):
        super().__init__()
        width, rows = llama.config.hidden_size, llama.config.vocab_size
        self.decoder = llama.model
        self.register_buffer("codebook", codebook.clone(), persistent=False)
        latent = codebook.shape[1]
        self.reads = nn.Sequential(nn.Linear(latent, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))
        self.writes = nn.Sequential(nn.Linear(latent, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))
        self.other_inputs = nn.Parameter(torch.randn(rows - len(codebook), width) * 0.3)
        self.other_outputs = nn.Parameter(torch.randn(rows - len(codebook), width) * 0.02)
        self.place = nn.Linear(width, 2 * SQUARES)
        self.kind = nn.Linear(width, KINDS)
        self.origin = nn.Linear(width, width)
        self.piece = nn.Linear(width, KINDS) if pieces else None

    def tables(self) -> tuple[Tensor, Tensor]:
        """Word vectors and output vectors of all ids (vocabulary, width)."""
        inputs = torch.cat([self.reads(self.codebook), self.other_inputs])
        return inputs, torch.cat([self.writes(self.codebook), self.other_outputs])

    def states(self, embeddings: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Hidden states of embeddings (rows, length, width): final, and behind each layer."""
        return decoder_states(self.decoder, embeddings)


class SentenceObjective(Objective):
    """Next tokens of sentences. An item is the batch of a step.

    Args:
        llama: the model that is trained.
        codebook: of its tokenizer; token i is tile i.
        bank: of boards.
        steps: of the run.
        mixture: what sentences are made of.
        probe: weight of the probes' losses.
        pieces: weight of the loss of one more probe: the second layer must tell the function from each piece of an answer by itself,
            as far as that goes. (To do so it has to find the piece in the question.)
        seed: batches derive from (seed, number, step).
        number: of the run, if a model has several.
        begun: goes on with its vectors and probes; default: new ones.
        compile: use torch.compile (about twice as fast after some minutes; rounds differently).
    """

    model: VisualLanguage

    def __init__(
        self,
        llama: LlamaForCausalLM,
        codebook: Tensor,
        bank: BoardBank,
        *,
        steps: int,
        mixture: SentenceMixture | None = None,
        probe: float = 0.3,
        pieces: float = 0.0,
        seed: int = 0,
        number: int = 0,
        begun: VisualLanguage | None = None,
        compile: bool = False,
    ):
        self.llama, self.bank, self.number, self.pieces = llama, bank, number, pieces
        self.model = VisualLanguage(llama, codebook, pieces=pieces > 0)
        if begun is not None:
            self.model.load_state_dict(begun.state_dict(), strict=False)  # the probe for pieces may be new
        self.steps, self.mixture, self.probe, self.seed = steps, mixture or SentenceMixture(), probe, seed
        self._key = ("tiny-visual sentences",) if not number else ("tiny-visual sentences", number)
        self._run = torch.compile(self.model.states, dynamic=False) if compile else self.model.states
        # Tiles of held-out pairs are never right; taught to be always wrong, they could not be answered later.
        self._silent = torch.tensor([number for number, tile in enumerate(TILES) if tile.held_out])
        mix = self.mixture
        pairs = torch.ones(PAIRS, 2, SQUARES)
        pairs[:, 0], pairs[0, 1] = mix.given, mix.guess
        frames = torch.ones(FRAMES, SQUARES)
        frames[0], frames[1] = mix.given, mix.guess
        self._weights = torch.stack([pairs.flatten(), frames.flatten()])

    def __len__(self) -> int:
        return self.steps

    def item(self, epoch: int, index: int) -> dict[str, Tensor]:
        rng, mix = generator(self.seed, *self._key, index), self.mixture
        rows, kinds, origins, sequences = [], [], [], round(mix.rows * mix.sequences)
        for row in range(mix.rows):
            if row < sequences:
                number = int(rng.integers(len(SEQUENCES)))
                frames, source = self.bank.sequence(rng, number), SEQUENCES[number].source
                kinds.append(len(self.bank.functions) + number)
            else:
                number = self._function(rng)
                frames, source = self.bank.pairs(rng, number), self.bank.functions[number].source
                kinds.append(number)
            rows.append(frames.ravel())
            origins.append(np.concatenate([frames[:1], frames[:-1, list(source)]]).ravel())
        kind = torch.tensor(kinds)
        return {
            "ids": torch.from_numpy(np.stack(rows)),
            "origins": torch.from_numpy(np.stack(origins)),
            "weights": self._weights[(kind >= len(self.bank.functions)).long()],
            "kind": kind,
        }

    def _function(self, rng: np.random.Generator) -> int:
        """The number of a function of pairs."""
        if rng.random() < self.mixture.chains:
            return int(len(BASIC) + rng.integers(len(CHAINS)))
        if not self.mixture.moves:
            return int(rng.integers(len(BASIC)))
        chosen = MOVES if rng.random() < self.mixture.moves else (IDENTITY, *CHANGES)
        return BASIC.index(chosen[rng.integers(len(chosen))])

    def collate(self, items: Sequence[dict[str, Tensor]]) -> dict[str, Any]:
        return items[0]

    def loss(self, model: nn.Module, batch: Mapping[str, Any]) -> tuple[Tensor, Mapping[str, Tensor]]:
        ids, weights = batch["ids"], batch["weights"]
        known = weights == 1
        inputs, outputs = self.model.tables()
        begun = F.pad(ids[:, :-1], (1, 0), value=len(self.model.codebook))
        states, behind = self._run(F.embedding(begun, inputs))
        silent = torch.zeros(len(outputs)).index_fill(0, self._silent, -1e4)
        logits = states @ outputs.T + silent
        wrong = F.cross_entropy(logits.flatten(0, 1), ids.flatten(), reduction="none").view_as(weights)
        answers = (wrong * weights).sum() / weights.sum()
        squares = (torch.arange(ids.shape[1]) % (2 * SQUARES)).expand_as(ids).flatten()
        place = F.cross_entropy(self.model.place(behind[0]).flatten(0, 1), squares)
        named = self.model.kind(behind[min(2, len(behind) - 1)][:, 2 * SQUARES :: 2 * SQUARES])
        kinds = batch["kind"][:, None].expand(-1, named.shape[1])
        kind = F.cross_entropy(named.flatten(0, 1), kinds.flatten())
        origin = F.cross_entropy(self.model.origin(behind[-2][known]) @ outputs.T + silent, batch["origins"][known])
        right = (logits.argmax(-1) == ids)[known].float().mean()
        parts = {"answer_loss": answers, "place_loss": place, "kind_loss": kind, "origin_loss": origin, "right": right}
        total = answers + self.probe * (place + kind + origin)
        if self.model.piece is not None:
            answered = (torch.arange(ids.shape[1] - 1) // SQUARES) % 2 == 1  # in sequences: every other frame
            shown = answered & (ids[:, :-1] >= len(GROUNDS))
            owners = batch["kind"][:, None].expand_as(shown)[shown]
            parts["piece_loss"] = F.cross_entropy(self.model.piece(behind[1][:, 1:][shown]), owners)
            total = total + self.pieces * parts["piece_loss"]
        return total, parts


def train_sentences(
    objective: SentenceObjective,
    folder: Path,
    *,
    peak: float,
    hold: float = 0.4,
    trainer: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
) -> None:
    """Train the language model in place, and write its tables into the Llama.

    Args:
        objective: what to train on.
        folder: of checkpoints; a run resumes from them.
        peak: learning rate.
        hold: the part of the run after which it goes down.
        trainer: arguments of TrainingArguments.
        config: what else identifies the run.
    """
    optimizer = torch.optim.AdamW(objective.model.parameters(), lr=peak, weight_decay=0.0, betas=(0.9, 0.98))

    def factor(step: int) -> float:
        return learning_rate(step, objective.steps, 1.0, warm_up=100, hold=hold)

    record = {
        "peak": peak,
        "hold": hold,
        "probe": objective.probe,
        "pieces": objective.pieces,
        **asdict(objective.mixture),
        **(config or {}),
    }
    own = {"save_steps": 250, **(trainer or {})}
    run_steps(objective, folder, optimizer, factor, trainer=own, config=record, seed=objective.seed)
    fold(objective)


@torch.no_grad()
def fold(objective: SentenceObjective) -> None:
    """Write word vectors and output vectors as tables, so that a plain Llama remains."""
    inputs, outputs = objective.model.tables()
    objective.llama.model.embed_tokens.weight.copy_(inputs)
    objective.llama.lm_head.weight.copy_(outputs)
