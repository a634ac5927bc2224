"""Metrics of answers that are pictures, pixel by pixel.

Predictions are compared in the size of the reference (bicubic, as :mod:`kshot.visual.resize` does), as values 0..1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from kshot.episode import Example
from kshot.errors import DataError
from kshot.metrics.base import MetricResult, picture_metrics
from kshot.metrics.common import by_category, macro, mean
from kshot.picture import Picture

IMAGENET_STD = np.array([0.229, 0.224, 0.225])
"""By which visual prompting's programs divide pixel values before they compare them."""


@picture_metrics.register("pixel_l1")
def pixel_l1(predictions: Sequence[Picture], queries: Sequence[Example]) -> MetricResult:
    """Mean absolute difference of pixel values 0..1; the smaller the better.

    Details: ``mse`` in the same units, ``psnr`` (decibels, of the mean squared error of all pictures together).
    """
    differences = _differences("pixel_l1", predictions, queries)
    scores = [float(np.abs(found).mean()) for found in differences]
    squares = mean(float((found**2).mean()) for found in differences)
    details = {"mse": squares, "psnr": -10 * math.log10(squares) if squares else math.inf}
    return picture_result("pixel_l1", scores, queries, details)


@picture_metrics.register("colorization_mse")
def colorization_mse(predictions: Sequence[Picture], queries: Sequence[Example]) -> MetricResult:
    """Mean squared error of pixels normalised by ImageNet's standard deviations, as visual prompting's code computes it.

    (Bar et al., arXiv 2209.00647; the means cancel.) It is about twenty times the error of values 0..1, which is the detail ``mse``.
    """
    differences = _differences("colorization_mse", predictions, queries)
    scores = [float(((found / IMAGENET_STD) ** 2).mean()) for found in differences]
    return picture_result("colorization_mse", scores, queries, {"mse": mean(float((d**2).mean()) for d in differences)})


def pixels(picture: Picture, size: tuple[int, int] | None = None) -> np.ndarray:
    """A picture's values 0..1 as an array (height, width, 3); ``size`` is (width, height)."""
    image = picture.load()
    if size is not None and image.size != size:
        image = image.resize(size, Image.Resampling.BICUBIC)
    return np.asarray(image, dtype=np.float64) / 255


def reference_picture(metric: str, query: Example) -> Picture:
    """The picture that is the query's answer.

    Raises:
        DataError: there is none.
    """
    for reference in query.references:
        if isinstance(reference, Picture):
            return reference
    raise DataError(f"{metric}: query {query.id!r} has no reference that is a picture")


def check_pictures(metric: str, predictions: Sequence[Picture], queries: Sequence[Example]) -> None:
    """Refuse input that no figure can be computed from.

    Raises:
        DataError: nothing to score, a prediction too few or too many, or one that is no picture.
    """
    if len(predictions) != len(queries):
        raise DataError(f"{metric}: {len(predictions)} predictions for {len(queries)} queries")
    if not queries:
        raise DataError(f"{metric}: nothing to score", remedy="give at least one prediction and its query")
    for number, prediction in enumerate(predictions, start=1):
        if not isinstance(prediction, Picture):
            raise DataError(f"{metric}: prediction is {type(prediction).__name__}, not a picture", line=number)


def _differences(metric: str, predictions: Sequence[Picture], queries: Sequence[Example]) -> list[np.ndarray]:
    check_pictures(metric, predictions, queries)
    found = []
    for prediction, query in zip(predictions, queries, strict=True):
        truth = reference_picture(metric, query).load()
        found.append(pixels(prediction, truth.size) - np.asarray(truth, dtype=np.float64) / 255)
    return found


def picture_result(
    name: str, scores: Sequence[float], queries: Sequence[Example], details: dict[str, float]
) -> MetricResult:
    """The mean of the scores, one a query, with its categories and their mean."""
    categories = by_category(scores, [query.metadata.get("category") for query in queries])
    return MetricResult(name, mean(scores), tuple(scores), details=details | macro(categories), categories=categories)
