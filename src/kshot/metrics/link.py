"""Figures that are comparable with those published for Link-Context Learning (arXiv 2308.07891).

:func:`~kshot.metrics.text.two_name` is the metric to go by. :func:`two_name_upstream` repeats the scoring of the published code with
all its flaws and stands beside it, so that figures can be set against published ones; :func:`class_names` scores the zero-shot form of
ImageNet-100.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from kshot.episode import Example
from kshot.errors import DataError
from kshot.metrics.base import MetricResult, metrics, reads_raw
from kshot.metrics.common import check, fold, mean, text_references
from kshot.metrics.text import accuracy

SENTENCE = 'there is "{name}" in the image.'
"""The answer that is expected in the published protocol."""

_REMOVED = ("The answer is", "there is", "in the image", '"', "'", ".")
_PHRASES = re.compile(r"\b(?:the answer is|there is|in the image)\b", re.IGNORECASE)


@metrics.register("two_name_upstream")
@reads_raw
def two_name_upstream(predictions: Sequence[str], queries: Sequence[Example]) -> MetricResult:
    """The accuracy that the published code of Link-Context Learning computes, flaws included, from all that was generated.

    The right name is taken from the sentence ``there is "NAME" in the image.`` (see :func:`upstream_target`) in lower case; the wrong
    one is the lower-case name of the pair that differs from it. An answer is right if the right name is contained in it, and the wrong
    one is not contained in what is left when all occurrences of the right one are deleted. The answer itself is not lower-cased. So
    "airstone" answers "stone", "MushroomHaven" said rightly is wrong, and a name with a full stop or an apostrophe cannot be
    said at all. Use it for comparison with published figures, and ``two_name`` for everything else.

    The pair is ``sides`` of the metadata (positive name, negative name) or else the query's choices. ``details`` hold ``failed`` and
    ``target_failed`` as upstream reports them; texts can always be read, so both are 0.

    Raises:
        DataError: a query that does not offer exactly two names that differ in lower case.
    """
    check("two_name_upstream", predictions, queries)
    scores = []
    for prediction, query in zip(predictions, queries, strict=True):
        right = upstream_target(SENTENCE.format(name=text_references("two_name_upstream", query)[0]))
        scores.append(float(upstream_correct(prediction, right, _other(right, query))))
    return accuracy(scores, queries, {"failed": 0.0, "target_failed": 0.0})


def upstream_target(text: str) -> str:
    """The name in a target as the published code extracts it.

    What stands behind the last ``ASSISTANT:`` and before ``</s>``, without the phrases "The answer is", "there is", "in the
    image", quotes and full stops, stripped, in lower case.
    """
    said = text.rsplit("ASSISTANT:", 1)[-1].split("</s>", 1)[0]
    for removed in _REMOVED:
        said = said.replace(removed, "")
    return said.strip().lower()


def upstream_correct(prediction: str, right: str, wrong: str) -> bool:
    """Whether the published code counts a prediction as correct; both names as :func:`upstream_target` gives them."""
    return right in prediction and wrong not in prediction.replace(right, "")


@metrics.register("class_names")
def class_names(predictions: Sequence[str], queries: Sequence[Example]) -> MetricResult:
    """Share of answers that are the right one of a list of class names (``query.choices``), and nothing else.

    The phrases "the answer is", "there is" and "in the image" are removed, then both sides are compared folded (case, white space,
    outer punctuation). ``details["unknown"]`` is the share of answers that are none of the names, ``chance`` the mean of
    1 / number of names, ``macro`` the mean over classes. Upstream leaves unknown answers out of its denominator; here they count as
    wrong, and ``known`` is the accuracy without them (0 if all are unknown).

    Raises:
        DataError: a query without choices.
    """
    check("class_names", predictions, queries)
    scores, unknown = [], []
    for prediction, query in zip(predictions, queries, strict=True):
        if not query.choices:
            raise DataError(f"class_names: query {query.id!r} offers no names", remedy="give it choices")
        said = fold(prediction)
        names = {fold(name) for name in query.choices}
        if said not in names:
            said = fold(_PHRASES.sub(" ", prediction))
        unknown.append(float(said not in names))
        scores.append(float(said in map(fold, text_references("class_names", query))))
    known = [score for score, lost in zip(scores, unknown, strict=True) if not lost]
    details = {
        "unknown": mean(unknown),
        "known": mean(known) if known else 0.0,
        "chance": mean(1 / len(query.choices) for query in queries),
    }
    return accuracy(scores, queries, details)


def _other(right: str, query: Example) -> str:
    """The wrong name: like the published code, the last one of the pair that differs from the right one."""
    pair = tuple(str(name).lower() for name in query.metadata.get("sides", query.choices))
    if len(pair) != 2 or pair[0] == pair[1]:
        raise DataError(
            f"two_name_upstream: query {query.id!r} offers {pair}, not two names that differ in lower case",
            remedy="score tasks of other than two ways by two_name",
        )
    return pair[0] if pair[1] == right else pair[1]
