"""Boxes and points in the picture padded to a square."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from kshot.data.boxes import (
    SquarePicture,
    as_box,
    box_of_corner_and_size,
    check_inside,
    from_square,
    picture_size,
    read_box,
    read_point,
    square_of,
    text_of,
    to_square,
    written,
)
from kshot.data.candidates import Contents
from kshot.data.sources import ImageRoot, exists
from kshot.errors import BadImage, DataError
from kshot.metrics.boxes import find_boxes, find_points, iou
from kshot.picture import as_picture
from tests.data.formats import picture

sizes = st.tuples(st.integers(1, 700), st.integers(1, 700))


@st.composite
def sized_boxes(draw):
    width, height = draw(sizes)
    x0, x1 = sorted(draw(st.tuples(st.integers(0, width), st.integers(0, width))))
    y0, y1 = sorted(draw(st.tuples(st.integers(0, height), st.integers(0, height))))
    return (width, height), (x0, y0, x1, y1)


@pytest.mark.parametrize(
    ("size", "square"),
    [
        ((640, 427), (0, 106, 640)),
        ((427, 640), (106, 0, 640)),
        ((5, 5), (0, 0, 5)),
        ((12, 8), (0, 2, 12)),
        ((1, 4), (1, 0, 4)),
    ],
)
def test_where_a_picture_stands_in_its_square(size, square):
    assert square_of(size) == square


def test_a_box_worked_out_by_hand():
    # 640 x 427, 106 pixels above: (64, 22, 320, 342) -> (64, 128, 320, 448) of 640
    assert to_square((64, 22, 320, 342), (640, 427)) == (0.1, 0.2, 0.5, 0.7)
    assert text_of(written((64, 22, 320, 342), (640, 427))) == "[0.100,0.200,0.500,0.700]"
    assert text_of(written((10, 20), (427, 640))) == "[0.181,0.031]"  # 116/640, 20/640
    assert written((-5, -5, 9, 99), (4, 4)) == (0, 0, 1, 1)


@given(sized_boxes())
def test_pixels_come_back(case):
    size, box = case
    back = from_square(to_square(box, size), size)
    assert tuple(round(v) for v in back) == box
    assert back == pytest.approx(box, abs=1e-9)
    point = box[:2]
    assert to_square(point, size) == to_square(box, size)[:2]
    assert from_square(to_square(point, size), size) == pytest.approx(point, abs=1e-9)


@given(sized_boxes())
def test_inside_the_picture_means_inside_its_place_in_the_square(case):
    (width, height), box = case
    x0, y0, x1, y1 = to_square(box, (width, height))
    left, top, side = square_of((width, height))
    assert left / side <= x0 <= x1 <= (left + width) / side <= 1
    assert top / side <= y0 <= y1 <= (top + height) / side <= 1


@given(sized_boxes(), st.data())
def test_iou_is_the_same_in_the_square_and_in_the_original(case, data):
    size, one = case
    other = data.draw(sized_boxes().map(lambda c: c[1]))
    assert iou(to_square(one, size), to_square(other, size)) == pytest.approx(iou(one, other), abs=1e-9)


@given(sized_boxes(), sized_boxes())
def test_text_says_what_is_written(case, second):
    places = [written(box, size) for size, box in (case, second)]
    assert find_boxes(text_of(*places)) == [places]
    assert find_points(text_of(places[0][:2])) == [[places[0][:2]]]


@pytest.mark.parametrize("size", [(5, 2), (2, 5), (4, 4), (7, 4), (1, 6)])
def test_the_padded_picture_has_each_pixel_where_its_coordinates_say(size):
    image = Image.new("RGB", size)
    for x in range(size[0]):
        for y in range(size[1]):
            image.putpixel((x, y), (10 * x, 10 * y, 99))
    square = SquarePicture(as_picture(image)).load()
    side = max(size)
    assert square.size == (side, side)
    inside = set()
    for x in range(size[0]):
        for y in range(size[1]):
            u, v = (round(c * side) for c in to_square((x, y), size))
            assert square.getpixel((u, v)) == (10 * x, 10 * y, 99)
            inside.add((u, v))
    outside = {(u, v) for u in range(side) for v in range(side)} - inside
    assert all(square.getpixel(place) == (255, 255, 255) for place in outside)


def test_a_padded_picture_is_lazy_and_counts_as_its_source(tmp_path):
    path = picture(tmp_path / "a.png", 1)
    (source, padded, again) = (as_picture(path), SquarePicture(as_picture(path)), SquarePicture(as_picture(path)))
    other = SquarePicture(as_picture(picture(tmp_path / "b.png", 2)))
    assert padded == again
    assert hash(padded) == hash(again)
    assert padded != other
    assert padded != source
    assert padded.digest == again.digest
    assert len({padded.digest, other.digest, source.digest}) == 3
    assert padded.name == source.name
    contents = Contents()
    assert contents.same(padded, source)
    assert contents.same(SquarePicture(padded), source)
    assert not contents.same(padded, other)
    copied = tmp_path / "copy.png"
    copied.write_bytes(path.read_bytes())
    assert contents.same(padded, SquarePicture(as_picture(copied)))
    gone = SquarePicture(as_picture(tmp_path / "gone.png"))
    assert exists(padded)
    assert not exists(gone)
    with pytest.raises(BadImage, match=r"gone\.png: image file not found"):
        gone.load()


def test_sizes_are_read_from_headers_and_are_those_of_the_upright_picture(tmp_path):
    path = tmp_path / "turned.jpg"
    image = Image.new("RGB", (12, 8))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(path, exif=exif)
    assert picture_size(as_picture(path)) == (8, 12) == as_picture(path).load().size
    assert picture_size(as_picture(path.read_bytes())) == (8, 12)
    assert picture_size(as_picture(image)) == (12, 8)
    assert picture_size(SquarePicture(as_picture(path))) == (12, 12)
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(picture(tmp_path / "whole.jpg", 3).read_bytes()[:-5])
    assert picture_size(as_picture(cut)) == (12, 8)  # the header is there
    for content in (b"", b"no image"):
        cut.write_bytes(content)
        with pytest.raises(BadImage, match=r"cut\.jpg"):
            picture_size(as_picture(cut))
    with pytest.raises(BadImage, match="not found"):
        picture_size(ImageRoot(tmp_path).picture("gone.jpg"))


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ([5, 0, 4, 4], r"corners are the wrong way round: \[5, 0, 4, 4\] .*not \[x, y, width, height\]"),
        ([0, 5, 4, 4], "wrong way round"),
        ([0, 0, 4], "4 numbers are expected"),
        ([0, 0, 4, "4"], "4 numbers are expected"),
        ([0, 0, 4, True], "4 numbers are expected"),
        ([0, 0, 4, float("nan")], "4 numbers are expected"),
        ("0,0,4,4", "a list of 4 numbers is expected, not text"),
        (None, "a list of 4 numbers is expected, not null"),
    ],
)
def test_boxes_that_are_none(value, problem):
    with pytest.raises(DataError, match=rf"^a\.jsonl:7 field 'bbox': .*{problem}"):
        read_box({"bbox": value}, "bbox", "a.jsonl", 7)


def test_other_forms_and_missing_fields():
    assert as_box([1, 2, 1, 2], "bbox", "a", 1) == (1, 2, 1, 2)  # without area, but in order
    assert box_of_corner_and_size([1, 2, 3, 4.5], "bbox", "a", 1) == (1, 2, 4, 6.5)
    assert read_point({"point": [1, 2.5]}, "point", "a", 1) == (1, 2.5)
    with pytest.raises(DataError, match="negative width or height"):
        box_of_corner_and_size([1, 2, -3, 4], "bbox", "a", 1)
    with pytest.raises(DataError, match=r"a:1 field 'point': field is missing \(the record has: bbox\)"):
        read_point({"bbox": []}, "point", "a", 1)
    with pytest.raises(DataError, match="2 numbers are expected"):
        read_point({"point": [1, 2, 3]}, "point", "a", 1)


@pytest.mark.parametrize("place", [(20, 0, 30, 4), (0, 12, 4, 14), (-9, 0, -2, 4), (0, -9, 4, -2), (14, 4), (4, 10)])
def test_places_outside_the_picture(place):
    with pytest.raises(DataError, match=r"a:3 field 'bbox': \[.*\] is outside the picture of 12 x 8 pixels"):
        check_inside(place, (12, 8), "bbox", "a", 3)


def test_places_that_stick_out_are_cut_off():
    for place in ((10, 4, 15, 9), (-3, -3, 2, 2), (12.5, 8.5), (0, 0, 12.3, 8)):
        check_inside(place, (12, 8), "bbox", "a", 3)
    assert written((-3, -3, 2, 2), (12, 12)) == (0, 0, 0.167, 0.167)
