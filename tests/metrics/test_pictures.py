from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image

from kshot.episode import Example
from kshot.errors import DataError
from kshot.metrics.base import MetricResult, picture_metrics
from kshot.metrics.pictures import IMAGENET_STD, colorization_mse, pixel_l1
from kshot.picture import Picture, as_picture


def flat(*colour: int, size: tuple[int, int] = (4, 4)) -> Picture:
    return as_picture(Image.new("RGB", size, colour))


def query(picture: Picture, **metadata: object) -> Example:
    return Example((flat(1, 2, 3),), answer=picture, metadata=metadata)


def test_differences_are_those_of_values_from_0_to_1():
    found = pixel_l1([flat(51, 0, 0), flat(0, 0, 0)], [query(flat(0, 0, 0)), query(flat(0, 0, 0))])
    assert found.items == pytest.approx((0.2 / 3, 0))
    assert found.value == pytest.approx(0.1 / 3)
    assert found.details["mse"] == pytest.approx(0.04 / 6)
    assert found.details["psnr"] == pytest.approx(-10 * math.log10(0.04 / 6))


def test_an_answer_is_compared_in_the_size_of_the_truth():
    assert pixel_l1([flat(9, 9, 9, size=(16, 8))], [query(flat(9, 9, 9, size=(3, 5)))]).value == 0


def test_colorization_divides_by_the_standard_deviations_of_imagenet():
    found = colorization_mse([flat(255, 0, 0)], [query(flat(0, 0, 0))])
    assert found.value == pytest.approx(1 / IMAGENET_STD[0] ** 2 / 3)
    assert found.details["mse"] == pytest.approx(1 / 3)


def test_figures_by_category():
    found = pixel_l1(
        [flat(255, 255, 255), flat(0, 0, 0)], [query(flat(0, 0, 0), category="a"), query(flat(0, 0, 0), category="b")]
    )
    assert found.categories == {"a": (1.0, 1), "b": (0.0, 1)}


@pytest.mark.parametrize("name", sorted(picture_metrics))
def test_every_picture_metric_refuses_what_it_cannot_score(name):
    metric = picture_metrics.get(name)
    with pytest.raises(DataError, match="nothing to score"):
        metric([], [])
    with pytest.raises(DataError, match="1 predictions for 2"):
        metric([flat(0, 0, 0)], [query(flat(0, 0, 0))] * 2)
    with pytest.raises(DataError, match="not a picture"):
        metric(["red"], [query(flat(0, 0, 0))])  # type: ignore[list-item]
    with pytest.raises(DataError, match="no reference"):
        metric([flat(0, 0, 0)], [Example((flat(0, 0, 0),), answer="red")])


def test_results_are_plain_numbers():
    rng = np.random.default_rng(0)
    noise = [as_picture(Image.fromarray(rng.integers(0, 256, (6, 5, 3), dtype=np.uint8))) for _ in range(3)]
    found = pixel_l1(noise, [query(picture) for picture in reversed(noise)])
    assert isinstance(found, MetricResult)
    assert all(type(value) is float for value in (found.value, *found.items, *found.details.values()))
