"""Episodes of n classes drawn from a list of classes: the task class behind Omniglot, glyphs and digits."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from kshot.data.concepts import Concept, ConceptTask, Draw
from kshot.data.derived import digest, generator
from kshot.errors import DataError, OptionError, listed
from kshot.metrics.common import fold


class NWayTask(ConceptTask):
    """Episodes of ``ways`` classes drawn from a list of classes, without replacement.

    The query's class is drawn first, each class being equally likely, then the others.

    Args:
        concepts: the classes.
        within_group: whether all classes of an episode come from one group; groups of fewer than ``ways`` classes are left out.
        source: what the classes were read from, for messages.
        options: see :class:`ConceptTask`.

    Raises:
        DataError: two classes of one name, or a class with too few pictures.
        OptionError: fewer classes than ways.
    """

    def __init__(self, concepts: Sequence[Concept], *, within_group: bool = False, source: str, **options: Any):
        super().__init__(**options)
        self.concepts, self.within_group = concepts, within_group
        check_classes(concepts, self.shots_per_class, source, named=self.names == "classes")
        groups: dict[str, list[int]] = defaultdict(list)
        for number, concept in enumerate(concepts):
            groups[concept.group if within_group else ""].append(number)
        self._groups = {group: members for group, members in groups.items() if len(members) >= self.ways}
        self.left_out = tuple(sorted(set(groups) - set(self._groups)))
        """Groups that are too small for an episode."""
        if not self._groups:
            most = max(map(len, groups.values()), default=0)
            where = "in the largest group" if within_group else "there"
            raise OptionError(f"ways={self.ways}: {source}: only {most} classes {where}")
        self._eligible = sorted(number for members in self._groups.values() for number in members)

    def draw(self, index: int) -> Draw:
        rng = generator(self.seed, "draw", index)
        number = self._eligible[rng.integers(len(self._eligible))]
        target = self.concepts[number]
        members = self._groups[target.group if self.within_group else ""]
        rivals = rng.choice(len(members) - 1, self.ways - 1, replace=False)
        at = members.index(number) if self.within_group else number
        chosen = [self.concepts[members[r + (r >= at)]] for r in rivals]  # a step over the target itself
        place = int(rng.integers(self.ways))
        chosen.insert(place, target)
        held: int | None = None
        if target.queries:
            query = target.queries[int(rng.integers(len(target.queries)))]
        else:
            held = int(rng.integers(len(target.pictures)))
            query = target.pictures[held]
        return Draw(tuple(chosen), place, query, held, f"{index}")

    def describe(self) -> dict[str, Any]:
        content = "\n".join(f"{c.key}\t{len(c.pictures)}\t{len(c.queries)}" for c in self.concepts)
        return {
            **super().describe(),
            "within_group": self.within_group,
            "left_out_groups": list(self.left_out),
            "classes": len(self.concepts),
            "classes_digest": digest(content),
        }


def check_classes(concepts: Iterable[Concept], shots_per_class: int, source: str, *, named: bool) -> None:
    """Complain about classes that no episode can be made of.

    Args:
        named: whether the classes' own names are shown, and so must differ.

    Raises:
        DataError: no class at all, two classes of one name, or classes with too few pictures.
    """
    keys: Counter[str] = Counter()
    names: Counter[str] = Counter()
    poor: list[str] = []
    for concept in concepts:
        keys[concept.key] += 1
        names[fold(concept.name)] += 1
        need = shots_per_class + (0 if concept.queries else 1)
        if len(concept.pictures) < need:
            poor.append(f"{concept.key} ({len(concept.pictures)} of {need})")
    if not keys:
        raise DataError("no classes found", file=source)
    twice = [key for key, count in (names if named else keys).items() if count > 1]
    if twice:
        raise DataError(f"two classes of one name: {listed(twice)}", file=source, remedy="rename one of them")
    if poor:
        raise DataError(
            f"too few pictures for {shots_per_class} shots per class and a query: {listed(poor)}",
            file=source,
            remedy="add pictures, remove the class, or ask for fewer shots per class",
        )
