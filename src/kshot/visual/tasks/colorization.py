"""Colorization: a grey picture and the same in colours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from kshot.data.folder import EXTENSIONS
from kshot.data.readers import PathLike
from kshot.data.sources import LazyExamples
from kshot.data.task import tasks
from kshot.episode import Example
from kshot.errors import DataError, OptionError
from kshot.picture import Picture
from kshot.visual.sentence_pictures import GreyPicture, MadePicture
from kshot.visual.sources import Tree
from kshot.visual.tasks.common import PictureTask, drawn_order


class CentreSquare(MadePicture):
    """The middle of a picture that is not scaled, as a square of so many pixels; what lies outside is black."""

    def __init__(self, source: Picture, side: int):
        super().__init__(source)
        self.side = side

    @property
    def settings(self) -> tuple[Any, ...]:
        return (self.side,)

    def derive(self, image: Image.Image) -> Image.Image:
        left, top = (image.width - self.side) // 2, (image.height - self.side) // 2
        return image.crop((left, top, left + self.side, top + self.side))


@tasks.register("colorization")
class Colorization(PictureTask):
    """What colours has this grey picture? Any pictures will do; visual prompting takes 1,000 of ImageNet's validation set.

    Args:
        root: folder of pictures, searched recursively, or a zip archive.
        episodes: number of queries.
        support: number of other pictures that are set aside as support set.
        crop: side of the square in the middle that is taken, in pixels of the picture as it is (visual prompting: 111); 0 = all of it.
        seed: chooses both.

    Raises:
        DataError: no pictures, or too few.
    """

    name = "colorization"
    metric = "colorization_mse"

    def __init__(self, root: PathLike, *, episodes: int = 1000, support: int = 1000, crop: int = 0, seed: int = 0):
        for option, value, least in (("episodes", episodes, 1), ("support", support, 1), ("crop", crop, 0)):
            if value < least:
                raise OptionError(f"task 'colorization': {option} must be at least {least}")
        self._root, self._episodes, self._aside = Path(root), episodes, support
        self._crop, self._seed = crop, seed
        super().__init__(episodes=episodes, support=support, crop=crop, seed=seed)

    def _read_queries(self) -> Sequence[Example]:
        tree = Tree(self._root, EXTENSIONS)
        if tree.others:
            self.skipped["files that are no images"] = len(tree.others)
        names = tree.names
        if len(names) < 2:
            raise DataError(
                f"{len(names)} pictures: at least one query and one demonstration are needed", file=self._root
            )
        order = drawn_order(len(names), self.name, self._seed)
        number = min(self._episodes, max(1, len(names) - self._aside))

        def make(index: int) -> Example:
            colours = tree.picture(names[index])
            shown = CentreSquare(colours, self._crop) if self._crop else colours
            return Example((GreyPicture(shown),), answer=shown, id=names[index])

        self._others = LazyExamples(make, sorted(order[number : number + self._aside]))
        return LazyExamples(make, sorted(order[:number]))

    def _read_support(self) -> Sequence[Example]:
        return self._others
