"""What tasks that read files share: lazily made examples, image roots, splits, and what is written down about the sources."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, overload

from tqdm import tqdm

from kshot.data.readers import PathLike, fingerprint
from kshot.data.task import Task
from kshot.episode import Example
from kshot.errors import DataError, OptionError
from kshot.picture import ArchivePicture, DerivedPicture, FilePicture, Picture, open_archive
from kshot.prompt import Template


class LazyExamples(Sequence[Example]):
    """Examples made when they are asked for.

    Half a million of them would take seconds and a gigabyte if they were made up front; the raw records are there anyway.

    Args:
        make: gives the example of a number; must give the same one each time.
        numbers: the numbers, in order: ``range(n)``, or a choice of them.
    """

    def __init__(self, make: Callable[[int], Example], numbers: Sequence[int]):
        self._make, self._numbers = make, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> LazyExamples: ...
    def __getitem__(self, index: int | slice) -> Example | LazyExamples:
        if isinstance(index, slice):
            return LazyExamples(self._make, self._numbers[index])
        return self._make(self._numbers[index])

    def at(self, indices: Sequence[int]) -> LazyExamples:
        """The examples at some places, in that order."""
        return LazyExamples(self._make, [self._numbers[i] for i in indices])

    def __repr__(self) -> str:
        return f"<{len(self)} examples>"


class ImageRoot:
    """The place that image names are relative to: a folder, or a zip archive that need not be unpacked.

    In a folder, ``val2014/x.jpg`` is also found in ``val2014.zip`` when there is no folder ``val2014``.

    Raises:
        DataError: there is no such folder or archive.
    """

    def __init__(self, path: PathLike):
        self.path = Path(path)
        self._archives: dict[str, tuple[Path, frozenset[str]] | None] = {}
        if self.path.is_file():
            self._archives[""] = _members(self.path)
        elif not self.path.is_dir():
            raise DataError("image folder not found", file=self.path, remedy="give the folder (or zip) of the images")

    def picture(self, name: str) -> Picture:
        """The image of a relative name. Nothing is read; a missing image shows when it is loaded."""
        held = self._archives[""] if "" in self._archives else self._archive_of(name)
        if held is None:
            return FilePicture(self.path / name)
        archive, members = held
        inside = f"{archive.stem}/{name}"
        return ArchivePicture(archive, inside if name not in members and inside in members else name)

    def has(self, name: str) -> bool:
        """Whether there is such an image."""
        return exists(self.picture(name))

    def _archive_of(self, name: str) -> tuple[Path, frozenset[str]] | None:
        first, slash, _ = name.partition("/")
        if not slash:
            return None
        if first not in self._archives:
            zipped = self.path / f"{first}.zip"
            packed = not (self.path / first).exists() and zipped.is_file()
            self._archives[first] = _members(zipped) if packed else None
        return self._archives[first]


def _members(archive: Path) -> tuple[Path, frozenset[str]]:
    return archive, frozenset(open_archive(archive).namelist())


def exists(picture: Picture) -> bool:
    """Whether the file of a picture is there (it is not decoded)."""
    if isinstance(picture, DerivedPicture):
        return exists(picture.origin)
    if isinstance(picture, FilePicture):
        return os.path.isfile(picture.path)  # unlike Path.is_file(), also false for a name that is too long
    if isinstance(picture, ArchivePicture):
        return picture.member in open_archive(picture.archive).NameToInfo
    return True


def check_images_exist(examples: Iterable[Example], *, what: str, file: PathLike) -> None:
    """Looks for the image files of all examples.

    Raises:
        DataError: some are missing; says how many and names the first ten.
    """
    missing: list[str] = []
    for example in tqdm(examples, desc=f"looking for the images of the {what}", disable=None, leave=False):
        missing += [p.name for p in example.images if not exists(p)]
    if missing:
        names = list(dict.fromkeys(missing))
        shown = ", ".join(names[:10]) + (" ..." if len(names) > 10 else "")
        raise DataError(f"{len(names)} images of the {what} are missing: {shown}", file=file, remedy="check images=")


class FileTask(Task):
    """A task whose examples come from files.

    A subclass says in ``_locate`` which files it will read, reads its queries in ``_read_queries`` when it is made, so that wrong
    files are reported at once, and its support set in ``_read_support`` when that is first asked for: training annotations are
    large, and zero shots need none. A support file that the user names must exist from the start.
    """

    def __init__(self, *, check_images: bool = False, **options: Any):
        self._options = {key: value for key, value in options.items() if value is not None}
        self.skipped: dict[str, int] = {}
        self._files = self._locate()
        for path in self._files.values():
            if not path.exists():
                raise DataError("file not found", file=path)
        self._queries = self._read_queries()
        if check_images:
            for what, examples in (("queries", self._queries), ("support set", self.support)):
                check_images_exist(examples, what=what, file=next(iter(self._files.values()), ""))

    def _locate(self) -> dict[str, Path]:
        """The files by what they hold. A support file that is looked for and not there is left out."""
        return {}

    @abstractmethod
    def _read_queries(self) -> Sequence[Example]: ...

    @abstractmethod
    def _read_support(self) -> Sequence[Example]: ...

    @property
    def queries(self) -> Sequence[Example]:
        return self._queries

    @cached_property
    def support(self) -> Sequence[Example]:
        return self._read_support()

    def describe(self) -> dict[str, Any]:
        """Name, options, number of queries, items left out by kind, and name and hash of each file (no paths)."""
        files = {role: {"name": path.name, "hash": fingerprint(path)} for role, path in sorted(self._files.items())}
        return {
            "task": self.name,
            "options": self._options,
            "files": files,
            "queries": len(self._queries),
            "skipped": self.skipped,
        }


class LeaveOneOut:
    """Pools for benchmarks that come without a support set: the other examples of the query's category.

    Examples that show the same image as the query are left out, for they would give its content away.

    Args:
        examples: all examples.
        categories: category of each.
        images: an identifier of the image of each.
    """

    def __init__(self, examples: LazyExamples, categories: Sequence[str], images: Sequence[str]):
        self._examples, self._categories, self._images = examples, categories, images
        self._members: dict[str, list[int]] = {}
        for index, category in enumerate(categories):
            self._members.setdefault(category, []).append(index)

    def pool(self, category: str, image: str) -> LazyExamples:
        """The examples of a category that do not show an image."""
        members = self._members.get(category, [])
        return self._examples.at([i for i in members if self._images[i] != image])


def as_template(template: Template | Mapping[str, Any] | None, default: Template) -> Template:
    """A template given by the user, as an object or as its fields; fields left out are those of ``default``."""
    if template is None:
        return default
    if isinstance(template, Template):
        return template
    fields = {name: getattr(default, name) for name in Template.__dataclass_fields__}
    unknown = set(template) - set(fields)
    if unknown:
        raise OptionError(f"template has no field {sorted(unknown)[0]!r}; its fields are: {', '.join(fields)}")
    return Template(**(fields | dict(template)))
