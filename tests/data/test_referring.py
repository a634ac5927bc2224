"""Referring expressions: RefCOCO and its kin, in each form in which they are published."""

from __future__ import annotations

import json
import shutil
import zipfile

import pytest

from kshot.data.boxes import SquarePicture
from kshot.data.task import load_task
from kshot.episode import Episode
from kshot.errors import DataError, OptionError
from kshot.prompt import render_plain
from tests.data import box_formats
from tests.data.formats import write_lines

VAL = "REC_refcoco_unc_val.jsonl"
# 12 x 8 pixels stand 2 pixels below the top of a square of 12: [0, 0, 6, 4] is [0, 2, 6, 6] of 12.
FIRST, SECOND = "[0.000,0.167,0.500,0.500]", "[0.500,0.500,1.000,0.833]"


def edit(path, change):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    change(rows)
    write_lines(path, rows)


def test_rec_asks_for_the_box_of_a_phrase(tmp_path):
    task = load_task("rec", **box_formats.rec(tmp_path))
    query = task.queries[0]
    assert (len(task.queries), len(task.support)) == (12, 8)
    assert (query.id, query.question) == (f"{VAL}:1", "the man on the left")
    assert (query.answer, query.references) == (FIRST, (FIRST,))
    assert task.queries[2].answer == SECOND
    assert dict(query.metadata) == {
        "image_id": "COCO_train2014_000000000000.jpg",
        "size": (12, 8),
        "category": "refcoco",
    }
    assert task.metric == "rec_accuracy"
    assert isinstance(query.images[0], SquarePicture)
    assert query.images[0].load().size == (12, 12)
    assert task.support[0].answer == FIRST  # the size is not in the file: read from the picture
    assert task.describe()["support"] == "file"


def test_the_prompts_of_both_styles(tmp_path):
    options = box_formats.rec(tmp_path)
    plain, upstream = (load_task("rec", **options, style=style) for style in ("plain", "upstream"))
    episode = Episode((plain.support[2],), plain.queries[0])
    assert render_plain(episode, plain.template).text() == (
        f"<image>Where is right zebra? Box:{SECOND}\n\n<image>Where is the man on the left? Box:"
    )
    episode = Episode((upstream.support[2],), upstream.queries[0])
    text = render_plain(episode, upstream.template).text()
    assert f"ASSISTANT: Answer: {SECOND} . USER: <image> Where is the man on the left?" in text
    assert text.endswith(" ASSISTANT: ")
    assert upstream.queries[0].answer == f"Answer: {FIRST} ."
    assert upstream.queries[0].references == (FIRST,)
    assert upstream.parse(f"Answer: {FIRST} . USER: and") == FIRST


def test_square_may_be_left_to_the_model(tmp_path):
    task = load_task("rec", **box_formats.rec(tmp_path), square=False)
    assert task.queries[0].images[0].load().size == (12, 8)
    assert task.queries[0].answer == FIRST  # coordinates are those of the square all the same
    assert task.describe()["options"]["square"] is False


def test_reg_joins_the_phrases_of_a_box(tmp_path):
    task = load_task("reg", **box_formats.reg(tmp_path))
    assert len(task.queries) == 6
    query = task.queries[0]
    assert (query.question, query.answer) == (FIRST, "the man on the left")
    assert query.references == ("the man on the left", "guy in blue")
    text = render_plain(Episode((task.support[1],), query), task.template).text()
    assert text == f"<image>Box:{SECOND} Phrase:right zebra\n\n<image>Box:{FIRST} Phrase:"
    assert task.metric == "cider"


def test_without_training_file_the_other_queries_are_shown(tmp_path):
    options = box_formats.rec(tmp_path)
    (tmp_path / "REC_ref3_train.jsonl").unlink()
    task = load_task("rec", **options)
    pool = task.pool(task.queries[0])
    assert [e.id for e in pool] == [f"{VAL}:{n}" for n in range(5, 13)]
    assert task.describe()["support"] == "leave-one-out"
    same = load_task("rec", **options, questions=tmp_path / VAL, support_questions=tmp_path / VAL)
    assert [e.id for e in same.pool(same.queries[0])] == [e.id for e in pool]


