"""Boxes and points of pictures: their text, and their place in the picture padded to a square.

Shikra (arXiv 2306.15195) and Link-Context Learning (arXiv 2308.07891) pad each picture to a white square, the picture in its
middle, and write coordinates as fractions of the square's side, in three decimals: ``[0.123,0.456,0.789,0.999]``. A box is
``(x0, y0, x1, y1)``, a point ``(x, y)``; y grows downwards; all functions here take either, as coordinates x, y, x, y ...
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from typing import Any, TypeAlias, TypeVar, cast

from PIL import Image

from kshot.data.readers import describe_kind
from kshot.errors import BadImage, DataError
from kshot.metrics.boxes import Box, Point
from kshot.picture import DerivedPicture, FilePicture, Picture

Size: TypeAlias = tuple[int, int]
"""Width and height in pixels."""

Coordinates = TypeVar("Coordinates", Box, Point)

DECIMALS = 3
LIMIT = 1e9  # of coordinates in files: no picture is that large, and NaN and infinity are no coordinates
WHITE = (255, 255, 255)
_ROTATED = (5, 6, 7, 8)  # values of EXIF's orientation that exchange width and height
_ORIENTATION = 0x0112


class SquarePicture(DerivedPicture):
    """A picture padded to a white square, in whose middle it stands (a pixel further left or up where the rest is odd)."""

    def derive(self, image: Image.Image) -> Image.Image:
        width, height = image.size
        if width == height:
            return image
        left, top, side = square_of(image.size)
        square = Image.new("RGB", (side, side), WHITE)
        square.paste(image, (left, top))
        return square


def square_of(size: Size) -> tuple[int, int, int]:
    """Where a picture stands in its square: pixels left of it, pixels above it, and the square's side."""
    width, height = size
    side = max(width, height)
    return (side - width) // 2, (side - height) // 2, side


def to_square(coordinates: Coordinates, size: Size) -> Coordinates:
    """Pixels of a picture as fractions of the side of its square; the inverse of :func:`from_square`.

    What lies outside the picture may come out below 0 or above 1.
    """
    left, top, side = square_of(size)
    moved = [(value + (top if n % 2 else left)) / side for n, value in enumerate(coordinates)]
    return cast(Coordinates, tuple(moved))


def from_square(coordinates: Coordinates, size: Size) -> Coordinates:
    """Fractions of the side of a picture's square as pixels of the picture: what a predicted box is in the original picture."""
    left, top, side = square_of(size)
    moved = [value * side - (top if n % 2 else left) for n, value in enumerate(coordinates)]
    return cast(Coordinates, tuple(moved))


def written(coordinates: Coordinates, size: Size) -> Coordinates:
    """Pixels of a picture as they are written: fractions of the square's side, cut to 0 ... 1 and rounded to three decimals."""
    return cast(
        Coordinates, tuple(round(max(0.0, min(value, 1.0)), DECIMALS) for value in to_square(coordinates, size))
    )


def text_of(*places: Box | Point) -> str:
    """Boxes or points that are :func:`written` as text: ``[0.100,0.200,0.300,0.400;0.500,0.600,0.700,0.800]``."""
    return "[" + ";".join(",".join(f"{value:.{DECIMALS}f}" for value in place) for place in places) + "]"


def picture_size(picture: Picture) -> Size:
    """Width and height of a picture as it is decoded (upright), from its header where it is a file or encoded bytes.

    Raises:
        BadImage: it is missing or its header cannot be read.
    """
    if isinstance(picture, DerivedPicture):
        return picture.load().size
    try:
        data = picture.path.open("rb") if isinstance(picture, FilePicture) else io.BytesIO(picture.read())
        with data, Image.open(data) as image:
            width, height = image.size
            return (height, width) if image.getexif().get(_ORIENTATION) in _ROTATED else (width, height)
    except BadImage:
        if picture.__class__.read is Picture.read:  # drawn: there are no bytes
            return picture.load().size
        raise
    except Exception:
        return picture.load().size  # says what is wrong with it


