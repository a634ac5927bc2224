"""POPE, GQA, CLEVR, VCR, answers with reasons, and the statement "The answer is X."."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kshot.episode import Example
from kshot.errors import DataError
from kshot.metrics import metrics
from kshot.metrics.gqa import normalise_gqa
from kshot.metrics.pope import parse_pope, parse_pope_strictly
from kshot.metrics.statements import final_answer, split_statement


@pytest.fixture(autouse=True)
def python_tokenizer(monkeypatch):
    monkeypatch.setenv("KSHOT_CAPTION_TOKENIZER", "python")  # starting Java for each test takes too long


@pytest.mark.parametrize(
    ("text", "reason", "answer"),
    [
        ("The answer is yes.", "", "yes"),
        ("The answer is yes .", "", "yes"),
        ("He holds a racket. So the answer is tennis.", "He holds a racket.", "tennis"),
        ("He holds a racket. So, the answer is: tennis", "He holds a racket.", "tennis"),
        ("Answer: 2.5.", "", "2.5"),
        ("The answer is a. No, the answer is St. Louis.", "The answer is a. No,", "St. Louis"),
        ("the answer is", "", ""),
        ("two dogs.", "two dogs.", None),
        ("The answers are many", "The answers are many", None),
        ("", "", None),
    ],
)
def test_the_last_statement_is_the_answer(text, reason, answer):
    assert split_statement(text) == (reason, answer)
    assert final_answer(text) == (text.rstrip(".") if answer is None else answer)


@given(st.text(max_size=40), st.text("abc XY12", min_size=1, max_size=12))
def test_what_is_stated_is_found_again(reason, answer):
    assert final_answer(f"{reason} So the answer is {answer}.") == answer.strip()


# POPE -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "official", "strict"),
    [
        ("Yes", "yes", "yes"),
        ("yes, there is.", "yes", "yes"),
        ("No", "no", "no"),
        ("No, there is no dog.", "no", "no"),
        ("There is not a dog in the image", "no", "other"),
        ("There is a dog. There is no cat.", "yes", "other"),  # the first sentence counts
        ("NO", "yes", "no"),  # neither of the three words as the script writes them
        ("No!", "yes", "no"),
        ("no\n", "yes", "no"),  # split at spaces only
        ("Nothing like it", "yes", "other"),
        ("", "yes", "other"),
        ("The answer is no .", "no", "no"),
        ("Perhaps yes", "yes", "other"),
    ],
)
def test_pope_answers_are_read_as_by_the_script_and_strictly(text, official, strict):
    assert parse_pope(text) == official
    assert parse_pope_strictly(text) == strict


@given(st.lists(st.sampled_from(["No", "no", "not", "yes", "a", "dog", ",", ".", " "]), max_size=8))
def test_pope_reading_is_the_scripts(words):
    text = " ".join(words)
    sentence = text[: text.index(".")] if "." in text else text
    without_commas = "".join(character for character in sentence if character != ",")
    negated = any(word in ("No", "not", "no") for word in without_commas.split(" "))
    assert parse_pope(text) == ("no" if negated else "yes")


def pope_queries(*labels: str) -> list[Example]:
    return [
        Example(question=f"{n}?", answer=label, metadata={"split": "random" if n < 4 else "popular"})
        for n, label in enumerate(labels)
    ]


def test_pope_figures_by_hand():
    queries = pope_queries("yes", "yes", "no", "no", "yes", "no")
    result = metrics.get("pope")(["Yes", "no", "Yes", "No", "Yes", "No"], queries)
    # random: TP 1, FN 1, FP 1, TN 1; popular: TP 1, TN 1
    assert result.value == pytest.approx(4 / 6)
    assert result.categories == {"random": (0.5, 4), "popular": (1.0, 2)}
    assert result.details["precision"] == pytest.approx(2 / 3)
    assert result.details["recall"] == pytest.approx(2 / 3)
    assert result.details["f1"] == pytest.approx(2 / 3)
    assert result.details["yes_ratio"] == pytest.approx(0.5)
    assert result.details["f1: random"] == pytest.approx(0.5)
    assert result.details["f1: popular"] == 1.0
    assert result.details["f1: mean"] == pytest.approx(0.75)
    assert result.details["yes_ratio: random"] == 0.5


def test_pope_agrees_with_scikit_learn():
    from sklearn.metrics import precision_recall_fscore_support

    labels = [("yes", "no", "no", "yes", "yes")[n % 5] for n in range(60)]
    said = [("Yes", "No", "not at all", "maybe")[(n * 7 + n // 5) % 4] for n in range(60)]
    details = metrics.get("pope")(said, pope_queries(*labels)).details
    read = [parse_pope(text) for text in said]
    expected = precision_recall_fscore_support(labels, read, pos_label="yes", average="binary")
    assert [details["precision"], details["recall"], details["f1"]] == pytest.approx(list(expected[:3]))


def test_pope_strictly_an_answer_that_is_neither_is_wrong_and_no_yes():
    queries = pope_queries("yes", "yes", "no")
    details = metrics.get("pope")(["Yes", "perhaps", "perhaps"], queries).details
    assert details["recall"] == 1.0  # the script takes "perhaps" for yes
    assert details["strict: recall"] == 0.5
    assert details["strict: accuracy"] == pytest.approx(1 / 3)
    assert details["strict: other"] == pytest.approx(2 / 3)
    assert details["strict: yes_ratio"] == pytest.approx(1 / 3)


def test_pope_without_any_yes_has_figures_of_zero():
    result = metrics.get("pope")(["No", "No"], pope_queries("yes", "no"))
    assert (result.details["precision"], result.details["recall"], result.details["f1"]) == (0, 0, 0)
    with pytest.raises(DataError, match="must be yes or no"):
        metrics.get("pope")(["No"], pope_queries("perhaps"))


# GQA --------------------------------------------------------------------------------------------------------------------------


def gqa_query(key: str, answer: str, **metadata) -> Example:
    return Example(question=f"{key}?", answer=answer, id=key, metadata=metadata)


@pytest.mark.parametrize(
    "text", ["light blue", " Light  Blue.", "The answer is light blue.", "So the answer is light blue"]
)
def test_gqa_answers_are_compared_in_lower_case_and_without_what_surrounds_them(text):
    assert normalise_gqa(text) == "light blue"


def test_gqa_tables_and_strict_comparison():
    queries = [
        gqa_query("1", "yes", structural="verify", semantic="rel", steps=2, words=5),
        gqa_query("2", "red", structural="query", semantic="attr", steps=1, words=5),
        gqa_query("3", "left", structural="choose", semantic="rel", steps=2, words=9),
    ]
    result = metrics.get("gqa")(["Yes.", "red", "right"], queries)
    assert result.value == pytest.approx(2 / 3)
    assert result.details["strict"] == pytest.approx(1 / 3)
    assert (result.details["binary"], result.details["open"]) == (0.5, 1.0)
    assert result.categories["structural: choose"] == (0.0, 1)
    assert result.categories["semantic: rel"] == (0.5, 2)
    assert result.categories["steps: 2"] == (0.5, 2)
    assert result.categories["words: 5"] == (1.0, 2)


def test_gqa_validity_and_plausibility():
    lists = {"valid": ["red", "blue"], "plausible": ["red"]}
    queries = [gqa_query(str(n), "red", **lists) for n in range(3)]
    queries.append(gqa_query("3", "color", detailed="twoCommon", valid=["x"], plausible=["x"]))
    result = metrics.get("gqa")(["red", "blue", "dog", "shape"], queries)
    assert result.details["validity"] == 0.75
    assert result.details["plausibility"] == 0.5


def test_gqa_distribution_by_hand():
    # group color: right red, red, blue; said red, blue, blue: (1-2)^2/2 + (2-1)^2/1 = 1.5, three questions
    # group room: right and said kitchen: 0, one question. (1.5 * 3 + 0) / 4 / 100
    answers = [("red", "red"), ("red", "blue"), ("blue", "blue"), ("kitchen", "kitchen")]
    queries = [gqa_query(str(n), right, group="room" if n == 3 else "color") for n, (right, _) in enumerate(answers)]
    result = metrics.get("gqa")([said for _, said in answers], queries)
    assert result.details["distribution"] == pytest.approx(1.5 * 3 / 4 / 100)


def test_gqa_consistency_needs_all_entailed_questions():
    queries = [
        gqa_query("1", "yes", entailed=["1", "2", "3"], balanced=True),
        gqa_query("2", "no", entailed=["1"], balanced=True),
        gqa_query("3", "red", entailed=["2"], balanced=False),
    ]
    result = metrics.get("gqa")(["yes", "no", "blue"], queries)
    assert result.details["consistency"] == pytest.approx((0.5 + 1) / 2)  # of 1: 2 right, 3 wrong; of 2: 1 right
    assert result.details["balanced"] == 1.0
    assert result.value == pytest.approx(2 / 3)
    assert "consistency" not in metrics.get("gqa")(["yes", "no"], queries[:2]).details


# CLEVR ------------------------------------------------------------------------------------------------------------------------


def test_clevr_counts_number_words_and_tables():
    queries = [
        Example(question="1?", answer="2", metadata={"type": "count", "function": "count", "family": 3}),
        Example(question="2?", answer="yes", metadata={"type": "exist", "function": "exist", "family": 4}),
        Example(question="3?", answer="0", metadata={"type": "count", "function": "count", "family": 5}),
    ]
    result = metrics.get("clevr")(["Two", "The answer is Yes.", "1"], queries)
    assert result.value == pytest.approx(2 / 3)
    assert result.categories["type: count"] == (0.5, 2)
    assert result.categories["family: 5"] == (0.0, 1)
    assert result.details["macro"] == 0.75
    assert result.details["strict"] == 0.0


# VCR --------------------------------------------------------------------------------------------------------------------------

ANSWERS = ("Yes, person1 is.", "No.", "She is cold.", "No, she is.")


def vcr_query(pair: str, part: str, right: int, *, letter: bool = True) -> Example:
    target = "ABCD"[right] if letter else ANSWERS[right]
    metadata = {"pair": pair, "part": part, "letter": "ABCD"[right]}
    return Example(question=f"{pair}{part}?", answer=target, choices=ANSWERS, metadata=metadata)


def test_vcr_joint_accuracy_needs_both_parts():
    queries = [vcr_query(pair, part, 1) for pair in "abc" for part in ("answer", "rationale")]
    result = metrics.get("vcr")(["B", "B", "The answer is (B).", "A", "C", "b."], queries)
    assert result.value == pytest.approx(1 / 3)
    assert result.items == (1.0, 0.0, 0.0)
    assert result.units == (0, 0, 1, 1, 2, 2)
    assert result.categories == {"Q->A": (pytest.approx(2 / 3), 3), "QA->R": (pytest.approx(2 / 3), 3)}
    assert result.details["q_ar"] == pytest.approx(1 / 3)
    assert result.details["chance"] == pytest.approx(1 / 16)


def test_vcr_unpaired_parts_are_counted():
    queries = [vcr_query("a", "answer", 0), vcr_query("a", "rationale", 0), vcr_query("b", "answer", 0)]
    result = metrics.get("vcr")(["A", "A", "B"], queries)
    assert (result.details["q_ar"], result.details["unpaired"]) == (1.0, 1.0)
    assert result.value == 0.5


def test_vcr_answers_in_words_and_reasons_before_letters():
    spoken = vcr_query("a", "answer", 2, letter=False)
    for text in ("She is cold.", "I see it: she is cold."):
        assert metrics.get("vcr")([text], [spoken]).value == 1
    assert metrics.get("vcr")(["No."], [spoken]).value == 0
    reasoned = vcr_query("a", "answer", 2)
    assert metrics.get("vcr")(["She is cold. The answer is (C)."], [reasoned]).value == 1
    assert metrics.get("vcr")(["She is cold. The answer is (B)."], [reasoned]).value == 0
    assert metrics.get("vcr")([""], [reasoned]).details["unparsed"] == 1
    with pytest.raises(DataError, match="is none of its 4 choices"):
        metrics.get("vcr")(["A"], [reasoned.with_(references=("Z",))])


# Answers with reasons ---------------------------------------------------------------------------------------------------------


def test_answers_and_reasons_are_scored_apart():
    pytest.importorskip("pycocoevalcap")
    reasons = ["a man in a coat stands here", "the sea is very calm", "two dogs run along some sand"]
    answers = [["yes"] * 10, ["blue"] * 10, ["two"] * 10]
    queries = [
        Example(
            question=f"{n}?",
            answer=f"{r} So the answer is {a[0]}.",
            references=tuple(a),
            metadata={"explanations": [r]},
        )
        for n, (r, a) in enumerate(zip(reasons, answers, strict=True))
    ]
    metric = metrics.get("vqa_explanation")
    perfect = metric([q.text_answer for q in queries], queries)
    assert perfect.value == 1.0
    assert perfect.details["cider"] == pytest.approx(10.0)
    right_answers = metric([f"no reason at all So the answer is {a[0]}." for a in answers], queries)
    assert right_answers.value == 1.0
    assert right_answers.details["cider"] < 1
    right_reasons = metric([f"{reason} So the answer is wrong." for reason in reasons], queries)
    assert right_reasons.value == 0.0
    assert right_reasons.details["cider"] == pytest.approx(10.0)
    assert "cider_right" not in right_reasons.details
    silent = metric(["yes", *[q.text_answer for q in queries[1:]]], queries)
    assert silent.value == 1.0  # a bare answer is an answer
    assert silent.details["unstated"] == pytest.approx(1 / 3)
    assert silent.details["cider_right"] < perfect.details["cider_right"]
    with pytest.raises(DataError, match="has no explanations"):
        metric(["x"], [queries[0].with_(metadata={})])