def test_the_release_as_json(tmp_path):
    options = box_formats.release(tmp_path)
    task = load_task("rec", **options)
    lines = load_task("rec", **box_formats.rec(tmp_path / "lines"))
    assert [q.answer for q in task.queries] == [q.answer for q in lines.queries[:8]]
    assert [q.question for q in task.queries] == [q.question for q in lines.queries[:8]]
    assert task.queries[0].metadata["image_id"] == "COCO_train2014_000000000000.jpg"  # not the name with the annotation
    assert [q.id for q in task.queries[:3]] == ["100:0", "100:1", "101:0"]
    assert len(task.support) == 8
    assert {q.images[0] for q in task.support}.isdisjoint({q.images[0] for q in task.queries})
    assert set(task.describe()["files"]) == {"queries", "queries instances", "support", "support instances"}
    file = tmp_path / "refcoco" / "refs(unc).json"
    given = load_task("rec", questions=file, images=tmp_path / "train2014", support_questions=file)
    assert [q.id for q in given.support] == [q.id for q in task.support]
    with pytest.raises(DataError, match=r"no expressions of the split 'testA' \(there are: train, val\)"):
        load_task("rec", **options, split="testA")
    (tmp_path / "refcoco" / "instances.json").unlink()
    with pytest.raises(DataError, match=r"instances\.json: file not found \(the release has instances\.json beside"):
        load_task("rec", **options)


def test_a_pickle_is_refused_with_what_to_do(tmp_path):
    file = tmp_path / "refcoco" / "refs(unc).p"
    file.parent.mkdir()
    file.write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    (tmp_path / "train2014").mkdir()
    for options in ({"root": tmp_path}, {"questions": file, "images": tmp_path}):
        with pytest.raises(DataError, match=r"refs\(unc\)\.p: this is a pickle.*write it as JSON once.*json\.dump"):
            load_task("rec", **options)


def test_rows_of_hugging_face_data_sets(tmp_path):
    # Both say that the box [3, 2, 9, 6] of a picture of 12 x 8 is meant: two pixels lower in the square.
    expected = "[0.250,0.333,0.750,0.667]"
    for write, ids in ((box_formats.hub_corners, ["3:0", "3:1"]), (box_formats.hub_corner_and_size, ["5:0", "5:1"])):
        task = load_task("rec", questions=write(tmp_path), images=tmp_path / "train2014", check_images=True)
        assert [q.id for q in task.queries] == ids
        assert [q.answer for q in task.queries] == [expected] * 2
        assert task.queries[0].question == "the man"
        assert task.queries[0].images[0].load().size == (12, 12)


def test_visual_genome_in_two_folders(tmp_path):
    rows = []
    for n, folder in enumerate(("VG_100K", "VG_100K_2")):
        box_formats.picture(tmp_path / "images" / folder / f"{n}.jpg", n)
        rows.append({"img_path": f"{folder}/{n}.jpg", "expression": "a  tree\n", "bbox": [0, 0, 4.5, 4]})
    write_lines(tmp_path / "GC_genome196_train.jsonl", rows)
    task = load_task("rec", root=tmp_path, dataset="vg", split="train", check_images=True)
    assert [q.question for q in task.queries] == ["a tree", "a tree"]
    assert len(task.pool(task.queries[0])) == 1  # the same file is no support set of its own


def test_leading_folders_of_image_names_and_zips(tmp_path):
    options = box_formats.rec(tmp_path)
    edit(tmp_path / VAL, lambda rows: [row.update(img_path=f"coco/train2014/{row['img_path']}") for row in rows])
    before = [q.images[0].digest for q in load_task("rec", **options, check_images=True).queries]
    with zipfile.ZipFile(tmp_path / "train2014.zip", "w") as archive:
        for path in sorted((tmp_path / "train2014").iterdir()):
            archive.write(path, f"train2014/{path.name}")
    shutil.rmtree(tmp_path / "train2014")
    task = load_task("rec", **options, check_images=True)
    assert [q.images[0].digest for q in task.queries] == before
    assert task.support[0].answer == FIRST


