"""Frames of video files, by their exact numbers (needs the extra ``video``: PyAV).

Frames are numbered from 0 in the order in which they are shown. A seek in a video lands where its container pleases; here it only
saves decoding: the frame that is wanted is told by its time stamp, which the packets list without being decoded, so that a number
always means the same frame. Where a file has no usable time stamps, all frames before are decoded and counted.
"""

from __future__ import annotations

import hashlib
import os
import threading
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from PIL import Image

from kshot.errors import BadImage, MissingExtra
from kshot.picture import Picture, to_rgb

VIDEO_EXTENSIONS = frozenset(
    (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ts", ".wmv", ".flv", ".3gp", ".ogv", ".gif")
)
CLIPS_HELD = 4
"""Clips whose frames are kept decoded in a process: the frames of a sentence are looked at one after the other."""

_LOCKS = tuple(threading.Lock() for _ in range(64))
"""Threads that look at frames of the same clip wait for the first of them, or each would decode it."""


class VideoFrame(Picture):
    """A frame of a video; the frames that are wanted of the same video are decoded in one go.

    Args:
        path: the video file.
        frames: numbers of all frames that are wanted together, rising.
        place: which of them this one is.
    """

    def __init__(self, path: str, frames: tuple[int, ...], place: int):
        self.path, self.frames, self.place = path, frames, place
        self.name = f"{path}#{frames[place]}"

    def load(self) -> Image.Image:
        """The frame as an upright RGB image.

        Raises:
            BadImage: the video cannot be decoded up to it.
            MissingExtra: PyAV is not installed.
        """
        with _LOCKS[hash((self.path, self.frames)) % len(_LOCKS)]:
            return _decoded(self.path, self.frames)[self.place].copy()

    @property
    def digest(self) -> str:
        """Hash of the file and the number: nothing is decoded for it."""
        return hashlib.blake2b(
            f"{file_digest(self.path)}#{self.frames[self.place]}".encode(), digest_size=16
        ).hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, VideoFrame) and self.name == other.name

    def __hash__(self) -> int:
        return hash(self.name)


@dataclass(frozen=True)
class VideoTrack:
    """The frames of a video file.

    Attributes:
        id: the file's name in its folder.
        path: the file.
        length: its frames, see :func:`count_frames`.
    """

    id: str
    path: str
    length: int

    def __len__(self) -> int:
        return self.length

    def at(self, frames: Sequence[int]) -> list[tuple[str, Picture]]:
        """The source ids and pictures of frames; nothing is decoded."""
        wanted = tuple(sorted(frames))
        return [(f"{self.id}#{frame}", VideoFrame(self.path, wanted, wanted.index(frame))) for frame in frames]

    def holds(self, source: str) -> bool:
        return source.rpartition("#")[0] == self.id


def count_frames(path: str) -> int:
    """The number of frames of a video; its packets are listed, not decoded, where they have time stamps.

    Raises:
        BadImage: it cannot be opened, has no pictures, or ends before the number of frames that its header tells.
        MissingExtra: PyAV is not installed.
    """
    stamps = _time_stamps(path)
    if stamps is not None:
        return len(stamps)
    with _opened(path) as (container, stream):
        return sum(1 for _ in container.decode(stream))


def read_frames(path: str, frames: Sequence[int]) -> list[Image.Image]:
    """Frames of a video as upright RGB images.

    Args:
        path: the file.
        frames: their numbers, rising.

    Raises:
        BadImage: the video cannot be decoded, is damaged at one of them, or ends before.
        MissingExtra: PyAV is not installed.
    """
    stamps = _time_stamps(path)
    if stamps is None:
        found = _by_count(path, frames)
    else:
        if frames[-1] >= len(stamps):
            raise BadImage(f"the video has {len(stamps)} frames, none of number {frames[-1]}", file=path)
        wanted = {stamps[frame]: frame for frame in frames}
        found = _by_stamp(path, wanted, seek=frames[0] > 0) or _by_stamp(path, wanted, seek=False)
    missing = [frame for frame in frames if frame not in found]
    if missing:
        raise BadImage(f"frame {missing[0]} cannot be decoded", file=path, remedy="encode the video anew")
    return [found[frame] for frame in frames]


