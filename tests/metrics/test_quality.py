"""Picture quality against the formulas, and the Fréchet distance against its closed form and torchmetrics."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from kshot.episode import Example
from kshot.errors import DataError, MissingExtra
from kshot.metrics.quality import frechet_distance, psnr, ssim
from kshot.picture import Picture, as_picture


def noise(seed: int, size: tuple[int, int] = (24, 20)) -> Picture:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return as_picture(Image.fromarray(pixels))


def query(picture: Picture, **metadata: object) -> Example:
    return Example((noise(99),), answer=picture, metadata=metadata)


def values(picture: Picture) -> np.ndarray:
    return np.asarray(picture.load(), dtype=np.float64) / 255


def test_psnr_is_the_mean_over_pictures_and_finite_for_equal_ones():
    found = psnr([noise(1), noise(2)], [query(noise(3), category="a"), query(noise(2), category="b")])
    first = -10 * math.log10(((values(noise(1)) - values(noise(3))) ** 2).mean())
    assert found.items == pytest.approx((first, 100))
    assert found.value == pytest.approx((first + 100) / 2)
    assert found.details["equal"] == 0.5
    assert found.categories["b"] == (100, 1)


def test_ssim_is_the_published_formula():
    """Gaussian moments, then the mean over places and channels; pictures are mirrored at their borders."""
    x, y = values(noise(1)), values(noise(3)) * 0.5 + values(noise(1)) * 0.5

    def blurred(channel: np.ndarray) -> np.ndarray:
        return ndimage.gaussian_filter(channel, 1.5, radius=5, mode="mirror")

    y = np.rint(y * 255) / 255
    per_channel = []
    for c in range(3):
        a, b = x[..., c], y[..., c]
        ma, mb = blurred(a), blurred(b)
        va, vb, cov = blurred(a * a) - ma**2, blurred(b * b) - mb**2, blurred(a * b) - ma * mb
        c1, c2 = 0.01**2, 0.03**2
        index = (2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))
        per_channel.append(index.mean())
    said = as_picture(Image.fromarray(np.rint(y * 255).astype(np.uint8)))
    assert ssim([said], [query(noise(1))]).value == pytest.approx(np.mean(per_channel), abs=1e-6)
    assert ssim([noise(1)], [query(noise(1))]).value == pytest.approx(1)


def test_answers_are_compared_in_the_size_of_the_reference():
    plain = as_picture(Image.new("RGB", (40, 40), (9, 9, 9)))
    small = as_picture(Image.new("RGB", (12, 17), (9, 9, 9)))
    assert psnr([plain], [query(small)]).value == 100
    assert ssim([plain], [query(small)]).value == pytest.approx(1)


def test_ssim_refuses_pictures_smaller_than_its_window():
    with pytest.raises(DataError, match="10 x 30 pixels, the window 11 x 11"):
        ssim([noise(1)], [query(noise(2, (10, 30)))])


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_without_torchmetrics_the_extra_is_named(metric, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics.functional", None)
    with pytest.raises(MissingExtra, match=r"kshot\[metrics\]"):
        metric([noise(1)], [query(noise(2))])


def test_frechet_distance_of_gaussians_along_the_axes():
    """There it is the squared distance of the means and of the standard deviations."""
    corners = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]]) * math.sqrt(3 / 4)  # unbiased covariance: the identity
    first, second = corners * [1, 2], corners * [3, 0.5] + [10, -1]
    assert frechet_distance(first, second) == pytest.approx(10**2 + 1 + 2**2 + 1.5**2)
    assert frechet_distance(first, first[::-1]) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("count", "other"), [(60, 40), (5, 60), (6, 4)])
def test_frechet_distance_is_the_formula_of_fid(count, other):
    """As torchmetrics computes it from means and covariances; also with fewer pictures than dimensions."""
    import torch
    from torchmetrics.image.fid import _compute_fid

    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(count, 8)), rng.normal(size=(other, 8)) @ rng.normal(size=(8, 8)) + 0.3
    wanted = _compute_fid(
        *(torch.from_numpy(made) for x in (first, second) for made in (x.mean(0), np.cov(x, rowvar=False)))
    )
    assert frechet_distance(first, second) == pytest.approx(float(wanted), rel=1e-5)


@pytest.mark.parametrize(
    ("features", "others", "message"),
    [
        ([[1.0, 2]], [[1.0, 2], [2, 3]], "at least two pictures"),
        ([1.0, 2], [[1.0, 2], [2, 3]], "not \\[pictures, dimensions\\]"),
        ([[1.0], [2]], [[1.0, 2], [2, 3]], "1 and 2 dimensions"),
        ([[1.0, math.nan], [2, 3]], [[1.0, 2], [2, 3]], "finite"),
        ([["a"], ["b"]], [[1.0], [2]], "not an array of numbers"),
    ],
)
def test_features_that_have_no_distance(features, others, message):
    with pytest.raises(DataError, match=message):
        frechet_distance(features, others)
