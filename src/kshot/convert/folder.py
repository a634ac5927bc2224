"""Folders that appear under their names only when all is in them."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kshot.errors import OptionError

GIGABYTE = 10**9


def check_free(target: Path) -> None:
    """Refuse to write over something.

    Raises:
        OptionError: ``target`` exists and is not an empty folder.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise OptionError(f"{target} exists and is not empty: choose another --out, or remove it")


def check_space(target: Path, size: int) -> None:
    """Find out before hours of copying whether ``size`` bytes can be written.

    Raises:
        OptionError: the disk is too small.
    """
    place = next(folder for folder in target.absolute().parents if folder.is_dir())
    free = shutil.disk_usage(place).free
    if free < size:
        raise OptionError(
            f"the converted weights take {size / GIGABYTE:.1f} GB, but {place} has {free / GIGABYTE:.1f} GB free"
        )


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder that gets the name ``target`` when the block ends well, and is removed when it does not."""
    target.parent.mkdir(parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp"))
    try:
        yield place
        place.chmod(0o777 & ~_umask())
        if target.is_dir():
            target.rmdir()  # it is empty
        place.rename(target)
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
