"""Sheets of pictures, and picture files that are there in full or not at all."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from kshot.errors import CannotWrite, DataError, OptionError
from kshot.evaluation.runs import write_bytes

FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
}
"""Picture files that are written, by extension."""


def sheet(rows: Sequence[Sequence[Image.Image]], size: tuple[int, int] | None = None) -> Image.Image:
    """Pictures in rows and columns, without a gap, as LVM's programs lay them out: a row for each candidate, a column for each frame.

    Args:
        rows: rows of equal length.
        size: width and height of each picture; default: that of the first.
    """
    width, height = size or rows[0][0].size
    canvas = Image.new("RGB", (width * len(rows[0]), height * len(rows)))
    for down, row in enumerate(rows):
        for across, picture in enumerate(row):
            # Each picture by itself: resized as a whole, neighbours would run into each other.
            scaled = (
                picture
                if picture.size == (width, height)
                else picture.resize((width, height), Image.Resampling.BICUBIC)
            )
            canvas.paste(scaled, (across * width, down * height))
    return canvas


def parse_size(option: str | None) -> tuple[int, int] | str | None:
    """``""`` (the model's own size), ``"original"`` (that of the last picture of the prompt), or ``"w,h"``.

    Raises:
        OptionError: something else.
    """
    if not option or option == "original":
        return option or None
    try:
        width, height = (int(number) for number in option.replace("x", ",").split(","))
    except ValueError:
        width = height = 0
    if width < 1 or height < 1:
        raise OptionError(f"resize_output is {option!r}: use 'original', or width and height such as 256,256")
    return width, height


def check_output(name: str, place: str) -> str:
    """The name of a picture file, relative to the folder of results.

    Raises:
        DataError: it would lie outside of that folder, or its extension names no format that is written.
    """
    path = Path(name)
    if path.is_absolute() or ".." in path.parts or not path.name:
        raise DataError(
            f"{name!r} is not in the folder of results",
            field="output",
            remedy="give a path relative to --out",
            file=place,
        )
    if path.suffix.lower() not in FORMATS:
        raise DataError(
            f"{name!r} has no extension of a picture ({', '.join(FORMATS)})",
            field="output",
            file=place,
            remedy="end it in .png",
        )
    return name


def save_picture(image: Image.Image, path: Path) -> None:
    """Write a picture under a temporary name, then rename it; folders are made.

    Raises:
        CannotWrite: no space, no permission, or a folder of that name.
    """
    held = io.BytesIO()
    image.save(held, FORMATS[path.suffix.lower()])
    try:
        write_bytes(path, held.getvalue())
    except OSError as error:
        raise CannotWrite(path, error.strerror or str(error), "choose another folder for the results") from None
