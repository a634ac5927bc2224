"""``kshot tasks``: what there is to evaluate, and the options each part takes."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kshot.data.retrieval import retrievers
from kshot.data.task import tasks
from kshot.errors import UnknownName
from kshot.evaluation.controls import controls
from kshot.metrics.base import metrics, picture_metrics
from kshot.registry import Registry

if TYPE_CHECKING:
    from rich.console import Group

REGISTRIES: dict[str, Registry[Any]] = {
    "task": tasks,
    "retriever": retrievers,
    "metric": metrics,
    "picture metric": picture_metrics,
    "control": controls,
}


@dataclass(frozen=True)
class Part:
    """A registered part: its kind, name, first line of its description, and its options as ``name -> (default, meaning)``."""

    kind: str
    name: str
    summary: str
    options: dict[str, tuple[str, str]]


@dataclass(frozen=True)
class Listing:
    """Parts, for printing: with one line each, or with their options."""

    parts: tuple[Part, ...]
    detailed: bool
    command: str = "tasks"

    def __rich__(self) -> Group:
        from rich.console import Group
        from rich.table import Table

        tables: list[Any] = []
        for part in self.parts if self.detailed else ():
            table = Table(
                "option", "default", "meaning", title=f"{part.kind} {part.name}: {part.summary}", title_justify="left"
            )
            for option, (default, meaning) in part.options.items():
                table.add_row(f"--{option.replace('_', '-')}", default, meaning)
            tables.append(table if part.options else f"{part.kind} {part.name}: {part.summary} (no options)")
        if not self.detailed:
            for kind in dict.fromkeys(part.kind for part in self.parts):
                table = Table(f"{kind}s", "", show_edge=False, pad_edge=False, title_justify="left")
                for part in self.parts:
                    if part.kind == kind:
                        table.add_row(part.name, part.summary)
                tables += [table, ""]
            tables.append(f"kshot {self.command} NAME lists the options of one of them")
        return Group(*tables)

    def __str__(self) -> str:
        return "\n".join(f"{part.kind} {part.name}: {part.summary}" for part in self.parts)


def describe_parts(names: Sequence[str] = ()) -> Listing:
    """List all tasks, retrievers, metrics and controls, or the options of some of them.

    Args:
        names: parts whose options are listed.

    Raises:
        UnknownName: there is no part of that name.
    """
    every = [(kind, name) for kind, registry in REGISTRIES.items() for name in registry]
    if names:
        for name in names:
            if not any(name == known for _, known in every):
                raise UnknownName("part", name, {known for _, known in every})
        every = [(kind, name) for kind, name in every if name in names]
    return Listing(tuple(_part(kind, name) for kind, name in every), bool(names))


def describe_methods(names: Sequence[str] = ()) -> Listing:
    """List all methods that put demonstrations into an adapter, or the options of some of them.

    Args:
        names: methods whose options are listed.

    Raises:
        UnknownName: there is no method of that name.
    """
    from peft import PeftConfig

    from kshot.methods import methods
    from kshot.methods.of_peft import OF_PEFT, peft_config

    common = set(inspect.signature(PeftConfig).parameters) | {"base", "target_modules"}
    parts = []
    for name in names or [*methods, *OF_PEFT]:
        if name in OF_PEFT:
            kept = set(inspect.signature(PeftConfig).parameters)
            options = {key: value for key, value in options_of(peft_config(name)).items() if key not in kept}
            parts.append(Part("method", name, f"{OF_PEFT[name][1]}; PEFT's own", options))
            continue
        if name not in methods:
            raise UnknownName("method", name, {*methods, *OF_PEFT})
        method = methods.get(name)
        said = (
            method.summary
            + ("" if method.trainable else "; no training")
            + ("; can be merged" if method.mergeable else "")
        )
        options = {key: value for key, value in options_of(method.config).items() if key not in common}
        parts.append(Part("method", name, said, options))
    return Listing(tuple(parts), bool(names), "methods")


def _part(kind: str, name: str) -> Part:
    part = REGISTRIES[kind].get(name)
    if kind == "control":
        return Part(kind, name, part.meaning, {})
    lines = (inspect.getdoc(part) or name).split("\n\n")[0]
    options = options_of(part) if kind != "metric" else {}
    return Part(kind, name, _plain(lines), options)


def options_of(part: Callable[..., Any]) -> dict[str, tuple[str, str]]:
    """The options a part takes: ``name -> (default, what its docstring says, or else that of a class it derives from)``."""
    from docstring_parser import parse

    said: dict[str, str] = {}
    for holder in reversed(inspect.getmro(part)) if inspect.isclass(part) else (part,):
        for said_of in parse(inspect.cleandoc(holder.__doc__ or "")).params:
            text = _plain(said_of.description or "")
            if not text.startswith("see "):  # it says where to read on, which a table of options cannot follow
                said |= dict.fromkeys(said_of.arg_name.split(", "), text)
    return {
        name: ("(needed)" if p.default is p.empty else str(p.default), said.get(name, ""))
        for name, p in inspect.signature(part).parameters.items()
        if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    }


def _plain(text: str) -> str:
    """A docstring's text without its markup."""
    return " ".join(re.sub(r":\w+:`~?([^`]*)`|`+([^`]*)`+", lambda m: m[1] or m[2] or "", text).split())
