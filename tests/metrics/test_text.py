"""Exact match, and the judging of names in concept episodes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kshot.episode import Example
from kshot.errors import DataError
from kshot.metrics.common import fold, mentions
from kshot.metrics.text import exact_match, judge_names, two_name


def offer(right: str, *others: str, **metadata: str) -> Example:
    return Example(answer=right, choices=(right, *others), metadata=metadata)


@pytest.mark.parametrize(
    ("text", "folded"),
    [
        ("  Stone. ", "stone"),
        ('"Stone"', "stone"),
        ("two  words", "two words"),
        ("st. bernard!", "st. bernard"),
        ("STRASSE", "strasse"),
        ("straße", "strasse"),
        ("don't", "don't"),
        ("_x_", "x"),
        ("?", "?"),
        ("...", "..."),
        ("", ""),
    ],
)
def test_fold(text, folded):
    assert fold(text) == folded


@given(st.text())
def test_fold_is_idempotent(text):
    assert fold(fold(text)) == fold(text)


@pytest.mark.parametrize(
    ("prediction", "right", "other", "outcome"),
    [
        ("stone", "stone", "airstone", "right"),
        ("airstone", "stone", "airstone", "other"),  # upstream's substring test counts this as right
        ("airstone", "airstone", "stone", "right"),
        ("airstone", "stone", "rock", "neither"),
        ("MushroomHaven", "mushroomhaven", "RockFlock", "right"),  # upstream's test does not fold the prediction
        ("mushroomhaven", "MushroomHaven", "RockFlock", "right"),
        ('there is "RockFlock" in the image.', "MushroomHaven", "RockFlock", "other"),
        ("It is a cactus boxer, not a stone boxer", "cactus boxer", "boxer", "both"),
        ("a cactus boxer", "cactus boxer", "boxer", "right"),
        ("a cactus boxer", "boxer", "cactus boxer", "other"),
        ("cactus boxer or boxer", "boxer", "cactus boxer", "both"),
        ("a b c", "a b", "b c", "both"),  # overlapping names, none inside the other
        ("I do not know", "cactihog", "hedgehog", "neither"),
        ("", "cactihog", "hedgehog", "neither"),
        ("hedgehogs", "hedgehog", "cactihog", "neither"),  # whole words only
        ("Hedgehog!", "hedgehog", "cactihog", "right"),
        ("either hedgehog or cactihog", "hedgehog", "cactihog", "both"),
        ("unlike the hedgehog, this is a 'cactihog'", "cactihog", "hedgehog", "right"),  # quoted answer first
        ("unlike the hedgehog, this is “cactihog”", "cactihog", "hedgehog", "right"),
        ('not "hedgehog" but "cactihog"', "cactihog", "hedgehog", "both"),
        ('the "right" one: hedgehog', "hedgehog", "cactihog", "right"),  # a quotation that names nothing is passed over
        ("domino's", "domino's", "domino", "right"),
        ("mr. x", "mr. x", "x", "right"),
        ("it is mr. x.", "mr. x", "x", "right"),
        ("it isn't the dog's bowl", "dog", "cat", "right"),  # apostrophes are no quotes
    ],
)
def test_judging_by_hand(prediction, right, other, outcome):
    assert judge_names(prediction, [right], [right, other]) == outcome


names = st.lists(
    st.text("abc ", min_size=1, max_size=6).map(str.strip).filter(bool), min_size=2, max_size=5, unique_by=fold
)


@given(names, st.data())
def test_a_name_itself_names_only_itself(offered, data):
    said = data.draw(st.sampled_from(offered))
    said = " ".join(said.split())
    for name in offered:
        expected = "right" if fold(name) == fold(said) else "other"
        for text in (said, said.upper(), f'"{said}"', f" {said}. "):
            assert judge_names(text, [name], offered) == expected


@given(names, st.text("abc \"'", max_size=30), st.randoms())
def test_judging_ignores_the_order_of_names(offered, text, random):
    shuffled = offered.copy()
    random.shuffle(shuffled)
    assert judge_names(text, offered[:1], shuffled) == judge_names(text, offered[:1], offered)
    assert mentions(text, offered) == mentions(text, shuffled)


def test_two_name_counts_all_outcomes():
    queries = [
        offer("wug", "dax", **{"class": "w"}),
        offer("wug", "dax", **{"class": "w"}),
        offer("dax", "wug", **{"class": "d"}),
        offer("dax", "wug", **{"class": "d"}),
        offer("dax", "wug", "fep", "blick", **{"class": "d"}),
    ]
    result = two_name(["wug", "dax", "dax wug", "a cat", "a Dax."], queries)
    details = result.details
    assert [details[o] for o in ("right", "other", "neither", "both")] == [0.4, 0.2, 0.2, 0.2]
    assert result.items == (1.0, 0.0, 0.0, 0.0, 1.0)
    assert result.value == details["micro"] == 0.4
    assert result.categories == {"d": (pytest.approx(1 / 3), 3), "w": (0.5, 2)}
    assert details["macro"] == pytest.approx((1 / 3 + 1 / 2) / 2)
    assert details["exact"] == 0.2  # "a Dax." is right, but not the name itself
    assert details["chance"] == pytest.approx((4 * 0.5 + 0.25) / 5)


def test_two_name_refuses_names_it_cannot_tell_apart():
    with pytest.raises(DataError, match="differ only in case"):
        two_name(["x"], [offer("Stone", "stone")])
    with pytest.raises(DataError, match="offers no names"):
        two_name(["x"], [Example(answer="x")])


def test_right_name_need_not_be_among_the_choices():
    query = Example(answer="wug", choices=("dax", "fep"))
    assert two_name(["wug"], [query]).value == 1
    assert two_name(["wug or dax"], [query]).details["both"] == 1


def test_exact_match():
    queries = [Example(answer="Red", references=("Red", "crimson"), metadata={"class": "color"}), Example(answer="dog")]
    result = exact_match([" red. ", "a dog"], queries)
    assert result.items == (1.0, 0.0)
    assert result.details["strict"] == 0
    assert result.categories == {"color": (1.0, 1)}
    assert exact_match(["crimson", "dog"], queries).details["strict"] == 1
