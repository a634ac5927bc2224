"""Whether two pictures show the same content, at the lowest cost.

Demonstrations must not show the query's image. Hashing both would read every file that is ever considered; most pairs are told
apart by the sizes of the files alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from kshot.errors import BadImage
from kshot.picture import ArchivePicture, BytesPicture, FilePicture, Picture, open_archive


class Contents:
    """Compares pictures by :attr:`~kshot.picture.Picture.digest`, and remembers what it had to read.

    Tasks make their examples anew whenever they are asked for, so that what a picture remembers of itself is lost.
    """

    def __init__(self) -> None:
        self._sizes: dict[tuple[str, ...], int] = {}
        self._digests: dict[tuple[str, ...], str] = {}

    def digest(self, picture: Picture) -> str:
        """The picture's digest.

        Raises:
            BadImage: it cannot be read.
        """
        place = _place(picture)
        if place is None:
            return picture.digest
        if place not in self._digests:
            self._digests[place] = picture.digest
        return self._digests[place]

    def same(self, one: Picture, other: Picture) -> bool:
        """Whether two pictures have the same digest. A picture that cannot be read equals none but itself."""
        places = _place(one), _place(other)
        if one is other or (places[0] is not None and places[0] == places[1]):
            return True
        try:
            if self._size(one) != self._size(other):
                return False
            return self.digest(one) == self.digest(other)
        except BadImage:  # reported, with the place, when the picture is shown
            return False

    def overlap(self, some: Sequence[Picture], others: Sequence[Picture]) -> bool:
        """Whether any picture of the first group equals one of the second."""
        return any(self.same(one, other) for one in some for other in others)

    def _size(self, picture: Picture) -> int | None:
        """Number of encoded bytes; ``None`` for drawings, whose digest is that of their pixels and equals no file's."""
        place = _place(picture)
        if place is None:
            return len(picture.read()) if isinstance(picture, BytesPicture) else None
        if place not in self._sizes:
            self._sizes[place] = _stored_size(picture)
        return self._sizes[place]


def _place(picture: Picture) -> tuple[str, ...] | None:
    if isinstance(picture, FilePicture):
        return (str(picture.path),)
    if isinstance(picture, ArchivePicture):
        return (picture.archive, picture.member)
    return None


def _stored_size(picture: Picture) -> int:
    try:
        if isinstance(picture, FilePicture):
            return picture.path.stat().st_size
        assert isinstance(picture, ArchivePicture)
        return open_archive(picture.archive).getinfo(picture.member).file_size
    except (OSError, KeyError) as error:
        raise BadImage(f"image cannot be read: {error}", file=picture.name) from None
