"""Benchmarks with closed answers: MME (yes or no), SEED-Bench and multiple choice in general."""

from __future__ import annotations

import re
from collections.abc import Sequence

from kshot.episode import Example
from kshot.errors import DataError
from kshot.metrics.base import MetricResult, metrics
from kshot.metrics.common import by_category, check, fold, macro, mean, mentions, text_references

PERCEPTION = (
    "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR",
)  # fmt: skip
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")

_ALONE = re.compile(r"[(\[\"'*]*([A-Za-z])[)\]\"'*.:,]*")
_FIRST = re.compile(r"(?:[(\[]([A-Za-z])[)\]]|([A-Za-z])[).:])(?=\s)")
_STATED = re.compile(
    r"(?i:\banswer\b(?:\s+is\b)?|\b(?:option|choice)\b)\s*:?\s*(?:[(\[\"'*]+([A-Za-z])[)\]\"'*]|([A-Z])\b)"
)


def parse_yes_no(text: str) -> str:
    """``"yes"``, ``"no"`` or ``"other"``, as MME's evaluation tool reads an answer.

    The tool looks for "yes", then for "no", in the first four characters, lower-cased, so "Yes, it is" is yes, "No." and also
    "Not sure" are no, and "The answer is yes" is other. White space before the text is removed first.
    """
    beginning = text.lstrip()[:4].lower()
    return "yes" if "yes" in beginning else "no" if "no" in beginning else "other"


@metrics.register("mme")
def mme(predictions: Sequence[str], queries: Sequence[Example]) -> MetricResult:
    """MME (arXiv 2306.13394): per category ``100 * (acc + acc+)``; the value is their sum (at most 200 points a category).

    acc is the share of questions answered rightly, acc+ the share of *images* with both questions right. The two questions of an
    image share the metadata ``image_id`` (or ``pair``) and ``category``; where several pairs share them, questions are paired in
    their order. A question whose partner is not among the queries counts for acc, not for acc+; ``details["unpaired"]`` counts them.

    The unit of ``items`` is the pair of questions. The details hold the totals ``perception`` and ``cognition`` of the standard
    categories, ``acc``, ``acc_plus`` over all categories and ``other``, the share of answers that are neither yes nor no.

    Raises:
        DataError: a query without category or image, or whose reference is not yes or no.
    """
    check("mme", predictions, queries)
    pairs: list[list[int]] = []
    unfinished: dict[tuple[str, str], int] = {}  # (category, image) -> the unit that waits for its second question
    units, correct, answers = [], [], []
    for number, (prediction, query) in enumerate(zip(predictions, queries, strict=True)):
        key = _image_of(query)
        gold = fold(text_references("mme", query)[0])
        if gold not in ("yes", "no"):
            raise DataError(f"mme: the reference of query {query.id!r} is {gold!r}", remedy="it must be Yes or No")
        unit = unfinished.pop(key, None)
        if unit is None:
            unit = unfinished[key] = len(pairs)
            pairs.append([])
        pairs[unit].append(number)
        units.append(unit)
        answers.append(parse_yes_no(prediction))
        correct.append(float(answers[-1] == gold))

    category_of = [str(queries[members[0]].metadata["category"]) for members in pairs]
    items, categories, accuracies, accuracies_plus = [0.0] * len(pairs), {}, [], []
    for category in dict.fromkeys(category_of):
        own = [unit for unit, name in enumerate(category_of) if name == category]
        asked = sum(len(pairs[unit]) for unit in own)
        complete = sum(len(pairs[unit]) == 2 for unit in own)
        acc = acc_plus = 0.0
        for unit in own:
            part = sum(correct[number] for number in pairs[unit]) / asked
            part_plus = float([correct[number] for number in pairs[unit]] == [1.0, 1.0]) / max(1, complete)
            acc, acc_plus = acc + part, acc_plus + part_plus
            items[unit] = (
                100 * (part + part_plus) * len(pairs)
            )  # so that the mean over all units is the sum over categories
        accuracies.append(acc)
        accuracies_plus.append(acc_plus)
        categories[category] = (100 * (acc + acc_plus), asked)
    details = {
        "acc": mean(accuracies),
        "acc_plus": mean(accuracies_plus),
        "other": answers.count("other") / len(answers),
        "unpaired": float(sum(len(members) == 1 for members in pairs)),
    }
    for total, names in (("perception", PERCEPTION), ("cognition", COGNITION)):
        if any(name in categories for name in names):
            details[total] = sum(categories[name][0] for name in names if name in categories)
    value = sum(score for score, _ in categories.values())
    return MetricResult("score", value, tuple(items), tuple(units), details, categories)


