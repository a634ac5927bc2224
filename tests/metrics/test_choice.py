"""MME's score and the reading of multiple-choice answers, by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kshot.episode import Example
from kshot.errors import DataError
from kshot.metrics.choice import COGNITION, PERCEPTION, mme, multiple_choice, parse_choice, parse_yes_no, seed_bench


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Yes", "yes"),
        ("no", "no"),
        ("Yes, there is.", "yes"),
        ("No.", "no"),
        ("\n yes", "yes"),
        ("NO", "no"),
        ("Not sure", "no"),  # the tool's prefix test, kept because published scores come from it
        ("(yes)", "yes"),
        ("The answer is yes", "other"),
        ("maybe", "other"),
        ("", "other"),
    ],
)
def test_yes_no(text, answer):
    assert parse_yes_no(text) == answer


def question(category: str, image: str, answer: str) -> Example:
    return Example(
        question=f"{category} {image} {answer}?", answer=answer, metadata={"category": category, "image_id": image}
    )


def test_mme_score_by_hand():
    queries = [
        question("existence", "1.jpg", "Yes"),
        question("existence", "1.jpg", "No"),
        question("existence", "2.jpg", "Yes"),
        question("existence", "2.jpg", "No"),
        question("code_reasoning", "1.jpg", "Yes"),  # the same image name in another category is another image
        question("code_reasoning", "1.jpg", "No"),
    ]
    result = mme(["Yes", "No", "yes, it is", "I cannot tell", "no", "yes"], queries)
    # existence: 3 of 4 right, 1 of 2 images: 75 + 50. code_reasoning: nothing right.
    assert result.categories == {"existence": (125.0, 4), "code_reasoning": (0.0, 2)}
    assert result.value == 125
    assert result.details["perception"] == 125
    assert result.details["cognition"] == 0
    assert result.details["acc"] == pytest.approx((0.75 + 0) / 2)
    assert result.details["acc_plus"] == pytest.approx((0.5 + 0) / 2)
    assert result.details["other"] == pytest.approx(1 / 6)
    assert result.units == (0, 0, 1, 1, 2, 2)
    assert result.items == (pytest.approx(3 * 100 * (2 / 4 + 1 / 2)), pytest.approx(3 * 100 * (1 / 4)), 0.0)
    assert sum(result.items) / 3 == pytest.approx(result.value)


def test_mme_pairs_need_not_be_neighbours():
    queries = [question("count", image, answer) for answer in ("Yes", "No") for image in ("a", "b", "c")]
    result = mme(["yes", "yes", "no", "no", "yes", "no"], queries)  # a: both right, b and c: one
    assert result.units == (0, 1, 2, 0, 1, 2)
    assert result.value == pytest.approx(100 * (4 / 6 + 1 / 3))


def test_full_mme_is_2000_and_800_points():
    queries = [question(c, i, a) for c in (*PERCEPTION, *COGNITION) for i in ("1", "2") for a in ("Yes", "No")]
    result = mme([query.text_answer for query in queries], queries)
    assert (result.details["perception"], result.details["cognition"], result.value) == (2000, 800, 2800)


def test_mme_question_without_its_partner_counts_for_acc_only():
    queries = [question("count", "a", "Yes"), question("count", "a", "No"), question("count", "b", "Yes")]
    result = mme(["yes", "no", "yes"], queries)
    assert result.value == 200
    assert result.details["unpaired"] == 1
    assert sum(result.items) / len(result.items) == pytest.approx(200)
    only = mme(["yes"], queries[2:])
    assert only.value == 100


def test_mme_several_pairs_of_one_image_are_paired_in_order():
    queries = [question("celebrity", "a", answer) for answer in ("Yes", "No", "Yes", "No")]
    assert mme(["yes", "no", "no", "yes"], queries).units == (0, 0, 1, 1)


@pytest.mark.parametrize(
    ("query", "problem"),
    [
        (Example(answer="Yes", metadata={"category": "count"}), "image_id"),
        (Example(answer="Yes", metadata={"image_id": "1"}), "category"),
        (question("count", "1", "three"), "must be Yes or No"),
    ],
)
def test_mme_bad_input(query, problem):
    with pytest.raises(DataError, match=problem):
        mme(["yes"], [query])


ANIMALS = ("a dog", "a cat", "a big dog", "the sea")


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("A", 0),
        ("b", 1),
        ("B.", 1),
        ("(C)", 2),
        ("[d]", 3),
        ("D)", 3),
        ("**B**", 1),
        ("B. a cat", 1),
        ("B: anything", 1),
        ("(c) a big dog", 2),
        ("The answer is B", 1),
        ("the answer is (c).", 2),
        ("Answer: D", 3),
        ("The correct answer is B. a cat", 1),
        ("Option C", 2),
        ("I would choose option (b).", 1),
        ("a dog", 0),
        ("A cat.", 1),
        ("a big dog", 2),
        ("It is a big dog, I think", 2),  # "dog" alone is part of the longer choice
        ("a dog and a cat", None),
        ("The answer is a cat", 1),
        ("The answer is 'a cat'", 1),
        ("A man", None),  # an article
        ("E", None),
        ("The answer is E", None),
        ("", None),
        ("?", None),
        ("maybe", None),
    ],
)
def test_parse_choice(text, number):
    assert parse_choice(text, ANIMALS) == number


def test_choices_that_are_letters_themselves():
    assert parse_choice("A", ("B", "A")) == 0
    assert parse_choice("A", ("B", "A"), letters_first=False) == 1


@given(
    st.lists(
        st.text("abcdef ", min_size=2, max_size=8).map(str.strip).filter(lambda t: len(t) > 1),
        min_size=2,
        unique=True,
        max_size=6,
    ),
    st.data(),
)
def test_letter_and_text_choose_the_same(choices, data):
    choices = [" ".join(choice.split()) for choice in dict.fromkeys(choices)]
    number = data.draw(st.integers(0, len(choices) - 1))
    letter = "ABCDEF"[number]
    if choices.count(choices[number]) == 1:
        assert parse_choice(choices[number].title(), choices) == number
    for text in (letter, f"({letter})", f"{letter}.", f"The answer is {letter}."):
        assert parse_choice(text, choices) == number


@given(st.text(), st.lists(st.text(min_size=1), max_size=4))
def test_any_text_is_read(text, choices):
    number = parse_choice(text, choices)
    assert number is None or 0 <= number < len(choices)


def test_seed_bench_by_dimension():
    queries = [
        Example(answer="B", choices=ANIMALS, metadata={"dimension": "Scene Understanding", "letter": "B"}),
        Example(answer="a cat", choices=ANIMALS, metadata={"dimension": "Scene Understanding", "letter": "B"}),
        Example(answer="C", choices=("x", "y", "z"), metadata={"dimension": "Text Recognition"}),
    ]
    result = seed_bench(["B. a cat", "a dog", "dunno"], queries)
    assert result.categories == {"Scene Understanding": (0.5, 2), "Text Recognition": (0.0, 1)}
    assert result.value == pytest.approx(1 / 3)
    assert result.details["macro"] == 0.25
    assert result.details["unparsed"] == pytest.approx(1 / 3)
    assert result.details["chance"] == pytest.approx((0.25 + 0.25 + 1 / 3) / 3)


def test_a_reference_that_is_a_letter_and_a_choice():
    sign = ("A", "O", "B", "D")  # which letter is on the sign?
    by_letter = Example(answer="B", choices=sign, metadata={"letter": "B"})
    by_text = Example(answer="B", choices=sign, metadata={"letter": "C"})
    assert multiple_choice(["B", "B"], [by_letter, by_text]).items == (1.0, 1.0)
    assert multiple_choice(["O", "C"], [by_letter, by_text]).items == (1.0, 1.0)
    assert multiple_choice(["C", "O"], [by_letter, by_text]).items == (0.0, 0.0)


@pytest.mark.parametrize("reference", ["E", "a fish", "?"])
def test_reference_that_is_no_choice(reference):
    with pytest.raises(DataError, match="none of its 4 choices"):
        multiple_choice(["A"], [Example(answer=reference, choices=ANIMALS)])
