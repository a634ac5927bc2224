"""Grounded captions in the two forms in which they are published.

- The release of Flickr30k Entities (Plummer et al., arXiv 1505.04870): ``Sentences/<image>.txt``, whose lines mark phrases as
  ``[/EN#283585/people A little girl]``, and ``Annotations/<image>.xml`` with the boxes of each ``EN#`` number; lists of images
  ``train.txt``, ``val.txt``, ``test.txt``.
- The JSON Lines of Shikra and Link-Context Learning (``CWB_flickr30k_train.jsonl`` ...), one caption a line: ``{"image_id",
  "sentence", "boxes", "boxes_seq"}``, phrases between ``<ph_st>`` and ``<ph_ed>``, and for each phrase the places of its boxes
  in ``boxes``.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from kshot.data.box_task import Item
from kshot.data.boxes import Box, Point, Size, as_box, as_size
from kshot.data.readers import check_unique, get, read_text
from kshot.data.splits import read_records
from kshot.errors import DataError

START, END = "<ph_st>", "<ph_ed>"
_ENTITY = re.compile(r"\[/EN#([^/\s]+)(/\S*)?$")


@dataclass(frozen=True)
class Caption:
    """A caption in pieces: each a text and the boxes, in pixels, that stand behind it (none for text between phrases)."""

    pieces: tuple[tuple[str, tuple[Box, ...]], ...]

    @property
    def text(self) -> str:
        """The caption without boxes."""
        return "".join(text for text, _ in self.pieces)


@dataclass(frozen=True)
class Captioned(Item):
    """A picture and all its grounded captions."""

    captions: tuple[Caption, ...]

    def places(self) -> Iterable[tuple[Box | Point, str]]:
        return ((box, "boxes") for caption in self.captions for _, boxes in caption.pieces for box in boxes)


@dataclass(frozen=True)
class Annotation:
    """What an XML file says: the picture's size, and the boxes of each entity, in pixels counted from 0."""

    size: Size
    boxes: Mapping[str, tuple[Box, ...]]


def read_release(root: Path, listed: Path) -> list[Captioned]:
    """The captions of all images of a list, from ``Sentences/`` and ``Annotations/`` under ``root``.

    Raises:
        DataError: see :mod:`kshot.data.readers`; also an image that is listed twice, a phrase that does not end, malformed XML.
    """
    names = read_text(listed).split()
    if not names:
        raise DataError("the list of images is empty", file=listed)
    check_unique(names, listed, "image")
    images = []
    for line, name in enumerate(tqdm(names, desc=f"reading captions of {listed.name}", disable=None, leave=False), 1):
        annotation = read_annotation(root / "Annotations" / f"{name}.xml")
        captions = read_sentences(root / "Sentences" / f"{name}.txt", annotation.boxes)
        images.append(Captioned(name, f"{name}.jpg", line, captions, size=annotation.size))
    return images


def read_sentences(file: Path, boxes: Mapping[str, Sequence[Box]]) -> tuple[Caption, ...]:
    """The captions of a ``Sentences`` file; phrases whose entity has no box (whole scenes, things not visible) are plain text."""
    captions = []
    for number, line in enumerate(read_text(file).split("\n"), start=1):
        if not line.strip():
            continue
        pieces: list[tuple[str, tuple[Box, ...]]] = []
        words: list[str] = []  # since the last phrase with boxes, or of the phrase that is open
        entity = None
        for token in line.split():
            opened = _ENTITY.match(token)
            if opened and entity is None:
                pieces, words, entity = [*pieces, (" ".join(words), ())], [], opened[1]
            elif entity is not None and token.endswith("]"):
                words.append(token[:-1])
                pieces, words, entity = [*pieces, (" ".join(words), tuple(boxes.get(entity, ())))], [], None
            else:
                words.append(token)
        if entity is not None:
            raise DataError(f"the phrase of EN#{entity} does not end: ']' is missing", file=file, line=number)
        captions.append(_joined([*pieces, (" ".join(words), ())]))
    if not captions:
        raise DataError("there are no sentences", file=file)
    return tuple(captions)


