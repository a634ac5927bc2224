"""Label maps in colour, and the palette that is kept."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from kshot.errors import BadImage, CannotWrite, DataError
from kshot.picture import FilePicture
from kshot.visual.grammar import sentence_plan
from kshot.visual.palette import LabelPicture, Palette, as_palette, colour_labels
from tests.visual.pictures import numbered, write

PALETTE = Palette.drawn(0)


def save(path, labels, mode="L", palette=None):
    image = Image.fromarray(np.asarray(labels, np.uint8))
    if mode == "P":
        image = image.convert("P") if palette is None else image
        image.putpalette(palette or [0] * 768)
    image.save(path)
    return FilePicture(path)


def test_a_palette_is_the_same_for_ever():
    """Its colours are written into data sets: this digest must never change."""
    assert PALETTE.colours[:4] == EXPECTED
    assert PALETTE.digest == DIGEST
    assert Palette.drawn(0) == PALETTE
    assert Palette.drawn(1).colours[1:] != PALETTE.colours[1:]


EXPECTED = ((0, 0, 0), (214, 246, 232), (174, 23, 163), (0, 225, 106))
DIGEST = "fb5cb7b936f1e3bfa4d7fe2dc424eec3"


def test_colours_are_all_different_and_far_apart():
    table = PALETTE.table().astype(int)
    assert table.shape == (256, 3)
    distances = ((table[:, None] - table[None]) ** 2).sum(-1) + np.eye(256, dtype=int) * 10**6
    assert distances.min() >= 28**2
    assert PALETTE.colours[0] == (0, 0, 0)
    assert Palette.drawn(0, background=None).colours[0] != (0, 0, 0)


@settings(max_examples=20)
@given(arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_labels_can_be_read_back(labels):
    assert (PALETTE.labels_of(colour_labels(labels, PALETTE)) == labels).all()


def test_the_nearest_colour_is_read():
    noisy = PALETTE.table()[[[3, 200], [0, 77]]].astype(int) + np.array([3, -3, 2])
    image = Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))
    assert PALETTE.labels_of(image).tolist() == [[3, 200], [0, 77]]


def test_a_palette_is_kept_as_json(tmp_path):
    PALETTE.save(tmp_path / "kept" / "palette.json")
    assert json.loads((tmp_path / "kept" / "palette.json").read_text())["colours"][1] == list(PALETTE.colours[1])
    assert Palette.load(tmp_path / "kept" / "palette.json") == PALETTE
    assert [p.name for p in (tmp_path / "kept").iterdir()] == ["palette.json"]
    (tmp_path / "list.json").write_text("[[0, 0, 0], [255, 0, 0]]")
    assert Palette.load(tmp_path / "list.json").colours == ((0, 0, 0), (255, 0, 0))
    assert as_palette([[1, 2, 3]]).colours == ((1, 2, 3),)
    assert as_palette(4) == Palette.drawn(4)
    with pytest.raises(CannotWrite):
        PALETTE.save(tmp_path / "list.json" / "palette.json")


@pytest.mark.parametrize(
    "text",
    ["{}", "[]", '"red"', "[[0, 0]]", "[[0, 0, 256]]", "[[0, 0, true]]", "[1, 2, 3]", json.dumps([[0, 0, 0]] * 257)],
)
def test_what_is_no_palette(tmp_path, text):
    (tmp_path / "palette.json").write_text(text)
    with pytest.raises(DataError, match=r"palette\.json"):
        Palette.load(tmp_path / "palette.json")


def test_numbers_are_coloured_and_not_the_picture_s_own_palette(tmp_path):
    labels = [[0, 1], [2, 255]]
    expected = colour_labels(np.array(labels), PALETTE)
    own = [200, 10, 10] * 256
    for picture in (save(tmp_path / "l.png", labels), save(tmp_path / "p.png", labels, "P", own)):
        assert LabelPicture(picture, PALETTE).load().tobytes() == expected.tobytes()
    assert Image.open(tmp_path / "p.png").mode == "P"
    deep = Image.fromarray(np.array(labels, np.uint16))
    deep.save(tmp_path / "16.png")
    assert LabelPicture(FilePicture(tmp_path / "16.png"), PALETTE).load().tobytes() == expected.tobytes()


def test_what_is_no_label_map(tmp_path):
    Image.new("RGB", (2, 2)).save(tmp_path / "rgb.png")
    with pytest.raises(BadImage, match=r"mode 'L' or 'P'.*mode 'RGB'.*labels="):
        LabelPicture(FilePicture(tmp_path / "rgb.png"), PALETTE).load()
    few = Palette.of([[0, 0, 0], [9, 9, 9]])
    with pytest.raises(BadImage, match=r"l\.png: label 7 has no colour: the palette holds 2"):
        LabelPicture(save(tmp_path / "l.png", [[0, 7]]), few).load()
    (tmp_path / "text.png").write_text("text")
    with pytest.raises(BadImage, match="known format"):
        LabelPicture(FilePicture(tmp_path / "text.png"), PALETTE).load()
    save(tmp_path / "l.png", np.arange(400).reshape(20, 20) % 250)
    whole = (tmp_path / "l.png").read_bytes()
    (tmp_path / "l.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadImage, match=r"l\.png"):
        LabelPicture(FilePicture(tmp_path / "l.png"), PALETTE).load()
    with pytest.raises(BadImage, match="not a label map"):
        colour_labels(np.zeros((2, 2, 3), np.uint8), PALETTE)
    with pytest.raises(BadImage, match="label -1"):
        colour_labels(np.array([[-1, 3]]), PALETTE)


def test_the_palette_of_a_plan(tmp_path):
    write(tmp_path / "x", numbered("", 2))
    (tmp_path / "y").mkdir()
    for name in numbered("", 2):
        save(tmp_path / "y" / name, [[1, 2], [3, 4]])
    Palette.drawn(9).save(tmp_path / "palette.json")
    plan = sentence_plan(
        "pairs", x=tmp_path / "x", y=tmp_path / "y", labels="y", palette=tmp_path / "palette.json", shots=2
    )
    assert plan.describe()["palette"] == [list(colour) for colour in Palette.drawn(9).colours]
    assert plan[0].pictures[1].load().getpixel((1, 1)) == Palette.drawn(9).colours[4]
    assert plan[0].pictures[1] == plan[0].pictures[1]
    with pytest.raises(DataError, match="not found"):
        sentence_plan("pairs", x=tmp_path / "x", y=tmp_path / "y", labels="y", palette=tmp_path / "none.json", shots=2)