def file_digest(path: str) -> str:
    """Hash of a file's content; kept as long as the file is not changed.

    Raises:
        BadImage: the file cannot be read.
    """
    try:
        told = os.stat(path)
        return _file_digest(path, told.st_size, told.st_mtime_ns)
    except OSError as error:
        raise BadImage(f"video file cannot be read: {error.strerror}", file=path) from None


@lru_cache(maxsize=65_536)
def _file_digest(path: str, size: int, changed: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


@lru_cache(maxsize=CLIPS_HELD)
def _decoded(path: str, frames: tuple[int, ...]) -> list[Image.Image]:
    return read_frames(path, frames)


def _by_stamp(path: str, wanted: dict[int, int], *, seek: bool) -> dict[int, Image.Image]:
    """The frames of some time stamps; nothing if the seek went beyond the first."""
    found: dict[int, Image.Image] = {}
    first = min(wanted)
    with _opened(path) as (container, stream):
        if seek:
            container.seek(first, stream=stream, backward=True)
        for number, frame in enumerate(container.decode(stream)):
            if seek and number == 0 and (frame.pts is None or frame.pts > first):
                return {}
            if frame.pts in wanted:
                found[wanted[frame.pts]] = _image(frame, path, wanted[frame.pts])
                if len(found) == len(wanted):
                    break
    return found


def _by_count(path: str, frames: Sequence[int]) -> dict[int, Image.Image]:
    chosen = frozenset(frames)
    found: dict[int, Image.Image] = {}
    with _opened(path) as (container, stream):
        for number, frame in enumerate(container.decode(stream)):
            if number in chosen:
                found[number] = _image(frame, path, number)
            if number == frames[-1]:
                break
    return found


def _image(frame: Any, path: str, number: int) -> Image.Image:
    if frame.is_corrupt:  # decoders patch what is missing with what was there before
        raise BadImage(f"frame {number} is damaged", file=path)
    image = to_rgb(frame.to_image())
    turned = {
        90: Image.Transpose.ROTATE_90,
        180: Image.Transpose.ROTATE_180,
        270: Image.Transpose.ROTATE_270,
    }.get(round(getattr(frame, "rotation", 0)) % 360)
    return image.transpose(turned) if turned is not None else image


def _time_stamps(path: str) -> list[int] | None:
    """The frames' time stamps in the order of showing; ``None`` if some have none of their own."""
    with _opened(path) as (container, stream):
        stamps: list[int | None] = []
        packets = 0
        for packet in container.demux(stream):
            if not packet.size:
                continue  # the end of the stream, which empties the decoder
            if packet.is_corrupt:
                raise BadImage(f"damaged at frame {packets}", file=path)
            packets += 1
            if not packet.is_discard:
                stamps.append(packet.pts)
        if packets < stream.frames:
            raise BadImage(f"truncated: {packets} of {stream.frames} frames are there", file=path)
    if not stamps:
        raise BadImage("the video has no frames", file=path)
    if None in stamps or len(set(stamps)) < len(stamps):
        return None
    return sorted(stamp for stamp in stamps if stamp is not None)


@contextmanager
def _opened(path: str) -> Iterator[tuple[Any, Any]]:
    av = _pyav()
    try:
        with av.open(path) as container:
            if not container.streams.video:
                raise BadImage("no pictures in it: sound only, or cut off", file=path)
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            yield container, stream
    except FileNotFoundError:
        raise BadImage("video file not found", file=path) from None
    except (av.error.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise BadImage(f"video cannot be decoded ({reason})", file=path) from None


def _pyav() -> types.ModuleType:
    try:
        import av
    except ImportError:
        raise MissingExtra("av", "video", "reading videos") from None
    # Damage is told by our errors, in one line. With any level, messages would go through Python, and a decoder's thread that wants to
    # say something while the main thread closes the decoder waits for the interpreter, which waits for the thread.
    av.logging.set_level(None)
    return av
