"""What the metrics share: checks of their input, means by category, and finding names in a text."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from kshot.episode import Example
from kshot.errors import DataError


def check(metric: str, predictions: Sequence[str], queries: Sequence[Example]) -> None:
    """Refuse input that no figure can be computed from.

    Raises:
        DataError: nothing to score, a prediction too few or too many, or a prediction that is not text.
    """
    if len(predictions) != len(queries):
        raise DataError(
            f"{metric}: {len(predictions)} predictions for {len(queries)} queries",
            remedy="give exactly one prediction for each query, in the same order",
        )
    if not queries:
        raise DataError(f"{metric}: nothing to score", remedy="give at least one prediction and its query")
    for number, prediction in enumerate(predictions, start=1):
        if not isinstance(prediction, str):
            raise DataError(
                f"{metric}: prediction is {type(prediction).__name__}, not text",
                line=number,
                remedy="use an empty string where the model gave no answer",
            )


def text_references(metric: str, query: Example) -> tuple[str, ...]:
    """The accepted answers of a query, all of them text.

    Raises:
        DataError: it has none, or one of them is a picture.
    """
    texts = tuple(reference for reference in query.references if isinstance(reference, str))
    if not texts or len(texts) != len(query.references):
        problem = "has a reference that is a picture" if query.references else "has no reference answer"
        raise DataError(
            f"{metric}: query {query.id!r} {problem}", remedy="give every query its accepted answers as text"
        )
    return texts


def mean(scores: Iterable[float]) -> float:
    """Arithmetic mean of a non-empty collection."""
    scores = list(scores)
    return float(sum(scores)) / len(scores)


def by_category(scores: Sequence[float], labels: Sequence[object], prefix: str = "") -> dict[str, tuple[float, int]]:
    """Mean score and number of predictions per label, sorted by label; ``None`` labels are left out."""
    groups: dict[str, list[float]] = {}
    for score, label in zip(scores, labels, strict=True):
        if label is not None:
            groups.setdefault(f"{prefix}{label}", []).append(score)
    return {label: (mean(group), len(group)) for label, group in sorted(groups.items())}


def macro(categories: Mapping[str, tuple[float, int]]) -> dict[str, float]:
    """The unweighted mean over categories as a details entry; empty where there are no categories."""
    return {"macro": mean(value for value, _ in categories.values())} if categories else {}


@functools.lru_cache(maxsize=1 << 14)  # names and references come back with every query
def fold(text: str) -> str:
    """Text as it is compared: case folded, white space collapsed, punctuation and white space around it removed.

    Only *outer* punctuation goes ("Stone." = "stone", but "st. bernard" keeps its full stop). A text of nothing but
    punctuation is kept as it is, so that "?" and "!" stay different answers. Idempotent.
    """
    plain = " ".join(text.casefold().split())
    return _OUTER.sub("", plain) or plain


_OUTER = re.compile(r"^[\W_]+|[\W_]+$")


def mentions(text: str, names: Iterable[str]) -> set[str]:
    """Which of the names stand in a text, as whole words, case folded; where names overlap, the longest match wins.

    A name whose occurrence lies inside an occurrence of a longer name is not mentioned by it: "air stone" mentions
    "air stone" but not "stone". Returns the names as given.
    """
    plain = " ".join(text.casefold().split())
    found = [(start, end, name) for name in names for start, end in _whole_words(fold(name), plain)]
    return {
        name
        for start, end, name in found
        if not any(s <= start and end <= e and e - s > end - start for s, e, _ in found)
    }


def _whole_words(wanted: str, text: str) -> Iterator[tuple[int, int]]:
    start = text.find(wanted) if wanted else -1
    while start >= 0:
        end = start + len(wanted)
        if not (_is_word(text[start - 1 : start]) or _is_word(text[end : end + 1])):
            yield start, end
        start = text.find(wanted, start + 1)


def _is_word(character: str) -> bool:
    return character.isalnum() or character == "_"
