"""Fixtures of the concept tasks and of the generated worlds for the tests that all tasks share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.data.concept_files import isekai_rows, omniglot_members, run_members, write_jsonl, write_test100, write_zip
from tests.data.formats import fixture


@fixture("omniglot")
def omniglot(folder: Path) -> dict[str, Any]:
    members = omniglot_members({"Greek": 3, "Japanese_(katakana)": 4})
    return {"root": write_zip(folder / "images_background_small1.zip", members), "ways": 3, "episodes": 30}


@fixture("omniglot_runs")
def omniglot_runs(folder: Path) -> dict[str, Any]:
    return {"root": write_zip(folder / "all_runs.zip", run_members(runs=1))}


@fixture("imagenet100")
def imagenet100(folder: Path) -> dict[str, Any]:
    return {"root": folder, "file": write_test100(folder), "episodes_per_class": 3}


@fixture("isekai")
def isekai(folder: Path) -> dict[str, Any]:
    return {"file": write_jsonl(folder / "ISEKAI-10.json", isekai_rows(folder))}


@fixture("glyphs")
def glyphs(folder: Path) -> dict[str, Any]:
    return {"episodes": 12}


@fixture("digits")
def digits(folder: Path) -> dict[str, Any]:
    return {"episodes": 12}


@fixture("concept_pair")
def concept_pair(folder: Path) -> dict[str, Any]:
    return {"queries": 12, "support": 16}


@fixture("scenes")
def scenes(folder: Path) -> dict[str, Any]:
    return {"episodes": 12}
