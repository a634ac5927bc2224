"""Scenes of coloured shapes with eight attributes; naming one of them is a task that only demonstrations can reveal.

A scene shows one filled shape in one quarter of the picture, and two hollow shapes or more, all alike, in others. The question is
always the same ("What is it?"): whether the answer is the colour, the size, the count ... must be inferred from the context.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from PIL import Image, ImageDraw

Rgb = tuple[int, int, int]

COLOURS: dict[str, Rgb] = {
    "red": (230, 30, 30),
    "green": (30, 180, 40),
    "blue": (40, 60, 240),
    "yellow": (240, 220, 20),
    "purple": (150, 40, 190),
    "orange": (255, 140, 0),
    "cyan": (20, 210, 220),
}
BACKGROUNDS: dict[str, Rgb] = {"black": (0, 0, 0), "gray": (128, 128, 128), "white": (255, 255, 255)}
SHAPES = ("circle", "square", "triangle", "cross", "diamond")
SIZES = ("small", "big")
POSITIONS = ("northwest", "northeast", "southwest", "southeast")
COUNTS = ("two", "three", "four")

SCENE_TASKS: dict[str, tuple[str, ...]] = {
    "colour": tuple(COLOURS),
    "shape": SHAPES,
    "size": SIZES,
    "position": POSITIONS,
    "count": COUNTS,
    "background": tuple(BACKGROUNDS),
    "outline_colour": tuple(COLOURS),
    "outline_shape": SHAPES,
}
"""The hidden tasks: attribute of :class:`Scene` -> the words it can be."""


def is_held_out(colour: str, shape: str) -> bool:
    """Whether the embedded model never saw a *filled* shape of this kind in this colour (5 of the 35 pairs)."""
    return (tuple(COLOURS).index(colour) + SHAPES.index(shape)) % len(COLOURS) == 0


@dataclass(frozen=True)
class Scene:
    """A scene as words.

    Attributes:
        colour: of the filled shape.
        shape: of the filled shape.
        size: of the filled shape.
        position: quarter of the picture in which the filled shape is.
        count: number of all shapes, the filled one and the hollow ones.
        background: colour of the background.
        outline_colour: of the hollow shapes.
        outline_shape: of the hollow shapes.
        seed: decides what has no name: exact places and radii, and which quarters the hollow shapes take.
    """

    colour: str
    shape: str
    size: str
    position: str
    count: str
    background: str
    outline_colour: str
    outline_shape: str
    seed: int = 0

    @classmethod
    def random(cls, seed: int, *, held_out: bool = False) -> Scene:
        """The scene of a seed; its filled shape is one of the held-out pairs if and only if ``held_out``."""
        rng = np.random.default_rng([0x5CE7E, seed, int(held_out)])
        while True:
            words = {name: str(words[rng.integers(len(words))]) for name, words in SCENE_TASKS.items()}
            if is_held_out(words["colour"], words["shape"]) == held_out:
                return cls(**words, seed=seed)

    def draw(self, size: int = 64) -> Image.Image:
        """The picture, ``size`` x ``size`` pixels, RGB."""
        return self.paint(COLOURS[self.colour], COLOURS[self.outline_colour], size)

    def paint(self, filled: Rgb, outline: Rgb, size: int = 64) -> Image.Image:
        """The picture in any two colours in place of the named ones (vision training uses colours without a name)."""
        rng = np.random.default_rng([0xD2A3, self.seed])
        quarter = POSITIONS.index(self.position)
        others = [int(i) for i in rng.permutation([i for i in range(4) if i != quarter])]
        image = Image.new("RGB", (size, size), BACKGROUNDS[self.background])
        draw = ImageDraw.Draw(image)
        radius = size * (0.21 if self.size == "big" else 0.11) * rng.uniform(0.93, 1.07)
        _place(draw, rng, quarter, self.shape, radius, filled, None, size)
        for place in others[: COUNTS.index(self.count) + 1]:
            _place(draw, rng, place, self.outline_shape, size * rng.uniform(0.13, 0.17), None, outline, size)
        return image

    def words(self) -> dict[str, str]:
        """Attribute -> word."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "seed"}


_POLYGONS: dict[str, tuple[tuple[float, float], ...]] = {
    "square": ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
    "triangle": ((0, -1), (1, 0.85), (-1, 0.85)),
    "diamond": ((0, -1), (0.75, 0), (0, 1), (-0.75, 0)),
    "cross": tuple(
        (x / 3 if abs(x) == 1 else float(np.sign(x)), y / 3 if abs(y) == 1 else float(np.sign(y)))
        for x, y in (
            (-1, -3),
            (1, -3),
            (1, -1),
            (3, -1),
            (3, 1),
            (1, 1),
            (1, 3),
            (-1, 3),
            (-1, 1),
            (-3, 1),
            (-3, -1),
            (-1, -1),
        )
    ),
}


def _place(
    draw: ImageDraw.ImageDraw,
    rng: np.random.Generator,
    quarter: int,
    shape: str,
    radius: float,
    fill: Rgb | None,
    outline: Rgb | None,
    size: int,
) -> None:
    """Draw a shape somewhere in a quarter of the picture, at least a pixel away from the quarter's edge."""
    jitter = rng.uniform(-1, 1, 2) * max(0.0, size / 4 - radius - 1) * 0.7
    x, y = size * (0.25 + 0.5 * (quarter % 2)) + jitter[0], size * (0.25 + 0.5 * (quarter // 2)) + jitter[1]
    width = size // 32 + 1
    if shape == "circle":
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill, outline=outline, width=width)
        return
    points = [(x + radius * px, y + radius * py) for px, py in _POLYGONS[shape]]
    if fill is not None:
        draw.polygon(points, fill=fill)
    else:
        draw.line([*points, *points[:2]], fill=outline, width=width)
