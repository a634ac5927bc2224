"""Metrics of tasks with boxes and points: referring expressions, questions about points, pointing, grounded captions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from kshot.episode import Example
from kshot.errors import DataError
from kshot.metrics.base import MetricResult, metrics
from kshot.metrics.boxes import (
    UPSTREAM_BOXES,
    Box,
    Point,
    find_boxes,
    first_box,
    first_point,
    iou,
    thousandths,
    without_boxes,
)
from kshot.metrics.captions import cider_metric
from kshot.metrics.common import by_category, check, fold, macro, mean, text_references
from kshot.metrics.statements import final_answer

THRESHOLD = 0.5
_SENTENCE = re.compile(r"(.*?)\s*\.(?:\s|$)", re.DOTALL)
_UPSTREAM_ANSWER = re.compile(r"(?:The answer is (.+?)\.)")


@metrics.register("rec_accuracy")
def rec_accuracy(predictions: Sequence[str], queries: Sequence[Example]) -> MetricResult:
    """Share of predicted boxes whose IoU with the reference's box is above 0.5 (0.5 itself does not do, as upstream).

    The box is the first one in the text; a text without a box scores 0. Details: ``iou`` (the mean), ``unparsed`` (number of
    texts without a box), ``several`` (number of texts with more than one, where the first counts), ``upstream`` (the share by
    the rule of the Shikra and Link-Context Learning code, where a text with several boxes, spaces or numbers of two digits
    scores 0). Per ``category`` of the metadata.
    """
    check("rec_accuracy", predictions, queries)
    overlaps, upstream, unparsed, several = [], [], 0, 0
    for prediction, query in zip(predictions, queries, strict=True):
        target = first_box(text_references("rec_accuracy", query)[0])
        if target is None:
            raise DataError(f"rec_accuracy: the reference of query {query.id!r} holds no box [x0,y0,x1,y1]")
        boxes = [box for group in find_boxes(prediction) for box in group]
        unparsed, several = unparsed + (not boxes), several + (len(boxes) > 1)
        overlaps.append(iou(thousandths(boxes[0]), thousandths(target)) if boxes else 0.0)
        found = UPSTREAM_BOXES.findall(prediction)
        alone = first_box(found[0]) if len(found) == 1 and ";" not in found[0] else None
        upstream.append(float(alone is not None and _upstream_iou(alone, target) > THRESHOLD))
    scores = [float(overlap > THRESHOLD) for overlap in overlaps]
    details = {
        "iou": mean(overlaps),
        "unparsed": float(unparsed),
        "several": float(several),
        "upstream": mean(upstream),
    }
    return _accuracy(scores, queries, details)


@metrics.register("pointqa_accuracy")
def pointqa_accuracy(predictions: Sequence[str], queries: Sequence[Example]) -> MetricResult:
    """Exact match of short answers, with or without the frame "The answer is ... ." (or "Answer: ... .") around them.

    What is compared is the text behind the last frame, in full and up to the first full stop; without a frame it is the whole text.
    Case, outer punctuation and runs of white space do not matter. Details: ``strict`` (equal character for character, white
    space and the closing full stop aside), ``upstream`` (the rule of the upstream code: what stands between "The answer is"
    and the first full stop, once in the text, is the same in prediction and target; an answer without the frame is put into it).
    """
    check("pointqa_accuracy", predictions, queries)
    scores, strict, upstream = [], [], []
    for prediction, query in zip(predictions, queries, strict=True):
        accepted = text_references("pointqa_accuracy", query)
        said = stated_answers(prediction)
        scores.append(float(any(fold(text) == fold(answer) for text in said for answer in accepted)))
        strict.append(float(any(text == answer.strip() for text in said for answer in accepted)))
        upstream.append(float(_upstream_answer(prediction) in [_upstream_answer(f"{a} .") for a in accepted]))
    return _accuracy(scores, queries, {"strict": mean(strict), "upstream": mean(upstream)})


@metrics.register("visual7w_accuracy")
def visual7w_accuracy(predictions: Sequence[str], queries: Sequence[Example]) -> MetricResult:
    """Share of queries of which the right candidate box is pointed at.

    ``query.metadata`` holds ``candidates`` (boxes) and ``right`` (the place of the right one). A box in the text chooses the
    candidate with which it has the largest IoU (of equal ones the first; none if all are 0); without a box, a point chooses, of
    the candidates that it lies in, the one whose centre is nearest. A box or point that is, in its three decimals, that of the
    reference is right in any case. Details: ``exact`` (share of these), ``unparsed`` and ``none`` (numbers of texts with
    neither box nor point, and of those that choose no candidate), ``chance``. The upstream code compares only what stands
    before the first full stop, which is inside the first coordinate (``[0``), so that nearly every answer is right by it; its
    figure is not given.
    """
    check("visual7w_accuracy", predictions, queries)
    scores, exact, chance, unparsed, none = [], [], [], 0, 0
    for prediction, query in zip(predictions, queries, strict=True):
        reference = text_references("visual7w_accuracy", query)[0]
        candidates, right = _candidates(query)
        box, point = first_box(prediction), first_point(prediction)
        choice = _nearest_box(box, candidates) if box else _around(point, candidates) if point else None
        unparsed, none = unparsed + (box is None and point is None), none + (choice is None)
        said: Box | Point | None = box or point
        exact.append(float(said is not None and said == (first_box(reference) or first_point(reference))))
        chosen = choice is not None and candidates[choice] == candidates[right]
        # Where candidates overlap, a point that was taken from the right one may be nearer to another.
        scores.append(float(chosen or exact[-1]))
        chance.append(candidates.count(candidates[right]) / len(candidates))
    details = {"exact": mean(exact), "unparsed": float(unparsed), "none": float(none), "chance": mean(chance)}
    return _accuracy(scores, queries, details)


@metrics.register("grounded_caption")
def grounded_caption(predictions: Sequence[str], queries: Sequence[Example]) -> MetricResult:
    """CIDEr of captions without their boxes, and what the boxes are worth in the details.

    An *entity* of a query is the boxes behind one phrase of its references, counted once where several references name it.
    ``box_recall``: share of entities of which at least one box has an IoU of 0.5 or more with a box of the prediction (the "any
    box" protocol of phrase localisation; words are not compared, as a caption may name a thing otherwise). ``box_precision``:
    share of predicted boxes that have an IoU of 0.5 or more with a box of an entity. Both over all queries together; ``boxes``
    is the number of predicted boxes.
    """
    check("grounded_caption", predictions, queries)
    found = entities = hits = boxes = 0
    plain: list[Example] = []
    for prediction, query in zip(predictions, queries, strict=True):
        references = text_references("grounded_caption", query)
        plain.append(query.with_(references=tuple(without_boxes(text) for text in references)))
        wanted = {tuple(map(thousandths, group)) for text in references for group in find_boxes(text)}
        said = [thousandths(box) for group in find_boxes(prediction) for box in group]
        entities, boxes = entities + len(wanted), boxes + len(said)
        found += sum(any(iou(a, b) >= THRESHOLD for a in group for b in said) for group in wanted)
        hits += sum(any(iou(a, b) >= THRESHOLD for group in wanted for b in group) for a in said)
    result = cider_metric([without_boxes(text) for text in predictions], plain)
    extra = {
        "box_recall": found / entities if entities else 0.0,
        "box_precision": hits / boxes if boxes else 0.0,
        "boxes": float(boxes),
    }
    return replace(result, details={**result.details, **extra})


def stated_answers(text: str) -> list[str]:
    """The readings of a short answer: what it states (see :func:`final_answer`), in full and up to the end of its first
    sentence.
    """
    whole = final_answer(text)
    sentence = _SENTENCE.match(whole)
    return [whole, sentence[1].strip()] if sentence else [whole]


def _upstream_answer(text: str) -> str | None:
    text = text if "The answer is " in text else f"The answer is {text.strip().removesuffix('.').strip()} ."
    found = _UPSTREAM_ANSWER.findall(text.strip())
    return found[0].strip() if len(found) == 1 else None


def _upstream_iou(one: Box, other: Box) -> float:
    """IoU in single precision, operation by operation as upstream: of boxes of which it is one half it is sometimes above that."""
    a, b = np.array((one, other), np.float32) * np.float32(1000)
    sides = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None)
    common = sides[0] * sides[1]
    both = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return float(common / (both - common)) if both != common else 0.0


def _candidates(query: Example) -> tuple[list[Box], int]:
    candidates, right = query.metadata.get("candidates"), query.metadata.get("right")
    if not candidates or not isinstance(right, int) or not 0 <= right < len(candidates):
        raise DataError(
            f"visual7w_accuracy: the metadata of query {query.id!r} lack 'candidates' (boxes) or 'right' (a place among them)"
        )
    return [(box[0], box[1], box[2], box[3]) for box in candidates], right


def _nearest_box(box: Box, candidates: Sequence[Box]) -> int | None:
    overlaps = [iou(thousandths(box), thousandths(candidate)) for candidate in candidates]
    best = max(range(len(candidates)), key=overlaps.__getitem__)
    if overlaps[best] == 0:  # a candidate without area overlaps nothing, not even itself
        return next((place for place, candidate in enumerate(candidates) if candidate == box), None)
    return best


def _around(point: Point, candidates: Sequence[Box]) -> int | None:
    x, y = point
    inside = [n for n, (x0, y0, x1, y1) in enumerate(candidates) if x0 <= x <= x1 and y0 <= y <= y1]

    def distance(place: int) -> float:
        x0, y0, x1, y1 = candidates[place]
        return (x - (x0 + x1) / 2) ** 2 + (y - (y0 + y1) / 2) ** 2

    return min(inside, key=distance, default=None)


def _accuracy(scores: list[float], queries: Sequence[Example], details: dict[str, float]) -> MetricResult:
    categories = by_category(scores, [query.metadata.get("category") for query in queries])
    units = tuple(range(len(scores)))
    return MetricResult("accuracy", mean(scores), tuple(scores), units, details | macro(categories), categories)
