"""What the types of visual sentences have in common: options, records, layout, randomness, and whether they fit a context.

:mod:`kshot.visual.grammar` is the module to use; a new type of sentences begins here, at :class:`SentenceType`.
"""

from __future__ import annotations

import dataclasses
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, TypeVar

import numpy as np

from kshot.data.derived import generator
from kshot.errors import ContextTooLong, OptionError
from kshot.picture import Picture
from kshot.registry import Registry
from kshot.visual.sources import Found, Record

if TYPE_CHECKING:
    from kshot.visual.grammar import SentencePlan

USUAL_IMAGES = 16
"""Pictures a sentence where nothing else is said: 16 of 256 tokens are the 4,096 tokens of LVM's context."""

OnBad = Literal["list", "error"]
"""What happens with sources that cannot be used: they are listed in :attr:`SentencePlan.skipped`, or the first is an error."""


@dataclass(frozen=True)
class Sentence:
    """A row of pictures.

    Attributes:
        id: unique in its plan: type, epoch and number in the epoch.
        type: the name its kind is registered under.
        pictures: in the order of the sentence.
        roles: what each picture is: ``x``, ``y``, ``image``, ``frame``, or the name of its modality.
        sources: what each picture was made of: a path relative to the folder it was found in, ``clip.mp4#12`` for a video's frame.
    """

    id: str
    type: str
    pictures: tuple[Picture, ...]
    roles: tuple[str, ...]
    sources: tuple[str, ...]


class Slot(NamedTuple):
    """A place in a sentence."""

    role: str
    source: str
    picture: Picture


@dataclass(frozen=True)
class Draw:
    """Where the randomness of a sentence comes from.

    Attributes:
        seed: the seed of its grammar.
        type: the name of its grammar.
        epoch: counted from 0.
        number: the group of records, counted from 0 in its epoch.
    """

    seed: int
    type: str
    epoch: int
    number: int

    def of_sentence(self, what: str) -> np.random.Generator:
        """For what is drawn once for the records of a sentence (the order of its tasks)."""
        return generator(self.seed, self.type, what, self.epoch, "sentence", self.number)

    def of_record(self, what: str, record: str) -> np.random.Generator:
        """For what is drawn for a record, wherever in the epoch it comes (its mask, its stride)."""
        return generator(self.seed, self.type, what, self.epoch, "record", record)


G = TypeVar("G", bound="SentenceType")


