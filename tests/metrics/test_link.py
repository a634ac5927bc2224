"""The published scoring of Link-Context Learning, on the cases that show its flaws, and the zero-shot form."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kshot.episode import Example
from kshot.errors import DataError
from kshot.metrics.link import SENTENCE, class_names, two_name_upstream, upstream_correct, upstream_target
from kshot.metrics.text import two_name


def offer(right: str, other: str, **metadata: object) -> Example:
    return Example(answer=right, choices=(right, other), metadata=metadata)


@pytest.mark.parametrize(
    ("target", "name"),
    [
        ('[FINAL QUESTION]:  USER: what is in the image? ASSISTANT: there is "whippet" in the image.</s>', "whippet"),
        ('ASSISTANT: there is "a" in the image. ASSISTANT: there is "MushroomHaven" in the image.', "mushroomhaven"),
        ("The answer is 'St. Bernard'.", "st bernard"),
        ("the answer is x", "the answer is x"),  # upstream removes the phrase in this spelling only
        ("There is x", "there is x"),
        ('there is "domino\'s" in the image.</s> there is "y"', "dominos"),
    ],
)
def test_the_target_as_published(target, name):
    assert upstream_target(target) == name


@pytest.mark.parametrize(
    ("prediction", "right", "other", "published", "ours"),
    [
        ('there is "whippet" in the image.', "whippet", "scottish deerhound", 1, "right"),
        ('there is "scottish deerhound" in the image.', "whippet", "scottish deerhound", 0, "other"),
        ('there is "airstone" in the image.', "stone", "airstone", 1, "other"),  # substring
        ('there is "stone" in the image.', "airstone", "stone", 0, "other"),
        (
            'there is "airstone" in the image.',
            "airstone",
            "stone",
            1,
            "right",
        ),  # deleted before the other is looked for
        ('there is "airstone", a "stone"', "airstone", "stone", 0, "both"),
        ('there is "MushroomHaven" in the image.', "MushroomHaven", "RockFlock", 0, "right"),  # capitals
        ('there is "mushroomhaven" in the image.', "MushroomHaven", "RockFlock", 1, "right"),
        ('there is "mushroomhaven", not "RockFlock"', "MushroomHaven", "RockFlock", 1, "both"),
        ('there is "st. bernard" in the image.', "st. bernard", "poodle", 0, "right"),  # full stop
        ('there is "domino\'s" in the image.', "domino's", "poodle", 0, "right"),  # apostrophe
        ("hedgehogs everywhere", "hedgehog", "cactihog", 1, "neither"),
        ("either hedgehog or cactihog", "hedgehog", "cactihog", 0, "both"),
        ("", "hedgehog", "cactihog", 0, "neither"),
    ],
)
def test_the_flaws_by_hand(prediction, right, other, published, ours):
    query = offer(right, other)
    assert two_name_upstream([prediction], [query]).value == published
    assert two_name([prediction], [query]).details[ours] == 1


@given(
    st.text('ab ."', max_size=8), st.text("abAB.' ", min_size=1, max_size=4), st.text("abAB.' ", min_size=1, max_size=4)
)
def test_it_is_the_published_formula(prediction, right, other):
    pos, pair = upstream_target(SENTENCE.format(name=right)), (right.lower(), other.lower())
    if pair[0] == pair[1]:
        return
    neg = ""
    for name in pair:  # the last one that differs
        neg = name if name != pos else neg
    expected = pos in prediction and neg not in prediction.replace(pos, "")
    assert upstream_correct(prediction, pos, neg) == expected
    query = offer(right, other, sides=(right, other))
    assert two_name_upstream([prediction], [query]).value == float(expected)


def test_of_a_name_that_upstream_loses_the_negative_side_is_the_other():
    # "st bernard" equals neither lower-case name, so upstream takes the second of (positive, negative).
    query = offer("st. bernard", "bern", sides=("st. bernard", "bern"))
    assert two_name_upstream(["st bernard"], [query]).value == 1
    turned = offer("st. bernard", "bern", sides=("bern", "st. bernard"))
    assert two_name_upstream(["st bernard, st. bernard"], [turned]).value == 0


def test_other_than_two_names_are_refused():
    with pytest.raises(DataError, match="not two names"):
        two_name_upstream(["x"], [Example(answer="a", choices=("a", "b", "c"))])
    with pytest.raises(DataError, match="not two names"):
        two_name_upstream(["x"], [Example(answer="A", choices=("A", "a"))])


def test_it_counts_per_group():
    queries = [offer("a", "b", **{"class": "p", "group": "g"}), offer("b", "a", **{"class": "n", "group": "g"})]
    result = two_name_upstream(["a", "a"], queries)
    assert result.categories == {"p": (1.0, 1), "n": (0.0, 1), "group: g": (0.5, 2)}
    assert result.details == {"failed": 0, "target_failed": 0, "macro": 0.5, "macro_groups": 0.5}


def test_class_names():
    names = ("whippet", "scottish deerhound", "desk", "fig")
    queries = [Example(answer=name, choices=names, metadata={"class": name}) for name in names]
    result = class_names(["Whippet.", 'There is "scottish deerhound" in the image.', "fig", "a fig"], queries)
    assert result.items == (1, 1, 0, 0)
    assert result.details["unknown"] == 0.25
    assert result.details["known"] == pytest.approx(2 / 3)
    assert result.details["chance"] == 0.25
    assert result.details["macro"] == 0.5
    assert class_names(["the answer is desk"] * 4, queries).value == 0.25
    assert class_names(["?"] * 4, queries).details["known"] == 0
    with pytest.raises(DataError, match="offers no names"):
        class_names(["x"], [Example(answer="x")])
