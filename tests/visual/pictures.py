"""Folders of small pictures for the tests of sentences: every picture has a colour of its own."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from PIL import Image


def write(root: Path, names: Iterable[str], size: tuple[int, int] = (8, 8), mode: str = "RGB") -> Path:
    """Writes a picture under every name; its colour follows from the name alone."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.new("RGB", size, colour_of(name))
        image.convert(mode).save(path, format="PNG")
    return root


def colour_of(name: str) -> tuple[int, int, int]:
    value = sum(ord(letter) * 31**place for place, letter in enumerate(name))
    return value % 251, value // 251 % 251, value // 63001 % 251


def numbered(prefix: str, count: int, suffix: str = ".png") -> list[str]:
    return [f"{prefix}{number:03}{suffix}" for number in range(count)]
