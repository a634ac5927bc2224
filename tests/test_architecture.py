"""The floors of docs/architecture.md: a file imports only from its own floor and from those below it."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import kshot

ROOT = Path(kshot.__file__).parent
FLOORS = (
    ("version", "errors", "whole_file", "registry", "picture", "episode", "prompt", "chat", "peft_hook"),
    ("metrics",),
    ("data",),
    ("visual",),
    ("models",),
    ("methods",),
    ("convert",),
    ("evaluation",),
    ("training",),
    ("comparison",),
    ("quickstart",),
    ("cli",),
)
FLOOR = {part: number for number, parts in enumerate(FLOORS) for part in parts}
FILES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


def imports(path: Path) -> set[str]:
    """The parts of kshot that a file imports, also inside functions; not those for type checkers only."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if node in typing_only:
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("kshot."):
            found.add(str(node.module).split(".")[1])
        elif isinstance(node, ast.ImportFrom) and node.module == "kshot":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("kshot.")}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_from_below(path):
    own = FLOOR[path.relative_to(ROOT).parts[0].removesuffix(".py")]
    above = {part for part in imports(path) if FLOOR[part] > own}
    assert not above, f"{path.relative_to(ROOT)} imports from above: {above}"


@pytest.mark.parametrize("module", ["kshot", "kshot.chat", "kshot.metrics", "kshot.data.task", "kshot.data.retrieval"])
def test_light_modules_import_no_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_nothing_pulls_in_torchvision():
    from importlib.metadata import requires

    names = {r.split(";")[0].split("[")[0].strip().lower() for r in requires("kshot") or []}
    assert not any(name.startswith(("torchvision", "timm")) for name in names)
    assert "torchvision" not in sys.modules
