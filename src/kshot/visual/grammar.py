"""Visual sentences as data: what is drawn, in which order, from which sources.

A *visual sentence* is a row of pictures whose order says what the task is (LVM, arXiv 2312.00785). Each kind of sentence is a
frozen dataclass, registered in :data:`sentences`; its fields are the options. Made into a plan, it is a sequence of sentences::

    from kshot.visual.grammar import Sentence, sentence_plan, sentences_of

    plan = sentence_plan("pairs", x="photos", y="masks", shots=8, epochs=5, seed=0)
    len(plan)         # sentences over all epochs
    plan[3]           # Sentence(id, type, pictures, roles, sources); pictures are decoded when they are looked at
    plan.images       # pictures a sentence
    plan.skipped      # [(source, reason), ...]: files that have no partner, videos that are too short ...
    plan.left_over    # records that fill no whole sentence and are left out, an epoch (others in each epoch)
    plan.describe()   # all of that and the options, as JSON can hold it
    plan.fits(context=4096, tokens_per_image=256, bos=True, eos=True)   # raises ContextTooLong, with the remedy

    plan = sentences_of({"type": "pairs", "x": "photos", "y": "masks"})   # the same of a YAML or JSON description

Everything random derives from (seed, epoch, record), so that ``plan[i]`` is the same in every process, in whatever order sentences
are asked for, and files that are added elsewhere change no mask and no stride. Each epoch groups the records by a fresh permutation
and uses none of them twice. Pictures that turn out to be damaged raise :class:`~kshot.errors.BadImage` when they are loaded: the
grammar never looks inside of stills.
"""

from __future__ import annotations

import dataclasses
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar, overload

import numpy as np

from kshot.data.concepts import LazySequence, generator
from kshot.errors import ContextTooLong, DataError, OptionError, UnknownName
from kshot.picture import Picture
from kshot.registry import Registry
from kshot.visual.sources import Found, Record

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
        "kshot.visual.grammar_classes",
        "kshot.visual.grammar_frames",
        "kshot.visual.grammar_tracks",
    ),
)
"""The kinds of sentences, by name."""


