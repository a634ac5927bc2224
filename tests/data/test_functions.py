from __future__ import annotations

import numpy as np
import pytest

from kshot.data.derived import generator
from kshot.data.drawing.functions import (
    BASIC,
    CHAINS,
    FUNCTIONS,
    NEW,
    NEW_CHAINS,
    SEQUENCES,
    UNDEFINED,
    random_boards,
    shows_held_out,
    split_of,
    telling,
)
from kshot.data.drawing.tiles import PIECE_COLOURS, SQUARE, TILES, Tile, board_pixels
from kshot.data.functions import Functions
from kshot.data.task import load_task
from kshot.errors import DataError, OptionError, UnknownName


@pytest.fixture(scope="module")
def boards():
    return random_boards(generator(3, "boards"), 60, split="test", held_out=True)


def pixels(picture):
    return np.asarray(picture.load())


ON_PIXELS = {
    "identity": lambda p: p,
    "rotate_90": lambda p: np.rot90(p, -1, (1, 2)),
    "rotate_180": lambda p: np.rot90(p, 2, (1, 2)),
    "rotate_270": lambda p: np.rot90(p, 1, (1, 2)),
    "flip_horizontal": lambda p: p[:, :, ::-1],
    "flip_vertical": lambda p: p[:, ::-1],
    "transpose": lambda p: p.swapaxes(1, 2),
    "shift_right": lambda p: np.roll(p, SQUARE, 2),
    "shift_left": lambda p: np.roll(p, -SQUARE, 2),
    "shift_down": lambda p: np.roll(p, SQUARE, 1),
    "shift_up": lambda p: np.roll(p, -SQUARE, 1),
    "shift_two_right": lambda p: np.roll(p, 2 * SQUARE, 2),
    "invert": lambda p: 255 - p,
}


@pytest.mark.parametrize("name", ON_PIXELS)
def test_what_moves_or_inverts_pixels_gives_the_picture_of_another_board(boards, name):
    assert np.array_equal(board_pixels(FUNCTIONS[name](boards)), ON_PIXELS[name](board_pixels(boards)))


def test_tiles_all_look_different():
    drawn = board_pixels(np.repeat(np.arange(len(TILES))[:, None], 16, 1))
    assert len(np.unique(drawn.reshape(len(TILES), -1), axis=0)) == len(TILES) == 218


def changed(name: str, tile: Tile) -> Tile:
    number = FUNCTIONS[name].table[TILES.index(tile)]
    return TILES[number]


def test_changes_do_what_their_names_say():
    ring = Tile("white", "circle", "hollow", "red")
    assert changed("recolour_blue", ring).colour == "blue"
    assert changed("swap_red_blue", ring).colour == "blue"
    assert changed("swap_teal_yellow", ring) == ring
    assert changed("segment", ring) == Tile("black", "circle", "hollow", "mask")
    assert changed("remove_background", ring) == Tile("black", "circle", "hollow", "red")
    assert changed("fill", ring).style == "solid"
    assert changed("outline", changed("fill", ring)) == ring
    assert changed("enlarge", changed("shrink", ring)).style == "solid"
    assert changed("to_squares", ring).pattern == "square"
    assert changed("rotate_90", Tile("black", "up", "solid", "red")).pattern == "right"
    assert all(changed(name, Tile("black")) == Tile("black") for name in FUNCTIONS if "invert" not in name)


def test_chains_are_what_their_parts_do_one_after_the_other(boards):
    for chain in (*CHAINS, *NEW_CHAINS):
        first, second = chain.name.split("+")
        assert np.array_equal(chain(boards), FUNCTIONS[second](FUNCTIONS[first](boards)))


def test_what_cannot_be_drawn_is_undefined_and_stays_so(boards):
    masks = FUNCTIONS["segment"](boards)
    nothing = FUNCTIONS["invert"](masks)
    assert (nothing == UNDEFINED).any(1).all()
    assert np.array_equal(FUNCTIONS["recolour_red"](nothing) == UNDEFINED, nothing == UNDEFINED)


