"""Sentences of sequences beside their annotations: a task at a time or frame by frame, and the objects of CO3D."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np

from kshot.errors import DataError, OptionError
from kshot.visual.grammar_frames import drawn_frames, long_enough
from kshot.visual.grammar_joined import checked_labels, checked_modalities
from kshot.visual.grammar_stills import Folders, ShotSentences, as_folders
from kshot.visual.joining import Modality
from kshot.visual.palette import LabelPicture, Palette, PaletteLike, as_palette
from kshot.visual.sentence_types import Draw, Slot, one_of, regrouped, sentences, whole
from kshot.visual.sources import Found, Frames, Record, Skipped, Source, Tree, natural

Layout = Literal["separate", "interleaved", "both"]


@dataclass(frozen=True, kw_only=True)
class TrackSentences(ShotSentences):
    """Base of the sentences of several sequences of the same scene: frames, then the same frames in another modality.

    Args:
        frames: frames a shot.
        max_stride: the stride is drawn for each shot from 1 to this, or to the largest that it is long enough for.
        labels: modalities that are label maps; they are coloured by the palette.
        palette: a seed, a JSON file of colours, or the colours; see :class:`~kshot.visual.palette.Palette`.
    """

    record: ClassVar[str] = "groups of sequences"

    frames: int = 4
    max_stride: int | None = 4
    labels: Sequence[str] = ()
    palette: PaletteLike = 0

    def __post_init__(self) -> None:
        whole("frames", self.frames, 1)
        if self.max_stride is not None:
            whole("max_stride", self.max_stride, 1)
        object.__setattr__(self, "labels", checked_labels(self.labels, self.modality_names))
        if self.labels:
            _ = self.colours  # a palette that cannot be read is an error now, not at the first picture
        super().__post_init__()

    @property
    @abstractmethod
    def modality_names(self) -> tuple[str, ...]:
        """The modalities, in the order of the record's tracks."""

    @abstractmethod
    def order(self, variant: int) -> list[tuple[int, int]]:
        """The places of a shot: modality and frame."""

    @property
    def per_shot(self) -> int:
        return len(self.order(0))

    def places(self, variant: int = 0) -> tuple[str, ...]:
        return tuple(
            f"{self.modality_names[part]}{shot}.{frame + 1}"
            for shot in range(1, (self.shots or 1) + 1)
            for part, frame in self.order(variant)
        )

    def usable(self, found: Found) -> Found:
        return long_enough(found, self.frames)

    def compose(self, records: Sequence[Record], draw: Draw, variant: int) -> Sequence[Slot]:
        slots = []
        for record in records:
            # The variants of a record show the same frames.
            random = draw.of_record("frames", record.id)
            frames = drawn_frames(len(record.tracks[0]), self.frames, self.max_stride, None, random)
            shown = [track.at(frames) for track in record.tracks]
            for part, frame in self.order(variant):
                role, (source, picture) = self.modality_names[part], shown[part][frame]
                coloured = LabelPicture(picture, self.colours) if role in self.labels else picture
                slots.append(Slot(role, source, coloured))
        return slots

    def within(self, most: int) -> dict[str, Any] | None:
        each = self.per_shot // self.frames
        return super().within(most) or ({"frames": most // each, "shots": 1} if most >= each else None)

    @cached_property
    def colours(self) -> Palette:
        """The palette of the label maps."""
        return as_palette(self.palette)

    def details(self, records: Sequence[Record]) -> Mapping[str, Any]:
        return {"palette": [list(colour) for colour in self.colours.colours]} if self.labels else {}


@sentences.register("sequences")
@dataclass(frozen=True, kw_only=True)
class Sequences(TrackSentences):
    """Sequences in several modalities, several shots a sentence.

    ========================  ==========================================================================
    ``separate``              ``(shot, modality, frame)``: ``f1 f2 f3 a1 a2 a3``, then the next shot
    ``interleaved``           ``(shot, frame, modality)``: ``f1 a1 f2 a2 f3 a3``, then the next shot
    ``both`` (two sentences)  one of each, of the same frames
    ========================  ==========================================================================

    Args:
        modalities: by name, the folder that holds the modality's sequences, a sub-folder each; sub-folders of the same name belong
            together, and in them frames of the same name.
        files: patterns of file names by modality, where frames do not have the whole name in common (``{"depth": "*_depth"}``).
        layout: the layout, see above.
    """

    name: ClassVar[str] = "sequences"

    modalities: Mapping[str, Folders] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    layout: Layout = "both"

    def __post_init__(self) -> None:
        modalities, files = checked_modalities(self.modalities, self.files, self.name)
        object.__setattr__(self, "modalities", modalities)
        object.__setattr__(self, "files", files)
        one_of("layout", self.layout, ("separate", "interleaved", "both"))
        super().__post_init__()

    @property
    def variants(self) -> int:
        return 2 if self.layout == "both" else 1

    @property
    def modality_names(self) -> tuple[str, ...]:
        return tuple(self.modalities)

    def order(self, variant: int) -> list[tuple[int, int]]:
        parts, frames = range(len(self.modalities)), range(self.frames)
        if self.layout == "interleaved" or variant == 1:
            return [(part, frame) for frame in frames for part in parts]
        return [(part, frame) for part in parts for frame in frames]

    def find(self) -> Found:
        gathered = Gathered()
        skipped: list[Skipped] = []
        for name, folder in self.modalities.items():
            modality, tree = Modality(folder, self.files.get(name, "*")), Tree(folder)
            skipped += tree.skipped()
            for source in tree.sources():
                key = modality.key(source.id)
                if key is None:
                    skipped.append((tree.place(source.id), f"its name does not fit: {modality.files!r} expected"))
                    continue
                sequence, _, frame = key.rpartition("/")
                gathered.add(sequence or ".", name, frame, source)
        return gathered.matched(self.modality_names, skipped)


@sentences.register("co3d")
@dataclass(frozen=True, kw_only=True)
class CO3D(TrackSentences):
    """``[images, masks] x shots`` of objects filmed from around, as CO3D keeps them: ``CATEGORY/SEQUENCE/images/frame000001.jpg``.

    Any data in this layout can be read, one folder a modality inside of each sequence's.

    Args:
        folder: CO3D's folder (or several of them).
        annotations: the folders beside ``images``, a sentence each: ``masks``; ``depth_masks`` (where its depth is valid, no depth).
        same_category: the shots of a sentence show objects of the same category.
    """

    name: ClassVar[str] = "co3d"

    folder: Folders = ()
    annotations: Sequence[str] = ("masks",)
    same_category: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", as_folders(self.folder, "folder"))
        listed = [self.annotations] if isinstance(self.annotations, str) else self.annotations
        named = tuple(listed) if isinstance(listed, (list, tuple)) else ()
        if not named or "images" in named or len(set(named)) < len(named):
            raise OptionError(f"annotations are folders beside 'images', each once, not {self.annotations!r}")
        object.__setattr__(self, "annotations", named)
        super().__post_init__()

    @property
    def variants(self) -> int:
        return len(self.annotations)

    @property
    def modality_names(self) -> tuple[str, ...]:
        return ("images", *self.annotations)

    def order(self, variant: int) -> list[tuple[int, int]]:
        return [(part, frame) for part in (0, variant + 1) for frame in range(self.frames)]

    def group(self, records: Sequence[Record], epoch: int) -> np.ndarray:
        random = Draw(self.seed, self.name, epoch, 0).of_sentence("groups")
        return regrouped(records, self.shots or 1, random, by_group=self.same_category)

    def find(self) -> Found:
        if not self.folder:
            raise OptionError("sentence type 'co3d' needs folder=: CATEGORY/SEQUENCE/images/... are expected there")
        tree = Tree(self.folder)
        gathered = Gathered()
        for source in tree.sources():
            *above, name, file = ["", "", *source.id.split("/")]
            if (
                name in self.modality_names
            ):  # the other folders of a sequence, and the lists of frames, were not asked for
                sequence = "/".join(part for part in above if part) or "."
                # frame000001.jpg, frame000001.png and frame000001.jpg.geometric.png are of the same frame
                gathered.add(sequence, name, file.split(".")[0], source)
        if not gathered.sequences:
            raise DataError(
                f"no folder named {' or '.join(map(repr, self.modality_names))} in it",
                file=next(iter(tree.roots.values())),
                remedy="CATEGORY/SEQUENCE/images/frame000001.jpg is expected",
            )
        found = gathered.matched(self.modality_names, [])
        return Found(
            tuple(Record(r.id, tracks=r.tracks, group=r.id.rpartition("/")[0]) for r in found.records), found.skipped
        )


class Gathered:
    """Frames by sequence, modality and the name that they have in common with their partners."""

    def __init__(self) -> None:
        self.sequences: dict[str, dict[str, dict[str, Source]]] = {}
        self._doubled: dict[str, str] = {}

    def add(self, sequence: str, modality: str, frame: str, source: Source) -> None:
        """Enters a frame."""
        frames = self.sequences.setdefault(sequence, {}).setdefault(modality, {})
        held = frames.setdefault(frame, source)
        if held is not source:
            self._doubled.setdefault(sequence, f"name used twice: {held.id} and {source.id} of {modality!r}")

    def matched(self, modalities: Sequence[str], skipped: list[Skipped]) -> Found:
        """The sequences that have the same frames in all modalities, frames in the order of their names; the others are listed.

        A sequence that lacks one frame in one modality is left out whole: without it, strides would not be even.

        Raises:
            DataError: none has.
        """
        records = []
        for sequence, tracks in sorted(self.sequences.items()):
            problem = self._doubled.get(sequence) or _mismatch(tracks, modalities)
            if problem:
                skipped.append((sequence, problem))
                continue
            order = sorted(tracks[modalities[0]], key=natural)
            of_modalities = (Frames(tuple(tracks[name][frame] for frame in order)) for name in modalities)
            records.append(Record(sequence, tracks=tuple(of_modalities)))
        if not records:
            place, reason = skipped[-1]
            raise DataError(
                f"no sequence is there in all of {', '.join(modalities)}: {len(skipped)} are left out "
                f"(the last, {place}: {reason})",
                remedy="sub-folders and frames of the same scene need the same names; give a pattern such as '*_depth' "
                "where a modality adds something to them",
            )
        return Found(tuple(records), skipped)


def _mismatch(tracks: Mapping[str, Mapping[str, Source]], modalities: Sequence[str]) -> str:
    """Why the tracks of a sequence do not belong together; empty if they do."""
    lacking = [name for name in modalities if name not in tracks]
    if lacking:
        return f"no partner: {', '.join(map(repr, lacking))} has no such sequence"
    names = set.union(*(set(frames) for frames in tracks.values()))
    single = sorted((n for n in names if any(n not in frames for frames in tracks.values())), key=natural)
    if not single:
        return ""
    counts = ", ".join(f"{name!r} has {len(tracks[name])}" for name in modalities)
    return f"frames differ: {counts}; {single[0]!r} has no partner"
