"""Metrics of pictures that stand for something: masks, boxes, key points, depth, surface normals.

The protocols are those of visual prompting (Bar et al., arXiv 2209.00647; code: amirbar/visual_prompting), on which the large vision
model is compared, and for depth and normals those of the field (Eigen et al., arXiv 1406.2283; Fouhey et al. 2013).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from kshot.episode import Example
from kshot.errors import DataError
from kshot.metrics.base import MetricResult, picture_metrics
from kshot.metrics.common import by_category, macro, mean
from kshot.metrics.painted import DepthMap, depths_of, filled, largest_box, mask_iou, mask_of, normals_of, spots
from kshot.metrics.pictures import check_pictures, picture_result, pixels, reference_picture
from kshot.picture import Picture

PCK_ALPHA = 0.1
"""A key point is right within this fraction of the longer side of the object's box."""


@picture_metrics.register("segmentation_iou")
def segmentation_iou(predictions: Sequence[Picture], queries: Sequence[Example]) -> MetricResult:
    """Mean over the episodes of the IoU of the foreground: white on black, each pixel taken for the nearer of the two.

    (After that, visual prompting's "colour-blind" IoU is the same figure.) Details: ``class_iou`` (mean over classes of intersections
    over unions summed over the class's episodes, the mIoU of few-shot segmentation), ``accuracy`` (share of pixels).
    """
    scores, right = [], []
    sums: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for said, truth, query in _masks("segmentation_iou", predictions, queries):
        scores.append(mask_iou(said, truth))
        right.append(float((said == truth).mean()))
        total = sums[str(query.metadata.get("category"))]
        total[0] += int((said & truth).sum())
        total[1] += int((said | truth).sum())
    details = {"class_iou": mean(i / u if u else 1.0 for i, u in sums.values()), "accuracy": mean(right)}
    return picture_result("mean_iou", scores, queries, details)


@picture_metrics.register("detection_iou")
def detection_iou(predictions: Sequence[Picture], queries: Sequence[Example]) -> MetricResult:
    """Mean IoU of the painted box: the rectangle around the largest white part, against all white of the reference.

    Details: ``above_half`` (share of episodes above 0.5), ``empty`` (number of answers without any white).
    """
    scores, empty = [], 0
    for said, truth, _ in _masks("detection_iou", predictions, queries):
        box = largest_box(said)
        empty += box is None
        scores.append(mask_iou(filled(box, *truth.shape), truth))
    details = {"above_half": mean(float(score > 0.5) for score in scores), "empty": float(empty)}
    return picture_result("mean_iou", scores, queries, details)


@picture_metrics.register("keypoint_pck")
def keypoint_pck(predictions: Sequence[Picture], queries: Sequence[Example]) -> MetricResult:
    """Percentage of correct key points (0..1): painted within :data:`PCK_ALPHA` of the longer side of the object's box.

    ``query.metadata`` holds ``keypoints``, a mapping from the point's number to its place (x, y), ``colours`` of all points by
    number (0..255), and ``box``, the object's width and height; places and box in fractions of the picture, whose ``size`` in pixels
    says what its sides measure. A point's place in the answer is the middle of the largest spot of its colour. Each query weighs
    by its points; the detail ``missing`` is the share of points that were not painted.
    """
    check_pictures("keypoint_pck", predictions, queries)
    scores: list[float] = []
    units: list[int] = []
    missing: list[float] = []
    for prediction, query in zip(predictions, queries, strict=True):
        reference_picture("keypoint_pck", query)
        points, width, height, reach = _keypoints(query)
        palette = [tuple(value / 255 for value in colour) for colour in query.metadata["colours"]]
        painted = spots(pixels(prediction), palette)
        right = []
        for number, (x, y) in points.items():
            found = painted[number]
            missing.append(float(found is None))
            right.append(found is not None and np.hypot((found[0] - x) * width, (found[1] - y) * height) <= reach)
        units.append(len(points))
        scores.append(float(np.mean(right)))
    weighed = [score * count for score, count in zip(scores, units, strict=True)]
    value = float(sum(weighed)) / sum(units)
    categories = by_category(scores, [query.metadata.get("category") for query in queries])
    details = {"missing": mean(missing), "alpha": PCK_ALPHA} | macro(categories)
    return MetricResult("pck", value, tuple(weighed), details=details, categories=categories)


