"""Reference episodes: which of the pictures just shown are of the same class as this one?

Each picture is introduced under a name of its own, so that the answer cannot be had without comparing pictures. From the ``mix2``
configuration of Link-Context Learning (arXiv 2308.07891), whose released code answers with the names of the *other* class; here the
names are those of the query's class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, get_args

import numpy as np

from kshot.data.link_class import LinkClass
from kshot.data.naming import make_names
from kshot.data.readers import PathLike
from kshot.data.task import Task
from kshot.episode import Episode, Example
from kshot.errors import one_of
from kshot.models.base import PromptStyle
from kshot.training.items import TrainingItem, sources
from kshot.training.link import ClassEpisodes, MadeUp, longest_of
from kshot.training.link_prompts import REFERENCE, REFERENCE_QUERY, REFERENCE_QUESTION, reference_answer
from kshot.training.link_sides import Negatives, Shown, SideSampler
from kshot.training.shot_samplers import make_shots


@sources.register("reference")
class ReferenceEpisodes(ClassEpisodes):
    """Reference episodes, each class being drawn together with others once an epoch.

    A name is a made-up word, an underscore, and a word that all names of the episode end in. The answer lists the names of the
    query's class in the order in which they were shown, as Python writes a list: ``['sfyxa_ml', 'ucavlta_ml']``.

    Args:
        source, root, class_names, options, ways, sampler, shots_per_side, total_shots, min_shots_per_side, base, negatives,
            stored_pictures, names, style, episodes_per_class, seed: as in :class:`~kshot.training.link.LinkEpisodes`.

    Raises:
        DataError, OptionError, UnknownName: as there.
    """

    kind = "reference"

    def __init__(
        self,
        source: PathLike | Task | Sequence[LinkClass],
        *,
        root: PathLike | None = None,
        class_names: Mapping[str, str] | PathLike | None = None,
        options: Mapping[str, Any] | None = None,
        ways: int = 2,
        sampler: str = "uniform",
        shots_per_side: int | None = None,
        total_shots: int | None = None,
        min_shots_per_side: int = 1,
        base: float | str = "paper",
        negatives: Negatives = "neighbours",
        stored_pictures: bool = True,
        names: MadeUp = "letters",
        style: PromptStyle = "auto",
        episodes_per_class: int = 1,
        seed: int = 0,
    ):
        one_of("names", names, get_args(MadeUp))
        shots = make_shots(
            sampler,
            ways=ways,
            shots_per_side=shots_per_side,
            total_shots=total_shots,
            min_shots_per_side=min_shots_per_side,
            base=base,
        )
        super().__init__(
            source,
            root=root,
            class_names=class_names,
            options=options,
            episodes_per_class=episodes_per_class,
            style=style,
            seed=seed,
        )
        self.sides = SideSampler(self.classes, shots, negatives=negatives, stored_pictures=stored_pictures)
        self.names = names

    def item(self, epoch: int, index: int) -> TrainingItem:
        return self._item(epoch, index)

    def longest(self) -> list[TrainingItem]:
        return longest_of(self, lambda index: self._item(0, index, self.sides.shots.most))

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), **self.sides.describe(), "names": self.names, "template": asdict(REFERENCE)}

    def _item(self, epoch: int, index: int, per_side: int | None = None) -> TrainingItem:
        rng = self.rng(epoch, index)
        drawn = self.sides.draw(self.class_of(index), rng, per_side=per_side)
        names = self._names(len(drawn.support), rng)
        right = [name for name, shown in zip(names, drawn.support, strict=True) if shown.side == drawn.query.side]

        def example(shown: Shown, question: str, answer: str) -> Example:
            key = drawn.classes[shown.side].key
            return Example((shown.picture,), question, answer, id=shown.id, metadata={"class": key})

        demonstrations = tuple(
            example(shown, REFERENCE_QUESTION, reference_answer(name))
            for name, shown in zip(names, drawn.support, strict=True)
        )
        query = example(drawn.query, REFERENCE_QUERY, f"{right}.")
        episode = Episode(demonstrations, query, id=f"{self.kind}-{epoch}-{index}")
        return TrainingItem(episode, REFERENCE, (), self.style, self.kind)

    def _names(self, count: int, rng: np.random.Generator) -> list[str]:
        """So many different names with one ending."""
        (tag,) = make_names(self.names, 1, rng)
        names: dict[str, None] = {}
        while len(names) < count:
            names[f"{make_names(self.names, 1, rng)[0]}_{tag}"] = None
        return list(names)
