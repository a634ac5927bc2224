"""Omniglot (Lake, Salakhutdinov, Tenenbaum 2015): handwritten characters of 50 alphabets, 20 drawings each.

The official archives are read as they are: ``images_background.zip``, ``images_evaluation.zip``, ``images_background_small1.zip``,
``images_background_small2.zip`` (``[top folder/]Alphabet/characterNN/xxxx_yy.png``) and the one-shot classification runs,
``all_runs.zip`` (``[top folder/]runNN/class_labels.txt``, ``runNN/training/``, ``runNN/test/``). Unpacked folders do as well.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from kshot.data.concepts import Concept, ConceptTask, Draw, Style
from kshot.data.derived import generator
from kshot.data.naming import Names
from kshot.data.nway import NWayTask
from kshot.data.readers import PathLike
from kshot.data.task import tasks
from kshot.errors import DataError, OptionError, listed
from kshot.picture import ArchivePicture, FilePicture, Picture, open_archive
from kshot.prompt import Template

_DRAWING = re.compile(r"(?:^|.*/)([^/]+)/(character\d+)(?:/([^/]+\.png))?/?$")
_LABELS = re.compile(r"(?:^|.*/)(run\d+)/class_labels\.txt$")


class Tree:
    """The files of a zip archive or of a folder, by relative POSIX path, without what macOS adds to archives."""

    def __init__(self, root: PathLike):
        self.root = Path(root)
        if self.root.is_dir():
            self.names = sorted(p.relative_to(self.root).as_posix() + "/" * p.is_dir() for p in self.root.rglob("*"))
        elif self.root.exists():
            self.names = sorted(open_archive(root).namelist())
        else:
            raise DataError("file or folder not found", file=root, remedy="give the path of an Omniglot archive")
        hidden = ("__MACOSX", ".")
        self.names = [n for n in self.names if not any(part.startswith(hidden) for part in PurePosixPath(n).parts)]
        self._known = set(self.names)

    def __contains__(self, name: str) -> bool:
        return name in self._known

    def picture(self, name: str) -> Picture:
        return FilePicture(self.root / name) if self.root.is_dir() else ArchivePicture(self.root, name)

    def text(self, name: str) -> str:
        data = (self.root / name).read_bytes() if self.root.is_dir() else open_archive(self.root).read(name)
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise DataError("not UTF-8 text", file=f"{self.root}!{name}") from None


def read_characters(root: PathLike | Sequence[PathLike]) -> list[Concept]:
    """The characters of one or several archives or folders, sorted; the alphabet is the group.

    Raises:
        DataError: not found, no archive, or no characters in it.
    """
    concepts: list[Concept] = []
    for one in [root] if isinstance(root, (str, os.PathLike)) else root:
        tree = Tree(one)
        drawings: dict[tuple[str, str], list[Picture]] = defaultdict(list)
        for name in tree.names:
            found = _DRAWING.match(name)
            if found:
                alphabet, character, drawing = found.groups()
                drawings[alphabet, character] += [tree.picture(name)] if drawing else []
        if not drawings:
            raise DataError("no Omniglot characters found", file=one, remedy=_what_to_do(tree))
        for (alphabet, character), pictures in sorted(drawings.items()):
            concepts.append(Concept(f"{alphabet}/{character}", f"{alphabet} {character}", pictures, group=alphabet))
    return concepts


@tasks.register("omniglot")
class Omniglot(NWayTask):
    """n-way recognition of handwritten characters.

    Args:
        root: an official archive or an unpacked one, or several.
        ways: classes an episode, 2..20.
        episodes: number of queries.
        seed: of everything random.
        names: how characters are called: ``invented``, ``letters``, ``unseen`` or ``classes`` (``Greek character01``).
        within_alphabet: whether the characters of an episode come from one alphabet; alphabets of fewer than ``ways``
            characters are then left out.
        shots_per_class: demonstrations of each class evaluated by default (``shots`` is their total).
        style: ``plain`` or ``link``.
        template: fields that replace those of the style's template.
    """

    name = "omniglot"

    def __init__(
        self,
        root: PathLike | Sequence[PathLike],
        ways: int = 5,
        episodes: int = 1000,
        seed: int = 0,
        names: Names = "invented",
        within_alphabet: bool = False,
        shots_per_class: int = 1,
        style: Style = "plain",
        template: Mapping[str, str] | Template | None = None,
    ):
        check_ways(ways)
        source = ", ".join(map(str, [root] if isinstance(root, (str, os.PathLike)) else root))
        super().__init__(
            read_characters(root),
            within_group=within_alphabet,
            source=source,
            ways=ways,
            episodes=episodes,
            seed=seed,
            names=names,
            shots_per_class=shots_per_class,
            style=style,
            template=template,
        )


@tasks.register("omniglot_runs")
class OmniglotRuns(ConceptTask):
    """The official one-shot classification runs: 20 runs of 20 queries, each with one drawing of each of 20 characters.

    All queries of a run have the same demonstrations under the same names.

    Args:
        root: ``all_runs.zip`` or an unpacked folder of runs.
        ways: 20 for the official task; fewer: the right character and others of its run, drawn from the seed.
        seed: of names and of the characters left out.
        names: ``invented``, ``letters`` or ``unseen`` (the runs do not tell the characters' names).
        style: ``plain`` or ``link``.
        template: fields that replace those of the style's template.
    """

    name = "omniglot_runs"

    def __init__(
        self,
        root: PathLike,
        ways: int = 20,
        seed: int = 0,
        names: Names = "invented",
        style: Style = "plain",
        template: Mapping[str, str] | Template | None = None,
    ):
        check_ways(ways)
        if names == "classes":
            raise OptionError("names='classes': the one-shot runs do not tell the characters' names")
        self.items = read_runs(root)
        super().__init__(
            episodes=len(self.items),
            ways=ways,
            seed=seed,
            names=names,
            shots_per_class=1,
            style=style,
            template=template,
        )
        fewest = min(len(concepts) for _, concepts, _, _ in self.items)
        if ways > fewest:
            raise OptionError(f"ways={ways}: a run in {root} has only {fewest} characters")

    def draw(self, index: int) -> Draw:
        query, concepts, target, run = self.items[index]
        if self.ways == len(concepts):
            return Draw(concepts, target, query, None, run)
        rng = generator(self.seed, "draw", index)
        others = [number for number in range(len(concepts)) if number != target]
        kept = sorted([target, *rng.choice(others, self.ways - 1, replace=False).tolist()])
        return Draw(tuple(concepts[number] for number in kept), kept.index(target), query, None, f"{run}/{index}")

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "runs": len({run for *_, run in self.items})}


RunItem = tuple[Picture, tuple[Concept, ...], int, str]
"""Query picture, the run's classes, which of them is right, name of the run."""


def read_runs(root: PathLike) -> list[RunItem]:
    """The queries of all runs, in the order of the label files.

    Raises:
        DataError: no runs, a line that is not two paths, or a path that is not there.
    """
    tree = Tree(root)
    files = [(found[1], name) for name in tree.names if (found := _LABELS.match(name))]
    if not files:
        raise DataError("no runNN/class_labels.txt found", file=root, remedy="give the official all_runs.zip")
    items: list[RunItem] = []
    for run, file in files:
        top = file[: -len(f"{run}/class_labels.txt")]
        training = sorted(n for n in tree.names if n.startswith(f"{top}{run}/training/") and n.endswith(".png"))
        keys = [n[len(top) :] for n in training]
        concepts = tuple(
            Concept(key, PurePosixPath(key).stem, (tree.picture(n),), group=run)
            for key, n in zip(keys, training, strict=True)
        )
        place = f"{tree.root}!{file}"
        count = len(items)
        for number, line in enumerate(tree.text(file).splitlines(), 1):
            if not line.strip():
                continue
            parts = line.split()
            if len(parts) != 2:
                raise DataError("expected two paths: a test and a training drawing", file=place, line=number)
            missing = [part for part in parts if top + part not in tree]
            if missing:
                raise DataError(f"drawing not found: {listed(missing)}", file=place, line=number)
            if parts[1] not in keys:
                raise DataError(f"{parts[1]} is not a training drawing of {run}", file=place, line=number)
            items.append((tree.picture(top + parts[0]), concepts, keys.index(parts[1]), run))
        if len(items) == count:
            raise DataError("no items", file=place)
    return items


def check_ways(ways: int) -> None:
    """Complain about numbers of ways that are not 2..20."""
    if not 2 <= ways <= 20:
        raise OptionError(f"ways={ways}: must be 2..20")


def _what_to_do(tree: Tree) -> str:
    if any(_LABELS.match(name) for name in tree.names):
        return "these are the one-shot runs: use the task 'omniglot_runs'"
    archives = [name for name in tree.names if name.endswith(".zip")]
    if archives:
        return f"give one of the archives in it: {listed(archives)}"
    return "expected Alphabet/characterNN/*.png, as in images_background.zip"
