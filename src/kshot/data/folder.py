"""Your own data: JSON Lines, and folders of images by class. (Hugging Face ``datasets``: :mod:`kshot.data.hub`.)"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kshot.data.readers import PathLike, check_unique, get, get_texts, read_json, read_json_lines, shuffled
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
EXTENSIONS = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".jfif"))


def read_examples(file: PathLike, images: PathLike | None = None) -> list[Example]:
    """The examples of a JSON Lines file.

    One object a line. Fields, all optional but for an answer in support files: ``images`` (a name or a list of names, relative to
    the image root) or ``image``, ``question``, ``answer``, ``references`` or ``answers`` (all accepted answers; default: the answer),
    ``choices``, ``id`` (default: ``<file name>:<line>``), ``metadata`` (an object). Without ``answer`` the first reference is shown.

    Args:
        file: the file.
        images: folder (or zip) that image names are relative to. Default: the file's folder.

    Raises:
        DataError: see :mod:`kshot.data.readers`; also an unknown field, or an empty file.
    """
    file = Path(file)
    records = read_json_lines(file, remedy="one JSON object a line: images, question, answer, references")
    root = ImageRoot(images if images is not None else file.parent)
    examples = [_example(record, file, line, root) for line, record in records]
    if not examples:
        raise DataError("the file holds no examples", file=file)
    check_unique([example.id for example in examples], file, lines=[line for line, _ in records])
    return examples


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
        examples = read_examples(file, images)
        if self._support_size is None:
            return examples
        self._aside, rest = _set_aside(examples, self._support_size, self._seed, file)
        return rest

    def _read_support(self) -> Sequence[Example]:
        file, images = self._sources[1]
        if file is None:
            examples, file = self._aside, self._sources[0][0]
        else:
            examples = read_examples(file, images)
        for example in examples:
            if example.answer is None:
                raise DataError(
                    f"example {example.id!r} has no answer, so it cannot be a demonstration", file=file, field="answer"
                )
        return examples


@tasks.register("image_folder")
class ImageFolder(FileTask):
    """Classification of images that lie in one folder a class; the folder's name is the label.

    Args:
        root: folder of the class folders; ``support_per_class`` images of each are set aside as support set.
        support_per_class: how many.
        support, queries: instead of these two, separate folders with the same classes (``train``, ``test``).
        names: label of a folder where it is not its name (``{"n02119789": "kit fox"}``), or a JSON file with that.
        question: what is asked about each image.
        template: as in :class:`~kshot.data.task.Task`, or some of its fields.
        max_new_tokens: room for a label.
        seed: chooses the images that are set aside; each class by itself.

    Raises:
        DataError: no classes, a class without images or with too few, a class of the queries that the support set lacks.
    """

    name = "image_folder"
    template = Template(
        demonstration="<image>{question} Answer:{answer}",
        user="<image>{question}",
        short_instruction="Answer with the name of the class only.",
    )
    retriever = "balanced"

    def __init__(
        self,
        root: PathLike | None = None,
        *,
        support_per_class: int = 8,
        support: PathLike | None = None,
        queries: PathLike | None = None,
        names: Mapping[str, str] | PathLike | None = None,
        question: str = "What is this?",
        template: Template | Mapping[str, Any] | None = None,
        max_new_tokens: int = 10,
        seed: int = 0,
    ):
        if (root is None) == (support is None and queries is None) or (support is None) != (queries is None):
            raise OptionError("task 'image_folder' needs either root=, or both support= and queries=")
        if support_per_class < 1:
            raise OptionError("task 'image_folder': support_per_class must be at least 1")
        self.template = as_template(template, type(self).template)
        self.max_new_tokens = max_new_tokens
        self._names = _class_names(names)
        self._question, self._seed, self._per_class = question, seed, support_per_class
        self._split = (Path(support), Path(queries)) if support and queries else None
        self._root = Path(root) if root else None
        options: dict[str, Any] = {"question": question}
        if root is not None:
            options |= {"support_per_class": support_per_class, "seed": seed}
        super().__init__(**options)

    def _read_queries(self) -> Sequence[Example]:
        if self._split:
            support, queries = self._classes(self._split[0]), self._classes(self._split[1])
            if lost := sorted(set(queries) - set(support)):
                raise DataError(f"class {lost[0]!r} is not in the support set", file=self._split[1])
            self._aside = self._examples(self._split[0], support)
            found = self._examples(self._split[1], queries)
        else:
            assert self._root is not None
            classes, aside, rest = self._classes(self._root), {}, {}
            for folder, images in classes.items():
                if len(images) <= self._per_class:
                    raise DataError(
                        f"class {folder!r} has {len(images)} images, too few to set {self._per_class} aside",
                        file=self._root / folder,
                        remedy="lower support_per_class",
                    )
                order = shuffled(images, self.name, self._seed, folder)
                aside[folder], rest[folder] = sorted(order[: self._per_class]), sorted(order[self._per_class :])
            support = classes
            self._aside, found = self._examples(self._root, aside), self._examples(self._root, rest)
        self.labels = tuple(self._label(folder) for folder in support)
        check_unique(self.labels, self._root or self._split[0], "label")  # type: ignore[index]
        return found

    def _read_support(self) -> Sequence[Example]:
        return self._aside

    def describe(self) -> dict[str, Any]:
        """As for every task, with the labels."""
        return super().describe() | {"labels": list(self.labels), "support": len(self._aside)}

    def _classes(self, root: Path) -> dict[str, list[str]]:
        """Image names, relative to the class folder, by class; both sorted."""
        if not root.is_dir():
            raise DataError("no such folder", file=root, remedy="a folder with one sub-folder a class is expected")
        classes: dict[str, list[str]] = {}
        for folder in sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")):
            files = [p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".")]
            images = sorted(p.relative_to(folder).as_posix() for p in files if p.suffix.lower() in EXTENSIONS)
            if other := len(files) - len(images):
                self.skipped["files that are no images"] = self.skipped.get("files that are no images", 0) + other
            if not images:
                raise DataError("class without images", file=folder, remedy="add images, or remove the folder")
            classes[folder.name] = images
        if not classes:
            raise DataError("no class folders", file=root, remedy="a folder with one sub-folder a class is expected")
        return classes

    def _examples(self, root: Path, classes: Mapping[str, list[str]]) -> LazyExamples:
        place = ImageRoot(root)
        items = [(folder, name) for folder, names in classes.items() for name in names]

        def make(number: int) -> Example:
            folder, name = items[number]
            label = self._label(folder)
            return Example(
                (place.picture(f"{folder}/{name}"),),
                self._question,
                label,
                id=f"{folder}/{name}",
                metadata={"class": label},
            )

        return LazyExamples(make, range(len(items)))

    def _label(self, folder: str) -> str:
        return self._names.get(folder, folder)


def _example(record: dict[str, Any], file: Path, line: int, root: ImageRoot) -> Example:
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
    texts = {field: get_texts(record, field, file, line) for field in ("answers", "references") if field in record}
    references = next(iter(texts.values()), [])
    answer = get(record, "answer", str, file, line) if record.get("answer") is not None else None
    key = get(record, "id", (str, int), file, line) if "id" in record else f"{file.name}:{line}"
    return Example(
        images=tuple(root.picture(name) for name in names),
        question=get(record, "question", str, file, line) if "question" in record else "",
        answer=answer if answer is not None else next(iter(references), None),
        references=tuple(references),
        choices=tuple(get_texts(record, "choices", file, line)) if "choices" in record else (),
        id=str(key) or f"{file.name}:{line}",
        metadata=get(record, "metadata", dict, file, line) if "metadata" in record else {},
    )


def _set_aside(
    examples: Sequence[Example], size: int, seed: int, file: Path
) -> tuple[Sequence[Example], Sequence[Example]]:
    """Support set and queries: whole images are set aside, in an order that depends on the seed, until ``size`` is reached."""
    if not 0 < size < len(examples):
        raise OptionError(f"support_size must be between 1 and {len(examples) - 1}, the file holds {len(examples)}")
    groups: dict[str, list[Example]] = {}
    for example in examples:
        key = json.dumps([p.name for p in example.images]) if example.images else example.id
        groups.setdefault(key, []).append(example)
    # The order must not depend on where the images lie, hence the ids.
    by_id = {group[0].id: group for group in groups.values()}
    chosen: set[str] = set()
    for key in shuffled(by_id, "jsonl", seed):
        if len(chosen) + len(by_id[key]) <= size:
            chosen |= {example.id for example in by_id[key]}
    if not chosen:
        raise DataError(f"each image has more than {size} examples, so none can be set aside", file=file)
    return [e for e in examples if e.id in chosen], [e for e in examples if e.id not in chosen]


def _class_names(names: Mapping[str, str] | PathLike | None) -> Mapping[str, str]:
    if names is None or isinstance(names, Mapping):
        return names or {}
    data = read_json(names, remedy="an object from folder name to label is expected")
    if not isinstance(data, dict):
        raise DataError("an object from folder name to label is expected", file=names)
    return {folder: get(data, folder, str, names) for folder in data}
