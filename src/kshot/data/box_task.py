"""What the tasks with boxes share: padded pictures, their sizes, and a support set that may be the other queries."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import field as set_field
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from kshot.data.boxes import Box, Coordinates, Point, Size, SquarePicture, check_inside, picture_size, text_of, written
from kshot.data.readers import PathLike
from kshot.data.sources import ImageRoot, LazyExamples, LeaveOneOut, as_template
from kshot.data.splits import SplitTask, Style
from kshot.episode import Example
from kshot.errors import DataError, one_of
from kshot.picture import Picture
from kshot.prompt import Template


@dataclass(frozen=True)
class Item:
    """One item of an annotation file: where it stands, and its picture.

    Attributes:
        id: unique in the file.
        image: name of the picture below the image root.
        line: where the item stands in the file, for messages.
        size: width and height, where the file tells them.
    """

    id: str
    image: str
    line: int
    size: Size | None = set_field(default=None, kw_only=True)

    def places(self) -> Iterable[tuple[Box | Point, str]]:
        """Its boxes and points, each with the field it was read from."""
        return ()


Kind = TypeVar("Kind", bound=Item)


class Pictures:
    """The pictures of an annotation file, padded to squares or not, and the sizes that its boxes refer to.

    Args:
        root: where they are.
        names: their names, as the file gives them. Leading folders that do not exist under ``root`` are left out of all of them
            (files say ``coco/train2014/x.jpg``, ``train2014/x.jpg`` or ``x.jpg``): as many as the first of these images that is
            found needs.
        square: pad them.
        file: the annotation file, for messages.
    """

    def __init__(self, root: ImageRoot, names: Sequence[str], square: bool, file: Path):
        self._root, self._square, self._file = root, square, file
        self._sizes: dict[str, Size] = {}
        self._dropped = next((n for n in (self._missing_folders(name) for name in names[:20]) if n is not None), 0)

    def picture(self, name: str) -> Picture:
        """The picture of a name, as the task shows it."""
        picture = self._original(name)
        return SquarePicture(picture) if self._square else picture

    def size(self, item: Item) -> Size:
        """Width and height of an item's picture; if the file does not tell, from the picture's header, read once."""
        if item.size is not None:
            return item.size
        if item.image not in self._sizes:
            self._sizes[item.image] = picture_size(self._original(item.image))
        return self._sizes[item.image]

    def written(self, item: Item, place: Box, field: str = "bbox") -> Box:
        """A box of an item as it is written (see :func:`kshot.data.boxes.written`).

        Raises:
            DataError: it lies outside the picture.
        """
        size = self.size(item)
        check_inside(place, size, field, self._file, item.line)
        return written(place, size)

    def text(self, item: Item, *places: Coordinates, field: str = "bbox") -> str:
        """Boxes or points of an item as text.

        Raises:
            DataError: one lies outside the picture.
        """
        size = self.size(item)
        for place in places:
            check_inside(place, size, field, self._file, item.line)
        return text_of(*(written(place, size) for place in places))

    def _original(self, name: str) -> Picture:
        return self._root.picture("/".join(name.split("/")[self._dropped :]) if self._dropped else name)

    def _missing_folders(self, name: str) -> int | None:
        parts = name.split("/")
        return next((n for n in range(len(parts)) if self._root.has("/".join(parts[n:]))), None)


class BoxTask(SplitTask, Generic[Kind]):
    """Base of the tasks with boxes; a subclass reads the items of a file and makes an example of each.

    Args:
        square: show pictures padded to a white square, as upstream. Coordinates always refer to this square; switch it off for
            models that pad by themselves.
        style: ``"plain"``, or ``"upstream"``: the statements and the conversation of Link-Context Learning.
        template: a template, or fields that replace those of the style's.
        questions: the file (or files) of the queries, where they are not under ``root`` or have another name.
        images: folder (or zip) of the images, where they are not under ``root``.
        support_questions: the file (or files) of the support set. Without it, and without a training file under ``root``, the
            support set of a query are the other queries that do not show its image.
        support_images: folder (or zip) of its images. Default: that of the queries.
        root, split, check_images: see :class:`SplitTask`.
    """

    plain: ClassVar[Template]
    upstream: ClassVar[Template]
    folders = (".", "annotations", "data")

    def __init__(
        self,
        root: PathLike | None,
        square: bool,
        style: Style,
        template: Template | Mapping[str, Any] | None,
        **options: Any,
    ):
        self._upstream = one_of("style", style, ("plain", "upstream")) == "upstream"
        self._square = square
        self.template = as_template(template, self.upstream if self._upstream else self.plain)
        super().__init__(root, square=None if square else False, style=style, **options)

    @abstractmethod
    def read_items(self, file: Path, role: str) -> list[Kind]:
        """The items of a file. Ids are unique."""

    @abstractmethod
    def example(self, item: Kind, pictures: Pictures) -> Example:
        """The example of an item."""

    def pool(self, query: Example) -> Sequence[Example]:
        """The support set; without one, the queries that do not show the query's image."""
        if self._others is None:
            return self.support
        return self._others.pool("", str(query.metadata["image_id"]))

    def describe(self) -> dict[str, Any]:
        """As for every task, with where the support set comes from."""
        return super().describe() | {"support": "file" if self._others is None else "leave-one-out"}

    def read_file(self, file: Path, role: str, images: ImageRoot) -> tuple[Sequence[str], LazyExamples]:
        items = self.read_items(file, role)
        for item in items:
            if item.size is not None:  # of the others it shows when they are looked at
                for place, field in item.places():
                    check_inside(place, item.size, field, file, item.line)
        pictures = Pictures(images, [item.image for item in items], self._square, file)
        if role == "queries":
            self._query_images += [item.image for item in items]

        def make(number: int) -> Example:
            return self.example(items[number], pictures)

        return [item.id for item in items], LazyExamples(make, range(len(items)))

    def holds_all_splits(self, file: Path) -> bool:
        """Whether a file holds several splits, so that the same file may be given for the queries and the support set."""
        return False

    def _read_queries(self) -> Sequence[Example]:
        self._query_images: list[str] = []
        examples = self._read("queries")
        files = self._parts["queries"]
        same = self._parts.get("support") == files
        if same and all(map(self.holds_all_splits, files)):
            same = self.split_of("support") == self.split_of("queries")
        alone = "support" not in self._parts or same
        self._others = LeaveOneOut(examples, [""] * len(examples), self._query_images) if alone else None
        return examples

    def _read_support(self) -> Sequence[Example]:
        return self._queries if self._others is not None else self._read("support")


def answer_of(record: dict[str, Any], field: str, file: Path, line: int) -> str:
    """A short answer, which may be a number in the file; not empty.

    Raises:
        DataError: it is missing, empty or something else.
    """
    value = record.get(field)
    if isinstance(value, bool) or not isinstance(value, (str, int, float)) or not str(value).strip():
        problem = "field is missing" if field not in record else "a text or a number is expected"
        raise DataError(problem, file=file, line=line, field=field)
    return str(value).strip()
