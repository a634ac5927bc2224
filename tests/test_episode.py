"""Examples and episodes."""

from __future__ import annotations

import dataclasses

import pytest
from PIL import Image

from kshot import picture
from kshot.episode import Episode, Example
from kshot.errors import DataError


def image(colour: str = "red") -> Image.Image:
    return Image.new("RGB", (4, 4), colour)


def test_one_picture_may_be_given_without_a_list(tmp_path):
    image().save(tmp_path / "a.png")
    for given in (image(), tmp_path / "a.png", str(tmp_path / "a.png"), (tmp_path / "a.png").read_bytes()):
        example = Example(given)
        assert len(example.images) == 1
        assert example.images[0].load().getpixel((0, 0)) == (255, 0, 0)


def test_references_default_to_the_answer():
    assert Example((), "q", "cat").references == ("cat",)
    assert Example((), "q", "cat", references="tabby").references == ("tabby",)
    assert Example((), "q", "cat", references=["tabby", "cat"]).references == ("tabby", "cat")
    assert Example((), "q").references == ()


def test_an_answer_may_be_a_picture():
    example = Example(image(), "", image("blue"))
    assert isinstance(example.answer, picture.Picture)
    assert example.references == (example.answer,)
    with pytest.raises(DataError, match="answered by a picture"):
        _ = example.text_answer


def test_a_demonstration_needs_an_answer():
    with pytest.raises(DataError, match="'q7' has no answer"):
        _ = Example((), "what?", id="q7").text_answer


def test_ids_derive_from_the_content():
    one = Example(image(), "what?", "cat")
    assert one.id == Example(image(), "what?", "cat").id
    others = [Example(image("blue"), "what?", "cat"), Example(image(), "who?", "cat"), Example(image(), "what?", "dog")]
    assert len({one.id, *(other.id for other in others)}) == 4
    assert Example((), "1", "2").id != Example((), "12").id
    assert Example((), "what?", id="mine").id == "mine"


def test_given_ids_read_no_image(tmp_path):
    Example(tmp_path / "absent.png", "what?", id="x")
    with pytest.raises(DataError, match="not found"):
        Example(tmp_path / "absent.png", "what?")


def test_examples_and_episodes_do_not_change():
    metadata = {"category": "colour"}
    example = Example(image(), "what?", "cat", metadata=metadata)
    metadata["category"] = "other"
    assert example.metadata["category"] == "colour"
    with pytest.raises(TypeError):
        example.metadata["category"] = "other"
    for thing, field in ((example, "answer"), (Episode((), example), "query")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(thing, field, None)
    assert isinstance(Example([image()], choices=["a"]).choices, tuple)


def test_with_changes_a_copy():
    example = Example(image(), "what?", "cat", id="x")
    changed = example.with_(answer="dog", references=("dog",))
    assert (changed.answer, changed.id, changed.images) == ("dog", "x", example.images)
    assert example.answer == "cat"


def test_an_episode_counts_shots_and_lists_pictures_in_order():
    colours = ("red", "green", "blue")
    red, green, blue = (Example([image(c)] * n, "", c) for n, c in enumerate(colours, start=1))
    episode = Episode([red, green], blue)
    assert episode.shots == 2
    assert episode.id == blue.id
    assert episode.pictures == (*red.images, *green.images, *blue.images)
    assert len(episode.pictures) == 6
    assert Episode((), blue).shots == 0
