"""What training is fed with: items, and the sources they come from.

A :class:`Source` is a sequence whose items depend on (epoch, index) and on nothing else, so the same training data come out with any
number of loader workers, on any number of ranks, and after any interruption. Everything random in an item derives from the
source's seed, the epoch and the index.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kshot.episode import Episode
from kshot.errors import OptionError
from kshot.models.base import PromptStyle
from kshot.prompt import Template
from kshot.registry import Registry


@dataclass(frozen=True)
class TrainingItem:
    """An episode whose answers are to be learnt.

    Attributes:
        episode: demonstrations and a query, all with answers.
        template: how its examples are written.
        graded: for each demonstration, whether its answer is learnt, too (it may be unknowable at that point); empty: none is.
            The query's answer always is.
        style: plain or chat prompt; ``"auto"``: chat where the model has a chat template.
        source: name of the source, for reports.
    """

    episode: Episode
    template: Template
    graded: tuple[bool, ...] = ()
    style: PromptStyle = "auto"
    source: str = ""

    def __post_init__(self) -> None:
        if self.graded and len(self.graded) != self.episode.shots:
            raise OptionError(f"graded has {len(self.graded)} entries for {self.episode.shots} demonstrations")


class Source(ABC):
    """Training items, so many an epoch."""

    @abstractmethod
    def __len__(self) -> int:
        """Items in an epoch."""

    @abstractmethod
    def item(self, epoch: int, index: int) -> TrainingItem:
        """Item ``index`` of an epoch: always the same one for the same arguments."""

    def longest(self) -> Sequence[TrainingItem]:
        """Items that are as long as any can get, to see before the first step whether they fit into the model's context.

        Default: the first items of the first epoch.
        """
        return [self.item(0, index) for index in range(min(len(self), 16))]

    def describe(self) -> dict[str, Any]:
        """What identifies the source in the record of a run; JSON-serialisable. A run is only resumed with equal sources."""
        return {"source": type(self).__name__}


sources: Registry[Callable[..., Source]] = Registry(
    "training source",
    "kshot.sources",
    ("kshot.training.task_source", "kshot.training.link", "kshot.training.reference", "kshot.training.jigsaw"),
)


def load_source(options: Mapping[str, Any], *, where: str = "data") -> Source:
    """A source from a recipe's entry: ``{"kind": "link", ...}``, everything else being the source's own options.

    Args:
        options: the entry.
        where: what the entry is called, for messages.

    Raises:
        OptionError: no ``kind``, or a wrong or missing option.
        UnknownName: no such kind.
    """
    from kshot.data.task import build

    if "kind" not in options:
        raise OptionError(f"{where}: needs a kind, one of {', '.join(sources)}")
    own = {name: value for name, value in options.items() if name != "kind"}
    source: Source = build(f"{where}: source", sources, str(options["kind"]), own)
    return source
