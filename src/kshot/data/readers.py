"""Reading annotation files, with errors that say where and what to do.

Every function raises :class:`~kshot.errors.DataError` for anything wrong with a file: missing, not UTF-8, truncated, not JSON, a
field missing or of the wrong type, an id given twice. Messages name the file, the line (text files) or item (lists), the field and
the remedy. Files are read in full; nothing here looks at images.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

from kshot.errors import DataError

PathLike: TypeAlias = "str | os.PathLike[str]"

Kind: TypeAlias = "type | tuple[type, ...]"

_NAMES = {
    str: "text",
    int: "a whole number",
    float: "a number",
    list: "a list",
    dict: "an object",
    bool: "true or false",
}


def read_text(path: PathLike, *, remedy: str | None = None) -> str:
    """The text of a UTF-8 file (a byte order mark is dropped).

    Raises:
        DataError: the file is missing, is a folder, cannot be read, or is not UTF-8 (the line is named).
    """
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise DataError("file not found", file=path, remedy=remedy) from None
    except IsADirectoryError:
        raise DataError("this is a folder, a file is expected", file=path, remedy=remedy) from None
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL character
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise DataError(f"file cannot be read: {reason}", file=path, remedy=remedy) from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"not UTF-8 text: byte 0x{data[error.start]:02x} at position {error.start}",
            file=path,
            line=data.count(b"\n", 0, error.start) + 1,
            remedy="save the file as UTF-8",
        ) from None


def read_json(
    path: PathLike, *, remedy: str | None = None, object_hook: Callable[[dict[str, Any]], Any] | None = None
) -> Any:
    """The value of a JSON file.

    Args:
        path: the file.
        remedy: what to do if it is missing (where to get it).
        object_hook: as in :func:`json.loads`; lets large files be made lighter while they are parsed.

    Raises:
        DataError: see the module; a file that ends too early is reported as truncated.
    """
    text = read_text(path, remedy=remedy)
    return _parse(text, path, None, object_hook)


def read_json_lines(path: PathLike, *, remedy: str | None = None) -> list[tuple[int, dict[str, Any]]]:
    """The objects of a JSON Lines file, each with the number of its line. Empty lines are skipped.

    Raises:
        DataError: see the module; also if a line is no JSON object, or holds text that cannot be written as UTF-8.
    """
    records: list[tuple[int, dict[str, Any]]] = []
    # Not splitlines(): JSON texts may contain U+2028 and its like as they are, and these end no line of a JSON Lines file.
    for number, line in enumerate(read_text(path, remedy=remedy).split("\n"), start=1):
        if not line.strip():
            continue
        value = _parse(line, path, number)
        if not isinstance(value, dict):
            raise DataError(f"an object is expected, not {describe_kind(value)}", file=path, line=number)
        if "\\u" in line and not _encodable(json.dumps(value, ensure_ascii=False)):
            raise DataError(
                "text with half a surrogate pair (\\ud800 ... \\udfff)", file=path, line=number, remedy="remove it"
            )
        records.append((number, value))
    return records


def get(record: Any, field: str, kind: Kind, file: PathLike, item: int | None = None) -> Any:
    """A field of a record that must be there and of a type.

    Args:
        record: should be a JSON object.
        field: name of the field.
        kind: type, or types, it may have; ``bool`` is no ``int`` here.
        file, item: where the record stands, for messages; items are counted from 1.
    """
    if not isinstance(record, dict):
        raise DataError(f"an object is expected, not {describe_kind(record)}", file=file, line=item)
    if field not in record:
        there = ", ".join(list(record)[:8]) or "nothing"
        raise DataError("field is missing", file=file, line=item, field=field, remedy=f"the record has: {there}")
    value = record[field]
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        wanted = " or ".join(_NAMES.get(k, k.__name__) for k in kinds)
        raise DataError(f"{wanted} is expected, not {describe_kind(value)}", file=file, line=item, field=field)
    if isinstance(value, str) and not _encodable(value):
        raise DataError("text with half a surrogate pair", file=file, line=item, field=field, remedy="remove it")
    return value


def get_texts(record: Any, field: str, file: PathLike, item: int | None = None) -> list[str]:
    """A field that must be a list of texts."""
    values = get(record, field, list, file, item)
    for value in values:
        if not isinstance(value, str):
            raise DataError(
                f"a list of texts is expected; it holds {describe_kind(value)}", file=file, line=item, field=field
            )
    return list(values)


def index_by(records: Iterable[Any], field: str, file: PathLike, kind: Kind = (int, str)) -> dict[Any, Any]:
    """Records by the value of a field, which must be unique.

    Raises:
        DataError: the field is missing or of another type, or two records share a value (both are named).
    """
    index: dict[Any, Any] = {}
    records = list(records)
    for number, record in enumerate(records, start=1):
        value = get(record, field, kind, file, number)
        if value in index:
            first = next(n for n, r in enumerate(records, start=1) if r[field] == value)
            raise duplicate(value, file, field, first, number)
        index[value] = record
    return index


def check_unique(ids: Sequence[Any], file: PathLike, field: str = "id", lines: Sequence[int] | None = None) -> None:
    """Raises a :class:`DataError` if two ids are equal; ``lines`` says where each stands (default: items from 1)."""
    seen: dict[Any, int] = {}
    for number, value in enumerate(ids):
        if value in seen:
            first = seen[value]
            places = (lines[first], lines[number]) if lines is not None else (first + 1, number + 1)
            raise duplicate(value, file, field, *places)
        seen[value] = number


def duplicate(value: Any, file: PathLike, field: str, first: int, second: int) -> DataError:
    """The error for an id that occurs twice."""
    return DataError(
        f"{value!r} occurs twice, in items {first} and {second}",
        file=file,
        line=second,
        field=field,
        remedy="ids must be unique; remove one of the two",
    )


def find_file(root: PathLike, names: Sequence[str], folders: Sequence[str] = (".",), *, source: str = "") -> Path:
    """The first file of these names under a root.

    Args:
        root: the data set's folder.
        names: official file names, best first.
        folders: sub-folders searched, in order.
        source: where to get the file, for the message.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError("no such folder", file=root, remedy="root= is the folder that holds the data set")
    for name in names:
        for folder in folders:
            if (root / folder / name).exists():
                return root / folder / name
    where = [f for f in folders if f != "."]
    searched = f"looked in it{' and in ' + ', '.join(where) if where else ''}"
    raise DataError(
        f"there is no {' or '.join(names)} here ({searched})",
        file=root,
        remedy=f"get it from {source}, or give its path" if source else None,
    )