@picture_metrics.register("depth_abs_rel")
def depth_abs_rel(predictions: Sequence[Picture], queries: Sequence[Example]) -> MetricResult:
    """Mean over the pictures of the absolute relative error of depth, where it was measured; the smaller the better.

    The reference is a picture painted from depths (:class:`~kshot.metrics.painted.DepthMap`). Details: ``aligned`` (after scaling
    the answer's median to that of the truth), ``delta1`` (share of pixels with a ratio below 1.25), ``rmse`` (metres).
    """
    check_pictures("depth_abs_rel", predictions, queries)
    scores, aligned, delta, squares = [], [], [], []
    for prediction, query in zip(predictions, queries, strict=True):
        reference = reference_picture("depth_abs_rel", query)
        if not isinstance(reference, DepthMap):
            raise DataError(f"depth_abs_rel: the reference of query {query.id!r} does not say its depths")
        truth = reference.depths()
        known = truth > 0
        if not known.any():
            raise DataError(f"depth_abs_rel: query {query.id!r} has no measured depth at all")
        said = depths_of(pixels(prediction, (truth.shape[1], truth.shape[0])), reference.farthest)[known]
        truth = truth[known]
        scores.append(float((np.abs(said - truth) / truth).mean()))
        scale = float(np.median(truth)) / max(float(np.median(said)), 1e-6)
        aligned.append(float((np.abs(said * scale - truth) / truth).mean()))
        ratio = np.maximum(np.maximum(said, 1e-6) / truth, truth / np.maximum(said, 1e-6))
        delta.append(float((ratio < 1.25).mean()))
        squares.append(float(((said - truth) ** 2).mean()) ** 0.5)
    return picture_result(
        "abs_rel", scores, queries, {"aligned": mean(aligned), "delta1": mean(delta), "rmse": mean(squares)}
    )


@picture_metrics.register("normals_error")
def normals_error(predictions: Sequence[Picture], queries: Sequence[Example]) -> MetricResult:
    """Mean angle in degrees between painted surface normals and the reference's, where that has one; the smaller the better.

    Mean over the pictures. Details: ``median`` (mean of the pictures' medians), ``within_11``, ``within_22``, ``within_30`` (share of
    pixels within 11.25, 22.5 and 30 degrees).
    """
    check_pictures("normals_error", predictions, queries)
    scores, medians = [], []
    within: dict[str, list[float]] = {"within_11": [], "within_22": [], "within_30": []}
    for prediction, query in zip(predictions, queries, strict=True):
        truth = normals_of(pixels(reference_picture("normals_error", query)))
        known = np.linalg.norm(truth, axis=-1) > 0
        if not known.any():
            raise DataError(f"normals_error: the reference of query {query.id!r} shows no normal at all")
        said = normals_of(pixels(prediction, (truth.shape[1], truth.shape[0])))
        # Where the answer says no direction its cosine is 0: an angle of 90 degrees.
        angles = np.degrees(np.arccos(np.clip((said * truth).sum(-1)[known], -1, 1)))
        scores.append(float(angles.mean()))
        medians.append(float(np.median(angles)))
        for name, limit in zip(within, (11.25, 22.5, 30.0), strict=True):
            within[name].append(float((angles < limit).mean()))
    details = {"median": mean(medians)} | {name: mean(values) for name, values in within.items()}
    return picture_result("mean_angle", scores, queries, details)


def _masks(
    metric: str, predictions: Sequence[Picture], queries: Sequence[Example]
) -> list[tuple[np.ndarray, np.ndarray, Example]]:
    check_pictures(metric, predictions, queries)
    found = []
    for prediction, query in zip(predictions, queries, strict=True):
        truth = mask_of(pixels(reference_picture(metric, query)))
        found.append((mask_of(pixels(prediction, (truth.shape[1], truth.shape[0]))), truth, query))
    return found


def _keypoints(query: Example) -> tuple[dict[int, tuple[float, float]], int, int, float]:
    """The points by number, the picture's sides and how far off a point may be, in pixels."""
    try:
        points = {int(number): (float(x), float(y)) for number, (x, y) in query.metadata["keypoints"].items()}
        width, height = query.metadata["size"]
        box_width, box_height = query.metadata["box"]
    except (KeyError, TypeError, ValueError, AttributeError):
        raise DataError(f"keypoint_pck: query {query.id!r} lacks keypoints, box or size in its metadata") from None
    if not points:
        raise DataError(f"keypoint_pck: query {query.id!r} has no key point")
    return points, width, height, PCK_ALPHA * max(box_width * width, box_height * height)
