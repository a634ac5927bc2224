"""Several plans of sentences as one, which can be laid out anew without what is bad."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kshot.errors import OptionError
from kshot.visual.grammar import Sentence


class Joined(Sequence[Sentence]):
    """Plans one behind the other. Where two are of the same type, ids get the number of the plan, so that they differ.

    Args:
        plans: sequences of sentences; ``describe()``, ``skipped``, ``record_of()`` and ``without()`` are used where they have them.

    Raises:
        OptionError: there is no sentence in them.
    """

    def __init__(self, plans: Sequence[Sequence[Sentence]]):
        self.plans = list(plans)
        types = [getattr(plan, "type", None) or plan[0].type for plan in self.plans if len(plan)]
        self._numbered = len(set(types)) < len(types)
        self._ends: list[int] = np.cumsum([len(plan) for plan in self.plans]).tolist()
        if not self._ends or not self._ends[-1]:
            raise OptionError("no sentences are given")

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: Any) -> Any:
        number, within = self._place(index)
        found = self.plans[number][within]
        if not self._numbered:
            return found
        return Sentence(f"{number}/{found.id}", found.type, found.pictures, found.roles, found.sources)

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """Sources that the plans do not use, and why."""
        return [entry for plan in self.plans for entry in getattr(plan, "skipped", ())]

    def record_of(self, index: int, place: int) -> tuple[int, str] | None:
        """Plan and record id of a picture, by its sentence and place in it; ``None`` where the plan cannot do without a record."""
        number, within = self._place(index)
        plan = self.plans[number]
        if not hasattr(plan, "record_of") or not hasattr(plan, "without"):
            return None
        record = plan.record_of(within, plan[within].sources[place])
        return None if record is None else (number, record.id)

    def without(self, records: Mapping[tuple[int, str], str]) -> Joined:
        """The plans laid out anew without some records: plan and id, and why.

        Raises:
            DataError: a plan has too few left, or does not allow any to be left out.
        """
        plans: list[Any] = list(self.plans)
        for number, plan in enumerate(plans):
            bad = {record: why for (of, record), why in records.items() if of == number}
            plans[number] = plan.without(bad) if bad else plan
        return Joined(plans)

    def describe(self) -> list[dict[str, Any]]:
        """What determines the sentences; JSON."""
        found = []
        for plan in self.plans:
            describe = getattr(plan, "describe", None)
            told = dict(describe()) if describe is not None else {"sentences": len(plan)}
            if (records := getattr(plan, "records", None)) is not None:
                ids = "\0".join(record.id for record in records)
                told["records_digest"] = hashlib.blake2b(ids.encode(), digest_size=16).hexdigest()
            found.append(told)
        return found

    def _place(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"sentence {index} of {len(self)}")
        number = int(np.searchsorted(self._ends, index, side="right"))
        return number, index - (self._ends[number - 1] if number else 0)
