"""Fixtures of the concept tasks, in the formats in which the data sets are published."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from PIL import Image

from kshot.data.drawing import draw_glyph
from kshot.data.imagenet_lists import held_out_classes


def drawing(character: int, sample: int) -> bytes:
    """An Omniglot drawing: 105 x 105, one bit a pixel, black on white."""
    buffer = io.BytesIO()
    draw_glyph(character, sample, size=105).convert("1").save(buffer, "PNG")
    return buffer.getvalue()


def photo(number: int) -> bytes:
    """A small JPEG, different for each number."""
    buffer = io.BytesIO()
    colour = (number * 37 % 256, number * 101 % 256, number // 256 % 256)
    Image.new("RGB", (24, 16), colour).save(buffer, "JPEG")
    return buffer.getvalue()


def omniglot_members(
    alphabets: Mapping[str, int], drawings: int = 4, top: str = "images_background/"
) -> dict[str, bytes]:
    """The members of an Omniglot archive: characters per alphabet, files named as published, and what macOS adds."""
    members = {top: b""} if top else {}
    number = 0
    for alphabet, characters in alphabets.items():
        members[f"{top}{alphabet}/"] = b""
        for character in range(1, characters + 1):
            number += 1
            folder = f"{top}{alphabet}/character{character:02d}/"
            members[folder] = b""
            for sample in range(1, drawings + 1):
                members[f"{folder}{number:04d}_{sample:02d}.png"] = drawing(number, sample)
                members[f"__MACOSX/{folder}._{number:04d}_{sample:02d}.png"] = b"\0\5\x16\7"
    return members


def run_members(runs: int = 2, classes: int = 20, top: str = "all_runs/") -> dict[str, bytes]:
    """The members of all_runs.zip. Item i of a run shows class 3i+1 modulo the number of classes."""
    members: dict[str, bytes] = {}
    for run in range(1, runs + 1):
        lines = []
        for item in range(classes):
            right = (3 * item + 1) % classes
            test, training = (
                f"run{run:02d}/test/item{item + 1:02d}.png",
                f"run{run:02d}/training/class{right + 1:02d}.png",
            )
            lines.append(f"{test} {training}\n")
            members[top + test] = drawing(100 * run + right, 1)
            members[f"{top}run{run:02d}/training/class{item + 1:02d}.png"] = drawing(100 * run + item, 0)
        members[f"{top}run{run:02d}/class_labels.txt"] = "".join(lines).encode()
    return members


def write_zip(path: Path, members: Mapping[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def write_folder(root: Path, members: Mapping[str, bytes]) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for name, data in members.items():
        path = root / name
        if name.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    return root


def write_jsonl(path: Path, rows: Iterable[object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_imagenet(root: Path, per_class: int = 34) -> Path:
    """An ImageNet folder: the 100 held-out classes and one other in ``train/``."""
    data = photo(0)
    for _, wnid, _ in [*held_out_classes(), ("1", "n02119789", "kit fox")]:
        folder = root / "train" / wnid
        folder.mkdir(parents=True)
        for number in range(per_class):
            (folder / f"{wnid}_{number}.JPEG").write_bytes(data)
    return root


def write_test100(root: Path, *, classes: int = 4, context: int = 4, tests: int = 3) -> Path:
    """``test100_pairs.jsonl`` of a few classes, and their images under ``root/train``."""
    rows = []
    for k, (class_id, wnid, name) in enumerate(held_out_classes()[:classes]):
        paths = [f"train/{wnid}/{wnid}_{number}.JPEG" for number in range(context + tests)]
        for number, path in enumerate(paths):
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(photo(100 * k + number))
        rows.append(
            {
                "class_id": class_id,
                "class_name": name.title(),
                "context_samples": paths[:context],
                "test_samples": paths[context:],
            }
        )
    return write_jsonl(root / "test100_pairs.jsonl", rows)


def train900_rows(names: Iterable[str] = ("kit fox", "English setter", "crane", "Crane")) -> list[dict[str, object]]:
    names = list(names)
    return [
        {
            "class_id": str(k + 1),
            "class_name": name,
            "samples": [f"train/n{k}/n{k}_{i}.JPEG" for i in range(3)],
            "neighbors": [[str(j + 1), names[j], f"train/n{j}/n{j}_9.JPEG"] for j in range(len(names)) if j != k],
        }
        for k, name in enumerate(names)
    ]


def isekai_rows(root: Path, pictures: int = 3) -> list[dict[str, object]]:
    """Lines of ``ISEKAI-10.json`` with queries of both classes, and their images under ``root``."""
    rows: list[dict[str, object]] = []
    for g, (positive, negative) in enumerate([("MushroomHaven", "mushroom"), ("cactihog", "hedgehog")]):
        lists = {}
        for s, side in enumerate((positive, negative)):
            lists[side] = [f"{positive}/{side}/{number}.png" for number in range(pictures + 1)]
            for number, path in enumerate(lists[side]):
                (root / path).parent.mkdir(parents=True, exist_ok=True)
                (root / path).write_bytes(photo(1000 * g + 100 * s + number))
        for label in (positive, negative):
            rows.append(
                {
                    "image_name": lists[label][-1],
                    "positive_list": lists[positive][:-1],
                    "negative_list": lists[negative][:-1],
                    "positive_promt": positive,
                    "negative_promt": negative,
                    "label_name": label,
                }
            )
    return rows
