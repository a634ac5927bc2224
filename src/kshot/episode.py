"""The spine: examples and episodes.

An :class:`Episode` is demonstrations and a query; everything in kshot makes, renders, answers, scores or distils episodes.
Both classes are immutable; pictures in them are decoded lazily.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from kshot.errors import DataError
from kshot.picture import Picture, PictureLike, as_picture


@dataclass(frozen=True)
class Example:
    """One labelled (or still unlabelled) item: images, a question about them, and its answer.

    Args:
        images: any number of pictures; paths, bytes and PIL images are taken too.
        question: the question or instruction; may be empty (captions).
        answer: the answer shown when the example is a demonstration: text, or a picture (visual answers). ``None`` if unknown.
        references: all accepted answers (every annotator's), for the metric. Default: the answer alone.
        choices: the options this example offers (multiple choice, the names of an n-way episode); empty if free-form.
        id: unique within its task; derived from the content if not given.
        metadata: whatever the metric or the report needs (category, question type ...).
    """

    images: tuple[Picture, ...] = ()
    question: str = ""
    answer: str | Picture | None = None
    references: tuple[str | Picture, ...] = ()
    choices: tuple[str, ...] = ()
    id: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        images: Any = self.images
        if isinstance(images, (str, bytes, Picture)) or not isinstance(images, Iterable):
            images = (images,)  # a single picture is a frequent and harmless slip
        _set(self, "images", tuple(as_picture(image) for image in images))
        if self.answer is not None and not isinstance(self.answer, (str, Picture)):
            _set(self, "answer", as_picture(self.answer))
        references: Any = self.references
        references = (references,) if isinstance(references, str) else tuple(references)
        if not references and self.answer is not None:
            references = (self.answer,)
        _set(self, "references", references)
        _set(self, "choices", tuple(self.choices))
        _set(self, "metadata", MappingProxyType(dict(self.metadata)))
        if not self.id:
            _set(self, "id", self._content_id())

    def with_(self, **changes: Any) -> Example:
        """A copy with some fields changed."""
        return replace(self, **changes)

    @property
    def text_answer(self) -> str:
        """The answer as text.

        Raises:
            DataError: the example has no answer, or its answer is a picture.
        """
        if not isinstance(self.answer, str):
            problem = "has no answer" if self.answer is None else "is answered by a picture, not by text"
            raise DataError(f"example {self.id!r} {problem}", remedy="give it an answer to use it as a demonstration")
        return self.answer

    def _content_id(self) -> str:
        hasher = hashlib.blake2b(digest_size=8)
        for part in (*(image.digest for image in self.images), self.question, repr(self.answer)):
            hasher.update(part.encode() + b"\0")
        return hasher.hexdigest()


@dataclass(frozen=True)
class Episode:
    """Demonstrations and a query: the unit that models answer.

    Args:
        demonstrations: examples with answers, in the order in which they are shown. Their number is the number of *shots*.
        query: the example to answer. Its own answer is never shown.
        id: default: the query's id.
        instruction: text before everything else; ``None`` = the task's own.
    """

    demonstrations: tuple[Example, ...]
    query: Example
    id: str = ""
    instruction: str | None = None

    def __post_init__(self) -> None:
        _set(self, "demonstrations", tuple(self.demonstrations))
        if not self.id:
            _set(self, "id", self.query.id)

    @property
    def shots(self) -> int:
        """Number of demonstrations in total."""
        return len(self.demonstrations)

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """All pictures in prompt order: the demonstrations', then the query's (answers that are pictures are not included)."""
        return tuple(p for example in (*self.demonstrations, self.query) for p in example.images)


def _set(obj: object, name: str, value: Any) -> None:
    object.__setattr__(obj, name, value)


__all__ = ["Episode", "Example", "PictureLike"]
