"""Errors a user can act on.

Every error in this module is about *input*: a file, a name, an option. Its message names the place (file, line or field)
and the remedy. The command line prints the message in one line and exits with :attr:`KshotError.exit_code`; a traceback is
shown only with ``--debug``. Anything else that is raised is a bug of ours and keeps its traceback.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Sequence
from typing import TypeVar

T = TypeVar("T")


class KshotError(Exception):
    """Base of all errors that the user can put right."""

    exit_code = 2


class UnknownName(KshotError):
    """A name that no registry entry bears; the message suggests the nearest ones."""

    def __init__(self, kind: str, name: str, known: Iterable[str]):
        known = sorted(known)
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(repr(n) for n in near)}?" if near else f"known: {', '.join(known)}"
        super().__init__(f"unknown {kind} {name!r}: {hint}")


class OptionError(KshotError):
    """An option whose value cannot be used (for example, more shots than the support set holds)."""


class DataError(KshotError):
    """A data file that is missing, damaged or not in the format it should have.

    Args:
        problem: what is wrong, in a few words.
        file: the file it is about.
        line: its line (text formats) or item number (lists), counted from 1.
        field: the field it is about.
        remedy: what the user can do.
    """

    def __init__(
        self,
        problem: str,
        *,
        file: str | os.PathLike[str] | None = None,
        line: int | None = None,
        field: str | None = None,
        remedy: str | None = None,
    ):
        self.problem, self.file, self.line, self.field, self.remedy = problem, file, line, field, remedy
        place = "".join(
            [
                f"{file}" if file is not None else "",
                f":{line}" if line is not None else "",
                f" field {field!r}" if field is not None else "",
            ]
        ).strip()
        super().__init__((f"{place}: " if place else "") + problem + (f" ({remedy})" if remedy else ""))


class BadImage(DataError):
    """An image that cannot be decoded or must not be (truncated, empty, decompression bomb ...)."""


class ModelError(KshotError):
    """A model folder or repository that cannot be used, or cannot be used in the way that was asked for."""


class ContextTooLong(KshotError):
    """A prompt longer than the model's context."""


class CannotWrite(KshotError):
    """A file or folder that cannot be written: no space, no permission, or something else is there.

    Args:
        path: what was to be written.
        problem: what the system says.
        remedy: what the user can do.
    """

    def __init__(self, path: str | os.PathLike[str], problem: str, remedy: str):
        super().__init__(f"{path} cannot be written: {problem} ({remedy})")


class MissingExtra(KshotError):
    """An optional dependency that is not installed; names the extra that brings it."""

    def __init__(self, package: str, extra: str, purpose: str):
        super().__init__(f"{purpose} needs the package {package!r}: pip install 'kshot[{extra}]'")


def one_of(option: str, value: T, known: Sequence[str]) -> T:
    """The value of an option, if it is one of the known ones.

    Raises:
        OptionError: it is not.
    """
    if value not in known:
        raise OptionError(f"{option}={value!r}: must be one of {', '.join(known)}")
    return value


def listed(items: Sequence[str], most: int = 5) -> str:
    """Items in one line for a message, the end cut off if there are many."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more
