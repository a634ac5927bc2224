"""Tasks answered by pictures, beyond what every task must do: what the answers look like, and what is wrong with bad files."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

import kshot
from kshot.errors import BadImage, DataError, OptionError
from kshot.metrics.painted import mask_of
from kshot.picture import as_picture
from kshot.visual.tasks.colorization import Colorization
from kshot.visual.tasks.depth import Depth, DepthPicture
from kshot.visual.tasks.keypoints import Keypoints
from kshot.visual.tasks.pairs import PicturePairs
from kshot.visual.tasks.pascal import ClassMask, Pascal5i, VocDetection, read_boxes
from tests.data.formats import picture, write_json
from tests.data.picture_formats import (
    colorization,
    depth,
    keypoints,
    pascal_5i,
    picture_pairs,
    voc_annotation,
    voc_detection,
)


def values(shown) -> np.ndarray:
    return np.asarray(shown.load())


def test_pairs_are_joined_by_name_and_those_left_over_are_counted(tmp_path):
    task = PicturePairs(**picture_pairs(tmp_path))
    assert (len(task.queries), len(task.support)) == (3, 3)
    assert not {e.id for e in task.queries} & {e.id for e in task.support}
    assert all(e.images[0].path.stem == e.answer.path.stem for e in (*task.queries, *task.support))
    assert list(task.skipped.values()) == [1]
    assert any("alone" in source for source, _ in task.left_out)
    with pytest.raises(DataError, match="too few to set 6 aside"):
        PicturePairs(tmp_path / "photo", tmp_path / "sketch", support=6)
    with pytest.raises(kshot.KshotError, match="picture metric"):
        PicturePairs(tmp_path / "photo", tmp_path / "sketch", metric="accuracy")


def test_a_mask_shows_one_class_and_void_is_background(tmp_path):
    task = Pascal5i(**pascal_5i(tmp_path))
    shown = mask_of(values(task.queries[3].answer) / 255)
    expected = np.zeros((8, 12), dtype=bool)
    expected[1:5, 3:7] = True
    assert (shown == expected).all()
    assert task.queries[3].metadata["category"] == "bicycle"
    # Nine episodes of six lines: the first three once more, under other ids.
    assert [q.images[0] for q in task.queries[6:9]] == [q.images[0] for q in task.queries[:3]]
    assert task.queries[6].id == f"{task.queries[0].id}#1"


def test_supports_are_other_pictures_of_the_class(tmp_path):
    task = Pascal5i(**pascal_5i(tmp_path))
    for query in task.queries:
        pool = task.pool(query)
        assert {e.metadata["category"] for e in pool} == {query.metadata["category"]}
        assert query.images[0] not in [e.images[0] for e in pool]
        assert len(pool) == 2


def test_palette_label_maps_are_read_by_index(tmp_path):
    image = Image.fromarray(np.array([[0, 3], [3, 1]], dtype=np.uint8), mode="P")
    image.putpalette([c for i in range(256) for c in (255 - i, i, 7)])
    image.save(tmp_path / "map.png")
    assert (values(ClassMask(as_picture(tmp_path / "map.png"), 3))[..., 0] > 0).tolist() == [
        [False, True],
        [True, False],
    ]
    Image.new("RGB", (2, 2)).save(tmp_path / "colours.png")
    with pytest.raises(BadImage, match="one number a pixel"):
        ClassMask(as_picture(tmp_path / "colours.png"), 1).load()


@pytest.mark.parametrize("line", ["2007_000033", "2007_000033__00", "2007_000033__21", "__05", "2007_000033__cat"])
def test_a_line_of_another_form_is_named(tmp_path, line):
    options = pascal_5i(tmp_path)
    (tmp_path / "splits" / "fold1.txt").write_text(f"2007_000000__01\n{line}\n")
    with pytest.raises(DataError, match=r"fold1\.txt.*2.*NAME__CLASS"):
        Pascal5i(**options)


def test_folds_and_files_must_be_there(tmp_path):
    options = pascal_5i(tmp_path)
    with pytest.raises(OptionError, match="fold=4"):
        Pascal5i(**options | {"fold": 4})
    with pytest.raises(DataError, match=r"fold0\.txt"):
        Pascal5i(**options | {"fold": 0})


def test_boxes_count_from_one_and_hold_both_ends(tmp_path):
    (tmp_path / "a.xml").write_text(
        voc_annotation("a", [("cat", (1, 1, 12, 8)), ("dog", (2, 3, 4, 5)), ("dog", (6, 6, 6, 6))])
    )
    size, boxes = read_boxes(tmp_path / "a.xml")
    assert size == (12, 8)
    assert boxes == {"cat": [(0, 0, 12, 8)], "dog": [(1, 2, 4, 5), (5, 5, 6, 6)]}
    for text, said in (("<annotation>", "not an annotation"), ("<annotation></annotation>", "no field size/width")):
        (tmp_path / "b.xml").write_text(text)
        with pytest.raises(DataError, match=said):
            read_boxes(tmp_path / "b.xml")
    with pytest.raises(DataError, match="not found"):
        read_boxes(tmp_path / "c.xml")


def test_detection_demonstrates_with_training_pictures_of_the_class(tmp_path):
    task = VocDetection(**voc_detection(tmp_path))
    assert len(task.queries) == 3
    query = task.queries[0]
    number = int(query.id[5:11])
    painted = values(query.answer)[..., 0] == 255
    assert (painted.sum(), painted[1:6, number : number + 4].all()) == (20, True)
    assert {int(e.id[5:11]) < 4 for e in task.pool(query)} == {True}
    assert {e.metadata["category"] for e in task.pool(query)} == {query.metadata["category"]}


def test_colour_is_asked_of_the_grey_middle(tmp_path):
    task = Colorization(**colorization(tmp_path))
    query = task.queries[0]
    colours, grey = values(query.answer).astype(float), values(query.images[0]).astype(float)
    assert colours.shape == (8, 8, 3)
    original = np.asarray(Image.open(tmp_path / "val" / query.id))
    assert (colours == original[4:12, 6:14]).all()
    assert np.abs(grey[..., 1] - colours @ (0.2989, 0.5870, 0.1140)).max() <= 0.5
    assert not {e.id for e in task.queries} & {e.id for e in task.support}


def test_depths_are_metres_and_what_is_too_far_was_not_measured(tmp_path):
    task = Depth(**depth(tmp_path), farthest=5.0)
    answer = task.queries[0].answer
    assert isinstance(answer, DepthPicture)
    metres = answer.depths()
    assert (metres[0, :3] == 0).all()
    assert 4.5 < metres.max() <= 5
    assert np.abs(values(answer)[..., 0] / 255 * 5 - metres).max() < 5 / 255
    picture(tmp_path / "kitchen" / "sync_depth_00000.png", 1)  # a colour picture in place of depths
    with pytest.raises(BadImage, match="one number a pixel"):
        [e.answer.load() for e in (*task.queries, *task.support)]


def test_key_points_are_painted_in_the_cut_out_object(tmp_path):
    task = Keypoints(**keypoints(tmp_path))
    assert task.skipped == {"objects with too few key points": 1}
    query = task.queries[0]
    number = int(query.id) - 900
    assert query.metadata["size"] == (36, 36)  # 30 x 30 and a tenth on each side
    assert query.metadata["keypoints"] == {0: ((15 + number - 7) / 36, 10 / 36), 2: (23 / 36, 28 / 36)}
    assert query.images[0].load().size == (36, 36)
    colours = query.metadata["colours"]
    painted = values(query.answer)
    assert tuple(painted[10, 15 + number - 7]) == colours[0]
    assert tuple(painted[28, 23]) == colours[2]
    assert not (painted == colours[1]).all(-1).any()
    images = {e.images[0].name.split()[0] for e in task.queries}
    assert not images & {e.images[0].name.split()[0] for e in task.support}


def test_key_points_of_an_image_that_is_not_listed(tmp_path):
    options = keypoints(tmp_path)
    broken = {"images": [], "annotations": [{"image_id": 4, "keypoints": [], "bbox": [0, 0, 1, 1]}]}
    with pytest.raises(DataError, match="image 4, which is not listed"):
        Keypoints(write_json(tmp_path / "broken.json", broken), options["images"])