class SentencePlan(Sequence[Sentence]):
    """The sentences of a grammar on its sources, made when they are asked for.

    Attributes:
        grammar: the sentence type with its options.
        records: what sentences are made of, sorted by id.
        skipped: sources that are not used, and why.
        per_epoch: sentences an epoch.
        left_over: records an epoch that fill no whole sentence.

    Raises:
        DataError: there are fewer records than a sentence needs; or something was skipped and ``on_bad`` is ``"error"``.
    """

    def __init__(self, grammar: SentenceType, found: Found):
        self.grammar, self.records, self.skipped = grammar, found.records, list(found.skipped)
        if self.skipped and grammar.on_bad == "error":
            source, reason = self.skipped[0]
            more = f"; and {len(self.skipped) - 1} more" if len(self.skipped) > 1 else ""
            raise DataError(
                f"{reason}{more}", file=source, remedy="put it right, or give on_bad='list' to leave such sources out"
            )
        self._groups: dict[int, np.ndarray] = {}
        groups = self._grouped(0)
        self.per_epoch = len(groups) * grammar.variants
        self.left_over = len(self.records) - len(np.unique(groups))
        if not self.per_epoch:
            skipped = f", {len(self.skipped)} sources were left out: {_first(self.skipped)}" if self.skipped else ""
            raise DataError(
                f"{len(self.records)} {grammar.record} make no whole sentence of type {grammar.name!r} "
                f"({' '.join(grammar.places())}){skipped}",
                remedy="give more sources, or ask for fewer shots or pictures a sentence",
            )

    @property
    def type(self) -> str:
        """Name of the sentence type."""
        return self.grammar.name

    @property
    def images(self) -> int:
        """Pictures a sentence."""
        return self.grammar.images

    def fits(self, context: int, tokens_per_image: int, *, bos: bool = False, eos: bool = False) -> int:
        """See :meth:`SentenceType.fits`."""
        return self.grammar.fits(context, tokens_per_image, bos=bos, eos=eos)

    def describe(self) -> dict[str, Any]:
        """Type, options, layouts and counts, as JSON can hold them; equal descriptions on equal files make equal sentences."""
        reasons: dict[str, int] = {}
        for _, reason in self.skipped:
            kind = reason.partition(":")[0]
            reasons[kind] = reasons.get(kind, 0) + 1
        return {
            "type": self.type,
            "options": {name: value for name, value in self.grammar.to_dict().items() if name != "type"},
            "layouts": [" ".join(self.grammar.places(variant)) for variant in range(self.grammar.variants)],
            "images": self.images,
            "records": len(self.records),
            "sentences": len(self),
            "left_over_an_epoch": self.left_over,
            "skipped": len(self.skipped),
            "skipped_why": reasons,
        } | dict(self.grammar.details(self.records))

    def __len__(self) -> int:
        return self.grammar.epochs * self.per_epoch

    @overload
    def __getitem__(self, index: int) -> Sentence: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Sentence]: ...
    def __getitem__(self, index: int | slice) -> Sentence | Sequence[Sentence]:
        if isinstance(index, slice):
            return LazySequence(len(self), self.__getitem__)[index]
        epoch, place = divmod(range(len(self))[index], self.per_epoch)
        number, variant = divmod(place, self.grammar.variants)
        records = [self.records[i] for i in self._grouped(epoch)[number]]
        slots = self.grammar.compose(records, Draw(self.grammar.seed, self.type, epoch, number), variant)
        roles, sources, pictures = zip(*slots, strict=True)
        return Sentence(f"{self.type}:{epoch}:{place}", self.type, pictures, roles, sources)

    def _grouped(self, epoch: int) -> np.ndarray:
        groups = self._groups.get(epoch)
        if groups is None:
            groups = self.grammar.group(self.records, epoch)
            # Whoever reads on from one epoch into the next needs two of them; all would be as large as the data's index.
            self._groups = {e: g for e, g in self._groups.items() if abs(e - epoch) == 1} | {epoch: groups}
        return groups


def sentence_type(type: str, **options: Any) -> SentenceType:
    """The grammar object of a name and its options.

    Raises:
        UnknownName: there is no such type, or it has no such option; suggests the nearest.
        OptionError: an option is missing or has a value that cannot be used.
    """
    kind = sentences.get(type)
    fields = {f.name: f for f in dataclasses.fields(kind)}
    for name in options:
        if name not in fields:
            raise UnknownName(f"option of sentence type {type!r}", name, fields)
    return kind(**options)


def sentence_plan(type: str, **options: Any) -> SentencePlan:
    """The sentences of a type, of the sources that its options name.

    Raises:
        UnknownName, OptionError: see :func:`sentence_type`.
        DataError: see :meth:`SentenceType.plan`.
    """
    return sentence_type(type, **options).plan()


def sentences_of(description: Mapping[str, Any]) -> SentencePlan:
    """The sentences of a description as it stands in YAML or JSON: ``{"type": "pairs", "x": FOLDER, "y": FOLDER, "shots": 8}``.

    Raises:
        OptionError: it is no mapping with a ``type``; see also :func:`sentence_plan`.
    """
    if not isinstance(description, Mapping) or not isinstance(description.get("type"), str):
        raise OptionError(
            f"a description of sentences is a mapping with 'type', one of: {', '.join(sentences.names())}"
        )
    options = {str(name): value for name, value in description.items() if name != "type"}
    return sentence_plan(description["type"], **options)


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


def _first(skipped: Sequence[tuple[str, str]], most: int = 3) -> str:
    named = "; ".join(f"{source} ({reason})" for source, reason in skipped[:most])
    return named + (" ..." if len(skipped) > most else "")