def test_new_functions_and_chains_are_not_among_the_trained_ones():
    trained = {(f.source, f.table) for f in (*BASIC, *CHAINS)}
    assert not trained & {(f.source, f.table) for f in (*NEW, *NEW_CHAINS)}
    parts = {part for chain in CHAINS for part in chain.name.split("+")}
    assert {part for chain in NEW_CHAINS for part in chain.name.split("+")} <= parts
    assert len(BASIC) == 25
    assert len(SEQUENCES) == 8


def test_a_telling_board_is_answered_differently_by_all_other_functions(boards):
    functions = list(FUNCTIONS.values())
    told = telling(boards, functions)
    for row, board in enumerate(boards[:15]):
        answers = [tuple(function(board)) for function in functions]
        for column, answer in enumerate(answers):
            expected = answers.count(answer) == 1 and UNDEFINED not in answer
            assert told[row, column] == expected


def test_boards_of_red_pieces_do_not_tell_recolouring_to_red():
    red = [TILES.index(Tile("black", p, "solid", "red")) for p in ("circle", "up")]
    board = np.zeros((1, 16), dtype=np.int64)
    board[0, [3, 6]] = red
    assert not telling(board, (FUNCTIONS["recolour_red"],)).any()
    assert not telling(board, (FUNCTIONS["recolour_blue"],)).any()  # it might be a swap of red and blue
    assert telling(board, (FUNCTIONS["recolour_teal"],)).all()


def test_splits_share_no_board_and_are_six_to_one_to_one():
    drawn = {split: random_boards(generator(0, split), 50, split=split) for split in ("train", "validation", "test")}
    for split, found in drawn.items():
        assert set(split_of(found)) == {split}
    share = np.mean(split_of(np.random.default_rng(0).integers(0, len(TILES), (4000, 16))) == "train")
    assert share == pytest.approx(0.75, abs=0.03)


def test_held_out_pairs_turn_up_when_asked_for_and_never_otherwise():
    common = random_boards(generator(0, "a"), 80, split="train")
    rare = random_boards(generator(0, "b"), 80, split="test", held_out=True)
    assert not shows_held_out(common).any()
    assert shows_held_out(rare).all()
    assert {tile.colour for tile in TILES if tile.held_out} == set(PIECE_COLOURS)


def test_every_demonstration_and_the_query_show_the_same_function_and_tell_it():
    task = load_task("functions", episodes=50)
    for index in (0, 7, 24, 33):
        query = task.queries[index]
        name = query.metadata["category"]
        assert name == BASIC[index % 25].name
        for example in (query, *task.pool(query)[:4]):
            if name in ON_PIXELS:
                assert np.array_equal(pixels(example.answer), ON_PIXELS[name](pixels(example.images[0])[None])[0])
            assert (pixels(example.answer) != pixels(example.images[0])).any() == (name != "identity")


def test_pools_differ_between_episodes_and_hold_no_query():
    task = Functions(functions="rotate_90", episodes=3, pool_size=6)
    seen = [e.images[0].digest for q in task.queries for e in (q, *task.pool(q))]
    assert len(set(seen)) == len(seen) == 21


def test_support_holds_the_functions_in_turn():
    task = Functions(functions=["invert", "outline"])
    assert len(task.support) == 1024
    assert [e.metadata["category"] for e in task.support[:3]] == ["invert", "outline", "invert"]
    assert pixels(task.support[0].images[0]).shape == (64, 64, 3)


def test_a_query_of_another_task_is_refused():
    with pytest.raises(DataError, match="no query of the task"):
        Functions(episodes=2).pool(Functions(episodes=9).queries[5])


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"functions": "rotate_45"}, UnknownName, "did you mean"),
        ({"functions": ["invert", "invert"]}, OptionError, "each once"),
        ({"functions": []}, OptionError, "at least one"),
        ({"split": "dev"}, OptionError, "'train', 'validation' or 'test'"),
        ({"episodes": 0}, OptionError, "episodes=0"),
    ],
)
def test_bad_options_are_named(options, error, words):
    with pytest.raises(error, match=words):
        Functions(**options)
