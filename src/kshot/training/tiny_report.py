"""What the embedded model can do, measured on its exported folder over the whole vocabulary.

An answer counts only if every token of the label, and the form's terminator after it, is the model's first choice: what greedy
generation would write. (One forward pass tells, since an answer that is right so far has the label as its prefix; one cell checks this
against ``generate`` itself.) Pictures pass through the folder's own image processor. No character, name or filled colour-shape pair of
these episodes occurs in training, unless a cell's name says so.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from kshot.data.drawing import SCENE_TASKS, Scene, random_letters
from kshot.training import tiny_prompts as prompts
from kshot.training.tiny_banks import attribute_indices, read_omniglot
from kshot.training.tiny_batches import IGNORED, Encoder
from kshot.training.tiny_episodes import (
    Namer,
    TinyEpisode,
    character_episode,
    renamed_episode,
    scene_episode,
    scenes_by_value,
    unseen_names,
)
from kshot.training.tiny_export import load
from kshot.training.tiny_prompts import Wording
from kshot.training.tiny_words import WORDS

Make = Callable[[np.random.Generator], TinyEpisode]
QUESTION = "What is it?"


class Bench:
    """An exported model with test pictures already preprocessed.

    Args:
        folder: the model folder.
        omniglot: archive of test characters.
        scenes: test scenes of each kind.
    """

    CHARACTERS, DIGITS, HELD_OUT, SCENES, BLANK = range(5)

    def __init__(self, folder: str | os.PathLike[str], omniglot: str | os.PathLike[str], scenes: int = 3000):
        self.model, self.processor = load(folder)
        self.tokenizer = self.processor.tokenizer
        self.encoder = Encoder(self.tokenizer, self.model.config.image_seq_length)
        characters = list(read_omniglot(omniglot).values())
        self.shape = (len(characters), len(characters[0]))
        digits, self.digit_labels = _digits()
        held = [Scene.random(i, held_out=True) for i in range(scenes)]
        seen = [Scene.random(i) for i in range(scenes)]
        self.attributes = {
            self.HELD_OUT: np.array([attribute_indices(s) for s in held]),
            self.SCENES: np.array([attribute_indices(s) for s in seen]),
        }
        self.by_value = scenes_by_value(self.attributes[self.HELD_OUT])
        pictures = [
            [drawing for c in characters for drawing in c],
            digits,
            [s.draw() for s in held],
            [s.draw() for s in seen],
            [Image.new("RGB", (64, 64), "white")],
        ]
        self.pixels = [self._preprocess(p) for p in pictures]
        self.features = [self._features(p) for p in self.pixels]

    def accuracy(
        self,
        make: Make,
        count: int,
        wordings: Sequence[Wording] | None = None,
        *,
        seed: int = 0,
        batch: int = 50,
        generate: bool = False,
    ) -> dict[str, float]:
        """Share of episodes answered exactly, with a 95 % Wilson interval.

        Args:
            make: makes an episode.
            count: number of episodes.
            wordings: used in turn; default: the five commonest forms.
            seed: of the episodes.
            batch: episodes answered together.
            generate: through the model's ``generate`` (left-padded batches, pixels) instead of one forward pass.
        """
        answers = self.generated if generate else self.answers
        wordings = wordings or standard_wordings()
        rng = np.random.default_rng([seed, 40])
        episodes = [make(rng) for _ in range(count)]
        right = 0
        for number, wording in enumerate(wordings):  # a batch shares its wording
            mine = episodes[number :: len(wordings)]
            for i in range(0, len(mine), batch):
                right += sum(answers(mine[i : i + batch], wording))
        low, high = wilson(right, count)
        return {"accuracy": right / count, "low": low, "high": high, "episodes": count}

    @torch.no_grad()
    def answers(self, episodes: Sequence[TinyEpisode], wording: Wording) -> list[bool]:
        """Which of the episodes are answered exactly."""
        batch = self.encoder.batch(episodes, [wording] * len(episodes), [True] * len(episodes), query_only=True)
        decoder = self.model.model.language_model
        features = torch.cat([self.features[e.source][torch.from_numpy(e.pictures)].flatten(0, 1) for e in episodes])
        embeddings = decoder.embed_tokens(batch.ids).index_put(tuple(batch.image_at.T), features)
        hidden = decoder(inputs_embeds=embeddings, use_cache=False).last_hidden_state
        graded = batch.targets != IGNORED
        wrong = torch.zeros_like(graded)
        wrong[graded] = self.model.lm_head(hidden[graded]).argmax(-1) != batch.targets[graded]
        return [not w for w in wrong.any(1).tolist()]

    @torch.no_grad()
    def generated(self, episodes: Sequence[TinyEpisode], wording: Wording) -> list[bool]:
        """As :meth:`answers`, through ``generate``."""
        rows = [self._prompt(e, wording) for e in episodes]
        length = max(map(len, rows))
        ids = torch.full((len(rows), length), self.tokenizer.pad_token_id)
        mask = torch.zeros_like(ids)
        for number, row in enumerate(rows):
            ids[number, length - len(row) :] = torch.tensor(row)
            mask[number, length - len(row) :] = 1
        pixels = torch.stack([self.pixels[e.source][p] for e in episodes for p in e.pictures])
        room = 2 + max(len(self.encoder.ids(e.labels[-1])) for e in episodes)
        out = self.model.generate(  # type: ignore[misc]
            input_ids=ids, attention_mask=mask, pixel_values=pixels, max_new_tokens=room
        )
        after = self.encoder.ids(wording.after)[0]
        results = []
        for episode, row in zip(episodes, out[:, length:].tolist(), strict=True):
            expected = [*self.encoder.ids(episode.labels[-1]), after]
            results.append(row[: len(expected)] == expected)
        return results

    def characters(
        self, rng: np.random.Generator, pictures: int, ways: int, names: Namer = unseen_names
    ) -> TinyEpisode:
        """An episode over characters of unseen alphabets."""
        return character_episode(
            rng, self.CHARACTERS, *self.shape, pictures=pictures, ways=ways, names=names, balanced=True
        )

    def digits(self, rng: np.random.Generator, pictures: int) -> TinyEpisode:
        """A 2-way episode over handwritten digits."""
        digits = rng.choice(10, 2, replace=False)
        order = np.append(rng.permutation(np.repeat([0, 1], (pictures - 1) // 2)), rng.integers(2))
        names = unseen_names(rng, 2)
        picked = [rng.choice(np.flatnonzero(self.digit_labels == digits[way])) for way in order]
        return TinyEpisode(self.DIGITS, np.array(picked), [names[way] for way in order], np.ones(pictures, bool))

    def _prompt(self, episode: TinyEpisode, wording: Wording) -> list[int]:
        batch = self.encoder.batch([episode], [wording], [True])
        return [int(i) for i in batch.ids[0]][: -len(self.encoder.ids(episode.labels[-1])) or None]

    @torch.no_grad()
    def _features(self, pixels: Tensor) -> Tensor:
        parts = [torch.stack(list(self.model.get_image_features(p).pooler_output)) for p in pixels.split(1000)]
        return torch.cat(parts)

    def _preprocess(self, pictures: Sequence[Image.Image]) -> Tensor:
        parts = []
        for i in range(0, len(pictures), 500):
            images = [p.convert("RGB") for p in pictures[i : i + 500]]
            parts.append(self.processor.image_processor(images, return_tensors="pt")["pixel_values"])
        return torch.cat(parts)


def measure_tiny(
    folder: str, omniglot: str, *, episodes: int = 2000, only: str = "", out: str | None = None, seed: int = 0
) -> dict[str, dict[str, float]]:
    """Every figure of the model card.

    Args:
        folder: the model folder.
        omniglot: archive of characters that training never saw.
        episodes: per cell.
        only: regular expression; cells whose names it does not occur in are left out.
        out: JSON file to write after every cell.
        seed: of the episodes.

    Returns:
        Cell -> accuracy, bounds of the 95 % interval, number of episodes.
    """
    bench = Bench(folder, omniglot)
    cells: dict[str, dict[str, float]] = {}
    chosen = {name: cell for name, cell in _cells(bench).items() if re.search(only, name)}
    for name, (make, wordings) in tqdm(chosen.items(), desc="cells", disable=None):
        cells[name] = bench.accuracy(make, episodes, wordings, seed=seed)
        if name == "characters, 2-way, 4 per class":
            cells[f"{name}, generate()"] = bench.accuracy(make, episodes // 4, wordings, seed=seed, generate=True)
        if out is not None:
            Path(out).write_text(json.dumps(cells, indent=1) + "\n")
    return cells


def standard_wordings() -> list[Wording]:
    """The five commonest forms, chat among them."""
    plain = (prompts.LIVE, prompts.PLAIN, prompts.DIALOGUE, prompts.CAPTION)
    return [prompts.chat_wording(QUESTION), *(prompts.plain_wording(t, QUESTION) for t in plain)]


def wilson(right: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a share (Wilson, 1927)."""
    share, scale = right / count, 1 + z**2 / count
    half = z * np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    centre = share + z**2 / (2 * count)
    return float((centre - half) / scale), float((centre + half) / scale)


