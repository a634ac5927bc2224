"""What lies in the folder of a token store that is not finished, and who may go on with it.

::

    unfinished/plan.json            what is being written
    unfinished/layout.json          of which pictures the finished shards were laid out
    unfinished/shard-00000.json     one for every finished shard
    unfinished/digests-*.json       digests of pictures; see kshot.visual.tokenize_run
    unfinished/tokens/TOKENIZER/    tokens of pictures by their content; see kshot.visual.tokenize_parts
    unfinished/tokenizer/           for other processes, where a tokenizer was given that has no folder
    unfinished/running              locked while a process writes

Tokens are right for whatever is made with the same tokenizer; all else is right for one plan only. So a run that failed never stands
in the way of the next: with the same plan it is carried on, with another one only its tokens are kept.
"""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import IO, Any

from kshot.data.readers import read_json
from kshot.errors import CannotWrite, DataError, OptionError
from kshot.visual.store_record import write_record

UNFINISHED = "unfinished"
PLAN = "plan.json"
LAYOUT = "layout.json"
LOCK = "running"
OURS = (PLAN, LAYOUT, LOCK, "shard-", "digests-", "tokens", "tokenizer")
"""What the names of the files begin with."""


class Begun:
    """The unfinished part of a store.

    Args:
        folder: of the store.
    """

    def __init__(self, folder: Path):
        self.store, self.folder = folder, folder / UNFINISHED
        self._lock: IO[bytes] | None = None
        self._new = not folder.exists()

    def start(self, plan: dict[str, Any]) -> None:
        """Carry on what was begun with this plan, or begin; what another plan has left is dropped, but for its tokens.

        Raises:
            OptionError: the folder holds something else than a store, or another process is writing it.
            CannotWrite: no space, no permission.
        """
        if not self._ours():
            raise OptionError(f"{self.store} exists and is no token store: choose another --out, or remove it")
        self._refuse_company()
        try:
            with contextlib.suppress(DataError, OSError):  # damaged: then nobody knows what the shards are
                if read_json(self.folder / PLAN) == plan:
                    return
            self.drop_shards()
            for path in self.folder.glob("digests-*"):
                path.unlink(missing_ok=True)
            write_record(self.folder / PLAN, plan)
        except OSError as error:
            raise CannotWrite(self.store, str(error.strerror or error), "choose another --out") from None

    def laid_out(self, layout: str) -> None:
        """Keep the finished shards if they were made of the same layout of the same pictures; drop them otherwise."""
        file = self.folder / LAYOUT
        with contextlib.suppress(DataError, OSError, AttributeError):
            if read_json(file).get("layout") == layout:
                return
        self.drop_shards()
        write_record(file, {"layout": layout})

    def drop_shards(self) -> None:
        """Remove all shards, beginning with what says that they are finished."""
        for path in [*self.folder.glob("shard-*.json"), self.folder / LAYOUT, *self.store.glob("shard-*.arrow")]:
            path.unlink(missing_ok=True)

    def hold(self) -> None:
        """Keep other processes out until :meth:`release`, where the file system knows locks.

        Raises:
            OptionError: another process is writing.
        """
        self._lock = self._locked()

    def release(self) -> None:
        """Let others in."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def withdraw(self) -> None:
        """Remove everything if nothing was made that a next run could use."""
        made = ("shard-*.json", "digests-*.json", "tokens/*/*.arrow")
        if any(True for pattern in made for _ in self.folder.glob(pattern)):
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        if self._new:
            with contextlib.suppress(OSError):  # something else is in it
                self.store.rmdir()

    def clear(self) -> None:
        """Remove what was left of the time before the store was finished."""
        with contextlib.suppress(OptionError):
            self._refuse_company()
            shutil.rmtree(self.folder, ignore_errors=True)

    def _ours(self) -> bool:
        """Whether the store's folder may be written to: absent, empty, or begun by a run like this one."""
        if not self.store.exists():
            return True
        if not self.store.is_dir():
            return False
        if (self.folder / PLAN).exists():
            return True
        # A run may have been killed before its plan had a name.
        others = [path for path in self.store.iterdir() if path != self.folder]
        inner = list(self.folder.iterdir()) if self.folder.is_dir() else []
        return not others and all(path.name.lstrip(".").startswith(OURS) for path in inner)

    def _refuse_company(self) -> None:
        if self.folder.is_dir() and (lock := self._locked()) is not None:
            lock.close()

    def _locked(self) -> IO[bytes] | None:
        try:
            import fcntl
        except ImportError:  # Windows
            return None
        self.folder.mkdir(parents=True, exist_ok=True)
        file = (self.folder / LOCK).open("ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise OptionError(
                f"another process is writing {self.store}: wait until it is done, or choose another --out"
            ) from None
        except OSError:  # a file system without locks
            file.close()
            return None
        return file
