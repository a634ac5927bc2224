"""Registries: how tasks, metrics and retrievers are found by name.

A part registers itself with a decorator; packages of other people add theirs through entry points of the same group::

    @tasks.register("vqav2")
    class VQAv2(Task): ...

    [project.entry-points."kshot.tasks"]
    my_task = "my_package:MyTask"

The modules that hold the built-in parts are imported on first use, so that ``import kshot`` stays cheap.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from kshot.errors import KshotError, UnknownName

T = TypeVar("T")


class Registry(Generic[T]):
    """Named parts of one kind.

    Args:
        kind: what the parts are, in the singular ("task"); used in messages.
        group: entry-point group searched for parts of other packages, e.g. ``"kshot.tasks"``.
        modules: modules that register the built-in parts when imported.
    """

    def __init__(self, kind: str, group: str, modules: tuple[str, ...] = ()):
        self.kind, self.group, self._modules = kind, group, modules
        self._parts: dict[str, T] = {}
        self._loaded = False

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that enters a part under ``name``.

        Raises:
            KshotError: the name is taken by another part.
        """

        def enter(part: T) -> T:
            held = self._parts.get(name)
            if held is not None and getattr(held, "__qualname__", held) != getattr(part, "__qualname__", part):
                raise KshotError(f"{self.kind} {name!r} is registered twice: {held} and {part}")
            self._parts[name] = part
            return part

        return enter

    def get(self, name: str) -> T:
        """The part of that name.

        Raises:
            UnknownName: there is none; the message suggests the nearest names.
        """
        self._load()
        if name not in self._parts:
            raise UnknownName(self.kind, name, self._parts)
        return self._parts[name]

    def names(self) -> list[str]:
        """All names, sorted."""
        self._load()
        return sorted(self._parts)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __contains__(self, name: object) -> bool:
        self._load()
        return name in self._parts

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True  # first, so that a module which looks up a part while loading does not recurse
        for module in self._modules:
            importlib.import_module(module)
        for point in entry_points(group=self.group):
            if point.name not in self._parts:
                self._parts[point.name] = point.load()
