"""Pictures that belong together, joined by name: a picture and its annotations.

Nothing is paired by its place in a sorted listing. What has no partner is listed with the reason, and it is an error if nothing is
left.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from kshot.data.readers import PathLike
from kshot.errors import DataError, OptionError
from kshot.visual.sources import Found, Record, Source, Tree


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
        for candidate in (file.rpartition(".")[0] or file, file):
            if match := self._fits(candidate):
                return f"{folder}/{match[1]}" if folder else match[1]
        return None

    @property
    def roots(self) -> tuple[str, ...]:
        """The folders as they really are, links followed: the same folder may be written in many ways."""
        listed = (self.folder,) if isinstance(self.folder, (str, os.PathLike)) else self.folder
        return tuple(os.path.realpath(folder) for folder in listed)

    @cached_property
    def _fits(self) -> Callable[[str], re.Match[str] | None]:
        before, after = self.files.split("*")
        return re.compile(re.escape(before) + "(.+)" + re.escape(after), re.DOTALL).fullmatch


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
    trees: dict[tuple[str, ...], Tree] = {}
    place: dict[str, tuple[str, ...]] = {}
    same = len(modalities) - len({(modality.roots, modality.files) for modality in modalities.values()})
    if same:
        raise OptionError(
            f"of {', '.join(map(repr, modalities))}, {same + 1} are the same files: give each a folder or a pattern of its own"
        )
    for name, modality in modalities.items():
        place[name] = modality.roots
        if modality.roots not in trees:
            trees[modality.roots] = Tree(modality.folder)
    skipped = [item for tree in trees.values() for item in tree.skipped()]
    keyed: dict[str, dict[str, str]] = {name: {} for name in modalities}
    twice: dict[str, dict[str, list[str]]] = {name: {} for name in modalities}
    for where, tree in trees.items():
        # Patterns that share a folder: '*' means what the more special '*_mask' leaves over.
        here = sorted((n for n in modalities if place[n] == where), key=lambda n: -len(modalities[n].files))
        deeper = [folder + os.sep for other in trees if other != where for folder in other if _inside(folder, where)]
        for file in tree.names:
            if deeper and os.path.realpath(tree.path(file)).startswith(tuple(deeper)):
                continue  # x in a folder, y in a sub-folder of it: what lies there is y's
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
            file=next(iter(place.values()))[0],
            remedy=_join_remedy(modalities, keyed, twice, by),
        )
    return Found(
        tuple(
            Record(key, tuple(Source(keyed[name][key], trees[place[name]]) for name in modalities))
            for key in sorted(common)
        ),
        skipped,
    )


def _inside(folder: str, above: Sequence[str]) -> bool:
    return any(folder.startswith(root + os.sep) for root in above)


def _examples(modalities: Mapping[str, Modality], keyed: Mapping[str, Mapping[str, str]]) -> str:
    return ", ".join(
        f"{name!r} has {len(keyed[name])} ({min(keyed[name])!r} ...)" if keyed[name] else f"{name!r} has none"
        for name in modalities
    )


def _join_remedy(
    modalities: Mapping[str, Modality],
    keyed: Mapping[str, Mapping[str, str]],
    doubled: Mapping[str, Mapping[str, Sequence[str]]],
    by: str,
) -> str:
    empty = [name for name in modalities if not keyed[name]]
    if empty and doubled.get(empty[0]):
        return f"every name of {empty[0]!r} is borne by two files"
    if empty:
        return f"no file name of {empty[0]!r} fits its pattern {modalities[empty[0]].files!r}"
    if by == "path":
        stems = set.intersection(*({key.rpartition("/")[2] for key in keys} for keys in keyed.values()))
        if stems:
            return f"join='stem' would join {len(stems)} by file name alone, whatever their sub-folders"
    return "partners need the same name; give a pattern such as '*_depth' where one adds something to it"
