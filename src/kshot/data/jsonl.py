"""Your own data in JSON Lines: one example a line."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kshot.data.readers import PathLike, check_unique, get, get_texts, read_json_lines, shuffled
from kshot.data.sources import FileTask, ImageRoot, LazyExamples, as_template
from kshot.data.task import tasks
from kshot.episode import Example
from kshot.errors import DataError, OptionError
from kshot.prompt import Template

QUESTION = Template(
    demonstration="<image>Question:{question} Short answer:{answer}.",
    user="<image>{question}",
    short_instruction="Answer the question using a single word or phrase.",
)
FIELDS = ("image", "images", "question", "answer", "answers", "references", "choices", "id", "metadata")


def read_examples(file: PathLike, images: PathLike | None = None, *, answered: bool = False) -> Sequence[Example]:
    """The examples of a JSON Lines file.

    One object a line. Fields, all optional but for an answer in support files: ``images`` (a name or a list of names, relative to
    the image root) or ``image``, ``question``, ``answer``, ``references`` or ``answers`` (all accepted answers; default: the answer),
    ``choices``, ``id`` (default: ``<file name>:<line>``), ``metadata`` (an object). Without ``answer`` the first reference is shown.

    Args:
        file: the file.
        images: folder (or zip) that image names are relative to. Default: the file's folder.
        answered: whether each example must have an answer, as demonstrations must.

    Raises:
        DataError: see :mod:`kshot.data.readers`; also an unknown field, or an empty file.
    """
    lines = _Lines(file, images)
    return _answered(lines) if answered else lines.examples()


class _Lines:
    """A JSON Lines file: its records, checked; examples are made of them on demand."""

    def __init__(self, file: PathLike, images: PathLike | None):
        self.file = Path(file)
        records = read_json_lines(self.file, remedy="one JSON object a line: images, question, answer, references")
        self.root = ImageRoot(images if images is not None else self.file.parent)
        self.records = [_checked(record, self.file, line) for line, record in records]
        if not self.records:
            raise DataError("the file holds no examples", file=self.file)
        self.ids = [record["id"] for record in self.records]
        check_unique(self.ids, self.file, lines=[line for line, _ in records])

    def examples(self, numbers: Sequence[int] | None = None) -> LazyExamples:
        """The examples of some records, or of all."""
        return LazyExamples(self._make, range(len(self.records)) if numbers is None else numbers)

    def set_aside(self, size: int, seed: int) -> tuple[list[int], list[int]]:
        """Numbers of ``size`` records chosen by the seed, and of the others. Records that share images are kept together."""
        if not 0 < size < len(self.records):
            last = len(self.records) - 1
            raise OptionError(f"support_size must be between 1 and {last}: {self.file.name} holds {last + 1} examples")
        groups = self._by_image()
        chosen: set[int] = set()
        for key in shuffled(groups, "jsonl", seed):
            if len(chosen) + len(groups[key]) <= size:
                chosen.update(groups[key])
        if not chosen:
            raise DataError(f"each image has more than {size} examples, so none can be set aside", file=self.file)
        return sorted(chosen), [number for number in range(len(self.records)) if number not in chosen]

    def _by_image(self) -> dict[str, list[int]]:
        """Records that are linked by shared images, under the id of the first of them."""
        group_of: dict[str, int] = {}  # image -> number of its group
        groups: dict[int, list[int]] = {}
        for number, record in enumerate(self.records):
            names = set(record["images"])
            merged = [number]
            for old in sorted({group_of[name] for name in names if name in group_of}):
                names.update(name for n in groups[old] for name in self.records[n]["images"])
                merged += groups.pop(old)
            group_of.update(dict.fromkeys(names, number))
            groups[number] = merged
        return {self.ids[min(members)]: members for members in groups.values()}

    def _make(self, number: int) -> Example:
        record = self.records[number]
        return Example(**(record | {"images": tuple(self.root.picture(name) for name in record["images"])}))


@tasks.register("jsonl")
class JsonLines(FileTask):
    """Examples of JSON Lines files; the format is that of :func:`read_examples`.

    Args:
        queries: the file of the queries.
        support: the file of the support set. Without it, ``support_size`` examples of ``queries`` are set aside.
        support_size: how many; all examples of an image go to the same side, so that it may be a few less.
        images, support_images: folder (or zip) that image names are relative to. Default: that of the file.
        labels: all labels, where they form a closed set.
        metric, template, stop, max_new_tokens: as in :class:`~kshot.data.task.Task`; a template may be given by some of its fields.
        seed: chooses the examples that are set aside.
        check_images: look for all image files at once and list those that are missing.
    """

    name = "jsonl"
    template = QUESTION

    def __init__(
        self,
        queries: PathLike,
        *,
        support: PathLike | None = None,
        support_size: int | None = None,
        images: PathLike | None = None,
        support_images: PathLike | None = None,
        labels: Sequence[str] = (),
        metric: str = "exact_match",
        template: Template | Mapping[str, Any] | None = None,
        stop: Sequence[str] = ("\n",),
        max_new_tokens: int = 10,
        seed: int = 0,
        check_images: bool = False,
    ):
        if (support is None) == (support_size is None):
            raise OptionError(
                "task 'jsonl' needs either support= (a file) or support_size= (to set aside of the queries)"
            )
        self.template, self.metric = as_template(template, QUESTION), metric
        self.labels, self.stop, self.max_new_tokens = tuple(labels), tuple(stop), max_new_tokens
        self._sources = (Path(queries), images), (Path(support) if support else None, support_images or images)
        self._support_size, self._seed = support_size, seed
        super().__init__(
            check_images=check_images, support_size=support_size, seed=seed if support_size is not None else None
        )

    def _locate(self) -> dict[str, Path]:
        (queries, _), (support, _) = self._sources
        return {"queries": queries} | ({"support": support} if support else {})

    def _read_queries(self) -> Sequence[Example]:
        file, images = self._sources[0]
        lines = _Lines(file, images)
        if self._support_size is None:
            return lines.examples()
        aside, rest = lines.set_aside(self._support_size, self._seed)
        self._aside = _answered(lines, aside)
        return lines.examples(rest)

    def _read_support(self) -> Sequence[Example]:
        file, images = self._sources[1]
        return self._aside if file is None else _answered(_Lines(file, images))


def _answered(lines: _Lines, numbers: Sequence[int] | None = None) -> LazyExamples:
    """Examples that can be demonstrations: each has an answer."""
    for number in range(len(lines.records)) if numbers is None else numbers:
        if lines.records[number]["answer"] is None:
            raise DataError(
                f"example {lines.ids[number]!r} has no answer, so it cannot be a demonstration",
                file=lines.file,
                field="answer",
            )
    return lines.examples(numbers)


def _checked(record: dict[str, Any], file: Path, line: int) -> dict[str, Any]:
    """The arguments of :class:`Example` that a record gives; images by name."""
    for field in record:
        if field not in FIELDS:
            near = difflib.get_close_matches(field, FIELDS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "put values of your own under 'metadata'"
            raise DataError("unknown field", file=file, line=line, field=field, remedy=hint)
    for one, other in (("image", "images"), ("answers", "references")):
        if one in record and other in record:
            raise DataError(f"{one!r} and {other!r} are both given", file=file, line=line, remedy="give one of them")
    names: list[str] = []
    for field in ("image", "images"):
        if field in record:
            given = get(record, field, (str, list), file, line)
            names = [given] if isinstance(given, str) else get_texts(record, field, file, line)
    if any(not name or "\0" in name for name in names):
        raise DataError("not a file name", file=file, line=line, field="images")
    references: list[str] = []
    for field in ("answers", "references"):
        if field in record:
            references = get_texts(record, field, file, line)
    answer = get(record, "answer", str, file, line) if record.get("answer") is not None else None
    key = str(get(record, "id", (str, int), file, line)) if "id" in record else ""
    return {
        "images": tuple(names),
        "question": get(record, "question", str, file, line) if "question" in record else "",
        "answer": answer if answer is not None else next(iter(references), None),
        "references": tuple(references),
        "choices": tuple(get_texts(record, "choices", file, line)) if "choices" in record else (),
        "id": key or f"{file.name}:{line}",
        "metadata": get(record, "metadata", dict, file, line) if "metadata" in record else {},
    }
