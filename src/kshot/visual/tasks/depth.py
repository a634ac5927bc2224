"""Depth: how far away is what the picture shows?"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from kshot.data.readers import PathLike
from kshot.data.sources import LazyExamples
from kshot.data.task import tasks
from kshot.episode import Example
from kshot.errors import BadImage, DataError, OptionError
from kshot.picture import Picture
from kshot.visual.joining import Modality, joined
from kshot.visual.tasks.common import PictureTask, drawn_order


class DepthPicture(Picture):
    """A map of depths as a grey picture: black is here, white is ``farthest`` (or more); a :class:`~kshot.metrics.painted.DepthMap`.

    Args:
        source: a picture of 16 bits a pixel.
        unit: metres of one step.
        farthest: metres.
    """

    def __init__(self, source: Picture, unit: float, farthest: float):
        self.source, self.unit, self._farthest = source, unit, farthest
        self.name = source.name

    @property
    def farthest(self) -> float:
        """Metres of white."""
        return self._farthest

    def depths(self) -> np.ndarray:
        """Metres, (height, width) float64; 0 where nothing was measured, or more than ``farthest``.

        Raises:
            BadImage: the file cannot be read, or does not hold one number a pixel.
        """
        self.source.load()  # says what is wrong with the file, in words
        with Image.open(io.BytesIO(self.source.read())) as image:
            if not (image.mode.startswith("I") or image.mode == "L"):
                raise BadImage(
                    f"a map of depths has one number a pixel, this picture is {image.mode}", file=self.source.name
                )
            metres = np.asarray(image).astype(np.float64) * self.unit
        return np.where(metres <= self._farthest, metres, 0.0)

    def load(self) -> Image.Image:
        grey = np.rint(self.depths() / self._farthest * 255).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")

    @property
    def digest(self) -> str:
        return f"{self.source.digest}-depth{self.unit}-{self._farthest}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DepthPicture) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    @property
    def _key(self) -> tuple[Picture, float, float]:
        return self.source, self.unit, self._farthest


@tasks.register("depth")
class Depth(PictureTask):
    """How far away is it? By default the usual layout of NYU Depth v2's test set: rgb_00045.jpg beside sync_depth_00045.png.

    Args:
        root: folder of the pictures, searched recursively.
        depth_root: folder of the depths; default: the same.
        rgb_files, depth_files: patterns of their names with one ``*``.
        unit: metres of one step of the 16-bit depths (NYU: 0.001; KITTI: 1/256).
        farthest: depth in metres that is painted white; what is farther counts as not measured.
        support: pictures that are set aside as support set.
        seed: chooses these.

    Raises:
        DataError: nothing matches by name, or there are too few pictures.
    """

    name = "depth"
    metric = "depth_abs_rel"

    def __init__(
        self,
        root: PathLike,
        depth_root: PathLike | None = None,
        *,
        rgb_files: str = "rgb_*",
        depth_files: str = "sync_depth_*",
        unit: float = 0.001,
        farthest: float = 10.0,
        support: int = 8,
        seed: int = 0,
    ):
        if unit <= 0 or farthest <= 0 or support < 1:
            raise OptionError("task 'depth': unit and farthest must be above 0, support at least 1")
        place = root if depth_root is None else depth_root
        self._modalities = {"rgb": Modality(root, rgb_files), "depth": Modality(place, depth_files)}
        self._unit, self._farthest, self._aside, self._seed = unit, farthest, support, seed
        super().__init__(unit=unit, farthest=farthest, support=support, seed=seed)

    def _read_queries(self) -> Sequence[Example]:
        found = joined(self._modalities)
        self.leave_out(found.skipped)
        records = found.records
        if len(records) <= self._aside:
            raise DataError(
                f"{len(records)} pictures with depth, too few to set {self._aside} aside as support set",
                file=str(self._modalities["rgb"].folder),
                remedy="lower support",
            )
        order = drawn_order(len(records), self.name, self._seed)

        def make(number: int) -> Example:
            rgb, depth = (part.picture() for part in records[number].parts)
            return Example((rgb,), answer=DepthPicture(depth, self._unit, self._farthest), id=records[number].id)

        self._support = LazyExamples(make, sorted(order[: self._aside]))
        return LazyExamples(make, sorted(order[self._aside :]))

    def _read_support(self) -> Sequence[Example]:
        return self._support
