"""The command line: a table of public functions whose signatures are the options.

``kshot COMMAND --help`` shows a function's parameters. Underscores in option names may be written as dashes, and lists with commas.
The task's, the model's and the retriever's own options are given like any other, ``--task omniglot --root images.zip --ways 5``, or,
where a name means two things, behind the part it belongs to: ``--seed 1 --task.seed 2``. All options can also be kept in a YAML file:
``--config FILE``.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kshot.errors import KshotError, UnknownName
from kshot.version import __version__

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

    from kshot.registry import Registry


@dataclass(frozen=True)
class Command:
    """A command.

    Attributes:
        target: ``module:function``, imported when the command is used.
        summary: one line for ``kshot --help``.
        positional: parameter that takes the arguments without a name: all of them if it is a sequence, or one.
        report: ``module:function`` that puts the result into words, where it does not speak for itself.
        kinds: ``module:table`` if the command's first word chooses one of several functions; then ``target`` looks a word up.
    """

    target: str
    summary: str
    positional: str | None = None
    report: str | None = None
    kinds: str | None = None

    def function(self) -> Callable[..., Any]:
        """Import the function."""
        found: Callable[..., Any] = _imported(self.target)
        return found


def _imported(place: str) -> Any:
    module, name = place.split(":")
    return getattr(importlib.import_module(module), name)


COMMANDS = {
    "quickstart": Command(
        "kshot.quickstart:quickstart", "see a small model learn from its context, offline, in a minute"
    ),
    "evaluate": Command(
        "kshot.evaluation.evaluate:evaluate", "a model on a task with k demonstrations, controls and intervals"
    ),
    "compare": Command("kshot.evaluation.compare:compare", "several runs in one table and one picture", "runs"),
    "show": Command("kshot.evaluation.show:show", "the prompt of an episode, in the terminal or as a picture"),
    "tasks": Command(
        "kshot.evaluation.listing:describe_parts", "the tasks, metrics, retrievers and controls there are", "names"
    ),
    "methods": Command(
        "kshot.evaluation.listing:describe_methods", "the methods that put demonstrations into an adapter", "names"
    ),
    "build-episodes": Command(
        "kshot.data.build_episodes:build_episodes", "lists for link-context learning, made from image folders", "kind"
    ),
    "train": Command(
        "kshot.training.train:train", "train a model from a recipe: link-context learning, mixtures, LoRA"
    ),
    "distill": Command(
        "kshot.training.distill:distill",
        "put demonstrations into an adapter of a few kilobytes: LIVE, MimIC and rivals",
    ),
    "compare-methods": Command(
        "kshot.comparison:compare_methods", "methods side by side on one task: what each gains and what it costs"
    ),
    "convert": Command(
        "kshot.convert:conversion",
        "a checkpoint of another program as a model of transformers",
        kinds="kshot.convert:CONVERSIONS",
    ),
}

DEFAULTS = {"objective": "answers"}
"""Parts that need not be named."""

SHORT = {"control": "controls", "baseline": "baselines"}
"""Options that may be written in the singular."""

GROUPS = ("task", "model", "retriever", "objective", "method")
"""Parts with options of their own, which go to the parameters ``task_options`` ...: ``--task.root``, or ``--root`` for short."""

Tree = dict[str, Any]
"""Options within options: ``--data.episodes.source FOLDER`` is ``{"data": {"episodes": {"source": "FOLDER"}}}``."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, or 2 for an error that the user can put right.

    Errors are printed in one line; ``--debug`` shows where they were raised.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        return _run(words)
    except KshotError as error:
        if debug:
            raise
        print(f"kshot: error: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(
            "kshot: stopped; the same command carries on where it was, if it keeps a run folder (--out)",
            file=sys.stderr,
        )
        return 130


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if words[0] in ("-V", "--version"):
        print(f"kshot {__version__}")
        return 0
    name, *rest = words
    if name not in COMMANDS:
        raise UnknownName("command", name, COMMANDS)
    command = COMMANDS[name]
    if command.kinds is not None:
        if not rest or rest[0].startswith("-"):
            return _explain_kinds(name, command, rest)
        name, command, rest = f"{name} {rest[0]}", _of_kind(command, rest[0]), rest[1:]
    function = command.function()
    result = function(**_parse(name, command, function, rest))
    if command.report is not None:
        result = _imported(command.report)(result)
    if result is not None and _leads():
        from rich.console import Console

        Console(soft_wrap=not sys.stdout.isatty()).print(result)
    return 0


def _of_kind(command: Command, kind: str) -> Command:
    """The function that a word chooses, as a command of its own; its first parameter needs no name."""
    found = command.function()(kind)
    first = next(iter(inspect.signature(_imported(found.target)).parameters))
    return Command(found.target, found.summary, first, found.report)


def _explain_kinds(name: str, command: Command, rest: Sequence[str]) -> int:
    """What may stand behind a command that begins with a kind.

    Raises:
        KshotError: it was not asked for, but is missing.
    """
    assert command.kinds is not None
    table = _imported(command.kinds)
    if rest[:1] not in (["-h"], ["--help"]):
        raise KshotError(f"kshot {name} needs a kind: {', '.join(table)} (kshot {name} KIND --help lists the options)")
    kinds = [f"  {kind:<12}{found.summary}" for kind, found in table.items()]
    lines = [f"usage: kshot {name} KIND [options]", "", command.summary, "", "kinds:", *kinds, ""]
    print("\n".join([*lines, f"kshot {name} KIND --help lists the options of a kind"]))
    return 0


