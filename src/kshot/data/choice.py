"""MME and SEED-Bench: benchmarks with closed answers, in the files they are published in.

Neither has a support set of its own. By default demonstrations of a query are the other examples of its category, never one that
shows the same image (leave-one-out; their labels are test labels, as in all such results). ``support=`` takes them from elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

from kshot.data.folder import EXTENSIONS
from kshot.data.jsonl import read_examples
from kshot.data.readers import PathLike, check_unique, find_file, get, read_json, read_text
from kshot.data.sources import FileTask, ImageRoot, LazyExamples, LeaveOneOut
from kshot.data.task import Task, tasks
from kshot.episode import Example
from kshot.errors import DataError, OptionError
from kshot.picture import FilePicture
from kshot.prompt import Template
from kshot.whole_file import write_text

Support: TypeAlias = "PathLike | Task | None"


class Benchmark(FileTask):
    """A benchmark of test questions in categories; ``support`` is ``None`` (leave-one-out), a JSON Lines file, or a task."""

    def __init__(self, support: Support, support_images: PathLike | None, check_images: bool, **options: Any):
        self._given, self._support_images = support, support_images
        super().__init__(check_images=check_images, **options)

    def pool(self, query: Example) -> Sequence[Example]:
        """The support set; leaving one out, the other examples of the query's category that do not show its image."""
        if self._given is not None:
            return self.support
        return self._others.pool(str(query.metadata["category"]), str(query.metadata["image_id"]))

    def _locate(self) -> dict[str, Path]:
        return {} if self._given is None or isinstance(self._given, Task) else {"support": Path(self._given)}

    def _read_support(self) -> Sequence[Example]:
        if self._given is None:
            return self._queries
        if isinstance(self._given, Task):
            return self._given.support
        return read_examples(self._given, self._support_images, answered=True)

    def _leave_one_out(self, examples: LazyExamples, categories: Sequence[str], images: Sequence[str]) -> None:
        self._others = LeaveOneOut(examples, categories, images)

    def describe(self) -> dict[str, Any]:
        """As for every task, with where the support set comes from."""
        if isinstance(self._given, Task):
            support: Any = self._given.describe()
        else:
            support = "leave-one-out" if self._given is None else "file"
        return super().describe() | {"support": support}


@tasks.register("mme")
class MME(Benchmark):
    """MME (arXiv 2306.13394): two yes/no questions an image, fourteen categories.

    The release has one folder a category. A category holds images with a text file of the same name each, beside them or in
    ``images/`` and ``questions_answers_YN/``; a text file has two lines ``question<TAB>Yes`` or ``No``.

    Args:
        root: the folder ``MME_Benchmark_release_version`` (or ``MME_Benchmark`` in it).
        categories: the categories to use. Default: all folders.
        support: ``None``: leave-one-out within the category; or a JSON Lines file (:mod:`kshot.data.jsonl`) or a task.
        support_images: image root of that file.
        check_images: look for all image files at once and list those that are missing.
    """

    name = "mme"
    template = Template(
        demonstration="<image>Question:{question} Answer:{answer}",
        user="<image>{question}",
        short_instruction="Answer yes or no.",
    )
    metric = "mme"
    max_new_tokens = 5
    labels = ("Yes", "No")
    source = "https://github.com/BradyFU/Awesome-Multimodal-Large-Language-Models/tree/Evaluation"

    def __init__(
        self,
        root: PathLike,
        *,
        categories: Sequence[str] | None = None,
        support: Support = None,
        support_images: PathLike | None = None,
        check_images: bool = False,
    ):
        self._root = Path(root)
        self._wanted = (categories,) if isinstance(categories, str) else categories
        super().__init__(support, support_images, check_images, categories=self._wanted and list(self._wanted))

    def write_results(self, predictions: Mapping[str, str], folder: PathLike) -> None:
        """Write answers (by query id) as MME's evaluation tool reads them.

        One file ``<category>.txt`` a category with lines ``image<TAB>question<TAB>right answer<TAB>answer``.
        """
        rows: dict[str, list[str]] = {}
        for query in self._queries:
            if query.id in predictions:
                answer = " ".join(
                    predictions[query.id].split()
                )  # a tab or line break would make two columns or lines of it
                image = Path(str(query.metadata["image_id"])).name
                row = "\t".join((image, query.question, query.text_answer, answer))
                rows.setdefault(str(query.metadata["category"]), []).append(row + "\n")
        for category, lines in rows.items():
            write_text(Path(folder) / f"{category}.txt", "".join(lines))

    def _read_queries(self) -> Sequence[Example]:
        if not self._root.is_dir():
            raise DataError("no such folder", file=self._root, remedy=f"get the release: {self.source}")
        root = self._root / "MME_Benchmark" if (self._root / "MME_Benchmark").is_dir() else self._root
        folders = {p.name: p for p in sorted(root.iterdir()) if p.is_dir() and _has_questions(p)}
        if not folders:
            raise DataError(
                "no category folders (existence, count, ...) with question files",
                file=root,
                remedy="unpack the release",
            )
        for category in self._wanted or ():
            if category not in folders:
                raise OptionError(f"MME has no category {category!r} here; there are: {', '.join(folders)}")
        records = [r for name in self._wanted or folders for r in _mme_category(folders[name])]

        def make(number: int) -> Example:
            category, image, question, answer, order = records[number]
            image_id = f"{category}/{image.name}"
            metadata = {"category": category, "image_id": image_id}
            return Example((FilePicture(image),), question, answer, id=f"{image_id}#{order}", metadata=metadata)

        examples = LazyExamples(make, range(len(records)))
        self._leave_one_out(examples, [r[0] for r in records], [f"{r[0]}/{r[1].name}" for r in records])
        return examples