def test_predictions_in_pixels_of_the_original(tmp_path):
    task = load_task("rec", **box_formats.rec(tmp_path))
    task.write_results({f"{VAL}:1": FIRST, f"{VAL}:3": "nowhere"}, tmp_path / "out" / "boxes.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "out" / "boxes.jsonl").read_text().splitlines()]
    assert rows[0] == {
        "id": f"{VAL}:1",
        "img_path": "COCO_train2014_000000000000.jpg",
        "expression": "the man on the left",
        "text": FIRST,
        "bbox": [0, 0, 6, 4],
    }
    assert rows[1]["bbox"] is None
    with pytest.raises(DataError, match="not in this split: 'x'"):
        task.write_results({"x": FIRST}, tmp_path / "x.jsonl")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda rows: rows[2].pop("bbox"), r":3 field 'bbox': field is missing"),
        (lambda rows: rows[2].pop("expression"), r":3 field 'expression': field is missing"),
        (lambda rows: rows[2].pop("img_path"), r":3 field 'img_path': field is missing"),
        (lambda rows: rows[2].update(expression=" "), r":3 field 'expression': the phrase is empty"),
        (lambda rows: rows[2].update(bbox=[6, 4, 2, 8]), r":3 field 'bbox': the box's corners are the wrong way round"),
        (lambda rows: rows[2].update(bbox=[60, 4, 62, 8]), r":3 field 'bbox': .* outside the picture of 12 x 8 pixels"),
        (lambda rows: rows[2].update(bbox=[1, 2, 3]), r":3 field 'bbox': 4 numbers are expected"),
        (lambda rows: rows[2].update(width=0), r":3 field 'width': a picture of 0 x 8 pixels"),
        (lambda rows: rows[2].update(width="12"), r":3 field 'width': a whole number is expected"),
        (
            lambda rows: [row.update(bbox=[0, 0.2, 0.5, 1]) for row in rows],
            "seem to be fractions .*pixels are expected",
        ),
        (lambda rows: [row.update(id=n % 3) for n, row in enumerate(rows)], r":4 field 'id': '0' occurs twice"),
        (lambda rows: [row.pop("expression") for row in rows], r":1: unknown form .*wanted: img_path, expression"),
        (lambda rows: rows.clear(), "the file holds no phrases"),
    ],
)
def test_files_that_do_not_fit(tmp_path, change, problem):
    options = box_formats.rec(tmp_path)
    edit(tmp_path / VAL, change)
    with pytest.raises(DataError, match=rf"{VAL}.*{problem}"):
        load_task("rec", **options)


def test_where_the_file_tells_no_size_a_wrong_box_shows_when_it_is_looked_at(tmp_path):
    options = box_formats.rec(tmp_path)
    edit(tmp_path / "REC_ref3_train.jsonl", lambda rows: rows[1].update(bbox=[60, 4, 62, 8]))
    task = load_task("rec", **options)
    assert task.support[0].answer == FIRST
    with pytest.raises(DataError, match=r"REC_ref3_train\.jsonl:2 field 'bbox': .* outside the picture"):
        _ = task.support[1]
    with pytest.raises(DataError, match="outside the picture"):
        load_task("rec", **options, check_images=True)


@pytest.mark.parametrize(
    ("name", "change", "problem"),
    [
        ("refs(unc).json", lambda d: d[0].update(ann_id=7), r":1 field 'ann_id': 7 is not in instances\.json"),
        ("refs(unc).json", lambda d: d[0].update(image_id=7), r":1 field 'image_id': 7 is not in instances\.json"),
        ("refs(unc).json", lambda d: d[0].update(sentences=[]), r":1 field 'sentences': there are no sentences"),
        ("refs(unc).json", lambda d: d[1].update(ref_id=100), r":2 field 'id': '100:0' occurs twice"),
        ("refs(unc).json", lambda d: d[0].pop("split"), r":1 field 'split': field is missing"),
        ("instances.json", lambda d: d["annotations"][0].update(bbox=[1, 2, -3, 4]), "negative width or height"),
        ("instances.json", lambda d: d["annotations"][0].pop("bbox"), "field 'bbox': a list of 4 numbers"),
        ("instances.json", lambda d: d["annotations"][1].update(id=100), "100 occurs twice"),
        ("instances.json", lambda d: d["images"][0].pop("file_name"), "field 'file_name': field is missing"),
    ],
)
def test_a_release_that_does_not_fit(tmp_path, name, change, problem):
    options = box_formats.release(tmp_path)
    path = tmp_path / "refcoco" / name
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(DataError, match=problem) as caught:
        load_task("rec", **options)
    assert name in str(caught.value)


def test_missing_images_options_and_files(tmp_path):
    options = box_formats.rec(tmp_path)
    (tmp_path / "train2014" / "COCO_train2014_000000000001.jpg").unlink()
    task = load_task("rec", **options)
    with pytest.raises(DataError, match=r"COCO_train2014_000000000001\.jpg: image file not found"):
        task.queries[4].images[0].load()
    with pytest.raises(DataError, match=r"1 images of the queries are missing: .*000000000001\.jpg"):
        load_task("rec", **options, check_images=True)
    with pytest.raises(OptionError, match="needs root="):
        load_task("rec")
    with pytest.raises(OptionError, match="dataset='refcoc': must be one of refcoco, "):
        load_task("rec", **options, dataset="refcoc")
    with pytest.raises(OptionError, match="style='link': must be one of plain, upstream"):
        load_task("reg", **options, style="link")
    with pytest.raises(DataError, match=r"no REC_refcocog_umd_val\.jsonl or refcocog/refs\(umd\)\.json or .* here"):
        load_task("rec", **options, dataset="refcocog")
