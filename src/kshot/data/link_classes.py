"""The classes that link-context training draws its episodes from, whatever they were read from.

A class is a name and pictures, and where it is known the classes most like it (:class:`Neighbour`), from which hard negatives are
drawn. Nothing is decoded here; missing files, repeated names and classes that are too small are found before training starts.
"""

from __future__ import annotations

import inspect
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, overload

from tqdm import tqdm

from kshot.data.concepts import Concept, digest, listed
from kshot.data.folder import class_folders, class_names
from kshot.data.imagenet_folder import image_base
from kshot.data.imagenet_lists import TrainClass, TrainClasses, read_train900
from kshot.data.omniglot import read_characters
from kshot.data.readers import PathLike
from kshot.data.sources import ImageRoot
from kshot.data.task import Task, tasks
from kshot.errors import DataError, OptionError, UnknownName
from kshot.metrics.common import fold
from kshot.picture import ArchivePicture, FilePicture, Picture


@dataclass(frozen=True)
class Neighbour:
    """A class like another one.

    Attributes:
        key: its key.
        picture: one of its pictures, chosen when the list was made; it need not be among the class' own pictures.
    """

    key: str
    picture: Picture | None = None


@dataclass(frozen=True)
class LinkClass:
    """A class of pictures.

    Attributes:
        key: unique among the classes; never shown to a model.
        name: its real name, as it is shown.
        pictures: all different.
        neighbours: classes like it, the most similar first; empty where similarity is not known.
    """

    key: str
    name: str
    pictures: Sequence[Picture]
    neighbours: tuple[Neighbour, ...] = ()


class LinkClasses(Sequence[LinkClass]):
    """Classes in a fixed order.

    Args:
        classes: the classes.
        source: what they were read from, for messages.
        kind: what sort of source that is: ``train900``, ``folders``, ``omniglot``, or the name of a task.
        content: a text from which their digest is made; must be free of machine paths.

    Raises:
        DataError: no class, a key or a picture twice, or neighbours that are no classes of this list.
    """

    def __init__(self, classes: Iterable[LinkClass], *, source: str, kind: str, content: str | None = None):
        self._classes = tuple(classes)
        self.source, self.kind = source, kind
        self._content = content if content is not None else _content(self._classes)
        if not self._classes:
            raise DataError("no classes found", file=source)
        self._places: dict[str, int] = {}
        for place, one in enumerate(self._classes):
            if one.key in self._places:
                raise DataError(f"two classes of one key: {one.key!r}", file=source, remedy="rename one of them")
            self._places[one.key] = place
        for one in self._classes:
            strange = [n.key for n in one.neighbours if n.key == one.key or n.key not in self._places]
            if strange:
                problem = f"neighbours of {one.key!r} that are no other classes of the list: {listed(strange)}"
                raise DataError(problem, file=source)
        self._namesakes: dict[str, list[str]] = defaultdict(list)
        for one in self._classes:
            self._namesakes[fold(one.name)].append(one.key)

    def __len__(self) -> int:
        return len(self._classes)

    @overload
    def __getitem__(self, index: int) -> LinkClass: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[LinkClass, ...]: ...
    def __getitem__(self, index: int | slice) -> LinkClass | tuple[LinkClass, ...]:
        return self._classes[index]

    def by_key(self, key: str) -> LinkClass:
        """The class of a key.

        Raises:
            UnknownName: there is none.
        """
        return self._classes[self.place(key)]

    def place(self, key: str) -> int:
        """The number of the class of a key.

        Raises:
            UnknownName: there is none.
        """
        if key not in self._places:
            raise UnknownName("class", key, self._places)
        return self._places[key]

    def namesakes(self, one: LinkClass) -> tuple[str, ...]:
        """Keys of the other classes that bear the same name, case folded. They must not meet it in one episode."""
        return tuple(key for key in self._namesakes[fold(one.name)] if key != one.key)

    def may_meet(self, one: LinkClass, other: LinkClass) -> bool:
        """Whether two classes may be told apart in one episode: they are two, and bear different names."""
        return one.key != other.key and fold(one.name) != fold(other.name)

    def check(self, shots_per_side: int, *, queries: int = 1) -> None:
        """Complain about classes with too few pictures for an episode whose query is not among its demonstrations.

        Args:
            shots_per_side: demonstrations of a class.
            queries: pictures of a class that are kept for the query.

        Raises:
            DataError: names the classes and how many pictures they have.
        """
        need = shots_per_side + queries
        poor = [f"{c.key} {c.name} ({len(c.pictures)})" for c in self._classes if len(c.pictures) < need]
        if poor:
            raise DataError(
                f"{len(poor)} of {len(self)} classes have fewer than the {need} pictures that {shots_per_side} shots per side "
                f"and a query take: {listed(poor)}",
                file=self.source,
                remedy="lower the shots, add pictures, or remove the class",
            )

    def describe(self) -> dict[str, Any]:
        """Kind, counts and a digest of names and pictures, equal on every machine, for the records of a run."""
        return {
            "kind": self.kind,
            "classes": len(self),
            "pictures": sum(len(one.pictures) for one in self._classes),
            "neighbours": sum(len(one.neighbours) for one in self._classes),
            "digest": digest(self._content),
        }

    def __repr__(self) -> str:
        return f"<{len(self)} classes of {self.source}>"


