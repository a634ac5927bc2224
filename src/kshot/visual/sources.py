"""Where the pictures of visual sentences come from: folders and zip archives, found recursively and joined by name.

Nothing is paired by its place in a sorted listing: a picture belongs to another one because their names say so. What has no partner is
listed with the reason, and it is an error if nothing is left. Pictures are neither opened nor decoded here.

Files whose names begin with a dot are none of the user's (``.DS_Store``) and are passed over, and so is ``__MACOSX``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import NamedTuple, Protocol, TypeAlias

from kshot.data.folder import EXTENSIONS
from kshot.data.readers import PathLike
from kshot.data.sources import ImageRoot
from kshot.errors import DataError, OptionError
from kshot.picture import Picture, open_archive

Skipped: TypeAlias = "tuple[str, str]"
"""A source that is not used, and why. Reasons of one kind begin with the same words, up to a colon."""


class Place(Protocol):
    """Whatever has pictures by name."""

    def picture(self, name: str) -> Picture:
        """The picture of a name; nothing is read."""


class Source(NamedTuple):
    """A picture that is not made yet: sources are counted by the million.

    Attributes:
        id: its name in its place.
        place: where it is, or the picture itself.
    """

    id: str
    place: Place | Picture

    def picture(self) -> Picture:
        """The picture; nothing is read."""
        return self.place if isinstance(self.place, Picture) else self.place.picture(self.id)


class Track(Protocol):
    """Frames in their order."""

    def __len__(self) -> int: ...

    def at(self, frames: Sequence[int]) -> list[tuple[str, Picture]]:
        """The source ids and pictures of some frames, counted from 0; nothing is decoded."""


@dataclass(frozen=True)
class Frames:
    """The frames of a sequence that are pictures in a folder.

    Attributes:
        sources: the frames, in order.
    """

    sources: tuple[Source, ...]

    def __len__(self) -> int:
        return len(self.sources)

    def at(self, frames: Sequence[int]) -> list[tuple[str, Picture]]:
        return [(self.sources[i].id, self.sources[i].picture()) for i in frames]


@dataclass(frozen=True)
class Record:
    """What belongs together: a picture, a picture with its annotations, a sequence, sequences of the same scene.

    Attributes:
        id: unique; what is drawn for the record derives from it.
        parts: its pictures, one a modality.
        tracks: its sequences, one a modality, all of the same length.
        group: a class it belongs to.
    """

    id: str
    parts: tuple[Source, ...] = ()
    tracks: tuple[Track, ...] = ()
    group: str = ""


@dataclass(frozen=True)
class Found:
    """What a search has found.

    Attributes:
        records: sorted by id.
        skipped: what is not used.
    """

    records: tuple[Record, ...]
    skipped: list[Skipped] = field(default_factory=list)


def record_of(id: str, *pictures: Picture, group: str = "") -> Record:
    """A record of pictures in memory, or generated ones."""
    return Record(id, tuple(Source(id, picture) for picture in pictures), group=group)


class Tree:
    """All files of one or several folders (or zip archives), searched recursively, links followed.

    A file's name is its path relative to its folder, with ``/``; where there are several folders, their names stand before it.

    Args:
        roots: the folders.
        extensions: of the files that are meant, lower case; others are listed in :attr:`others`.

    Raises:
        DataError: a folder is missing, cannot be read or holds no such file; or two folders have the same name.
    """

    def __init__(self, roots: PathLike | Sequence[PathLike], extensions: frozenset[str] = EXTENSIONS):
        listed = [roots] if isinstance(roots, (str, os.PathLike)) else list(roots)
        self.roots = {"" if len(listed) == 1 else Path(root).name: Path(root) for root in listed}
        if len(self.roots) < len(listed):
            raise DataError(
                "two folders have the same name, so that their pictures could not be told apart",
                file=listed[0],
                remedy="rename one, or give the folder above them",
            )
        self.names: list[str] = []
        self.others: list[str] = []
        for label, root in self.roots.items():
            start = f"{label}/" if label else ""
            held = sorted(_files(root))
            meant = [start + name for name in held if PurePosixPath(name).suffix.lower() in extensions]
            if not meant:
                kinds = "pictures" if extensions is EXTENSIONS else "such files"
                raise DataError(
                    f"no {kinds} in it ({len(held)} other files)" if held else "the folder is empty",
                    file=root,
                    remedy=f"files ending in {', '.join(sorted(extensions))} are looked for, in any case and at any depth",
                )
            chosen = set(meant)
            self.names += meant
            self.others += [start + name for name in held if start + name not in chosen]

    def picture(self, name: str) -> Picture:
        """The picture of a name; nothing is read."""
        if "" in self.roots:
            return self._images[""].picture(name)
        label, _, inside = name.partition("/")
        return self._images[label].picture(inside)

    def path(self, name: str) -> Path:
        """The file of a name."""
        if "" in self.roots:
            return self.roots[""] / name
        label, _, inside = name.partition("/")
        return self.roots[label] / inside

    def sources(self) -> list[Source]:
        """All pictures."""
        return [Source(name, self) for name in self.names]

    def skipped(self) -> list[Skipped]:
        """The files of other kinds."""
        return [(self.place(name), "no picture by its extension") for name in self.others]

    def place(self, name: str) -> str:
        """Where a file is, for messages."""
        return self.picture(name).name

    @cached_property
    def _images(self) -> dict[str, ImageRoot]:
        return {label: ImageRoot(root) for label, root in self.roots.items()}


@dataclass(frozen=True)
class Modality:
    """The pictures of one kind: in a folder of their own, or among others, told by a pattern.

    Attributes:
        folder: the folder or folders.
        files: pattern of the file names with one ``*``, with or without extension (``*_depth``, ``rgb_*.png``); the part that the
            star stands for is what partners have in common.
    """

    folder: PathLike | Sequence[PathLike]
    files: str = "*"

    def __post_init__(self) -> None:
        if not isinstance(self.files, str) or self.files.count("*") != 1 or "/" in self.files:
            raise OptionError(f"a pattern of file names has one '*' and no '/', like '*_depth': {self.files!r}")

    def key(self, name: str) -> str | None:
        """What partners have in common: path and name, without extension and pattern; ``None`` if the pattern does not fit."""
        folder, _, file = name.rpartition("/")
        before, after = self.files.split("*")
        for candidate in (file.rpartition(".")[0] or file, file):
            if match := re.fullmatch(re.escape(before) + "(.+)" + re.escape(after), candidate, re.DOTALL):
                return f"{folder}/{match[1]}" if folder else match[1]
        return None


def joined(modalities: Mapping[str, Modality], by: str = "path") -> Found:
    """Records of pictures that belong together, one picture a modality, in the order of ``modalities``.

    Args:
        modalities: the kinds of pictures.
        by: ``path``: partners lie in the same sub-folder and have the same name, but for extension and pattern; ``stem``: they have
            the same name, wherever they lie.

    Returns:
        The records whose modalities are all there; the others, files that are no pictures, and names that two files of a modality bear
        are listed.

    Raises:
        DataError: a folder is missing or empty; or nothing matches.
    """
    trees: dict[str, Tree] = {}
    place: dict[str, str] = {}
    same = len(modalities) - len({(str(modality.folder), modality.files) for modality in modalities.values()})
    if same:
        raise OptionError(
            f"of {', '.join(map(repr, modalities))}, {same + 1} are the same files: give each a folder or a pattern of its own"
        )
    for name, modality in modalities.items():
        place[name] = str(modality.folder)
        trees.setdefault(place[name], Tree(modality.folder))
    skipped = [item for tree in trees.values() for item in tree.skipped()]
    keyed: dict[str, dict[str, str]] = {name: {} for name in modalities}
    twice: dict[str, dict[str, list[str]]] = {name: {} for name in modalities}
    for where, tree in trees.items():
        # Patterns that share a folder: '*' means what the more special '*_mask' leaves over.
        here = sorted((n for n in modalities if place[n] == where), key=lambda n: -len(modalities[n].files))
        for file in tree.names:
            for name in here:
                key = modalities[name].key(file)
                if key is not None:
                    key = key.rpartition("/")[2] if by == "stem" else key
                    if key in keyed[name]:
                        twice[name].setdefault(key, [keyed[name][key]]).append(file)
                    keyed[name].setdefault(key, file)
                    break
            else:
                patterns = " or ".join(repr(modalities[name].files) for name in here)
                skipped.append((tree.place(file), f"its name does not fit: {patterns} expected"))
    for name, doubled in twice.items():
        for key, files in doubled.items():
            reason = f"name used twice: {' and '.join(files)} of {name!r}"
            skipped += [(trees[place[name]].place(file), reason) for file in files]
            del keyed[name][key]
    common = set.intersection(*(set(keys) for keys in keyed.values()))
    for name, keys in keyed.items():
        for key, file in keys.items():
            if key not in common:
                lacking = ", ".join(repr(other) for other in modalities if key not in keyed[other])
                skipped.append((trees[place[name]].place(file), f"no partner: {name!r} has it, {lacking} not"))
    if not common:
        raise DataError(
            f"nothing matches by name: {_examples(modalities, keyed)}",
            file=next(iter(place.values())),
            remedy=_join_remedy(modalities, keyed, by),
        )
    return Found(
        tuple(
            Record(key, tuple(Source(keyed[name][key], trees[place[name]]) for name in modalities))
            for key in sorted(common)
        ),
        skipped,
    )


def frame_folders(tree: Tree) -> dict[str, tuple[Source, ...]]:
    """The frames of every folder that holds pictures, by the folder's name; ``.`` is the tree's own.

    Frames are in the order of their names, where numbers count as such: ``f2.png`` before ``f10.png``.
    """
    folders: dict[str, list[str]] = {}
    for name in tree.names:
        folders.setdefault(name.rpartition("/")[0] or ".", []).append(name)
    return {
        folder: tuple(Source(name, tree) for name in sorted(names, key=natural)) for folder, names in folders.items()
    }


def natural(name: str) -> tuple[tuple[tuple[int, int | str], ...], str]:
    """A key that sorts names with their numbers in numerical order; names that differ in leading zeros only come as they are spelt."""
    parts = tuple((0, int(part)) if part.isdecimal() else (1, part) for part in re.split(r"(\d+)", name) if part)
    return parts, name


def _files(root: Path) -> Iterator[str]:
    if root.is_file():
        for member in open_archive(root).namelist():
            if not member.endswith("/") and not _hidden(PurePosixPath(member).parts):
                yield member
        return
    if not root.is_dir():
        raise DataError("folder not found", file=root, remedy="give a folder, or a zip archive, of pictures")
    seen: set[str] = set()
    for folder, below, files in os.walk(root, followlinks=True, onerror=_cannot_list):
        real = os.path.realpath(folder)
        if real in seen:  # a link to a folder above: without this, a search without end
            below.clear()
            continue
        seen.add(real)
        below[:] = sorted(name for name in below if not _hidden((name,)))
        start = Path(folder).relative_to(root).as_posix()
        for file in files:
            if not _hidden((file,)):
                yield file if start == "." else f"{start}/{file}"


def _hidden(parts: Iterable[str]) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)


def _cannot_list(error: OSError) -> None:
    raise DataError(f"folder cannot be read: {error.strerror}", file=error.filename) from None


def _examples(modalities: Mapping[str, Modality], keyed: Mapping[str, Mapping[str, str]]) -> str:
    return ", ".join(
        f"{name!r} has {len(keyed[name])} ({min(keyed[name])!r} ...)" if keyed[name] else f"{name!r} has none"
        for name in modalities
    )


def _join_remedy(modalities: Mapping[str, Modality], keyed: Mapping[str, Mapping[str, str]], by: str) -> str:
    empty = [name for name in modalities if not keyed[name]]
    if empty:
        return f"no file name of {empty[0]!r} fits its pattern {modalities[empty[0]].files!r}"
    if by == "path":
        stems = set.intersection(*({key.rpartition("/")[2] for key in keys} for keys in keyed.values()))
        if stems:
            return f"join='stem' would join {len(stems)} by file name alone, whatever their sub-folders"
    return "partners need the same name; give a pattern such as '*_depth' where one adds something to it"
