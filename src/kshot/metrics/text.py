"""Accuracy of short free-form answers: exact match, and the names of n-way concept episodes."""

from __future__ import annotations

import re
from collections.abc import Sequence

from kshot.episode import Example
from kshot.errors import DataError
from kshot.metrics.base import MetricResult, metrics
from kshot.metrics.common import by_category, check, fold, macro, mean, mentions, text_references

_QUOTED = re.compile(r"\"([^\"]+)\"|“([^”]+)”|‘([^’]+)’|«([^»]+)»|`([^`]+)`|(?<!\w)'([^']+)'(?!\w)")
OUTCOMES = ("right", "other", "neither", "both")
GROUP = "group: "
"""What stands before the name of a group among the categories."""


@metrics.register("exact_match")
def exact_match(predictions: Sequence[str], queries: Sequence[Example]) -> MetricResult:
    """Share of predictions that equal one of the references.

    Both sides are case folded, runs of white space become one space, and punctuation and white space around the text are removed;
    nothing else is changed ("a dog" is not "dog"). ``details["strict"]`` is the share that is equal character for character,
    white space around it aside. Per ``class`` (or else ``category``) of the metadata; ``macro`` is the mean over these.
    """
    check("exact_match", predictions, queries)
    references = [text_references("exact_match", query) for query in queries]
    pairs = list(zip(predictions, references, strict=True))
    scores = [float(fold(prediction) in map(fold, accepted)) for prediction, accepted in pairs]
    strict = mean(float(prediction.strip() in [a.strip() for a in accepted]) for prediction, accepted in pairs)
    return accuracy(scores, queries, {"strict": strict})


@metrics.register("two_name")
def two_name(predictions: Sequence[str], queries: Sequence[Example]) -> MetricResult:
    """Accuracy in episodes that offer two or more names (``query.choices``) of which one (``query.references``) is right.

    Each prediction is judged against all names of its episode, see :func:`judge_names`. The value is the rate of ``right``; the
    details hold the rates of all four outcomes, ``exact`` (the text is the right name, character for character, white space around it
    aside: no parsing helps), ``chance`` (mean of 1 / number of names), ``micro`` (the value), ``macro`` (mean over the
    ``class`` of the metadata, where given) and ``macro_groups`` (mean over the ``group``, where given: both sides of a pair together).
    The categories are the classes, and the groups as ``group: NAME``. This repairs the substring test of the Link-Context Learning
    code, by which "airstone" answers "stone" and a right name with capitals is wrong.
    """
    check("two_name", predictions, queries)
    outcomes, exact, chance = [], [], []
    for prediction, query in zip(predictions, queries, strict=True):
        right = text_references("two_name", query)
        names = _names(query, right)
        outcomes.append(judge_names(prediction, right, names))
        exact.append(float(prediction.strip() in right))
        chance.append(1 / len(names))
    scores = [float(outcome == "right") for outcome in outcomes]
    details = {outcome: outcomes.count(outcome) / len(outcomes) for outcome in OUTCOMES}
    return accuracy(scores, queries, details | {"exact": mean(exact), "chance": mean(chance), "micro": mean(scores)})


def judge_names(prediction: str, right: Sequence[str], names: Sequence[str]) -> str:
    """What a free-form answer says: ``"right"``, ``"other"`` (only wrong names), ``"neither"`` (no name) or ``"both"``.

    1. If the text holds quotations and one of them names something, only the quotations are judged.
    2. A text (or quotation) that equals a name, folded as in :func:`~kshot.metrics.common.fold`, names that and nothing else.
    3. Otherwise it names what it mentions as whole words, case folded; inside a longer name ("air stone") a shorter one ("stone")
       is not mentioned.

    Args:
        prediction: the model's answer.
        right: the accepted names.
        names: all names offered, the accepted ones among them.
    """
    quotations = ["".join(groups) for groups in _QUOTED.findall(prediction)]
    said = set().union(*(_named(quotation, names) for quotation in quotations)) or _named(prediction, names)
    accepted = {fold(name) for name in right}
    hit = any(fold(name) in accepted for name in said)
    miss = any(fold(name) not in accepted for name in said)
    return {(True, False): "right", (False, True): "other", (False, False): "neither", (True, True): "both"}[hit, miss]


def _named(text: str, names: Sequence[str]) -> set[str]:
    equal = {name for name in names if fold(name) == fold(text)}
    return equal or mentions(text, names)


def _names(query: Example, right: Sequence[str]) -> list[str]:
    if not query.choices:
        raise DataError(
            f"two_name: query {query.id!r} offers no names", remedy="give it choices, or score the task by exact_match"
        )
    names = {fold(name): name for name in (*query.choices, *right)}
    if len({fold(name) for name in query.choices}) != len(query.choices):
        raise DataError(
            f"two_name: query {query.id!r} offers two names that differ only in case or punctuation: {query.choices}"
        )
    return list(names.values())


def accuracy(scores: list[float], queries: Sequence[Example], details: dict[str, float]) -> MetricResult:
    """The mean score, per ``class`` (or else ``category``) and per ``group`` of the metadata."""
    label = "class" if any("class" in query.metadata for query in queries) else "category"
    classes = [query.metadata.get(label) for query in queries]
    groups = [query.metadata.get("group") for query in queries]
    by_class, by_group = by_category(scores, classes), by_category(scores, groups, prefix=GROUP)
    members: dict[str, list[int]] = {}
    for number, (name, group) in enumerate(zip(classes, groups, strict=True)):
        if name is not None:
            members.setdefault(str(name), []).append(number)
        if group is not None:
            members.setdefault(f"{GROUP}{group}", []).append(number)
    figures = details | macro(by_class)
    if by_group:
        figures["macro_groups"] = mean(value for value, _ in by_group.values())
    return MetricResult(
        "accuracy",
        mean(scores),
        tuple(scores),
        tuple(range(len(scores))),
        figures,
        by_class | by_group,
        members={name: tuple(numbers) for name, numbers in members.items()},
    )
