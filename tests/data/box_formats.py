"""Small data sets with boxes, in the official file formats; see ``formats.py``. Pictures are 12 pixels wide and 8 high."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.data.formats import fixture, picture, write_json, write_lines

SIZE = (12, 8)
BOXES = ([0, 0, 6, 4], [6.0, 4.0, 12.0, 8.0], [3, 2, 9, 6], [1.5, 0.5, 4.25, 7.75])


def rec_lines(folder: Path, first: int, count: int, *, sized: bool = True) -> list[dict[str, Any]]:
    """Lines as Shikra publishes them: two phrases for each of two boxes of a picture."""
    rows = []
    for image in range(first, first + count):
        name = f"COCO_train2014_{image:012d}.jpg"
        picture(folder / "train2014" / name, image)
        for order, phrase in enumerate(("the man on the left", "guy in blue", "right zebra", "zebra eating grass")):
            row = {"img_path": name, "expression": phrase, "bbox": BOXES[order // 2], "dataset_name": "refcoco"}
            rows.append(row | ({"height": SIZE[1], "width": SIZE[0]} if sized else {}))
    return rows


@fixture("rec")
def rec(folder: Path) -> dict[str, Any]:
    write_lines(folder / "REC_refcoco_unc_val.jsonl", rec_lines(folder, 0, 3))
    write_lines(folder / "REC_ref3_train.jsonl", rec_lines(folder, 10, 2, sized=False))
    return {"root": folder}


@fixture("reg")
def reg(folder: Path) -> dict[str, Any]:
    return rec(folder)


def release(folder: Path) -> dict[str, Any]:
    """RefCOCO's release, its pickle written as JSON."""
    rows = rec_lines(folder, 0, 4)
    images = [
        {"id": n, "file_name": f"COCO_train2014_{n:012d}.jpg", "width": 12, "height": 8, "license": 1} for n in range(4)
    ]
    annotations, refs = [], []
    for image in range(4):
        for order in range(2):
            x0, y0, x1, y1 = BOXES[order]
            key = 100 + 2 * image + order
            annotations.append({"id": key, "image_id": image, "bbox": [x0, y0, x1 - x0, y1 - y0], "category_id": 1})
            texts = [row["expression"] for row in rows if row["img_path"].endswith(f"{image}.jpg")][2 * order :][:2]
            refs.append(
                {
                    "sent_ids": [2 * key, 2 * key + 1],
                    "file_name": f"COCO_train2014_{image:012d}_{key}.jpg",
                    "ann_id": key,
                    "ref_id": key,
                    "image_id": image,
                    "split": "val" if image < 2 else "train",
                    "sentences": [
                        {"tokens": t.split(), "raw": t.upper(), "sent_id": 2 * key + n, "sent": t}
                        for n, t in enumerate(texts)
                    ],
                    "category_id": 1,
                }
            )
    write_json(folder / "refcoco" / "instances.json", {"images": images, "annotations": annotations, "categories": []})
    write_json(folder / "refcoco" / "refs(unc).json", refs)
    return {"root": folder}


def hub_corners(folder: Path) -> Path:
    """Rows of jxu124/refcoco."""
    picture(folder / "train2014" / "COCO_train2014_000000000000.jpg", 0)
    sentences = [{"raw": "THE MAN", "sent": "the man", "sent_id": n, "tokens": ["the", "man"]} for n in range(2)]
    row = {
        "sent_ids": [0, 1],
        "file_name": "COCO_train2014_000000000000_7.jpg",
        "ann_id": 7,
        "ref_id": 3,
        "split": "val",
        "sentences": sentences,
        "raw_image_info": "{'height': 8, 'width': 12, 'file_name': 'COCO_train2014_000000000000.jpg'}",
        "image_path": "coco/train2014/COCO_train2014_000000000000.jpg",
        "bbox": BOXES[2],
        "captions": ["the man", "the man"],
    }
    return write_json(folder / "jxu124.json", [row])


def hub_corner_and_size(folder: Path) -> Path:
    """Rows of lmms-lab/RefCOCO."""
    picture(folder / "train2014" / "COCO_train2014_000000000000.jpg", 0)
    row = {
        "question_id": "5",
        "question": "Please carefully observe the area ...",
        "answer": ["the man", "man in the middle"],
        "bbox": [3, 2, 6, 4],
        "iscrowd": 0,
        "file_name": "COCO_train2014_000000000000_7.jpg",
    }
    return write_lines(folder / "lmms.jsonl", [row])


def vg_picture(folder: Path, number: int) -> str:
    picture(folder / "VG_100K" / f"{number}.jpg", number)
    return f"VG_100K/{number}.jpg"


@fixture("pointqa_local")
def pointqa_local(folder: Path) -> dict[str, Any]:
    for split, first in (("val", 0), ("train", 10)):
        rows = [
            {
                "file_path": vg_picture(folder, first + n),
                "question": "What color is this shirt?",
                "answer": ("red", "dark blue", "white")[n],
                "bbox": BOXES[n],
                "point": [3, 2],
            }
            for n in range(3)
        ]
        write_lines(folder / f"pointQA_local_{split}.jsonl", rows)
    return {"root": folder}


