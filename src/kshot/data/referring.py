"""Referring expressions: find what a phrase means (``rec``), or name what is in a box (``reg``).

RefCOCO, RefCOCO+ and RefCOCOg on COCO images, phrases of Visual Genome's regions. Forms of the files:
:mod:`kshot.data.referring_files`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kshot.data.box_task import BoxTask, Item, Kind, Pictures
from kshot.data.boxes import Box, Point, from_square
from kshot.data.readers import PathLike
from kshot.data.referring_files import Phrase, read_phrases, refuse_pickle
from kshot.data.splits import CHAT, CHAT_STOP, Style, parse_stated
from kshot.data.task import tasks
from kshot.episode import Example
from kshot.errors import DataError, one_of
from kshot.metrics.boxes import first_box
from kshot.prompt import Template
from kshot.whole_file import write_text

DATASETS = {"refcoco": "unc", "refcoco+": "unc", "refcocog": "umd", "vg": ""}
"""The data sets, and whose splits the published files hold."""


class _Referring(BoxTask[Kind]):
    """What ``rec`` and ``reg`` share: where the files are.

    Args:
        root: folder of the annotation files and of COCO's ``train2014`` (Visual Genome: of ``VG_100K`` and ``VG_100K_2``).
        dataset: ``refcoco``, ``refcoco+``, ``refcocog`` or ``vg``: decides the names of the files under ``root``.
        split: ``val``, ``testA``, ``testB`` (RefCOCO, RefCOCO+), ``test`` (RefCOCOg) or ``train``.
        instances: ``instances.json``, if the queries are a release file that has none beside it.
    """

    splits = ("val", "testA", "testB", "test", "train")
    image_folders = ("train2014", "train2014.zip", "images/train2014", "images")
    source = "https://github.com/shikras/shikra/blob/main/docs/data.md or https://github.com/lichengunc/refer"

    def __init__(self, root: PathLike | None, dataset: str, instances: PathLike | None, *rest: Any, **options: Any):
        self._dataset = one_of("dataset", dataset, tuple(DATASETS))
        self._instances = Path(instances) if instances is not None else None
        super().__init__(root, *rest, dataset=dataset, **options)

    def names(self, split: str) -> Sequence[str]:
        if self._dataset == "vg":
            return [f"GC_genome196_{split}.jsonl"]
        by = DATASETS[self._dataset]
        lines = "REC_ref3_train.jsonl" if split == "train" else f"REC_{self._dataset}_{by}_{split}.jsonl"
        return [lines, f"{self._dataset}/refs({by}).json", f"refs({by}).json"]

    def find(self, names: Sequence[str]) -> Path:
        try:
            return super().find(names)
        except DataError:
            for folder in self.folders if self._root is not None else ():
                for name in names:
                    pickled = Path(self._root or ".", folder, name).with_suffix(".p")
                    if pickled.exists():
                        refuse_pickle(pickled)
            raise

    def holds_all_splits(self, file: Path) -> bool:
        return file.name.startswith("refs") or self._instances is not None

    def more_files(self, role: str) -> dict[str, Path]:
        beside = [p.with_name("instances.json") for p in self._parts[role] if p.name.startswith("refs")]
        found = self._instances or next((p for p in beside if p.exists()), None)
        return {"instances": found} if found is not None else {}

    def phrases(self, file: Path, role: str) -> list[Phrase]:
        """The phrases of a file."""
        refuse_pickle(file)
        return read_phrases(file, self.split_of(role), self._instances)


@tasks.register("rec")
class REC(_Referring[Phrase]):
    """Referring expression comprehension: the box of what a phrase means.

    Args:
        style: ``"plain"`` (``[x0,y0,x1,y1]``) or ``"upstream"`` (``Answer: [x0,y0,x1,y1] .``).
        root, dataset, split, instances: see :class:`_Referring`.
        questions, images, support_questions, support_images, square, template, check_images: see :class:`BoxTask`.
    """

    name = "rec"
    metric = "rec_accuracy"
    plain = Template(
        demonstration="<image>Where is {question}? Box:{answer}",
        user="<image>Where is {question}?",
        short_instruction="Answer with a box [x0,y0,x1,y1]: left, top, right and bottom as fractions of the picture's side.",
    )
    upstream = Template(
        demonstration="USER: <image> Where is {question}? Answer with a box [x0,y0,x1,y1]. ASSISTANT: {answer}",
        instruction=CHAT.instruction,
        separator=CHAT.separator,
        user="<image>Where is {question}? Answer with a box [x0,y0,x1,y1].",
    )
    max_new_tokens = 40  # a digit a token, with the frame

    def __init__(
        self,
        root: PathLike | None = None,
        *,
        dataset: str = "refcoco",
        split: str | None = None,
        questions: PathLike | Sequence[PathLike] | None = None,
        images: PathLike | None = None,
        support_questions: PathLike | Sequence[PathLike] | None = None,
        support_images: PathLike | None = None,
        instances: PathLike | None = None,
        square: bool = True,
        style: Style = "plain",
        template: Template | Mapping[str, Any] | None = None,
        check_images: bool = False,
    ):
        self.stop = CHAT_STOP if style == "upstream" else ("\n",)
        super().__init__(
            root,
            dataset,
            instances,
            square,
            style,
            template,
            split=split,
            questions=questions,
            images=images,
            support_questions=support_questions,
            support_images=support_images,
            check_images=check_images,
        )

    def parse(self, text: str) -> str:
        return parse_stated(text, self.stop) if self._upstream else super().parse(text)

    def write_results(self, predictions: Mapping[str, str], path: PathLike) -> None:
        """Write predictions (by query id) as JSON Lines ``{"id", "img_path", "expression", "text", "bbox"}``.

        ``bbox`` is the predicted box in pixels of the original picture (``null`` where the text holds none).
        """
        by_id = {query.id: query for query in self._queries}
        rows = []
        for key, text in predictions.items():
            if key not in by_id:
                raise DataError(f"prediction for a query that is not in this split: {key!r}")
            query, box = by_id[key], first_box(text)
            pixels = [round(v, 2) for v in from_square(box, tuple(query.metadata["size"]))] if box else None
            row = {"id": key, "img_path": query.metadata["image_id"], "expression": query.question}
            rows.append(json.dumps(row | {"text": text, "bbox": pixels}, ensure_ascii=False) + "\n")
        write_text(path, "".join(rows))

    def read_items(self, file: Path, role: str) -> list[Phrase]:
        return self.phrases(file, role)

    def example(self, item: Phrase, pictures: Pictures) -> Example:
        box = pictures.text(item, item.box)
        return Example(
            (pictures.picture(item.image),),
            item.expression,
            f"Answer: {box} ." if self._upstream else box,
            (box,),
            id=item.id,
            metadata=_metadata(item, item.dataset, pictures),
        )


@dataclass(frozen=True)
class Region(Item):
    """A box in pixels and all phrases for it."""

    box: Box
    expressions: tuple[str, ...]
    dataset: str | None = None

    def places(self) -> Iterable[tuple[Box | Point, str]]:
        return ((self.box, "bbox"),)


@tasks.register("reg")
class REG(_Referring[Region]):
    """Referring expression generation: a phrase for what is in a box. All phrases of one box are references of one query.

    Args:
        style: ``"plain"`` or ``"upstream"`` (a conversation).
        root, dataset, split, instances: see :class:`_Referring`.
        questions, images, support_questions, support_images, square, template, check_images: see :class:`BoxTask`.
    """

    name = "reg"
    metric = "cider"
    plain = Template(
        demonstration="<image>Box:{question} Phrase:{answer}",
        user="<image>Describe what is in the box {question}.",
        short_instruction="Answer with a short phrase that fits nothing else in the picture.",
    )
    upstream = Template(
        demonstration="USER: <image> Describe what is in the box {question}. ASSISTANT: {answer}",
        instruction=CHAT.instruction,
        separator=CHAT.separator,
        user="<image>Describe what is in the box {question}.",
    )
    max_new_tokens = 20

    def __init__(
        self,
        root: PathLike | None = None,
        *,
        dataset: str = "refcoco",
        split: str | None = None,
        questions: PathLike | Sequence[PathLike] | None = None,
        images: PathLike | None = None,
        support_questions: PathLike | Sequence[PathLike] | None = None,
        support_images: PathLike | None = None,
        instances: PathLike | None = None,
        square: bool = True,
        style: Style = "plain",
        template: Template | Mapping[str, Any] | None = None,
        check_images: bool = False,
    ):
        self.stop = CHAT_STOP if style == "upstream" else ("\n", "Box:")
        super().__init__(
            root,
            dataset,
            instances,
            square,
            style,
            template,
            split=split,
            questions=questions,
            images=images,
            support_questions=support_questions,
            support_images=support_images,
            check_images=check_images,
        )

    def read_items(self, file: Path, role: str) -> list[Region]:
        regions: dict[tuple[str, Box], Region] = {}
        for phrase in self.phrases(file, role):
            place = (phrase.image, phrase.box)
            if (held := regions.get(place)) is not None:
                regions[place] = replace(held, expressions=(*held.expressions, phrase.expression))
                continue
            regions[place] = Region(
                phrase.id, phrase.image, phrase.line, phrase.box, (phrase.expression,), phrase.dataset, size=phrase.size
            )
        return list(regions.values())

    def example(self, item: Region, pictures: Pictures) -> Example:
        return Example(
            (pictures.picture(item.image),),
            pictures.text(item, item.box),
            item.expressions[0],
            item.expressions,
            id=item.id,
            metadata=_metadata(item, item.dataset, pictures),
        )


def _metadata(item: Item, dataset: str | None, pictures: Pictures) -> dict[str, Any]:
    known = {"image_id": item.image, "size": pictures.size(item)}
    return known | ({"category": dataset} if dataset is not None else {})
