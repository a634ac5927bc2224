"""The classes that link-context training draws its episodes from, read from lists, folders, Omniglot or registered tasks.

Nothing is decoded here; missing files, repeated names and classes that are too small are found before training starts.
"""

from __future__ import annotations

import inspect
import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from kshot.data.concepts import Concept
from kshot.data.folder import class_folders, class_names
from kshot.data.imagenet_folder import image_base
from kshot.data.imagenet_lists import TrainClass, TrainClasses, read_train900
from kshot.data.link_class import LinkClass, LinkClasses, Neighbour, PictureNames
from kshot.data.omniglot import read_characters
from kshot.data.readers import PathLike
from kshot.data.sources import ImageRoot
from kshot.data.task import Task, tasks
from kshot.errors import DataError, OptionError, listed
from kshot.metrics.common import fold


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
