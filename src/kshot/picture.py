"""Pictures: images that are decoded only when they are looked at.

A :class:`Picture` says where an image is (a file, a member of a zip archive, bytes, an image in memory, a drawing made on
demand), gives it as an upright RGB ``PIL.Image`` and knows a hash of its content. Data sets hold millions of them; nothing is
read before :meth:`Picture.load`.
"""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from kshot.errors import BadImage, DataError

MAX_PIXELS = 2 * 89_478_485
"""Images of more pixels are refused: a small file can hold a picture that fills the memory (a "decompression bomb"). It is the number
above which Pillow by itself refuses to open an image; between half of it and this, Pillow only warns."""

PictureLike: TypeAlias = "Picture | Image.Image | str | os.PathLike[str] | bytes"


class Picture:
    """An image that is decoded lazily. Subclasses say where its bytes come from.

    Pictures of the same file, archive member or bytes are equal; nothing is read to find out.

    Attributes:
        name: where it is, for messages: a path, ``archive.zip!member``, or a description.
    """

    name: str

    def load(self) -> Image.Image:
        """Decode to an upright RGB image.

        EXIF rotation is applied, transparency is laid on white, 16-bit values are scaled to 8 bits, CMYK and palettes are
        converted, and of an animation the first frame is taken.

        Raises:
            BadImage: the file is missing, empty, truncated, of an unknown format or too large (:data:`MAX_PIXELS`).
        """
        return decode(self.read(), self.name)

    def read(self) -> bytes:
        """The encoded bytes."""
        raise BadImage("a picture of this kind has no encoded bytes", file=self.name)

    @property
    def digest(self) -> str:
        """Hash of the content: equal for equal files whatever their name; used for duplicates and caches."""
        cached = self.__dict__.get("_digest")
        if cached is None:
            cached = self.__dict__["_digest"] = hashlib.blake2b(self.read(), digest_size=16).hexdigest()
        return cached

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"


class FilePicture(Picture):
    """An image file."""

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        self.name = str(path)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FilePicture) and self.name == other.name

    def __hash__(self) -> int:
        return hash(self.name)

    def read(self) -> bytes:
        try:
            return self.path.read_bytes()
        except FileNotFoundError:
            raise BadImage("image file not found", file=self.path, remedy="check the image root") from None
        except OSError as error:
            raise BadImage(f"image file cannot be read: {error.strerror}", file=self.path) from None


class ArchivePicture(Picture):
    """An image inside a zip archive, read without unpacking it."""

    def __init__(self, archive: str | os.PathLike[str], member: str):
        self.archive, self.member = str(archive), member
        self.name = f"{archive}!{member}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ArchivePicture) and self.name == other.name

    def __hash__(self) -> int:
        return hash(self.name)

    def read(self) -> bytes:
        try:
            return open_archive(self.archive).read(self.member)
        except KeyError:
            raise BadImage("no such image in the archive", file=self.name) from None
        except (zipfile.BadZipFile, EOFError, OSError) as error:
            raise BadImage(f"archive member cannot be read: {error}", file=self.name) from None


class BytesPicture(Picture):
    """An encoded image in memory (for example from a Parquet column)."""

    def __init__(self, data: bytes, name: str = "image bytes"):
        self._data, self.name = data, name

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BytesPicture) and self._data == other._data

    def __hash__(self) -> int:
        return hash(self._data)

    def read(self) -> bytes:
        return self._data


class DrawnPicture(Picture):
    """An image made on demand by a function (generated worlds, images already in memory).

    Args:
        draw: makes the image; must return the same pixels each time.
        name: description for messages.
    """

    def __init__(self, draw: Callable[[], Image.Image], name: str):
        self._draw, self.name = draw, name

    def load(self) -> Image.Image:
        return to_rgb(self._draw())

    @property
    def digest(self) -> str:
        cached = self.__dict__.get("_digest")
        if cached is None:
            image = self.load()
            hasher = hashlib.blake2b(f"{image.size}".encode(), digest_size=16)
            hasher.update(image.tobytes())
            cached = self.__dict__["_digest"] = hasher.hexdigest()
        return cached


