"""Finding the images of ImageNet classes in the folders people have.

Training images lie in ``train/<wnid>/``. Validation images lie in ``val/<wnid>/``, or all together in ``val/`` as published; then
a ground-truth file tells their classes: ``ILSVRC2015_clsloc_validation_ground_truth.txt`` or
``ILSVRC2012_validation_ground_truth.txt`` of the development kits (line n = class id of image n, the same ids in both) or
``LOC_val_solution.csv`` of the Kaggle edition.
"""

from __future__ import annotations

import csv
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from kshot.errors import DataError, listed

SUFFIXES = (".jpeg", ".jpg", ".png")

GROUND_TRUTH = (
    "ILSVRC2015_clsloc_validation_ground_truth.txt",
    "ILSVRC2012_validation_ground_truth.txt",
    "LOC_val_solution.csv",
)
_KITS = ("", "devkit/data", "ILSVRC2015/devkit/data", "ILSVRC2012_devkit_t12/data")


def image_base(root: str | os.PathLike[str]) -> Path:
    """The folder that published image paths (``train/<wnid>/...``, ``val/...``) are relative to: ``root``, or its Data/CLS-LOC."""
    inner = Path(root) / "Data" / "CLS-LOC"
    return inner if not (Path(root) / "train").is_dir() and (inner / "train").is_dir() else Path(root)


def find_images(
    root: str | os.PathLike[str], classes: Mapping[str, int], val_labels: str | os.PathLike[str] | None = None
) -> dict[str, list[str]]:
    """Images of each class, training and validation pooled, sorted, as paths relative to ``root``.

    Args:
        root: the ImageNet folder, or the ILSVRC folder that holds ``Data/CLS-LOC``.
        classes: class id in the ground-truth files by wnid.
        val_labels: the ground-truth file, if it is not found by itself.

    Raises:
        DataError: no such folder, no ``train``, class folders missing, or a malformed ground-truth file.
    """
    root = Path(root)
    base = next((b for b in (root, root / "Data" / "CLS-LOC") if (b / "train").is_dir()), None)
    if base is None:
        problem = "no folder train/ in it" if root.is_dir() else "folder not found"
        raise DataError(problem, file=root, remedy="root= is the folder that holds train/<wnid>/, or Data/CLS-LOC")
    missing = [wnid for wnid in classes if not (base / "train" / wnid).is_dir()]
    if missing:
        raise DataError(f"{len(missing)} class folders are missing: {listed(missing)}", file=base / "train")
    bar = tqdm(classes, "listing the images", leave=False, unit="class", disable=None if len(classes) > 100 else True)
    images = {wnid: _images_in(base / "train" / wnid, root) for wnid in bar}
    for wnid, paths in _validation_images(root, base, classes, val_labels).items():
        images[wnid] += paths
    return {wnid: sorted(paths) for wnid, paths in images.items()}


def _validation_images(
    root: Path, base: Path, classes: Mapping[str, int], val_labels: str | os.PathLike[str] | None
) -> dict[str, list[str]]:
    val = base / "val"
    if not val.is_dir():
        return {}
    if any((val / wnid).is_dir() for wnid in classes):
        return {wnid: _images_in(val / wnid, root) for wnid in classes if (val / wnid).is_dir()}
    file = Path(val_labels) if val_labels is not None else find_in_kit(root, base, GROUND_TRUTH)
    if file is None:
        warnings.warn(
            f"{val}: validation images are left out, none of {', '.join(GROUND_TRUTH)} was found; name it with val_labels=",
            stacklevel=4,
        )
        return {}
    prefix, there = f"{val.relative_to(root).as_posix()}/", set(os.listdir(val))
    images: dict[str, list[str]] = {}
    for stem, wnid in _read_ground_truth(file, classes).items():
        if f"{stem}.JPEG" in there:
            images.setdefault(wnid, []).append(f"{prefix}{stem}.JPEG")
    return images


def find_in_kit(root: Path, base: Path, names: Sequence[str]) -> Path | None:
    """The first file of these names in an ImageNet folder or in its development kit; ``base`` is its :func:`image_base`."""
    places = [base.parent.parent] if base.parent.name == "Data" else []
    for place in dict.fromkeys((root, base, *places)):
        for kit in _KITS:
            for name in names:
                if (place / kit / name).is_file():
                    return place / kit / name
    return None


def _read_ground_truth(file: Path, classes: Mapping[str, int]) -> dict[str, str]:
    """The wnid of each validation image (file name without suffix) that belongs to one of the classes."""
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", file=file) from None
    except UnicodeDecodeError:
        raise DataError("not UTF-8 text", file=file) from None
    if file.suffix == ".csv":
        rows = csv.DictReader(text.splitlines())
        if not {"ImageId", "PredictionString"} <= set(rows.fieldnames or ()):
            raise DataError("expected the columns ImageId and PredictionString", file=file, line=1)
        pairs = ((row["ImageId"], (row["PredictionString"] or "").split(" ", 1)[0]) for row in rows)
        return {image: wnid for image, wnid in pairs if wnid in classes}
    wnids = {class_id: wnid for wnid, class_id in classes.items()}
    found: dict[str, str] = {}
    for number, line in enumerate(text.split(), 1):
        if not re.fullmatch(r"\d+", line):
            raise DataError(f"expected a class number, found {line[:20]!r}", file=file, line=number)
        if int(line) in wnids:
            found[f"ILSVRC2012_val_{number:08d}"] = wnids[int(line)]
    return found


def _images_in(folder: Path, root: Path) -> list[str]:
    """The images of a folder as paths relative to the root; texts, for ImageNet has more than a million."""
    prefix = f"{folder.relative_to(root).as_posix()}/"
    return [prefix + name for name in os.listdir(folder) if name.lower().endswith(SUFFIXES) and name[0] != "."]
