"""Retrievers that go by class: as many demonstrations of each as of any other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from kshot.data.candidates import Candidates
from kshot.data.retrieval import Order, Retriever, generator, random_order, retrievers
from kshot.episode import Example
from kshot.errors import OptionError


@retrievers.register("balanced")
class Balanced(Retriever):
    """The same number of examples of each class, drawn at random; classes differ by at most one unless some run out.

    The class of an example is its answer, or ``metadata["class"]`` if the answer is a picture. The classes are those of the support
    set, or the query's choices where the whole episode offers the same ones.

    Args:
        classes: the classes, if they are to be checked against a list.
        order: see :class:`Retriever`; ``given`` shows one of each class, then again one of each.
    """

    name = "balanced"
    default_order = "shuffled"

    def __init__(self, *, order: Order | None = None, classes: Sequence[str] | None = None):
        super().__init__(order=order)
        self.classes = tuple(classes) if classes is not None else None
        self._grouped: tuple[Sequence[Example], dict[str, list[int]], list[str]] | None = None

    def pick(self, candidates: Candidates, shots: int, rng: np.random.Generator) -> list[int]:
        groups = self._groups(candidates)
        walks = {name: candidates.among(self._walk(members, rng)) for name, members in groups.items()}
        chosen: list[int] = []
        live = list(walks)
        while live and len(chosen) < shots:
            first_round = not chosen
            for name in [live[i] for i in rng.permutation(len(live))]:
                if len(chosen) == shots:
                    break
                index = next(walks[name], None)
                if index is not None:
                    chosen.append(index)
                    continue
                if first_round and shots >= len(walks):
                    raise OptionError(
                        f"class {name!r} has no example that can be shown with query {candidates.query.id!r}"
                    )
                live.remove(name)
        return chosen

    def describe(self) -> dict[str, Any]:
        return super().describe() | ({"classes": list(self.classes)} if self.classes is not None else {})

    def _walk(self, members: Sequence[int], rng: np.random.Generator) -> Iterator[int]:
        """The members of a class in the order in which they are taken."""
        return (members[place] for place in random_order(len(members), rng))

    def _groups(self, candidates: Candidates) -> dict[str, list[int]]:
        query, pool = candidates.query, candidates.pool
        if self._grouped is None or self._grouped[0] is not pool:
            self._grouped = (pool, *self._by_class(pool))
        _, groups, unanswered = self._grouped
        candidates.unanswered.update(unanswered)
        wanted = self.classes
        if wanted is None and query.choices and set(query.choices) == set(pool[0].choices):
            wanted = query.choices
        if wanted is None:
            return groups
        for name in wanted:
            if name not in groups:
                raise OptionError(
                    f"class {name!r} is empty: the support set of query {query.id!r} has no example of it"
                )
        return {name: groups[name] for name in wanted}

    def _by_class(self, pool: Sequence[Example]) -> tuple[dict[str, list[int]], list[str]]:
        """Places in the pool by class, and the ids of examples without answer."""
        groups: dict[str, list[int]] = {}
        unanswered: list[str] = []
        silent = len(pool) < 50_000 or None  # None: silent unless on a terminal
        for index, example in enumerate(tqdm(pool, "classes of the support set", leave=False, disable=silent)):
            if example.answer is None:
                unanswered.append(example.id)
                continue
            name = example.answer if isinstance(example.answer, str) else example.metadata.get("class")
            if name is None:
                raise OptionError(
                    f"balanced: example {example.id!r} is answered by a picture and has no metadata['class'] "
                    "(use another retriever)"
                )
            groups.setdefault(str(name), []).append(index)
        return groups, unanswered


@retrievers.register("first")
class First(Balanced):
    """The first examples of each class, as many of each, as Link-Context Learning takes them; only their arrangement is drawn.

    All queries with the same support set (the same ``support`` in their metadata, or a task whose queries share one) get the same
    demonstrations in the same arrangement, so that these need to be read once. Where one clashes with a query, this query gets the
    next of the class in its place. More shots show what fewer show, and more.

    Args:
        classes: the classes, if they are to be checked against a list.
        order: see :class:`Retriever`; ``given`` shows one of each class, then again one of each.
    """

    name = "first"
    same_for_all = True

    def generator(self, seed: int, shots: int, query: Example) -> np.random.Generator:
        """It depends on seed, shots and the support set, not on the query."""
        return generator(seed, shots, str(query.metadata.get("support", "")))

    def _walk(self, members: Sequence[int], rng: np.random.Generator) -> Iterator[int]:
        return iter(members)

    def _groups(self, candidates: Candidates) -> dict[str, list[int]]:
        # The order in which names are offered differs from query to query.
        return dict(sorted(super()._groups(candidates).items()))
