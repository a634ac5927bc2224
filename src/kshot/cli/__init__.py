"""The command line: a table of public functions whose signatures are the options.

``kshot COMMAND --help`` shows a function's parameters. Underscores in option names may be written as dashes, and lists with commas.
The task's, the model's and the retriever's own options are given like any other, ``--task omniglot --root images.zip --ways 5``, or,
where a name means two things, behind the part it belongs to: ``--seed 1 --task.seed 2``. All options can also be kept in a YAML file:
``--config FILE``.
"""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Sequence

from kshot.cli.commands import COMMANDS, Command, imported
from kshot.cli.parsing import build_parser, parse, typed
from kshot.errors import KshotError, UnknownName
from kshot.version import __version__

__all__ = ["COMMANDS", "Command", "build_parser", "main", "parse", "typed"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, or 2 for an error that the user can put right.

    Errors are printed in one line; ``--debug`` shows where they were raised.
    """
    # PEFT 0.21 asks models for an attribute that transformers 5.23 has renamed; there is nothing that a user could do about it.
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
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
    result = function(**parse(name, command, function, rest))
    if command.report is not None:
        result = imported(command.report)(result)
    if result is not None and _leads():
        from rich.console import Console

        Console(soft_wrap=not sys.stdout.isatty()).print(result)
    return 0


def _of_kind(command: Command, kind: str) -> Command:
    """The function that a word chooses, as a command of its own; its first parameter needs no name."""
    found = command.function()(kind)
    first = next(iter(inspect.signature(imported(found.target)).parameters))
    return Command(found.target, found.summary, first, found.report)


def _explain_kinds(name: str, command: Command, rest: Sequence[str]) -> int:
    """What may stand behind a command that begins with a kind.

    Raises:
        KshotError: it was not asked for, but is missing.
    """
    assert command.kinds is not None
    table = imported(command.kinds)
    if rest[:1] not in (["-h"], ["--help"]):
        raise KshotError(f"kshot {name} needs a kind: {', '.join(table)} (kshot {name} KIND --help lists the options)")
    width = max(map(len, table)) + 2
    kinds = [f"  {kind:<{width}}{found.summary}" for kind, found in table.items()]
    lines = [f"usage: kshot {name} KIND [options]", "", command.summary, "", "kinds:", *kinds, ""]
    print("\n".join([*lines, f"kshot {name} KIND --help lists the options of a kind"]))
    return 0


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
