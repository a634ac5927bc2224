"""Metrics of tasks with boxes and points."""

from __future__ import annotations

import pytest

from kshot.episode import Example
from kshot.errors import DataError
from kshot.metrics.grounding import (
    grounded_caption,
    pointqa_accuracy,
    rec_accuracy,
    stated_answers,
    visual7w_accuracy,
)

TARGET = "[0.100,0.200,0.700,0.800]"


def query(answer: str, number: int = 0, **metadata) -> Example:
    return Example(question=f"{number}?", answer=answer, metadata=metadata)


def rec(*predictions: str):
    return rec_accuracy(predictions, [query(TARGET, n, category="refcoco") for n in range(len(predictions))])


def test_a_box_is_right_above_one_half_and_not_at_it():
    assert rec("[0.100,0.200,0.700,0.500]").value == 0  # IoU exactly 0.5
    assert rec("[0.100,0.200,0.700,0.501]").value == 1
    result = rec(TARGET, "[0.100,0.200,0.700,0.500]")
    assert (result.value, result.details["iou"]) == (0.5, 0.75)
    assert result.categories == {"refcoco": (0.5, 2)}


def test_texts_without_a_box_are_counted_and_wrong():
    result = rec("there", "", "Answer: [0.1,0.2,0.7] .", f"Answer: {TARGET} .")
    assert (result.value, result.details["unparsed"], result.details["iou"]) == (0.25, 3, 0.25)
    assert result.items == (0, 0, 0, 1)


def test_of_several_boxes_the_first_counts_and_upstream_counts_none():
    other = "[0.000,0.000,0.100,0.100]"
    result = rec(f"{TARGET} {other}", f"{other}{TARGET}", f"{TARGET[:-1]};{other[1:]}", TARGET)
    assert result.items == (1, 0, 1, 1)
    assert result.details["several"] == 3
    assert result.details["upstream"] == 0.25


def test_upstream_reads_no_spaces():
    result = rec("[0.1, 0.2, 0.7, 0.8]", "[0.1,0.2,0.7,0.8]")
    assert (result.value, result.details["upstream"]) == (1, 0.5)


def test_exchanged_corners_and_pixels_are_wrong():
    assert rec("[0.700,0.800,0.100,0.200]", "[64,96,448,384]").value == 0


def test_a_reference_without_a_box():
    with pytest.raises(DataError, match="holds no box"):
        rec_accuracy(["x"], [query("left")])


@pytest.mark.parametrize(
    ("said", "right"),
    [
        ("red", True),
        ("Red.", True),
        ("The answer is red .", True),
        ("the answer is Red", True),
        ("Answer: red .", True),
        ("It is a shirt. So the answer is red.", True),
        ("The answer is red . And it is big.", True),
        ("The answer is blue . The answer is red .", True),
        ("The answer is red . The answer is blue .", False),
        ("dark red", False),
        ("The answer is", False),
        ("", False),
    ],
)
def test_short_answers_with_and_without_their_frame(said, right):
    assert pointqa_accuracy([said], [query("red")]).value == right


def test_full_stops_inside_an_answer():
    assert pointqa_accuracy(["The answer is st. bernard ."], [query("st. bernard")]).value == 1
    assert pointqa_accuracy(["The answer is 2.5 ."], [query("2.5")]).value == 1
    assert stated_answers("The answer is 2 . There are more") == ["2 . There are more", "2"]


def test_strict_and_upstream_figures():
    result = pointqa_accuracy(
        ["The answer is Red .", "The answer is red .", "red", "The answer is red . The answer is red ."],
        [query("red", n) for n in range(4)],
    )
    assert (result.value, result.details["strict"], result.details["upstream"]) == (1, 0.75, 0.5)


CANDIDATES = [(0.0, 0.0, 0.5, 0.5), (0.5, 0.5, 1.0, 1.0), (0.0, 0.0, 1.0, 1.0)]


def pointing(said: str, right: int):
    answer = "[" + ",".join(f"{v:.3f}" for v in CANDIDATES[right]) + "]"
    return visual7w_accuracy([said], [query(answer, candidates=CANDIDATES, right=right)])


