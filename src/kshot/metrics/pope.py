"""POPE (arXiv 2305.10355): does a model see objects that are not there? Yes or no, scored as by the script its authors publish."""

from __future__ import annotations

from collections.abc import Sequence

from kshot.episode import Example
from kshot.errors import DataError
from kshot.metrics.base import MetricResult, metrics
from kshot.metrics.common import by_category, check, fold, mean, text_references
from kshot.metrics.statements import final_answer


def parse_pope(text: str) -> str:
    """``"yes"`` or ``"no"``, as the published script reads an answer.

    Of the text before the first full stop, without its commas and split at spaces, one of the words "No", "no" and "not" makes it
    "no";
    *everything else is "yes"*: "NO", "No!", "none" and the empty text too. Upper and lower case count as written here.
    """
    words = text.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"} & set(words) else "yes"


def parse_pope_strictly(text: str) -> str:
    """``"yes"``, ``"no"`` or ``"other"``: the first word of the answer, or of the answer that is stated at its end."""
    words = final_answer(text).split()
    first = fold(words[0]) if words else ""
    return first if first in ("yes", "no") else "other"


@metrics.register("pope")
def pope(predictions: Sequence[str], queries: Sequence[Example]) -> MetricResult:
    """Accuracy by :func:`parse_pope`, per ``split`` of the metadata (random, popular, adversarial).

    The details hold ``precision``, ``recall`` and ``f1`` for "yes" and ``yes_ratio``, the share of answers read as "yes"; the same
    per split (``f1: popular``); their means over splits (``f1: mean``), the figure often printed for POPE; and, for the strict
    reading of :func:`parse_pope_strictly`, ``strict: accuracy`` ... and ``strict: other``, the share of answers that are neither.
    Strictly, an answer that is neither is wrong and is no "yes". Where nothing can be divided (no "yes" at all) a figure is 0; the
    published script fails.

    Raises:
        DataError: a query whose reference is not yes or no.
    """
    check("pope", predictions, queries)
    gold = [_label(query) for query in queries]
    splits = [query.metadata.get("split", query.metadata.get("category")) for query in queries]
    read = [parse_pope(prediction) for prediction in predictions]
    strict = [parse_pope_strictly(prediction) for prediction in predictions]
    scores = [float(said == label) for said, label in zip(read, gold, strict=True)]
    details = _figures(read, gold)
    parts = {}
    for split in dict.fromkeys(str(split) for split in splits if split is not None):
        own = [number for number, name in enumerate(splits) if str(name) == split]
        parts[split] = _figures([read[n] for n in own], [gold[n] for n in own])
        details |= {f"{name}: {split}": value for name, value in parts[split].items()}
    if len(parts) > 1:
        details |= {f"{name}: mean": mean(part[name] for part in parts.values()) for name in next(iter(parts.values()))}
    details |= {f"strict: {name}": value for name, value in _figures(strict, gold).items()}
    details["strict: accuracy"] = mean(float(said == label) for said, label in zip(strict, gold, strict=True))
    details["strict: other"] = strict.count("other") / len(strict)
    categories = by_category(scores, splits)
    return MetricResult("accuracy", mean(scores), tuple(scores), tuple(range(len(scores))), details, categories)


def _figures(said: Sequence[str], gold: Sequence[str]) -> dict[str, float]:
    pairs = list(zip(said, gold, strict=True))
    hits = pairs.count(("yes", "yes"))
    claimed, there = list(said).count("yes"), list(gold).count("yes")
    precision = hits / claimed if claimed else 0.0
    recall = hits / there if there else 0.0
    f1 = 2 * precision * recall / (precision + recall) if hits else 0.0
    return {"precision": precision, "recall": recall, "f1": f1, "yes_ratio": claimed / len(pairs)}


def _label(query: Example) -> str:
    label = fold(final_answer(text_references("pope", query)[0]))
    if label not in ("yes", "no"):
        raise DataError(f"pope: the reference of query {query.id!r} is {label!r}", remedy="it must be yes or no")
    return label
