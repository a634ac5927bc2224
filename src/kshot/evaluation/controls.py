"""Controls: episodes from which one ingredient has been taken, to see whether the model used it.

A model that learns from its demonstrations must fall to chance when their labels are shuffled, and get worse when their images
are blank. One that does not was recognising a task it already knew, or guessing from the text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from kshot.episode import Episode
from kshot.picture import DrawnPicture, Picture
from kshot.registry import Registry

GREY = (128, 128, 128)


@dataclass(frozen=True)
class Control:
    """A change made to every episode.

    Attributes:
        change: ``change(episode, seed) -> Episode``; a pure function of both.
        least_shots: fewer demonstrations leave nothing to change; such cells are left out.
        meaning: one line for tables and reports.
    """

    change: Callable[[Episode, int], Episode]
    least_shots: int
    meaning: str


controls: Registry[Control] = Registry("control", "kshot.controls")


def shuffle_labels(episode: Episode, seed: int) -> Episode:
    """The demonstrations' labels, with all that belongs to a label, are dealt out among them again.

    The permutation is uniform over *all* permutations, also those that leave labels in place: then a label says nothing about
    its image, and in an n-way episode a perfect learner is right once in n. (Permutations that move every label would tell the
    learner what an image is *not*.) It derives from ``seed`` and the query's id.
    """
    demonstrations = episode.demonstrations
    order = _generator(seed, "shuffled-labels", episode.query.id).permutation(len(demonstrations))
    shuffled = [
        example.with_(answer=demonstrations[i].answer, references=demonstrations[i].references)
        for example, i in zip(demonstrations, order, strict=True)
    ]
    return Episode(tuple(shuffled), episode.query, episode.id, episode.instruction)


def blank_images(episode: Episode, seed: int) -> Episode:
    """The demonstrations' images are replaced by grey ones of the same size; their texts stay."""
    blank = [example.with_(images=tuple(map(_grey, example.images))) for example in episode.demonstrations]
    return Episode(tuple(blank), episode.query, episode.id, episode.instruction)


def no_query_image(episode: Episode, seed: int) -> Episode:
    """The query's images are left out of the prompt; its text stays."""
    return Episode(episode.demonstrations, episode.query.with_(images=()), episode.id, episode.instruction)


controls.register("shuffled-labels")(
    Control(shuffle_labels, 2, "the demonstrations' labels are shuffled among them: chance, if the labels are used")
)
controls.register("blank-images")(Control(blank_images, 1, "the demonstrations' images are plain grey"))
controls.register("no-query-image")(Control(no_query_image, 0, "the query is asked without its image"))


def _grey(picture: Picture) -> Picture:
    return DrawnPicture(lambda: Image.new("RGB", picture.load().size, GREY), f"grey in place of {picture.name}")


def _generator(seed: int, *names: str) -> np.random.Generator:
    """A generator that depends on the seed and the names alone, on every machine and in every process."""
    digest = hashlib.blake2b("\0".join(names).encode(), digest_size=16).digest()
    return np.random.default_rng([seed, *np.frombuffer(digest, dtype="<u4").tolist()])