def fingerprint(path: PathLike) -> str:
    """A short hash of a file's content, for the records of a run. Computed once per file and process."""
    path = Path(path)
    stat = path.stat()
    return _fingerprint(str(path), stat.st_size, stat.st_mtime_ns)


def shuffled(keys: Iterable[str], *seed: object) -> list[str]:
    """Keys in an order that depends on the seed and on nothing else, not even on the other keys."""
    prefix = "\0".join(map(str, seed)).encode() + b"\0"
    return sorted(keys, key=lambda key: (hashlib.blake2b(prefix + key.encode(), digest_size=16).digest(), key))


def describe_kind(value: Any) -> str:
    """What a JSON value is, in words."""
    if value is None:
        return "null"
    return _NAMES.get(type(value), type(value).__name__)


@lru_cache(maxsize=256)
def _fingerprint(path: str, _size: int, _modified: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _encodable(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _parse(
    text: str,
    path: PathLike,
    line: int | None,
    object_hook: Callable[[dict[str, Any]], Any] | None = None,
) -> Any:
    try:
        return json.loads(text, object_hook=object_hook)
    except json.JSONDecodeError as error:
        if not text.strip():
            problem, remedy = "file is empty", "download it again"
        elif error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string"):
            problem, remedy = f"JSON ends too early, after {len(text)} characters", "truncated? get the file again"
        else:
            problem = f"not valid JSON: {error.msg} at column {error.colno}"
            remedy = f"there stands {text[error.pos : error.pos + 20]!r}"
        raise DataError(problem, file=path, line=line or error.lineno, remedy=remedy) from None
    except RecursionError:
        raise DataError("JSON is nested too deeply", file=path, line=line) from None
    except ValueError as error:  # a number of more digits than Python converts
        raise DataError(f"not usable JSON: {error}", file=path, line=line) from None
