"""Controls: episodes from which one ingredient has been taken, to see whether the model used it.

A model that learns from its demonstrations must fall to chance when their labels are shuffled, and get worse when their images
are blank. One that does not was recognising a task it already knew, or guessing from the text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from kshot.episode import Episode, Example
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
        followed: what a model that follows the change answers, given the query: the accepted texts, or ``None`` where that is not
            known. The rate of such answers is reported as ``follows``.
    """

    change: Callable[[Episode, int], Episode]
    least_shots: int
    meaning: str
    followed: Callable[[Example], tuple[str, ...] | None] | None = None


controls: Registry[Control] = Registry("control", "kshot.controls")

SETS = {"link": ("blank-support", "shuffled-labels", "text-only", "swapped-labels")}
"""Controls that belong together, by the name of the set: those that keep elimination from passing as learning."""
NONE = "none"


def expand(names: Sequence[str]) -> tuple[str, ...]:
    """Names of controls, those of sets replaced by what is in them; ``"none"`` is no control. Without repetitions."""
    found = [control for name in names for control in (() if name == NONE else SETS.get(name, (name,)))]
    return tuple(dict.fromkeys(found))


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


def blank_all(episode: Episode, seed: int) -> Episode:
    """All images, the query's too, are replaced by grey ones of the same size: what is left is text."""
    blank = blank_images(episode, seed)
    query = episode.query.with_(images=tuple(map(_grey, episode.query.images)))
    return Episode(blank.demonstrations, query, episode.id, episode.instruction)


def text_only(episode: Episode, seed: int) -> Episode:
    """The demonstrations' images are left out of the prompt; their texts stay, and so does the query's image."""
    bare = [example.with_(images=()) for example in episode.demonstrations]
    return Episode(tuple(bare), episode.query, episode.id, episode.instruction)


def swap_labels(episode: Episode, seed: int) -> Episode:
    """Each class is shown under the name of another: of two, the names change places; of more, each gets the next one's.

    The names are those that the query offers, or else the demonstrations' own answers in alphabetical order. A model that links
    pictures to names follows: it answers the name that the query's class now bears. One that knows the classes, or goes by
    elimination, stays with the old name.
    """
    names = episode.query.choices or _answers(episode.demonstrations)
    swapped = [
        example.with_(
            answer=_next(example.answer, names) if isinstance(example.answer, str) else example.answer,
            references=tuple(_next(r, names) if isinstance(r, str) else r for r in example.references),
        )
        for example in episode.demonstrations
    ]
    return Episode(tuple(swapped), episode.query, episode.id, episode.instruction)


def swapped_references(query: Example) -> tuple[str, ...] | None:
    """The names under which :func:`swap_labels` shows the query's class."""
    if not query.choices:
        return None
    return tuple(_next(reference, query.choices) for reference in query.references if isinstance(reference, str))


def no_query_image(episode: Episode, seed: int) -> Episode:
    """The query's images are left out of the prompt; its text stays."""
    return Episode(episode.demonstrations, episode.query.with_(images=()), episode.id, episode.instruction)


controls.register("shuffled-labels")(
    Control(shuffle_labels, 2, "the demonstrations' labels are shuffled among them: chance, if the labels are used")
)
controls.register("blank-images")(Control(blank_images, 1, "the demonstrations' images are plain grey"))
controls.register("blank-support")(Control(blank_images, 1, "another name of blank-images: only the query is shown"))
controls.register("blank-all")(Control(blank_all, 0, "all images are plain grey, the query's too"))
controls.register("text-only")(Control(text_only, 1, "the demonstrations' images are left out; their texts stay"))
controls.register("swapped-labels")(
    Control(swap_labels, 2, "the classes' names change places: a model that links follows", swapped_references)
)
controls.register("no-query-image")(Control(no_query_image, 0, "the query is asked without its image"))


def _answers(demonstrations: Sequence[Example]) -> tuple[str, ...]:
    return tuple(sorted({example.answer for example in demonstrations if isinstance(example.answer, str)}))


def _next(name: str, names: Sequence[str]) -> str:
    """The name behind a name, the first one behind the last; a name that is not among them stays."""
    return names[(names.index(name) + 1) % len(names)] if name in names else name


def _grey(picture: Picture) -> Picture:
    return DrawnPicture(lambda: Image.new("RGB", picture.load().size, GREY), f"grey in place of {picture.name}")


def _generator(seed: int, *names: str) -> np.random.Generator:
    """A generator that depends on the seed and the names alone, on every machine and in every process."""
    digest = hashlib.blake2b("\0".join(names).encode(), digest_size=16).digest()
    return np.random.default_rng([seed, *np.frombuffer(digest, dtype="<u4").tolist()])