def _cells(bench: Bench) -> dict[str, tuple[Make, list[Wording] | None]]:
    def letters(rng: np.random.Generator, count: int) -> list[str]:
        return [random_letters(rng, 5) for _ in range(count)]

    def english(rng: np.random.Generator, count: int) -> list[str]:
        return [str(w) for w in rng.choice(WORDS, count, replace=False)]

    cells: dict[str, tuple[Make, list[Wording] | None]] = {}
    for ways, per_class in ((2, 1), (2, 2), (2, 4), (2, 8), (2, 16), (3, 1), (5, 1), (5, 4), (10, 1), (20, 1)):
        make = partial(bench.characters, pictures=ways * per_class + 1, ways=ways)
        cells[f"characters, {ways}-way, {per_class} per class"] = make, None
    four = partial(bench.characters, pictures=9, ways=2)
    cells["characters, 2-way, 4 per class, five random letters"] = partial(four, names=letters), None
    cells["characters, 2-way, 4 per class, English words"] = partial(four, names=english), None
    cells["control: labels shuffled"] = (lambda rng: shuffle_labels(rng, four(rng))), None
    cells["control: query swapped"] = (lambda rng: _swapped(four(rng), four(rng))), None
    cells["control: blank images"] = (
        (lambda rng: replace(four(rng), source=bench.BLANK, pictures=np.zeros(9, np.int64))),
        None,
    )
    cells["digits, 2-way, 1 per class"] = partial(bench.digits, pictures=3), None
    cells["digits, 2-way, 4 per class"] = partial(bench.digits, pictures=9), None
    for source, kind in ((bench.SCENES, "seen pairs"), (bench.HELD_OUT, "held-out pairs")):
        for shots in (0, 1, 2, 4, 8):
            make = partial(scene_episode, source=source, attributes=bench.attributes[source], pictures=shots + 1)
            cells[f"scenes, {kind}, {shots} shots"] = make, None
    for task, name in enumerate(SCENE_TASKS):
        make = partial(
            scene_episode, source=bench.HELD_OUT, attributes=bench.attributes[bench.HELD_OUT], pictures=9, task=task
        )
        cells[f"scenes, held-out pairs, 8 shots, {name}"] = make, None
    renamed = partial(renamed_episode, source=bench.HELD_OUT, by_value=bench.by_value, balanced=True)
    for ways, pictures in ((2, 9), (3, 10), (4, 17)):
        make = partial(renamed, ways=ways, pictures=pictures, names=unseen_names)
        cells[f"renamed scenes, {ways} values, {pictures - 1} shots"] = make, None
    cells["renamed scenes, permuted words, 8 shots"] = partial(renamed, ways=2, pictures=9, names=None), None
    for task, name in enumerate(SCENE_TASKS):
        make = partial(renamed, ways=2, pictures=9, names=unseen_names, task=task)
        cells[f"renamed scenes, 2 values, 8 shots, {name}"] = make, None
    forms = {"LIVE": prompts.LIVE, "Question Answer": prompts.PLAIN, "Caption": prompts.CAPTION}
    forms |= {"Link-Context": prompts.LINK, "User Assistant": prompts.DIALOGUE}
    for name, template in forms.items():
        cells[f"wording: {name}"] = four, [prompts.plain_wording(template, QUESTION)]
    cells["wording: chat"] = four, [prompts.chat_wording(QUESTION)]
    for number, template in enumerate(prompts.HELD_OUT):
        question = prompts.HELD_OUT_QUESTIONS[number % len(prompts.HELD_OUT_QUESTIONS)]
        cells[f"wording: held out {number + 1}"] = four, [prompts.plain_wording(template, question)]
    return cells


def shuffle_labels(rng: np.random.Generator, episode: TinyEpisode) -> TinyEpisode:
    """Demonstrations keep their pictures, labels are dealt out anew; the query keeps its true label."""
    shown = [episode.labels[i] for i in rng.permutation(len(episode.labels) - 1)]
    return replace(episode, labels=[*shown, episode.labels[-1]])


def _swapped(episode: TinyEpisode, other: TinyEpisode) -> TinyEpisode:
    """The query's picture is one of another episode's."""
    return replace(episode, pictures=np.append(episode.pictures[:-1], other.pictures[-1]))


def _digits() -> tuple[list[Image.Image], NDArray[np.int64]]:
    """scikit-learn's 8 x 8 handwritten digits as black on white."""
    from sklearn.datasets import load_digits

    data = load_digits()
    grey = (255 - np.minimum(data.images * 16, 255)).astype(np.uint8)
    return [Image.fromarray(g).resize((64, 64), Image.Resampling.BICUBIC) for g in grey], data.target
