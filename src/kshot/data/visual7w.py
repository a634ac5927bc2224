"""Visual7W, pointing questions (Zhu et al., arXiv 1511.03416): which of four boxes answers the question.

Read from the JSON Lines of Shikra and Link-Context Learning, ``v7w_pointing_*.jsonl``: ``{"file_path", "question",
"candidates": [boxes], "answer": box, "point"}``, boxes ``[x0, y0, x1, y1]`` and the point ``[x, y]`` in pixels, the answer one
of the candidates. The question lists the candidates and says how to answer, as upstream: ``Which ...? Candidates: [...] [...]
[...] [...] answer in box format.``
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kshot.data.box_task import Item, Pictures
from kshot.data.boxes import Box, Point, as_box, read_box, read_point, text_of
from kshot.data.concepts import generator
from kshot.data.point_qa import PointTask, text_field
from kshot.data.readers import PathLike, get
from kshot.data.splits import Style, one_of, read_records, unique_ids
from kshot.data.task import tasks
from kshot.episode import Example
from kshot.errors import DataError
from kshot.prompt import Template

FORMATS = {"b": "box", "p": "point"}


@dataclass(frozen=True)
class PointingQuestion(Item):
    """A question, boxes that may answer it, the place of the right one among them, and a point in it, in pixels."""

    question: str
    candidates: tuple[Box, ...]
    right: int
    point: Point | None


@tasks.register("visual7w")
class Visual7W(PointTask[PointingQuestion]):
    """Visual7W, pointing questions: which of the boxes listed in the question answers it.

    Args:
        root: folder of ``v7w_pointing_<split>.jsonl`` and of the images.
        split: ``val``, ``test`` or ``train``.
        version: answer by a box (``b``) or by a point (``p``).
        shuffle: list the candidates in an order drawn for each question; otherwise as in the file.
        seed: of that order.
        style: ``"plain"``, or ``"upstream"`` (``The answer is [x0,y0,x1,y1] .``).
        questions, images, support_questions, support_images, square, template, check_images: see :class:`BoxTask`.
    """

    name = "visual7w"
    metric = "visual7w_accuracy"
    image_folders = ("images", "VG_100K")
    plain = Template(
        demonstration="<image>Question:{question} Answer:{answer}",
        user="<image>{question}",
        short_instruction="Answer with one of the candidates and nothing else.",
    )
    max_new_tokens = 40

    def __init__(
        self,
        root: PathLike | None = None,
        *,
        split: str | None = None,
        version: str = "b",
        shuffle: bool = True,
        seed: int = 0,
        questions: PathLike | Sequence[PathLike] | None = None,
        images: PathLike | None = None,
        support_questions: PathLike | Sequence[PathLike] | None = None,
        support_images: PathLike | None = None,
        square: bool = True,
        style: Style = "plain",
        template: Template | Mapping[str, Any] | None = None,
        check_images: bool = False,
    ):
        self._version, self._shuffle, self._seed = one_of("version", version, ("b", "p")), shuffle, seed
        super().__init__(
            root,
            square,
            style,
            template,
            seed=seed if shuffle else None,
            version=version,
            shuffle=None if shuffle else False,
            split=split,
            questions=questions,
            images=images,
            support_questions=support_questions,
            support_images=support_images,
            check_images=check_images,
        )

    def names(self, split: str) -> Sequence[str]:
        return [f"v7w_pointing_{split}.jsonl"]

    def read_items(self, file: Path, role: str) -> list[PointingQuestion]:
        records = read_records(file)
        ids = unique_ids(records, ("id", "qa_id"), file)
        return [self._item(key, line, record, file) for key, (line, record) in zip(ids, records, strict=True)]

    def example(self, item: PointingQuestion, pictures: Pictures) -> Example:
        order = list(range(len(item.candidates)))
        if self._shuffle:
            order = [int(n) for n in generator(self._seed, "candidates", item.id).permutation(len(order))]
        boxes = [pictures.written(item, item.candidates[n], "candidates") for n in order]
        texts = [text_of(box) for box in boxes]
        right = order.index(item.right)
        answer = texts[right] if item.point is None else pictures.text(item, item.point, field="point")
        question = f"{item.question} Candidates: {' '.join(texts)} answer in {FORMATS[self._version]} format."
        choices = tuple(dict.fromkeys(map(self.stated, texts))) if self._version == "b" else ()
        return Example(
            (pictures.picture(item.image),),
            question,
            self.stated(answer),
            (answer,),
            choices,
            item.id,
            {"image_id": item.image, "size": pictures.size(item), "candidates": boxes, "right": right},
        )

    def _item(self, key: str, line: int, record: dict[str, Any], file: Path) -> PointingQuestion:
        listed = get(record, "candidates", list, file, line)
        candidates = tuple(as_box(box, "candidates", file, line) for box in listed)
        answer = read_box(record, "answer", file, line)
        if answer not in candidates:
            raise DataError("the answer is none of the candidates", file=file, line=line, field="answer")
        return PointingQuestion(
            key,
            get(record, "file_path", str, file, line),
            line,
            text_field(record, "question", file, line),
            candidates,
            candidates.index(answer),
            read_point(record, "point", file, line) if self._version == "p" else None,
        )
