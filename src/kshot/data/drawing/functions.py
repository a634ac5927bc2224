"""Functions from boards to boards, see :mod:`kshot.data.drawing.tiles`: what visual in-context learning has to find out from examples.

Every function has the same form: each square of the answer shows what one square of the question shows, after a change that depends on
the tile alone. So functions can be chained, applied to thousands of boards at once, and compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from kshot.data.drawing.tiles import NUMBER, PATTERNS, SIDE, TILES, Board, Tile

UNDEFINED = -1
"""Tile number of a square that cannot be drawn: a mask on white ground."""

_EVERY_SQUARE = np.arange(SIDE * SIDE).reshape(SIDE, SIDE)


@dataclass(frozen=True)
class PictureFunction:
    """A function from boards to boards.

    Attributes:
        name: in the registry, such as ``rotate_90``; of a chain, ``first+second``.
        source: for each square of the answer, the square of the question that it shows.
        table: tile number in the question -> tile number in the answer.
    """

    name: str
    source: tuple[int, ...]
    table: tuple[int, ...]

    def __call__(self, boards: Board) -> Board:
        """The answers to boards (..., 16). Squares that cannot be drawn are :data:`UNDEFINED`."""
        table = np.array((*self.table, UNDEFINED))  # so that the tile -1 stays what it is
        answers: Board = table[np.asarray(boards)[..., list(self.source)]]
        return answers

    def then(self, second: PictureFunction) -> PictureFunction:
        """This function, and another one on its answer."""
        table = (*second.table, UNDEFINED)
        return PictureFunction(
            f"{self.name}+{second.name}",
            tuple(self.source[square] for square in second.source),
            tuple(table[tile] for tile in self.table),
        )


def _moved(name: str, squares: NDArray[np.int64], turn: Callable[[int], int] | None = None) -> PictureFunction:
    """A function that moves squares; ``turn`` says where a triangle of direction 0..3 (up, right, down, left) points then."""

    def tile(old: Tile) -> Tile:
        direction = PATTERNS.index(old.pattern) - 4 if old.pattern else -1
        return old if turn is None or direction < 0 else replace(old, pattern=PATTERNS[4 + turn(direction) % 4])

    return PictureFunction(name, tuple(int(s) for s in squares.ravel()), _table(tile))


def _changed(name: str, change: Callable[[Tile], Tile]) -> PictureFunction:
    """A function that changes tiles and leaves them where they are."""
    return PictureFunction(name, tuple(range(SIDE * SIDE)), _table(change))


def _table(change: Callable[[Tile], Tile]) -> tuple[int, ...]:
    return tuple(NUMBER.get(change(tile), UNDEFINED) for tile in TILES)


def _coloured(**colours: str) -> Callable[[Tile], Tile]:
    return lambda tile: replace(tile, colour=colours.get(tile.colour, tile.colour))


def _all_coloured(colour: str) -> Callable[[Tile], Tile]:
    return lambda tile: replace(tile, colour=colour) if tile.pattern and tile.colour != "mask" else tile


def _shaped(pattern: str) -> Callable[[Tile], Tile]:
    return lambda tile: replace(tile, pattern=pattern) if tile.pattern else tile


def _styled(**styles: str) -> Callable[[Tile], Tile]:
    return lambda tile: replace(tile, style=styles.get(tile.style, tile.style))


def _inverted(tile: Tile) -> Tile:
    colours = {"red": "teal", "teal": "red", "yellow": "blue", "blue": "yellow", "mask": "no such piece"}
    ground = "white" if tile.ground == "black" else "black"
    return replace(tile, ground=ground, colour=colours.get(tile.colour, tile.colour))


def _segmented(tile: Tile) -> Tile:
    return replace(tile, ground="black", colour="mask") if tile.pattern else replace(tile, ground="black")


def _shifted(down: int, right: int) -> NDArray[np.int64]:
    """What leaves the board on one side comes in on the other."""
    return np.roll(_EVERY_SQUARE, (down, right), (0, 1))


MOVES: tuple[PictureFunction, ...] = (
    _moved("rotate_90", np.rot90(_EVERY_SQUARE, -1), lambda d: d + 1),
    _moved("rotate_180", np.rot90(_EVERY_SQUARE, 2), lambda d: d + 2),
    _moved("rotate_270", np.rot90(_EVERY_SQUARE), lambda d: d + 3),
    _moved("flip_horizontal", _EVERY_SQUARE[:, ::-1], lambda d: -d),
    _moved("flip_vertical", _EVERY_SQUARE[::-1], lambda d: 2 - d),
    _moved("shift_right", _shifted(0, 1)),
    _moved("shift_left", _shifted(0, -1)),
    _moved("shift_down", _shifted(1, 0)),
    _moved("shift_up", _shifted(-1, 0)),
)
"""Functions that move what there is. (Rotations are clockwise.)"""

CHANGES: tuple[PictureFunction, ...] = (
    _changed("recolour_red", _all_coloured("red")),
    _changed("recolour_teal", _all_coloured("teal")),
    _changed("recolour_yellow", _all_coloured("yellow")),
    _changed("recolour_blue", _all_coloured("blue")),
    _changed("swap_red_blue", _coloured(red="blue", blue="red")),
    _changed("swap_teal_yellow", _coloured(teal="yellow", yellow="teal")),
    _changed("invert", _inverted),
    _changed("segment", _segmented),
    _changed("remove_background", lambda tile: replace(tile, ground="black")),
    _changed("outline", _styled(solid="hollow")),
    _changed("fill", _styled(hollow="solid")),
    _changed("enlarge", _styled(small="solid")),
    _changed("shrink", _styled(solid="small", hollow="small")),
    _changed("to_circles", _shaped("circle")),
    _changed("to_squares", _shaped("square")),
)
"""Functions that change what there is, and leave it where it is."""

IDENTITY = _changed("identity", lambda tile: tile)
BASIC: tuple[PictureFunction, ...] = (IDENTITY, *MOVES, *CHANGES)
"""The 25 functions that ``tiny-visual`` is trained and judged on."""

NEW: tuple[PictureFunction, ...] = (
    _moved("transpose", _EVERY_SQUARE.T, lambda d: 3 - d),
    _moved("shift_two_right", _shifted(0, 2)),
    _changed("swap_red_yellow", _coloured(red="yellow", yellow="red")),
    _changed("to_diamonds", _shaped("diamond")),
)
"""Functions that ``tiny-visual`` never saw, nor any part of them."""

_FIRST = (
    "rotate_90",
    "rotate_180",
    "flip_horizontal",
    "flip_vertical",
    "shift_right",
    "shift_left",
    "shift_down",
    "shift_up",
)
_SECOND = (
    "recolour_red",
    "recolour_teal",
    "recolour_yellow",
    "recolour_blue",
    "invert",
    "segment",
    "outline",
    "enlarge",
    "to_circles",
)


def _chains() -> tuple[tuple[PictureFunction, ...], tuple[PictureFunction, ...]]:
    named = {function.name: function for function in BASIC}
    seen: list[PictureFunction] = []
    unseen: list[PictureFunction] = []
    for i, first in enumerate(_FIRST):
        for j, second in enumerate(_SECOND):
            # Latin-square fashion: every part is also seen in other chains.
            chosen = unseen if (i + j) % 5 == 0 else seen
            chosen.append(named[first].then(named[second]))
    return tuple(seen), tuple(unseen)


CHAINS, NEW_CHAINS = _chains()
"""A move and then a change: chains that ``tiny-visual`` is trained on, and chains that it never saw (their parts it saw elsewhere)."""

SEQUENCES: tuple[PictureFunction, ...] = (
    *(f for f in MOVES if f.name in ("rotate_90", "rotate_270") or f.name.startswith("shift")),
    _moved("shift_down_right", _shifted(1, 1)),
    _moved("shift_up_right", _shifted(-1, 1)),
)
"""What leads from one frame of a sequence to the next: rotation, and motion in six directions."""

FUNCTIONS: dict[str, PictureFunction] = {f.name: f for f in (*BASIC, *CHAINS, *NEW, *NEW_CHAINS)}
"""All functions of pairs by name."""


def telling(boards: Board, functions: Sequence[PictureFunction]) -> NDArray[np.bool_]:
    """Which boards (n, 16) show which functions (n, functions): the answer can be drawn, and no other of :data:`FUNCTIONS` gives it.

    (A picture of red pieces alone does not tell recolouring to red from doing nothing.)
    """
    sources, tables = _all_functions()
    numbers = [tuple(FUNCTIONS).index(function.name) for function in functions]
    told = np.empty((len(boards), len(functions)), dtype=np.bool_)
    for start in range(0, len(boards), 512):
        chunk = np.asarray(boards[start : start + 512])
        answers = tables[np.arange(len(tables))[:, None], chunk[:, sources]]  # (n, all functions, 16)
        keys = ((answers + 2).astype(np.uint64) * _WEIGHTS).sum(-1)
        same = (keys[:, numbers, None] == keys[:, None, :]).sum(-1)
        told[start : start + 512] = (same == 1) & (answers[:, numbers] != UNDEFINED).all(-1)
    return told


_WEIGHTS = np.random.default_rng(16).integers(1, 2**63, SIDE * SIDE, dtype=np.uint64)
"""Sums of tile numbers with these weights (modulo 2 ** 64) are equal for equal boards, and for hardly any others."""


@lru_cache(maxsize=1)
def _all_functions() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Squares (functions, 16) and tables (functions, tiles + 1) of all functions."""
    every = FUNCTIONS.values()
    return np.array([f.source for f in every]), np.array([(*f.table, UNDEFINED) for f in every])


