"""Whatever stands in the place of a field: a file with boxes is read, or refused with the place of the damage."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from kshot.data.task import load_task
from kshot.errors import DataError
from tests.data import box_formats
from tests.data.formats import write_json, write_lines

ODD: tuple[Any, ...] = (None, True, -1, 10**400, "", "\ud800", [], {}, [[]], float("nan"))


def paths(value: Any) -> list[tuple[Any, ...]]:
    """The places inside a JSON value, the first of each list only."""
    keys = list(value) if isinstance(value, dict) else range(min(1, len(value))) if isinstance(value, list) else ()
    return [(key, *rest) for key in keys for rest in [(), *paths(value[key])]]


def with_(value: Any, path: tuple[Any, ...], odd: Any) -> Any:
    value = copy.deepcopy(value)
    holder = value
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = odd
    return value


def check(name: str, file: Path, value: Any, **options: Any) -> int:
    """Damages every place in turn; the number of times that this was refused with the name of a file."""
    refused = 0
    for path in paths(value):
        for odd in ODD:
            damaged = with_(value, path, odd)
            if isinstance(damaged, list) and file.suffix == ".jsonl":
                write_lines_anyhow(file, damaged)
            else:
                write_json(file, damaged)
            try:
                task = load_task(name, questions=file, **options)
                for example in (*task.queries, *task.pool(task.queries[0])):
                    assert isinstance(example.answer, str)
            except DataError as error:
                refused += str(error.file).startswith(str(file.parent))
    return refused


def write_lines_anyhow(file: Path, rows: list[Any]) -> None:
    try:
        write_lines(file, rows)
    except UnicodeEncodeError:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))


LINES = {
    "rec": (lambda folder: box_formats.rec_lines(folder, 0, 1)[:2], "train2014"),
    "reg": (lambda folder: box_formats.rec_lines(folder, 0, 1, sized=False)[:2], "train2014"),
    "flickr30k_entities": (lambda folder: box_formats.entities_lines(folder)[:2], "flickr30k-images"),
}


@pytest.mark.parametrize("name", LINES)
def test_damaged_lines(tmp_path, name):
    make, images = LINES[name]
    assert check(name, tmp_path / "a.jsonl", make(tmp_path), images=tmp_path / images) > 50


@pytest.mark.parametrize("name", ["pointqa_local", "pointqa_twice", "visual7w"])
def test_damaged_point_lines(tmp_path, name):
    getattr(box_formats, name)(tmp_path)
    (published,) = tmp_path.glob("*_val.jsonl")
    rows = [json.loads(line) for line in published.read_text().splitlines()][:2]
    images = tmp_path / "images" if name == "visual7w" else tmp_path
    for version in {"pointqa_local": "bp", "pointqa_twice": ["sq-b"], "visual7w": "bp"}[name]:
        assert check(name, tmp_path / "a.jsonl", rows, images=images, version=version) > 30


def test_damaged_releases(tmp_path):
    box_formats.visual7w_release(tmp_path)
    file = tmp_path / "dataset_v7w_pointing.json"
    data = json.loads(file.read_text())
    assert check("visual7w", file, data, images=tmp_path / "images") > 50
    box_formats.release(tmp_path)
    file = tmp_path / "refcoco" / "refs(unc).json"
    refs = json.loads(file.read_text())[:2]
    assert check("rec", file, refs, images=tmp_path / "train2014") > 50
    for write in (box_formats.hub_corners, box_formats.hub_corner_and_size):
        file = write(tmp_path)
        rows = json.loads(file.read_text())
        assert check("rec", file, rows if isinstance(rows, list) else [rows], images=tmp_path / "train2014") > 30


def test_damaged_instances(tmp_path):
    options = box_formats.release(tmp_path)
    file = tmp_path / "refcoco" / "instances.json"
    data = json.loads(file.read_text())
    refused = 0
    for path in paths(data):
        for odd in ODD:
            write_json(file, with_(data, path, odd))
            try:
                assert len(load_task("rec", **options).queries) == 8
            except DataError:
                refused += 1
    assert refused > 50