@tasks.register("seedbench")
class SEEDBench(Benchmark):
    """SEED-Bench (arXiv 2307.16125), image part: four choices, nine dimensions. Video questions are left out and counted.

    Args:
        root: folder of ``SEED-Bench.json`` and ``SEED-Bench-image/`` (or its zip).
        questions, images: the two, where they are not under ``root``.
        answers: ``"letter"``: the choices are listed and the answer is a letter; ``"text"``: they are not, and the answer is the
            choice's text (with likelihood scoring, the ranking of choices that the benchmark's authors use).
        support: ``None``: leave-one-out within the dimension; or a JSON Lines file (:mod:`kshot.data.jsonl`) or a task.
        support_images: image root of that file.
        check_images: look for all image files at once and list those that are missing.
    """

    name = "seedbench"
    metric = "seed_bench"
    source = "https://huggingface.co/datasets/AILab-CVC/SEED-Bench"
    LETTERS: ClassVar[tuple[str, ...]] = ("A", "B", "C", "D")

    def __init__(
        self,
        root: PathLike | None = None,
        *,
        questions: PathLike | None = None,
        images: PathLike | None = None,
        answers: str = "letter",
        support: Support = None,
        support_images: PathLike | None = None,
        check_images: bool = False,
    ):
        if answers not in ("letter", "text"):
            raise OptionError(f"task 'seedbench': answers must be 'letter' or 'text', not {answers!r}")
        if root is None and (questions is None or images is None):
            raise OptionError("task 'seedbench' needs root= (the folder of its files), or questions= and images=")
        self._letters = answers == "letter"
        self.labels = self.LETTERS if self._letters else ()
        self.max_new_tokens = 5 if self._letters else 20
        hint = "Answer with the option's letter only." if self._letters else "Answer the question briefly."
        self.template = Template(
            demonstration="<image>Question:{question}\nAnswer:{answer}",
            user="<image>{question}",
            short_instruction=hint,
        )
        self._root, self._questions, self._images = root, questions, images
        super().__init__(support, support_images, check_images, answers=answers)

    def write_results(self, predictions: Mapping[str, str], path: PathLike) -> None:
        """Write answers (by query id) as the benchmark's board wants them: a JSON line ``{"question_id", "prediction"}`` each."""
        rows = [json.dumps({"question_id": key, "prediction": text}) for key, text in predictions.items()]
        write_text(path, "".join(row + "\n" for row in rows))

    def _locate(self) -> dict[str, Path]:
        given = Path(self._questions) if self._questions is not None else None
        return super()._locate() | {
            "questions": given or find_file(self._root or ".", ["SEED-Bench.json"], source=self.source)
        }

    def _read_queries(self) -> Sequence[Example]:
        file = self._files["questions"]
        data = read_json(file)
        dimensions = _dimensions(get(data, "question_type", dict, file), file)
        records: list[dict[str, Any]] = []
        for number, record in enumerate(get(data, "questions", list, file), start=1):
            if get(record, "data_type", str, file, number) != "image":
                self.skipped["video questions"] = self.skipped.get("video questions", 0) + 1
                continue
            _check_seed(record, dimensions, file, number)
            records.append(record)
        if not records:
            raise DataError("no questions about images", file=file)
        check_unique([str(r["question_id"]) for r in records], file, "question_id")
        root, suffix = self._image_place(str(records[0]["data_id"]))

        def make(number: int) -> Example:
            r = records[number]
            choices = tuple(r[f"choice_{letter.lower()}"] for letter in self.LETTERS)
            right = self.LETTERS.index(r["answer"])
            question, answer = r["question"], choices[right]
            if self._letters:
                options = (f"{letter}. {text}" for letter, text in zip(self.LETTERS, choices, strict=True))
                question, answer = "\n".join((question, *options)), r["answer"]
            dimension = dimensions[r["question_type_id"]]
            return Example(
                (root.picture(f"{r['data_id']}{suffix}"),),
                question,
                answer,
                choices=choices,
                id=str(r["question_id"]),
                metadata={
                    "category": dimension,
                    "dimension": dimension,
                    "image_id": r["data_id"],
                    "letter": r["answer"],
                },
            )

        examples = LazyExamples(make, range(len(records)))
        categories = [dimensions[r["question_type_id"]] for r in records]
        self._leave_one_out(examples, categories, [str(r["data_id"]) for r in records])
        return examples

    def _image_place(self, example: str) -> tuple[ImageRoot, str]:
        """Image root, and the ending of the file names: the release's have none, copies of it sometimes do."""
        given = Path(self._images if self._images is not None else self._root or ".")
        for place in (given / "SEED-Bench-image", given / "SEED-Bench-image.zip"):
            if place.exists():
                given = place
                break
        root = ImageRoot(given)
        return root, next((s for s in ("", ".jpg", ".png", ".jpeg") if root.has(example + s)), "")


