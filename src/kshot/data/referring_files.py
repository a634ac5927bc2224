"""Referring expressions in the forms in which they are published: phrases, each with the box of what it refers to.

- The JSON Lines of Shikra and Link-Context Learning (``REC_refcoco_unc_val.jsonl`` ..., ``GC_genome196_train.jsonl`` of Visual
  Genome's phrases): ``{"img_path", "expression", "bbox": [x0, y0, x1, y1]}`` in pixels, often with ``height``, ``width``,
  ``dataset_name``.
- The release (REFER, github.com/lichengunc/refer): ``instances.json`` and ``refs(unc).p``. The latter is a pickle, which can
  run any code when it is read, so kshot does not read it: write it as JSON once (:data:`PICKLE_REMEDY`) and give
  ``refs(unc).json``.
- Rows of the Hugging Face data sets, exported as JSON Lines or a JSON list: ``jxu124/refcoco`` (``image_path``, ``sentences`` or
  ``captions``, ``bbox`` with two corners) and ``lmms-lab/RefCOCO`` (``file_name``, ``answer`` as a list of phrases, ``bbox``
  with corner and size).
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from kshot.data.box_task import Item
from kshot.data.boxes import Box, Point, Size, as_size, box_of_corner_and_size, read_box
from kshot.data.readers import check_unique, get, get_texts, index_by, read_json
from kshot.data.splits import Record, read_records, record_id
from kshot.errors import DataError

PICKLE_REMEDY = (
    "write it as JSON once, if you trust where it comes from: "
    "python -c \"import json, pickle; json.dump(pickle.load(open('refs(unc).p', 'rb')), open('refs(unc).json', 'w'))\""
)
_PICKLES = (".p", ".pkl", ".pickle")
_WITH_ANNOTATION = re.compile(
    r"(COCO_\w+_\d{12})_\d+(\.\w+)$"
)  # COCO_train2014_000000581857_16.jpg: image and annotation


@dataclass(frozen=True)
class Phrase(Item):
    """A phrase and the box, in pixels, of what it refers to; ``dataset`` where the file names one."""

    expression: str
    box: Box
    dataset: str | None = None

    def places(self) -> Iterable[tuple[Box | Point, str]]:
        return ((self.box, "bbox"),)


def read_phrases(file: Path, split: str, instances: Path | None = None) -> list[Phrase]:
    """The phrases of a file in one of the forms above.

    Args:
        file: the file.
        split: split to take of a release file, which holds all of them; other files hold one split.
        instances: ``instances.json`` of the release. Default: the one beside the file.

    Raises:
        DataError: see :mod:`kshot.data.readers`; also a pickle, a record of unknown form, a box whose corners are the wrong
            way round, boxes that are not in pixels, an id that occurs twice, or a split that is not in the file.
    """
    refuse_pickle(file)
    records = read_records(file)
    if not records:
        raise DataError("the file holds no phrases", file=file)
    first = records[0][1]
    if "expression" in first:
        shown = tqdm(records, desc=f"reading phrases of {file.name}", disable=None, leave=False)
        phrases = [_line(record, file, number) for number, record in shown]
    elif "sentences" in first and "bbox" not in first:
        phrases = _release(records, file, split, instances or file.with_name("instances.json"))
    elif "bbox" in first and ("sentences" in first or "captions" in first):
        phrases = [phrase for number, record in records for phrase in _corners(record, file, number)]
    elif "bbox" in first and "answer" in first:
        phrases = [phrase for number, record in records for phrase in _corner_and_size(record, file, number)]
    else:
        raise DataError(
            f"unknown form of referring expressions; the first record has: {', '.join(first) or 'nothing'}",
            file=file,
            line=records[0][0],
            remedy="wanted: img_path, expression and bbox",
        )
    check_unique([phrase.id for phrase in phrases], file, lines=[phrase.line for phrase in phrases])
    if all(max(phrase.box) <= 1 for phrase in phrases):
        raise DataError(
            "no coordinate of any box is above 1: they seem to be fractions of the picture's sides",
            file=file,
            field="bbox",
            remedy="multiply them by width and height: pixels are expected",
        )
    return phrases


def refuse_pickle(file: Path) -> None:
    """Raises a :class:`DataError` that says what to do if a file is a pickle."""
    if file.suffix in _PICKLES:
        raise DataError("this is a pickle, which can run code when it is read", file=file, remedy=PICKLE_REMEDY)


def _line(record: dict[str, Any], file: Path, number: int) -> Phrase:
    return Phrase(
        record_id(record, ("id",), file, number),
        get(record, "img_path", str, file, number),
        number,
        _phrase(get(record, "expression", str, file, number), "expression", file, number),
        read_box(record, "bbox", file, number),
        get(record, "dataset_name", str, file, number) if "dataset_name" in record else None,
        size=_size(record, file, number),
    )


def _release(records: Sequence[Record], file: Path, split: str, instances: Path) -> list[Phrase]:
    data = read_json(instances, remedy="the release has instances.json beside refs(...).p; or give instances=")
    images = index_by(get(data, "images", list, instances), "id", instances)
    annotations = index_by(get(data, "annotations", list, instances), "id", instances)
    kept = [(n, record) for n, record in records if get(record, "split", str, file, n) == split]
    if not kept:
        there = sorted({str(record["split"]) for _, record in records})
        raise DataError(f"no expressions of the split {split!r}", file=file, remedy=f"there are: {', '.join(there)}")
    phrases = []
    for number, record in kept:
        annotation = _looked_up(annotations, record, "ann_id", file, number, instances)
        image = _looked_up(images, record, "image_id", file, number, instances)
        box = box_of_corner_and_size(annotation.get("bbox"), "bbox", instances, None)
        name = get(image, "file_name", str, instances)
        size = _size(image, instances, None)
        base = record_id(record, ("ref_id",), file, number)
        for order, text in enumerate(_sentences(record, file, number)):
            phrases.append(Phrase(f"{base}:{order}", name, number, text, box, size=size))
    return phrases


def _corners(record: dict[str, Any], file: Path, number: int) -> list[Phrase]:
    base = record_id(record, ("ref_id", "id"), file, number)
    name = get(record, "image_path" if "image_path" in record else "file_name", str, file, number)
    texts = _sentences(record, file, number) if "sentences" in record else _captions(record, "captions", file, number)
    size = _size(_embedded(record.get("raw_image_info")), file, number) or _size(record, file, number)
    box = read_box(record, "bbox", file, number)
    return [
        Phrase(f"{base}:{order}", _of_image(name), number, text, box, size=size) for order, text in enumerate(texts)
    ]


def _corner_and_size(record: dict[str, Any], file: Path, number: int) -> list[Phrase]:
    base = record_id(record, ("question_id", "id"), file, number)
    name = _of_image(get(record, "file_name", str, file, number))
    box = box_of_corner_and_size(record.get("bbox"), "bbox", file, number)
    texts = _captions(record, "answer", file, number)
    return [Phrase(f"{base}:{order}", name, number, text, box) for order, text in enumerate(texts)]


def _sentences(record: dict[str, Any], file: Path, number: int) -> list[str]:
    sentences = get(record, "sentences", list, file, number)
    if not sentences:
        raise DataError("there are no sentences", file=file, line=number, field="sentences")
    return [_phrase(get(s, "sent", str, file, number), "sentences", file, number) for s in sentences]


def _captions(record: dict[str, Any], field: str, file: Path, number: int) -> list[str]:
    texts = [record[field]] if isinstance(record.get(field), str) else get_texts(record, field, file, number)
    if not texts:
        raise DataError("there are no phrases", file=file, line=number, field=field)
    return [_phrase(text, field, file, number) for text in texts]


def _phrase(text: str, field: str, file: Path, number: int) -> str:
    text = " ".join(text.split())
    if not text:
        raise DataError("the phrase is empty", file=file, line=number, field=field)
    return text


def _size(record: dict[str, Any], file: Path, number: int | None) -> Size | None:
    if "width" not in record or "height" not in record:
        return None
    width, height = get(record, "width", int, file, number), get(record, "height", int, file, number)
    return as_size(width, height, file, number)


def _embedded(value: Any) -> dict[str, Any]:
    """An object that a data set holds as text, in JSON or as Python writes it; empty if it is neither."""
    for parse in (json.loads, ast.literal_eval):
        if isinstance(value, str):
            try:
                value = parse(value)
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue
    return value if isinstance(value, dict) else {}


def _of_image(name: str) -> str:
    return _WITH_ANNOTATION.sub(r"\1\2", name)


def _looked_up(
    index: dict[Any, Any], record: dict[str, Any], field: str, file: Path, number: int, instances: Path
) -> dict[str, Any]:
    key = get(record, field, (int, str), file, number)
    if key not in index:
        raise DataError(f"{key} is not in {instances.name}", file=file, line=number, field=field)
    found: dict[str, Any] = index[key]
    return found