def read_annotation(file: Path) -> Annotation:
    """The boxes of an ``Annotations`` file. Its pixels count from 1, as in PASCAL VOC; here they count from 0.

    Raises:
        DataError: malformed XML, or an element that is missing, no number, or a box whose corners are the wrong way round.
    """
    try:
        root = ElementTree.fromstring(read_text(file))
    except ElementTree.ParseError as error:
        line = error.position[0]
        raise DataError(f"malformed XML: {error}", file=file, line=line, remedy="get the file again") from None
    size = as_size(_number(root, "size/width", file), _number(root, "size/height", file), file, None)
    boxes: dict[str, list[Box]] = {}
    for element in root.findall("object"):
        names = [name.text.strip() for name in element.findall("name") if name.text and name.text.strip()]
        if not names:
            raise DataError("an object without a name", file=file, field="name")
        if element.find("bndbox") is None:
            continue  # not in the picture (nobndbox), or all of it (scene)
        corners = [_number(element, f"bndbox/{corner}", file) - 1 for corner in ("xmin", "ymin", "xmax", "ymax")]
        box = as_box(corners, f"bndbox of {names[0]}", file, None)
        for name in names:  # one box may belong to several entities
            boxes.setdefault(name, []).append(box)
    return Annotation(size, {name: tuple(found) for name, found in boxes.items()})


def read_caption_lines(file: Path) -> list[Captioned]:
    """The captions of a JSON Lines file, those of one image together.

    Raises:
        DataError: see :mod:`kshot.data.readers`; also marks that do not pair, phrases without an entry in ``boxes_seq``, a
            place that is not in ``boxes``, or an id that occurs twice.
    """
    records = read_records(file)
    if all("id" in record for _, record in records):
        ids = [str(get(record, "id", (int, str), file, line)) for line, record in records]
        check_unique(ids, file, lines=[line for line, _ in records])
    captions: dict[str, list[Caption]] = {}
    lines: dict[str, int] = {}
    for line, record in records:
        image = str(get(record, "image_id", (str, int), file, line))
        lines.setdefault(image, line)
        captions.setdefault(image, []).append(_caption(record, file, line))
    return [Captioned(image, f"{image}.jpg", lines[image], tuple(found)) for image, found in captions.items()]


def _caption(record: dict[str, Any], file: Path, line: int) -> Caption:
    sentence = get(record, "sentence", str, file, line)
    listed = get(record, "boxes", list, file, line)
    boxes = [as_box(box, "boxes", file, line) for box in listed]
    groups = get(record, "boxes_seq", list, file, line)
    for group in groups:
        if not isinstance(group, list) or any(type(n) is not int or not 0 <= n < len(boxes) for n in group):
            raise DataError(
                f"{group!r} is no list of places in 'boxes' (0 to {len(boxes) - 1})",
                file=file,
                line=line,
                field="boxes_seq",
            )
    parts = re.split(f"({START}|{END})", sentence)
    marks = parts[1::2]
    if marks != [START, END] * (len(marks) // 2):
        raise DataError(f"{START} and {END} do not alternate", file=file, line=line, field="sentence")
    if len(marks) // 2 != len(groups):
        problem = f"{len(groups)} groups of boxes for {len(marks) // 2} phrases"
        raise DataError(problem, file=file, line=line, field="boxes_seq")
    texts, after = parts[::2], iter(groups)
    pieces = [
        (text, tuple(boxes[n] for n in next(after)) if order < len(marks) and marks[order] == END else ())
        for order, text in enumerate(texts)
    ]
    return Caption(tuple((text, found) for text, found in pieces if text))


def _joined(pieces: Sequence[tuple[str, tuple[Box, ...]]]) -> Caption:
    """Pieces of words as pieces of one text, with spaces between them."""
    kept = [(text, boxes) for text, boxes in pieces if text]
    spaced = [(text if n == 0 else f" {text}", boxes) for n, (text, boxes) in enumerate(kept)]
    return Caption(tuple(spaced))


def _number(element: ElementTree.Element, path: str, file: Path) -> int:
    text = (element.findtext(path) or "").strip()
    try:
        return int(text)
    except ValueError:
        problem = "element is missing" if not text else f"a whole number is expected, not {text!r}"
        raise DataError(problem, file=file, field=path) from None
