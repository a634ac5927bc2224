"""How the classes of an episode are called."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from kshot.data.drawing import invent_name, random_letters
from kshot.errors import OptionError, one_of

Names = Literal["invented", "letters", "unseen", "classes"] | Sequence[str]
"""Invented pronounceable names; random letters a-z, 1 to 10 of them (Link-Context
Learning); invented names of the family that the embedded model never saw; the classes' real names; or names drawn from a list."""

KINDS_OF_NAMES = ("invented", "letters", "unseen", "classes")


def checked_names(names: Names, kinds: Sequence[str]) -> Any:
    """The option ``names``: one of ``kinds``, or a tuple of names to draw from.

    Raises:
        OptionError: it is neither, or the list has repetitions or empty names.
    """
    if not isinstance(names, str):
        listed_names = tuple(map(str, names))
        if len(listed_names) != 1 or listed_names[0] not in kinds:
            if (
                len(set(listed_names)) < len(listed_names)
                or not all(map(str.strip, listed_names))
                or len(listed_names) < 2
            ):
                raise OptionError(
                    f"names: a list to draw from holds at least two names, each once, none of them empty: {names!r}"
                )
            return listed_names
        names = listed_names[0]
    one_of("names", names, kinds)
    return names


def make_names(kind: Names, count: int, rng: np.random.Generator) -> tuple[str, ...]:
    """Distinct names of which none is contained in another (an answer could then not be told from its neighbour).

    Raises:
        OptionError: there are not so many names of this kind.
    """
    names: list[str] = []
    for _ in range(1000 * count):
        if not isinstance(kind, str):
            name = kind[int(rng.integers(len(kind)))]
        elif kind == "letters":
            name = random_letters(rng, int(rng.integers(1, 11)))
        else:
            name = invent_name(rng, seen=kind != "unseen")
        if not any(name in other or other in name for other in names):
            names.append(name)
            if len(names) == count:
                return tuple(names)
    raise OptionError(f"names={kind!r}: {count} names of which none contains another could not be found")
