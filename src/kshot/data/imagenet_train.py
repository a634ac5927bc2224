"""Making lists of training classes in the format of ``train900_pairs.jsonl``: from ImageNet, or from any folder of class folders."""

from __future__ import annotations

import csv
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from kshot.data.derived import generator
from kshot.data.imagenet_folder import find_in_kit, image_base
from kshot.data.imagenet_lists import Neighbor, TrainClass
from kshot.data.readers import PathLike, check_unique, read_text
from kshot.errors import DataError
from kshot.whole_file import write_text

CLASS_MAP = "map_clsloc.txt"
"""File of ILSVRC's development kit: wnid, class id and name of each class."""

SAMPLES = 36
"""Images of a class in the published list."""


@dataclass(frozen=True)
class ListedClass:
    """A class that a list is to be made of.

    Attributes:
        class_id: as it stands in the list, a decimal number.
        folder: name of its folder (for ImageNet, the wnid); what is drawn for it derives from this.
        name: its name.
        images: paths relative to the image root, sorted.
    """

    class_id: str
    folder: str
    name: str
    images: tuple[str, ...]


@cache
def shipped_names() -> dict[str, tuple[str, str]]:
    """Class id and name by wnid of ImageNet's 1,000 classes, as in ILSVRC2015's ``map_clsloc.txt``."""
    text = (files("kshot") / "assets" / "imagenet1000.tsv").read_text(encoding="utf-8")
    rows = csv.DictReader(text.splitlines(), delimiter="\t")
    return {row["wnid"]: (row["class_id"], row["class_name"]) for row in rows}


def read_class_map(file: PathLike) -> dict[str, tuple[str, str]]:
    """Class id and name by wnid from a ``map_clsloc.txt``; underscores in names become spaces.

    Raises:
        DataError: a line that is not wnid, number and name, or a wnid or a number twice.
    """
    found: dict[str, tuple[str, str]] = {}
    wnids, ids, lines = [], [], []
    for line, text in enumerate(read_text(file).splitlines(), 1):
        parts = text.split()
        if not parts:
            continue
        if len(parts) != 3 or not parts[1].isdecimal():
            raise DataError(
                f"expected a wnid, a class number and a name, found {text[:40]!r}",
                file=file,
                line=line,
                remedy=f"the file should be {CLASS_MAP} of the development kit",
            )
        wnid, number, name = parts[0], str(int(parts[1])), parts[2].replace("_", " ")
        found[wnid] = number, name
        wnids.append(wnid)
        ids.append(number)
        lines.append(line)
    if not found:
        raise DataError("no classes", file=file)
    check_unique(wnids, file, "wnid", lines)
    check_unique(ids, file, "class id", lines)
    return found


def find_class_map(root: PathLike) -> Path | None:
    """The ``map_clsloc.txt`` of an ImageNet folder, if it has one."""
    return find_in_kit(Path(root), image_base(root), (CLASS_MAP,))


def build_train(
    classes: Sequence[ListedClass],
    neighbours: Sequence[Sequence[int]],
    *,
    samples: int = SAMPLES,
    seed: int = 0,
    unusable: Collection[str] = (),
) -> tuple[TrainClass, ...]:
    """The list of training classes: of each class random images, and of each of its neighbours one random image.

    Args:
        classes: the classes, in the order of the list.
        neighbours: numbers of each class' neighbours, the most similar first.
        samples: images of a class; classes that have fewer give all.
        seed: of the draws. They depend on the class' own folder and images only.
        unusable: images that are not drawn.

    Raises:
        DataError: a class without a usable image.
    """
    pools = [[path for path in one.images if path not in unusable] for one in classes]
    if empty := [one.name for one, pool in zip(classes, pools, strict=True) if not pool]:
        raise DataError(f"class without a usable image: {empty[0]}")
    rows = []
    for one, pool, near in zip(classes, pools, neighbours, strict=True):
        order = generator(seed, "samples", one.folder).permutation(len(pool))[:samples]
        near_rows = []
        for other in near:
            rng = generator(seed, "neighbour's image", one.folder, classes[other].folder)
            path = pools[other][int(rng.integers(len(pools[other])))]
            near_rows.append(Neighbor(classes[other].class_id, classes[other].name, path))
        rows.append(TrainClass(one.class_id, one.name, tuple(pool[i] for i in order), tuple(near_rows)))
    return tuple(rows)


def train_record(row: TrainClass) -> dict[str, Any]:
    """A line of ``train900_pairs.jsonl``."""
    return {
        "class_id": row.class_id,
        "class_name": row.class_name,
        "samples": list(row.samples),
        "neighbors": [[n.class_id, n.class_name, n.sample] for n in row.neighbors],
    }


def write_train900(classes: Sequence[TrainClass], file: PathLike) -> None:
    """Write a list of training classes in the published format, byte for byte."""
    write_text(file, "".join(json.dumps(train_record(row)) + "\n" for row in classes))


def listed_classes(found: Mapping[str, Sequence[str]], named: Mapping[str, tuple[str, str]]) -> list[ListedClass]:
    """Classes with their images, in ascending order of their ids.

    Args:
        found: images by folder.
        named: class id and name by folder.
    """
    classes = [
        ListedClass(named[folder][0], folder, named[folder][1], tuple(images)) for folder, images in found.items()
    ]
    return sorted(classes, key=lambda one: int(one.class_id))
