"""The command line: a table of public functions whose signatures are the options.

``kshot COMMAND --help`` shows a function's parameters. Underscores in option names may be written as dashes, and lists with commas.
The task's, the model's and the retriever's own options are given like any other, ``--task omniglot --root images.zip --ways 5``, or,
where a name means two things, behind the part it belongs to: ``--seed 1 --task.seed 2``. All options can also be kept in a YAML file:
``--config FILE``.
"""

from __future__ import annotations

import importlib
import inspect
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
        positional: parameter that takes all arguments without a name.
    """

    target: str
    summary: str
    positional: str | None = None

    def function(self) -> Callable[..., Any]:
        """Import the function."""
        module, name = self.target.split(":")
        found: Callable[..., Any] = getattr(importlib.import_module(module), name)
        return found


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
    "train": Command("kshot.training.tiny:train_tiny", "train the embedded model from nothing"),
}

SHORT = {"control": "controls", "baseline": "baselines"}
"""Options that may be written in the singular."""

GROUPS = ("task", "model", "retriever")
"""Parts with options of their own, which go to the parameters ``task_options`` ...: ``--task.root``, or ``--root`` for short."""


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
    function = command.function()
    result = function(**_parse(name, command, function, rest))
    if result is not None and _leads():
        from rich.console import Console

        Console(soft_wrap=not sys.stdout.isatty()).print(result)
    return 0


def _parse(name: str, command: Command, function: Callable[..., Any], words: list[str]) -> dict[str, Any]:
    """The function's arguments from the command line.

    Raises:
        KshotError: an unknown option or a value that cannot be read.
    """
    from jsonargparse import ArgumentError

    parser = build_parser(name, command, function)
    names = Names(function, words)
    try:
        parsed = parser.parse_args([names(word) for word in words])
    except ArgumentError as error:
        raise KshotError(f"{error} (kshot {name} --help lists all options)") from None
    values = {k: v for k, v in parsed.as_dict().items() if k in inspect.signature(function).parameters}
    for part in GROUPS:
        if values.get(f"{part}_options"):
            values[f"{part}_options"] = typed(part, values.get(part), values[f"{part}_options"])
    return values


def build_parser(name: str, command: Command, function: Callable[..., Any]) -> ArgumentParser:
    """The parser of one command."""
    from jsonargparse import ArgumentParser

    described = (inspect.getdoc(function) or command.summary).splitlines()[0]
    parser = ArgumentParser(prog=f"kshot {name}", description=described, exit_on_error=False)
    parser.add_argument("--config", action="config", help="YAML file with any of these options")
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
        parser.add_argument(
            command.positional, nargs="+" if needed else "*", type=str, help=_help(function, command.positional)
        )
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
    given = {
        key: value.split(",") if isinstance(value, str) and "Sequence[" in str(known[key].annotation) else value
        for key, value in options.items()
    }
    parser = ArgumentParser(exit_on_error=False)
    add = parser.add_class_arguments if inspect.isclass(maker) else parser.add_function_arguments
    others: set[str | int] = {option for option in known if option not in given}
    add(maker, as_group=False, fail_untyped=False, skip=others, sub_configs=False)
    try:
        parser.parse_object(given)
    except ArgumentError as error:
        raise KshotError(f"{part} {name!r}: {error}") from None
    return given


def _maker(part: str, name: str | None) -> Callable[..., Any] | None:
    """What makes the part of that name; ``None`` if there is none."""
    if name is None:
        return None
    if part == "model":
        from kshot.models import load_model

        return load_model
    from kshot.data.retrieval import retrievers
    from kshot.data.task import tasks

    registry: Registry[Any] = tasks if part == "task" else retrievers
    return registry.get(name) if name in registry else None


class Names:
    """Which parameter an option means.

    Args:
        function: the command's function.
        words: the command line, which names the task, the model and the retriever.
    """

    def __init__(self, function: Callable[..., Any], words: Sequence[str]):
        self.words = words
        self.own = set(inspect.signature(function).parameters) | {"config", "help"}
        self.parts = [part for part in GROUPS if f"{part}_options" in self.own]

    def __call__(self, word: str) -> str:
        """The word as the parser knows it: ``--on-bad-image``, ``--control``, ``--task.root`` and ``--root`` spelt out.

        Raises:
            UnknownName: neither the command nor one of its parts has such an option.
        """
        if not word.startswith("--") or word == "--":
            return word
        option, equals, value = word[2:].partition("=")
        name, dot, inner = option.replace("-", "_").partition(".")
        if name not in self.own and SHORT.get(name) in self.own:
            name = SHORT[name]
        if dot and name in self.parts:
            name = f"{name}_options"
        elif not dot and name not in self.own:
            part = next((part for part in self.parts if name in self._options(part)), None)
            if part is None:
                known = self.own.union(*map(self._options, self.parts))
                raise UnknownName("option", f"--{option}", {f"--{k.replace('_', '-')}" for k in known})
            name = f"{part}_options.{name}"
        return f"--{name}{dot}{inner}{equals}{value}"

    @cache  # noqa: B019 - lives as long as one command line
    def _options(self, part: str) -> set[str]:
        """The options that the named part takes; none if it is named wrongly, which is found out later."""
        maker = _maker(part, _value_of(part, self.words))
        return set(inspect.signature(maker).parameters) - {"id_or_path"} if maker else set()


def _value_of(option: str, words: Sequence[str]) -> str | None:
    """The value of an option on the command line, or in its YAML file."""
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word == f"--{option}":
            return following
        if word.startswith(f"--{option}="):
            return word.partition("=")[2]
    if option != "config" and (file := _value_of("config", words)) is not None:
        import yaml

        try:
            held = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError):
            return None  # the parser will say what is wrong with the file
        return str(held[option]) if isinstance(held, dict) and option in held else None
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
    lines += ["", "commands:", *(f"  {name:<12}{command.summary}" for name, command in COMMANDS.items())]
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
