"""What tasks answered by pictures share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from PIL import Image

from kshot.data.readers import shuffled
from kshot.data.sources import FileTask, LazyExamples
from kshot.episode import Example
from kshot.errors import DataError
from kshot.picture import Picture
from kshot.prompt import Template
from kshot.visual.sentence_pictures import MadePicture

SIDE_BY_SIDE = Template(demonstration="<image>{answer}", separator="")
"""Question and answer are pictures; there is nothing to be said."""


class PictureTask(FileTask):
    """Base of tasks with files whose answers are pictures."""

    answers = "picture"
    template = SIDE_BY_SIDE
    retriever = "random"
    shots: tuple[int, ...] = (1, 2, 4, 7)

    def leave_out(self, sources: Iterable[tuple[str, str]]) -> None:
        """Count sources that are not used, by kind of reason: what stands before its colon."""
        for _, reason in sources:
            kind = reason.partition(":")[0]
            self.skipped[kind] = self.skipped.get(kind, 0) + 1


class Cropped(MadePicture):
    """A rectangle of a picture, (left, top, right, bottom) in its pixels; what lies outside the picture is black."""

    def __init__(self, source: Picture, box: tuple[int, int, int, int]):
        super().__init__(source)
        self.box = box

    @property
    def settings(self) -> tuple[Any, ...]:
        return self.box

    def derive(self, image: Image.Image) -> Image.Image:
        return image.crop(self.box)


def drawn_order(number: int, *seed: object) -> list[int]:
    """The numbers below ``number`` in an order that derives from the seed."""
    return [int(key) for key in shuffled(map(str, range(number)), *seed)]


def of_class(examples: LazyExamples, classes: Sequence[str], query: Example) -> LazyExamples:
    """The examples of the query's class that are not of its picture.

    Raises:
        DataError: there is none.
    """
    wanted, image = query.metadata["category"], query.images[0]
    found = [i for i, name in enumerate(classes) if name == wanted and examples[i].images[0] != image]
    if not found:
        raise DataError(f"class {wanted!r} has no picture but that of query {query.id!r}")
    return examples.at(found)
