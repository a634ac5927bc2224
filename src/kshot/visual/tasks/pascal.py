"""Foreground segmentation on Pascal-5i and detection by painting on Pascal VOC 2012, as visual prompting evaluates them."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from kshot.data.readers import PathLike, shuffled
from kshot.data.sources import ImageRoot, LazyExamples
from kshot.data.task import tasks
from kshot.episode import Example
from kshot.errors import BadImage, DataError, OptionError
from kshot.picture import DrawnPicture, Picture
from kshot.visual.tasks.common import PictureTask, drawn_order, of_class

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog", "horse", "motorbike",
    "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
"""The classes of Pascal VOC; number 1 is the first."""


@tasks.register("pascal_5i")
class Pascal5i(PictureTask):
    """Where is what the demonstrations show? Answered by a mask, white on black (Pascal-5i, arXiv 1709.03410).

    The episodes are those of visual prompting's benchmark (arXiv 2209.00647): query i is line ``i % lines`` of the fold's list, and
    the support set of a query are the other pictures of its class in that list. Pixels marked "void" (255) are background.

    Args:
        root: folder ``VOC2012`` with ``JPEGImages`` and ``SegmentationClassAug`` (one number a pixel).
        splits: the lists, a folder with ``fold0.txt`` ... ``fold3.txt`` whose lines are ``2007_000033__01``: name and class.
        fold: 0 to 3.
        episodes: number of queries.
        masks: folder of the label maps in ``root``.

    Raises:
        DataError: a file is missing, a line of another form.
    """

    name = "pascal_5i"
    metric = "segmentation_iou"

    def __init__(
        self,
        root: PathLike,
        splits: PathLike,
        fold: int = 0,
        *,
        episodes: int = 1000,
        masks: str = "SegmentationClassAug",
    ):
        if fold not in range(4):
            raise OptionError(f"task 'pascal_5i': fold={fold}: must be 0, 1, 2 or 3")
        if episodes < 1:
            raise OptionError("task 'pascal_5i': episodes must be at least 1")
        self._root, self._list, self._masks = Path(root), Path(splits) / f"fold{fold}.txt", masks
        self._episodes = episodes
        super().__init__(fold=fold, episodes=episodes, masks=masks)

    def _locate(self) -> dict[str, Path]:
        return {"list": self._list}

    def _read_queries(self) -> Sequence[Example]:
        images = ImageRoot(self._root)
        lines = [self._line(number, line) for number, line in _lines(self._list)]
        if not lines:
            raise DataError("the list is empty", file=self._list)
        self._classes = [CLASSES[number - 1] for _, number in lines]

        def make(number: int) -> Example:
            name, label = lines[number % len(lines)]
            repeated = number // len(lines)
            return Example(
                (images.picture(f"JPEGImages/{name}.jpg"),),
                answer=ClassMask(images.picture(f"{self._masks}/{name}.png"), label),
                id=f"{name}__{label:02d}" + (f"#{repeated}" if repeated else ""),
                metadata={"category": CLASSES[label - 1]},
            )

        self._all = LazyExamples(make, range(len(lines)))
        return LazyExamples(make, range(self._episodes))

    def _read_support(self) -> Sequence[Example]:
        return self._all

    def pool(self, query: Example) -> Sequence[Example]:
        """The other pictures of the query's class."""
        return of_class(self._all, self._classes, query)

    def _line(self, number: int, line: str) -> tuple[str, int]:
        name, _, label = line.rpartition("__")
        if not name or not label.isdigit() or not 1 <= int(label) <= len(CLASSES):
            raise DataError(
                f"{line!r} is not NAME__CLASS with a class from 1 to {len(CLASSES)}", file=self._list, line=number
            )
        return name, int(label)


