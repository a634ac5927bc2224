"""Your own images in one folder a class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kshot.data.readers import PathLike, check_unique, get, read_json, shuffled
from kshot.data.sources import FileTask, ImageRoot, LazyExamples, as_template
from kshot.data.task import tasks
from kshot.episode import Example
from kshot.errors import DataError, OptionError
from kshot.prompt import Template

EXTENSIONS = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".jfif"))


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
        self._names = class_names(names)
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
        classes, other = class_folders(root)
        if other:
            self.skipped["files that are no images"] = self.skipped.get("files that are no images", 0) + other
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


def class_folders(root: Path) -> tuple[dict[str, list[str]], int]:
    """Image names, relative to the class folder, by class, both sorted; and the number of files that are no images.

    Raises:
        DataError: no such folder, no class folders in it, or one without images.
    """
    if not root.is_dir():
        raise DataError("no such folder", file=root, remedy="a folder with one sub-folder a class is expected")
    classes: dict[str, list[str]] = {}
    other = 0
    for folder in sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")):
        files = [p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".")]
        images = sorted(p.relative_to(folder).as_posix() for p in files if p.suffix.lower() in EXTENSIONS)
        other += len(files) - len(images)
        if not images:
            raise DataError("class without images", file=folder, remedy="add images, or remove the folder")
        classes[folder.name] = images
    if not classes:
        raise DataError("no class folders", file=root, remedy="a folder with one sub-folder a class is expected")
    return classes, other


def class_names(names: Mapping[str, str] | PathLike | None) -> Mapping[str, str]:
    """Labels by folder name, as they are given or from a JSON file."""
    if names is None or isinstance(names, Mapping):
        return names or {}
    data = read_json(names, remedy="an object from folder name to label is expected")
    if not isinstance(data, dict):
        raise DataError("an object from folder name to label is expected", file=names)
    return {folder: get(data, folder, str, names) for folder in data}
