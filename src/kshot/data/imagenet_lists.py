"""The class lists of Link-Context Learning (arXiv 2308.07891): ``train900_pairs.jsonl`` and ``test100_pairs.jsonl``.

ImageNet's 1,000 classes are split into 900 to learn from, each with 36 images and 36 similar classes, and 100 held-out ones in 50
pairs. The published test list is lost, its classes and pairing are not (``assets/imagenet100.tsv``): :func:`build_test100` draws the
images anew from an ImageNet folder. Image paths are relative to that folder.
"""

from __future__ import annotations

import csv
import json
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from typing import Any

from kshot.data.derived import generator
from kshot.data.imagenet_folder import find_images, image_base
from kshot.data.readers import PathLike, check_unique, describe_kind, get, get_texts, read_json_lines
from kshot.errors import DataError, listed
from kshot.metrics.common import fold
from kshot.whole_file import write_text


@dataclass(frozen=True)
class HeldOutClass:
    """A row of ``test100_pairs.jsonl``: a class, its images for demonstrations, and its test images. Rows 2k and 2k+1 are a pair."""

    class_id: str
    class_name: str
    context_samples: tuple[str, ...]
    test_samples: tuple[str, ...]


@dataclass(frozen=True)
class Neighbor:
    """A similar class and one of its images."""

    class_id: str
    class_name: str
    sample: str


@dataclass(frozen=True)
class TrainClass:
    """A row of ``train900_pairs.jsonl``: a class, some of its images, and its neighbours from the nearest to the farthest."""

    class_id: str
    class_name: str
    samples: tuple[str, ...]
    neighbors: tuple[Neighbor, ...]


@dataclass(frozen=True)
class TrainClasses:
    """The classes of ``train900_pairs.jsonl``.

    Attributes:
        classes: in the order of the file.
        duplicate_names: names that several classes bear (in the published file "crane", a bird and a machine, and "maillot"), case
            folded, with the classes' ids. Such classes must not meet in one episode.
        lines: the line of each class, for messages.
    """

    classes: tuple[TrainClass, ...]
    duplicate_names: dict[str, tuple[str, ...]]
    lines: tuple[int, ...] = ()

    def by_id(self) -> dict[str, TrainClass]:
        """The classes by their id."""
        return {row.class_id: row for row in self.classes}


def held_out_classes() -> list[tuple[str, str, str]]:
    """``(class id, wnid, lower-case name)`` of the 100 held-out classes; rows 2k and 2k+1 are a pair."""
    text = (files("kshot") / "assets" / "imagenet100.tsv").read_text(encoding="utf-8")
    rows = csv.DictReader(text.splitlines(), delimiter="\t")
    return [(row["class_id"], row["wnid"], row["class_name_lower"]) for row in rows]


def build_test100(
    root: PathLike, *, seed: int = 0, context: int = 32, val_labels: PathLike | None = None
) -> tuple[HeldOutClass, ...]:
    """Draw the test list anew: per class ``context`` images for demonstrations, all others for tests, in random order.

    Training and validation images are pooled, as in the published list, and paths are written as there, relative to the folder that
    holds ``train`` (of an ILSVRC folder, ``Data/CLS-LOC``). The images of a class depend on the seed and on the files of
    that class only.

    Args:
        root: the ImageNet folder, see :func:`~kshot.data.imagenet_folder.find_images`.
        seed: of the order of the images.
        context: images for demonstrations; 32 in the published list.
        val_labels: ground-truth file of the validation images, if it is not found by itself.

    Raises:
        DataError: no ImageNet folder, class folders missing, or classes of ``context`` images or fewer.
    """
    base, classes = image_base(root), held_out_classes()
    return draw_test100(
        find_images(base, {wnid: int(class_id) for class_id, wnid, _ in classes}, val_labels),
        seed=seed,
        context=context,
        source=root,
    )


