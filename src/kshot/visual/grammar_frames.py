"""Sentences of sequences: frames of a video, of a folder, of a turning object; and sequences beside their annotations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from tqdm import tqdm

from kshot.errors import BadImage, DataError, OptionError
from kshot.visual.grammar_stills import Folders, as_folders
from kshot.visual.sentence_types import USUAL_IMAGES, Draw, SentenceType, Slot, sentences, whole
from kshot.visual.sources import OTHER_FILE, Found, Frames, Record, Tree, frame_folders
from kshot.visual.video import VIDEO_EXTENSIONS, VideoTrack, count_frames


@dataclass(frozen=True, kw_only=True)
class FrameSentences(SentenceType):
    """Base of the sentences of one sequence each: ``f1 f2 f3 ...``, every so many frames, from a random one on.

    Args:
        folder: where the sequences are; one folder or several.
        images: frames a sentence.
        max_stride: the stride is drawn from 1 to this, or to the largest that the sequence is long enough for; ``None``: to that.
        strides: fixed strides in place of drawn ones: a sentence each. One that a sequence is too short for is shortened.
    """

    record: ClassVar[str] = "sequences"

    folder: Folders = ()
    images: int = USUAL_IMAGES
    max_stride: int | None = 4
    strides: list[int] | tuple[int, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "folder", as_folders(self.folder, "folder"))
        object.__setattr__(self, "strides", as_strides(self.strides))
        whole("images", self.images, 1)
        if self.max_stride is not None:
            whole("max_stride", self.max_stride, 1)

    @property
    def variants(self) -> int:
        return max(1, len(self.strides))

    def places(self, variant: int = 0) -> tuple[str, ...]:
        return tuple(f"f{number}" for number in range(1, self.images + 1))

    def group(self, records: Sequence[Record], epoch: int) -> np.ndarray:
        return np.arange(len(records))[:, None]

    def compose(self, records: Sequence[Record], draw: Draw, variant: int) -> Sequence[Slot]:
        record = records[0]
        fixed = self.strides[variant] if self.strides else None
        random = draw.of_record(f"frames {variant}", record.id)
        frames = self.frames_of(len(record.tracks[0]), fixed, random)
        return [Slot("frame", source, picture) for source, picture in record.tracks[0].at(frames)]

    def frames_of(self, length: int, fixed: int | None, random: np.random.Generator) -> list[int]:
        """The numbers of the frames of a sentence."""
        return drawn_frames(length, self.images, self.max_stride, fixed, random)

    def within(self, most: int) -> dict[str, Any] | None:
        return {"images": most}

    def details(self, records: Sequence[Record]) -> Mapping[str, object]:
        shortened = {
            str(stride): sum((len(r.tracks[0]) - 1) // max(1, self.images - 1) < stride for r in records)
            for stride in self.strides
        }
        return {"strides_shortened": shortened} if self.strides else {}

    def usable(self, found: Found) -> Found:
        return long_enough(found, self.images)


@sentences.register("frames")
@dataclass(frozen=True, kw_only=True)
class FolderFrames(FrameSentences):
    """Sequences that lie in a folder each, frames in the order of their names (numbers count as numbers)."""

    name: ClassVar[str] = "frames"

    def find(self) -> Found:
        if not self.folder:
            raise OptionError(f"sentence type {self.name!r} needs folder=: one sub-folder a sequence is expected there")
        tree = Tree(self.folder)
        records = [Record(name, tracks=(Frames(frames),)) for name, frames in sorted(frame_folders(tree).items())]
        return Found(tuple(records), tree.skipped())


@sentences.register("rotation")
@dataclass(frozen=True, kw_only=True)
class Rotation(FolderFrames):
    """Views all around an object, in a folder each: after the last view comes the first, and a sentence begins at any of them."""

    name: ClassVar[str] = "rotation"

    max_stride: int | None = 1

    def frames_of(self, length: int, fixed: int | None, random: np.random.Generator) -> list[int]:
        return drawn_views(length, self.images, self.max_stride, fixed, random)

    def details(self, records: Sequence[Record]) -> Mapping[str, object]:
        shortened = {str(s): sum(len(r.tracks[0]) // self.images < s for r in records) for s in self.strides}
        return {"strides_shortened": shortened} if self.strides else {}


@sentences.register("video")
@dataclass(frozen=True, kw_only=True)
class Video(FrameSentences):
    """Video files, found recursively. Their frames are counted when the plan is made, and decoded when a picture is looked at."""

    name: ClassVar[str] = "video"
    record: ClassVar[str] = "videos"

    strides: list[int] | tuple[int, ...] = (8,)

    def find(self) -> Found:
        if not self.folder:
            raise OptionError(f"sentence type {self.name!r} needs folder=: the folder, or folders, of the videos")
        tree = Tree(self.folder, VIDEO_EXTENSIONS)
        records: list[Record] = []
        skipped = [(str(tree.path(name)), OTHER_FILE) for name in tree.others]
        for name in tqdm(tree.names, desc="counting frames", disable=None, leave=False):
            path = str(tree.path(name))
            try:
                records.append(Record(name, tracks=(VideoTrack(name, path, count_frames(path)),)))
            except BadImage as error:
                skipped.append((path, f"broken: {error.problem}"))
        return Found(tuple(records), skipped)


def drawn_frames(
    length: int, images: int, max_stride: int | None, fixed: int | None, random: np.random.Generator
) -> list[int]:
    """Frames of a sequence, from any start: stride U{1..min((length-1)//(images-1), max_stride)}, or the fixed one, or its longest."""
    longest = (length - 1) // (images - 1) if images > 1 else 1
    if fixed is None:
        stride = int(random.integers(1, min(longest, max_stride or longest), endpoint=True))
    else:
        stride = min(fixed, longest)
    start = int(random.integers(0, length - stride * (images - 1)))
    return [start + stride * number for number in range(images)]


def drawn_views(
    length: int, images: int, max_stride: int | None, fixed: int | None, random: np.random.Generator
) -> list[int]:
    """Views around an object: as :func:`drawn_frames`, on a ring and without a view twice."""
    longest = length // images
    if fixed is None:
        stride = int(random.integers(1, min(longest, max_stride or longest), endpoint=True))
    else:
        stride = min(fixed, longest)
    start = int(random.integers(0, length))
    return [(start + stride * number) % length for number in range(images)]


def long_enough(found: Found, images: int) -> Found:
    """The records whose sequences hold as many frames; the others are listed.

    Raises:
        DataError: none does.
    """
    kept = tuple(record for record in found.records if len(record.tracks[0]) >= images)
    short = [(r.id, len(r.tracks[0])) for r in found.records if len(r.tracks[0]) < images]
    skipped = [*found.skipped, *((id, f"too short: {length} frames of {images}") for id, length in short)]
    if not kept:
        source, reason = skipped[-1] if skipped else ("none", "there are none")
        raise DataError(
            f"no sequence can be used, {len(skipped)} are left out (the last, {source}: {reason})",
            remedy=f"sequences of at least {images} frames are needed; ask for fewer",
        )
    return Found(kept, skipped)


def as_strides(strides: object) -> tuple[int, ...]:
    """Fixed strides: a number or several.

    Raises:
        OptionError: they are none.
    """
    listed = (strides,) if isinstance(strides, int) else strides
    if not isinstance(listed, (list, tuple)) or isinstance(strides, Mapping):
        raise OptionError(f"strides must be whole numbers, not {strides!r}")
    for stride in listed:
        whole("strides", stride, 1)
    if len(set(listed)) < len(listed):
        raise OptionError(f"strides must be different from each other, not {strides!r}")
    return tuple(listed)
