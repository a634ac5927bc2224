"""The three rules by which pictures become squares."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from kshot.errors import OptionError
from kshot.visual.resize import checked_rule, frame, square

SIDES = st.integers(1, 700)


def noise(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("shape", [(64, 64), (400, 300), (30, 77), (1, 9)])
def test_squash_is_upstreams_resize(shape):
    image = noise(*shape)
    assert np.array_equal(np.asarray(square(image, 64, "squash")), np.asarray(image.resize((64, 64))))


def test_squash_has_antialias():
    """Stripes one pixel wide, made 8 times smaller, are grey; without antialias they would stay black or white."""
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255
    small = np.asarray(square(Image.fromarray(stripes), 32, "squash"))
    assert np.abs(small.astype(int) - 127).max() <= 16


def test_crop_is_the_middle():
    picture = np.zeros((20, 60, 3), np.uint8)
    picture[:, 20:40] = 200
    assert (np.asarray(square(Image.fromarray(picture), 20, "crop")) == 200).all()
    assert (np.asarray(square(Image.fromarray(picture.transpose(1, 0, 2)), 20, "crop")) == 200).all()


def test_pad_keeps_the_whole_in_black():
    found = np.asarray(square(Image.new("RGB", (80, 40), (255, 255, 255)), 32, "pad"))
    assert (found[8:24] == 255).all()
    assert not found[:8].any()
    assert not found[24:].any()


@given(SIDES, SIDES, st.integers(1, 64), st.sampled_from(["squash", "crop", "pad"]))
def test_frames_lie_inside(width, height, size, rule):
    where = frame(width, height, size, rule)
    left, top, right, bottom = where.source
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    left, top, right, bottom = where.target
    assert 0 <= left < right <= size
    assert 0 <= top < bottom <= size
    if rule == "crop":
        assert where.source[2] - where.source[0] == where.source[3] - where.source[1] == min(width, height)
    if rule == "pad":
        assert max(right - left, bottom - top) == size
        assert abs((right - left) * height - (bottom - top) * width) <= max(width, height)
    if width == height:
        assert where == frame(width, height, size, "squash")


@given(st.integers(1, 90), st.integers(1, 90), st.sampled_from(["squash", "crop", "pad"]))
def test_any_picture_becomes_a_square(width, height, rule):
    found = square(noise(width, height), 16, rule)
    assert (found.size, found.mode) == ((16, 16), "RGB")


def test_unknown_rule():
    with pytest.raises(OptionError, match="unknown resize rule 'fit': use squash, crop, pad"):
        checked_rule("fit")
