"""Options that may be given as a value, a list, or (on the command line) as text with commas."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from kshot.errors import OptionError


def names_of(value: str | Sequence[str], what: str) -> tuple[str, ...]:
    """``"a,b"``, ``["a", "b"]`` or ``"a"`` as a tuple of names, without repetitions.

    Raises:
        OptionError: an item is no name.
    """
    items: Iterable[str] = value.split(",") if isinstance(value, str) else value
    names = [item.strip() if isinstance(item, str) else item for item in items]
    for name in names:
        if not isinstance(name, str):
            raise OptionError(f"{name!r} is no {what}")
    return tuple(dict.fromkeys(name for name in names if name))


def at_least(least: int, **numbers: int | None) -> None:
    """Refuse counts that are too small; ``None`` stands for an option that is not given.

    Raises:
        OptionError: one of them is below ``least``, or no whole number; names it.
    """
    for name, number in numbers.items():
        if number is None:
            continue
        if isinstance(number, bool) or not isinstance(number, int) or number < least:
            raise OptionError(f"{name}={number!r}: must be a whole number, {least} or more")


def numbers_of(value: int | str | Sequence[int], what: str) -> tuple[int, ...]:
    """``"0,1,4"``, ``[0, 1, 4]`` or ``4`` as a tuple of whole numbers, sorted, without repetitions.

    Raises:
        OptionError: an item is no whole number, or negative.
    """
    items: Iterable[int | str] = (
        value.split(",") if isinstance(value, str) else [value] if isinstance(value, int) else value
    )
    try:
        numbers = sorted({int(item) for item in items if not (isinstance(item, str) and not item.strip())})
    except (TypeError, ValueError):
        raise OptionError(f"{what}: {value!r} is not a list of whole numbers such as 0,1,4,8") from None
    if numbers and numbers[0] < 0:
        raise OptionError(f"{what}: {value!r} holds a negative number")
    return tuple(numbers)
