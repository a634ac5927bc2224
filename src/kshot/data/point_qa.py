"""PointQA (arXiv 2011.13681): questions about a place in a picture.

Read from the JSON Lines of Shikra and Link-Context Learning; boxes ``[x0, y0, x1, y1]`` and points ``[x, y]`` in pixels:

- ``pointQA_local_*.jsonl``: ``{"file_path", "question", "answer", "bbox", "point"}``;
- ``pointQA_twice_*.jsonl``: ``{"file_path", "obj_question", "super_question", "general_question", "answer", "bbox", "point"}``.

Questions are written as upstream: the box or point stands directly behind the question.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from kshot.data.box_task import BoxTask, Item, Kind, Pictures, answer_of
from kshot.data.boxes import Box, Point, read_box, read_point
from kshot.data.derived import generator
from kshot.data.readers import PathLike, get
from kshot.data.splits import CHAT, CHAT_STOP, Style, parse_stated, read_records, unique_ids
from kshot.data.task import tasks
from kshot.episode import Example
from kshot.errors import DataError, OptionError, one_of
from kshot.prompt import Template

STATEMENT = "The answer is {} ."
"""Upstream's answer, with the space before the full stop that it is trained with."""


@dataclass(frozen=True)
class PointQuestion(Item):
    """A question about a box and a point of a picture, in pixels."""

    question: str
    answer: str
    box: Box
    point: Point


class PointTask(BoxTask[Kind]):
    """What the tasks with points share: where their files are, and how answers are written."""

    splits = ("val", "test", "train")
    image_folders = ("VG_100K", "images")
    source = "https://github.com/shikras/shikra/blob/main/docs/data.md"
    plain = Template(
        demonstration="<image>Question:{question} Short answer:{answer}.",
        user="<image>{question}",
        short_instruction="Answer the question using a single word or phrase.",
    )
    upstream = CHAT

    def __init__(
        self,
        root: PathLike | None,
        square: bool,
        style: Style,
        template: Template | Mapping[str, Any] | None,
        **options: Any,
    ):
        self.stop = CHAT_STOP if style == "upstream" else ("\n", "Question:")
        super().__init__(root, square, style, template, **options)

    def parse(self, text: str) -> str:
        return parse_stated(text, self.stop) if self._upstream else super().parse(text).rstrip(". ")

    def stated(self, answer: str) -> str:
        """An answer as it is shown."""
        return STATEMENT.format(answer) if self._upstream else answer


class _PointQA(PointTask[PointQuestion]):
    """What the two forms of PointQA share."""

    metric = "pointqa_accuracy"
    max_new_tokens = 16

    def __init__(self, about: str, point_share: float, seed: int, *rest: Any, **options: Any):
        self._about = one_of("version", about, ("b", "p", "bp"))
        if not 0 <= point_share <= 1:
            raise OptionError(f"point_share={point_share}: must be between 0 and 1")
        self._point_share, self._seed = point_share, seed
        if about == "bp":
            options |= {"seed": seed, "point_share": point_share}
        super().__init__(*rest, **options)

    @abstractmethod
    def question_field(self) -> str:
        """The field that holds the question."""

    def read_items(self, file: Path, role: str) -> list[PointQuestion]:
        records, field = read_records(file), self.question_field()
        ids = unique_ids(records, ("id", "question_id"), file)
        return [
            PointQuestion(
                key,
                get(record, "file_path", str, file, line),
                line,
                text_field(record, field, file, line),
                answer_of(record, "answer", file, line),
                read_box(record, "bbox", file, line),
                read_point(record, "point", file, line),
            )
            for key, (line, record) in zip(ids, records, strict=True)
        ]

    def example(self, item: PointQuestion, pictures: Pictures) -> Example:
        about = self._about
        if about == "bp":
            about = "p" if generator(self._seed, "point or box", item.id).random() < self._point_share else "b"
        place = pictures.text(item, item.point, field="point") if about == "p" else pictures.text(item, item.box)
        return Example(
            (pictures.picture(item.image),),
            item.question + place,
            self.stated(item.answer),
            (item.answer,),
            id=item.id,
            metadata={"image_id": item.image, "size": pictures.size(item), "about": about},
        )


@tasks.register("pointqa_local")
class PointQALocal(_PointQA):
    """PointQA, local questions: about what is at a point or in a box, and nowhere else.

    Args:
        root: folder of ``pointQA_local_<split>.jsonl`` and of Visual Genome's images.
        split: ``val``, ``test`` or ``train``.
        version: what the question shows: ``b`` (box), ``p`` (point) or ``bp`` (one of the two, drawn for each question).
        point_share: how often ``bp`` shows the point.
        seed: of that draw.
        style: ``"plain"``, or ``"upstream"`` (``The answer is X .``).
        questions, images, support_questions, support_images, square, template, check_images: see :class:`BoxTask`.
    """

    name = "pointqa_local"

    def __init__(
        self,
        root: PathLike | None = None,
        *,
        split: str | None = None,
        version: str = "p",
        point_share: float = 0.5,
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
        super().__init__(
            version,
            point_share,
            seed,
            root,
            square,
            style,
            template,
            version=version,
            split=split,
            questions=questions,
            images=images,
            support_questions=support_questions,
            support_images=support_images,
            check_images=check_images,
        )

    def names(self, split: str) -> Sequence[str]:
        return [f"pointQA_local_{split}.jsonl"]

    def question_field(self) -> str:
        return "question"


@tasks.register("pointqa_twice")
class PointQATwice(_PointQA):
    """PointQA, look-twice questions: how many of what is at a point or in a box are in the picture.

    Args:
        root: folder of ``pointQA_twice_<split>.jsonl`` and of Visual Genome's images.
        split: ``val``, ``test`` or ``train``.
        version: which question, and what it shows: ``oq`` (names the object), ``sq`` (names its kind) or ``gq`` (general),
            then ``-b`` (box), ``-p`` (point) or ``-bp`` (one of the two, drawn for each question).
        point_share: how often ``bp`` shows the point.
        seed: of that draw.
        style: ``"plain"``, or ``"upstream"`` (``The answer is X .``).
        questions, images, support_questions, support_images, square, template, check_images: see :class:`BoxTask`.
    """

    name = "pointqa_twice"
    fields: ClassVar[Mapping[str, str]] = {"oq": "obj_question", "sq": "super_question", "gq": "general_question"}

    def __init__(
        self,
        root: PathLike | None = None,
        *,
        split: str | None = None,
        version: str = "gq-p",
        point_share: float = 0.5,
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
        one_of("version", version, [f"{q}-{place}" for q in self.fields for place in ("b", "p", "bp")])
        self._field, about = self.fields[version.partition("-")[0]], version.partition("-")[2]
        super().__init__(
            about,
            point_share,
            seed,
            root,
            square,
            style,
            template,
            version=version,
            split=split,
            questions=questions,
            images=images,
            support_questions=support_questions,
            support_images=support_images,
            check_images=check_images,
        )

    def names(self, split: str) -> Sequence[str]:
        return [f"pointQA_twice_{split}.jsonl"]

    def question_field(self) -> str:
        return self._field


def text_field(record: Mapping[str, Any], field: str, file: Path, line: int) -> str:
    """A text that is not blank, as it stands in the file."""
    text = str(get(record, field, str, file, line))
    if not text.strip():
        raise DataError("the text is empty", file=file, line=line, field=field)
    return text
