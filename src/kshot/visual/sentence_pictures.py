"""Pictures that sentences derive from others when they are looked at: grey, squared, with parts hidden."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kshot.picture import DerivedPicture, Picture
from kshot.visual.resize import ResizeRule, scaled, square, squared

GREY = (0.2989, 0.5870, 0.1140)
"""Weights of red, green and blue in a grey picture."""

HOLE_SIDES = (25, 127)
"""Shortest and longest side of a hole, in a picture of :data:`MASK_SIZE` pixels."""

MASK_SIZE = 256
"""Pixels a side of the pictures that masks are measured in."""

PATCH = 32
"""Side of a patch, in a picture of :data:`MASK_SIZE` pixels."""


class MadePicture(DerivedPicture):
    """A derived picture with settings: two are equal if they are made of the same picture by the same settings."""

    @property
    def settings(self) -> tuple[Any, ...]:
        """What the pixels depend on, beside the source."""
        return ()

    @property
    def digest(self) -> str:
        made = "\0".join(map(str, (type(self).__qualname__, *self.settings, self.source.digest)))
        return hashlib.blake2b(made.encode(), digest_size=16).hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, MadePicture) and super().__eq__(other) and self.settings == other.settings

    def __hash__(self) -> int:
        return hash((type(self).__qualname__, self.source, self.settings))


class GreyPicture(MadePicture):
    """A picture without its colours: 0.2989 R + 0.5870 G + 0.1140 B in all three channels.

    To a tokenizer it is made grey after it was made square, and its values are not rounded, as in the LVM's
    ``tokenize_colorization_dataset_muse.py``; to look at (:meth:`load`) they are whole levels, at the picture's own size.
    """

    @property
    def settings(self) -> tuple[Any, ...]:
        # Tokens kept from when pictures were made grey first and square then are others: the digest must not find them.
        return ("on the square",)

    def on_square(self, size: int, rule: ResizeRule) -> NDArray[np.float32]:
        """(size, size, 3) values in [0, 1]; see the class."""
        grey = np.dot(scaled(squared(self.source, size, rule)), GREY).astype(np.float32)
        return np.repeat(grey[:, :, None], 3, axis=2)

    def derive(self, image: Image.Image) -> Image.Image:
        grey = np.rint(np.asarray(image, np.float64) @ np.array(GREY)).astype(np.uint8)
        return Image.fromarray(np.repeat(grey[:, :, None], 3, axis=2))


class SquarePicture(MadePicture):
    """A picture as a square of ``size`` pixels, by a rule of :mod:`kshot.visual.resize`."""

    def __init__(self, source: Picture, size: int, rule: ResizeRule):
        super().__init__(source)
        self.size, self.rule = size, rule

    @property
    def settings(self) -> tuple[Any, ...]:
        return self.size, self.rule

    def derive(self, image: Image.Image) -> Image.Image:
        return square(image, self.size, self.rule)


@dataclass(frozen=True)
class Mask:
    """What is hidden of a square picture, in pixels of a picture of :data:`MASK_SIZE` a side.

    Attributes:
        hole: left, top and side of a black square; ``None`` for patches.
        kept: for patches, which of them stay, row by row; the others are black.
    """

    hole: tuple[int, int, int] | None = None
    kept: tuple[bool, ...] = ()

    @classmethod
    def draw(cls, random: np.random.Generator, hole_probability: float) -> Mask:
        """A hole with that probability, of a side U{25..127} anywhere in the picture; otherwise patches of 32 x 32 pixels, each of
        which is kept with a probability r ~ U(0, 1) drawn for the picture."""
        if random.random() < hole_probability:
            side = int(random.integers(HOLE_SIDES[0], HOLE_SIDES[1], endpoint=True))
            left, top = random.integers(0, MASK_SIZE - side, size=2, endpoint=True)
            return cls(hole=(int(left), int(top), side))
        kept = random.random((MASK_SIZE // PATCH) ** 2) < random.random()
        return cls(kept=tuple(bool(k) for k in kept))

    def shown(self, size: int) -> np.ndarray:
        """Which pixels of a picture of ``size`` a side are shown: booleans of shape (size, size)."""
        place = (
            (np.arange(size) + 0.5) * MASK_SIZE / size
        )  # where the middle of each pixel lies in the measure of masks
        if self.hole is not None:
            left, top, side = self.hole
            across, down = (place >= left) & (place < left + side), (place >= top) & (place < top + side)
            return ~(down[:, None] & across[None, :])
        number = (place // PATCH).astype(int)
        kept = np.array(self.kept).reshape(MASK_SIZE // PATCH, -1)
        return np.asarray(kept[number][:, number])


class MaskedPicture(MadePicture):
    """A square picture of which a mask hides parts in black."""

    def __init__(self, source: Picture, mask: Mask):
        super().__init__(source)
        self.mask = mask

    @property
    def settings(self) -> tuple[Any, ...]:
        return (self.mask,)

    def derive(self, image: Image.Image) -> Image.Image:
        return Image.fromarray(np.asarray(image) * self.mask.shown(image.width)[:, :, None])
