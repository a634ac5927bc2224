"""The documentation's examples run, its links lead somewhere, and the README's commands are those that CI runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from kshot.cli import COMMANDS, main
from kshot.data.task import tasks
from kshot.methods import methods
from kshot.methods.of_peft import OF_PEFT

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"<!-- run -->\n```(\w+)\n(.*?)```", re.DOTALL)
EXAMPLES = [
    pytest.param(language, code, id=f"{page.relative_to(ROOT)}-{number}")
    for page in PAGES
    for number, (language, code) in enumerate(BLOCK.findall(page.read_text(encoding="utf-8")))
]


@pytest.mark.parametrize(("language", "code"), EXAMPLES)
def test_an_example_runs(language, code, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    try:
        if language == "python":
            exec(compile(code, "example", "exec"), {"__name__": "__main__"})
        else:
            for command in code.replace("\\\n", " ").strip().splitlines():
                words = shlex.split(command, comments=True)
                assert words[0] == "kshot"
                assert main(words[1:]) == 0
    finally:
        tasks._parts.pop("plain_colours", None)  # an example registers it; other tests run over the registry
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("method", [*methods.names(), *OF_PEFT])
def test_every_method_has_a_page(method):
    page = ROOT / "docs" / "methods" / f"{'peft' if method in OF_PEFT else method}.md"
    text = page.read_text(encoding="utf-8")
    assert method not in OF_PEFT or f"`{method}`" in text
    assert "https://arxiv.org/abs/" in text
    assert page.name in (ROOT / "docs" / "index.md").read_text(encoding="utf-8")


def test_there_are_examples():
    assert len(EXAMPLES) >= 7


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_shown_exists(page):
    for block in re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        for command in re.findall(r"(?:^|/)kshot (\w[\w-]*)", block, re.MULTILINE):
            assert command in COMMANDS, command


def test_ci_finds_the_readmes_two_commands():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = dict(re.findall(r"<!-- command: (\w+) -->\n```sh\n(.*?)\n```", text, re.DOTALL))
    assert commands.keys() == {"quickstart", "test"}
    assert commands["quickstart"].endswith("kshot quickstart")
    assert commands["test"].split("&&")[-1].split()[0].endswith("pytest")
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert all(f"readme_command {name}" in script for name in commands)
