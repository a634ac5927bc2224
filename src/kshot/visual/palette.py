"""Label maps in colour: one palette gives every label its colour, and is kept so that colours can be read back as labels."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image, UnidentifiedImageError

from kshot.data.readers import PathLike, read_json
from kshot.errors import BadImage, CannotWrite, DataError
from kshot.picture import MAX_PIXELS, Picture
from kshot.visual.sentence_pictures import MadePicture

LABELS = 256
CANDIDATES = 32
"""Colours drawn for each label; the one that is farthest from those of the labels before it is taken."""

Colour: TypeAlias = tuple[int, int, int]
PaletteLike: TypeAlias = "int | PathLike | Sequence[Sequence[int]]"
"""A palette: the seed it is drawn from, a JSON file, or the colours by label."""


@dataclass(frozen=True)
class Palette:
    """A colour for each of 256 labels.

    Attributes:
        colours: red, green and blue, 0 to 255, by label.
    """

    colours: tuple[Colour, ...]

    @classmethod
    def drawn(cls, seed: int = 0, background: Colour | None = (0, 0, 0)) -> Palette:
        """Colours drawn from a seed, all different, far from each other.

        They come from a hash, not from a generator whose stream a library may change: a palette must be the same for ever.

        Args:
            seed: other seeds give other colours.
            background: colour of label 0; ``None`` draws that one too.
        """
        stream = _colours(seed)
        chosen = np.empty((LABELS, 3), np.int64)
        for label in range(LABELS):
            if label == 0 and background is not None:
                chosen[0] = background
                continue
            drawn = np.array([next(stream) for _ in range(CANDIDATES)])
            distances = ((drawn[:, None] - chosen[None, :label]) ** 2).sum(2).min(1) if label else np.zeros(1)
            chosen[label] = drawn[int(distances.argmax())]
        return cls(tuple((int(r), int(g), int(b)) for r, g, b in chosen))

    @classmethod
    def load(cls, file: PathLike) -> Palette:
        """A palette from JSON: a list of 256 (or fewer) ``[red, green, blue]``, or an object with that under ``colours``.

        Raises:
            DataError: the file is missing or holds something else.
        """
        data = read_json(file, remedy="a list of [red, green, blue] by label is expected")
        return cls.of(data.get("colours") if isinstance(data, dict) else data, file)

    @classmethod
    def of(cls, colours: Any, file: PathLike | None = None) -> Palette:
        """A palette of a list of colours; labels beyond its end have no colour.

        Raises:
            DataError: it is no such list.
        """
        remedy = "a list of at most 256 [red, green, blue], each 0 to 255, is expected"
        if not isinstance(colours, (list, tuple, np.ndarray)) or not 0 < len(colours) <= LABELS:
            raise DataError("no palette", file=file, remedy=remedy)
        made = []
        for number, colour in enumerate(colours, 1):
            values = list(colour) if isinstance(colour, (list, tuple, np.ndarray)) else []
            if len(values) != 3 or not all(_is_level(value) for value in values):
                raise DataError(f"{colour!r} is no colour", file=file, line=number, remedy=remedy)
            made.append((int(values[0]), int(values[1]), int(values[2])))
        return cls(tuple(made))

    def save(self, file: PathLike) -> None:
        """Writes the palette as JSON.

        Raises:
            CannotWrite: it cannot be written.
        """
        path = Path(file)
        part = path.with_name(f".{path.name}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            part.write_text(json.dumps({"colours": self.colours}) + "\n", encoding="utf-8")
            os.replace(part, path)
        except OSError as error:
            raise CannotWrite(path, str(error.strerror), "give another file") from None

    @property
    def digest(self) -> str:
        """Hash of the colours."""
        return hashlib.blake2b(json.dumps(self.colours).encode(), digest_size=16).hexdigest()

    def table(self) -> np.ndarray:
        """The colours as uint8 of shape (labels, 3)."""
        return np.array(self.colours, np.uint8)

    def labels_of(self, image: Image.Image) -> np.ndarray:
        """The labels of a picture, uint8 of shape (height, width): of each pixel, the label whose colour is nearest."""
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
        seen, places = np.unique(pixels, axis=0, return_inverse=True)
        table = self.table().astype(np.int64)
        nearest = np.empty(len(seen), np.uint8)
        for start in range(0, len(seen), 4096):  # a noisy picture has as many colours as pixels
            part = seen[start : start + 4096].astype(np.int64)
            nearest[start : start + 4096] = ((part[:, None] - table[None]) ** 2).sum(2).argmin(1)
        return nearest[places.reshape(-1)].reshape(image.height, image.width)


def colour_labels(labels: np.ndarray, palette: Palette, name: str = "label map") -> Image.Image:
    """A label map in colour.

    Args:
        labels: whole numbers of shape (height, width).
        palette: the colours.
        name: for messages.

    Raises:
        BadImage: the array has another shape, or a label without colour.
    """
    if labels.ndim != 2 or labels.dtype.kind not in "uib":
        raise BadImage(
            f"not a label map: shape {labels.shape}, {labels.dtype}", file=name, remedy="one number a pixel is expected"
        )
    if labels.size and not 0 <= int(labels.min()) <= int(labels.max()) < len(palette.colours):
        wrong = int(labels.max()) if labels.max() >= len(palette.colours) else int(labels.min())
        raise BadImage(f"label {wrong} has no colour: the palette holds {len(palette.colours)}", file=name)
    return Image.fromarray(palette.table()[labels.astype(np.int64)])


class LabelPicture(MadePicture):
    """A label map of mode 'L' or 'P' (its numbers, not its own colours) in a palette's colours.

    16-bit maps ('I;16', 'I') are taken where all labels have a colour.

    Raises:
        BadImage: on loading: the picture has colours in place of labels, or a label without colour.
    """

    def __init__(self, source: Picture, palette: Palette):
        super().__init__(source)
        self.palette = palette

    @property
    def settings(self) -> tuple[Any, ...]:
        return (self.palette.digest,)

    def load(self) -> Image.Image:
        return colour_labels(read_labels(self.source), self.palette, self.name)


def read_labels(picture: Picture) -> np.ndarray:
    """The numbers of a label map, of shape (height, width): grey levels, or places in its palette, never its colours.

    Raises:
        BadImage: it cannot be decoded, or has colours or fractions in place of labels.
    """
    data = picture.read()
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise BadImage(f"label map of more than {MAX_PIXELS:,} pixels", file=picture.name)
            if image.mode not in ("1", "L", "P", "I", "I;16", "I;16L", "I;16B"):
                raise BadImage(
                    f"a label map has one number a pixel (mode 'L' or 'P'), this picture has mode {image.mode!r}",
                    file=picture.name,
                    remedy="leave it out of labels= if it is coloured already",
                )
            image.load()
            labels = np.asarray(image)
            return labels.astype(np.uint8) if image.mode == "1" else labels
    except (BadImage, MemoryError):
        raise
    except (UnidentifiedImageError, Image.DecompressionBombError):
        raise BadImage("not an image of a known format", file=picture.name) from None
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error ... on damaged files
        raise BadImage(f"image is truncated or damaged ({error})", file=picture.name) from None


def as_palette(palette: PaletteLike) -> Palette:
    """A palette of a seed, a JSON file or a list of colours.

    Raises:
        DataError: see :meth:`Palette.load`.
    """
    if isinstance(palette, int):
        return Palette.drawn(palette)
    if isinstance(palette, (str, os.PathLike)):
        return Palette.load(palette)
    return Palette.of(palette)


def _colours(seed: int) -> Iterator[Colour]:
    counter = 0
    while True:
        block = hashlib.blake2b(f"kshot palette\0{seed}\0{counter}".encode()).digest()
        for place in range(0, 63, 3):
            yield block[place], block[place + 1], block[place + 2]
        counter += 1


def _is_level(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and 0 <= int(value) <= 255
