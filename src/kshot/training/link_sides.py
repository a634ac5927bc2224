"""What is drawn for an episode of several sides: its classes, the pictures shown of each, and the query.

One side is *novel*, the others are *known*: each is a class of pictures. What the sides are called and what is asked about them is
decided elsewhere (``link``, ``reference``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from kshot.data.candidates import Contents
from kshot.data.link_class import LinkClass, LinkClasses
from kshot.data.retrieval import random_order
from kshot.errors import DataError, OptionError, listed, one_of
from kshot.metrics.common import fold
from kshot.picture import ArchivePicture, BytesPicture, FilePicture, Picture
from kshot.training.shot_samplers import Shots

Negatives = Literal["neighbours", "random"]
"""Where known sides come from: classes like the novel one, or any."""


@dataclass(frozen=True)
class Shown:
    """A picture in an episode.

    Attributes:
        side: number of its class in the episode; 0 is the novel side.
        id: unique among the pictures of all classes.
        picture: the picture.
    """

    side: int
    id: str
    picture: Picture


@dataclass(frozen=True)
class Sides:
    """What was drawn for an episode.

    Attributes:
        classes: the classes; the first one is the novel side.
        support: the pictures shown, in order.
        query: the picture asked about; not among the support.
    """

    classes: tuple[LinkClass, ...]
    support: tuple[Shown, ...]
    query: Shown


class SideSampler:
    """Draws sides as the training of Link-Context Learning does, except that the query is never among the demonstrations.

    Known classes are drawn from the novel class' neighbours with linear weights, N for the nearest down to 1 for the farthest of N, or
    from all classes alike. Each side is equally likely to be asked about. Pictures are drawn without replacement, and all
    demonstrations shuffled together. Two classes of one name never meet.

    Args:
        classes: all classes.
        shots: how many demonstrations.
        negatives: see :data:`Negatives`.
        stored_pictures: whether the first picture of a neighbour is the one that the list of neighbours stores, as published.
        repeat_pictures: allow classes with too few pictures for all demonstrations: theirs are shown several times, though not before
            all of them were shown. The query is never among them.

    Raises:
        DataError: classes with too few pictures; neighbours are wanted, but classes have none, or too few.
        OptionError: fewer classes than sides.
    """

    def __init__(
        self,
        classes: LinkClasses,
        shots: Shots,
        *,
        negatives: Negatives = "neighbours",
        stored_pictures: bool = True,
        repeat_pictures: bool = False,
    ):
        one_of("negatives", negatives, get_args(Negatives))
        self.classes, self.shots, self.negatives = classes, shots, negatives
        self.stored_pictures, self.repeat_pictures = stored_pictures, repeat_pictures
        self._contents = Contents()
        classes.check(1 if repeat_pictures else shots.most)
        self._check_names()

    def draw(self, novel: LinkClass, rng: np.random.Generator, *, per_side: int | None = None) -> Sides:
        """Draw an episode.

        Args:
            novel: the class of the novel side.
            rng: the only source of randomness.
            per_side: demonstrations of each class; default: drawn.

        Raises:
            DataError: so many pictures of a class are copies of each other that the query cannot be kept out of the support.
        """
        count = self.shots.draw(rng) if per_side is None else per_side
        drawn = [(novel, None), *self._known(novel, rng)]
        target = int(rng.integers(len(drawn)))
        orders = [random_order(len(one.pictures), rng) for one, _ in drawn]
        query = self._query(target, *drawn[target], orders[target])
        support: list[Shown] = []
        for side, (one, stored) in enumerate(drawn):
            support += self._support(side, one, stored, orders[side], count, query)
        shuffled = tuple(support[i] for i in rng.permutation(len(support)))
        return Sides(tuple(one for one, _ in drawn), shuffled, query)

    def describe(self) -> dict[str, Any]:
        """For the record of a run."""
        return {
            **self.shots.describe(),
            "negatives": self.negatives,
            "stored_pictures": self.stored_pictures,
            "repeat_pictures": self.repeat_pictures,
            "classes": self.classes.describe(),
        }

    def _known(self, novel: LinkClass, rng: np.random.Generator) -> list[tuple[LinkClass, Picture | None]]:
        """The known classes, each with the picture that the novel class' list of neighbours stores of it."""
        chosen = [novel]
        stored: list[Picture | None] = []
        if self.negatives == "random":
            for place in random_order(len(self.classes), rng):
                if len(chosen) == self.shots.ways:
                    break
                if all(self.classes.may_meet(one, self.classes[place]) for one in chosen):
                    chosen.append(self.classes[place])
                    stored.append(None)
            return list(zip(chosen[1:], stored, strict=True))
        near = [self.classes.by_key(neighbour.key) for neighbour in novel.neighbours]
        weights = np.arange(len(near), 0, -1, dtype=np.float64)
        while len(chosen) < self.shots.ways:
            left = [all(self.classes.may_meet(one, other) for one in chosen) for other in near]
            odds = weights * left
            place = int(rng.choice(len(near), p=odds / odds.sum()))
            chosen.append(near[place])
            stored.append(novel.neighbours[place].picture if self.stored_pictures else None)
        return list(zip(chosen[1:], stored, strict=True))

    def _query(self, side: int, one: LinkClass, stored: Picture | None, order: Iterator[int]) -> Shown:
        for number in order:
            picture = one.pictures[number]
            if stored is None or not self._same(picture, stored):
                return Shown(side, f"{one.key}#{number}", picture)
        raise self._too_few(one, 0)

    def _support(
        self, side: int, one: LinkClass, stored: Picture | None, order: Iterator[int], count: int, query: Shown
    ) -> list[Shown]:
        found: list[Shown] = []
        if stored is not None and not self._same(stored, query.picture):
            found.append(Shown(side, f"{one.key}#stored", stored))
        else:
            stored = None
        for number in order:
            if len(found) >= count:
                break
            picture = one.pictures[number]
            if self._same(picture, query.picture) or (stored is not None and self._same(picture, stored)):
                continue
            found.append(Shown(side, f"{one.key}#{number}", picture))
        if not found or (len(found) < count and not self.repeat_pictures):
            raise self._too_few(one, len(found))
        return [found[i % len(found)] for i in range(count)]

    def _same(self, one: Picture, other: Picture) -> bool:
        """Whether two pictures show the same; drawings of different numbers are taken to differ, unseen."""
        encoded = (FilePicture, ArchivePicture, BytesPicture)
        if isinstance(one, encoded) and isinstance(other, encoded):
            return self._contents.same(one, other)
        return one is other

    def _too_few(self, one: LinkClass, found: int) -> DataError:
        return DataError(
            f"class {one.key} {one.name}: only {found} different pictures beside the query, some are copies of others",
            file=self.classes.source,
            remedy="add pictures, remove the class, or lower the shots",
        )

    def _check_names(self) -> None:
        ways, classes = self.shots.ways, self.classes
        if self.negatives == "random":
            names = {fold(one.name) for one in classes}
            if len(names) < ways:
                raise OptionError(
                    f"ways={ways}: {classes.source}: only {len(classes)} classes with {len(names)} different names"
                )
            return
        poor = [f"{one.key} {one.name}" for one in classes if len(self._neighbour_names(one)) < ways - 1]
        if poor:
            raise DataError(
                f"{len(poor)} of {len(classes)} classes have fewer than the {ways - 1} neighbours that {ways} ways take: "
                f"{listed(poor)}",
                file=classes.source,
                field="neighbors",
                remedy="negatives: random takes any other class; kshot build-episodes finds neighbours",
            )

    def _neighbour_names(self, one: LinkClass) -> set[str]:
        near = (self.classes.by_key(neighbour.key) for neighbour in one.neighbours)
        return {fold(other.name) for other in near if self.classes.may_meet(one, other)}


def seen_before(sides: Sequence[int]) -> tuple[bool, ...]:
    """For each demonstration, given by its side, whether an earlier one was of the same side: then its answer can be known."""
    return tuple(side in sides[:place] for place, side in enumerate(sides))
