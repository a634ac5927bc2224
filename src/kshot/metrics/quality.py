"""How alike pictures look: PSNR and SSIM through torchmetrics (extra ``metrics``), and the Fréchet distance of feature sets.

LPIPS is left out: torchmetrics' needs torchvision's networks and weights to be downloaded. Its FID needs weights of Inception as well;
:func:`frechet_distance` takes the features of any encoder instead, whose figures compare with those of the same encoder only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kshot.episode import Example
from kshot.errors import DataError, MissingExtra
from kshot.metrics.base import MetricResult, picture_metrics
from kshot.metrics.common import mean
from kshot.metrics.pictures import check_pictures, picture_result, pixels, reference_picture
from kshot.picture import Picture

MOST_DECIBELS = 100.0
"""What equal pictures count, whose ratio of signal to noise is infinite. A picture of 256 x 256 pixels of which one value is one level
off has 101."""
WINDOW = 11
"""Width of the Gaussian window of SSIM."""


@picture_metrics.register("psnr")
def psnr(predictions: Sequence[Picture], queries: Sequence[Example]) -> MetricResult:
    """Mean over the pictures of the peak signal-to-noise ratio in decibels, of values 0..1, at most :data:`MOST_DECIBELS`.

    Detail: ``equal`` (share of answers that are the reference to the last bit of their 8).

    Raises:
        DataError: nothing that can be compared.
        MissingExtra: torchmetrics is not installed.
    """
    scores = []
    for said, truth, _ in _tensors("psnr", predictions, queries):
        found = float(_functions("psnr").peak_signal_noise_ratio(said, truth, data_range=1.0))
        scores.append(min(found, MOST_DECIBELS))
    return picture_result("psnr", scores, queries, {"equal": mean(float(score == MOST_DECIBELS) for score in scores)})


@picture_metrics.register("ssim")
def ssim(predictions: Sequence[Picture], queries: Sequence[Example]) -> MetricResult:
    """Mean over the pictures of the structural similarity (Wang et al. 2004), at most 1.

    A Gaussian window of 11 pixels with a standard deviation of 1.5, values 0..1, each channel by itself; at the borders pictures are
    mirrored, as torchmetrics does, so that every pixel has a window.

    Raises:
        DataError: nothing that can be compared, or a picture smaller than the window.
        MissingExtra: torchmetrics is not installed.
    """
    scores = []
    for said, truth, query in _tensors("ssim", predictions, queries):
        height, width = truth.shape[-2:]
        if min(height, width) < WINDOW:
            raise DataError(
                f"ssim: the reference of query {query.id!r} has {width} x {height} pixels, the window {WINDOW} x {WINDOW}"
            )
        found = _functions("ssim").structural_similarity_index_measure(said, truth, data_range=1.0, kernel_size=WINDOW)
        scores.append(float(found))
    return picture_result("ssim", scores, queries, {})


def frechet_distance(features: ArrayLike, others: ArrayLike) -> float:
    """Fréchet distance (squared, as FID is given) of the Gaussians around two sets of features.

    ``|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))`` with the sets' means and unbiased covariances (Heusel et al., arXiv 1706.08500).
    The trace of the root is the sum of the singular values of ``R1 R2'``, where ``Ri' Ri = Si``: exact also for fewer pictures than
    dimensions, without anything added to the diagonal.

    Args:
        features, others: (pictures, dimensions) each; the numbers of pictures may differ.

    Returns:
        0 for equal sets. It depends on the number of pictures; compare figures of equally many only.

    Raises:
        DataError: fewer than two pictures, other dimensions, or values that are no numbers.
    """
    first, second = _feature_set(features, "features"), _feature_set(others, "others")
    if first.shape[1] != second.shape[1]:
        raise DataError(
            f"features of {first.shape[1]} and {second.shape[1]} dimensions",
            remedy="both sets must come from the same encoder",
        )
    (mean1, root1), (mean2, root2) = _gaussian(first), _gaussian(second)
    shared = np.linalg.svd(root1 @ root2.T, compute_uv=False).sum()
    distance = ((mean1 - mean2) ** 2).sum() + (root1**2).sum() + (root2**2).sum() - 2 * shared
    return max(0.0, float(distance))  # rounding


def _feature_set(features: ArrayLike, name: str) -> NDArray[np.float64]:
    try:
        found = np.asarray(features, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"{name}: not an array of numbers ({error})") from None
    if found.ndim != 2 or len(found) < 2 or not found.shape[1]:
        raise DataError(
            f"{name}: shape {list(found.shape)}, not [pictures, dimensions]", remedy="give at least two pictures"
        )
    if not np.isfinite(found).all():
        raise DataError(f"{name}: not all values are finite numbers")
    return found


def _gaussian(features: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean, and a root R of the covariance: R' R = S."""
    centre = features.mean(axis=0)
    root = (features - centre) / np.sqrt(len(features) - 1)
    return centre, np.asarray(np.linalg.qr(root, mode="r")) if len(root) > root.shape[1] else root


def _tensors(
    metric: str, predictions: Sequence[Picture], queries: Sequence[Example]
) -> Iterator[tuple[Any, Any, Example]]:
    """Answers and references, float64 (1, 3, height, width), in the size of the reference."""
    import torch

    check_pictures(metric, predictions, queries)

    def tensor(values: np.ndarray) -> Any:
        return torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1)))[None]

    for prediction, query in zip(predictions, queries, strict=True):
        wanted = pixels(reference_picture(metric, query))
        yield tensor(pixels(prediction, (wanted.shape[1], wanted.shape[0]))), tensor(wanted), query


def _functions(metric: str) -> Any:
    try:
        from torchmetrics.functional import image
    except ImportError as error:
        raise MissingExtra("torchmetrics", "metrics", f"the metric {metric!r}") from error
    return image
