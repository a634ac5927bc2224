"""Places in an image as text, in the coordinates of the square that the image is padded to."""

from __future__ import annotations

from collections.abc import Sequence


def places_text(places: Sequence[Sequence[float]], size: tuple[int, int]) -> str:
    """Boxes or points in pixels of an image of some size as ``[0.123,0.456,0.789,0.999]``, several joined by ``;``."""
    width, height = size
    side = max(width, height)
    shift = ((side - width) // 2, (side - height) // 2)
    parts = []
    for place in places:
        values = [min(1.0, max(0.0, (v + shift[n % 2]) / side)) for n, v in enumerate(place)]
        parts.append(",".join(f"{v:.3f}" for v in values))
    return "[" + ";".join(parts) + "]"
