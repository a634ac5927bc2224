"""Classes for tests of link-context training: small coloured pictures, with and without neighbours, in memory and as files."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from kshot.data.link_class import LinkClass, Neighbour
from kshot.picture import BytesPicture, Picture
from tests.data.formats import write_lines


def picture(*key: int, size: tuple[int, int] = (8, 8)) -> Picture:
    """A picture of random pixels; other keys, other pixels."""
    pixels = np.random.default_rng(key).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return BytesPicture(buffer.getvalue(), f"picture {key}")


def classes(count: int = 8, pictures: int = 6, neighbours: int = 4, names: list[str] | None = None) -> list[LinkClass]:
    """Classes ``c0``, ``c1`` ...; the neighbours of class i are the next ones in a circle, each with a stored picture."""
    return [
        LinkClass(
            f"c{i}",
            names[i] if names else f"Thing {i}",
            [picture(i, number) for number in range(pictures)],
            tuple(Neighbour(f"c{(i + step) % count}", picture(i, 1000 + step)) for step in range(1, neighbours + 1)),
        )
        for i in range(count)
    ]


def write_list(folder: Path, count: int = 5, pictures: int = 4, neighbours: int = 3) -> Path:
    """``train900_pairs.jsonl`` in small, with its images."""
    paths = [[f"train/n{i:08d}/n{i:08d}_{number}.JPEG" for number in range(pictures + 1)] for i in range(count)]
    for i, row in enumerate(paths):
        for number, path in enumerate(row):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            picture(i, number, size=(24, 16)).load().save(folder / path, "JPEG", quality=95)
    rows = []
    for i in range(count):
        near = [(i + step) % count for step in range(1, neighbours + 1)]
        told = [[str(n + 1), f"Kind {n}", paths[n][pictures]] for n in near]
        rows.append(
            {"class_id": str(i + 1), "class_name": f"Kind {i}", "samples": paths[i][:pictures], "neighbors": told}
        )
    return write_lines(folder / "train900_pairs.jsonl", rows)
