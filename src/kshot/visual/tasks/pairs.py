"""Your own pairs of pictures: what a picture becomes, in two folders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kshot.data.readers import PathLike
from kshot.data.sources import LazyExamples
from kshot.data.task import tasks
from kshot.episode import Example
from kshot.errors import DataError, OptionError
from kshot.metrics.base import picture_metrics
from kshot.visual.joining import Modality, joined
from kshot.visual.tasks.common import PictureTask, drawn_order


@tasks.register("picture_pairs")
class PicturePairs(PictureTask):
    """What does this picture become? Pairs are joined by name, never by their places in a listing.

    Args:
        x, y: folders of the pictures and of what they become; or the same folder, with patterns that tell them apart.
        x_files, y_files: patterns of the file names with one ``*``, like ``*_mask``.
        by: "path" (same sub-folder and name) or "stem" (same name anywhere).
        support: pairs that are set aside as support set.
        metric: name of the picture metric.
        seed: chooses these pairs.

    Raises:
        DataError: a folder is missing, nothing matches by name, or the pairs are too few.
    """

    name = "picture_pairs"
    metric = "pixel_l1"

    def __init__(
        self,
        x: PathLike,
        y: PathLike,
        *,
        x_files: str = "*",
        y_files: str = "*",
        by: str = "path",
        support: int = 8,
        metric: str = "pixel_l1",
        seed: int = 0,
    ):
        if support < 1:
            raise OptionError("task 'picture_pairs': support must be at least 1")
        picture_metrics.get(metric)
        self.metric = metric
        self._modalities = {"x": Modality(x, x_files), "y": Modality(y, y_files)}
        self._by, self._aside, self._seed = by, support, seed
        super().__init__(x_files=x_files, y_files=y_files, by=by, support=support, metric=metric, seed=seed)

    def _read_queries(self) -> Sequence[Example]:
        found = joined(self._modalities, self._by)
        self.leave_out(found.skipped)
        self.left_out = found.skipped
        records = found.records
        if len(records) <= self._aside:
            raise DataError(
                f"{len(records)} pairs, too few to set {self._aside} aside as support set",
                file=str(self._modalities["x"].folder),
                remedy="give more pairs, or lower support",
            )
        order = drawn_order(len(records), self.name, self._seed)

        def make(number: int) -> Example:
            record = records[number]
            x, y = (part.picture() for part in record.parts)
            return Example((x,), answer=y, id=record.id)

        self._support = LazyExamples(make, sorted(order[: self._aside]))
        return LazyExamples(make, sorted(order[self._aside :]))

    def _read_support(self) -> Sequence[Example]:
        return self._support

    def describe(self) -> dict[str, Any]:
        """As for every task, with the number of pairs set aside."""
        return super().describe() | {"pairs": len(self._queries) + len(self._support)}