@tasks.register("voc_detection")
class VocDetection(PictureTask):
    """Where are the things of the class that the demonstrations show? Answered by their boxes filled white on black.

    As in visual prompting's benchmark: queries are pictures of the validation set, demonstrations of the training set, and of each
    picture one of its classes is meant, with all its boxes.

    Args:
        root: folder ``VOC2012`` with ``JPEGImages``, ``Annotations`` (XML) and ``ImageSets/Main/{train,val}.txt``.
        episodes: number of queries, a sample of the validation set.
        seed: of the sample, and of the class meant in a picture.

    Raises:
        DataError: a file is missing or cannot be read.
    """

    name = "voc_detection"
    metric = "detection_iou"

    def __init__(self, root: PathLike, *, episodes: int = 1000, seed: int = 0):
        if episodes < 1:
            raise OptionError("task 'voc_detection': episodes must be at least 1")
        self._root, self._episodes, self._seed = Path(root), episodes, seed
        super().__init__(episodes=episodes, seed=seed)

    def _locate(self) -> dict[str, Path]:
        lists = self._root / "ImageSets" / "Main"
        return {"train": lists / "train.txt", "val": lists / "val.txt"}

    def _read_queries(self) -> Sequence[Example]:
        examples, classes = self._examples("val")
        order = drawn_order(len(classes), self.name, self._seed)[: self._episodes]
        return examples.at(sorted(order))

    def _read_support(self) -> Sequence[Example]:
        found, self._support_classes = self._examples("train")
        return found

    def pool(self, query: Example) -> Sequence[Example]:
        """The training pictures of the query's class."""
        support = self.support
        assert isinstance(support, LazyExamples)
        return of_class(support, self._support_classes, query)

    def _examples(self, part: str) -> tuple[LazyExamples, list[str]]:
        images = ImageRoot(self._root)
        items: list[tuple[str, str, tuple[int, int], list[tuple[int, int, int, int]]]] = []
        for _, line in _lines(self._files[part]):
            name = line.split()[0]
            size, boxes = read_boxes(self._root / "Annotations" / f"{name}.xml")
            if not boxes:
                self.skipped["pictures without objects"] = self.skipped.get("pictures without objects", 0) + 1
                continue
            meant = shuffled(sorted(boxes), self.name, self._seed, name)[0]
            items.append((name, meant, size, boxes[meant]))
        if not items:
            raise DataError("no picture with objects in the list", file=self._files[part])

        def make(number: int) -> Example:
            name, label, size, boxes = items[number]
            return Example(
                (images.picture(f"JPEGImages/{name}.jpg"),),
                answer=DrawnPicture(lambda: paint_boxes(size, boxes), f"boxes of {label} in {name}"),
                id=f"{name}__{label}",
                metadata={"category": label},
            )

        return LazyExamples(make, range(len(items))), [label for _, label, _, _ in items]


class ClassMask(Picture):
    """One class of a label map, white on black.

    Args:
        labels: the label map, a picture with one number a pixel ("L" or palette).
        label: the class.
    """

    def __init__(self, labels: Picture, label: int):
        self.labels, self.label = labels, label
        self.name = f"{labels.name} (class {label})"

    def load(self) -> Image.Image:
        """Raises BadImage: the file cannot be read, or has more than one number a pixel."""
        numbers = label_map(self.labels)
        return Image.fromarray(np.where(numbers == self.label, 255, 0).astype(np.uint8)).convert("RGB")

    @property
    def digest(self) -> str:
        return f"{self.labels.digest}-class{self.label}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ClassMask) and (self.labels, self.label) == (other.labels, other.label)

    def __hash__(self) -> int:
        return hash((self.labels, self.label))


def label_map(picture: Picture) -> np.ndarray:
    """The numbers of a label map, (height, width); of a palette picture its indices, not its colours.

    Raises:
        BadImage: the file cannot be read, or has more than one number a pixel.
    """
    import io

    data = picture.read()
    picture.load()  # says what is wrong with the file, in words
    with Image.open(io.BytesIO(data)) as image:
        if image.mode not in ("L", "P", "I", "I;16", "1"):
            raise BadImage(f"a label map has one number a pixel, this picture is {image.mode}", file=picture.name)
        return np.asarray(image).astype(np.int64)


def read_boxes(path: Path) -> tuple[tuple[int, int], dict[str, list[tuple[int, int, int, int]]]]:
    """Size (width, height) of the picture and boxes by class, from VOC's XML, in pixels counted from 0, right and bottom outside.

    Raises:
        DataError: the file is missing, no XML, or lacks a field.
    """
    try:
        tree = ElementTree.parse(path).getroot()
        size = (int(_text(tree, "size/width")), int(_text(tree, "size/height")))
        boxes: dict[str, list[tuple[int, int, int, int]]] = {}
        for found in tree.iter("object"):
            # VOC counts pixels from 1 and both ends belong to the box; some files hold fractions.
            left, top, right, bottom = (
                round(float(_text(found, f"bndbox/{e}"))) for e in ("xmin", "ymin", "xmax", "ymax")
            )
            boxes.setdefault(_text(found, "name").strip(), []).append(
                (max(left - 1, 0), max(top - 1, 0), right, bottom)
            )
    except FileNotFoundError:
        raise DataError("annotation not found", file=path) from None
    except (ElementTree.ParseError, ValueError) as error:
        raise DataError(f"not an annotation of VOC ({error})", file=path) from None
    return size, boxes


def paint_boxes(size: tuple[int, int], boxes: Sequence[tuple[int, int, int, int]]) -> Image.Image:
    """Boxes filled white on black."""
    image = Image.new("RGB", size)
    for box in boxes:
        image.paste((255, 255, 255), box)
    return image


def _text(node: ElementTree.Element, path: str) -> str:
    found = node.findtext(path)
    if found is None:
        raise ValueError(f"no field {path}")
    return found


def _lines(path: Path) -> list[tuple[int, str]]:
    """Numbered lines that are not empty."""
    text = path.read_text(encoding="utf-8")
    return [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
