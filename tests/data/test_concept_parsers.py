"""Whatever stands in a file, reading it gives a task or an error that the user can act on."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kshot.data.imagenet_lists import read_test100, read_train900
from kshot.data.imagenet_train import read_class_map
from kshot.data.isekai import Isekai
from kshot.data.link_classes import load_link_classes
from kshot.data.omniglot import Omniglot, OmniglotRuns
from kshot.data.task import Task
from kshot.errors import KshotError
from tests.data.concept_files import (
    drawing,
    isekai_rows,
    omniglot_members,
    run_members,
    train900_rows,
    write_test100,
    write_zip,
)

LEAF = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=300), st.sampled_from(["", "..", "/"])
)
VALUE = st.recursive(
    LEAF, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)
PNG = drawing(1, 1)
CHARACTERS, RUNS = omniglot_members({"Greek": 2}, 2), run_members(1, 3)
fuzz = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
number = count()


@st.composite
def damage(draw: st.DrawFn, rows: list[dict[str, Any]]) -> str:
    """The lines of a file in which some fields were replaced or removed, or a line was cut."""
    rows = copy.deepcopy(rows)
    for _ in range(draw(st.integers(1, 3))):
        row = draw(st.sampled_from(rows))
        if not row:
            continue
        field = draw(st.sampled_from(sorted(row)))
        what = draw(st.sampled_from(["replace", "remove", "inside"]))
        if what == "remove":
            del row[field]
        elif what == "inside" and isinstance(row[field], list) and row[field]:
            row[field][draw(st.integers(0, len(row[field]) - 1))] = draw(VALUE)
        else:
            row[field] = draw(VALUE)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    return text[: draw(st.integers(0, len(text)))] if draw(st.booleans()) else text


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


@pytest.fixture(scope="module")
def test_rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in write_test100(folder).read_text().splitlines()]


@pytest.fixture(scope="module")
def query_rows(folder: Path) -> list[dict[str, Any]]:
    return isekai_rows(folder)


def attempt(file: Path, text: str, read: Callable[[Path], object]) -> None:
    file.write_text(text, encoding="utf-8")
    with suppress(KshotError):
        read(file)


@pytest.mark.filterwarnings("ignore:.*names that several classes bear")
@fuzz
@given(st.data())
def test_lists_of_imagenet_classes(folder: Path, test_rows: list[dict[str, Any]], data: st.DataObject) -> None:
    attempt(folder / "train.jsonl", data.draw(damage(train900_rows())), read_train900)
    attempt(folder / "test.jsonl", data.draw(damage(test_rows)), read_test100)


@fuzz
@given(st.data())
def test_classes_to_train_on(folder: Path, data: st.DataObject) -> None:
    rows: list[dict[str, Any]] = train900_rows()
    for name in {path for row in rows for path in [*row["samples"], *(n[2] for n in row["neighbors"])]}:
        if not (folder / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(PNG)

    def use(file: Path) -> None:
        classes = load_link_classes(file)
        classes.check(1)
        assert all(one.pictures[0].load() and classes.by_key(n.key) for one in classes for n in one.neighbours)

    attempt(folder / "link.jsonl", data.draw(damage(rows)), use)


@fuzz
@given(st.lists(st.one_of(st.text(max_size=20), st.from_regex(r"n\d{8} \d{1,3} [a-z_]+", fullmatch=True)), max_size=5))
def test_class_maps(folder: Path, lines: list[str]) -> None:
    def use(file: Path) -> None:
        assert all(class_id.isdecimal() and name for class_id, name in read_class_map(file).values())

    attempt(folder / "map_clsloc.txt", "\n".join(lines), use)


@fuzz
@given(st.data())
def test_isekai_annotations(folder: Path, query_rows: list[dict[str, Any]], data: st.DataObject) -> None:
    def use(file: Path) -> None:
        task = Isekai(file=file)
        for query in task.queries:
            assert len(task.pool(query)) >= 2

    attempt(folder / "a.json", data.draw(damage(query_rows)), use)


NAME = st.text(st.sampled_from("ab/._\\é é"), min_size=1, max_size=12)
MEMBER = st.one_of(
    NAME,
    st.builds("{}/character{}/{}.png".format, NAME, st.integers(0, 20), NAME),
    st.builds(
        "run{:02d}/{}".format, st.integers(0, 3), st.sampled_from(["class_labels.txt", "training/class01.png", "test/"])
    ),
)


@fuzz
@given(st.lists(MEMBER, max_size=12, unique=True), st.sets(st.integers(0, 60), max_size=12), st.binary(max_size=80))
def test_archives(folder: Path, extra: list[str], removed: set[int], labels: bytes) -> None:
    for base, read in ((CHARACTERS, Omniglot), (RUNS, OmniglotRuns)):
        kept = {name: content for k, (name, content) in enumerate(base.items()) if k not in removed}
        members = {**dict.fromkeys(extra, PNG), **kept}
        if len(removed) > 6 and "all_runs/run01/class_labels.txt" in members:
            members["all_runs/run01/class_labels.txt"] = labels
        # A new name each time: archives are kept open by name.
        archive = write_zip(folder / f"{next(number)}.zip", members)
        with suppress(KshotError):
            task: Task = read(archive, ways=2)  # type: ignore[operator]
            query = task.queries[0]
            assert len({e.answer for e in task.pool(query)}) == 2
            assert query.images[0].read()