def read_box(record: dict[str, Any], field: str, file: str | os.PathLike[str], line: int) -> Box:
    """The box ``[x0, y0, x1, y1]`` of a record, in pixels.

    Raises:
        DataError: the field is missing, is no list of four numbers, or its corners are the wrong way round.
    """
    return as_box(_value(record, field, file, line), field, file, line)


def read_point(record: dict[str, Any], field: str, file: str | os.PathLike[str], line: int) -> Point:
    """The point ``[x, y]`` of a record, in pixels.

    Raises:
        DataError: the field is missing or is no list of two numbers.
    """
    return cast(Point, _numbers(_value(record, field, file, line), 2, field, file, line))


def as_box(value: Any, field: str, file: str | os.PathLike[str], line: int | None) -> Box:
    """A JSON value as a box; see :func:`read_box`."""
    box = cast(Box, _numbers(value, 4, field, file, line))
    if box[2] < box[0] or box[3] < box[1]:
        raise DataError(
            f"the box's corners are the wrong way round: {list(value)}",
            file=file,
            line=line,
            field=field,
            remedy="boxes are [x0, y0, x1, y1] in pixels, not [x, y, width, height]",
        )
    return box


def box_of_corner_and_size(value: Any, field: str, file: str | os.PathLike[str], line: int | None) -> Box:
    """A JSON value ``[x, y, width, height]`` (COCO's form) as a box."""
    x, y, width, height = _numbers(value, 4, field, file, line)
    if width < 0 or height < 0:
        raise DataError(f"the box has a negative width or height: {list(value)}", file=file, line=line, field=field)
    return x, y, x + width, y + height


def as_size(width: int, height: int, file: str | os.PathLike[str], line: int | None) -> Size:
    """Width and height that a file tells.

    Raises:
        DataError: they are not those of a picture.
    """
    if not (1 <= width <= LIMIT and 1 <= height <= LIMIT):
        shown = [str(n) if abs(n) <= LIMIT else "too many" for n in (width, height)]
        raise DataError(f"a picture of {' x '.join(shown)} pixels", file=file, line=line, field="width")
    return width, height


def check_inside(
    coordinates: Box | Point, size: Size, field: str, file: str | os.PathLike[str], line: int | None
) -> None:
    """Refuse a box or point that lies wholly outside its picture (by more than a pixel); what sticks out a little is cut off.

    Raises:
        DataError: it does.
    """
    x0, y0, x1, y1 = coordinates if len(coordinates) == 4 else (*coordinates, *coordinates)
    width, height = size
    if x1 < -1 or y1 < -1 or x0 > width + 1 or y0 > height + 1:
        raise DataError(
            f"{list(coordinates)} is outside the picture of {width} x {height} pixels",
            file=file,
            line=line,
            field=field,
            remedy="are these the right images, and coordinates in pixels?",
        )


def _value(record: dict[str, Any], field: str, file: str | os.PathLike[str], line: int) -> Any:
    if field not in record:
        there = ", ".join(list(record)[:8]) or "nothing"
        raise DataError("field is missing", file=file, line=line, field=field, remedy=f"the record has: {there}")
    return record[field]


def _numbers(value: Any, count: int, field: str, file: str | os.PathLike[str], line: int | None) -> Sequence[float]:
    if not isinstance(value, (list, tuple)):
        raise DataError(
            f"a list of {count} numbers is expected, not {describe_kind(value)}", file=file, line=line, field=field
        )
    fine = [isinstance(v, (int, float)) and not isinstance(v, bool) and abs(v) <= LIMIT for v in value]
    if len(value) != count or not all(fine):
        raise DataError(f"{count} numbers are expected, not {list(value)}", file=file, line=line, field=field)
    return tuple(float(v) for v in value)
