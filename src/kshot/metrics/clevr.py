"""CLEVR (arXiv 1612.06890): accuracy by kind of question."""

from __future__ import annotations

from collections.abc import Sequence

from kshot.episode import Example
from kshot.metrics.base import MetricResult, metrics
from kshot.metrics.common import by_category, check, fold, macro, mean, text_references
from kshot.metrics.statements import final_answer

_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {word: str(number) for number, word in enumerate(_NUMBERS)}


@metrics.register("clevr")
def clevr(predictions: Sequence[str], queries: Sequence[Example]) -> MetricResult:
    """Share of predictions that are the right answer, per ``type``, ``function`` (of the program's last step) and ``family``.

    An answer is compared case folded, without punctuation around it, and of "... The answer is X." only X; number words count as
    digits. ``details["strict"]`` is the share that equals the answer as it stands; ``macro`` is the mean over types.
    """
    check("clevr", predictions, queries)
    gold = [text_references("clevr", query)[0] for query in queries]
    scores = [float(_bare(p) == _bare(g)) for p, g in zip(predictions, gold, strict=True)]
    types = by_category(scores, [query.metadata.get("type") for query in queries], prefix="type: ")
    categories = dict(types)
    for kind in ("function", "family"):
        categories |= by_category(scores, [query.metadata.get(kind) for query in queries], prefix=f"{kind}: ")
    details = {"strict": mean(float(p == g) for p, g in zip(predictions, gold, strict=True))} | macro(types)
    return MetricResult("accuracy", mean(scores), tuple(scores), tuple(range(len(scores))), details, categories)


def _bare(text: str) -> str:
    answer = fold(final_answer(text))
    return _DIGITS.get(answer, answer)
