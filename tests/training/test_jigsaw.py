"""Jigsaw episodes: pieces, the shuffled picture, and coordinates that put it together again."""

from __future__ import annotations

import ast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from kshot.data.link_class import LinkClass
from kshot.errors import BadImage, OptionError
from kshot.picture import as_picture
from kshot.prompt import render_plain
from kshot.training.items import load_source
from kshot.training.jigsaw import GRIDS, JigsawEpisodes, Puzzle
from tests.training.link_toys import classes, picture


def one_class(size: tuple[int, int]) -> list[LinkClass]:
    return [LinkClass("c", "thing", [picture(5, size=size)])]


def coordinates(item) -> list[list[int]]:
    text = item.episode.query.text_answer
    assert text.startswith("The order is: [[")
    assert text.endswith("]].")
    return ast.literal_eval(text.removeprefix("The order is: ").removesuffix("."))


def pixels(picture) -> np.ndarray:
    return np.asarray(picture.load())


@settings(max_examples=60)
@given(st.sampled_from(sorted(GRIDS)), st.integers(8, 40), st.integers(8, 40), st.integers(0, 50))
def test_the_pieces_at_their_coordinates_are_the_picture(count, width, height, epoch):
    item = JigsawEpisodes(one_class((width, height)), pieces=[count]).item(epoch, 0)
    places = coordinates(item)
    rows, columns = (max(axis) + 1 for axis in zip(*places, strict=True))
    assert (rows, columns) in GRIDS[count]
    assert sorted(places) == [[row, column] for row in range(rows) for column in range(columns)]
    assert item.episode.shots == count
    pieces = [pixels(d.images[0]) for d in item.episode.demonstrations]
    tall, wide = height // rows, width // columns
    assert {piece.shape for piece in pieces} == {(tall, wide, 3)}
    built = np.zeros((rows * tall, columns * wide, 3), np.uint8)
    for piece, (row, column) in zip(pieces, places, strict=True):
        built[row * tall : (row + 1) * tall, column * wide : (column + 1) * wide] = piece
    whole = pixels(picture(5, size=(width, height)))
    top, left = (height - rows * tall) // 2, (width - columns * wide) // 2
    assert np.array_equal(built, whole[top : top + rows * tall, left : left + columns * wide])
    # The query shows the same pieces in other places; it is neither a piece nor the picture itself.
    query = pixels(item.episode.query.images[0])
    assert query.shape == built.shape
    assert not np.array_equal(query, built)
    cut = [query[r * tall : (r + 1) * tall, c * wide : (c + 1) * wide] for r in range(rows) for c in range(columns)]
    assert sorted(piece.tobytes() for piece in cut) == sorted(piece.tobytes() for piece in pieces)


@settings(max_examples=30)
@given(st.sampled_from(sorted(GRIDS)), st.integers(0, 50))
def test_coordinates_in_the_query(count, epoch):
    item = JigsawEpisodes(one_class((24, 36)), pieces=[count], coordinates="query").item(epoch, 0)
    query = pixels(item.episode.query.images[0])
    for d, (row, column) in zip(item.episode.demonstrations, coordinates(item), strict=True):
        piece = pixels(d.images[0])
        tall, wide = piece.shape[:2]
        assert np.array_equal(query[row * tall : (row + 1) * tall, column * wide : (column + 1) * wide], piece)


def test_all_grids_occur_and_tiles_are_shuffled():
    source = JigsawEpisodes(one_class((24, 24)), episodes_per_class=300)
    grids, orders = set(), set()
    for index in range(len(source)):
        places = coordinates(source.item(0, index))
        grids.add(tuple(max(axis) + 1 for axis in zip(*places, strict=True)))
        orders.add(str(places))
    assert grids == {grid for options in GRIDS.values() for grid in options}
    assert len(orders) > 200


def test_the_query_is_always_shuffled():
    source = JigsawEpisodes(one_class((8, 8)), pieces=[4], episodes_per_class=300)
    orders = {source.item(0, index).episode.query.images[0].order for index in range(len(source))}
    assert len(orders) == 4 * 3 * 2 - 1  # all but the one in which every piece is in its place
    assert ((0, 0), (0, 1), (1, 0), (1, 1)) not in orders


def test_digests_tell_pictures_apart_without_decoding():
    class Undecoded(type(picture(0))):
        def load(self):
            raise AssertionError("decoded")

    puzzles = [Puzzle(Undecoded(picture(key).read()), 2, 3) for key in (1, 2)] + [Puzzle(picture(1), 3, 2)]
    source = JigsawEpisodes(classes(), episodes_per_class=10)
    items = [source.item(0, i) for i in range(len(source))]
    digests = [p.digest for item in items[:8] for p in item.episode.pictures]
    assert len(set(digests)) == len(digests)
    assert [p.digest for p in source.item(0, 0).episode.pictures] == [p.digest for p in items[0].episode.pictures]
    from kshot.training.jigsaw import PiecePicture, ShuffledPicture

    made = [PiecePicture(puzzle, (0, 1)).digest for puzzle in puzzles]
    made += [ShuffledPicture(puzzle, puzzle.places[::-1]).digest for puzzle in puzzles]
    assert len(set(made)) == len(made)


def test_the_picture_is_decoded_once_for_all_pieces():
    count = 0

    class Counted(type(picture(0))):
        def load(self):
            nonlocal count
            count += 1
            return super().load()

    item = JigsawEpisodes([LinkClass("c", "thing", [Counted(picture(3).read())])], pieces=[16]).item(0, 0)
    assert count == 0
    for shown in item.episode.pictures:
        shown.load()
    assert count == 1


def test_the_prompt_is_that_of_the_paper():
    item = JigsawEpisodes(one_class((16, 16)), pieces=4).item(0, 0)
    answer = item.episode.query.text_answer
    assert render_plain(item.episode, item.template, answer=answer).text() == (
        "You should find the causal relationship between the examples I am going to show you. "
        "And use that to answer to the [FINAL QUESTION]. "
        + 4
        * "USER: [BEGIN EXAMPLE] This image <image> is a puzzle piece. ASSISTANT: [END EXAMPLE] "
        + "[FINAL QUESTION]: USER: Using the puzzle pieces provided above to piece together this image <image>, "
        "and provide the coordinates of each piece on the image coordinate system in order. "
        f"ASSISTANT: {answer}"
    )


def test_items_repeat_and_the_longest_have_most_pieces():
    source = load_source({"kind": "jigsaw", "source": classes(), "pieces": [4, 9], "seed": 3})
    one, again = (source.item(2, 5).episode for _ in range(2))
    assert [p.digest for p in one.pictures] == [p.digest for p in again.pictures]
    assert one.query.answer == again.query.answer
    assert {item.episode.shots for item in source.longest()} == {9}
    assert (
        source.describe() != load_source({"kind": "jigsaw", "source": classes(), "pieces": [4], "seed": 3}).describe()
    )


def test_what_is_refused():
    with pytest.raises(OptionError, match=r"pieces=\[5\]: must be some of 4, 6, 9, 12, 16"):
        JigsawEpisodes(classes(), pieces=[5])
    with pytest.raises(OptionError, match="original, query"):
        JigsawEpisodes(classes(), coordinates="whole")
    small = [LinkClass("c", "thing", [as_picture(Image.new("RGB", (3, 9)), "a strip")])]
    with pytest.raises(BadImage, match=r"a strip.*3 x 9 pixels cannot be cut into 4 x 4"):
        JigsawEpisodes(small, pieces=[16]).item(0, 0).episode.query.images[0].load()
