"""What distillation is fed with: queries from a task's support set, and the demonstrations that the teacher sees with each.

Test queries never enter. Which examples are trained on, which are held out to choose between epochs, and what is shown with each in
each epoch derive from (seed, epoch, id) alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, overload

from kshot.data.retrieval import Order, Retriever, check_shots, generator, load_retriever, random_order
from kshot.data.task import Task
from kshot.episode import Episode, Example
from kshot.errors import OptionError
from kshot.picture import BytesPicture

Demonstrations = Literal["redrawn", "fixed"]
Pool = Literal["support", "samples"]


@dataclass(frozen=True)
class DistillItem:
    """One query.

    Attributes:
        taught: what the teacher reads: demonstrations and the query.
        asked: what the student reads: the query, or (with ``mix_demonstrations``) the same as the teacher.
        number: place of the query among the training queries.
    """

    taught: Episode
    asked: Episode
    number: int


class DistillItems:
    """The queries of an epoch with their demonstrations.

    Args:
        task: whose support set is used.
        shots: demonstrations that the teacher sees.
        samples: number of training queries, drawn from the support set.
        held_out: number of further examples of the support set that are neither queries nor demonstrations, the same for all seeds.
            ``None``: 100, or as many as the support set has left, up to a quarter of it.
        demonstrations: ``redrawn`` for each query in each epoch (as the papers), or ``fixed``: redrawn for each query, but the same in
            all epochs.
        pool: where demonstrations come from: the ``support`` set (without what is held out), or only the ``samples`` themselves, where
            few examples are labelled.
        retriever, retriever_options, order: how they are chosen.
        mix: share of the items whose student keeps the demonstrations.
        seed: of everything random.

    Attributes:
        examples: the training queries.
        unseen: the examples held out.

    Raises:
        OptionError: no support set, or one that is too small, or that consists of the test queries.
    """

    def __init__(
        self,
        task: Task,
        *,
        shots: int,
        samples: int,
        held_out: int | None = None,
        demonstrations: Demonstrations = "redrawn",
        pool: Pool = "support",
        retriever: str | Retriever = "random",
        retriever_options: Mapping[str, Any] | None = None,
        order: Order | None = None,
        mix: float = 0.0,
        seed: int = 0,
    ):
        self.task, self.shots, self.demonstrations, self.mix, self.seed = task, shots, demonstrations, mix, seed
        support = _support(task)
        for name, value, least in (("shots", shots, 0), ("samples", samples, 1), ("held_out", held_out or 0, 0)):
            if value < least:
                raise OptionError(f"{name}={value}: must be {least} or more")
        if not 0 <= mix <= 1:
            raise OptionError(f"mix_demonstrations={mix}: must be a share between 0 and 1")
        check_shots(shots, support)
        spare = len(support) - samples
        # Drawn without the seed: seeds are compared, and epochs chosen, by the same examples.
        wanted = min(100, spare, len(support) // 4) if held_out is None else held_out
        unseen = _draw(support, max(0, wanted), (), "held-out")
        chosen = _draw(support, samples, unseen, "samples", seed)
        if len(chosen) < samples or len(unseen) < (held_out or 0):
            raise OptionError(
                f"samples={samples} and held_out={wanted}: the support set of task {task.name!r} has {len(support)} examples, "
                f"{len(chosen) + len(unseen)} of which could be used (those with an answer); take fewer"
            )
        kept = Kept(support)
        self.unseen = Subset(kept, unseen)
        self.examples = Subset(kept, chosen)
        if pool == "samples":
            self._pool = self.examples
        else:
            left_out = set(unseen)
            self._pool = Subset(kept, [place for place in range(len(support)) if place not in left_out])
        if shots >= len(self._pool):
            raise OptionError(
                f"{shots} shots: with the query left out, there are {len(self._pool) - 1} examples to show; ask for fewer shots, or "
                "for more samples"
            )
        self.retriever = load_retriever(retriever, order, **(retriever_options or {}))
        if shots:
            self.retriever.prepare(self._pool, self.examples, shots)
            self.item(0, 0)  # better an error now than in a loader worker

    def __len__(self) -> int:
        return len(self.examples)

    def item(self, epoch: int, index: int) -> DistillItem:
        """The item of a query in an epoch; always the same one for the same arguments."""
        query = self.examples[index]
        shown: tuple[Example, ...] = ()
        if self.shots:
            drawn = 0 if self.demonstrations == "fixed" else epoch
            name = "" if self.retriever.same_for_all else query.id
            rng = generator(self.seed, "distill", drawn, self.shots, name)
            shown = tuple(self._pool[place] for place in self.retriever.choose(query, self._pool, self.shots, rng))
        taught = Episode(shown, query)
        mixed = self.mix > 0 and generator(self.seed, "mix", epoch, query.id).random() < self.mix
        return DistillItem(taught, taught if mixed else Episode((), query), index)

    def describe(self) -> dict[str, Any]:
        """For the record of a run; JSON-serialisable."""
        return {
            "task": self.task.describe(),
            "shots": self.shots,
            "samples": len(self.examples),
            "held_out": len(self.unseen),
            "demonstrations": self.demonstrations,
            "pool": len(self._pool),
            "mix": self.mix,
            "seed": self.seed,
            **(self.retriever.describe() if self.shots else {}),
        }


class Kept:
    """Examples of a sequence, of which those last used are kept: their pictures know their digests and are not drawn or read again."""

    def __init__(self, examples: Sequence[Example], most: int = 4096):
        self._examples, self._most = examples, most
        self._held: dict[int, Example] = {}

    def __getitem__(self, place: int) -> Example:
        found = self._held.pop(place, None)
        if found is None:
            found = self._examples[place]
            if any(isinstance(picture, BytesPicture) for picture in found.images):
                return found  # it holds a whole file
            if len(self._held) >= self._most:
                self._held.pop(next(iter(self._held)))
        self._held[place] = found  # the last one used stands last
        return found


class Subset(Sequence[Example]):
    """Some of a sequence's examples, made when they are asked for."""

    def __init__(self, examples: Kept, places: Sequence[int]):
        self._examples, self._places = examples, places

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> Subset: ...
    def __getitem__(self, index: int | slice) -> Example | Subset:
        if isinstance(index, slice):
            return Subset(self._examples, self._places[index])
        return self._examples[self._places[index]]


def _support(task: Task) -> Sequence[Example]:
    """A task's support set.

    Raises:
        OptionError: it has none that could be learnt from without learning the test.
    """
    support = task.support
    if not len(support):
        raise OptionError(
            f"task {task.name!r} has no support set that all queries share (each of its episodes has one of its own); distillation "
            "needs one"
        )
    queries = task.queries
    if len(support) == len(queries) and all(support[place].id == queries[place].id for place in (0, -1)):
        raise OptionError(
            f"the support set of task {task.name!r} are its test queries: training on them would be training on the test; give "
            "labelled examples with support (--task.support FILE.jsonl)"
        )
    return support


def _draw(support: Sequence[Example], count: int, taken: Sequence[int], *about: int | str) -> list[int]:
    """Places of so many examples with an answer, drawn without replacement; fewer if there are no more."""
    left_out = set(taken)
    found: list[int] = []
    for place in random_order(len(support), generator(*about)):
        if len(found) == count:
            break
        if place not in left_out and support[place].answer is not None:
            found.append(place)
    return found
