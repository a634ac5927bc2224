"""What tasks share whose splits are files of one format: queries from one split, the support set from the training split.

Such a task is read from the files its authors publish, found by name under ``root``, or from files that the user names. Many come
in a second form too, the JSON Lines of Shikra and Link-Context Learning; :func:`read_records` takes both.
"""

from __future__ import annotations

import contextlib
import gc
import json
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias

from kshot.data.readers import PathLike, check_unique, describe_kind, find_file, read_json, read_json_lines
from kshot.data.sources import FileTask, ImageRoot, LazyExamples
from kshot.episode import Example
from kshot.errors import DataError, KshotError, OptionError, one_of
from kshot.metrics.statements import final_answer
from kshot.prompt import Template

Style: TypeAlias = Literal["plain", "upstream"]
"""How answers are written: the bare answer ("yes"), or the statement of Link-Context Learning ("The answer is yes.")."""

Record: TypeAlias = tuple[int, dict[str, Any]]
"""A record and its number in the file: the line of JSON Lines, else the item counted from 1."""

STATEMENT = "The answer is {}."

CHAT = Template(
    demonstration="USER: <image> {question} ASSISTANT: {answer}",
    instruction="A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions. ",
    separator=" ",
    user="<image>{question}",
)
"""The conversation (Vicuna 1.1) in which upstream asks all questions about single images. Its question is drawn there from lists of
paraphrases, which are not part of this package; here it is the question itself."""

CHAT_STOP = ("\n", "USER:", "ASSISTANT:")


class SplitTask(FileTask):
    """Base of the tasks whose splits are files of one format.

    A subclass names the files of a split (:meth:`names`) and makes the examples of a file (:meth:`read_file`).

    Args:
        root: folder of the annotation files and of the images.
        split: split of the queries.
        questions: the file (or files) of the queries, where they are not under ``root`` or have another name.
        images: folder (or zip) of the images, where they are not under ``root``.
        support_questions, support_images: the same for the support set (the training split).
        check_images: look for all image files at once and list those that are missing.

    Raises:
        OptionError: neither ``root`` nor the files are given, or there is no such split.
        DataError: see :mod:`kshot.data.readers`; also an id that occurs twice.
    """

    splits: ClassVar[tuple[str, ...]]
    support_split: ClassVar[str] = "train"
    folders: ClassVar[tuple[str, ...]] = (".", "annotations", "questions")
    image_folders: ClassVar[tuple[str, ...]] = ("images",)
    source: ClassVar[str] = ""
    id_field: ClassVar[str] = "question_id"

    def __init__(
        self,
        root: PathLike | None = None,
        *,
        split: str | None = None,
        questions: PathLike | Sequence[PathLike] | None = None,
        images: PathLike | None = None,
        support_questions: PathLike | Sequence[PathLike] | None = None,
        support_images: PathLike | None = None,
        check_images: bool = False,
        **options: Any,
    ):
        self._split = one_of("split", self.splits[0] if split is None else split, self.splits)
        if root is None and questions is None:
            raise OptionError(f"task {self.name!r} needs root= (the folder of its files), or questions= and images=")
        self._root = root
        self._given = {"queries": files_of(questions), "support": files_of(support_questions)}
        self._images = {"queries": images, "support": support_images if support_images is not None else images}
        super().__init__(check_images=check_images, split=self._split, **options)

    @abstractmethod
    def names(self, split: str) -> Sequence[str]:
        """Names of the file of a split, best first."""

    @abstractmethod
    def read_file(self, file: Path, role: str, images: ImageRoot) -> tuple[Sequence[str], LazyExamples]:
        """Ids and examples of a file; ``role`` is ``"queries"`` or ``"support"``."""

    def expand(self, file: Path) -> list[Path]:
        """The files that a path stands for: itself."""
        return [file]

    def more_files(self, role: str) -> dict[str, Path]:
        """Further files that a role needs (scene graphs ...), by what they hold."""
        return {}

    def split_of(self, role: str) -> str:
        """The split that queries or support set come from."""
        return self._split if role == "queries" else self.support_split

    def image_root(self, role: str) -> ImageRoot:
        """Where the images of a role are."""
        given = self._images[role]
        if given is not None:
            return ImageRoot(given)
        if self._root is None:
            raise OptionError(f"task {self.name!r}: give images= (the folder of the image files), or root=")
        root = Path(self._root)
        held = (root / name for name in self.image_folders)
        return ImageRoot(next((p for p in held if p.is_dir() or p.is_file()), root))

    def find(self, names: Sequence[str]) -> Path:
        """The first file of these names under the root."""
        if self._root is None:
            raise OptionError(
                f"task {self.name!r} needs the file {' or '.join(names)}: give root= or the file's own option"
            )
        return find_file(self._root, names, self.folders, source=self.source)

    def _locate(self) -> dict[str, Path]:
        self._parts: dict[str, list[Path]] = {}
        files = self._locate_role("queries")
        try:
            files |= self._locate_role("support")
        except KshotError:
            if self._given["support"]:
                raise
            # else it is reported when the support set is asked for
        return files

    def _locate_role(self, role: str) -> dict[str, Path]:
        found = self._given[role] or [self.find(self.names(self.split_of(role)))]
        self._parts[role] = [part for path in found for part in self.expand(path)]
        try:
            more = self.more_files(role)
        except KshotError:
            del self._parts[role]  # what is incomplete is not there
            raise
        files = {role if not n else f"{role} {n + 1}": path for n, path in enumerate(self._parts[role])}
        return files | {f"{role} {what}": path for what, path in more.items()}

    def _read_queries(self) -> Sequence[Example]:
        return self._read("queries")

    def _read_support(self) -> Sequence[Example]:
        if "support" not in self._parts:
            self._files |= self._locate_role("support")  # raises: says what was looked for and where to get it
        return self._read("support")

    def _read(self, role: str) -> LazyExamples:
        files, images = self._parts[role], self.image_root(role)
        with no_collector():
            return join([self.read_file(file, role, images) for file in files], files, self.id_field)