@metrics.register("multiple_choice")
def multiple_choice(predictions: Sequence[str], queries: Sequence[Example]) -> MetricResult:
    """Accuracy of answers that choose one of ``query.choices`` (see :func:`parse_choice`), per ``category`` of the metadata.

    The reference is the letter of the right choice, or its text. ``details["unparsed"]`` is the share of predictions that
    choose nothing (they count as wrong), ``chance`` the mean of 1 / number of choices, ``macro`` the mean over categories.

    Raises:
        DataError: a query without choices, or whose reference is none of them.
    """
    return _multiple_choice("multiple_choice", predictions, queries, "category")


@metrics.register("seed_bench")
def seed_bench(predictions: Sequence[str], queries: Sequence[Example]) -> MetricResult:
    """SEED-Bench (arXiv 2307.16125): :func:`multiple_choice` accuracy, per ``dimension`` of the metadata.

    The value is right answers over all questions, as on the benchmark's board, not the mean over dimensions (``macro``).
    """
    return _multiple_choice("seed_bench", predictions, queries, "dimension")


def parse_choice(text: str, choices: Sequence[str], *, letters_first: bool = True) -> int | None:
    """The number (from 0) of the choice that a text makes, or ``None`` if it makes none or more than one.

    Read in this order: the text is a letter ("B", "b.", "(B)"); it is a choice's text (folded); it begins with a marked letter
    ("B. a dog", "(b) a dog"); it states one ("The answer is B", "Option (B)"); it mentions exactly one choice's text (as
    whole words, the longest where they overlap). A lone "A" inside a sentence is an article, not a choice.

    Args:
        text: the model's answer.
        choices: the texts of the choices.
        letters_first: the first two readings in this order; ``False`` where the letters were never shown, so that among the
            choices "B" and "A" the answer "A" is the second.
    """
    stripped = text.strip()
    whole = [_letter_alone(stripped, choices), _choice_text(stripped, choices)]
    for number in whole if letters_first else reversed(whole):
        if number is not None:
            return number
    for found in (_FIRST.match(stripped), _STATED.search(stripped)):
        if found and (number := _number(found[1] or found[2], choices)) is not None:
            return number
    said = {fold(name) for name in mentions(stripped, choices)}
    return _choice_text(said.pop(), choices) if len(said) == 1 else None


def _multiple_choice(metric: str, predictions: Sequence[str], queries: Sequence[Example], label: str) -> MetricResult:
    check(metric, predictions, queries)
    chosen, scores = [], []
    for prediction, query in zip(predictions, queries, strict=True):
        right, by_letter = _right_choice(metric, query)
        chosen.append(parse_choice(prediction, query.choices, letters_first=by_letter))
        scores.append(float(chosen[-1] == right))
    categories = by_category(scores, [query.metadata.get(label, query.metadata.get("category")) for query in queries])
    details = {
        "unparsed": chosen.count(None) / len(chosen),
        "chance": mean(1 / len(query.choices) for query in queries),
        **macro(categories),
    }
    return MetricResult("accuracy", mean(scores), tuple(scores), tuple(range(len(scores))), details, categories)


def _right_choice(metric: str, query: Example) -> tuple[int, bool]:
    """Number of the right choice, and whether the reference names it by its letter (metadata ``letter`` settles doubts)."""
    reference = text_references(metric, query)[0]
    letter = str(query.metadata.get("letter", reference)).strip()
    by_letter = letter == reference.strip() and _number(letter, query.choices) is not None
    number = _number(letter, query.choices) if by_letter else _choice_text(reference, query.choices)
    if number is None:
        raise DataError(
            f"{metric}: the reference {reference!r} of query {query.id!r} is none of its {len(query.choices)} choices",
            remedy="give the right choice's letter or its exact text, and choices that differ",
        )
    return number, by_letter


def _letter_alone(text: str, choices: Sequence[str]) -> int | None:
    alone = _ALONE.fullmatch(text)
    return _number(alone[1], choices) if alone else None


def _choice_text(text: str, choices: Sequence[str]) -> int | None:
    folded = [fold(choice) for choice in choices]
    return folded.index(fold(text)) if folded.count(fold(text)) == 1 else None


def _number(letter: str, choices: Sequence[str]) -> int | None:
    number = ord(letter.upper()) - ord("A") if len(letter) == 1 else -1
    return number if 0 <= number < len(choices) else None


def _image_of(query: Example) -> tuple[str, str]:
    image = query.metadata.get("pair", query.metadata.get("image_id"))
    category = query.metadata.get("category")
    if image is None or category is None:
        missing = "category" if category is None else "image_id"
        raise DataError(
            f"mme: query {query.id!r} has no metadata {missing!r}",
            remedy="questions are paired by category and image_id",
        )
    return str(category), str(image)
