"""Prompts of pictures from files: JSON lines as LVM's programs read them, frames, and folders of pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kshot.data.derived import generator
from kshot.data.folder import EXTENSIONS
from kshot.errors import DataError, OptionError
from kshot.evaluation.runs import read_jsonl
from kshot.picture import FilePicture, Picture
from kshot.visual.joining import Modality, joined
from kshot.visual.sources import Frames, Source, Track, Tree, frame_folders

VIDEOS = frozenset({".mp4", ".mov", ".mkv", ".avi", ".webm", ".mpg", ".mpeg", ".m4v", ".gif"})


@dataclass(frozen=True)
class Line:
    """One line.

    Attributes:
        id: unique in its file: where the line is from, which all that is random derives from.
        input: the pictures that the model is shown.
        target: those that it should give; may be empty.
        output: the file for the answer, relative to the folder of results.
        track: frames from which input and target are still to be drawn (:func:`window`), instead of them.
    """

    id: str
    input: tuple[Picture, ...] = ()
    target: tuple[Picture, ...] = ()
    output: str = ""
    track: Track | None = None

    def sources(self) -> dict[str, Any]:
        """Where everything is from, for the record of a run."""
        found: dict[str, Any] = {
            "id": self.id,
            "input": [p.name for p in self.input],
            "target": [p.name for p in self.target],
        }
        return found | ({"frames": len(self.track)} if self.track is not None else {})


def read_lines(file: str, root: str | None = None, most: int = 0) -> list[Line]:
    """Lines ``{"input": [paths], "target": [paths], "output": path}``, or ``{"frames": [paths], or a folder or a video}``.

    Args:
        file: JSON lines.
        root: what relative paths are relative to; default: the folder in which the program runs, as with LVM's programs, or else that
            of the file.
        most: only the first so many lines; 0 = all.

    Raises:
        DataError: a line is damaged, or has fields of other types.
    """
    path = Path(file)
    rows = read_jsonl(path)
    if not rows:
        raise DataError("no lines", file=file)
    return [_line(row, path, number, root) for number, row in enumerate(rows[: most or None], 1)]


def listed(pictures: str | Sequence[str]) -> list[str]:
    """Paths from text with commas; a folder stands for its pictures, in the order of their names (numbers count as such)."""
    names = pictures.split(",") if isinstance(pictures, str) else [str(name) for name in pictures]
    found: list[str] = []
    for name in (name.strip() for name in names):
        if name and Path(name).is_dir():
            tree = Tree(name)
            found += [str(tree.path(source.id)) for sources in frame_folders(tree).values() for source in sources]
        elif name:
            found.append(name)
    return found


def pair_prompts(
    pairs: str | Sequence[str], queries: Sequence[str], shots: int, seed: int
) -> tuple[list[Line], list[str]]:
    """Analogy prompts: for each query, ``shots`` pairs drawn by (seed, the query's name), and the query behind them.

    Args:
        pairs: the folder of inputs and that of answers; pictures of equal names are pairs.
        queries: paths of pictures. One that is itself an input of a pair is never shown with its answer.
        shots: number of pairs.
        seed: of the draws.

    Returns:
        The prompts, and what could not be paired.

    Raises:
        DataError: nothing matches by name.
        OptionError: not two folders, or fewer pairs than ``shots``.
    """
    folders = [name.strip() for name in pairs.split(",")] if isinstance(pairs, str) else list(pairs)
    if len(folders) != 2:
        raise OptionError(f"pairs are given by two folders, INPUTS,ANSWERS, not {len(folders)}")
    if shots < 1:
        raise OptionError(f"shots is {shots}; it must be at least 1")
    found = joined({"inputs": Modality(folders[0]), "answers": Modality(folders[1])})
    lines = []
    for query in queries:
        own = Path(query).resolve()
        records = [
            record
            for record in found.records
            if all(Path(part.picture().name).resolve() != own for part in record.parts)
        ]
        if len(records) < shots:
            raise OptionError(
                f"{shots} pairs wanted, but {folders[0]} and {folders[1]} have {len(records)} beside the query"
            )
        chosen = generator(seed, "pairs", Path(query).name).choice(len(records), shots, replace=False)
        shown = [part.picture() for number in chosen for part in records[number].parts]
        lines.append(Line(f"{query}", (*shown, FilePicture(query))))
    return lines, [f"{place}: {reason}" for place, reason in found.skipped]


def window(line: Line, length: int, seed: int, number: int, max_stride: int) -> Line | None:
    """A stretch of a line's frames: ``length`` pictures and, as its target, the next one.

    Stride (1 to ``max_stride``, as far as there are frames) and beginning are drawn by (seed, line, number). ``None`` if there are too
    few frames.
    """
    assert line.track is not None
    longest = (len(line.track) - 1) // length
    if longest < 1:
        return None
    random = generator(seed, "window", line.id, number)
    stride = int(random.integers(1, min(longest, max_stride) + 1))
    start = int(random.integers(0, len(line.track) - stride * length))
    places = range(start, start + stride * length + 1, stride)
    pictures = [picture for _, picture in line.track.at(places)]
    return Line(f"{line.id}#{start}+{stride}", tuple(pictures[:-1]), tuple(pictures[-1:]))


def _line(row: Any, file: Path, number: int, root: str | None) -> Line:
    if not isinstance(row, Mapping):
        raise DataError(
            "not a JSON object", file=file, line=number, remedy='write {"input": [paths], "target": [paths]}'
        )
    output = row.get("output", "")
    if not isinstance(output, str):
        raise DataError("must be a path", file=file, line=number, field="output")
    if "frames" in row:
        return Line(f"{number}", output=output, track=_track(row["frames"], file, number, root))
    if "input" not in row:
        fields = ", ".join(map(repr, row)) or "none"
        raise DataError(
            f"missing (fields: {fields})", file=file, line=number, field="input", remedy="a list of paths of pictures"
        )
    shown, wanted = (
        tuple(FilePicture(_place(name, file, root)) for name in _paths(row.get(key, []), file, number, key))
        for key in ("input", "target")
    )
    if not shown:
        raise DataError("no pictures", file=file, line=number, field="input")
    return Line(f"{number}", shown, wanted, output)


def _paths(value: Any, file: Path, number: int, field: str) -> list[str]:
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(name, str) and name for name in value):
        raise DataError("must be a list of paths", file=file, line=number, field=field)
    return value


def _track(value: Any, file: Path, number: int, root: str | None) -> Track:
    if isinstance(value, list):
        names = _paths(value, file, number, "frames")
        return Frames(tuple(Source(name, FilePicture(_place(name, file, root))) for name in names))
    if not isinstance(value, str) or not value:
        raise DataError("must be a list of paths, a folder or a video", file=file, line=number, field="frames")
    place = _place(value, file, root)
    if place.suffix.lower() in VIDEOS and place.is_file():
        from kshot.visual.video import VideoTrack, count_frames

        return VideoTrack(value, str(place), count_frames(str(place)))
    folders = frame_folders(Tree(place, EXTENSIONS))
    if len(folders) != 1:
        raise DataError(
            f"{len(folders)} folders of pictures in {place}", file=file, line=number, remedy="a line for each"
        )
    return Frames(next(iter(folders.values())))


def _place(name: str, file: Path, root: str | None) -> Path:
    path = Path(name).expanduser()
    if path.is_absolute():
        return path
    if root is not None:
        return Path(root) / path
    return path if path.exists() or not (file.parent / path).exists() else file.parent / path
