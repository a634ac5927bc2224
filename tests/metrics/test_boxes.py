"""Boxes in text, and their overlap."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kshot.metrics.boxes import (
    UPSTREAM_BOXES,
    area,
    find_boxes,
    find_points,
    first_box,
    first_point,
    iou,
    thousandths,
    without_boxes,
)

thousandth = st.integers(0, 1000)


@st.composite
def boxes(draw, top: int = 1000):
    x0, x1 = sorted(draw(st.tuples(st.integers(0, top), st.integers(0, top))))
    y0, y1 = sorted(draw(st.tuples(st.integers(0, top), st.integers(0, top))))
    return (x0, y0, x1, y1)


def text(*found) -> str:
    return "[" + ";".join(",".join(f"{v / 1000:.3f}" for v in box) for box in found) + "]"


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ((0, 0, 4, 4), (0, 0, 4, 4), 1.0),
        ((0, 0, 4, 4), (2, 0, 6, 4), 8 / 24),
        ((0, 0, 4, 4), (1, 1, 3, 3), 4 / 16),  # contained
        ((0, 0, 4, 4), (0, 0, 4, 2), 0.5),
        ((0, 0, 4, 4), (4, 0, 8, 4), 0.0),  # touching at an edge
        ((0, 0, 4, 4), (4, 4, 8, 8), 0.0),  # touching at a corner
        ((0, 0, 4, 4), (6, 0, 8, 4), 0.0),  # apart in x, not in y
        ((0, 0, 4, 4), (6, 6, 8, 8), 0.0),  # apart in both: two negative sides do not make an overlap
        ((2, 2, 2, 2), (2, 2, 2, 2), 0.0),  # a point
        ((0, 2, 4, 2), (0, 0, 4, 4), 0.0),  # a line
        ((4, 4, 0, 0), (0, 0, 4, 4), 0.0),  # both corners exchanged: the product of two negative sides is no area
        ((4, 0, 0, 4), (0, 0, 4, 4), 0.0),
        ((4, 4, 0, 0), (4, 4, 0, 0), 0.0),
        ((-2, -2, 2, 2), (0, 0, 2, 2), 4 / 16),
    ],
)
def test_iou_of_boxes_worked_out_by_hand(one, other, expected):
    assert iou(one, other) == pytest.approx(expected)
    assert iou(other, one) == pytest.approx(expected)


@given(boxes(12), boxes(12))
def test_iou_is_the_share_of_common_cells(one, other):
    def cells(box):
        return {(x, y) for x in range(box[0], box[2]) for y in range(box[1], box[3])}

    common, union = cells(one) & cells(other), cells(one) | cells(other)
    assert iou(one, other) == pytest.approx(len(common) / len(union) if common else 0.0)
    assert area(one) == len(cells(one))


@given(boxes(), boxes(), st.integers(1, 50), st.integers(1, 50), st.integers(-9, 9))
def test_iou_does_not_depend_on_units_or_padding(one, other, wide, high, shift):
    """Width and height may be scaled differently: fractions of the padded square and pixels of the original give the same."""

    def moved(box):
        return (box[0] * wide + shift, box[1] * high - shift, box[2] * wide + shift, box[3] * high - shift)

    assert iou(moved(one), moved(other)) == pytest.approx(iou(one, other))


def test_an_iou_of_one_half_is_exactly_one_half():
    one, other = (0.1, 0.2, 0.7, 0.5), (0.1, 0.2, 0.7, 0.8)
    assert iou(one, other) != 0.5  # binary fractions
    assert iou(thousandths(one), thousandths(other)) == 0.5


@given(st.lists(st.lists(boxes(), min_size=1, max_size=3), max_size=3), st.text("abc .,;()", max_size=5))
def test_what_is_written_is_found(groups, between):
    written = between.join(text(*group) for group in groups)
    expected = [[tuple(v / 1000 for v in box) for box in group] for group in groups]
    assert find_boxes(written) == expected
    assert find_points(written) == []
    assert len(UPSTREAM_BOXES.findall(written)) == len(groups)


@given(st.lists(st.tuples(thousandth, thousandth), min_size=1, max_size=3))
def test_points_are_found_and_are_no_boxes(points):
    written = f"The answer is {text(*points)} ."
    assert find_points(written) == [[(x / 1000, y / 1000) for x, y in points]]
    assert find_boxes(written) == []


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("Answer: [0.1,0.2,0.3,0.4] .", (0.1, 0.2, 0.3, 0.4)),
        ("[ 0.1, 0.2 ,0.3,0.4 ]", (0.1, 0.2, 0.3, 0.4)),
        ("(0,0,1,1)", (0, 0, 1, 1)),
        ("[.5,0.5,1.,1]", (0.5, 0.5, 1, 1)),
        ("at [0.1,0.2] and [0.1,0.2,0.3,0.4;0.5,0.6,0.7,0.8]", (0.1, 0.2, 0.3, 0.4)),
        ("[[0.1,0.2,0.3,0.4]]", (0.1, 0.2, 0.3, 0.4)),
        ("[12, 40, 220, 300]", (12, 40, 220, 300)),
        ("[-0.1,0.2,0.3,0.4]", (-0.1, 0.2, 0.3, 0.4)),
        ("[0.1,0.2,0.3]", None),
        ("[0.1,0.2,0.3,0.4,0.5]", None),
        ("[0.1 0.2 0.3 0.4]", None),
        ("[a,b,c,d]", None),
        ("[0.1,0.2,0.3,0.4", None),
        ("", None),
        (f"[{'9' * 400},0,1,1]", None),  # too large for a number
    ],
)
def test_the_first_box_of_free_text(said, expected):
    assert first_box(said) == expected


def test_the_first_point_of_free_text():
    assert first_point("in [0.1,0.2,0.3,0.4] at (0.5, 0.25)") == (0.5, 0.25)
    assert first_point("nowhere") is None


@given(st.text(max_size=60), st.text("[](),;.0123456789- ", max_size=60))
def test_any_text_can_be_searched(anything, brackets):
    for said in (anything, brackets, anything + brackets):
        assert all(len(box) == 4 for group in find_boxes(said) for box in group)
        assert all(len(point) == 2 for group in find_points(said) for point in group)
        assert len(without_boxes(said)) <= len(said)


def test_a_caption_without_its_boxes():
    grounded = "A man[0.1,0.2,0.3,0.4] in a hat[0.1,0.2,0.3,0.4;0.5,0.6,0.7,0.8] , at [0.5,0.5] the sea ."
    assert without_boxes(grounded) == "A man in a hat, at the sea."