class PictureNames(Sequence[Picture]):
    """Pictures of an image root by their names; made when they are asked for.

    Args:
        root: what the names are relative to.
        names: the names.
    """

    def __init__(self, root: ImageRoot, names: Sequence[str]):
        self.root, self.names = root, tuple(names)

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, index: int) -> Picture: ...
    @overload
    def __getitem__(self, index: slice) -> PictureNames: ...
    def __getitem__(self, index: int | slice) -> Picture | PictureNames:
        if isinstance(index, slice):
            return PictureNames(self.root, self.names[index])
        return self.root.picture(self.names[index])


def load_link_classes(
    source: PathLike | Task | Sequence[LinkClass],
    *,
    root: PathLike | None = None,
    names: Mapping[str, str] | PathLike | None = None,
    check_images: bool = True,
    **options: Any,
) -> LinkClasses:
    """The classes of a source.

    Args:
        source: a file in the format of ``train900_pairs.jsonl``; a folder with one sub-folder a class; an Omniglot archive or
            folder; the name of a registered n-way task, or such a task; or classes made elsewhere.
        root: of a file: the folder (or zip) that its paths are relative to, an ImageNet folder included (default: that of the
            file); of a task's name: its ``root``.
        names: of folders: the class' name where it is not the folder's (``{"n02119789": "kit fox"}``), or a JSON file with that.
        check_images: look for all image files of a list at once.
        options: of the task.

    Returns:
        The classes. Names in a list are given in lower case, as the published training shows them; all others are left as they are.

    Raises:
        DataError: a source that is missing or malformed, images that are missing, or classes that bear one name (in a list they may,
            see :meth:`LinkClasses.may_meet`).
        OptionError: options that the source does not take, or a task without classes.
        UnknownName: neither a file nor a task.
    """
    if isinstance(source, Task):
        _refuse(source, root=root, names=names, **options)
        return _of_task(source)
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        if not os.path.exists(path) and os.sep not in str(source) and not path.suffix:
            _refuse(source, names=names)
            maker: Any = tasks.get(str(source))
            return _of_task(_made(maker, str(source), options | ({"root": root} if root is not None else {})))
        if not os.path.exists(path):
            raise DataError("file or folder not found", file=path)
        if path.is_dir() and not _holds_characters(path):
            _refuse(source, root=root, **options)
            return _of_folders(path, class_names(names))
        if path.is_dir() or path.suffix.lower() == ".zip":
            _refuse(source, root=root, names=names, **options)
            return _of_concepts(read_characters(path), source=str(path), kind="omniglot")
        _refuse(source, names=names, **options)
        return _of_list(path, image_base(root) if root is not None else path.parent, check_images)
    _refuse("classes", root=root, names=names, **options)
    return LinkClasses(source, source="classes", kind="classes")


def _of_list(file: Path, root: PathLike, check_images: bool) -> LinkClasses:
    read = read_train900(file, warn=False)
    _check_pictures_differ(read, file)
    images = ImageRoot(root)
    if check_images:
        _check_pictures_exist(read, images, file)
    # A namesake cannot be told apart by its name, so that no episode could show it as a negative.
    names = {row.class_id: fold(row.class_name) for row in read.classes}
    return LinkClasses(
        (
            LinkClass(
                row.class_id,
                row.class_name.lower(),
                PictureNames(images, row.samples),
                tuple(
                    Neighbour(n.class_id, images.picture(n.sample))
                    for n in row.neighbors
                    if names[n.class_id] != names[row.class_id]
                ),
            )
            for row in read.classes
        ),
        source=str(file),
        kind="train900",
        content=repr([(row.class_id, row.class_name, row.samples, _flat(row)) for row in read.classes]),
    )


