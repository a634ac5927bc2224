"""Visual7W, pointing questions (Zhu et al., arXiv 1511.03416): which of four boxes answers the question.

Read from the release, ``dataset_v7w_pointing.json``: ``{"boxes": [{"box_id", "x", "y", "width", "height"}], "images":
[{"filename", "split", "qa_pairs": [{"qa_id", "question", "answer": box id, "multiple_choices": [box ids]}]}]}``; or from the
JSON Lines of Shikra and Link-Context Learning, ``v7w_pointing_*.jsonl``: ``{"file_path", "question", "candidates": [boxes],
"answer": box, "point"}``, boxes ``[x0, y0, x1, y1]`` and the point ``[x, y]`` in pixels, the answer one of the candidates. The
question lists the candidates and says how to answer, as upstream: ``Which ...? Candidates: [...] [...] [...] [...] answer in
box format.``
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kshot.data.box_task import Item, Pictures
from kshot.data.boxes import Box, Point, as_box, box_of_corner_and_size, read_box, read_point, text_of
from kshot.data.derived import generator
from kshot.data.point_qa import PointTask, text_field
from kshot.data.readers import PathLike, check_unique, get, index_by, read_json
from kshot.data.splits import Style, is_json_lines, read_records, unique_ids
from kshot.data.task import tasks
from kshot.episode import Example
from kshot.errors import DataError, one_of
from kshot.prompt import Template

FORMATS = {"b": "box", "p": "point"}
RELEASE = "dataset_v7w_pointing.json"


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
        root: folder of ``dataset_v7w_pointing.json`` or ``v7w_pointing_<split>.jsonl``, and of the images.
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
        return [f"v7w_pointing_{split}.jsonl", RELEASE]

    def holds_all_splits(self, file: Path) -> bool:
        return not is_json_lines(file)

    def read_items(self, file: Path, role: str) -> list[PointingQuestion]:
        if not is_json_lines(file):
            return read_release(file, self.split_of(role), self._version)
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


def read_release(file: Path, split: str, version: str) -> list[PointingQuestion]:
    """The questions of a split of ``dataset_v7w_pointing.json``.

    The release names no points: the point of an answer is the middle of its box. Candidates are in the order of their ids, so that
    the place of the right one says nothing.

    Raises:
        DataError: see :mod:`kshot.data.readers`; also a box id that is not under ``boxes``, or no question of the split.
    """
    data = read_json(file)
    boxes: dict[Any, Box] = {}
    for key, record in index_by(get(data, "boxes", list, file), "box_id", file).items():
        corner_and_size = [get(record, field, (int, float), file) for field in ("x", "y", "width", "height")]
        boxes[key] = box_of_corner_and_size(corner_and_size, f"box {key}", file, None)
    questions = []
    for number, image in enumerate(get(data, "images", list, file), start=1):
        if get(image, "split", str, file, number) != split:
            continue
        name = get(image, "filename", str, file, number)
        for pair in get(image, "qa_pairs", list, file, number):
            key, right = get(pair, "qa_id", (int, str), file, number), get(pair, "answer", (int, str), file, number)
            offered = [right, *get(pair, "multiple_choices", list, file, number)]
            if unknown := [n for n in offered if not isinstance(n, (int, str)) or n not in boxes]:
                problem = f"question {key}: box {unknown[0]} is not under 'boxes'"
                raise DataError(problem, file=file, line=number, field="qa_pairs")
            listed = sorted(set(offered), key=lambda n: (str(type(n)), n))
            x0, y0, x1, y1 = boxes[right]
            questions.append(
                PointingQuestion(
                    str(key),
                    name,
                    number,
                    text_field(pair, "question", file, number),
                    tuple(boxes[n] for n in listed),
                    listed.index(right),
                    ((x0 + x1) / 2, (y0 + y1) / 2) if version == "p" else None,
                )
            )
    if not questions:
        raise DataError(f"no questions of the split {split!r}", file=file)
    check_unique([question.id for question in questions], file, "qa_id", [question.line for question in questions])
    return questions
