"""VCR's sentences and questions as text.

A sentence of VCR is a list of words and of references to objects, ``["Does", [2], "feel", "comfortable", "?"]``. Here a reference
is written as the object's name and number, its box, or both; objects are numbered from 1 over all objects of the image, as in the
annotators' own sentences ("Does 3 feel comfortable?").
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from kshot.data.boxes import Size, text_of, written
from kshot.data.splits import after_turns

References: TypeAlias = Literal["names", "boxes", "both"]
"""How an object is written: ``person3``, ``[0.100,0.200,0.300,0.400]`` (upstream), or one behind the other."""

LETTERS = "ABCDEFG"
ASK_CHOICE = "You should decide on the best choice and output the corresponding letter."
ASK_REASON = "You should explain the reason for the above answer."
ASK_REASON_CHOICE = (
    "You should decide on the best choice that explains the above answer and output the corresponding letter."
)

_SPACE_BEFORE = re.compile(r" (?=[.,?!;:)])|(?<=\w) (?=['’] ?(?:s|t|re|ve|ll|d|m)\b)")
_APOSTROPHE = re.compile(r"(?<=\w)(['’]) (?=(?:s|t|re|ve|ll|d|m)\b)")


@dataclass(frozen=True)
class Writer:
    """Writes sentences about one image.

    Args:
        objects: names of its objects, in the order of their numbers.
        boxes: their boxes in pixels, with a score behind; not needed for ``names``.
        size: width and height of the image.
        references: see :data:`References`.
        tidy: no spaces before punctuation, as people write; upstream joins words by spaces.
    """

    objects: Sequence[str]
    boxes: Sequence[Sequence[float]]
    size: Size | None
    references: References
    tidy: bool

    def sentence(self, words: Sequence[Any]) -> str:
        """A sentence as text."""
        text = " ".join(self._reference(word) if isinstance(word, list) else str(word) for word in words)
        return _APOSTROPHE.sub(r"\1", _SPACE_BEFORE.sub("", text)) if self.tidy else text

    def _reference(self, numbers: Sequence[int]) -> str:
        names = [f"{self.objects[n]}{n + 1}" for n in numbers]
        listed = " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
        if self.references == "names":
            return listed
        assert self.size is not None
        marks = text_of(*(written((b[0], b[1], b[2], b[3]), self.size) for b in (self.boxes[n] for n in numbers)))
        return marks if self.references == "boxes" else f"{listed} {marks}"


@dataclass(frozen=True)
class Item:
    """One question of VCR as text; labels are ``None`` in the test split."""

    question: str
    answers: tuple[str, ...]
    rationales: tuple[str, ...]
    answer: int | None
    rationale: int | None


@dataclass(frozen=True)
class Turn:
    """What is asked and what is to be answered.

    Attributes:
        part: ``"answer"`` or ``"rationale"``: which choice is asked for.
        form: how it is answered: by its ``"letter"``, its ``"text"``, or a ``"reason"`` and then one of the two.
        text: the question.
        target: the right answer; ``None`` if it is not known.
        by_letter: whether the choice is named by its letter.
    """

    part: Literal["answer", "rationale"]
    form: Literal["letter", "text", "reason"]
    text: str
    target: str | None
    by_letter: bool = False


MODES = ("q-ar", "qc-a", "qac-r", "q-a", "qa-r", "q-ra", "qc-ra", "qc-rac", "q-a-q-r", "qc-a-qc-r")
"""Upstream's nine modes, before them ``q-ar``: the official task Q->AR, that is qc-a and qac-r about the same question."""


def turns_of(mode: str, item: Item, upstream: bool) -> list[Turn]:
    """The turns of a mode: one, or two of which the first asks for the answer and the second for its reason.

    In the words before the hyphen, q is the question, a the right answer, c choices; behind it stands what is to be said. In the
    modes of two turns (``q-a-q-r``) the second follows upon the first, with the right answer.

    Args:
        mode: one of :data:`MODES`.
        item: the question.
        upstream: upstream's wording (``QUESTION: ... OPTIONS: (A) ...``, "The answer is (B).") in place of a plain list and "B".
    """
    answer = None if item.answer is None else item.answers[item.answer]
    rationale = None if item.rationale is None else item.rationales[item.rationale]
    lead = "QUESTION: " if upstream else ""
    asked = lead + item.question
    options = _options(item.answers, "OPTIONS", ASK_CHOICE, upstream)
    reasons = _options(item.rationales, "RATIONALE OPTIONS", ASK_REASON_CHOICE, upstream)
    given = f"{asked} \nANSWER: {answer}" if upstream else f"{asked}\nAnswer: {answer}"
    why = f" {ASK_REASON}" if upstream else "\nWhy?"
    letter, reason_letter = _letter(item.answer, upstream), _letter(item.rationale, upstream)
    stated = _letter(item.answer, True)
    chosen = Turn("answer", "letter", asked + options, letter, True)
    match mode:
        case "q-a":
            return [Turn("answer", "text", asked, answer)]
        case "q-ra":
            return [Turn("answer", "reason", asked, _joined(rationale, answer))]
        case "qc-a":
            return [chosen]
        case "qc-ra":
            return [Turn("answer", "reason", asked + options, _joined(rationale, stated), True)]
        case "qc-rac":
            return [Turn("answer", "reason", asked + options, _joined(rationale, answer, stated), True)]
        case "qa-r":
            return [Turn("rationale", "text", given + why, rationale)]
        case "qac-r":
            return [Turn("rationale", "letter", given + reasons, reason_letter, True)]
        case "q-ar":
            return [chosen, Turn("rationale", "letter", given + reasons, reason_letter, True)]
        case "q-a-q-r":
            first = Turn("answer", "text", asked, answer)
            return [first, Turn("rationale", "text", after_turns([(asked, answer or "")], why.strip()), rationale)]
        case _:  # qc-a-qc-r
            return [
                chosen,
                Turn(
                    "rationale",
                    "letter",
                    after_turns([(chosen.text, letter or "")], reasons.strip()),
                    reason_letter,
                    True,
                ),
            ]


def _options(texts: Sequence[str], title: str, ask: str, upstream: bool) -> str:
    if upstream:
        return f" \n{title}: {' '.join(f'({LETTERS[n]}) {text}' for n, text in enumerate(texts))} {ask}"
    why = "\nWhy?" if title.startswith("RATIONALE") else ""
    return why + "".join(f"\n{LETTERS[n]}. {text}" for n, text in enumerate(texts))


def _letter(label: int | None, upstream: bool) -> str | None:
    if label is None:
        return None
    return f"The answer is ({LETTERS[label]})." if upstream else LETTERS[label]


def _joined(*parts: str | None) -> str | None:
    return None if None in parts else " ".join(part for part in parts if part)