def _of_folders(root: Path, names: Mapping[str, str]) -> LinkClasses:
    classes, _ = class_folders(root)
    if unknown := sorted(set(names) - set(classes)):
        raise DataError(f"names= holds no folders of the root: {listed(unknown)}", file=root)
    concepts = [
        Concept(folder, names.get(folder, folder), PictureNames(ImageRoot(root), [f"{folder}/{n}" for n in files]))
        for folder, files in classes.items()
    ]
    return _of_concepts(concepts, source=str(root), kind="folders")


def _of_task(task: Task) -> LinkClasses:
    concepts: Sequence[Concept] | None = getattr(task, "concepts", None)
    if concepts is None:
        raise OptionError(
            f"task {task.name!r} has no list of classes to draw episodes from; use omniglot, glyphs, digits ..."
        )
    return _of_concepts(concepts, source=f"task {task.name}", kind=task.name)


def _of_concepts(concepts: Sequence[Concept], *, source: str, kind: str) -> LinkClasses:
    named: dict[str, list[str]] = defaultdict(list)
    for concept in concepts:
        named[fold(concept.name)].append(concept.key)
    if twice := [f"{keys[0]} and {keys[1]}" for keys in named.values() if len(keys) > 1]:
        raise DataError(f"two classes of one name: {listed(twice)}", file=source, remedy="rename one of them")
    return LinkClasses((LinkClass(c.key, c.name, c.pictures) for c in concepts), source=source, kind=kind)


def _made(maker: Any, name: str, options: dict[str, Any]) -> Task:
    try:
        inspect.signature(maker).bind(**options)
    except TypeError as error:  # an option that the task lacks, or that it cannot do without
        raise OptionError(f"task {name!r}: {error}") from None
    task: Task = maker(**options)
    return task


def _check_pictures_differ(read: TrainClasses, file: Path) -> None:
    held: dict[str, int] = {}
    for line, row in zip(read.lines, read.classes, strict=True):
        for path in row.samples:
            if path in held:
                problem = f"{path} is listed twice, in lines {held[path]} and {line}"
                raise DataError(
                    problem, file=file, line=line, field="samples", remedy="a query could be among its demonstrations"
                )
            held[path] = line


def _check_pictures_exist(read: TrainClasses, images: ImageRoot, file: Path) -> None:
    """Raises a :class:`DataError` with the missing images and the lines that name them."""
    lines: dict[str, int] = {}
    for line, row in zip(read.lines, read.classes, strict=True):
        for path in (*row.samples, *(n.sample for n in row.neighbors)):
            lines.setdefault(path, line)
    missing = [p for p in tqdm(lines, "looking for the images", leave=False, disable=None) if not images.has(p)]
    if missing:
        shown = listed([f"{path} (line {lines[path]})" for path in missing])
        raise DataError(
            f"{len(missing)} of {len(lines)} images not found under {images.path}: {shown}",
            file=file,
            line=lines[missing[0]],
            remedy="root= is the folder that the paths are relative to",
        )


def _holds_characters(folder: Path) -> bool:
    """Whether a folder looks like an unpacked Omniglot archive; looks at a few sub-folders only, there may be a million files."""
    for depth in ("*", "*/*", "*/*/*"):
        if any(re.fullmatch(r"character\d+", p.name) and p.is_dir() for p in islice(folder.glob(depth), 200)):
            return True
    return False


def _refuse(source: object, **given: Any) -> None:
    if told := [name for name, value in given.items() if value is not None]:
        raise OptionError(f"{source}: this kind of source takes no {', '.join(f'{name}=' for name in told)}")


def _flat(row: TrainClass) -> list[tuple[str, str]]:
    return [(n.class_id, n.sample) for n in row.neighbors]


def _content(classes: Sequence[LinkClass]) -> str:
    return repr([(c.key, c.name, [_short(p) for p in c.pictures], [n.key for n in c.neighbours]) for c in classes])


def _short(picture: Picture) -> str:
    """A picture's name without the folders of this machine."""
    if isinstance(picture, ArchivePicture):
        return picture.member
    return "/".join(picture.path.parts[-2:]) if isinstance(picture, FilePicture) else picture.name
