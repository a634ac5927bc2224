"""GQA (arXiv 1902.09506): the figures of its evaluation script that follow from the question files.

The script compares answers as they stand, ``prediction == answer``, and leaves their preparation to whoever writes the prediction
file. Here both sides are lower-cased and white space and full stops around them removed first, as the usual converters do, and an
answer stated as "The answer is X." is taken for X; ``details["strict"]`` is the script's own comparison.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from kshot.episode import Example
from kshot.metrics.base import MetricResult, metrics
from kshot.metrics.common import by_category, check, mean, text_references
from kshot.metrics.statements import final_answer

TABLES = ("structural", "semantic", "steps", "words")


def normalise_gqa(text: str) -> str:
    """A short answer as it is compared: what is stated, in lower case, one space between words, no full stops behind it."""
    return " ".join(final_answer(text).lower().split())


@metrics.register("gqa")
def gqa(predictions: Sequence[str], queries: Sequence[Example]) -> MetricResult:
    """Accuracy on short answers, per structural type, semantic type, number of reasoning steps and number of words.

    All is read from the metadata of the queries, and what is not there is left out:

    * ``structural``, ``semantic``, ``steps``, ``words``: the categories. Details ``binary`` and ``open``: accuracy of the questions
      whose structural type is not, or is, "query".
    * ``valid``, ``plausible`` (lists of answers): ``validity`` and ``plausibility``, the share of answers among them. For
      questions of the detailed type "...Common" the valid answers are color, material and shape.
    * ``group`` (the global group): ``distribution``, the chi-square distance of predicted and right answers per group, weighted by
      the group's size, over 100 as the script prints it (lower is better).
    * ``entailed`` (ids): ``consistency``, the mean accuracy over the questions that a rightly answered question entails; only if
      all of them are among the queries, as it is with the files of *all* questions.
    * ``balanced``: if some questions are not, all figures but the value and ``strict`` are those of the balanced ones, as in the
      script, and ``balanced`` is their accuracy, which the script calls accuracy.
    """
    check("gqa", predictions, queries)
    said = [normalise_gqa(prediction) for prediction in predictions]
    gold = [text_references("gqa", query)[0] for query in queries]
    right = [normalise_gqa(answer) for answer in gold]
    scores = [float(one == other) for one, other in zip(said, right, strict=True)]
    details = {"strict": mean(float(p == g) for p, g in zip(predictions, gold, strict=True))}
    counted = [n for n, query in enumerate(queries) if query.metadata.get("balanced") is not False]
    if 0 < len(counted) < len(queries):
        details["balanced"] = mean(scores[n] for n in counted)
    counted = counted or list(range(len(queries)))
    asked, own = [queries[n] for n in counted], [scores[n] for n in counted]
    categories: dict[str, tuple[float, int]] = {}
    for kind in TABLES:
        categories |= by_category(own, [query.metadata.get(kind) for query in asked], prefix=f"{kind}: ")
    for name, open_ended in (("binary", False), ("open", True)):
        types = [query.metadata.get("structural") for query in asked]
        chosen = [s for s, t in zip(own, types, strict=True) if t is not None and (t == "query") == open_ended]
        if chosen:
            details[name] = mean(chosen)
    answers = [said[n] for n in counted]
    for name, source in (("validity", "valid"), ("plausibility", "plausible")):
        if all(source in query.metadata for query in asked):
            belong = (_belongs(a, query.metadata, source) for a, query in zip(answers, asked, strict=True))
            details[name] = mean(map(float, belong))
    details |= _distribution(answers, [right[n] for n in counted], asked) | _consistency(scores, queries)
    return MetricResult("accuracy", mean(scores), tuple(scores), tuple(range(len(scores))), details, categories)


def _belongs(answer: str, metadata: Mapping[str, Any], source: str) -> bool:
    if "Common" in str(metadata.get("detailed", "")):
        return answer in ("color", "material", "shape")
    return answer in metadata[source]


def _distribution(said: Sequence[str], right: Sequence[str], queries: Sequence[Example]) -> dict[str, float]:
    gold: dict[str, Counter[str]] = defaultdict(Counter)
    predicted: dict[str, Counter[str]] = defaultdict(Counter)
    for answer, label, query in zip(said, right, queries, strict=True):
        group = query.metadata.get("group")
        if group is not None:
            gold[group][label] += 1
            predicted[group][answer] += 1
    if not gold:
        return {}
    weighted = asked = 0.0
    for group, counts in gold.items():
        chi_square = sum((predicted[group][answer] - count) ** 2 / count for answer, count in counts.items())
        weighted += chi_square * counts.total()
        asked += counts.total()
    return {"distribution": weighted / asked / 100}


def _consistency(scores: Sequence[float], queries: Sequence[Example]) -> dict[str, float]:
    by_id = {query.id: score for query, score in zip(queries, scores, strict=True)}
    rates = []
    for query, score in zip(queries, scores, strict=True):
        if query.metadata.get("balanced") is False:
            continue  # the script asks for the consequences of balanced questions only
        entailed = [key for key in query.metadata.get("entailed", ()) if key != query.id]
        if any(key not in by_id for key in entailed):
            return {}
        if score and entailed:
            rates.append(mean(by_id[key] for key in entailed))
    return {"consistency": mean(rates)} if rates else {}
