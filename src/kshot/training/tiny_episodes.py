"""Episodes for the embedded model: which pictures, under which labels, and which answers count.

Three kinds. *Characters*: n classes under names drawn anew for every episode. *Scenes*: one attribute is named in plain words, and the
context must reveal which. *Renamed scenes*: the values of one attribute go under other words, so that knowing the word is of no use.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kshot.data.drawing import SCENE_TASKS, invent_name, random_letters
from kshot.training.tiny_words import WORDS

Namer = Callable[[np.random.Generator, int], list[str]]

SCENE_WORDS = tuple(dict.fromkeys(w for words in SCENE_TASKS.values() for w in words))
"""All words of the scenes' attributes."""


@dataclass(frozen=True)
class TinyEpisode:
    """Pictures and their labels in the order in which they are shown; the last one is the query.

    Attributes:
        source: index of the bank that the pictures are from.
        pictures: (n,) flat indices into it.
        labels: n labels.
        graded: (n,) whether the context gives what is needed to answer; ungraded answers are no part of the loss.
        kind: 0 characters, 1 scenes, 2 renamed scenes.
        task: of scenes, the index of the hidden attribute; -1 for characters.
    """

    source: int
    pictures: NDArray[np.int64]
    labels: list[str]
    graded: NDArray[np.bool_]
    kind: int = 0
    task: int = -1


_KINDS: tuple[tuple[float, Callable[[np.random.Generator], str]], ...] = (
    (0.50, lambda rng: invent_name(rng, seen=True)),
    (0.12, lambda rng: random_letters(rng, int(rng.integers(1, 11)))),
    (0.22, lambda rng: str(rng.choice(WORDS))),
    (0.08, lambda rng: str(rng.choice(SCENE_WORDS))),
    (0.08, lambda rng: invent_name(rng, seen=True).capitalize()),
)
_MIXED, _LETTERS, _SCENE_WORDS = -1, 1, 3


def name_kind(rng: np.random.Generator) -> int:
    """A kind of names as :func:`training_names` takes it; in one of five cases, all kinds mixed."""
    return int(rng.choice(len(_KINDS), p=[w for w, _ in _KINDS])) if rng.random() < 0.8 else _MIXED


def training_names(rng: np.random.Generator, count: int, kind: int | None = None) -> list[str]:
    """Distinct names as training episodes use them: of the given kind; by default of :func:`name_kind`'s."""
    kind = name_kind(rng) if kind is None else kind
    if kind == _SCENE_WORDS and count > len(SCENE_WORDS):
        kind = _MIXED
    names: list[str] = []
    while len(names) < count:
        make = _KINDS[int(rng.choice(len(_KINDS), p=[w for w, _ in _KINDS])) if kind == _MIXED else kind][1]
        name = make(rng)
        if name not in names:
            names.append(name)
        elif kind == _LETTERS:
            names.append(random_letters(rng, 10))  # one-letter strings run out
    return names


def unseen_names(rng: np.random.Generator, count: int) -> list[str]:
    """Distinct names of the family that no training episode uses."""
    names: list[str] = []
    while len(names) < count:
        if (name := invent_name(rng, seen=False)) not in names:
            names.append(name)
    return names


def character_episode(
    rng: np.random.Generator,
    source: int,
    classes: int,
    drawings: int,
    *,
    pictures: int,
    ways: int,
    names: Namer,
    balanced: bool = False,
) -> TinyEpisode:
    """An n-way episode over the classes of a bank.

    Args:
        rng: randomness.
        source, classes, drawings: the bank and its shape.
        pictures: demonstrations and query together.
        ways: number of classes.
        names: makes their names.
        balanced: each class is shown equally often before the query (testing); else any order, a class may be missing.
    """
    chosen = rng.choice(classes, ways, replace=False)
    order = _order(rng, ways, pictures, balanced)
    stacks = [_drawings(rng, drawings, int((order == way).sum())) for way in range(ways)]
    picked = np.array([chosen[way] * drawings + stacks[way].pop() for way in order], np.int64)
    words = names(rng, ways)
    return TinyEpisode(source, picked, [words[way] for way in order], _shown_before(order))


