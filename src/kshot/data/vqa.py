"""VQAv2 and OK-VQA, in the files that visualqa.org and okvqa.allenai.org publish.

Questions (``{"data_subtype", "questions": [{"question_id", "image_id", "question"}]}``) and annotations (``{"annotations":
[{"question_id", "image_id", "answers": [{"answer"} x 10], "multiple_choice_answer", "question_type", "answer_type"}]}``) are
separate files; images are those of COCO, ``<subtype>/COCO_<subtype>_<12 digits>.jpg``. Queries are the validation (or test) split,
the support set is the training split, as in the LIVE (arXiv 2406.13185) and MimIC (arXiv 2504.08851) papers, whose prompt is used.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from kshot.data.readers import PathLike, find_file, get, index_by, read_json
from kshot.data.sources import FileTask, ImageRoot, LazyExamples
from kshot.data.task import tasks
from kshot.episode import Example
from kshot.errors import DataError, KshotError, OptionError
from kshot.prompt import Template
from kshot.whole_file import write_text

TEMPLATE = Template(
    demonstration="<image>Question:{question} Short answer:{answer}.",
    instruction="Provide an answer to the question. Use the image to answer.\n",
    separator="\n\n",
    user="<image>{question}",
    short_instruction="Answer the question using a single word or phrase.",
)
FOLDERS = (".", "annotations", "questions", "Questions", "Annotations")


@dataclass(frozen=True)
class _Split:
    """Where the parts of a split are; ``annotations`` is ``None`` for splits whose answers are kept secret."""

    questions: Path
    annotations: Path | None
    images: ImageRoot


class VQATask(FileTask):
    """Open-ended questions about COCO images, ten answers each.

    Args:
        root: folder of the official files and of the image folders (``train2014``, ``val2014`` or their zips).
        split: ``"val"`` (queries with answers), ``"test-dev"`` or ``"test"`` (without: predict and :meth:`write_results`).
        questions, annotations, images: the query files, where they are not under ``root``. ``images`` is the folder (or zip)
            that holds the image files themselves or the folder ``val2014`` with them.
        support_questions, support_annotations, support_images: the same for the support set.
        subset: allow annotations whose question is not in the question file (for files with a part of the questions).
        check_images: look for all image files at once and list those that are missing.

    Raises:
        OptionError: neither ``root`` nor the files are given.
        DataError: see :mod:`kshot.data.readers`; also a question without annotation, or the reverse.
    """

    template = TEMPLATE
    stop = ("\n", "Question", "Answer", "Image", "Short")  # MimIC's rule
    max_new_tokens = 10
    question_file: ClassVar[str]
    annotation_file: ClassVar[str]
    source: ClassVar[str]
    subtypes: ClassVar[Mapping[str, str]]

    def __init__(
        self,
        root: PathLike | None = None,
        *,
        split: str = "val",
        questions: PathLike | None = None,
        annotations: PathLike | None = None,
        images: PathLike | None = None,
        support_questions: PathLike | None = None,
        support_annotations: PathLike | None = None,
        support_images: PathLike | None = None,
        subset: bool = False,
        check_images: bool = False,
    ):
        if split not in self.subtypes:
            raise OptionError(f"task {self.name!r} has no split {split!r}; its splits are: {', '.join(self.subtypes)}")
        self._root, self._split, self._subset = root, split, subset
        self._given = {
            "queries": (questions, annotations, images),
            "support": (support_questions, support_annotations, support_images),
        }
        if root is None and questions is None:
            raise OptionError(f"task {self.name!r} needs root= (the folder of its files), or questions= and images=")
        super().__init__(check_images=check_images, split=split, subset=subset or None)

    def parse(self, text: str) -> str:
        # The prompt closes each answer with a full stop, so a model that has understood it does so too.
        return super().parse(text).rstrip(". ")

    def write_results(self, predictions: Mapping[str, str], path: PathLike) -> None:
        """Write answers (by query id) as the evaluation server wants them: ``[{"question_id", "answer"}]``."""
        ids = {query["question_id"] for query in self._query_records}
        by_text = {str(value): value for value in ids}
        if unknown := set(predictions) - set(by_text):
            raise DataError(f"prediction for a question that is not in this split: {sorted(unknown)[0]!r}")
        rows = [{"question_id": by_text[key], "answer": answer} for key, answer in predictions.items()]
        write_text(path, json.dumps(rows, ensure_ascii=False))

    def _locate(self) -> dict[str, Path]:
        files: dict[str, Path] = {}
        for role, subtype in (("queries", self.subtypes[self._split]), ("support", self.subtypes["train"])):
            parts = (("questions", self.question_file), ("annotations", self.annotation_file))
            for (part, name), given in zip(parts, self._given[role], strict=False):
                if given is not None:
                    files[f"{role} {part}"] = Path(given)
                elif role == "support":
                    try:
                        files[f"{role} {part}"] = self._find(name.format(subtype))
                    except KshotError:
                        continue  # reported when the support set is asked for
                elif part == "questions" or self._split == "val":
                    files[f"{role} {part}"] = self._find(name.format(subtype))
        return files

    def _read_queries(self) -> Sequence[Example]:
        examples, self._query_records = self._read("queries", self.subtypes[self._split])
        return examples

    def _read_support(self) -> Sequence[Example]:
        for part, name in (("questions", self.question_file), ("annotations", self.annotation_file)):
            if f"support {part}" not in self._files:
                self._find(name.format(self.subtypes["train"]))  # raises: says what was looked for and where to get it
        return self._read("support", self.subtypes["train"])[0]

    def _read(self, role: str, subtype: str) -> tuple[LazyExamples, list[dict[str, Any]]]:
        file, images = self._files[f"{role} questions"], self._given[role][2]
        data = read_json(file)
        records = get(data, "questions", list, file)
        subtype = str(data.get("data_subtype") or subtype)
        index_by(records, "question_id", file)
        for number, record in enumerate(records, start=1):
            get(record, "question", str, file, number)
            get(record, "image_id", int, file, number)
        labels_file = self._files.get(f"{role} annotations")
        labels: dict[Any, Any] = {}
        if labels_file is not None:
            labels = read_annotations(labels_file)
            _check_match(records, labels, file, labels_file, self._subset)
        place = subtype.replace("test-dev", "test")
        root, prefix = _image_root(images or self._root, place)

        def make(number: int) -> Example:
            record = records[number]
            label = labels.get(record["question_id"])
            return Example(
                images=(root.picture(f"{prefix}COCO_{place}_{record['image_id']:012d}.jpg"),),
                question=record["question"],
                answer=label and label["multiple_choice_answer"],
                references=tuple(label["answers"]) if label else (),
                id=str(record["question_id"]),
                metadata={"image_id": record["image_id"]}
                | ({k: label[k] for k in ("question_type", "answer_type") if k in label} if label else {}),
            )

        return LazyExamples(make, range(len(records))), records

    def _find(self, name: str) -> Path:
        if self._root is None:
            raise OptionError(f"task {self.name!r} needs the file {name}: give root= or the file's own option")
        return find_file(self._root, [name], FOLDERS, source=self.source)


@tasks.register("vqav2")
class VQAv2(VQATask):
    """VQA v2.0 (Goyal et al., CVPR 2017). Options: see :class:`VQATask`."""

    name = "vqav2"
    metric = "vqa_accuracy"
    question_file = "v2_OpenEnded_mscoco_{}_questions.json"
    annotation_file = "v2_mscoco_{}_annotations.json"
    source = "https://visualqa.org/download.html"
    subtypes: ClassVar[Mapping[str, str]] = {
        "train": "train2014",
        "val": "val2014",
        "test-dev": "test-dev2015",
        "test": "test2015",
    }


@tasks.register("okvqa")
class OKVQA(VQATask):
    """OK-VQA (Marino et al., CVPR 2019), version 1.1. Its files name no best answer; the most frequent one is shown."""

    name = "okvqa"
    metric = "okvqa_accuracy"
    question_file = "OpenEnded_mscoco_{}_questions.json"
    annotation_file = "mscoco_{}_annotations.json"
    source = "https://okvqa.allenai.org/download.html"
    subtypes: ClassVar[Mapping[str, str]] = {"train": "train2014", "val": "val2014"}


def read_annotations(file: Path) -> dict[Any, Any]:
    """Annotations by question id, each with ``answers`` as a list of texts and with ``multiple_choice_answer``."""
    data = read_json(file, object_hook=_answer_text)
    records = get(data, "annotations", list, file)
    labels = index_by(records, "question_id", file)
    for number, record in enumerate(records, start=1):
        answers = get(record, "answers", list, file, number)
        if not answers:
            raise DataError("there are no answers", file=file, line=number, field="answers")
        for answer in answers:
            if not isinstance(answer, str):
                get(answer, "answer", str, file, number)  # says what is wrong with it
                raise DataError("not an answer object", file=file, line=number, field="answers")
        if "multiple_choice_answer" not in record:
            record["multiple_choice_answer"] = Counter(answers).most_common(1)[0][
                0
            ]  # the first of equally frequent ones
        get(record, "multiple_choice_answer", str, file, number)
    return labels


def _answer_text(value: dict[str, Any]) -> Any:
    """Make an answer object its text while the file is parsed: there are 4.4 million of them in VQAv2's training split."""
    answer = value.get("answer")
    if "answer_id" in value and type(answer) is str:
        return sys.intern(answer)
    return value


