"""What painted answers say: masks, boxes, key points, depths and normals read back from pictures.

Arrays of pixels are (height, width, 3) with values 0..1, colours are triples of them, places are (x, y) as fractions of width and
height.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np

Colour: TypeAlias = "tuple[float, float, float]"
Rectangle: TypeAlias = "tuple[int, int, int, int]"
"""Left, top, right and bottom in pixels; right and bottom are outside."""

WHITE: Colour = (1.0, 1.0, 1.0)
BLACK: Colour = (0.0, 0.0, 0.0)


@runtime_checkable
class DepthMap(Protocol):
    """A picture that was painted from measured depths."""

    def depths(self) -> np.ndarray:
        """Metres, (height, width) float; 0 where nothing was measured."""

    @property
    def farthest(self) -> float:
        """The depth that is painted white; nearer is darker, in proportion."""


def snap(pixels: np.ndarray, palette: Sequence[Colour]) -> np.ndarray:
    """The number of the nearest palette colour of each pixel (Euclidean; of equally near ones the first), (height, width)."""
    distances = ((pixels[..., None, :] - np.asarray(palette)) ** 2).sum(-1)
    return np.asarray(distances.argmin(-1))


def mask_of(pixels: np.ndarray, foreground: Colour = WHITE, background: Colour = BLACK) -> np.ndarray:
    """Pixels nearer to the foreground's colour than to the background's, (height, width) bool."""
    return np.asarray(snap(pixels, (background, foreground)) == 1)


def mask_iou(one: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union of two masks; of two empty ones 1."""
    union = int((one | other).sum())
    return float((one & other).sum()) / union if union else 1.0


def largest_box(mask: np.ndarray) -> Rectangle | None:
    """The rectangle around the largest connected part of a mask (neighbours also diagonally); ``None`` if the mask is empty."""
    largest = largest_part(mask)
    if largest is None:
        return None
    down, across = np.flatnonzero(largest.any(1)), np.flatnonzero(largest.any(0))
    return int(across[0]), int(down[0]), int(across[-1]) + 1, int(down[-1]) + 1


def largest_part(mask: np.ndarray) -> np.ndarray | None:
    """The largest connected part of a mask (neighbours also diagonally), as a mask; ``None`` if the mask is empty."""
    from scipy import ndimage

    parts, count = ndimage.label(mask, structure=np.ones((3, 3)))
    return np.asarray(parts == int(np.bincount(parts.ravel())[1:].argmax()) + 1) if count else None


def filled(box: Rectangle | None, height: int, width: int) -> np.ndarray:
    """A mask of a rectangle; empty without one."""
    mask = np.zeros((height, width), dtype=bool)
    if box is not None:
        left, top, right, bottom = box
        mask[top:bottom, left:right] = True
    return mask


def spots(
    pixels: np.ndarray, palette: Sequence[Colour], background: Colour = BLACK
) -> list[tuple[float, float] | None]:
    """The middle of the largest spot of each palette colour, as fractions of width and height; ``None`` where there is none.

    Each pixel belongs to the nearest of the colours and the background.
    """
    height, width = pixels.shape[:2]
    nearest = snap(pixels, (background, *palette))
    found: list[tuple[float, float] | None] = []
    for number in range(1, len(palette) + 1):
        largest = largest_part(nearest == number)
        if largest is None:
            found.append(None)
            continue
        y, x = np.argwhere(largest).mean(0)
        found.append(((float(x) + 0.5) / width, (float(y) + 0.5) / height))
    return found


def depths_of(pixels: np.ndarray, farthest: float) -> np.ndarray:
    """Metres, (height, width), from grey levels: the mean of the three channels in proportion, white = ``farthest``."""
    return np.asarray(pixels.mean(-1) * farthest)


def normals_of(pixels: np.ndarray) -> np.ndarray:
    """Unit normals (height, width, 3) from colours, where 0..1 stands for -1..1; zero where the colour says no direction."""
    vectors = pixels * 2 - 1
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.where(lengths > NO_DIRECTION, vectors / np.maximum(lengths, NO_DIRECTION), 0.0)


NO_DIRECTION = 0.1
"""Shorter vectors are grey: how a lack of measurement is painted, and what rounding to 8 bits may leave of it."""
