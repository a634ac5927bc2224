"""Files that the tests of commands for visual sentences share: a saved tiny model, pictures, and JSON lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.visual.tiny import noise, tiny_visual_model


def save_model(folder: Path) -> Path:
    model = tiny_visual_model()
    model.model.save_pretrained(folder)
    model.processor.save_pretrained(folder)
    return folder


def save_pictures(folder: Path, count: int, first: int = 0, edge: int = 12) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for number in range(count):
        path = folder / f"f{number}.png"
        noise(first + number, edge).save(path)
        names.append(str(path))
    return names


def save_lines(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)
