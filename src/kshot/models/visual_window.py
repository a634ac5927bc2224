"""Which pictures a model of visual sentences sees when frames are imagined: its context holds a fixed number of them.

Positions of a picture in the context are not free: the model was trained on sentences that begin at its beginning. When frames run
past the end, the oldest pictures are dropped and the rest is read again from the beginning (as LVM's programs do). Nothing is dropped
without a notice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kshot.errors import ContextTooLong, OptionError

Overflow = Literal["error", "drop"]
"""What is done with a prompt that is too long by itself: refuse it, or leave out its oldest pictures (with a notice)."""


@dataclass(frozen=True)
class Stretch:
    """Frames that are imagined behind one reading of the context.

    Attributes:
        first: the oldest picture that is seen, counted from 0 over the prompt and the frames imagined before.
        seen: how many pictures are seen before the first new frame.
        frames: how many new frames follow.
    """

    first: int
    seen: int
    frames: int


@dataclass(frozen=True)
class Plan:
    """How the frames of one prompt are imagined, and what the user must know about it."""

    stretches: tuple[Stretch, ...]
    notices: tuple[str, ...]


def plan(
    pictures: int,
    frames: int,
    capacity: int,
    *,
    overflow: Overflow = "error",
    slide: int = 1,
    group: int = 1,
) -> Plan:
    """Lay out ``frames`` new pictures behind a prompt of ``pictures``.

    Args:
        pictures: in the prompt.
        frames: to be imagined.
        capacity: pictures that fit into the context, new ones included.
        overflow: what is done with a prompt that leaves no room for a single frame.
        slide: how many pictures are dropped each time the context is full. With 1 each later frame sees as much as there is room
            for, and the context is read again for each; with more it is read less often.
        group: pictures are dropped in groups of so many (2 for pairs), so that the prompt's order stays.

    Raises:
        ContextTooLong: see ``overflow``; or the context holds no picture beside the new one.
        OptionError: a value out of range.
    """
    for name, value in (("frames", frames), ("slide", slide), ("group", group)):
        if value < 1:
            raise OptionError(f"{name} is {value}; it must be at least 1")
    if overflow not in ("error", "drop"):
        raise OptionError(f"unknown overflow {overflow!r}: use 'error' or 'drop'")
    step = -(-slide // group) * group
    if step >= capacity and pictures + frames > capacity:
        raise ContextTooLong(
            f"{pictures} pictures and {frames} new do not fit into a context of {capacity}, of which {step} would be dropped at "
            "a time: imagine fewer frames, or slide by less"
        )
    notices = []
    first = 0
    if pictures + 1 > capacity:
        first = -(-(pictures + 1 - capacity) // group) * group
        if overflow == "error" or first >= pictures:
            raise ContextTooLong(
                f"a prompt of {pictures} pictures leaves no room for a new one: the context holds {capacity} pictures, "
                f"the new one included (use at most {capacity - 1}, or overflow='drop' to leave out the oldest)"
            )
        notices.append(
            f"the context holds {capacity} pictures: the first {first} of the prompt's {pictures} were left out"
        )
    stretches: list[Stretch] = []
    total, end = pictures, pictures + frames
    while total < end:
        if total - first >= capacity:
            first += step
        count = min(capacity - (total - first), end - total)
        stretches.append(Stretch(first, total - first, count))
        total += count
    if len(stretches) > 1:
        notices.append(
            f"the context holds {capacity} pictures: from new frame {stretches[0].frames + 1} on older ones were left out "
            f"(the last frame did not see the first {first})"
        )
    return Plan(tuple(stretches), tuple(notices))
