"""Key points: where are the parts of what the picture shows? Painted as coloured spots on black."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from kshot.data.readers import PathLike, get, read_json
from kshot.data.sources import ImageRoot, LazyExamples
from kshot.data.task import tasks
from kshot.episode import Example
from kshot.errors import DataError, OptionError
from kshot.picture import DrawnPicture
from kshot.visual.palette import Palette
from kshot.visual.tasks.common import Cropped, PictureTask, drawn_order

SPOT = 0.03
"""Radius of a painted spot, in fractions of the picture's longer side."""


@tasks.register("keypoints")
class Keypoints(PictureTask):
    """Where are the key points? Annotations in COCO's format (person_keypoints_val2017.json); other sets are converted to it.

    Each query is one annotated object, cut out with a margin and painted as one coloured spot a visible key point.

    Args:
        annotations: JSON file with ``images``, ``annotations`` (``keypoints``: x, y and v of each point, ``bbox``) and ``categories``.
        images: folder of the pictures, or a zip archive.
        margin: how much of the box's sides is added around it on each side.
        least: visible points that an object must have.
        support: objects that are set aside as support set; those of a picture stay on one side.
        seed: chooses these.

    Raises:
        DataError: a field is missing, or too few objects have key points.
    """

    name = "keypoints"
    metric = "keypoint_pck"

    def __init__(
        self,
        annotations: PathLike,
        images: PathLike,
        *,
        margin: float = 0.1,
        least: int = 1,
        support: int = 64,
        seed: int = 0,
    ):
        if margin < 0 or least < 1 or support < 1:
            raise OptionError("task 'keypoints': margin must be 0 or more, least and support at least 1")
        self._annotations, self._images = Path(annotations), images
        self._margin, self._least, self._aside, self._seed = margin, least, support, seed
        super().__init__(margin=margin, least=least, support=support, seed=seed)

    def _locate(self) -> dict[str, Path]:
        return {"annotations": self._annotations}

    def _read_queries(self) -> Sequence[Example]:
        file = self._annotations
        data = read_json(file)
        pictures = {
            get(image, "id", (int, str), file, number): get(image, "file_name", str, file, number)
            for number, image in enumerate(get(data, "images", list, file), 1)
        }
        names = {c["id"]: c.get("name", str(c["id"])) for c in data.get("categories", [])}
        root, items = ImageRoot(self._images), []
        for number, found in enumerate(get(data, "annotations", list, file), 1):
            image = get(found, "image_id", (int, str), file, number)
            if image not in pictures:
                raise DataError(f"annotation {number} is of image {image}, which is not listed", file=file)
            points = _points(found, number, file)
            if len(points) < self._least:
                self.skipped["objects with too few key points"] = (
                    self.skipped.get("objects with too few key points", 0) + 1
                )
                continue
            label = names.get(found.get("category_id"), "object")
            items.append((str(found.get("id", number)), pictures[image], label, _box(found, number, file), points))
        colours = Palette.drawn().colours[1 : 1 + max((n for *_, points in items for n in points), default=0) + 1]
        shown = [items[i][1] for i in drawn_order(len(items), self.name, self._seed)]
        aside = set(list(dict.fromkeys(shown))[: self._aside])
        support = [i for i, item in enumerate(items) if item[1] in aside][: self._aside]
        queries = [i for i, item in enumerate(items) if item[1] not in aside]
        if not queries:
            raise DataError(
                f"{len(items)} objects in {len(set(shown))} pictures, too few to set {self._aside} aside as support set",
                file=file,
                remedy="lower support",
            )

        def make(number: int) -> Example:
            name, picture, label, (left, top, width, height), points = items[number]
            box = (
                round(left - self._margin * width),
                round(top - self._margin * height),
                round(left + (1 + self._margin) * width),
                round(top + (1 + self._margin) * height),
            )
            size = (max(1, box[2] - box[0]), max(1, box[3] - box[1]))
            places = {n: ((x - box[0]) / size[0], (y - box[1]) / size[1]) for n, (x, y) in points.items()}
            return Example(
                (Cropped(root.picture(picture), box),),
                answer=DrawnPicture(lambda: paint_spots(size, places, colours), f"key points of {name} in {picture}"),
                id=name,
                metadata={
                    "category": label,
                    "keypoints": places,
                    "colours": colours,
                    "box": (width / size[0], height / size[1]),
                    "size": size,
                },
            )

        self._support = LazyExamples(make, support)
        return LazyExamples(make, queries)

    def _read_support(self) -> Sequence[Example]:
        return self._support


def paint_spots(
    size: tuple[int, int], places: Mapping[int, tuple[float, float]], colours: Sequence[tuple[int, int, int]]
) -> Image.Image:
    """Coloured discs on black; places are fractions of width and height."""
    image = Image.new("RGB", size)
    draw = ImageDraw.Draw(image)
    radius = max(1.0, SPOT * max(size))
    for number, (x, y) in places.items():
        middle = x * size[0], y * size[1]
        draw.ellipse(
            (middle[0] - radius, middle[1] - radius, middle[0] + radius, middle[1] + radius), fill=colours[number]
        )
    return image


def _points(found: Mapping[str, Any], number: int, file: Path) -> dict[int, tuple[float, float]]:
    """The visible points (COCO's v > 0) by number, in pixels."""
    values = found.get("keypoints", [])
    if not isinstance(values, list) or len(values) % 3:
        raise DataError(f"annotation {number}: keypoints must be a list of x, y, v", file=file, field="keypoints")
    triples = [values[i : i + 3] for i in range(0, len(values), 3)]
    return {n: (float(x), float(y)) for n, (x, y, visible) in enumerate(triples) if visible}


def _box(found: Mapping[str, Any], number: int, file: Path) -> tuple[float, float, float, float]:
    box = found.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or box[2] <= 0 or box[3] <= 0:
        raise DataError(f"annotation {number}: bbox must be x, y, width and height above 0", file=file, field="bbox")
    return tuple(map(float, box))  # type: ignore[return-value]