def test_the_point_of_the_reference_is_right_wherever_it_is():
    overlapped = query("[0.100,0.100]", candidates=CANDIDATES, right=2)
    assert visual7w_accuracy(["[0.100,0.100]"], [overlapped]).value == 1
    assert visual7w_accuracy(["[0.100,0.101]"], [overlapped]).value == 0


@pytest.mark.parametrize(
    ("said", "choice"),
    [
        ("[0.500,0.500,1.000,1.000]", 1),
        ("The answer is [0.500,0.500,1.000,1.000] .", 1),
        ("[0.600,0.600,1.000,1.000]", 1),
        ("[0.000,0.000,0.900,0.900]", 2),
        ("[0.100,0.100]", 0),
        ("[0.500,0.500]", 2),  # a corner of the first two, the centre of the third
        ("[0.250,0.250]", 0),
        ("[0.900,0.100]", 2),
    ],
)
def test_what_is_pointed_at(said, choice):
    assert [pointing(said, right).value for right in range(3)] == [float(n == choice) for n in range(3)]


def test_answers_that_point_at_nothing_are_counted():
    assert pointing("the cat", 1).details["unparsed"] == 1
    for nowhere in ("[1.500,1.500]", "[2,2,3,3]", "[0.500,0.500,0.500,0.500]"):
        result = pointing(nowhere, 1)
        assert (result.value, result.details["none"], result.details["unparsed"]) == (0, 1, 0)
    assert pointing("[0.500,0.500,1.000,1.000]", 1).details == {
        "exact": 1.0,
        "unparsed": 0.0,
        "none": 0.0,
        "chance": pytest.approx(1 / 3),
    }
    assert pointing("[0.510,0.500,1.000,1.000]", 1).details["exact"] == 0


def test_candidates_that_are_equal_are_both_right():
    twice = query("[0.000,0.000,0.500,0.500]", candidates=[CANDIDATES[0], CANDIDATES[0], CANDIDATES[1]], right=1)
    result = visual7w_accuracy(["[0.000,0.000,0.500,0.500]"], [twice])
    assert (result.value, result.details["chance"]) == (1, pytest.approx(2 / 3))


def test_a_candidate_without_area_can_be_chosen_by_its_text():
    flat = query("[0.100,0.100,0.100,0.300]", candidates=[(0.1, 0.1, 0.1, 0.3), CANDIDATES[1]], right=0)
    assert visual7w_accuracy(["[0.100,0.100,0.100,0.300]"], [flat]).value == 1


@pytest.mark.parametrize("metadata", [{}, {"candidates": CANDIDATES}, {"candidates": CANDIDATES, "right": 3}])
def test_metadata_that_pointing_needs(metadata):
    with pytest.raises(DataError, match="lack 'candidates'"):
        visual7w_accuracy(["x"], [query("[0,0,1,1]", **metadata)])


def test_grounded_captions_are_scored_by_words_and_by_boxes(monkeypatch):
    pytest.importorskip("pycocoevalcap")
    monkeypatch.setenv("KSHOT_CAPTION_TOKENIZER", "python")
    man, hat, dog = "[0.1,0.1,0.5,0.5]", "[0.1,0.1,0.3,0.2;0.6,0.6,0.8,0.8]", "[0.5,0.5,0.9,0.9]"
    references = (f"a man{man} with a hat{hat} rides", f"a cowboy{man} rides a brown horse")
    first = Example(question="1", answer=references[0], references=references)
    second = Example(question="2", answer=f"two dogs{dog} run on sand", references=(f"two dogs{dog} run on sand",))
    bare = grounded_caption(["a man with a hat rides", "two dogs run on sand"], [first, second])
    assert bare.details["box_recall"] == bare.details["box_precision"] == bare.details["boxes"] == 0

    # The man is named by both references but counts once; of the hats one is found, which is enough; the dogs are not found.
    said = [f"a man{man} with a hat[0.6,0.6,0.8,0.8] rides", "two dogs[0.5,0.5,0.6,0.6] run on sand"]
    result = grounded_caption(said, [first, second])
    assert result.value == pytest.approx(bare.value)
    assert result.value > 1
    assert result.details["box_recall"] == pytest.approx(2 / 3)
    assert result.details["box_precision"] == pytest.approx(2 / 3)
    assert result.details["boxes"] == 3
