"""Sentences of pictures and their annotations, which belong together by name: pairs, and groups of any number."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np

from kshot.errors import OptionError
from kshot.visual.grammar_stills import Folders, ShotSentences, as_folders
from kshot.visual.joining import Modality, joined
from kshot.visual.palette import LabelPicture, Palette, PaletteLike, as_palette
from kshot.visual.sentence_types import Draw, Slot, one_of, sentences, whole
from kshot.visual.sources import Found, Record

Order = Literal["fixed", "shuffled"]
Join = Literal["path", "stem"]


@dataclass(frozen=True, kw_only=True)
class Joined(ShotSentences):
    """Base of the sentences of pictures that belong together because their names say so.

    Args:
        join: ``path``: partners lie in the same sub-folder and have the same name, but for extension and pattern; ``stem``: they
            have the same name, wherever they lie.
        labels: modalities that are label maps (mode 'L' or 'P'); they are coloured by the palette.
        palette: a seed, a JSON file of colours, or the colours; see :class:`~kshot.visual.palette.Palette`.
    """

    join: Join = "path"
    labels: Sequence[str] = ()
    palette: PaletteLike = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("join", self.join, ("path", "stem"))
        object.__setattr__(self, "labels", checked_labels(self.labels, self.modality_names))
        if self.labels:
            _ = self.colours  # a palette that cannot be read is an error now, not at the first picture

    @property
    @abstractmethod
    def modality_names(self) -> tuple[str, ...]:
        """The modalities, in the order of the record's parts."""

    @abstractmethod
    def modality(self, name: str) -> Modality:
        """Where the pictures of a modality are."""

    def find(self) -> Found:
        return joined({name: self.modality(name) for name in self.modality_names}, self.join)

    def slot(self, record: Record, part: int) -> Slot:
        """The place of a record's picture."""
        role, source = self.modality_names[part], record.parts[part]
        picture = source.picture()
        return Slot(role, source.id, LabelPicture(picture, self.colours) if role in self.labels else picture)

    @cached_property
    def colours(self) -> Palette:
        """The palette of the label maps."""
        return as_palette(self.palette)

    def details(self, records: Sequence[Record]) -> Mapping[str, Any]:
        return {"palette": [list(colour) for colour in self.colours.colours]} if self.labels else {}


@sentences.register("pairs")
@dataclass(frozen=True, kw_only=True)
class Pairs(Joined):
    """``x1 y1 x2 y2 ...``: pictures and one annotation of each, whatever it is.

    Args:
        x: the folder or folders of the pictures that are given.
        y: those of the pictures that are asked for; by default they lie among the others and ``y_files`` tells them.
        x_files, y_files: patterns of file names with one ``*`` (``*_depth``), the part that partners have in common.
    """

    name: ClassVar[str] = "pairs"
    record: ClassVar[str] = "pairs"

    x: Folders = ()
    y: Folders = ()
    x_files: str = "*"
    y_files: str = "*"

    def __post_init__(self) -> None:
        for side in ("x", "y"):
            object.__setattr__(self, side, as_folders(getattr(self, side), side))
        super().__post_init__()

    @property
    def per_shot(self) -> int:
        return 2

    @property
    def modality_names(self) -> tuple[str, ...]:
        return ("x", "y")

    def modality(self, name: str) -> Modality:
        folder = self.x if name == "x" else self.y or self.x
        if not folder:
            raise OptionError("sentence type 'pairs' needs x=, and y= or y_files=: the folders of its pictures")
        return Modality(folder, self.x_files if name == "x" else self.y_files)

    def places(self, variant: int = 0) -> tuple[str, ...]:
        return tuple(f"{role}{shot}" for shot in range(1, self.images // 2 + 1) for role in "xy")

    def compose(self, records: Sequence[Record], draw: Draw, variant: int) -> Sequence[Slot]:
        return [self.slot(record, part) for record in records for part in (0, 1)]


@sentences.register("annotations")
@dataclass(frozen=True, kw_only=True)
class Annotations(Joined):
    """``[m3 m1 m2] [m3 m1 m2] ...``: a picture and its annotations, in an order that all shots of a sentence share.

    Args:
        modalities: the folder (or folders) of each kind of pictures, by name.
        files: patterns of file names by modality, where they do not have the whole name in common (``{"depth": "*_depth"}``).
        order: ``shuffled``: another order in every sentence, drawn anew in every epoch; ``fixed``: that of ``modalities``.
        choose: show only so many of the modalities, others in every sentence.
    """

    name: ClassVar[str] = "annotations"
    record: ClassVar[str] = "groups of annotations"

    modalities: Mapping[str, Folders] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    order: Order = "shuffled"
    choose: int | None = None

    def __post_init__(self) -> None:
        modalities, files = checked_modalities(self.modalities, self.files, self.name)
        object.__setattr__(self, "modalities", modalities)
        object.__setattr__(self, "files", files)
        one_of("order", self.order, ("fixed", "shuffled"))
        if self.choose is not None:
            whole("choose", self.choose, 2, len(modalities))
        super().__post_init__()

    @property
    def per_shot(self) -> int:
        return self.choose or len(self.modalities)

    @property
    def modality_names(self) -> tuple[str, ...]:
        return tuple(self.modalities)

    def modality(self, name: str) -> Modality:
        return Modality(self.modalities[name], self.files.get(name, "*"))

    def places(self, variant: int = 0) -> tuple[str, ...]:
        free = self.order == "shuffled" or self.per_shot < len(self.modalities)
        names = [f"pi{n}" for n in range(1, self.per_shot + 1)] if free else list(self.modalities)
        return tuple(f"{name}({shot})" for shot in range(1, (self.shots or 1) + 1) for name in names)

    def compose(self, records: Sequence[Record], draw: Draw, variant: int) -> Sequence[Slot]:
        order = draw.of_sentence("order").permutation(len(self.modalities))[: self.per_shot]
        if self.order == "fixed":
            order = np.sort(order)
        return [self.slot(record, int(part)) for record in records for part in order]

    def within(self, most: int) -> dict[str, Any] | None:
        return super().within(most) or ({"choose": most, "shots": 1} if most >= 2 else None)


def checked_labels(labels: Any, modalities: Sequence[str]) -> tuple[str, ...]:
    """The modalities that are label maps.

    Raises:
        OptionError: one of them is no modality.
    """
    if not isinstance(labels, (str, list, tuple)):
        raise OptionError(f"labels must be names of modalities, not {labels!r}")
    named = (labels,) if isinstance(labels, str) else tuple(labels)
    for name in named:
        one_of("labels", name, tuple(modalities))
    return named


def checked_modalities(modalities: Any, files: Any, name: str) -> tuple[dict[str, Folders], dict[str, str]]:
    """Folders and patterns by modality.

    Raises:
        OptionError: there are fewer than two, or a pattern is for another one.
    """
    if not isinstance(modalities, Mapping) or len(modalities) < 2:
        raise OptionError(
            f"sentence type {name!r} needs modalities=: at least two names with the folder of each, "
            f"such as {{'rgb': 'photos', 'depth': 'depth'}}, not {modalities!r}"
        )
    if not isinstance(files, Mapping):
        raise OptionError(f"files must be patterns by modality, not {files!r}")
    for key in files:
        one_of("files", key, tuple(modalities))
    made = {str(key): as_folders(folder, f"modalities[{key!r}]") for key, folder in modalities.items()}
    return made, {str(key): str(pattern) for key, pattern in files.items()}
