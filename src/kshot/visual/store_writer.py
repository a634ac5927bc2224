"""Writing token stores, shard by shard, so that a run that was stopped carries on behind the last finished shard.

While it is being written, a store's folder holds ``unfinished`` (see :mod:`kshot.visual.store_begun`), which goes when ``store.json``
takes its place. All files are written under another name and renamed; the same sentences give the same bytes.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from kshot.data.readers import read_json
from kshot.errors import CannotWrite, DataError, OptionError
from kshot.version import __version__
from kshot.visual.store import TokenStore, file_digest
from kshot.visual.store_begun import PLAN, Begun
from kshot.visual.store_record import (
    FORMAT,
    RECORD,
    SCHEMA,
    SKIPPED,
    VERSION,
    Shard,
    StoredSentence,
    TokenizerRecord,
    write_record,
)
from kshot.whole_file import write_text

SHARD_SENTENCES = 4096
"""Sentences a shard, where nothing else is said: of 4,096 tokens, 32 MB."""
PACKAGES = ("torch", "diffusers", "numpy", "pillow", "pyarrow", "av")


class StoreWriter:
    """A token store that is being written; in a ``with`` block by this process alone, and a block that fails before anything was
    made leaves nothing.

    Args:
        folder: of the store; made if absent.
        tokenizer: what makes the tokens.
        plan: all else that determines the contents, as JSON; kept in ``store.json`` under ``"grammar"``. A finished store of another
            plan or tokenizer is refused; of an unfinished one only the tokens of single pictures are kept.
        shard_sentences: sentences a shard, before any are left out.

    Attributes:
        complete: the store is finished already, with this very plan; there is nothing to write.

    Raises:
        OptionError: the folder holds something else, or another process is writing it.
        CannotWrite: no space, no permission.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        tokenizer: TokenizerRecord,
        plan: Any = None,
        *,
        shard_sentences: int = SHARD_SENTENCES,
    ):
        if shard_sentences < 1:
            raise OptionError(f"{shard_sentences} sentences a shard: must be 1 or more")
        self.folder, self.tokenizer, self.shard_sentences = Path(folder), tokenizer, shard_sentences
        self._plan = json.loads(
            json.dumps({"tokenizer": asdict(tokenizer), "grammar": plan, "shard_sentences": shard_sentences})
        )
        self.begun = Begun(self.folder)
        self.unfinished = self.begun.folder
        self.complete = (self.folder / RECORD).exists()
        if self.complete:
            record = TokenStore(self.folder).record
            self._refuse_other({name: record.get(name) for name in self._plan})
            self.begun.clear()
        else:
            self._begin()

    def __enter__(self) -> StoreWriter:
        if not self.complete:
            self.begun.hold()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if error is not None and not self.complete:
            self.begun.withdraw()
        self.begun.release()

    def begin_again(self) -> None:
        """Make an unfinished store of a finished one, to be written anew.

        Raises:
            OptionError: another process is doing that.
        """
        self.begun.hold()
        write_record(self.unfinished / PLAN, self._plan)  # first: a folder with neither record nor plan is no store
        (self.folder / RECORD).unlink()
        self.complete = False
        (self.folder / SKIPPED).unlink(missing_ok=True)
        self.begun.drop_shards()

    def has(self, number: int) -> bool:
        """Whether a shard is finished."""
        return self._entry(number) is not None

    def write(self, number: int, sentences: Iterable[StoredSentence]) -> None:
        """Write a shard; without sentences it is finished, too, and has no file.

        Raises:
            DataError: a sentence is not whole pictures, its roles are not one a picture, or a code is out of range.
            CannotWrite: no space, no permission.
        """
        held = list(sentences)
        name = f"shard-{number:05d}.arrow"
        entry: dict[str, Any] = {"types": dict(sorted(Counter(sentence.type for sentence in held).items()))}
        if held:
            temporary = self.folder / f".{name}.{os.getpid()}"
            try:
                _write_batch(temporary, _batch(held, self.tokenizer))
                tokens = sum(len(sentence.tokens) for sentence in held)
                shard = Shard(name, len(held), tokens, temporary.stat().st_size, file_digest(temporary))
                os.replace(temporary, self.folder / name)
            except OSError as error:
                raise CannotWrite(self.folder / name, str(error.strerror or error), "make room, run it again") from None
            finally:
                temporary.unlink(missing_ok=True)
            entry["shard"] = asdict(shard)
        write_record(self.unfinished / f"shard-{number:05d}.json", entry)

    def extend(self, sentences: Iterable[StoredSentence]) -> int:
        """Write all sentences of an iterable, beginning with shard 0; those of finished shards are taken and dropped.

        Returns:
            the number of shards.
        """
        rest, number = iter(sentences), 0
        while some := list(islice(rest, self.shard_sentences)):
            if not self.has(number):
                self.write(number, some)
            number += 1
        return number

    def finish(self, shards: int, *, skipped: Sequence[Mapping[str, Any]] = (), **told: Any) -> TokenStore:
        """Write ``skipped.jsonl`` and ``store.json``: from now on the store is complete.

        Args:
            shards: their number; all of them are finished.
            skipped: lines about pictures that could not be used.
            told: further entries of ``store.json``; must not depend on the time or the machine.

        Raises:
            DataError: no sentence is left, or a shard is not there.
        """
        entries = [self._entry(number) for number in range(shards)]
        if None in entries:
            raise DataError(f"shard {entries.index(None)} is not written", file=self.folder)
        found = [entry for entry in entries if entry is not None]
        listed = [entry["shard"] for entry in found if "shard" in entry]
        if not listed:
            why = f": {skipped[0].get('problem')}" if skipped else ""
            raise DataError(f"no sentence could be tokenized{why}", file=self.folder, remedy="see the sources")
        types: Counter[str] = Counter()
        for entry in found:
            types.update(entry["types"])
        if skipped:
            lines = (json.dumps(line, ensure_ascii=False) + "\n" for line in skipped)
            write_text(self.folder / SKIPPED, "".join(lines))
        else:
            (self.folder / SKIPPED).unlink(missing_ok=True)
        sizes = self.tokenizer
        write_record(
            self.folder / RECORD,
            {
                "format": FORMAT,
                "version": VERSION,
                **self._plan,
                "special_ids": sizes.special_ids,
                "sentences": sum(shard["sentences"] for shard in listed),
                "tokens": sum(shard["tokens"] for shard in listed),
                "types": dict(sorted(types.items())),
                "skipped": len(skipped),
                **told,
                "shards": listed,
                "versions": versions(),
            },
        )
        shutil.rmtree(self.unfinished, ignore_errors=True)
        self.complete = True
        return TokenStore(self.folder)

    def _begin(self) -> None:
        self.begun.start(self._plan)
        for left in self.folder.glob(".shard-*"):  # of a run that was killed
            left.unlink(missing_ok=True)

    def _refuse_other(self, held: Mapping[str, Any]) -> None:
        changes = [name for name in self._plan if held.get(name) != self._plan[name]]
        if not changes:
            return
        detail = changes[0]
        if detail == "tokenizer":
            why = self.tokenizer.difference(TokenizerRecord(**held["tokenizer"]))
            detail += f" ({why})" if why else ""
        raise OptionError(
            f"{self.folder} holds a token store of another {detail.replace('_', ' ')}: choose another --out, or remove it"
        )

    def _entry(self, number: int) -> dict[str, Any] | None:
        """What is known of a finished shard; ``None`` if it is not finished, or its file is gone or of another size."""
        with contextlib.suppress(DataError, OSError, KeyError, TypeError):
            entry: dict[str, Any] = read_json(self.unfinished / f"shard-{number:05d}.json")
            shard = entry.get("shard")
            if shard is None or (self.folder / shard["file"]).stat().st_size == shard["bytes"]:
                return entry
        return None