def _check_match(
    records: Sequence[dict[str, Any]], labels: Mapping[Any, Any], file: Path, labels_file: Path, subset: bool
) -> None:
    for number, record in enumerate(records, start=1):
        label = labels.get(record["question_id"])
        if label is None:
            raise DataError(
                f"question {record['question_id']} has no annotation in {labels_file.name}",
                file=file,
                line=number,
                remedy="do the two files belong to the same split?",
            )
        if label.get("image_id", record["image_id"]) != record["image_id"]:
            raise DataError(
                f"question {record['question_id']} is about image {record['image_id']}, "
                f"but about image {label['image_id']} in {labels_file.name}",
                file=file,
                line=number,
                field="image_id",
            )
    if len(labels) > len(records) and not subset:
        known = {record["question_id"] for record in records}
        lost = next(key for key in labels if key not in known)
        raise DataError(
            f"{len(labels) - len(records)} annotations have no question in {file.name}, the first is {lost}",
            file=labels_file,
            remedy="do the two files belong to the same split? subset=True allows a part of the questions",
        )


def _image_root(path: PathLike | None, place: str) -> tuple[ImageRoot, str]:
    """Where the images of a COCO split are: ``path`` is their folder, or the folder of ``place/``, or of ``images/place/``."""
    if path is None:
        raise OptionError("give images= (the folder of the image files), or root=")
    for folder in (Path(path), Path(path) / "images"):
        if (folder / place).is_dir() or (folder / f"{place}.zip").is_file():
            return ImageRoot(folder), f"{place}/"
    return ImageRoot(path), ""