def join(parts: Sequence[tuple[Sequence[str], LazyExamples]], files: Sequence[Path], field: str) -> LazyExamples:
    """The examples of several files, each given with its ids, as one sequence.

    Raises:
        DataError: an id occurs in two files, or there is no example at all.
    """
    if not any(ids for ids, _ in parts):
        raise DataError("the file holds no examples", file=files[0])
    if len(parts) == 1:
        return parts[0][1]
    check_unique([key for ids, _ in parts for key in ids], files[-1], field)
    places = [(part, number) for part, (ids, _) in enumerate(parts) for number in range(len(ids))]

    def make(number: int) -> Example:
        part, place = places[number]
        return parts[part][1][place]

    return LazyExamples(make, range(len(places)))


@contextlib.contextmanager
def no_collector() -> Iterator[None]:
    """Pauses Python's cyclic garbage collector.

    Annotation files become millions of small lists and dictionaries, none of them in a cycle; the collector would walk through all
    of them again and again while they are made, which takes most of the time.
    """
    paused = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if paused:
            gc.enable()


def read_records(
    file: PathLike,
    key: str | None = None,
    *,
    id_field: str | None = None,
    object_hook: Callable[[dict[str, Any]], Any] | None = None,
) -> list[Record]:
    """The records of an annotation file, whichever of these it is: JSON Lines, a list, an object with a list under ``key``, or, if
    ``id_field`` is given, an object of records by id (which is then entered under that name). ``object_hook`` (see
    :func:`~kshot.data.readers.read_json`) can make large files lighter; JSON Lines are read without it.

    Raises:
        DataError: see :mod:`kshot.data.readers`; also if it is none of these, or a record is no object.
    """
    if is_json_lines(file):
        return read_json_lines(file)
    data = read_json(file, object_hook=object_hook)
    if isinstance(data, dict) and key is not None and isinstance(data.get(key), list):
        data = data[key]
    elif isinstance(data, dict) and id_field is not None and all(isinstance(v, dict) for v in data.values()):
        return [(number, {id_field: name} | record) for number, (name, record) in enumerate(data.items(), start=1)]
    elif isinstance(data, dict) and (key is None or key not in data):
        return [(1, data)]  # JSON Lines of a single line
    if not isinstance(data, list):
        wanted = f"a list, or an object with {key!r}," if key else "a list"
        raise DataError(f"{wanted} is expected, not {describe_kind(data)}", file=file)
    for number, record in enumerate(data, start=1):
        if not isinstance(record, dict):
            raise DataError(f"an object is expected, not {describe_kind(record)}", file=file, line=number)
    return list(enumerate(data, start=1))


def is_json_lines(file: PathLike) -> bool:
    """Whether a file holds JSON Lines: it is called ``.jsonl``, or its first line is an object of its own and not the last one.

    (Several published files hold JSON Lines under the name ``.json``.)
    """
    path = Path(file)
    if path.suffix == ".jsonl":
        return True
    try:
        with path.open("rb") as opened:
            first = opened.readline(1 << 20)
            return first.endswith(b"\n") and isinstance(json.loads(first), dict) and bool(opened.read(1 << 10).strip())
    except (OSError, ValueError):
        return False  # what is wrong with it is said when it is read


def record_id(record: dict[str, Any], fields: Sequence[str], file: Path, number: int) -> str:
    """The first of some fields that a record has, as text; without any, its place ``<file name>:<number>``."""
    for field in fields:
        if field in record:
            if isinstance(record[field], bool) or not isinstance(record[field], (int, str)):
                raise DataError("text or a whole number is expected", file=file, line=number, field=field)
            return str(record[field])
    return f"{file.name}:{number}"


def unique_ids(records: Sequence[Record], fields: Sequence[str], file: Path) -> list[str]:
    """Ids of records by :func:`record_id`.

    Raises:
        DataError: two are equal.
    """
    ids = [record_id(record, fields, file, number) for number, record in records]
    check_unique(ids, file, fields[0], [number for number, _ in records])
    return ids


def parse_stated(text: str, stop: Sequence[str]) -> str:
    """The bare answer of a generated text in upstream's style: cut at the stop strings, then what it states."""
    for mark in stop:
        text = text.split(mark, 1)[0]
    return final_answer(text)


def has_folder(images: ImageRoot, name: str) -> bool:
    """Whether an image root holds a folder, or a zip in its place."""
    return images.path.is_dir() and ((images.path / name).is_dir() or (images.path / f"{name}.zip").is_file())


def files_of(given: PathLike | Sequence[PathLike] | None) -> list[Path]:
    """One file, several or none, as a list."""
    if given is None:
        return []
    return [Path(path) for path in given] if isinstance(given, (list, tuple)) else [Path(given)]  # type: ignore[arg-type]


def after_turns(turns: Sequence[tuple[str, str]], question: str) -> str:
    """A question with the turns before it, as text: ``first question``, ``ASSISTANT: answer``, ``USER: question``, a line each."""
    lines = [part for asked, answered in turns for part in (f"USER: {asked}", f"ASSISTANT: {answered}")]
    return "\n".join([*lines, f"USER: {question}"]).removeprefix("USER: ")
