"""Which examples may be shown with a query: those with an answer that are neither the query nor show its image.

Hashing would read the file of every example that is ever considered; most pairs are told apart by the sizes of the files alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from kshot.episode import Example
from kshot.errors import BadImage, OptionError
from kshot.picture import ArchivePicture, BytesPicture, DerivedPicture, FilePicture, Picture, open_archive


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
        """Whether two pictures have the same digest. A picture that cannot be read equals none but itself.

        Of derived pictures (padded ones) the sources are compared: they show the same.
        """
        one, other = (p.origin if isinstance(p, DerivedPicture) else p for p in (one, other))
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


class Candidates:
    """The examples of a support set that may be shown with a query; says why the others may not.

    Nothing is looked at before it is asked about, so that a support set of any size costs the same.

    Attributes:
        unanswered: ids of the examples that were passed over because they have no answer.
        clashes: ids of those that are the query or show its image.
    """

    def __init__(self, query: Example, pool: Sequence[Example], contents: Contents):
        self.query, self.pool, self._contents = query, pool, contents
        self.unanswered: set[str] = set()
        self.clashes: set[str] = set()

    def allows(self, index: int) -> bool:
        """Whether the example at a place of the support set may be shown."""
        example = self.pool[index]
        if example.answer is None:
            self.unanswered.add(example.id)
        elif example.id == self.query.id or self._contents.overlap(example.images, self.query.images):
            self.clashes.add(example.id)
        else:
            return True
        return False

    def among(self, indices: Iterator[int]) -> Iterator[int]:
        """Those that may be shown, lazily and in the same order."""
        return (index for index in indices if self.allows(index))

    def too_few(self, shots: int, found: int) -> OptionError:
        """The error for a support set that is large enough but holds too few examples that may be shown."""
        reasons = [
            f"{len(ids)} {reason}"
            for ids, reason in (
                (self.unanswered, "without answer"),
                (self.clashes, "the query itself or with its image"),
            )
            if ids
        ]
        return OptionError(
            f"{shots} shots, but only {found} of the {len(self.pool)} examples of the support set can be shown with query "
            f"{self.query.id!r} ({', '.join(reasons) or 'the others are excluded'})"
        )


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
