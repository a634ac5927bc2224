"""Colorization: what a tokenizer is shown of a grey picture is what the LVM's program shows it, to the last bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from kshot.picture import DrawnPicture, FilePicture
from kshot.visual.grammar import sentence_plan
from kshot.visual.sentence_pictures import GreyPicture
from kshot.visual.tasks.colorization import CentreSquare
from kshot.visual.tokenize import tokenize_sentences
from tests.visual.tiny import tiny_tokenizer

EDGE = 16
"""Pixels a side that the tokenizer takes."""


@pytest.fixture
def photos(tmp_path):
    """Pictures of no square shape, with much detail that resizing smooths."""
    for number in range(4):
        levels = np.random.default_rng(number).integers(0, 256, (37, 53, 3), dtype=np.uint8)
        Image.fromarray(levels).save(tmp_path / f"{number}.png")
    return tmp_path


def upstream(image: Image.Image, edge: int) -> np.ndarray:
    """``tokenize_colorization_dataset_muse.py``: square first, then grey in floating point."""
    colours = np.array(image.convert("RGB").resize((edge, edge)), dtype=np.float32) / 255.0
    grey = np.dot(colours, [0.2989, 0.5870, 0.1140])
    return np.stack([grey] * 3, axis=0).astype(np.float32)


def test_grey_pixels_are_upstreams(photos):
    tokenizer = tiny_tokenizer(size=EDGE)
    plan = sentence_plan("colorization", folder=photos, shots=2)
    for sentence in plan:
        for source, picture in zip(sentence.sources[::2], sentence.pictures[::2], strict=True):
            found = tokenizer.pixels([picture])[0].numpy()
            assert np.array_equal(found, upstream(Image.open(photos / source), EDGE))


def test_grey_queries_are_cropped_then_squared_then_grey(photos):
    shown = CentreSquare(FilePicture(photos / "0.png"), 25)
    found = tiny_tokenizer(size=EDGE).pixels([GreyPicture(shown)])[0].numpy()
    assert np.array_equal(found, upstream(shown.load(), EDGE))


def test_a_store_holds_the_tokens_of_upstreams_pixels(photos, tmp_path):
    """Grey values and colours of whole levels share the units of work; neither gets into the other's rows."""
    tokenizer = tiny_tokenizer(size=EDGE)
    plan = sentence_plan("colorization", folder=photos, shots=2)
    done = tokenize_sentences([plan], tokenizer, tmp_path / "store", batch_size=3)
    for stored, sentence in zip(done.store, plan, strict=True):
        images = [Image.open(photos / source) for source in sentence.sources]
        pixels = [
            upstream(image, EDGE)
            if place % 2 == 0
            else np.asarray(image.resize((EDGE, EDGE)), np.float32).transpose(2, 0, 1) / 255
            for place, image in enumerate(images)
        ]
        expected = tokenizer.encode(torch.from_numpy(np.stack(pixels)), 1)
        assert stored.tokens.tolist() == expected.flatten().tolist()


def test_padding_of_a_grey_picture_is_black():
    white = DrawnPicture(lambda: Image.new("RGB", (8, 4), "white"), "white")
    values = GreyPicture(white).on_square(8, "pad")
    assert (values[:2] == 0).all()
    assert values[4, 4].tolist() == pytest.approx([0.9999] * 3)  # the published weights do not add up to 1