def draw_test100(
    images: Mapping[str, Sequence[str]],
    *,
    seed: int = 0,
    context: int = 32,
    named: Mapping[str, tuple[str, str]] | None = None,
    source: PathLike = "",
) -> tuple[HeldOutClass, ...]:
    """As :func:`build_test100`, of images that have been found.

    Args:
        images: image paths by wnid. Pairs of which a class is missing are left out.
        named: class id and name by wnid, where they are not those of :func:`held_out_classes`.
        source: where the images were found, for messages.
    """
    classes = held_out_classes()
    pairs = [classes[k : k + 2] for k in range(0, len(classes), 2)]
    present = [one for pair in pairs if all(wnid in images for _, wnid, _ in pair) for one in pair]
    poor = [f"{wnid} ({name}): {len(images[wnid])}" for _, wnid, name in present if len(images[wnid]) <= context]
    if poor:
        problem = f"classes with {context} images or fewer: {listed(poor)}"
        raise DataError(problem, file=source, remedy="lower context")
    rows = []
    for class_id, wnid, name in present:
        paths = images[wnid]
        order = [paths[i] for i in generator(seed, "test100", wnid).permutation(len(paths))]
        class_id, name = (named or {}).get(wnid, (class_id, name))
        rows.append(HeldOutClass(class_id, name, tuple(order[:context]), tuple(order[context:])))
    return tuple(rows)


def write_test100(classes: Sequence[HeldOutClass], file: PathLike) -> None:
    """Write a test list in the published format."""
    write_text(file, "".join(json.dumps(asdict(row)) + "\n" for row in classes))


def read_test100(file: PathLike) -> tuple[HeldOutClass, ...]:
    """Read a test list.

    Raises:
        DataError: missing, malformed, an odd number of classes, a class twice, a pair of two equal names, or an image that is both a
            context and a test image.
    """
    rows: list[HeldOutClass] = []
    lines: list[int] = []
    for line, record in read_json_lines(file):
        context = tuple(get_texts(record, "context_samples", file, line))
        test = tuple(get_texts(record, "test_samples", file, line))
        if both := sorted(set(context) & set(test)):
            raise DataError(f"context images among the test images: {listed(both)}", file=file, line=line)
        class_id, class_name = get(record, "class_id", str, file, line), get(record, "class_name", str, file, line)
        rows.append(HeldOutClass(class_id, class_name, context, test))
        lines.append(line)
    if not rows or len(rows) % 2:
        raise DataError(f"{len(rows)} classes cannot be paired: rows 1 and 2, 3 and 4 ... are pairs", file=file)
    check_unique([row.class_id for row in rows], file, "class_id", lines)
    for k in range(0, len(rows), 2):
        if fold(rows[k].class_name) == fold(rows[k + 1].class_name):
            raise DataError(f"a pair of two equal names, {rows[k].class_name!r}", file=file, line=lines[k + 1])
    return tuple(rows)


def read_train900(file: PathLike, *, warn: bool = True) -> TrainClasses:
    """Read the training classes; warns about names that several classes bear, unless told not to.

    Raises:
        DataError: missing, malformed, a class twice, or a neighbour that is the class itself, is named twice, or is no class of
            the file.
    """
    rows: list[TrainClass] = []
    lines: list[int] = []
    for line, record in read_json_lines(file):
        neighbors = tuple(_neighbor(item, file, line) for item in get(record, "neighbors", list, file, line))
        samples = tuple(get_texts(record, "samples", file, line))
        if not samples:
            raise DataError("a class without images", file=file, line=line, field="samples")
        class_id, class_name = get(record, "class_id", str, file, line), get(record, "class_name", str, file, line)
        rows.append(TrainClass(class_id, class_name, samples, neighbors))
        lines.append(line)
    if not rows:
        raise DataError("no classes", file=file)
    check_unique([row.class_id for row in rows], file, "class_id", lines)
    known = {row.class_id for row in rows}
    for line, row in zip(lines, rows, strict=True):
        ids = [n.class_id for n in row.neighbors]
        strange = [i for number, i in enumerate(ids) if i not in known or i == row.class_id or i in ids[:number]]
        if strange:
            problem = f"neighbours must be other classes of the file, each named once: {listed(strange)}"
            raise DataError(problem, file=file, line=line, field="neighbors")
    named: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        named[fold(row.class_name)].append(row.class_id)
    twice = {name: tuple(ids) for name, ids in named.items() if len(ids) > 1}
    if twice and warn:
        shown = listed([f"{name!r} ({', '.join(ids)})" for name, ids in twice.items()])
        warnings.warn(f"{file}: names that several classes bear: {shown}", stacklevel=2)
    return TrainClasses(tuple(rows), twice, tuple(lines))


def _neighbor(item: Any, file: PathLike, line: int) -> Neighbor:
    if not isinstance(item, list) or len(item) != 3 or not all(isinstance(part, str) for part in item):
        problem = (
            f"a neighbour is [class id, class name, image], three texts, not {describe_kind(item)} {str(item)[:40]}"
        )
        raise DataError(problem, file=file, line=line, field="neighbors")
    return Neighbor(*item)
