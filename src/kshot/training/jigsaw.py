"""Jigsaw episodes: the pieces of a picture, then the picture with its pieces shuffled; where does each piece belong?

From the ``mix2`` configuration of Link-Context Learning (arXiv 2308.07891), whose released code shows the last piece in place of the
picture and pairs pieces and coordinates along different axes; here the query is the shuffled picture, and coordinates are (row,
column) throughout.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from hashlib import blake2b
from typing import Any, Literal

from PIL import Image

from kshot.data.link_class import LinkClass
from kshot.data.readers import PathLike
from kshot.data.task import Task
from kshot.episode import Episode, Example
from kshot.errors import BadImage, OptionError, one_of
from kshot.models.base import PromptStyle
from kshot.picture import Picture
from kshot.training.items import TrainingItem, sources
from kshot.training.link import ClassEpisodes
from kshot.training.link_prompts import JIGSAW, jigsaw_answer

GRIDS: dict[int, tuple[tuple[int, int], ...]] = {
    4: ((2, 2),),
    6: ((2, 3), (3, 2)),
    9: ((3, 3),),
    12: ((3, 4), (4, 3)),
    16: ((4, 4),),
}
"""Rows and columns by number of pieces."""

Place = tuple[int, int]
"""Row and column in a grid, from 0."""


class Puzzle:
    """A picture cut into equal pieces, decoded once for all of them.

    What is left over where the edges do not divide by the grid is cut off evenly on both sides.

    Args:
        picture: the picture.
        rows, columns: the grid.
    """

    def __init__(self, picture: Picture, rows: int, columns: int):
        self.picture, self.rows, self.columns = picture, rows, columns

    @cached_property
    def image(self) -> Image.Image:
        """The picture, cut to a multiple of the grid.

        Raises:
            BadImage: it cannot be decoded, or has fewer pixels than the grid has places.
        """
        image = self.picture.load()
        width, height = (
            size // count * count for size, count in zip(image.size, (self.columns, self.rows), strict=True)
        )
        if not width or not height:
            told = (
                f"a picture of {image.size[0]} x {image.size[1]} pixels cannot be cut into {self.rows} x {self.columns}"
            )
            raise BadImage(told, file=self.picture.name, remedy="remove it")
        left, top = (image.size[0] - width) // 2, (image.size[1] - height) // 2
        return image.crop((left, top, left + width, top + height))

    @property
    def places(self) -> list[Place]:
        """All places, row by row."""
        return [(row, column) for row in range(self.rows) for column in range(self.columns)]

    def box(self, place: Place) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of a place in pixels."""
        width, height = self.image.size[0] // self.columns, self.image.size[1] // self.rows
        row, column = place
        return column * width, row * height, (column + 1) * width, (row + 1) * height

    def piece(self, place: Place) -> Image.Image:
        """What belongs at a place."""
        return self.image.crop(self.box(place))

    def arranged(self, order: Sequence[Place]) -> Image.Image:
        """The picture with piece ``order[n]`` at the n-th place, row by row."""
        canvas = Image.new("RGB", self.image.size)
        for place, origin in zip(self.places, order, strict=True):
            canvas.paste(self.piece(origin), self.box(place)[:2])
        return canvas


class PiecePicture(Picture):
    """A piece of a puzzle."""

    def __init__(self, puzzle: Puzzle, place: Place):
        self._puzzle, self.place = puzzle, place
        self._key = f"piece {place[0]},{place[1]} of {puzzle.rows}x{puzzle.columns}"
        self.name = f"{puzzle.picture.name} ({self._key})"

    def load(self) -> Image.Image:
        return self._puzzle.piece(self.place)

    @property
    def digest(self) -> str:
        return _derived(self._puzzle.picture, self._key)


class ShuffledPicture(Picture):
    """A puzzle with its pieces in another order, see :meth:`Puzzle.arranged`."""

    def __init__(self, puzzle: Puzzle, order: Sequence[Place]):
        self._puzzle, self.order = puzzle, tuple(order)
        self._key = f"{puzzle.rows}x{puzzle.columns} in the order {self.order}"
        self.name = f"{puzzle.picture.name} ({self._key})"

    def load(self) -> Image.Image:
        return self._puzzle.arranged(self.order)

    @property
    def digest(self) -> str:
        return _derived(self._puzzle.picture, self._key)


