"""Where the pictures of visual sentences come from: folders and zip archives, found recursively and joined by name.

Nothing is paired by its place in a sorted listing: a picture belongs to another one because their names say so. What has no partner is
listed with the reason, and it is an error if nothing is left. Pictures are neither opened nor decoded here.

Files whose names begin with a dot are none of the user's (``.DS_Store``) and are passed over, and so is ``__MACOSX``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import NamedTuple, Protocol, TypeAlias

from kshot.data.folder import EXTENSIONS
from kshot.data.readers import PathLike
from kshot.data.sources import ImageRoot
from kshot.errors import DataError
from kshot.picture import Picture, open_archive

Skipped: TypeAlias = "tuple[str, str]"
"""A source that is not used, and why. Reasons of one kind begin with the same words, up to a colon."""

OTHER_FILE = "not of the kind by its extension"
"""The reason for files that were never meant to be used; ``on_bad="error"`` passes over them."""


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

    def holds(self, source: str) -> bool:
        """Whether a source id is that of one of its frames."""


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

    def holds(self, source: str) -> bool:
        return any(own.id == source for own in self.sources)


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

    def holds(self, source: str) -> bool:
        """Whether a source id (of a picture, or of a frame) is one of its own."""
        return any(part.id == source for part in self.parts) or any(track.holds(source) for track in self.tracks)


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
        return [(self.place(name), OTHER_FILE) for name in self.others]

    def place(self, name: str) -> str:
        """Where a file is, for messages."""
        return self.picture(name).name

    @cached_property
    def _images(self) -> dict[str, ImageRoot]:
        return {label: ImageRoot(root) for label, root in self.roots.items()}


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
