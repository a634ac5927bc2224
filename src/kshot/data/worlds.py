"""Novel concepts that need no download: generated glyphs, and scikit-learn's handwritten digits under invented names.

Generated pictures derive from integer seeds; :data:`SPLITS` divides the seeds once and for all, so that what is tested here was never
trained on.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from PIL import Image

from kshot.data.concepts import Concept, Style
from kshot.data.derived import LazySequence
from kshot.data.drawing import draw_glyph
from kshot.data.naming import Names
from kshot.data.nway import NWayTask
from kshot.data.task import tasks
from kshot.errors import OptionError, one_of
from kshot.picture import DrawnPicture, Picture
from kshot.prompt import Template

Split = Literal["train", "validation", "test"]

SPLITS: dict[str, range] = {
    "validation": range(2**32),
    "test": range(2**32, 2**33),
    "train": range(2**40, 2**48),
}
"""Seeds of generated glyph classes and of scenes. The embedded model is trained with seeds from 2**40 on and with no others; tasks
draw their queries and demonstrations from ``test``; small seeds, which people try things with, count as validation."""

PIXELS = 64
"""Edge of generated pictures and of the digits as they are shown."""


@tasks.register("glyphs")
class Glyphs(NWayTask):
    """n-way recognition of generated characters.

    Args:
        ways: classes an episode.
        episodes: number of queries.
        seed: of the episodes; the characters themselves are the same for all seeds.
        names: how characters are called: ``invented``, ``letters`` or ``unseen``; they have no names of their own.
        shots_per_class: demonstrations of each class evaluated by default (``shots`` is their total).
        style: ``plain`` or ``link``.
        template: fields that replace those of the style's template.
        split: which characters: ``test``, ``validation`` or ``train``, see :data:`SPLITS`.
        classes: number of characters.
        drawings: drawings of each.
    """

    name = "glyphs"

    def __init__(
        self,
        ways: int = 5,
        episodes: int = 1000,
        seed: int = 0,
        names: Names = "invented",
        shots_per_class: int = 1,
        style: Style = "plain",
        template: Mapping[str, str] | Template | None = None,
        split: Split = "test",
        classes: int = 1000,
        drawings: int = 20,
    ):
        one_of("split", split, tuple(SPLITS))
        if names == "classes":
            raise OptionError("names='classes': glyphs have no names of their own")
        if not 1 <= classes <= len(SPLITS[split]):
            raise OptionError(f"classes={classes}: must be 1..{len(SPLITS[split])}")
        self.split = split
        super().__init__(
            [_glyph(SPLITS[split][number], drawings) for number in range(classes)],
            source=f"glyphs ({split})",
            ways=ways,
            episodes=episodes,
            seed=seed,
            names=names,
            shots_per_class=shots_per_class,
            style=style,
            template=template,
        )

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "split": self.split}


@tasks.register("digits")
class Digits(NWayTask):
    """n-way recognition of handwritten digits (UCI "Optical Recognition of Handwritten Digits", 1,797 real images of 8 x 8).

    They are shown black on white, enlarged. Demonstrations come from the first :data:`DIGITS_SUPPORT` images, queries from the others.

    Args:
        ways: classes an episode, 2..10.
        episodes: number of queries.
        seed: of everything random.
        names: how digits are called: ``invented``, ``letters``, ``unseen`` or ``classes`` (``zero`` ... ``nine``).
        shots_per_class: demonstrations of each class evaluated by default (``shots`` is their total).
        style: ``plain`` or ``link``.
        template: fields that replace those of the style's template.
    """

    name = "digits"

    def __init__(
        self,
        ways: int = 2,
        episodes: int = 1000,
        seed: int = 0,
        names: Names = "invented",
        shots_per_class: int = 1,
        style: Style = "plain",
        template: Mapping[str, str] | Template | None = None,
    ):
        super().__init__(
            digit_classes(),
            source="digits",
            ways=ways,
            episodes=episodes,
            seed=seed,
            names=names,
            shots_per_class=shots_per_class,
            style=style,
            template=template,
        )


DIGITS_SUPPORT = 1000
"""Images of the digits collection before this one are for demonstrations, the others for queries."""

_DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def _glyph(class_seed: int, drawings: int) -> Concept:
    def picture(sample: int) -> Picture:
        return DrawnPicture(
            lambda: draw_glyph(class_seed, sample, size=PIXELS), f"glyph {class_seed}, drawing {sample}"
        )

    key = f"glyph{class_seed}"
    return Concept(key, key, LazySequence(drawings, picture))


@lru_cache(maxsize=1)
def digit_classes() -> tuple[Concept, ...]:
    """The ten digits: their images for demonstrations, and those for queries."""
    from sklearn.datasets import load_digits  # takes a second to import, which no other task should pay

    data = load_digits()
    ink = np.asarray(data.images, dtype=np.float64)  # (1797, 8, 8), 0 = paper .. 16 = ink
    grey = np.round(255 - ink * (255 / 16)).astype(np.uint8)

    def picture(index: int) -> Picture:
        enlarged = (PIXELS, PIXELS)
        return DrawnPicture(
            lambda: Image.fromarray(grey[index]).resize(enlarged, Image.Resampling.BICUBIC), f"digits image {index}"
        )

    classes = []
    for digit, name in enumerate(_DIGIT_NAMES):
        indices = [int(i) for i in np.flatnonzero(np.asarray(data.target) == digit)]
        support = [picture(i) for i in indices if i < DIGITS_SUPPORT]
        queries = [picture(i) for i in indices if i >= DIGITS_SUPPORT]
        classes.append(Concept(name, name, support, queries))
    return tuple(classes)