@sources.register("jigsaw")
class JigsawEpisodes(ClassEpisodes):
    """Jigsaw episodes, one a class and epoch, of a random picture of it.

    The demonstrations are the pieces in random order; the query is the picture with its pieces shuffled (never all in their places).
    The answer gives a row and a column, from 0, for each piece in the order in which the pieces were shown.

    Args:
        source, root, class_names, options, style, episodes_per_class, seed: as in :class:`~kshot.training.link.LinkEpisodes`.
        pieces: numbers of pieces, each equally likely; with two possible grids (2 x 3, 3 x 2) both are.
        coordinates: ``original``: where a piece belongs in the picture as it was, so that the puzzle has to be solved; ``query``:
            where it lies in the shuffled picture.

    Raises:
        DataError: a source that is missing or malformed.
        OptionError: numbers of pieces other than 4, 6, 9, 12 and 16.
    """

    kind = "jigsaw"

    def __init__(
        self,
        source: PathLike | Task | Sequence[LinkClass],
        *,
        root: PathLike | None = None,
        class_names: Mapping[str, str] | PathLike | None = None,
        options: Mapping[str, Any] | None = None,
        pieces: Sequence[int] = tuple(GRIDS),
        coordinates: Literal["original", "query"] = "original",
        style: PromptStyle = "auto",
        episodes_per_class: int = 1,
        seed: int = 0,
    ):
        one_of("coordinates", coordinates, ("original", "query"))
        pieces = tuple(sorted({pieces} if isinstance(pieces, int) else set(pieces)))
        if not pieces or any(count not in GRIDS for count in pieces):
            raise OptionError(f"pieces={list(pieces)}: must be some of {', '.join(map(str, GRIDS))}")
        super().__init__(
            source,
            root=root,
            class_names=class_names,
            options=options,
            episodes_per_class=episodes_per_class,
            style=style,
            seed=seed,
        )
        self.pieces, self.coordinates = pieces, coordinates

    def item(self, epoch: int, index: int) -> TrainingItem:
        return self._item(epoch, index, self.pieces)

    def longest(self) -> list[TrainingItem]:
        """Items with the most pieces; they are all equally long."""
        return [self._item(0, index, self.pieces[-1:]) for index in range(min(8, len(self)))]

    def describe(self) -> dict[str, Any]:
        return {
            **super().describe(),
            "pieces": list(self.pieces),
            "coordinates": self.coordinates,
            "classes": self.classes.describe(),
            "template": asdict(JIGSAW),
        }

    def _item(self, epoch: int, index: int, pieces: Sequence[int]) -> TrainingItem:
        rng = self.rng(epoch, index)
        one = self.class_of(index)
        number = int(rng.integers(len(one.pictures)))
        grids = GRIDS[int(rng.choice(pieces))]
        puzzle = Puzzle(one.pictures[number], *grids[int(rng.integers(len(grids)))])
        places = puzzle.places
        shown = [places[i] for i in rng.permutation(len(places))]
        order = places
        while order == places:
            order = [places[i] for i in rng.permutation(len(places))]
        where = shown if self.coordinates == "original" else [places[order.index(place)] for place in shown]
        demonstrations = tuple(
            Example((PiecePicture(puzzle, place),), "", "", id=f"{one.key}#{number} {place}") for place in shown
        )
        query = Example((ShuffledPicture(puzzle, order),), "", jigsaw_answer(where), id=f"{one.key}#{number}")
        episode = Episode(demonstrations, query, id=f"{self.kind}-{epoch}-{index}")
        return TrainingItem(episode, JIGSAW, (), self.style, self.kind)


def _derived(picture: Picture, key: str) -> str:
    """Digest of a picture made from another one: it follows from that one's and from how it was made, nothing is decoded."""
    return blake2b(f"{picture.digest}\0{key}".encode(), digest_size=16).hexdigest()