def _batch(sentences: Sequence[StoredSentence], tokenizer: TokenizerRecord) -> pa.RecordBatch:
    lengths = np.array([len(sentence.tokens) for sentence in sentences], np.int64)
    for sentence, length in zip(sentences, lengths, strict=True):
        problem = _problem(sentence, int(length), tokenizer)
        if problem:
            raise DataError(f"sentence {sentence.id!r} {problem}")
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    if offsets[-1] >= 2**31:
        raise OptionError(f"a shard of {offsets[-1]:,} tokens is too large: fewer sentences a shard")
    values = np.concatenate([sentence.tokens for sentence in sentences]).astype(np.uint16)
    columns = [
        pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(values)),
        pa.array([sentence.id for sentence in sentences]),
        _encoded([sentence.type for sentence in sentences]),
        _encoded([" ".join(sentence.roles) for sentence in sentences]),
    ]
    return pa.record_batch(columns, schema=SCHEMA)


def _problem(sentence: StoredSentence, length: int, tokenizer: TokenizerRecord) -> str | None:
    size = tokenizer.tokens_per_image
    if not length or length % size:
        return f"has {length} tokens, which is not a number of pictures of {size} tokens"
    if len(sentence.roles) != length // size:
        return f"has {length // size} pictures, but {len(sentence.roles)} roles"
    if any(not role or role.split() != [role] for role in sentence.roles):
        return f"has a role with blanks: {sentence.roles}"
    low, high = int(np.min(sentence.tokens)), int(np.max(sentence.tokens))
    if low < 0 or high >= tokenizer.codes:
        return f"has the code {low if low < 0 else high}, but the tokenizer has {tokenizer.codes} (0 to {tokenizer.codes - 1})"
    return None


def _encoded(words: Sequence[str]) -> pa.DictionaryArray:
    return pa.array(words).dictionary_encode()


def _write_batch(path: Path, batch: pa.RecordBatch) -> None:
    with path.open("wb") as file:
        with pa.ipc.new_stream(file, SCHEMA) as stream:
            stream.write_batch(batch)
        file.flush()
        os.fsync(file.fileno())


def versions() -> dict[str, str]:
    """The versions that tokens may depend on."""
    return {"kshot": __version__, **dict(_versions())}


def _versions() -> Iterator[tuple[str, str]]:
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            yield name, version(name)
