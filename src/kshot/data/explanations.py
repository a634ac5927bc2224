"""VQA-E (arXiv 1803.07464) and VQA-X (arXiv 1802.08129): questions about COCO images whose answers come with reasons.

Read in all forms in which they are published:

- VQA-E ``VQA-E_{train,val}_set.json``: a list of ``{"question", "img_id", "answers": [10 texts], "explanation": [text, score]}``.
- VQA-X ``{train,val,test}_exp_anno.json``: explanations by VQA v2 question id, next to VQA v2's question and annotation files.
- VQA-X as ``vqaX_{train,val,test}.json`` of NLX-GPT: ``{question id: {"question", "image_name", "answers", "explanation"}}``.
- The JSON Lines of Shikra and Link-Context Learning: ``file_path``, ``question``, and for VQA-E ``explanation`` and
  ``multiple_answers``, for VQA-X ``justification`` and ``multiple_choice_answer``.

Answers are written as upstream does: "<reason> So the answer is X."
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from kshot.data.readers import PathLike, find_file, get, get_texts, index_by, read_json
from kshot.data.sources import ImageRoot, LazyExamples
from kshot.data.splits import CHAT, CHAT_STOP, SplitTask, Style, has_folder, read_records, unique_ids
from kshot.data.task import tasks
from kshot.data.vqa import FOLDERS, VQAv2, read_annotations
from kshot.episode import Example
from kshot.errors import DataError, one_of
from kshot.prompt import Template

PLAIN = Template(
    demonstration="<image>Question:{question} Reason and answer:{answer}",
    user="<image>{question}",
    short_instruction="Give a reason, then the answer, in this form: REASON So the answer is ANSWER.",
)
STATED = "{} So the answer is {}."
IMAGES = ("file_path", "image_name", "image_path", "image")
IMAGE_IDS = ("image_id", "img_id")
_COCO = re.compile(r"COCO_(\w+)_\d+\.\w+")


@dataclass(frozen=True)
class _Row:
    """One question: its image (a name), the best answer, all answers, all explanations."""

    image: str
    question: str
    best: str
    answers: tuple[str, ...]
    explanations: tuple[str, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)


class ExplanationTask(SplitTask):
    """Base of the two tasks. Support comes from the training split. Metric ``vqa_explanation``.

    Args:
        root: folder of the annotation files and of ``train2014/``, ``val2014/``.
        split: split of the queries.
        style: ``"plain"``, or ``"upstream"`` for its conversation; answers are the same in both.
        vqa: folder of VQA v2's question and annotation files, for VQA-X as its authors publish it. Default: ``root``.
        questions, images, support_questions, support_images, check_images: see :class:`~kshot.data.splits.SplitTask`.
    """

    metric = "vqa_explanation"
    folders: ClassVar[tuple[str, ...]] = (".", "annotations", "Annotations", "textual")
    max_new_tokens = 60
    subtypes: ClassVar[Mapping[str, str]] = {"train": "train2014", "val": "val2014", "test": "val2014"}

    def __init__(
        self,
        root: PathLike | None = None,
        *,
        split: str | None = None,
        style: Style = "plain",
        questions: PathLike | Sequence[PathLike] | None = None,
        images: PathLike | None = None,
        support_questions: PathLike | Sequence[PathLike] | None = None,
        support_images: PathLike | None = None,
        vqa: PathLike | None = None,
        check_images: bool = False,
    ):
        upstream = one_of("style", style, ("plain", "upstream")) == "upstream"
        self.template, self.stop = (CHAT, CHAT_STOP) if upstream else (PLAIN, ("\n", "Question:"))
        self._vqa = vqa if vqa is not None else root
        super().__init__(
            root,
            split=split,
            questions=questions,
            images=images,
            support_questions=support_questions,
            support_images=support_images,
            check_images=check_images,
            style=style,
        )

    def read_file(self, file: Path, role: str, images: ImageRoot) -> tuple[Sequence[str], LazyExamples]:
        ids, rows = self.read_rows(file, role)
        packed = {place for place in self.subtypes.values() if has_folder(images, place)}

        def make(number: int) -> Example:
            row = rows[number]
            named = _COCO.fullmatch(row.image)
            folder = f"{named[1]}/" if named and named[1] in packed else ""
            return Example(
                (images.picture(folder + row.image),),
                row.question,
                STATED.format(row.explanations[0], row.best),
                row.answers,
                id=ids[number],
                metadata={"explanations": list(row.explanations), **row.metadata},
            )

        return ids, LazyExamples(make, range(len(rows)))

    def read_rows(self, file: Path, role: str) -> tuple[list[str], list[_Row]]:
        """Ids and questions of a file."""
        records = read_records(file, id_field="question_id")
        ids = unique_ids(records, ("question_id", "qid", "id"), file)
        subtype = self.subtypes[self.split_of(role)]
        return ids, [_row(record, subtype, file, number) for number, record in records]


@tasks.register("vqa_e")
class VQAE(ExplanationTask):
    """VQA-E (Li et al., ECCV 2018): 181,298 training and 88,488 validation questions. Options: see :class:`ExplanationTask`."""

    name = "vqa_e"
    splits = ("val", "train")
    source = "https://github.com/liqing-ustc/VQA-E"

    def names(self, split: str) -> Sequence[str]:
        return [f"VQA-E_{split}_set.json", f"vqa_E_{split}.jsonl"]


@tasks.register("vqa_x")
class VQAX(ExplanationTask):
    """VQA-X (Park et al., CVPR 2018): 29,459 training, 1,459 validation, 1,968 test questions. Options: see
    :class:`ExplanationTask`."""

    name = "vqa_x"
    splits = ("test", "val", "train")
    source = "https://github.com/Seth-Park/MultimodalExplanations"

    def names(self, split: str) -> Sequence[str]:
        return [f"{split}_exp_anno.json", f"vqaX_{split}.json", f"vqa_X_{split}.jsonl"]

    def more_files(self, role: str) -> dict[str, Path]:
        if not any(_by_question(file) for file in self._parts[role]):
            return {}
        subtype = self.subtypes[self.split_of(role)]
        names = {
            "VQA questions": VQAv2.question_file.format(subtype),
            "VQA annotations": VQAv2.annotation_file.format(subtype),
        }
        root = self._vqa if self._vqa is not None else self._parts[role][0].parent
        return {what: find_file(root, [name], FOLDERS, source=VQAv2.source) for what, name in names.items()}

    def read_rows(self, file: Path, role: str) -> tuple[list[str], list[_Row]]:
        if not _by_question(file):
            return super().read_rows(file, role)
        explained = read_json(file)
        questions_file = self._files[f"{role} VQA questions"]
        questions = index_by(
            get(read_json(questions_file), "questions", list, questions_file), "question_id", questions_file
        )
        annotations = read_annotations(self._files[f"{role} VQA annotations"])
        rows = []
        for number, key in enumerate(explained, start=1):
            question = questions.get(int(key)) if key.isdecimal() else None
            label = annotations.get(int(key)) if key.isdecimal() else None
            if question is None or label is None:
                lacking = questions_file if question is None else self._files[f"{role} VQA annotations"]
                raise DataError(
                    f"question {key} is not in {lacking.name}",
                    file=file,
                    line=number,
                    remedy="do the files belong to the same split? VQA-X's val and test questions are in VQA's val2014",
                )
            rows.append(
                _row(
                    question
                    | {"explanation": explained[key], "question_id": key}
                    | {k: label[k] for k in _LABEL if k in label},
                    self.subtypes[self.split_of(role)],
                    file,
                    number,
                )
            )
        return list(explained), rows


_LABEL = ("answers", "multiple_choice_answer", "question_type", "answer_type")


def _by_question(file: Path) -> bool:
    """Whether a file holds nothing but lists of explanations by question id."""
    return file.name.endswith("_exp_anno.json")


def _row(record: Mapping[str, Any], subtype: str, file: Path, number: int) -> _Row:
    """A question of any of the forms.

    Raises:
        DataError: a field is missing or of the wrong type, or there is no answer or no explanation.
    """
    question = get(record, "question", str, file, number)
    answers = _answers(record, file, number)
    best = next(
        (record[f] for f in ("multiple_choice_answer", "multiple_answers") if isinstance(record.get(f), str)), None
    )
    if best is None and not answers:
        there = ", ".join(list(record)[:8])
        raise DataError(
            "there is no answer", file=file, line=number, field="answers", remedy=f"the record has: {there}"
        )
    best = best if best is not None else Counter(answers).most_common(1)[0][0]
    explanations = _explanations(record, file, number)
    kinds = {name: record[name] for name in ("question_type", "answer_type") if isinstance(record.get(name), str)}
    image = _image(record, subtype, file, number)
    return _Row(image, question, best, answers or (best,), explanations, {"image_id": image, **kinds})


def _answers(record: Mapping[str, Any], file: Path, number: int) -> tuple[str, ...]:
    """All annotators' answers: texts, or objects with ``answer``; VQA-E's ``multiple_answers`` may be a list too."""
    name = "answers" if "answers" in record else "multiple_answers"
    given = record.get(name)
    if not isinstance(given, list):
        return ()
    return tuple(
        answer if isinstance(answer, str) else str(get(answer, "answer", str, file, number)) for answer in given
    )


def _explanations(record: Mapping[str, Any], file: Path, number: int) -> tuple[str, ...]:
    """The texts of ``justification`` or ``explanation``; VQA-E has a score behind the text."""
    name = "justification" if "justification" in record else "explanation"
    given = get(record, name, (list, str), file, number)
    texts = [given] if isinstance(given, str) else [text for text in given if not isinstance(text, (int, float))]
    get_texts({name: texts}, name, file, number)
    lines = tuple(dict.fromkeys(" ".join(text.split()) for text in texts if text.strip()))
    if not lines:
        raise DataError("there is no explanation", file=file, line=number, field=name)
    return lines


def _image(record: Mapping[str, Any], subtype: str, file: Path, number: int) -> str:
    for name in IMAGES:
        if name in record:
            return str(get(record, name, str, file, number))
    for name in IMAGE_IDS:
        if name in record:
            key = get(record, name, (int, str), file, number)
            if not str(key).isdecimal():
                raise DataError(f"not the number of a COCO image: {key!r}", file=file, line=number, field=name)
            return f"COCO_{subtype}_{int(key):012d}.jpg"
    raise DataError(f"no field names the image (one of {', '.join((*IMAGES, *IMAGE_IDS))})", file=file, line=number)
