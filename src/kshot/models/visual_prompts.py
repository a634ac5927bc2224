"""Episodes as visual sentences: analogy prompts ``x1 y1 ... xk yk xq`` and sequential prompts ``f1 ... fk``."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from kshot.episode import Episode, Example
from kshot.errors import DataError, OptionError
from kshot.picture import Picture, PictureLike, as_picture

AllowedCodes = Literal["demonstrations"] | Collection[int] | None
"""Codes that may come: all of the codebook, those of the demonstrated answers (for masks and colour maps), or given ones."""


@dataclass(frozen=True)
class VisualPrompt:
    """The pictures of a prompt, in order.

    Attributes:
        pictures: what the model is shown.
        answers: the places of the pictures that are answers of demonstrations, counted from 0.
        group: pictures that belong together (a demonstration's); a prompt that is too long loses whole groups.
        name: for messages.
    """

    pictures: tuple[Picture, ...]
    answers: tuple[int, ...] = ()
    group: int = 1
    name: str = ""

    @property
    def demonstrations(self) -> int:
        """Number of demonstrations."""
        return len(self.answers)


def analogy_answers(pictures: int, name: str) -> tuple[int, ...]:
    """The places of the answers in a prompt ``x1 y1 ... xk yk xq`` of so many pictures.

    Raises:
        OptionError: it cannot be such a prompt.
    """
    if pictures < 3 or pictures % 2 == 0:
        raise OptionError(
            f"{name} has {pictures} pictures: only an analogy prompt, pairs and then the query (3, 5, 7 ... pictures), has "
            "demonstrated answers; leave allowed_codes out, or give the codes"
        )
    return tuple(range(1, pictures, 2))


def as_prompt(pictures: Sequence[PictureLike], name: str, group: int = 1) -> VisualPrompt:
    """A prompt of pictures whose roles are not known, of which so many belong together."""
    if isinstance(pictures, str | bytes | Picture):
        raise DataError(f"{name} is a single picture", remedy="a prompt is a list of pictures")
    return VisualPrompt(tuple(as_picture(picture) for picture in pictures), group=group, name=name)


def prompt_of(asked: Episode | Example) -> VisualPrompt:
    """The prompt of an episode whose demonstrations are answered by pictures, or of an example with several pictures.

    An episode gives an analogy prompt: the pictures of each demonstration and its answer, then those of the query. One without
    demonstrations, and an example, give a sequential prompt. Questions and instructions are not shown: there is no text.

    Raises:
        DataError: a demonstration has no picture as its answer, or there are no pictures.
    """
    episode = asked if isinstance(asked, Episode) else Episode((), asked)
    pictures: list[Picture] = []
    answers: list[int] = []
    sizes: set[int] = set()
    for example in episode.demonstrations:
        if not isinstance(example.answer, Picture):
            what = "no answer" if example.answer is None else "a text as its answer"
            raise DataError(
                f"episode {episode.id!r}: demonstration {example.id!r} has {what}",
                remedy="a model of visual sentences is shown pictures only; give the demonstration a picture as its answer",
            )
        if not example.images:
            raise DataError(f"episode {episode.id!r}: demonstration {example.id!r} has no picture")
        pictures += [*example.images, example.answer]
        answers.append(len(pictures) - 1)
        sizes.add(len(example.images) + 1)
    pictures += episode.query.images
    if not episode.query.images:
        raise DataError(f"episode {episode.id!r}: the query has no picture")
    if len(sizes) > 1:
        raise DataError(
            f"episode {episode.id!r}: its demonstrations have {' or '.join(str(n - 1) for n in sorted(sizes))} pictures",
            remedy="nothing marks where one ends: give all the same number",
        )
    if sizes and len(episode.query.images) != min(sizes) - 1:
        raise DataError(
            f"episode {episode.id!r}: the query has {len(episode.query.images)} pictures, but its demonstrations {min(sizes) - 1}",
            remedy="give the query as many pictures as each demonstration has",
        )
    return VisualPrompt(tuple(pictures), tuple(answers), min(sizes, default=1), f"episode {episode.id!r}")


def allowed_ids(
    prompts: Sequence[VisualPrompt], ids: Sequence[torch.Tensor], tokens: int, codes: int, allowed: AllowedCodes
) -> list[torch.Tensor] | None:
    """The codes that may come behind each prompt; ``None`` if all may.

    Args:
        prompts: the prompts.
        ids: theirs.
        tokens: of a picture.
        codes: number of codes.
        allowed: what was asked for.

    Raises:
        OptionError: no codes, or a prompt without demonstrated answers.
    """
    if allowed is None:
        return None
    if isinstance(allowed, str):
        if allowed != "demonstrations":
            raise OptionError(f"unknown allowed_codes {allowed!r}: use 'demonstrations', or give the codes")
        found = []
        for prompt, own in zip(prompts, ids, strict=True):
            places = prompt.answers or analogy_answers(len(prompt.pictures), prompt.name)
            found.append(own.reshape(-1, tokens)[list(places)].unique())
        return found
    given = torch.tensor(sorted(set(allowed)), dtype=torch.long)
    if not len(given) or given[0] < 0 or given[-1] >= codes:
        raise OptionError(f"allowed_codes must be some of the codes 0 to {codes - 1:,}")
    return [given] * len(prompts)


def picture_answer(example: Example) -> Picture:
    """The picture that is an example's answer.

    Raises:
        DataError: it has none.
    """
    if not isinstance(example.answer, Picture):
        raise DataError(f"example {example.id!r} has no picture as its answer")
    return example.answer