def scene_episode(
    rng: np.random.Generator, source: int, attributes: NDArray[np.int64], *, pictures: int, task: int | None = None
) -> TinyEpisode:
    """Any scenes, labelled by the words of one attribute. All answers are graded: the first one teaches which words occur at all."""
    task = int(rng.integers(len(SCENE_TASKS))) if task is None else task
    words = list(SCENE_TASKS.values())[task]
    picked = rng.integers(len(attributes), size=pictures)
    return TinyEpisode(source, picked, [words[v] for v in attributes[picked, task]], np.ones(pictures, bool), 1, task)


def renamed_episode(
    rng: np.random.Generator,
    source: int,
    by_value: Sequence[Sequence[NDArray[np.int64]]],
    *,
    pictures: int,
    ways: int,
    names: Namer | None,
    task: int | None = None,
    balanced: bool = False,
    constant: NDArray[np.int64] | None = None,
) -> TinyEpisode:
    """An n-way episode over values of one attribute of scenes, all else at random.

    Args:
        rng, source, pictures, ways, balanced: as in :func:`character_episode`; ``ways`` is cut to the number of values.
        by_value: per attribute and value, indices of the scenes that have it.
        names: makes the labels; ``None``: the attribute's own words, each for another value than its own.
        task: index of the attribute; ``None``: any.
        constant: attributes of all scenes of the bank; if given, some attributes are the same in all pictures, which leaves fewer that
            the labels could be about (easier to learn from).
    """
    task = int(rng.integers(len(SCENE_TASKS))) if task is None else task
    words = list(SCENE_TASKS.values())[task]
    present = [value for value, scenes in enumerate(by_value[task]) if len(scenes)]  # held-out pairs lack two colours
    ways = min(ways, len(present))
    values = rng.choice(present, ways, replace=False)
    order = _order(rng, ways, pictures, balanced)
    offered = [by_value[task][value] for value in values]
    if constant is not None:
        offered = _alike(rng, offered, constant, task)
    picked = np.array([rng.choice(offered[way]) for way in order], np.int64)
    labels = [words[v] for v in np.roll(values, 1)] if names is None else names(rng, ways)
    return TinyEpisode(source, picked, [labels[way] for way in order], _shown_before(order), 2, task)


def _alike(
    rng: np.random.Generator, offered: list[NDArray[np.int64]], attributes: NDArray[np.int64], task: int
) -> list[NDArray[np.int64]]:
    """Of the scenes offered for each class, those that agree in attributes drawn at random, as long as enough are left."""
    model = attributes[rng.choice(offered[0])]
    wanted = int(rng.integers(1, attributes.shape[1]))
    for other in rng.permutation([a for a in range(attributes.shape[1]) if a != task])[:wanted]:
        fewer = [scenes[attributes[scenes, other] == model[other]] for scenes in offered]
        if min(map(len, fewer)) < 12:
            break
        offered = fewer
    return offered


def scenes_by_value(attributes: NDArray[np.int64]) -> list[list[NDArray[np.int64]]]:
    """Per attribute and value, the indices of the scenes that have it."""
    return [
        [np.flatnonzero(attributes[:, task] == value) for value in range(len(words))]
        for task, words in enumerate(SCENE_TASKS.values())
    ]


def _order(rng: np.random.Generator, ways: int, pictures: int, balanced: bool) -> NDArray[np.int64]:
    """Which class each picture shows."""
    if balanced:
        repeats = -(-(pictures - 1) // ways)
        shown = rng.permutation(np.repeat(np.arange(ways), repeats))[: pictures - 1]
        return np.append(shown, rng.choice(shown))
    order = rng.integers(ways, size=pictures)
    if pictures > ways and rng.random() < 0.6:  # every class at least once before the query
        order[:-1] = rng.permutation(np.concatenate([np.arange(ways), order[ways:-1]]))
    return order


def _shown_before(order: NDArray[np.int64]) -> NDArray[np.bool_]:
    return np.array([way in order[:i] for i, way in enumerate(order)])


def _drawings(rng: np.random.Generator, drawings: int, count: int) -> list[int]:
    """Drawings of a class, all different as long as there are enough."""
    picked = list(rng.permutation(drawings)[:count])
    return picked + list(rng.integers(drawings, size=count - len(picked)))
