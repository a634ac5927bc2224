"""The generated worlds that answer with pictures need no files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.data.formats import fixture


@fixture("functions")
def functions(folder: Path) -> dict[str, Any]:
    return {"episodes": 60}