def _parse(name: str, command: Command, function: Callable[..., Any], words: list[str]) -> dict[str, Any]:
    """The function's arguments from the command line.

    Raises:
        KshotError: an unknown option or a value that cannot be read.
    """
    from jsonargparse import ArgumentError

    parser = build_parser(name, command, function)
    plain, trees = Names(function, words).sort()
    try:
        parsed = parser.parse_args(plain)
    except ArgumentError as error:
        raise KshotError(f"{error} (kshot {name} --help lists all options)") from None
    values = {k: v for k, v in parsed.as_dict().items() if k in inspect.signature(function).parameters}
    values |= trees
    for part in GROUPS:
        if values.get(f"{part}_options"):
            values[f"{part}_options"] = typed(part, values.get(part), values[f"{part}_options"])
    return values


def build_parser(name: str, command: Command, function: Callable[..., Any]) -> ArgumentParser:
    """The parser of one command."""
    from jsonargparse import ArgumentParser

    described = (inspect.getdoc(function) or command.summary).splitlines()[0]
    parser = ArgumentParser(prog=f"kshot {name}", description=described, exit_on_error=False)
    parser.add_argument("--config", help="YAML file with any of these options, or a recipe of kshot's")
    parameters = inspect.signature(function).parameters
    # Parts can be given as objects in Python; on the command line they are names.
    named = {part for part in GROUPS if part in parameters}
    options = {f"{part}_options" for part in GROUPS} & set(parameters)
    own: set[str | int] = {*named, *options, *([command.positional] if command.positional else [])}
    for part in (p for p in parameters if p in named):
        needed = parameters[part].default is inspect.Parameter.empty
        parser.add_argument(
            f"--{part}",
            type=str if needed else str | None,
            required=needed,
            default=None if needed else parameters[part].default,
            help=_help(function, part),
        )
    if command.positional:
        needed = parameters[command.positional].default is inspect.Parameter.empty
        several = "Sequence[" in str(parameters[command.positional].annotation)
        number = ("+" if needed else "*") if several else (None if needed else "?")
        parser.add_argument(command.positional, nargs=number, type=str, help=_help(function, command.positional))
    parser.add_function_arguments(function, skip=own, as_group=False, as_positional=False, sub_configs=False)
    for option in sorted(options):
        parser.add_argument(f"--{option}", type=dict[str, Any], default={}, help=_help(function, option))
    return parser


def typed(part: str, name: str | None, options: dict[str, Any]) -> dict[str, Any]:
    """A part's options in the types that it declares, lists from text with commas.

    Raises:
        KshotError: a value is of another type.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    maker = _maker(part, name)
    known = inspect.signature(maker).parameters if maker else {}
    if maker is None or not set(options) <= set(known):
        return options  # the part itself says which options it has
    given = {key: _listed(value, str(known[key].annotation)) for key, value in options.items()}
    parser = ArgumentParser(exit_on_error=False)
    add = parser.add_class_arguments if inspect.isclass(maker) else parser.add_function_arguments
    others: set[str | int] = {option for option in known if option not in given}
    add(maker, as_group=False, fail_untyped=False, skip=others, sub_configs=False)
    try:
        parser.parse_object(given)
    except ArgumentError as error:
        raise KshotError(f"{part} {name!r}: {error}") from None
    return given


def _listed(value: Any, annotation: str) -> Any:
    """A list from text with commas (or from a single number), where a list is wanted."""
    if isinstance(value, str) and "Sequence[" in annotation:
        return value.split(",")
    if "list[int]" in annotation and isinstance(value, int | str):
        return [int(number) if number.lstrip("-").isdigit() else number for number in str(value).split(",")]
    return value


def _maker(part: str, name: str | None) -> Callable[..., Any] | None:
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
    registry: Registry[Any]
    if part == "objective":
        from kshot.training.train import objectives

        registry = objectives
    elif part == "task":
        from kshot.data.task import tasks

        registry = tasks
    else:
        from kshot.data.retrieval import retrievers

        registry = retrievers
    return registry.get(name) if name in registry else None


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

    def sort(self) -> tuple[list[str], dict[str, Tree]]:
        """The words that are the function's plain options, with dashes and the YAML file resolved; and the options within options.

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
            known = self.own.union(*map(self._options, self.parts))
            raise UnknownName("option", f"--{option}", {f"--{k.replace('_', '-')}" for k in known})
        return [f"{part}_options", name, *inner]

    @cache  # noqa: B019 - lives as long as one command line
    def _options(self, part: str) -> set[str]:
        """The options that the named part takes; none if it is named wrongly, which is found out later."""
        named = _value_of(part, self.words)
        maker = _maker(part, named if named is not None else DEFAULTS.get(part))
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

    shipped = Path(__file__).parent / "recipes" / file
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


def _help(function: Callable[..., Any], parameter: str) -> str:
    """What the docstring says about a parameter."""
    from docstring_parser import parse

    found = {p.arg_name: p.description for p in parse(inspect.getdoc(function) or "").params}
    return (found.get(parameter) or "").replace("%", "%%")


def _overview() -> str:
    lines = [
        "usage: kshot COMMAND [options]",
        "",
        "Visual in-context learning: make vision models learn from a handful of examples.",
    ]
    lines += ["", "commands:", *(f"  {name:<16}{command.summary}" for name, command in COMMANDS.items())]
    lines += [
        "",
        "kshot COMMAND --help lists its options; --config FILE reads them from YAML; --debug shows where an error was raised;",
    ]
    return "\n".join([*lines, "kshot --version says which version this is."])


def _leads() -> bool:
    """Whether this process prints: of several, the first."""
    import os

    return os.environ.get("RANK", "0") == "0"


if __name__ == "__main__":
    sys.exit(main())