class DerivedPicture(Picture):
    """An image made of another one (padded, for example) when it is looked at; a subclass says how in :meth:`derive`.

    It shows what its source shows: where the query's image must not be among the demonstrations, the two count as the same. Its digest
    is another one, for its pixels are.

    Args:
        source: the picture it is made of.
    """

    def __init__(self, source: Picture):
        self.source, self.name = source, source.name

    def derive(self, image: Image.Image) -> Image.Image:
        """The image made of the source's; the same pixels each time, by a rule that the class alone decides."""
        raise NotImplementedError

    def load(self) -> Image.Image:
        return self.derive(self.source.load())

    @property
    def origin(self) -> Picture:
        """The picture at the beginning, which is derived from none."""
        return self.source.origin if isinstance(self.source, DerivedPicture) else self.source

    @property
    def digest(self) -> str:
        made = f"{type(self).__qualname__}\0{self.source.digest}"
        return hashlib.blake2b(made.encode(), digest_size=16).hexdigest()

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self.source == other.source

    def __hash__(self) -> int:
        return hash((type(self).__qualname__, self.source))


def as_picture(source: PictureLike, name: str | None = None) -> Picture:
    """A :class:`Picture` of a path, encoded bytes, a ``PIL.Image`` or a picture (returned as it is)."""
    if isinstance(source, Picture):
        return source
    if isinstance(source, Image.Image):
        return DrawnPicture(source.copy, name or f"{source.size[0]}x{source.size[1]} image")
    if isinstance(source, bytes):
        return BytesPicture(source, name or "image bytes")
    if isinstance(source, (str, os.PathLike)):
        return FilePicture(source)
    raise DataError(f"cannot make a picture of {type(source).__name__}", remedy="give a path, bytes or a PIL image")


def decode(data: bytes, name: str) -> Image.Image:
    """Decode encoded bytes to an upright RGB image; ``name`` is used in messages. See :meth:`Picture.load`."""
    if not data:
        raise BadImage("image file is empty", file=name)
    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:  # also where the user has switched off Pillow's own limit
                raise BadImage(_too_large(width, height), file=name)
            image.load()
            return to_rgb(ImageOps.exif_transpose(image))
    except (BadImage, MemoryError):
        raise
    except Image.DecompressionBombError:
        raise BadImage(f"image of more than {MAX_PIXELS:,} pixels; scale it down", file=name) from None
    except UnidentifiedImageError:
        raise BadImage("not an image of a known format", file=name) from None
    except (
        Exception
    ) as error:  # on damaged files Pillow's decoders raise OSError, SyntaxError, RuntimeError, struct.error ...
        raise BadImage(f"image is truncated or damaged ({error})", file=name) from None


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow image as 8-bit RGB: transparency on white, 16 bits scaled to 8, everything else converted."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image).astype(np.float64)
        # 16-bit data spans 0..65535; convert() would clip everything above 255 to white. Floating point spans 0..1, as a rule.
        peak = values.max() if values.size else 0.0
        top = 1.0 if image.mode == "F" and peak <= 1 else 255.0 if peak <= 255 else 65535.0
        return Image.fromarray(np.clip(values * (255.0 / top), 0, 255).astype(np.uint8)).convert("RGB")
    if "A" in image.mode or "transparency" in image.info:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")


def open_archive(path: str | os.PathLike[str]) -> zipfile.ZipFile:
    """A zip archive, kept open.

    Raises:
        DataError: the file is missing or no zip archive.
    """
    return _open_archive(str(path), os.getpid())  # a handle shared with a forked process would be read at random places


@lru_cache(maxsize=16)
def _open_archive(path: str, _pid: int) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except FileNotFoundError:
        raise DataError("archive not found", file=path) from None
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(f"not a readable zip archive ({error})", file=path, remedy="download it again") from None


def _too_large(width: int, height: int) -> str:
    return f"image of {width} x {height} pixels is larger than the limit of {MAX_PIXELS:,} pixels; scale it down"
