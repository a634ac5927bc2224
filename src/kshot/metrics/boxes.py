"""Boxes and points in answers: finding them in free text, and how much two boxes overlap.

A box is ``(x0, y0, x1, y1)``, a point ``(x, y)``. In text they stand in brackets, ``[0.123,0.456,0.789,0.999]``, several of
them joined by a semicolon, ``[0.1,0.2,0.3,0.4;0.5,0.6,0.7,0.8]``: the form of Shikra (arXiv 2306.15195) and Link-Context
Learning (arXiv 2308.07891). Nothing here depends on the unit; IoU is the same for pixels and for fractions of a picture's sides.
"""

from __future__ import annotations

import math
import re
from typing import TypeAlias

Box: TypeAlias = tuple[float, float, float, float]
Point: TypeAlias = tuple[float, float]

_NUMBER = r"\s*-?(?:\d+(?:\.\d*)?|\.\d+)\s*"
_TUPLES = {count: rf"{_NUMBER}(?:,{_NUMBER}){{{count - 1}}}" for count in (2, 4)}
_GROUPS = {
    count: re.compile(rf"[\[(]({one}(?:;{one})*)[\])]", re.ASCII)  # models also write round brackets, and spaces
    for count, one in _TUPLES.items()
}
_UPSTREAM = r"\d(?:\.\d*)?(?:,\d(?:\.\d*)?){3}"
UPSTREAM_BOXES = re.compile(rf"\[{_UPSTREAM}(?:;{_UPSTREAM})*\]", re.ASCII)
"""What counts as boxes in the upstream code: no spaces, one digit before the decimal point, square brackets."""


def find_boxes(text: str) -> list[list[Box]]:
    """The boxes of a text: one list for each bracket that holds boxes and nothing else, in order."""
    return [[(v[0], v[1], v[2], v[3]) for v in group] for group in _find(text, 4)]


def find_points(text: str) -> list[list[Point]]:
    """The points of a text: one list for each bracket that holds points and nothing else, in order."""
    return [[(v[0], v[1]) for v in group] for group in _find(text, 2)]


def first_box(text: str) -> Box | None:
    """The first box of a text, ``None`` if there is none."""
    return next((group[0] for group in find_boxes(text)), None)


def first_point(text: str) -> Point | None:
    """The first point of a text, ``None`` if there is none."""
    return next((group[0] for group in find_points(text)), None)


def without_boxes(text: str) -> str:
    """A text without its boxes and points, white space collapsed: the caption of a grounded caption."""
    for pattern in _GROUPS.values():
        text = pattern.sub(" ", text)
    return re.sub(r"\s+([.,;:!?])", r"\1", " ".join(text.split()))


def area(box: Box) -> float:
    """Area of a box; 0 if it has none or its corners are the wrong way round."""
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def iou(one: Box, other: Box) -> float:
    """Intersection over union of two boxes, 0 to 1.

    Boxes that only touch have 0; so has a box without area or with its corners the wrong way round, also with itself.
    """
    common = (max(one[0], other[0]), max(one[1], other[1]), min(one[2], other[2]), min(one[3], other[3]))
    if not (area(one) and area(other) and area(common)):
        return 0.0
    return area(common) / (area(one) + area(other) - area(common))


def thousandths(box: Box) -> Box:
    """A box in thousandths, exact for boxes of three decimals.

    Without it the rounding of binary fractions decides whether an IoU of exactly one half is above one half.
    """
    x0, y0, x1, y1 = (round(1000 * value, 6) for value in box)
    return x0, y0, x1, y1


def _find(text: str, count: int) -> list[list[list[float]]]:
    groups = []
    for match in _GROUPS[count].finditer(text):
        group = [[float(number) for number in part.split(",")] for part in match[1].split(";")]
        if all(math.isfinite(value) for values in group for value in values):
            groups.append(group)
    return groups
