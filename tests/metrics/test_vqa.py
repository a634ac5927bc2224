"""VQA accuracy against values computed by hand from the published rules."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kshot import metrics
from kshot.episode import Example
from kshot.errors import DataError, MissingExtra
from kshot.metrics.vqa import consensus, normalise_answer, vqa_accuracy


def annotators(**counts: int) -> list[str]:
    """Ten answers, e.g. ``annotators(red=7, blue=3)``; underscores stand for spaces."""
    return [answer.replace("_", " ") for answer, count in counts.items() for _ in range(count)]


def split(answer: str, times: int) -> list[str]:
    """Ten answers of which so many are the given one; the rest is something that nothing else in this file equals."""
    return [answer] * times + ["zebra"] * (10 - times)


CONSENSUS = [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (5, 1.0), (9, 1.0), (10, 1.0)]
# 1 match of 10: leaving that annotator out gives 0, the nine others give 1/3: 9 * (1/3) / 10 = 0.3.
# 2: 2 * (1/3) + 8 * (2/3) = 6 -> 0.6.   3: 3 * (2/3) + 7 * 1 = 9 -> 0.9.   4: 4 * 1 + 6 * 1 -> 1.


@pytest.mark.parametrize(("matches", "value"), CONSENSUS)
def test_ten_annotators(matches, value):
    assert consensus(matches, 10) == pytest.approx(value)
    assert vqa_accuracy("red", split("red", matches)) == pytest.approx(value)


NORMALISED = [
    # contractions, with and without their apostrophes
    ("dont", "don't"),
    ("don't", "don't"),
    ("Dont", "don't"),
    ("it is what theyre saying", "it is what they're saying"),
    ("couldnt've", "couldn't've"),
    ("couldn'tve", "couldn't've"),
    ("couldntve", "couldntve"),  # two apostrophes missing: not on the list
    ("y'alld've", "y'all'd've"),
    ("twas", "'twas"),
    ("5 oclock", "5 o'clock"),
    ("Im", "im"),  # the script's list has it in capitals only, after lower-casing
    ("lets", "lets"),  # not on the script's list
    ("somebody'd", "somebodyd"),  # an oddity of the list
    ("girl's", "girl's"),
    ("girls", "girls"),
    # numbers as words
    ("two", "2"),
    ("Ten", "10"),
    ("none", "0"),
    ("zero", "0"),
    ("eleven", "eleven"),
    ("twenty two", "twenty 2"),
    ("one and a half", "1 and half"),
    # articles
    ("a dog", "dog"),
    ("The man on the left", "man on left"),
    ("an apple", "apple"),
    ("the", ""),
    ("theme park", "theme park"),
    # punctuation: a space, or nothing where the mark stands beside a space somewhere
    ("black/white", "black white"),
    ("black / white", "black white"),
    ("t-shirt", "t shirt"),
    ("t- shirt", "t shirt"),
    ("red,blue", "red blue"),
    ("red, blue", "red blue"),
    ("red, blue,green", "red bluegreen"),
    ("yes!", "yes"),
    ("yes?", "yes"),
    ('"stop"', "stop"),
    ("(left)", "left"),
    ("{left} [right]", "left right"),
    ("a_b", "b"),
    ("$5", "$5"),
    ("50%", "50%"),
    ("black & white", "black & white"),
    ("2:50 pm", "2:50 pm"),
    # commas and full stops in numbers
    ("1,000", "1000"),
    ("100,978 people", "100978 people"),
    ("1,000-2,000", "10002000"),  # a comma in a number makes every mark vanish
    ("1, 000", "1 000"),
    ("3.5", "3.5"),
    ("3.", "3"),
    (".5", ".5"),
    ("yes.", "yes"),
    ("Yes.", "yes"),
    ("u.s.a.", "usa"),
    ("st. louis", "st louis"),
    ("no...", "no"),
    # white space
    ("  two\tdogs \n", "2 dogs"),
    ("two\ndogs", "2 dogs"),
    ("two    dogs", "2 dogs"),
    ("", ""),
]


@pytest.mark.parametrize(("text", "normalised"), NORMALISED)
def test_normalised_answers(text, normalised):
    assert normalise_answer(text) == normalised


ACCURACIES = [
    # prediction, annotators, value by hand
    ("yes.", split("yes", 8), 1.0),
    ("Yes", split("yes", 2), 0.6),
    ("dont", split("don't", 3), 0.9),
    ("don't", split("dont", 3), 0.9),
    ("2", annotators(two=2, three=8), 0.6),
    ("two", ["2", "two", "Two.", *["3"] * 7], 0.9),
    ("none", annotators(zero=1, two=9), 0.3),
    ("the cat", split("cat", 1), 0.3),
    ("cat", split("a cat", 4), 1.0),
    ("1000", split("1,000", 3), 0.9),
    ("1,000", split("1000", 3), 0.9),
    ("3.5", split("3.5", 2), 0.6),
    ("35", split("3.5", 9), 0.0),
    ("black and white", annotators(black_and_white=5, white_and_black=5), 1.0),
    ("white/black", split("white black", 3), 0.9),
    ("2:50pm", split("2:50pm", 1), 0.3),
    ("\n skateboard\t", split("skateboard", 2), 0.6),
    ("skate board", split("skateboard", 9), 0.0),
    ("", split("yes", 9), 0.0),
    ("the", ["a", "an", "", *["yes"] * 7], 0.9),  # articles alone become empty on both sides
    # unanimous annotators: the script compares the texts as they stand
    ("yes", ["yes"] * 10, 1.0),
    ("Yes", ["yes"] * 10, 0.0),
    ("yes.", ["yes"] * 10, 0.0),
    ("two", ["2"] * 10, 0.0),
    (" yes\n", [" yes "] * 10, 1.0),  # white space around is removed first
    # fewer annotators
    ("red", ["red"], 1.0),
    ("red", "red", 1.0),  # a single answer, not three letters
    ("blue", ["red"], 0.0),
    ("red", ["red", "blue"], 0.5),  # 1 of 1 other when blue is left out, 0 of 1 when red is
    ("red", ["red", "red"], 1.0),
    ("red", ["red", "red", "blue"], 2 / 3),  # red left out: 1 of 2, twice; blue left out: 2 of 2 -> (1/2 + 1/2 + 1) / 3
    ("red", ["red", "red", "red"], 1.0),
    ("red", ["red", "blue", "blue", "blue"], 0.25),  # (0 + 3 * (1/3)) / 4
    ("red", ["red"] * 2 + ["blue"] * 3, (2 * (1 / 3) + 3 * (2 / 3)) / 5),
    ("red", ["red"] * 20, 1.0),
]


@pytest.mark.parametrize(("prediction", "answers", "value"), ACCURACIES)
def test_accuracy_by_hand(prediction, answers, value):
    assert vqa_accuracy(prediction, answers) == pytest.approx(value)
    assert metrics.vqa_accuracy is vqa_accuracy


@pytest.mark.parametrize(
    ("prediction", "answer"), [("Yes.", "yes"), ("two", "2"), ("dont", "don't"), ("the cat", "cat")]
)
def test_rule_of_the_web_page_normalises_unanimous_answers_too(prediction, answer):
    assert vqa_accuracy(prediction, [answer] * 10) == 0
    assert vqa_accuracy(prediction, [answer] * 10, always_normalise=True) == 1


def test_no_answers():
    with pytest.raises(DataError, match="at least one"):
        vqa_accuracy("yes", [])


texts = st.lists(
    st.sampled_from(
        ["a", "The", "two", "dont", "1,000", "3.5", ".", ",", "-", " ", "\n", "'s", "/", "yes", "No", "é", "_"]
    )
).map("".join)


@given(texts)
def test_normaliser_is_idempotent(text):
    assert normalise_answer(normalise_answer(text)) == normalise_answer(text)


@given(texts, st.lists(texts, min_size=1, max_size=12), st.randoms())
def test_accuracy_is_bounded_and_ignores_the_order_of_annotators(prediction, answers, random):
    value = vqa_accuracy(prediction, answers)
    shuffled = answers.copy()
    random.shuffle(shuffled)
    assert 0 <= value <= 1
    assert vqa_accuracy(prediction, shuffled) == value


@given(texts, st.integers(1, 12))
def test_the_annotators_answer_itself_is_right(answer, number):
    assert vqa_accuracy(answer, [answer] * number) == 1


@given(texts, st.lists(texts, min_size=4, max_size=10))
def test_formula_as_published(prediction, answers):
    """The closed form equals the average over the sets that leave one annotator out."""
    said, normalised = normalise_answer(prediction), [normalise_answer(answer) for answer in answers]
    others = [normalised[:left_out] + normalised[left_out + 1 :] for left_out in range(len(normalised))]
    expected = sum(min(rest.count(said) / 3, 1) for rest in others) / len(normalised)
    assert vqa_accuracy(prediction, answers, always_normalise=True) == pytest.approx(expected)


def query(answers: list[str], **metadata: str) -> Example:
    return Example(question="?", references=tuple(answers), metadata=metadata)


def test_metric_has_figures_per_type():
    queries = [
        query(split("yes", 9), question_type="is the", answer_type="yes/no"),
        query(split("2", 2), question_type="how many", answer_type="number"),
        query(["yes"] * 10, question_type="is the", answer_type="yes/no"),
        query(split("red", 9)),
    ]
    result = metrics.metrics.get("vqa_accuracy")(["yes", "two", "Yes.", "blue"], queries)
    assert result.value == pytest.approx((1 + 0.6 + 0 + 0) / 4)
    assert result.details["always_normalised"] == pytest.approx((1 + 0.6 + 1 + 0) / 4)
    assert result.categories == {
        "answer_type: number": (pytest.approx(0.6), 1),
        "answer_type: yes/no": (0.5, 2),
        "question_type: how many": (pytest.approx(0.6), 1),
        "question_type: is the": (0.5, 2),
    }


OKVQA = [
    ("horses", ["horse"] * 2 + ["pony"] * 8, 0.6),
    ("riding", ["ride", "rides", *["run"] * 8], 0.6),
    ("ride", ["Riding"] * 10, 1.0),  # unlike in VQAv2, unanimous answers are normalised as well
    ("skateboards.", ["skateboard"] * 10, 1.0),
    ("the trains", ["train"] * 5 + ["bus"] * 5, 1.0),
    ("pony", ["pony", "horse", "horse", "horse", "mule"], 0.6),  # five answers count twice: 2 of 10
    ("horse", ["pony", "horse", "horse", "horse", "mule"], 1.0),  # 6 of 10
    ("universal", ["university"] * 10, 1.0),  # Porter conflates these: the known price of stemming
    ("dog", ["cat"] * 10, 0.0),
]


@pytest.mark.parametrize(("prediction", "answers", "value"), OKVQA)
def test_okvqa_by_hand(prediction, answers, value):
    pytest.importorskip("nltk")
    result = metrics.metrics.get("okvqa_accuracy")([prediction], [query(answers)])
    assert result.value == pytest.approx(value)
    assert "Porter" in result.note


def test_okvqa_without_nltk_names_the_extra(monkeypatch):
    from kshot.metrics import vqa

    vqa._stemmer.cache_clear()
    monkeypatch.setitem(sys.modules, "nltk", None)
    monkeypatch.setitem(sys.modules, "nltk.stem.porter", None)
    with pytest.raises(MissingExtra, match=r"kshot\[text\]"):
        vqa.okvqa_accuracy_metric(["x"], [query(["x"] * 10)])
