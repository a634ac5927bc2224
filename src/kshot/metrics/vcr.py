"""VCR (arXiv 1811.10830): accuracy of the answer (Q->A), of its reason (QA->R), and of both together (Q->AR)."""

from __future__ import annotations

from collections.abc import Sequence

from kshot.episode import Example
from kshot.errors import DataError
from kshot.metrics.base import MetricResult, metrics
from kshot.metrics.choice import parse_choice
from kshot.metrics.common import check, mean, text_references
from kshot.metrics.statements import split_statement

LETTERS = "ABCDEFG"
_NAMES = {"answer": "Q->A", "rationale": "QA->R"}


@metrics.register("vcr")
def vcr(predictions: Sequence[str], queries: Sequence[Example]) -> MetricResult:
    """Share of questions whose every part is right: of their answer, their reason, or both (Q->AR), whichever are among the
    queries.

    The parts of a question share the metadata ``pair``; ``part`` says which one a query is (``answer`` or ``rationale``). The unit
    of ``items`` is the question. The categories hold the accuracy of each part; details, where both are asked: ``q_a``, ``qa_r``
    and ``q_ar`` (of questions with both parts; what is alone is counted in ``unpaired``); ``unparsed``, the share of predictions
    that choose nothing; ``chance``.

    What a text chooses is read from what it states at its end ("The answer is (B)."), or else from the whole of it, by
    :func:`~kshot.metrics.choice.parse_choice`.

    Raises:
        DataError: a query without choices, or whose reference is none of them.
    """
    check("vcr", predictions, queries)
    units: dict[str, list[int]] = {}
    correct, chosen = [], []
    for number, (prediction, query) in enumerate(zip(predictions, queries, strict=True)):
        right, lettered = _right(query)
        stated = split_statement(prediction)[1]
        chosen.append(parse_choice(stated or prediction, query.choices, letters_first=lettered))
        correct.append(float(chosen[-1] == right))
        units.setdefault(str(query.metadata.get("pair", f"#{number}")), []).append(number)
    place = {key: unit for unit, key in enumerate(units)}
    items = tuple(float(all(correct[n] for n in members)) for members in units.values())
    parts = [str(query.metadata.get("part", "answer")) for query in queries]
    scores = {part: [correct[n] for n in range(len(parts)) if parts[n] == part] for part in dict.fromkeys(parts)}
    categories = {_NAMES.get(part, part): (mean(own), len(own)) for part, own in sorted(scores.items())}
    details = {
        "unparsed": chosen.count(None) / len(chosen),
        "chance": mean(_chance(queries, members) for members in units.values()),
    }
    if len(scores) > 1:
        pairs = [item for item, members in zip(items, units.values(), strict=True) if len(members) > 1]
        details |= {"q_a": mean(scores.get("answer", [0.0])), "qa_r": mean(scores.get("rationale", [0.0]))}
        details |= {"q_ar": mean(pairs) if pairs else 0.0, "unpaired": float(len(items) - len(pairs))}
    index = tuple(place[str(query.metadata.get("pair", f"#{number}"))] for number, query in enumerate(queries))
    return MetricResult("accuracy", mean(items), items, index, details, categories)


def _chance(queries: Sequence[Example], members: Sequence[int]) -> float:
    chance = 1.0
    for number in members:
        chance /= len(queries[number].choices)
    return chance


def _right(query: Example) -> tuple[int, bool]:
    """Number of the right choice, and whether it is named by its letter."""
    reference = text_references("vcr", query)[0].strip()
    if reference in query.choices:
        letter = str(query.metadata.get("letter", ""))
        same = (
            letter and LETTERS.index(letter) < len(query.choices) and query.choices[LETTERS.index(letter)] == reference
        )
        return (LETTERS.index(letter) if same else query.choices.index(reference)), False
    if len(reference) == 1 and reference in LETTERS[: len(query.choices)]:
        return LETTERS.index(reference), True
    raise DataError(
        f"vcr: the reference {reference!r} of query {query.id!r} is none of its {len(query.choices)} choices",
        remedy="give the right choice's letter or its exact text",
    )
