"""Pictures of any shape made into squares: three rules, all with Pillow's antialiased bicubic filter.

==========  =====================================================================================================================
``squash``  the whole picture is drawn on the square, its aspect ignored: ``image.resize((size, size))``, as the LVM's programs do
``crop``    the largest square in the middle is drawn on the square; the rest is lost
``pad``     the whole picture keeps its aspect and lies in the middle of a black square
==========  =====================================================================================================================

Video frames of the LVM went through ``cv2.resize``: bilinear without antialias, so that its picture and video tokens come from
different resamplers. Here both take the same way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kshot.errors import OptionError
from kshot.picture import Picture

ResizeRule = Literal["squash", "crop", "pad"]
FILTER = Image.Resampling.BICUBIC
"""What ``Image.resize`` takes by itself; named so that another default of Pillow would change no token."""
BACKGROUND = (0, 0, 0)


@dataclass(frozen=True)
class Frame:
    """Which part of a picture lies where on the square.

    Attributes:
        source: left, top, right, bottom in the picture's pixels.
        target: the same in the square's pixels; whole numbers.
    """

    source: tuple[float, float, float, float]
    target: tuple[int, int, int, int]


@runtime_checkable
class MadeOnSquare(Protocol):
    """A picture that is derived from another one after that was made square, and whose values need not be whole levels."""

    def on_square(self, size: int, rule: ResizeRule) -> NDArray[np.float32]:
        """(size, size, 3) values in [0, 1]."""


def checked_rule(rule: str) -> ResizeRule:
    """A resize rule by its name.

    Raises:
        OptionError: there is no such rule.
    """
    for known in get_args(ResizeRule):
        if rule == known:
            return known
    raise OptionError(f"unknown resize rule {rule!r}: use {', '.join(get_args(ResizeRule))}")


def frame(width: int, height: int, size: int, rule: ResizeRule) -> Frame:
    """Where a picture of ``width`` x ``height`` pixels comes to lie on a square of ``size`` pixels a side.

    A strip so thin that it would vanish under ``pad`` keeps one pixel.
    """
    if rule == "crop":
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        return Frame((left, top, left + side, top + side), (0, 0, size, size))
    if rule == "pad":
        longest = max(width, height)
        wide, high = max(1, round(width * size / longest)), max(1, round(height * size / longest))
        left, top = (size - wide) // 2, (size - high) // 2
        return Frame((0, 0, width, height), (left, top, left + wide, top + high))
    return Frame((0, 0, width, height), (0, 0, size, size))


def square(image: Image.Image, size: int, rule: ResizeRule) -> Image.Image:
    """An RGB image as an RGB square of ``size`` pixels a side."""
    where = frame(image.width, image.height, size, rule)
    left, top, right, bottom = where.target
    drawn = image.resize((right - left, bottom - top), FILTER, box=where.source)
    if drawn.size == (size, size):
        return drawn
    canvas = Image.new("RGB", (size, size), BACKGROUND)
    canvas.paste(drawn, (left, top))
    return canvas


def squared(picture: Picture, size: int, rule: ResizeRule) -> NDArray[Any]:
    """What a tokenizer is shown of a picture: (size, size, 3), uint8 levels; or float32 in [0, 1] if it is made on the square.

    Raises:
        BadImage: a picture that cannot be decoded.
    """
    if isinstance(picture, MadeOnSquare):
        return picture.on_square(size, rule)
    return np.array(square(picture.load(), size, rule))


def scaled(levels: NDArray[Any]) -> NDArray[np.float32]:
    """Levels 0 to 255 as float32 in [0, 1]; values that are so already are given back as they are."""
    return levels.astype(np.float32) / np.float32(255.0) if levels.dtype == np.uint8 else levels
