"""Small data sets of tasks that are answered by pictures, in their published layouts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.data.formats import fixture, picture, write_json


def noise(path: Path, number: int, size: tuple[int, int] = (12, 8)) -> Path:
    """Writes a picture unlike all others."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(values).save(path)
    return path


@fixture("picture_pairs")
def picture_pairs(folder: Path) -> dict[str, Any]:
    for number in range(6):
        picture(folder / "photo" / f"p{number}.jpg", number)
        picture(folder / "sketch" / f"p{number}.png", 100 + number)
    picture(folder / "photo" / "alone.jpg", 50)
    return {"x": folder / "photo", "y": folder / "sketch", "support": 3}


@fixture("pascal_5i")
def pascal_5i(folder: Path) -> dict[str, Any]:
    lines = []
    for number in range(6):
        name, label = f"2007_{number:06d}", 1 + number % 2
        noise(folder / "VOC2012" / "JPEGImages" / f"{name}.jpg", number)
        labels = np.zeros((8, 12), dtype=np.uint8)
        labels[1:5, number : number + 4] = label
        labels[6:, :] = 255
        path = folder / "VOC2012" / "SegmentationClassAug" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(labels).save(path)
        lines.append(f"{name}__{label:02d}\n")
    (folder / "splits").mkdir(exist_ok=True)
    (folder / "splits" / "fold1.txt").write_text("".join(lines))
    return {"root": folder / "VOC2012", "splits": folder / "splits", "fold": 1, "episodes": 9}


def voc_annotation(name: str, objects: list[tuple[str, tuple[int, int, int, int]]]) -> str:
    parts = "".join(
        f"<object><name>{label}</name><bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
        for label, (x0, y0, x1, y1) in objects
    )
    size = "<size><width>12</width><height>8</height><depth>3</depth></size>"
    return f"<annotation><filename>{name}.jpg</filename>{size}{parts}</annotation>"


@fixture("voc_detection")
def voc_detection(folder: Path) -> dict[str, Any]:
    root = folder / "VOC2012"
    (root / "Annotations").mkdir(parents=True, exist_ok=True)
    (root / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
    for part, numbers in (("train", range(4)), ("val", range(4, 8))):
        (root / "ImageSets" / "Main" / f"{part}.txt").write_text("".join(f"2008_{n:06d}\n" for n in numbers))
        for number in numbers:
            name = f"2008_{number:06d}"
            noise(root / "JPEGImages" / f"{name}.jpg", number)
            objects = [("cat" if number % 2 else "dog", (1 + number, 2, 4 + number, 6))]
            (root / "Annotations" / f"{name}.xml").write_text(voc_annotation(name, objects))
    return {"root": root, "episodes": 3}


@fixture("colorization")
def colorization(folder: Path) -> dict[str, Any]:
    for number in range(8):
        noise(folder / "val" / f"ILSVRC2012_val_{number:08d}.JPEG", number, (20, 16))
    return {"root": folder / "val", "episodes": 4, "crop": 8}


@fixture("depth")
def depth(folder: Path) -> dict[str, Any]:
    for number in range(5):
        noise(folder / "kitchen" / f"rgb_{number:05d}.jpg", number)
        metres = np.linspace(0.5, 9, 96).reshape(8, 12) + number / 10
        metres[0, :3] = 0
        Image.fromarray((metres * 1000).astype(np.uint16)).save(folder / "kitchen" / f"sync_depth_{number:05d}.png")
    return {"root": folder, "support": 2}


@fixture("keypoints")
def keypoints(folder: Path) -> dict[str, Any]:
    images, annotations = [], []
    for number in range(6):
        noise(folder / "val2017" / f"{number:012d}.jpg", number, (60, 40))
        images.append({"id": number, "file_name": f"{number:012d}.jpg", "width": 60, "height": 40})
        points = [15 + number, 12, 2, 0, 0, 0, 30, 30, 1]
        annotations.append(
            {"id": 900 + number, "image_id": number, "category_id": 1, "bbox": [10, 5, 30, 30], "keypoints": points}
        )
    annotations.append({"id": 99, "image_id": 0, "category_id": 1, "bbox": [1, 1, 9, 9], "keypoints": [0] * 9})
    file = write_json(
        folder / "person_keypoints_val2017.json",
        {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "person"}]},
    )
    return {"annotations": file, "images": folder / "val2017", "support": 3}
