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

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, overload

import numpy as np

from kshot.data.derived import LazySequence
from kshot.errors import DataError, OptionError, UnknownName
from kshot.visual.sentence_types import Draw, OnBad, Sentence, SentenceType, Slot, regrouped, sentences
from kshot.visual.sources import OTHER_FILE, Found, Record

__all__ = [
    "Draw",
    "OnBad",
    "Sentence",
    "SentencePlan",
    "SentenceType",
    "Slot",
    "regrouped",
    "sentence_plan",
    "sentence_type",
    "sentences",
    "sentences_of",
]


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
        bad = [(source, reason) for source, reason in self.skipped if reason != OTHER_FILE]
        if bad and grammar.on_bad == "error":
            source, reason = bad[0]
            more = f"; and {len(bad) - 1} more" if len(bad) > 1 else ""
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

    def record_of(self, index: int, source: str) -> Record | None:
        """The record of a sentence that one of its sources belongs to."""
        epoch, place = divmod(range(len(self))[index], self.per_epoch)
        group = self._grouped(epoch)[place // self.grammar.variants]
        return next((record for i in group if (record := self.records[i]).holds(source)), None)

    def without(self, records: Mapping[str, str]) -> SentencePlan:
        """The sentences of all records but some that turned out to be unusable: ids, and why. Those are listed with the skipped.

        Raises:
            DataError: too few are left, or ``on_bad`` is ``"error"``.
        """
        kept = tuple(record for record in self.records if record.id not in records)
        return SentencePlan(self.grammar, Found(kept, [*self.skipped, *records.items()]))

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
    known = {f.name for f in fields(kind)}
    for name in options:
        if name not in known:
            raise UnknownName(f"option of sentence type {type!r}", name, known)
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


def _first(skipped: Sequence[tuple[str, str]], most: int = 3) -> str:
    named = "; ".join(f"{source} ({reason})" for source, reason in skipped[:most])
    return named + (" ..." if len(skipped) > most else "")
