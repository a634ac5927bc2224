"""Metrics of painted answers, on pictures painted by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from kshot.episode import Example
from kshot.errors import DataError
from kshot.metrics.dense import depth_abs_rel, detection_iou, keypoint_pck, normals_error, segmentation_iou
from kshot.metrics.painted import DepthMap, filled, largest_box, mask_iou, mask_of, normals_of, snap, spots
from kshot.picture import DrawnPicture, Picture, as_picture


def painted(values: np.ndarray) -> Picture:
    """A picture of values 0..1, (height, width) or (height, width, 3)."""
    values = np.repeat(values[..., None], 3, -1) if values.ndim == 2 else values
    return as_picture(Image.fromarray((np.clip(values, 0, 1) * 255).round().astype(np.uint8)))


def white(*boxes: tuple[int, int, int, int], height: int = 10, width: int = 10) -> np.ndarray:
    mask = np.zeros((height, width))
    for left, top, right, bottom in boxes:
        mask[top:bottom, left:right] = 1
    return mask


def query(answer: Picture, **metadata: object) -> Example:
    return Example((painted(np.zeros((4, 4))),), answer=answer, metadata=metadata)


def test_segmentation_is_the_mean_of_the_episodes_and_sums_up_classes():
    truths = [white((0, 0, 4, 4)), white((0, 0, 10, 10)), white((0, 0, 2, 2))]
    answers = [white((0, 0, 4, 2)), white((0, 0, 10, 5)), white((5, 5, 7, 7))]
    queries = [query(painted(t), category=c) for t, c in zip(truths, ("cat", "cat", "dog"), strict=True)]
    found = segmentation_iou([painted(a * 0.7) for a in answers], queries)
    assert found.items == (0.5, 0.5, 0.0)
    assert found.value == pytest.approx(1 / 3)
    assert found.details["class_iou"] == pytest.approx((58 / 116 + 0) / 2)
    assert found.details["accuracy"] == pytest.approx((0.92 + 0.5 + 0.92) / 3)
    assert found.categories["cat"] == (0.5, 2)


def test_the_nearer_of_the_two_colours_counts():
    grey = np.full((2, 2, 3), 0.5)
    grey[0, 0] = 0.51
    grey[1, 1] = (1.0, 1.0, 0.0)
    assert mask_of(grey).tolist() == [[True, False], [False, True]]


def test_a_detection_is_the_rectangle_around_the_largest_part():
    answer = white((1, 1, 5, 5), (8, 8, 9, 9))
    answer[1, 1] = 0  # a rectangle with a corner missing is still that rectangle
    found = detection_iou([painted(answer)], [query(painted(white((1, 1, 5, 3))))])
    assert found.value == pytest.approx(8 / 16)
    assert found.details == {"above_half": 0.0, "empty": 0.0}
    nothing = detection_iou([painted(white())], [query(painted(white((1, 1, 5, 3))))])
    assert (nothing.value, nothing.details["empty"]) == (0.0, 1.0)


@given(st.lists(st.tuples(*[st.integers(0, 9)] * 4), max_size=4))
def test_iou_is_symmetric_and_one_for_itself(boxes):
    mask = white(*boxes).astype(bool)
    other = filled(largest_box(mask), 10, 10)
    assert mask_iou(mask, mask) == 1
    assert mask_iou(mask, other) == mask_iou(other, mask)
    assert 0 <= mask_iou(mask, other) <= 1


COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255))


def spotted(*places: tuple[int, int, int], size: int = 40) -> np.ndarray:
    """Spots of 3 x 3 pixels: (number of the colour, x, y)."""
    values = np.zeros((size, size, 3))
    for number, x, y in places:
        values[y - 1 : y + 2, x - 1 : x + 2] = np.array(COLOURS[number]) / 255
    return values


def test_spots_are_found_in_the_middle_of_their_colour():
    found = spots(spotted((0, 10, 20), (2, 30, 5)), [tuple(v / 255 for v in c) for c in COLOURS])
    assert found == [(10.5 / 40, 20.5 / 40), None, (30.5 / 40, 5.5 / 40)]


def test_key_points_are_right_within_a_tenth_of_the_box():
    asked = query(
        painted(spotted((0, 10, 10), (1, 30, 30))),
        keypoints={0: (10.5 / 40, 10.5 / 40), 1: (30.5 / 40, 30.5 / 40), 2: (0.5, 0.5)},
        colours=COLOURS,
        box=(0.5, 0.25),
        size=(400, 400),
    )
    # The box is 200 pixels long: 20 pixels of the picture, 2 of the answer's 40.
    answers = [painted(spotted((0, 12, 10), (1, 33, 30)))]
    found = keypoint_pck(answers, [asked])
    assert found.value == pytest.approx(1 / 3)
    assert found.details["missing"] == pytest.approx(1 / 3)
    with pytest.raises(DataError, match="lacks keypoints"):
        keypoint_pck(answers, [query(painted(white()))])


class Depths(DrawnPicture):
    farthest = 10.0

    def __init__(self, metres: np.ndarray):
        super().__init__(lambda: painted(metres / 10).load(), "depths")
        self._metres = metres

    def depths(self) -> np.ndarray:
        return self._metres


def test_depth_errors_are_relative_and_only_where_depth_was_measured():
    truth = Depths(np.array([[2.0, 4.0], [0.0, 8.0]]))
    assert isinstance(truth, DepthMap)
    found = depth_abs_rel([painted(np.array([[0.4, 0.4], [1.0, 0.8]]))], [query(truth)])
    assert found.value == pytest.approx((1.0 + 0 + 0) / 3, abs=1e-9)
    assert found.details["delta1"] == pytest.approx(2 / 3)
    assert found.details["aligned"] == pytest.approx(found.value)
    assert depth_abs_rel([truth], [query(truth)]).value < 0.01
    with pytest.raises(DataError, match="does not say its depths"):
        depth_abs_rel([truth], [query(painted(white()))])


def colour_of(*vectors: tuple[float, float, float]) -> Picture:
    return painted((np.array([vectors]) + 1) / 2)


def test_normals_are_compared_by_their_angles_where_there_are_any():
    truth = colour_of((0, 0, 1), (1, 0, 0), (0, 0, 0))
    found = normals_error([colour_of((0, 1, 0), (1, 0, 0), (1, 0, 0))], [query(truth)])
    assert found.value == pytest.approx(45, abs=0.5)
    assert found.details["within_11"] == 0.5
    silent = normals_error([colour_of((0, 0, 0), (0, 0, 0), (0, 0, 0))], [query(truth)])
    assert silent.value == pytest.approx(90)
    assert np.allclose(normals_of(np.full((1, 1, 3), 0.5)), 0)


def test_snapping_takes_the_first_of_equally_near_colours():
    assert snap(np.full((1, 1, 3), 0.5), ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))).item() == 0
