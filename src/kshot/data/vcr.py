"""VCR, visual commonsense reasoning (arXiv 1811.10830), in its published files and in those of Shikra and Link-Context Learning.

``{train,val,test}.jsonl``: lines ``{"img_fn", "metadata_fn", "objects", "question", "answer_choices", "rationale_choices",
"answer_label", "rationale_label", "annot_id"}`` whose sentences are lists of words and of references to objects; beside each image
a ``metadata_fn`` with ``{"boxes": [[x0, y0, x1, y1, score]], "names", "width", "height"}``. Upstream's lines hold ``boxes``
themselves.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from kshot.data.boxes import Size, SquarePicture, picture_size
from kshot.data.readers import PathLike, get, get_texts, read_json_lines
from kshot.data.sources import ImageRoot, LazyExamples
from kshot.data.splits import CHAT, CHAT_STOP, SplitTask, Style, parse_stated, unique_ids
from kshot.data.task import tasks
from kshot.data.vcr_text import LETTERS, MODES, Item, References, Turn, Writer, turns_of
from kshot.episode import Example
from kshot.errors import DataError, one_of
from kshot.picture import Picture
from kshot.prompt import Template

PLAIN = Template(demonstration="<image>Question:{question}\nAnswer:{answer}", user="<image>{question}")
CHOICES = 4
_TEXTS = ("q-a", "qa-r", "q-a-q-r")
_REASONS = ("q-ra", "qc-ra", "qc-rac")
_TWO_TURNS = ("q-ar", "q-a-q-r", "qc-a-qc-r")


@tasks.register("vcr")
class VCR(SplitTask):
    """VCR: four answers and four reasons to choose from. Metric ``vcr``; support from the training split.

    Args:
        root: folder of the annotations (or ``vcr1annots/``) and of ``vcr1images/``.
        split: ``val``, ``train`` or ``test`` (no labels; of the reason's choice there is then one query for each of the four
            answers).
        mode: what is asked. ``q-ar`` (default) is the official task Q->AR: every question twice, once for its answer (Q->A) and once,
            with the right answer, for its reason (QA->R). The others are upstream's (see :func:`kshot.data.vcr_text.turns_of`):
            ``qc-a``, ``qac-r``, ``q-a``, ``qa-r``, ``q-ra``, ``qc-ra``, ``qc-rac``, and in two turns ``q-a-q-r``, ``qc-a-qc-r``.
        style: ``"plain"`` (choices in a list, "B") or ``"upstream"`` (``QUESTION: ... OPTIONS: (A) ...``, "The answer is (B).").
        references: how objects are written: ``"names"`` (person3), ``"boxes"`` (as upstream does) or ``"both"``. With boxes,
            pictures are padded to squares, to which boxes refer.
        questions, images, support_questions, support_images, check_images: see :class:`~kshot.data.splits.SplitTask`.

    Raises:
        DataError: see :mod:`kshot.data.readers`; also other than four choices, a label out of range, or a reference to an object
            that the image does not have.
    """

    name = "vcr"
    metric = "vcr"
    source = "https://visualcommonsense.com/download/"
    splits = ("val", "train", "test")
    folders: ClassVar[tuple[str, ...]] = (".", "vcr1annots", "annotations")
    image_folders = ("vcr1images", "images")
    id_field = "annot_id"

    def __init__(
        self,
        root: PathLike | None = None,
        *,
        split: str | None = None,
        mode: str = "q-ar",
        style: Style = "plain",
        references: References = "names",
        questions: PathLike | Sequence[PathLike] | None = None,
        images: PathLike | None = None,
        support_questions: PathLike | Sequence[PathLike] | None = None,
        support_images: PathLike | None = None,
        check_images: bool = False,
    ):
        self._mode = one_of("mode", mode, MODES)
        self._upstream = one_of("style", style, ("plain", "upstream")) == "upstream"
        self._references: References = references
        one_of("references", references, ("names", "boxes", "both"))
        self._turns = 2 if mode in _TWO_TURNS else 1
        self.template, self.stop = (CHAT, CHAT_STOP) if self._upstream else (PLAIN, ("\n",))
        self.max_new_tokens = 150 if mode in _REASONS else 60 if mode in _TEXTS else 16 if self._upstream else 5
        super().__init__(
            root,
            split=split,
            questions=questions,
            images=images,
            support_questions=support_questions,
            support_images=support_images,
            check_images=check_images,
            mode=mode,
            style=style,
            references=references,
        )

    def names(self, split: str) -> Sequence[str]:
        return [f"{split}.jsonl", f"vcr_{split}.jsonl"]

    def pool(self, query: Example) -> Sequence[Example]:
        """The support set; in modes of two turns those examples that ask for the same as the query."""
        if self._turns == 1:
            return self.support
        return self._support_by_part[str(query.metadata["part"])]

    @cached_property
    def _support_by_part(self) -> dict[str, LazyExamples]:
        support = self.support
        assert isinstance(support, LazyExamples)
        parts = enumerate(("answer", "rationale"))
        return {part: support.at(range(first, len(support), self._turns)) for first, part in parts}

    def parse(self, text: str) -> str:
        stated = self._mode not in _TEXTS and (self._upstream or self._mode in _REASONS)
        return parse_stated(text, self.stop) if stated else super().parse(text)

    def candidates(self, query: Example) -> tuple[str, ...]:
        """The letters, or the texts of the choices (answers are then ranked, as VCR's own models do); none where a reason goes
        first."""
        form = query.metadata["form"]
        if form == "reason":
            return ()
        if form == "text":
            return tuple(dict.fromkeys(query.choices))
        letters = LETTERS[: len(query.choices)]
        return tuple(f"The answer is ({letter})." if self._upstream else letter for letter in letters)

    def read_file(self, file: Path, role: str, images: ImageRoot) -> tuple[Sequence[str], LazyExamples]:
        records = read_json_lines(file)
        ids = unique_ids(records, ("annot_id",), file)
        labelled = [_check(record, file, number) for number, record in records]
        if role == "support" and not all(labelled):
            number = records[labelled.index(False)][0]
            raise DataError("a demonstration needs an answer", file=file, line=number, field="answer_label")
        places = [
            (record, turn, given)
            for record, known in enumerate(labelled)
            for turn in range(self._turns)
            # Without labels the reason is asked for under each of the answers.
            for given in (range(CHOICES) if not known and self._asks_reason(turn) else (None,))
        ]

        def make(place: int) -> Example:
            index, turn, given = places[place]
            number, record = records[index]
            picture: Picture = images.picture(record["img_fn"])
            item = self._item(record, images, picture, file, number, given)
            shown = turns_of(self._mode, item, self._upstream)[turn]
            if self._references != "names":
                picture = SquarePicture(picture)
            return _example(picture, shown, item, record, ids[index], keys[place])

        keys = [
            ids[index]
            + (f"/{('answer', 'rationale')[turn]}" if self._turns == 2 else "")
            + (f"/{LETTERS[given]}" if given is not None else "")
            for index, turn, given in places
        ]
        return keys, LazyExamples(make, range(len(places)))

    def _asks_reason(self, turn: int) -> bool:
        return turn == 1 or self._mode in ("qa-r", "qac-r")

    def _item(
        self,
        record: Mapping[str, Any],
        images: ImageRoot,
        picture: Picture,
        file: Path,
        number: int,
        given: int | None,
    ) -> Item:
        boxes: Sequence[Sequence[float]] = ()
        size: Size | None = None
        if self._references != "names":
            boxes, size = _boxes(record, images, picture, file, number)
        writer = Writer(record["objects"], boxes, size, self._references, tidy=not self._upstream)
        return Item(
            writer.sentence(record["question"]),
            tuple(writer.sentence(words) for words in record["answer_choices"]),
            tuple(writer.sentence(words) for words in record["rationale_choices"]),
            record.get("answer_label") if given is None else given,
            record.get("rationale_label"),
        )


def _example(picture: Picture, turn: Turn, item: Item, record: Mapping[str, Any], annotation: str, key: str) -> Example:
    label = item.answer if turn.part == "answer" else item.rationale
    choices = item.answers if turn.part == "answer" else item.rationales
    metadata = {
        "image_id": record["img_fn"],
        "pair": annotation,  # so that a sample of the queries keeps the two turns of a question together
        "part": turn.part,
        "form": turn.form,
    }
    references: tuple[str, ...] = ()
    if label is not None and turn.target is not None:
        references = (LETTERS[label] if turn.by_letter else choices[label],)
        metadata["letter"] = LETTERS[label]
    return Example((picture,), turn.text, turn.target, references, choices, id=key, metadata=metadata)


def _check(record: Mapping[str, Any], file: Path, number: int) -> bool:
    """Look at all fields of a line; whether it has labels."""
    get(record, "img_fn", str, file, number)
    objects = len(get_texts(record, "objects", file, number))
    sentences = [("question", get(record, "question", list, file, number))]
    for field in ("answer_choices", "rationale_choices"):
        choices = get(record, field, list, file, number)
        if len(choices) != CHOICES or not all(isinstance(words, list) for words in choices):
            raise DataError(f"{CHOICES} lists of words are expected", file=file, line=number, field=field)
        sentences += [(field, words) for words in choices]
    for field, words in sentences:
        for word in words:
            if isinstance(word, list):
                wrong = [n for n in word if isinstance(n, bool) or not isinstance(n, int) or not 0 <= n < objects]
                if wrong or not word:
                    what = f"object {wrong[0]}, of {objects} objects" if wrong else "no object"
                    raise DataError(f"a reference to {what}", file=file, line=number, field=field)
            elif not isinstance(word, str):
                raise DataError(
                    "a sentence holds words and lists of object numbers", file=file, line=number, field=field
                )
    labels = [field for field in ("answer_label", "rationale_label") if record.get(field) is not None]
    for field in labels:
        if get(record, field, int, file, number) not in range(CHOICES):
            raise DataError(f"the label must be 0 to {CHOICES - 1}", file=file, line=number, field=field)
    return len(labels) == 2


def _boxes(
    record: Mapping[str, Any], images: ImageRoot, picture: Picture, file: Path, number: int
) -> tuple[Sequence[Sequence[float]], Size]:
    """Boxes of an image's objects and its size: from the line itself, or from the file that VCR has beside each image."""
    if "boxes" in record:
        boxes, size = get(record, "boxes", list, file, number), None
        place, line = str(file), number
    else:
        source = images.picture(get(record, "metadata_fn", str, file, number))
        place, line = source.name, None
        try:
            data = json.loads(source.read())
        except DataError as error:
            raise DataError(
                f"{error.problem}: boxes of the objects", file=place, remedy="or references='names'"
            ) from None
        except ValueError as error:
            raise DataError(f"not valid JSON: {error}", file=place) from None
        boxes = get(data, "boxes", list, place)
        size = (get(data, "width", int, place), get(data, "height", int, place))
    if len(boxes) != len(record["objects"]):
        raise DataError(
            f"{len(boxes)} boxes for {len(record['objects'])} objects", file=place, line=line, field="boxes"
        )
    for box in boxes:
        if not isinstance(box, list) or len(box) < 4 or not all(isinstance(v, (int, float)) for v in box):
            raise DataError(f"not a box [x0, y0, x1, y1, score]: {box}", file=place, line=line, field="boxes")
    return boxes, size or picture_size(picture)