def _has_questions(folder: Path) -> bool:
    return (folder / "questions_answers_YN").is_dir() or any(folder.glob("*.txt"))


def _mme_category(folder: Path) -> Iterator[tuple[str, Path, str, str, int]]:
    """Category, image, question, answer and number of the question, for all questions of a category folder."""
    texts = folder / "questions_answers_YN"
    texts = texts if texts.is_dir() else folder
    images = folder / "images" if (folder / "images").is_dir() else folder
    by_stem: dict[str, Path] = {}
    for path in sorted(images.iterdir()):
        if path.suffix.lower() in EXTENSIONS:
            if path.stem in by_stem:
                raise DataError(f"two images of this name: {by_stem[path.stem].name} and {path.name}", file=images)
            by_stem[path.stem] = path
    for file in sorted(texts.glob("*.txt")):
        if file.stem not in by_stem:
            raise DataError(f"there is no image {file.stem}.jpg or .png for these questions in {images}", file=file)
        order = 0
        for number, line in enumerate(read_text(file).split("\n"), start=1):
            if not line.strip():
                continue
            question, tab, answer = line.strip().rpartition("\t")
            if not tab or answer.strip().lower() not in ("yes", "no"):
                raise DataError("not of the form question<TAB>Yes or No", file=file, line=number)
            order += 1
            yield folder.name, by_stem[file.stem], question.strip(), answer.strip().capitalize(), order
        if not order:
            raise DataError("no questions", file=file)


def _dimensions(types: Mapping[str, Any], file: Path) -> dict[int, str]:
    """Name of each dimension by its number; the file has it the other way round."""
    return {get(types, name, int, file): name for name in types}


def _check_seed(record: Any, dimensions: Mapping[int, str], file: Path, number: int) -> None:
    for field in ("question", "choice_a", "choice_b", "choice_c", "choice_d", "answer"):
        get(record, field, str, file, number)
    get(record, "data_id", (str, int), file, number)
    get(record, "question_id", (str, int), file, number)
    if record["answer"] not in SEEDBench.LETTERS:
        raise DataError(
            f"the answer must be A, B, C or D, not {record['answer']!r}", file=file, line=number, field="answer"
        )
    kind = get(record, "question_type_id", int, file, number)
    if kind not in dimensions:
        raise DataError(f"dimension {kind} is not in 'question_type'", file=file, line=number, field="question_type_id")
