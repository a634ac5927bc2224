"""Sentences of stills: single images, pairs, colorization, inpainting, and any number of annotations of an image."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np

from kshot.data.readers import PathLike
from kshot.errors import OptionError
from kshot.picture import Picture
from kshot.visual.resize import ResizeRule, checked_rule
from kshot.visual.sentence_pictures import MASK_SIZE, PATCH, GreyPicture, Mask, MaskedPicture, SquarePicture
from kshot.visual.sentence_types import USUAL_IMAGES, Draw, SentenceType, Slot, regrouped, sentences, whole
from kshot.visual.sources import Found, Record, Tree

Folders: TypeAlias = "PathLike | Sequence[PathLike]"
Order = Literal["fixed", "shuffled"]
Join = Literal["path", "stem"]


@dataclass(frozen=True, kw_only=True)
class ShotSentences(SentenceType):
    """Base of the sentences that show the same thing several times: shots, each of its own record.

    Args:
        shots: how many; by default as many as 16 pictures hold.
    """

    shots: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shots is None:
            object.__setattr__(self, "shots", max(1, USUAL_IMAGES // self.per_shot))
        whole("shots", self.shots, 1)

    @property
    @abstractmethod
    def per_shot(self) -> int:
        """Pictures of a shot."""

    @property
    def images(self) -> int:
        return self.per_shot * (self.shots or 1)

    def within(self, most: int) -> dict[str, Any] | None:
        return {"shots": most // self.per_shot} if most >= self.per_shot else None

    def group(self, records: Sequence[Record], epoch: int) -> np.ndarray:
        return regrouped(records, self.shots or 1, Draw(self.seed, self.name, epoch, 0).of_sentence("groups"))


@sentences.register("images")
@dataclass(frozen=True, kw_only=True)
class Images(SentenceType):
    """One picture by itself: most of what a large vision model learns from.

    Args:
        folder: the folder or folders of pictures.
    """

    name: ClassVar[str] = "images"

    folder: Folders = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "folder", as_folders(self.folder, "folder"))

    @property
    def images(self) -> int:
        return 1

    def places(self, variant: int = 0) -> tuple[str, ...]:
        return ("image",)

    def find(self) -> Found:
        return stills(self.folder, self.name)

    def group(self, records: Sequence[Record], epoch: int) -> np.ndarray:
        return np.arange(len(records))[:, None]

    def compose(self, records: Sequence[Record], draw: Draw, variant: int) -> Sequence[Slot]:
        return [Slot("image", source.id, source.picture()) for source in records[0].parts]

    def within(self, most: int) -> dict[str, Any] | None:
        return None


@dataclass(frozen=True, kw_only=True)
class MadePairs(ShotSentences):
    """Base of the pairs whose second picture is a picture as it is found and whose first is made of it.

    Args:
        folder: the folder or folders of pictures.
    """

    folder: Folders = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "folder", as_folders(self.folder, "folder"))

    @property
    def per_shot(self) -> int:
        return 2

    def places(self, variant: int = 0) -> tuple[str, ...]:
        return tuple(f"{role}{shot}" for shot in range(1, self.images // 2 + 1) for role in "xy")

    def find(self) -> Found:
        return stills(self.folder, self.name)

    def compose(self, records: Sequence[Record], draw: Draw, variant: int) -> Sequence[Slot]:
        slots: list[Slot] = []
        for record in records:
            source = record.parts[0]
            x, y = self.make(source.picture(), record, draw)
            slots += [Slot("x", source.id, x), Slot("y", source.id, y)]
        return slots

    @abstractmethod
    def make(self, picture: Picture, record: Record, draw: Draw) -> tuple[Picture, Picture]:
        """What is shown and what it was made of."""


@sentences.register("colorization")
@dataclass(frozen=True, kw_only=True)
class Colorization(MadePairs):
    """``grey1 colour1 grey2 colour2 ...``: grey is 0.2989 R + 0.5870 G + 0.1140 B of the picture once it is square."""

    name: ClassVar[str] = "colorization"

    def make(self, picture: Picture, record: Record, draw: Draw) -> tuple[Picture, Picture]:
        return GreyPicture(picture), picture


@sentences.register("inpainting")
@dataclass(frozen=True, kw_only=True)
class Inpainting(MadePairs):
    """``masked1 full1 masked2 full2 ...``; every picture has another mask in every epoch.

    The pictures are made square first, so that the mask lies on the tokens' grid whatever their shape.

    Args:
        hole_probability: of one black square, its side U{25..127} pixels where the picture has 256. Otherwise the picture is cut into
            patches of 32 x 32 such pixels, of which each is kept with a probability drawn for the picture, U(0, 1).
        size: pixels a side of the pictures: the tokenizer's, or a multiple of it. Masks scale with it.
        resize: how they are made square: ``squash``, ``crop`` or ``pad``.
    """

    name: ClassVar[str] = "inpainting"

    hole_probability: float = 0.3
    size: int = MASK_SIZE
    resize: ResizeRule = "squash"

    def __post_init__(self) -> None:
        super().__post_init__()
        checked_rule(self.resize)
        whole("size", self.size, MASK_SIZE // PATCH)
        p = self.hole_probability
        if isinstance(p, bool) or not isinstance(p, (int, float)) or not 0 <= p <= 1:
            raise OptionError(f"hole_probability must be a number from 0 to 1, not {p!r}")

    def make(self, picture: Picture, record: Record, draw: Draw) -> tuple[Picture, Picture]:
        full = SquarePicture(picture, self.size, self.resize)
        return MaskedPicture(full, Mask.draw(draw.of_record("mask", record.id), self.hole_probability)), full


def stills(folder: Folders, name: str) -> Found:
    """All pictures of folders, a record each.

    Raises:
        OptionError: no folder is given.
        DataError: see :class:`~kshot.visual.sources.Tree`.
    """
    if not folder:
        raise OptionError(f"sentence type {name!r} needs folder=: the folder, or folders, of its pictures")
    tree = Tree(folder)
    return Found(tuple(Record(source.id, (source,)) for source in tree.sources()), tree.skipped())


def as_folders(folders: Any, option: str) -> Folders:
    """A folder, or a tuple of folders, as they can be kept.

    Raises:
        OptionError: it is neither.
    """
    if isinstance(folders, (str, os.PathLike)):
        return os.fspath(folders)
    if isinstance(folders, (list, tuple)) and all(isinstance(folder, (str, os.PathLike)) for folder in folders):
        return tuple(os.fspath(folder) for folder in folders)
    raise OptionError(f"{option} must be a folder or a list of folders, not {folders!r}")
