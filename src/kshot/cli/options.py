"""Which parameter an option means, the command's own or that of a part it names (a task, a model ...); and options from YAML files."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kshot.errors import KshotError, UnknownName

if TYPE_CHECKING:
    from kshot.registry import Registry

DEFAULTS = {"objective": "answers"}
"""Parts that need not be named."""

SHORT = {"control": "controls", "baseline": "baselines"}
"""Options that may be written in the singular."""

GROUPS = ("task", "model", "retriever", "objective", "method", "sentences")
"""Parts with options of their own, which go to the parameters ``task_options`` ...: ``--task.root``, or ``--root`` for short."""

Tree = dict[str, Any]
"""Options within options: ``--data.episodes.source FOLDER`` is ``{"data": {"episodes": {"source": "FOLDER"}}}``."""


def maker_of(part: str, name: str | None) -> Callable[..., Any] | None:
    """What makes the part of that name; ``None`` if there is none."""
    if name is None:
        return None
    if part == "model":
        from kshot.models import load_model

        return load_model
    if part == "method":
        from kshot.training.distill_adapter import config_of

        try:
            found: Callable[..., Any] = config_of(name)
        except KshotError:
            return None
        return found
    registry = _registry(part)
    return registry.get(name) if name in registry else None


def _registry(part: str) -> Registry[Any]:
    """Where the parts of a kind are registered."""
    if part == "objective":
        from kshot.training.train import objectives

        return objectives
    if part == "task":
        from kshot.data.task import tasks

        return tasks
    if part == "sentences":
        from kshot.visual.grammar import sentences

        return sentences
    from kshot.data.retrieval import retrievers

    return retrievers


class Names:
    """Which parameter an option means.

    Args:
        function: the command's function.
        words: the command line, which names the task, the model and the retriever.
    """

    def __init__(self, function: Callable[..., Any], words: Sequence[str]):
        self.words = words
        parameters = inspect.signature(function).parameters
        self.own = set(parameters) | {"config", "help"}
        self.parts = [part for part in GROUPS if f"{part}_options" in self.own]
        self.trees = {name for name, parameter in parameters.items() if "dict[" in str(parameter.annotation)}
        self.switches = {name for name, parameter in parameters.items() if "bool" in str(parameter.annotation)}

    def sort(self) -> tuple[list[str], dict[str, Tree]]:
        """The words that are the function's plain options, with dashes and the YAML file resolved; and the options within options.

        An option that is true or false and has no value is true: ``--verify``.

        Raises:
            UnknownName: neither the command nor one of its parts has such an option.
            KshotError: the YAML file cannot be read.
        """
        plain: list[str] = []
        trees: dict[str, Tree] = {}
        for option, value in _from_file(_value_of("config", self.words)):
            path = self.path(option)
            if path[0] in self.trees:
                _set(trees, path, value)
            elif value is not None:
                plain.append(f"--{'.'.join(path)}={value if isinstance(value, str) else json.dumps(value)}")
        words = list(self.words)
        while words:
            word = words.pop(0)
            if not word.startswith("--") or word == "--":
                plain.append(word)
                continue
            option, equals, value = word[2:].partition("=")
            path = self.path(option)
            if path[0] not in self.trees:
                if path[0] in self.switches and not equals and (not words or words[0].startswith("--")):
                    equals, value = "=", "true"
                plain.append("--" + ".".join(path) + equals + value)
                continue
            if not equals:
                value = words.pop(0) if words and not words[0].startswith("--") else "true"
            _set(trees, path, _value(value))
        return plain, trees

    def path(self, option: str) -> list[str]:
        """Where the value of an option goes: a parameter of the function, and keys within it.

        ``on-bad-image``, ``control``, ``task.root`` and ``root`` are spelt out.

        Raises:
            UnknownName: neither the command nor one of its parts has such an option.
        """
        name, *inner = option.split(".")
        name = name.replace("-", "_")
        inner[:1] = [key.replace("-", "_") for key in inner[:1]]
        if name not in self.own and SHORT.get(name) in self.own:
            name = SHORT[name]
        if inner and name in self.parts:
            return [f"{name}_options", *inner]
        if name in self.own:
            return [name, *inner]
        part = next((part for part in self.parts if name in self._options(part)), None)
        if part is None:
            self._check_names()
            known = self.own.union(*map(self._options, self.parts))
            raise UnknownName("option", f"--{option}", {f"--{k.replace('_', '-')}" for k in known})
        return [f"{part}_options", name, *inner]

    def _check_names(self) -> None:
        """An option may be unknown because the part that has it is named wrongly: then the part's name is the error.

        Raises:
            UnknownName: such a part.
        """
        for part in self.parts:
            named = _value_of(part, self.words)
            if part not in ("model", "method") and named is not None:
                _registry(part).get(named)

    @cache  # noqa: B019 - lives as long as one command line
    def _options(self, part: str) -> set[str]:
        """The options that the named part takes; none if it is named wrongly, which is found out later."""
        named = _value_of(part, self.words)
        maker = maker_of(part, named if named is not None else DEFAULTS.get(part))
        known = set(inspect.signature(maker).parameters) if maker else set()
        return known - {"id_or_path"} - self.own


def _from_file(file: str | None) -> list[tuple[str, Any]]:
    """The options in a YAML file; recipes that come with kshot need no folder (``--config mix.yaml``).

    Raises:
        KshotError: there is no such file, or it holds something else.
    """
    if file is None:
        return []
    import yaml

    shipped = Path(__file__).parents[1] / "recipes" / file
    path = shipped if not Path(file).exists() and shipped.is_file() else Path(file)
    try:
        held = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise KshotError(f"--config {file}: {error}") from None
    if not isinstance(held, dict):
        raise KshotError(f"--config {file}: must hold options, one a line (name: value)")
    return [(str(name), value) for name, value in held.items()]


def _set(trees: dict[str, Tree], path: Sequence[str], value: Any) -> None:
    """Put a value into a tree; trees are merged, anything else is replaced.

    Raises:
        KshotError: the option holds a value, not further options.
    """
    inner: Any = trees
    for place, key in enumerate(path[:-1]):
        inner = inner.setdefault(key, {})
        if not isinstance(inner, dict):
            raise KshotError(
                f"--{'.'.join(path)}: {'.'.join(path[: place + 1])} is {inner!r} and has no options of its own"
            )
    if isinstance(value, dict):
        for key, leaf in value.items():
            _set(trees, [*path, str(key)], leaf)
        if not value:
            inner.setdefault(path[-1], {})
    else:
        inner[path[-1]] = value


def _value(text: str) -> Any:
    """A value on the command line as YAML means it; numbers like 1e-4, too."""
    import yaml

    try:
        return float(text) if re.fullmatch(r"[+-]?\d+(\.\d*)?e[+-]?\d+", text, re.IGNORECASE) else yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _value_of(option: str, words: Sequence[str]) -> str | None:
    """The value of an option on the command line, or in its YAML file."""
    for word, following in zip(words, [*words, ""][1:], strict=True):
        if word == f"--{option}":
            return following
        if word.startswith(f"--{option}="):
            return word.partition("=")[2]
    if option != "config" and (file := _value_of("config", words)) is not None:
        held = dict(_from_file(file))
        return str(held[option]) if option in held else None
    return None
