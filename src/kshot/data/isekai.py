"""ISEKAI (Link-Context Learning, arXiv 2308.07891): invented concepts in generated pictures, two classes a group.

Read from the published JSON Lines (``ISEKAI-10.json``, ``ISEKAI-pair.json``; despite the suffix one object a line), or made from
folders of pictures: ``<root>/<group>/pos-<name>/`` with ``neg-<name>/``, or the flat ``<root>/<group>/posN.jpg negN.jpg inferN.jpg``
of the published examples.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from kshot.data.concepts import Concept, ConceptTask, Draw, Style
from kshot.data.derived import digest, generator
from kshot.data.naming import Names
from kshot.data.readers import PathLike, get, get_texts, read_json_lines
from kshot.data.sources import ImageRoot, exists
from kshot.data.task import tasks
from kshot.episode import Example
from kshot.errors import DataError, OptionError, listed
from kshot.metrics.common import fold
from kshot.prompt import Template
from kshot.whole_file import write_text

NEGATIVE_NAMES = {"cactihog": "hedgehog", "cctovac": "octopus", "icemic": "ice cream", "airstone": "stone"}
"""What the known relative of the published example concepts is called; the folders do not say it."""

_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_FLAT = re.compile(r"(pos|neg|infer)\d*\.[a-z]+", re.IGNORECASE)


@dataclass(frozen=True)
class IsekaiQuery:
    """One line of a file: a query, the pictures of the two classes, their names, and which one is right.

    Paths are relative to the image root; names are used verbatim.
    """

    image: str
    positive: tuple[str, ...]
    negative: tuple[str, ...]
    positive_name: str
    negative_name: str
    label: str
    group: str = ""

    def record(self) -> dict[str, Any]:
        """The line as published, misspelt field names included."""
        return {
            "image_name": self.image,
            "positive_list": list(self.positive),
            "negative_list": list(self.negative),
            "positive_promt": self.positive_name,
            "negative_promt": self.negative_name,
            "label_name": self.label,
        }


@tasks.register("isekai")
class Isekai(ConceptTask):
    """2-way recognition of invented concepts.

    Args:
        root: folder that image paths are relative to (default: the folder of ``file``), or, without ``file``, the folder of groups.
        file: annotation file.
        labels: positive and negative name of a group, for folders that do not tell them: ``{"cactihog": ("cactihog", "hedgehog")}``.
        names: ``classes`` (verbatim), or ``invented``, ``letters``, ``unseen``.
        seed: of invented names and of the order in which the two names are offered.
        shots_per_class: demonstrations of each class evaluated by default (``shots`` is their total).
        style: ``link`` (as published) or ``plain``.
        template: fields that replace those of the style's template.
    """

    name = "isekai"
    retriever = "first"

    def __init__(
        self,
        root: PathLike | None = None,
        file: PathLike | None = None,
        labels: Mapping[str, Sequence[str]] | None = None,
        names: Names = "classes",
        seed: int = 0,
        shots_per_class: int = 1,
        style: Style = "link",
        template: Mapping[str, str] | Template | None = None,
    ):
        if file is not None:
            self.records = read_isekai(file)
            images = root if root is not None else Path(file).parent
        elif root is not None:
            self.records = isekai_from_folders(root, labels or {}, named=names == "classes")
            images = root
        else:
            raise OptionError("isekai: give file= (an annotation file) or root= (a folder of groups)")
        self._images, self.source = ImageRoot(images), file if file is not None else images
        super().__init__(
            episodes=len(self.records),
            ways=2,
            seed=seed,
            names=names,
            shots_per_class=shots_per_class,
            style=style,
            template=template,
        )
        self._check()

    def draw(self, index: int) -> Draw:
        record = self.records[index]
        # A picture that is listed twice counts once: leaving out the query must leave out all of it.
        sides = [
            (record.positive_name, tuple(dict.fromkeys(record.positive)), "positive"),
            (record.negative_name, tuple(dict.fromkeys(record.negative)), "negative"),
        ]
        if generator(self.seed, "order", index).integers(2):
            sides.reverse()
        concepts = tuple(
            Concept(f"{record.group}: {side}", name, [self._images.picture(p) for p in paths], group=record.group)
            for name, paths, side in sides
        )
        target = 0 if concepts[0].name == record.label else 1
        own = sides[target][1]
        held = own.index(record.image) if record.image in own else None
        return Draw(concepts, target, self._images.picture(record.image), held, record.group, shared=True)

    def _query(self, index: int) -> Example:
        query, record = super()._query(index), self.records[index]
        if self.names != "classes":
            return query
        return query.with_(metadata={**query.metadata, "sides": (record.positive_name, record.negative_name)})

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "records_digest": digest(json.dumps([r.record() for r in self.records]))}

    def _check(self) -> None:
        paths = dict.fromkeys(p for r in self.records for p in (r.image, *r.positive, *r.negative))
        absent = [p for p in paths if not exists(self._images.picture(p))]
        if absent:
            raise DataError(
                f"{len(absent)} of {len(paths)} images not found under {self._images.path}: {listed(absent)}",
                file=self.source,
            )
        need = self.shots_per_class
        for number, record in enumerate(self.records, 1):
            for name, side in ((record.positive_name, record.positive), (record.negative_name, record.negative)):
                count = len(set(side) - {record.image})
                if count < need:
                    raise DataError(
                        f"{count} pictures of {name!r} beside the query {record.image}, {need} shots per class",
                        file=self.source,
                        line=number,
                        remedy="lower shots_per_class or add pictures",
                    )


def read_isekai(file: PathLike) -> tuple[IsekaiQuery, ...]:
    """Read an annotation file; ``positive_prompt`` is taken for ``positive_promt`` too.

    Raises:
        DataError: missing, malformed, two equal names, a label that is neither of them, or a query among the other class' pictures.
    """
    records = []
    for line, row in read_json_lines(file):
        positive_name, negative_name = _name(row, "positive", file, line), _name(row, "negative", file, line)
        label, image = get(row, "label_name", str, file, line), get(row, "image_name", str, file, line)
        positive = tuple(get_texts(row, "positive_list", file, line))
        negative = tuple(get_texts(row, "negative_list", file, line))
        if fold(positive_name) == fold(negative_name):
            raise DataError(f"both classes are called {positive_name!r}", file=file, line=line)
        if label not in (positive_name, negative_name):
            problem = f"{label!r} is neither {positive_name!r} nor {negative_name!r}"
            raise DataError(problem, file=file, line=line, field="label_name")
        if image in (negative if label == positive_name else positive):
            raise DataError(
                "the query is among the pictures of the other class", file=file, line=line, field="image_name"
            )
        group = f"{positive_name}/{negative_name}"
        records.append(IsekaiQuery(image, positive, negative, positive_name, negative_name, label, group))
    if not records:
        raise DataError("no queries", file=file)
    return tuple(records)


def write_isekai(records: Sequence[IsekaiQuery], file: PathLike) -> None:
    """Write an annotation file in the published format."""
    write_text(file, "".join(json.dumps(r.record(), ensure_ascii=False) + "\n" for r in records))


def isekai_from_folders(
    root: PathLike, labels: Mapping[str, Sequence[str]] | None = None, *, named: bool = True
) -> tuple[IsekaiQuery, ...]:
    """Make queries from folders of pictures.

    Of ``pos-``/``neg-`` folders every picture of both classes becomes a query, with all others as support. Of flat folders the
    ``infer`` pictures do; they show the positive class.

    Args:
        labels: positive and negative name by group, where the folders do not tell them.
        named: whether the names will be shown; if not, groups whose negative name is unknown do as well.

    Raises:
        DataError: no groups, or a group without positive or negative pictures or, if flat, without a query.
        OptionError: a negative name that is unknown.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError("folder not found", file=root)
    records: list[IsekaiQuery] = []
    for group in sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")):
        sides = {p.name[:3]: p for p in sorted(group.iterdir()) if p.is_dir() and re.match(r"(pos|neg)[-_]", p.name)}
        flat = [p for p in sorted(group.iterdir()) if p.is_file() and _FLAT.fullmatch(p.name)]
        if not sides and not flat:
            continue
        if sides:
            pictures = {side: _pictures(folder, root) for side, folder in sides.items()}
            told = {side: folder.name[4:] for side, folder in sides.items()}
        else:
            pictures = {
                side: tuple(p.relative_to(root).as_posix() for p in flat if p.name.lower().startswith(side))
                for side in ("pos", "neg", "infer")
            }
            told = {}
        wanted = ("pos", "neg") if sides else ("pos", "neg", "infer")
        absent = [side for side in wanted if not pictures.get(side)]
        if absent:
            raise DataError(f"no pictures of {' and '.join(absent)}", file=group)
        positive_name, negative_name = _names(group.name, told, labels or {}, named)
        queries = [(p, positive_name) for p in pictures["pos"]] + [(p, negative_name) for p in pictures["neg"]]
        if not sides:
            queries = [(p, positive_name) for p in pictures["infer"]]
        records += [
            IsekaiQuery(image, pictures["pos"], pictures["neg"], positive_name, negative_name, label, group.name)
            for image, label in queries
        ]
    if not records:
        raise DataError(
            "no groups found", file=root, remedy="expected <group>/pos-<name>/ and neg-<name>/, or <group>/pos1.jpg ..."
        )
    return tuple(records)


