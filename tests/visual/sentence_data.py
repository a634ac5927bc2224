"""Data and options for every sentence type; a type that is registered without an entry here fails the tests over the registry."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.visual.pictures import numbered, write

BITS, STRIPE = 6, 16


def make_video(path: Path, frames: int, *, codec: str = "libx264", **options: str) -> Path:
    """A video whose frames show their numbers, see :func:`number_of`."""
    av = pytest.importorskip("av")
    path.parent.mkdir(parents=True, exist_ok=True)
    container_options = {"movflags": "faststart"} if path.suffix == ".mp4" else {}
    with av.open(str(path), "w", options=container_options) as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = STRIPE * BITS, 32, "yuv420p"
        for number in range(frames):
            bits = np.array([number >> bit & 1 for bit in range(BITS)], np.uint8) * 190 + 30
            pixels = np.broadcast_to(np.repeat(bits, STRIPE)[None, :, None], (32, STRIPE * BITS, 3))
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def number_of(image: Image.Image) -> int:
    """The number that a frame shows: a stripe a bit, light or dark, which no codec confuses."""
    row = np.asarray(image.convert("L"))[16, STRIPE // 2 :: STRIPE]
    return sum(int(value > 125) << bit for bit, value in enumerate(row))


def _stills(root: Path) -> dict[str, Any]:
    write(root / "photos", [*numbered("a/", 9), *numbered("b/", 8)])
    return {"folder": root / "photos"}


def _pairs(root: Path) -> dict[str, Any]:
    write(root / "photos", numbered("a/", 17))
    write(root / "masks", numbered("a/", 17, ".PNG"), mode="L")
    return {"x": root / "photos", "y": root / "masks", "labels": ["y"]}


def _annotations(root: Path) -> dict[str, Any]:
    for name in ("rgb", "depth", "edges", "normals", "mask"):
        write(root / name, numbered("p", 11))
    return {"modalities": {name: root / name for name in ("rgb", "depth", "edges", "normals", "mask")}}


def _classes(root: Path) -> dict[str, Any]:
    for number, size in enumerate((17, 20, 33, 16, 18)):
        write(root / "classes" / f"class{number}", numbered("", size))
    return {"folder": root / "classes"}


def _sequences_of_frames(root: Path) -> dict[str, Any]:
    for number, length in enumerate((24, 40, 16, 50)):
        write(root / "frames" / f"s{number}", [f"{frame}.png" for frame in range(length)])
    return {"folder": root / "frames"}


def _video(root: Path) -> dict[str, Any]:
    for number, length in enumerate((30, 50)):
        make_video(root / "videos" / f"v{number}.mp4", length)
    return {"folder": root / "videos", "strides": [1, 2]}


def _tracks(root: Path) -> dict[str, Any]:
    for number in range(5):
        write(root / "rgb" / f"s{number}", numbered("", 10 + number))
        write(root / "flow" / f"s{number}", numbered("", 10 + number))
    return {"modalities": {"rgb": root / "rgb", "flow": root / "flow"}}


def _co3d(root: Path) -> dict[str, Any]:
    for category, count in (("apple", 5), ("bench", 2)):
        for number in range(count):
            sequence = root / "co3d" / category / f"{number}_1_2"
            write(sequence, [f"images/frame{frame:06}.jpg" for frame in range(1, 10)])
            write(sequence, [f"masks/frame{frame:06}.png" for frame in range(1, 10)])
            write(sequence, [f"depth_masks/frame{frame:06}.png" for frame in range(1, 10)])
            write(sequence, [f"depths/frame{frame:06}.jpg.geometric.png" for frame in range(1, 10)])
    return {"folder": root / "co3d", "annotations": ["masks", "depth_masks"]}


MAKERS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "images": _stills,
    "colorization": _stills,
    "inpainting": _stills,
    "pairs": _pairs,
    "annotations": _annotations,
    "category": _classes,
    "category_shots": _classes,
    "frames": _sequences_of_frames,
    "rotation": _sequences_of_frames,
    "video": _video,
    "sequences": _tracks,
    "co3d": _co3d,
}
