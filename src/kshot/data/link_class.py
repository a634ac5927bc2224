"""A class of pictures for link-context training, and a list of such classes.

A class is a name and pictures, and where it is known the classes most like it (:class:`Neighbour`), from which hard negatives are
drawn. They are read in :mod:`kshot.data.link_classes`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, overload

from kshot.data.derived import digest
from kshot.data.sources import ImageRoot
from kshot.errors import DataError, UnknownName, listed
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


def _content(classes: Sequence[LinkClass]) -> str:
    return repr([(c.key, c.name, [_short(p) for p in c.pictures], [n.key for n in c.neighbours]) for c in classes])


def _short(picture: Picture) -> str:
    """A picture's name without the folders of this machine."""
    if isinstance(picture, ArchivePicture):
        return picture.member
    return "/".join(picture.path.parts[-2:]) if isinstance(picture, FilePicture) else picture.name