def isekai_pairs(root: PathLike, labels: Mapping[str, Sequence[str]] | None = None) -> tuple[IsekaiQuery, ...]:
    """Make the queries of ISEKAI-pair from folders: every invented concept against every other one, both names invented.

    Each picture of a concept is a query against each other concept, with all other pictures of the two as support. Folders are those
    of :func:`isekai_from_folders`; of flat ones, the ``infer`` pictures count among the positive ones.

    Raises:
        DataError: as :func:`isekai_from_folders`; also fewer than two concepts, or two of one name.
    """
    pictures: dict[str, tuple[str, ...]] = {}
    groups: dict[str, str] = {}
    for record in isekai_from_folders(root, labels, named=False):
        if record.label != record.positive_name:
            continue
        if groups.setdefault(record.positive_name, record.group) != record.group:
            raise DataError(
                f"two concepts of one name: {record.positive_name!r}", file=root, remedy="rename one of them"
            )
        known = pictures.get(record.positive_name, ())
        pictures[record.positive_name] = tuple(dict.fromkeys((*known, *record.positive, record.image)))
    if len(pictures) < 2:
        raise DataError(f"{len(pictures)} concepts cannot be paired", file=root)
    return tuple(
        IsekaiQuery(image, pictures[one], pictures[other], one, other, label, f"{one}/{other}")
        for one, other in combinations(pictures, 2)
        for label in (one, other)
        for image in pictures[label]
    )


def _name(record: Mapping[str, Any], side: str, file: PathLike, line: int) -> str:
    """The name of a side; the published files write "promt"."""
    right = f"{side}_prompt"
    return str(get(record, right if right in record else f"{side}_promt", str, file, line))


def _names(group: str, told: Mapping[str, str], labels: Mapping[str, Sequence[str]], named: bool) -> tuple[str, str]:
    if group in labels:
        if len(labels[group]) != 2 or len(set(labels[group])) != 2:
            raise OptionError(f"labels: {group!r} needs two different names, the positive and the negative one")
        return labels[group][0], labels[group][1]
    positive = told.get("pos", group)
    negative = told.get("neg", positive)
    if negative == positive:
        negative = NEGATIVE_NAMES.get(group, "")
    if not negative and named:
        raise OptionError(
            f"isekai: what is the negative class of {group!r} called? Give labels={{{group!r}: ({positive!r}, NAME)}} "
            "or names='invented'"
        )
    return positive, negative or f"{group} (negative)"


def _pictures(folder: Path, root: Path) -> tuple[str, ...]:
    found = sorted(p for p in folder.iterdir() if p.suffix.lower() in _SUFFIXES and not p.name.startswith("."))
    return tuple(p.relative_to(root).as_posix() for p in found)