def split_of(boards: Board) -> NDArray[np.str_]:
    """To which split boards (..., 16) belong, by a hash: ``train`` (six in eight), ``validation`` or ``test``."""
    keys = ((np.asarray(boards) + 2).astype(np.uint64) * _WEIGHTS).sum(-1) >> np.uint64(40)
    return np.array(["test", "validation", *["train"] * 6])[(keys % np.uint64(8)).astype(np.int64)]


@lru_cache(maxsize=4)
def _pieces(ground: str, held_out: bool | None) -> NDArray[np.int64]:
    """Coloured pieces of a ground, in equal numbers for each shape: all, or only those that are (not) held out."""
    chosen = []
    for number, tile in enumerate(TILES):
        if tile.pattern and tile.ground == ground and tile.colour != "mask" and held_out in (None, tile.held_out):
            chosen += [number] * (1 if tile.shape == "triangle" else 4)
    return np.array(chosen)


def random_boards(
    rng: np.random.Generator, count: int, *, split: str, held_out: bool = False, pieces: tuple[int, int] = (2, 5)
) -> Board:
    """Boards at random (count, 16): one ground, 2 to 5 pieces of any shape, style and colour.

    Args:
        rng: decides everything.
        count: how many.
        split: ``train``, ``validation`` or ``test``, see :func:`split_of`: no board of one is in another.
        held_out: whether one piece at least shows a pair of colour and shape of ``tiles.HELD_OUT``; otherwise none does.
        pieces: the least and the greatest number of pieces.
    """
    boards = np.empty((count, SIDE * SIDE), dtype=np.int64)
    found = 0
    while found < count:
        board = _random_board(rng, held_out, pieces)
        if split_of(board) == split:
            boards[found] = board
            found += 1
    return boards


def _random_board(rng: np.random.Generator, held_out: bool, pieces: tuple[int, int]) -> Board:
    ground = ("black", "white")[rng.integers(2)]
    number = int(rng.integers(pieces[0], pieces[1] + 1))
    squares = rng.permutation(SIDE * SIDE)[:number]
    known = _pieces(ground, None if held_out else False)
    board = np.full(SIDE * SIDE, NUMBER[Tile(ground)])
    board[squares] = known[rng.integers(len(known), size=number)]
    if held_out:
        rare = _pieces(ground, True)
        board[squares[0]] = rare[rng.integers(len(rare))]
    return board


def shows_held_out(boards: Board) -> NDArray[np.bool_]:
    """Which boards (..., 16) show a pair of colour and shape that is held out."""
    rare = np.array([*(tile.held_out for tile in TILES), False])  # the last one answers for UNDEFINED
    shown: NDArray[np.bool_] = np.any(rare[np.asarray(boards)], axis=-1)
    return shown
