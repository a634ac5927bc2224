"""Retrievers: which examples of the support set are shown with a query, and in which order.

A retriever is one class with one method, :meth:`Retriever.pick`. Everything else is the same for all of them and stands here: never
the query itself nor its image, only examples with an answer, as many as were asked for, the order, and clear errors. Those that go
by class are in ``class_retrievers``, those that go by similarity in ``nearest``; :func:`kshot.data.demonstrations.choose` runs a
retriever over a whole task.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from itertools import islice
from typing import Any, ClassVar, Literal, get_args

import numpy as np

from kshot.data.candidates import Candidates, Contents
from kshot.data.task import build
from kshot.episode import Example
from kshot.errors import OptionError
from kshot.registry import Registry

Order = Literal["given", "nearest_last", "nearest_first", "shuffled"]
"""How the demonstrations are arranged: as the retriever gives them, the one nearest to the query last or first, or shuffled."""

retrievers: Registry[Callable[..., Retriever]] = Registry(
    "retriever", "kshot.retrievers", ("kshot.data.retrieval", "kshot.data.class_retrievers", "kshot.data.nearest")
)


class Retriever(ABC):
    """Base of all retrievers.

    Class attributes:
        name: as registered.
        default_order: the order used unless the user names another.
        ranks: whether :meth:`pick` gives the nearest example first, so that orders by nearness make sense.
        same_for_all: whether all queries that share a support set get the same demonstrations (their prefix can then be encoded
            once).

    Args:
        order: see :data:`Order`; default: the class's ``default_order``.

    Attributes:
        unanswered: ids of the examples passed over so far because they have no answer.
        clashes: number of times an example was passed over because it is the query or shows its image.
        bad_images: names of pictures that cannot be decoded, with the reason; examples with them are passed over.
        on_bad_image: ``"error"`` or ``"skip"`` (pass over, and enter in ``bad_images``). It concerns retrievers that decode.
    """

    name: ClassVar[str]
    default_order: ClassVar[Order] = "given"
    ranks: ClassVar[bool] = False
    same_for_all: ClassVar[bool] = False

    def __init__(self, *, order: Order | None = None):
        self.order = self._checked(order)
        self.contents = Contents()
        self.on_bad_image: Literal["error", "skip"] = "error"
        self.reset()

    def reset(self) -> None:
        """Forget what was passed over."""
        self.unanswered: set[str] = set()
        self.clashes = 0
        self.bad_images: dict[str, str] = {}

    @abstractmethod
    def pick(self, candidates: Candidates, shots: int, rng: np.random.Generator) -> list[int]:
        """Places in ``candidates.pool`` of the examples to show: ``shots`` of them, or fewer if there are no more.

        Only places that ``candidates`` allows, each at most once; the nearest first if the class :attr:`ranks`.
        """

    def choose(self, query: Example, pool: Sequence[Example], shots: int, rng: np.random.Generator) -> list[int]:
        """Choose the demonstrations of one query.

        Args:
            query: the example to answer.
            pool: its support set.
            shots: number of demonstrations.
            rng: the only source of randomness; see :meth:`generator`.

        Returns:
            Places in the pool, in the order in which the examples are shown.

        Raises:
            OptionError: ``shots`` is negative or more than the support set can give; a class is empty.
        """
        check_shots(shots, pool)
        if shots == 0:
            return []
        # Drawn first: what pick() draws depends on clashes, and one clash should not rearrange everything else.
        places = rng.permutation(shots) if self.order == "shuffled" else np.arange(shots)
        candidates = Candidates(query, pool, self.contents)
        picked = self.pick(candidates, shots, rng)
        self.unanswered |= candidates.unanswered
        self.clashes += len(candidates.clashes)
        if len(picked) < shots:
            raise candidates.too_few(shots, len(picked))
        if self.order == "nearest_last":
            picked.reverse()
        return [picked[place] for place in places]

    def prepare(self, pool: Sequence[Example], queries: Sequence[Example], shots: int) -> None:  # noqa: B027 - most need none
        """Called once before the queries of a shared support set; does in batches what would be slow one by one.

        Changes nothing about what is chosen.
        """

    def close(self) -> None:  # noqa: B027 - most need none
        """Called after the last query; writes what should be kept."""

    def generator(self, seed: int, shots: int, query: Example) -> np.random.Generator:
        """The random generator of a query: it depends on these three and on nothing else."""
        return generator(seed, shots, "" if self.same_for_all else query.id)

    def with_order(self, order: Order | None) -> Retriever:
        """This retriever with another order; ``None`` = as it is."""
        if order is None or order == self.order:
            return self
        other = copy(self)
        other.order = self._checked(order)
        other.reset()
        return other

    def describe(self) -> dict[str, Any]:
        """What identifies the retriever in a file of choices; JSON-serialisable."""
        return {"retriever": self.name, "order": self.order}

    def _checked(self, order: Order | None) -> Order:
        if order is None:
            return self.default_order
        if order not in get_args(Order):
            raise OptionError(f"order={order!r}: must be one of {', '.join(get_args(Order))}")
        if order.startswith("nearest") and not self.ranks:
            raise OptionError(
                f"order={order!r}: retriever {self.name!r} knows nothing about nearness (use 'given' or 'shuffled')"
            )
        return order


@retrievers.register("random")
class Random(Retriever):
    """Each query its own examples, drawn at random without replacement."""

    name = "random"

    def pick(self, candidates: Candidates, shots: int, rng: np.random.Generator) -> list[int]:
        return list(islice(candidates.among(random_order(len(candidates.pool), rng)), shots))


@retrievers.register("fixed")
class Fixed(Retriever):
    """The same examples, drawn at random, for all queries.

    Where one of them clashes with a query, this query gets another in its place; the others stay.
    """

    name = "fixed"
    same_for_all = True

    def pick(self, candidates: Candidates, shots: int, rng: np.random.Generator) -> list[int]:
        order = random_order(len(candidates.pool), rng)
        first = list(islice(order, shots))
        reserve = candidates.among(order)
        chosen = [index if candidates.allows(index) else next(reserve, None) for index in first]
        return [index for index in chosen if index is not None]


def generator(*parts: int | str) -> np.random.Generator:
    """A random generator that depends on the parts and on nothing else."""
    key = hashlib.blake2b(repr(parts).encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(key, "big"))


def random_order(size: int, rng: np.random.Generator) -> Iterator[int]:
    """A random permutation of ``range(size)``, drawn lazily: its first k items take O(k) time and memory, whatever the size."""
    moved: dict[int, int] = {}  # Fisher-Yates; places that are not in here still hold their own number
    for place in range(size):
        other = int(rng.integers(place, size))
        held = moved.pop(place, place)
        if other == place:
            yield held
        else:
            drawn, moved[other] = moved.get(other, other), held
            yield drawn


def check_shots(shots: int, pool: Sequence[Example]) -> None:
    """Raises an :class:`OptionError` if there are fewer examples than shots, or fewer than no shots."""
    if shots < 0:
        raise OptionError(f"the number of shots cannot be negative: {shots}")
    if shots > len(pool):
        raise OptionError(f"{shots} shots, but the support set holds only {len(pool)} examples")


def load_retriever(name: str | Retriever, order: Order | None = None, **options: Any) -> Retriever:
    """A retriever by its registered name, e.g. ``load_retriever("nearest_image", embedder="openai/clip-vit-large-patch14")``.

    Args:
        name: registered name; a :class:`Retriever` is returned as it is, but for the order.
        order: see :data:`Order`; ``None`` = the retriever's own.
        options: the retriever's other arguments.

    Raises:
        UnknownName: no such retriever.
        OptionError: it has no such option, or the order makes no sense for it.
    """
    if isinstance(name, Retriever):
        if options:
            raise OptionError(
                f"retriever {name.name!r} is made already; it cannot take the options {', '.join(options)}"
            )
        return name.with_order(order)
    retriever: Retriever = build("retriever", retrievers, name, {"order": order, **options})
    return retriever