@fixture("pointqa_twice")
def pointqa_twice(folder: Path) -> dict[str, Any]:
    """Without a training file: demonstrations are the other queries."""
    rows = [
        {
            "file_path": vg_picture(folder, n // 2),
            "obj_question": "How many zebras are there?",
            "super_question": "How many animals are there?",
            "general_question": "How many of these are there?",
            "answer": n + 1,
            "bbox": BOXES[n % 3],
            "point": [3.5, 2],
        }
        for n in range(6)
    ]
    write_lines(folder / "pointQA_twice_val.jsonl", rows)
    return {"root": folder}


@fixture("visual7w")
def visual7w(folder: Path) -> dict[str, Any]:
    for split, first in (("val", 0), ("train", 10)):
        rows = []
        for n in range(4):
            name = f"v7w_{first + n}.jpg"
            picture(folder / "images" / name, first + n)
            row = {"file_path": name, "question": "Which animal is in the middle?", "candidates": list(BOXES)}
            rows.append(row | {"answer": BOXES[n], "point": [(BOXES[n][0] + BOXES[n][2]) / 2, BOXES[n][1] + 1]})
        write_lines(folder / f"v7w_pointing_{split}.jsonl", rows)
    return {"root": folder}


def visual7w_release(folder: Path) -> dict[str, Any]:
    """What Visual7W publishes; the same boxes and questions as :func:`visual7w`."""
    boxes, images = [], []
    for image in range(6):
        name = f"v7w_{image}.jpg"
        picture(folder / "images" / name, image)
        keys = [100 * image + n for n in (7, 3, 9, 5)]
        for key, (x0, y0, x1, y1) in zip(keys, BOXES, strict=True):
            boxes.append({"box_id": key, "name": "cat", "x": x0, "y": y0, "width": x1 - x0, "height": y1 - y0})
        right = image % 4
        pair = {
            "qa_id": 900 + image,
            "question": "Which animal is in the middle?",
            "answer": keys[right],
            "multiple_choices": [key for key in keys if key != keys[right]],
            "type": "which",
        }
        split = "val" if image < 4 else "train"
        images.append({"image_id": image, "filename": name, "split": split, "qa_pairs": [pair]})
    write_json(folder / "dataset_v7w_pointing.json", {"dataset": "visual7w", "boxes": boxes, "images": images})
    return {"root": folder}


SENTENCES = (
    "[/EN#1/people A little girl] in [/EN#2/clothing a pink dress] {0} [/EN#3/other/scene the stairs] .",
    "[/EN#1/people A girl] {0} on the way into [/EN#9/notvisual a house] .",
)
VERBS = ("climbs", "watches", "paints")
XML = """<annotation>
  <filename>{name}.jpg</filename>
  <size><width>12</width><height>8</height><depth>3</depth></size>
  <object><name>1</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>7</xmax><ymax>5</ymax></bndbox></object>
  <object><name>1</name><name>2</name><bndbox><xmin>4</xmin><ymin>3</ymin><xmax>10</xmax><ymax>7</ymax></bndbox></object>
  <object><name>3</name><scene>1</scene><nobndbox>0</nobndbox></object>
  <object><name>9</name><scene>0</scene><nobndbox>1</nobndbox></object>
</annotation>
"""


@fixture("flickr30k_entities")
def flickr30k_entities(folder: Path) -> dict[str, Any]:
    for split, first in (("test", 0), ("train", 10)):
        names = [f"{first + n}0795" for n in range(3)]
        (folder / f"{split}.txt").write_text("\n".join(names) + "\n")
        for n, name in enumerate(names):
            picture(folder / "flickr30k-images" / f"{name}.jpg", first + n)
            for kind, text in (
                ("Sentences", "\n".join(SENTENCES).format(VERBS[n]) + "\n"),
                ("Annotations", XML.format(name=name)),
            ):
                path = folder / kind / f"{name}{'.txt' if kind == 'Sentences' else '.xml'}"
                path.parent.mkdir(exist_ok=True)
                path.write_text(text)
    return {"root": folder}


def entities_lines(folder: Path) -> list[dict[str, Any]]:
    """The lines that Shikra's parser makes of the release that :func:`flickr30k_entities` writes."""
    rows = []
    for n in range(3):
        picture(folder / "flickr30k-images" / f"{n}0795.jpg", n)
        first = f"<ph_st>A little girl<ph_ed> in <ph_st>a pink dress<ph_ed> {VERBS[n]} the stairs ."
        second = f"<ph_st>A girl<ph_ed> {VERBS[n]} on the way into a house ."
        rows += [
            {
                "id": 2 * n,
                "image_id": f"{n}0795",
                "boxes": [[3, 2, 9, 6], [0, 0, 6, 4], [3, 2, 9, 6]],
                "sentence": first,
                "boxes_seq": [[1, 2], [0]],
            },
            {
                "id": 2 * n + 1,
                "image_id": f"{n}0795",
                "boxes": [[0, 0, 6, 4], [3, 2, 9, 6]],
                "sentence": second,
                "boxes_seq": [[0, 1]],
            },
        ]
    return rows
