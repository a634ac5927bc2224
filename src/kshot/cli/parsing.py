"""The parser of a command, made from its function's signature."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from kshot.cli.commands import Command
from kshot.cli.options import GROUPS, Names, maker_of
from kshot.errors import KshotError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser


def parse(name: str, command: Command, function: Callable[..., Any], words: list[str]) -> dict[str, Any]:
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

    maker = maker_of(part, name)
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


def _help(function: Callable[..., Any], parameter: str) -> str:
    """What the docstring says about a parameter."""
    from docstring_parser import parse

    found = {p.arg_name: p.description for p in parse(inspect.getdoc(function) or "").params}
    return (found.get(parameter) or "").replace("%", "%%")