@dataclass(frozen=True, kw_only=True)
class SentenceType(ABC):
    """Base of the kinds of sentences; a subclass is a frozen dataclass of JSON values, registered by name.

    A subclass says which records there are (:meth:`find`), which of them make a sentence (:meth:`group`), and how those are laid
    out (:meth:`compose`).

    Args:
        seed: of everything random.
        epochs: how often the records are used; each time in other groups, with other strides and masks.
        on_bad: see :data:`OnBad`.
    """

    name: ClassVar[str] = ""
    record: ClassVar[str] = "pictures"
    """What a record is, in the plural, for messages."""

    seed: int = 0
    epochs: int = 1
    on_bad: OnBad = "list"

    def __post_init__(self) -> None:
        whole("seed", self.seed, 0)
        whole("epochs", self.epochs, 1)
        one_of("on_bad", self.on_bad, ("list", "error"))

    @property
    @abstractmethod
    def images(self) -> int:
        """Pictures a sentence."""

    @property
    def variants(self) -> int:
        """Sentences that are made of the same records (several strides, several layouts)."""
        return 1

    @abstractmethod
    def places(self, variant: int = 0) -> tuple[str, ...]:
        """The places of a sentence in words, e.g. ``("x1", "y1", "x2", "y2")``."""

    @abstractmethod
    def find(self) -> Found:
        """The records in the sources that the options name.

        Raises:
            DataError: a folder is missing or empty, or nothing in it fits.
        """

    def usable(self, found: Found) -> Found:
        """The records that can be used at all; the others are listed.

        Raises:
            DataError: none can.
        """
        return found

    @abstractmethod
    def group(self, records: Sequence[Record], epoch: int) -> np.ndarray:
        """Which records make the sentences of an epoch: numbers of records, one row a sentence. As many rows in every epoch."""

    @abstractmethod
    def compose(self, records: Sequence[Record], draw: Draw, variant: int) -> Sequence[Slot]:
        """The pictures of a sentence, :attr:`images` of them."""

    @abstractmethod
    def within(self, most: int) -> dict[str, Any] | None:
        """Options that would make a sentence of at most ``most`` pictures; ``None`` where there are none."""

    def plan(self, records: Sequence[Record] | None = None) -> SentencePlan:
        """The sentences, of the sources that the options name or of ``records`` (pictures in memory, generated ones).

        Raises:
            DataError: see :meth:`find`; also if there are fewer records than a sentence needs.
        """
        from kshot.visual.grammar import SentencePlan  # which is made of what stands here

        return SentencePlan(self, self.usable(self.find() if records is None else Found(tuple(records))))

    def fits(self, context: int, tokens_per_image: int, *, bos: bool = False, eos: bool = False) -> int:
        """The tokens of a sentence, which must fit the context whole: a sentence is never cut.

        Raises:
            ContextTooLong: it is longer than ``context``; names the settings, and those that would fit.
        """
        extra = int(bos) + int(eos)
        tokens = self.images * tokens_per_image + extra
        if tokens <= context:
            return tokens
        most = max(0, (context - extra) // tokens_per_image)
        special = f" + {extra} for {' and '.join(['BOS'] * bos + ['EOS'] * eos)}" if extra else ""
        smaller = self.within(most) if most else None
        advice = ", ".join(f"{name}={value}" for name, value in (smaller or {}).items())
        raise ContextTooLong(
            f"sentences of type {self.name!r} do not fit: {self.images} pictures x {tokens_per_image} tokens{special} = "
            f"{tokens} tokens, the context holds {context}, that is {most} whole pictures "
            + (f"({advice} fits)" if advice else "(a longer context or a tokenizer with fewer tokens is needed)")
        )

    def fitted(self: G, context: int, tokens_per_image: int, *, bos: bool = False, eos: bool = False) -> G:
        """The same with fewer shots or frames, where the context does not hold all of them.

        Raises:
            ContextTooLong: nothing fits.
        """
        most = (context - int(bos) - int(eos)) // tokens_per_image
        smaller = self.within(most) if self.images > most > 0 else None
        chosen = dataclasses.replace(self, **smaller) if smaller else self
        chosen.fits(context, tokens_per_image, bos=bos, eos=eos)
        return chosen

    def details(self, records: Sequence[Record]) -> Mapping[str, Any]:
        """What a description tells beside the options, as JSON can hold it."""
        return {}

    def to_dict(self) -> dict[str, Any]:
        """The description: the type and all options, as JSON can hold them; :func:`sentence_type` makes the object of it again."""
        return {"type": self.name} | {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}


sentences: Registry[type[SentenceType]] = Registry(
    "sentence type",
    "kshot.sentences",
    (
        "kshot.visual.grammar_stills",
        "kshot.visual.grammar_joined",
        "kshot.visual.grammar_classes",
        "kshot.visual.grammar_frames",
        "kshot.visual.grammar_tracks",
    ),
)
"""The kinds of sentences, by name."""


def regrouped(
    records: Sequence[Record], size: int, random: np.random.Generator, *, by_group: bool = False
) -> np.ndarray:
    """A permutation of the records' numbers in rows of ``size``; the remainder is left out.

    Args:
        records: the records.
        size: of a row.
        random: draws the permutation.
        by_group: rows hold only records whose :attr:`Record.group` is the same.
    """
    if not by_group:
        order = random.permutation(len(records))
        return order[: len(order) // size * size].reshape(-1, size)
    members: dict[str, list[int]] = {}
    for number, record in enumerate(records):
        members.setdefault(record.group, []).append(number)
    rows = [random.permutation(held)[: len(held) // size * size].reshape(-1, size) for held in members.values()]
    return random.permutation(np.concatenate([*rows, np.empty((0, size), np.int64)]).astype(np.int64))


def whole(name: str, value: Any, least: int, most: int | None = None) -> None:
    """Checks a whole number.

    Raises:
        OptionError: it is none, or out of range.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least or (most is not None and value > most):
        span = f"from {least} to {most}" if most is not None else f"of at least {least}"
        raise OptionError(f"{name} must be a whole number {span}, not {value!r}")


def one_of(name: str, value: Any, allowed: Sequence[str]) -> None:
    """Checks a choice.

    Raises:
        OptionError: it is none of ``allowed``.
    """
    if value not in allowed:
        raise OptionError(f"{name} must be one of {', '.join(allowed)}, not {value!r}")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(held) for name, held in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(held) for held in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value
