"""Files that are there in full or not at all."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A name to write a file under, which takes its own name at the end of the block.

    What bore that name before stays until then, and for good if the block raises. Several processes may write the same file at
    once: each has a temporary name of its own, and the last one to end wins. Folders are made.

    Args:
        path: the file's own name.

    Yields:
        The temporary name, in the same folder; no file bears it yet.

    Raises:
        OSError: the folder cannot be made, or the file not be renamed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write text as UTF-8, in full or not at all."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
