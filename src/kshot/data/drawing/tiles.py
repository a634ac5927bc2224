"""Pictures of coloured pieces on a board of 4 x 4 squares: a small world in which functions from pictures to pictures are exact.

Every square of the board shows one of :data:`TILES` tiles: empty, or a piece with a shape, a style and a colour, on a black or a white
ground. Pieces are drawn with soft edges, always in the same way, and the colours are closed under inversion; so turning, mirroring,
shifting and inverting the *pixels* of a board's picture gives, to the last bit, the picture of another board.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Rgb = tuple[int, int, int]

SIDE = 4
"""Squares along an edge of the board."""
SQUARE = 16
"""Pixels along an edge of a square."""
BOARD_PIXELS = SIDE * SQUARE

GROUNDS: dict[str, Rgb] = {"black": (0, 0, 0), "white": (255, 255, 255)}
PIECE_COLOURS: dict[str, Rgb] = {
    "red": (228, 52, 44),
    "teal": (27, 203, 211),
    "yellow": (242, 190, 16),
    "blue": (13, 65, 239),
}
"""Colours of pieces; the inverse of each is another one."""
MASK: Rgb = (255, 255, 255)
"""Colour of pieces in masks, which lie on black ground only."""
PATTERNS = ("circle", "square", "diamond", "cross", "up", "right", "down", "left")
"""What a piece looks like; the last four are the triangle, by where it points."""
PIECE_SHAPES = ("circle", "square", "diamond", "cross", "triangle")
STYLES = ("solid", "hollow", "small")

HELD_OUT = frozenset({("red", "diamond"), ("teal", "square"), ("yellow", "circle"), ("blue", "cross")})
"""Pairs of colour and shape that the language model of ``tiny-visual`` never saw in training, neither asked nor answered."""


@dataclass(frozen=True)
class Tile:
    """What one square shows.

    Attributes:
        ground: ``black`` or ``white``.
        pattern: one of :data:`PATTERNS`; empty for an empty square, as are the others.
        style: one of :data:`STYLES`.
        colour: one of :data:`PIECE_COLOURS`, or ``mask``.
    """

    ground: str
    pattern: str = ""
    style: str = ""
    colour: str = ""

    @property
    def shape(self) -> str:
        """Its shape: ``triangle`` whichever way it points."""
        return "triangle" if self.pattern in PATTERNS[4:] else self.pattern

    @property
    def held_out(self) -> bool:
        """Whether its pair of colour and shape is one of :data:`HELD_OUT`."""
        return (self.colour, self.shape) in HELD_OUT


def _all_tiles() -> tuple[Tile, ...]:
    tiles = [Tile(ground) for ground in GROUNDS]
    for ground in GROUNDS:
        colours = [*PIECE_COLOURS, "mask"] if ground == "black" else [*PIECE_COLOURS]
        tiles += [Tile(ground, p, s, c) for p in PATTERNS for s in STYLES for c in colours]
    return tuple(tiles)


TILES: tuple[Tile, ...] = _all_tiles()
"""Every tile; boards are arrays of indices into it."""
NUMBER: dict[Tile, int] = {tile: number for number, tile in enumerate(TILES)}
"""Tile -> its index."""

Board = NDArray[np.int64]
"""A board: 16 tile numbers in raster order."""


def draw_board(board: Board) -> Image.Image:
    """The picture of a board, 64 x 64 pixels, RGB."""
    return Image.fromarray(board_pixels(board))


def board_pixels(boards: Board) -> NDArray[np.uint8]:
    """Pictures of boards (..., 16) as an array (..., 64, 64, 3)."""
    squares = np.asarray(boards).reshape(*np.shape(boards)[:-1], SIDE, SIDE)
    tiles = _sprites()[squares]  # (..., row, column, y, x, rgb)
    shape = (*squares.shape[:-2], BOARD_PIXELS, BOARD_PIXELS, 3)
    return np.ascontiguousarray(np.moveaxis(tiles, -4, -3)).reshape(shape)


@lru_cache(maxsize=1)
def _sprites() -> NDArray[np.uint8]:
    """The pixels of all tiles (tiles, 16, 16, 3)."""
    return np.stack([_sprite(tile) for tile in TILES])


def _sprite(tile: Tile) -> NDArray[np.uint8]:
    ground = np.array(GROUNDS[tile.ground], dtype=np.int64)
    if not tile.pattern:
        return np.broadcast_to(ground, (SQUARE, SQUARE, 3)).astype(np.uint8)
    colour = np.array(MASK if tile.colour == "mask" else PIECE_COLOURS[tile.colour], dtype=np.int64)
    cover = _cover(tile.pattern, tile.style)[..., None]  # sixteenths
    return ((ground * (16 - cover) + colour * cover + 8 * (ground < colour) + 7 * (ground > colour)) // 16).astype(
        np.uint8
    )


def _cover(pattern: str, style: str) -> NDArray[np.int64]:
    """How many of the 4 x 4 points in each pixel a pattern covers (16, 16)."""
    steps = (np.arange(SQUARE * 4) - SQUARE * 2 + 0.5) / 4  # places of the points, in pixels from the middle
    x, y = np.meshgrid(steps, steps)
    turns = PATTERNS.index(pattern) - 4
    name = "triangle" if turns >= 0 else pattern
    radius = 3.4 if style == "small" else 6.9
    inside = _inside(name, x, y, radius)
    if style == "hollow":
        inside &= ~_inside(name, x, y, radius, inset=2.0)
    cover: NDArray[np.int64] = inside.reshape(SQUARE, 4, SQUARE, 4).sum((1, 3))
    return np.rot90(cover, -max(turns, 0))


def _inside(
    shape: str, x: NDArray[np.float64], y: NDArray[np.float64], radius: float, inset: float = 0.0
) -> NDArray[np.bool_]:
    """Which points lie in a shape around the middle, or in what is left of it ``inset`` pixels inside its edge."""
    if shape == "circle":
        return np.hypot(x, y) < radius - inset
    if shape == "square":
        return np.maximum(abs(x), abs(y)) < 0.87 * radius - inset
    if shape == "diamond":
        return abs(x) + abs(y) < 1.05 * radius - inset * 2**0.5
    if shape == "cross":
        arm, reach = 0.36 * radius - inset * 0.55, radius - inset * 0.55
        near, far = np.minimum(abs(x), abs(y)), np.maximum(abs(x), abs(y))
        return (near < arm) & (far < reach)
    # A triangle that points up: a level base, and two sides that climb two for one.
    base = y < 0.85 * radius - inset
    sides = 2 * abs(x) - y < 0.95 * radius - inset * 5**0.5
    return base & sides
