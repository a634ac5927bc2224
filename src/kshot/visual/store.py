"""Token stores: visual sentences as 16-bit tokens, on disk, at random access.

::

    store.json               what made the tokens, what is in the shards, their sizes and checksums; written last
    shard-00000.arrow ...    Arrow IPC streams, uncompressed, one record batch each
    skipped.jsonl            where pictures could not be used: which, why, and the sentences that are left out for it

A shard has the columns ``tokens`` (list of uint16: codes of the VQ tokenizer, nothing else), ``id``, ``type`` (of the sentence) and
``roles`` (of its pictures, in order, separated by blanks); the last two are dictionary encoded. ``datasets.Dataset.from_file`` reads
it. Here it is mapped into memory, and a sentence's tokens are a slice of the file.

A store without ``store.json`` is not finished, and is refused.
"""

from __future__ import annotations

import hashlib
import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from tqdm import tqdm

from kshot.errors import DataError, ModelError, OptionError
from kshot.visual.store_record import RECORD, SCHEMA, Shard, StoredSentence, TokenizerRecord, Tokens, read_record


class TokenStore(Sequence[StoredSentence]):
    """A finished token store, mapped into memory.

    May be sent to other processes; each maps the files itself.

    Args:
        folder: of the store.
        checksums: compare each shard with its checksum before the first sentence of it is given out, which reads the shard once.

    Attributes:
        tokenizer: what made the tokens.
        record: all that ``store.json`` holds.

    Raises:
        DataError: there is no finished store in the folder, or a shard is missing or of another size than recorded. (Damage within a
            shard is found by ``checksums``, or by :meth:`verify`, which reads everything.)
    """

    def __init__(self, folder: str | os.PathLike[str], *, checksums: bool = False):
        self.folder = Path(folder)
        self.record = read_record(self.folder)
        try:
            self.tokenizer = TokenizerRecord(**self.record["tokenizer"])
            self.shards = tuple(Shard(**entry) for entry in self.record["shards"])
        except TypeError as error:
            raise DataError(f"not the record of a token store ({error})", file=self.folder / RECORD) from None
        self._starts = [0]
        for shard in self.shards:
            self._check_size(shard)
            self._starts.append(self._starts[-1] + shard.sentences)
        self._mapped: dict[int, _Mapped] = {}
        self._unchecked = set(range(len(self.shards))) if checksums else set()
        self._lengths: NDArray[np.int64] | None = None

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> TokenStore:
        """The store in a folder."""
        return cls(folder)

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: Any) -> Any:
        """A :class:`StoredSentence`, or a list of them for a slice."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        mapped, row = self._find(index)
        kind, roles = mapped.words(row)
        return StoredSentence(mapped.tokens(row), mapped.ids[row].as_py(), kind, _split(roles))

    def __iter__(self) -> Iterator[StoredSentence]:
        return (self[i] for i in range(len(self)))

    def tokens(self, index: int) -> Tokens:
        """The tokens of a sentence: a read-only view of the file."""
        mapped, row = self._find(index)
        return mapped.tokens(row)

    def roles(self, index: int) -> tuple[str, ...]:
        """The roles of a sentence's pictures."""
        mapped, row = self._find(index)
        return _split(mapped.words(row)[1])

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(sentences,) number of tokens of each."""
        if self._lengths is None:
            parts = [np.diff(self._map(number).offsets) for number in range(len(self.shards))]
            self._lengths = np.concatenate(parts).astype(np.int64)
        return self._lengths

    @property
    def fingerprint(self) -> str:
        """Hash of everything in the store; two stores with equal contents have the same."""
        return hashlib.sha256("".join(shard.sha256 for shard in self.shards).encode()).hexdigest()[:32]

    def verify(self) -> None:
        """Read every shard and compare it with its checksum.

        Raises:
            DataError: some are damaged; the message names them.
        """
        quiet = None if sum(shard.bytes for shard in self.shards) > 2**30 else True
        self._compare(range(len(self.shards)), quiet)
        for number, shard in enumerate(self.shards):
            values = self._map(number).values
            if len(values) and int(values.max()) >= self.tokenizer.codes:
                raise DataError(
                    f"code {values.max()}, but the tokenizer has {self.tokenizer.codes}", file=self.folder / shard.file
                )

    def check(self, *, fingerprint: str | None = None, vocab_size: int | None = None) -> None:
        """See whether a model can be given these tokens.

        Args:
            fingerprint: of the tokenizer that the model goes with.
            vocab_size: of the model.

        Raises:
            ModelError: the tokens are another tokenizer's, or the vocabulary is too small for them.
        """
        own = self.tokenizer
        if None not in (fingerprint, own.fingerprint) and fingerprint != own.fingerprint:
            raise ModelError(
                f"{self.folder} holds tokens of another tokenizer ({own.fingerprint}) than the model's ({fingerprint}): "
                "tokenize the pictures again with the model's"
            )
        if vocab_size is not None and vocab_size < own.codes:
            raise ModelError(f"{self.folder} holds {own.codes} codes, but the model's vocabulary has {vocab_size}")

    def describe(self) -> dict[str, Any]:
        """What identifies the store in the record of a run; JSON."""
        return {
            "sentences": len(self),
            "tokens": sum(shard.tokens for shard in self.shards),
            "types": self.record["types"],
            "tokenizer": asdict(self.tokenizer),
            "fingerprint": self.fingerprint,
        }

    def __repr__(self) -> str:
        return f"TokenStore({str(self.folder)!r}, {len(self)} sentences)"

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_mapped": {}}

    def _find(self, index: int) -> tuple[_Mapped, int]:
        place = index + len(self) if index < 0 else index
        if not 0 <= place < len(self):
            raise IndexError(f"sentence {index} of {len(self)}")
        number = bisect_right(self._starts, place) - 1
        if number in self._unchecked:
            self._compare([number], True)
        found = self._mapped.get(number)
        return found if found is not None else self._map(number), place - self._starts[number]

    def _map(self, number: int) -> _Mapped:
        if number not in self._mapped:
            shard = self.shards[number]
            self._mapped[number] = _Mapped(self.folder / shard.file, shard)
        return self._mapped[number]

    def _compare(self, numbers: Sequence[int], quiet: bool | None) -> None:
        """Shards with their checksums."""
        damaged = []
        for number in tqdm(numbers, "checksums", unit="shard", disable=quiet, leave=False):
            shard = self.shards[number]
            self._check_size(shard)
            if file_digest(self.folder / shard.file) != shard.sha256:
                damaged.append(shard.file)
        if damaged:
            raise DataError(
                f"{len(damaged)} of {len(self.shards)} shards are damaged (wrong checksum): {', '.join(damaged[:5])}",
                file=self.folder,
                remedy="copy them again, or remove the store and tokenize again",
            )
        self._unchecked.difference_update(numbers)

    def _check_size(self, shard: Shard) -> None:
        path = self.folder / shard.file
        try:
            size = path.stat().st_size
        except OSError:
            raise DataError(
                "shard is missing", file=path, remedy="copy it again, or remove the store and tokenize again"
            ) from None
        if size != shard.bytes:
            kind = "truncated" if size < shard.bytes else "of another size"
            raise DataError(
                f"shard is {kind}: {size:,} bytes, {shard.bytes:,} recorded",
                file=path,
                remedy="copy it again, or remove the store and tokenize again",
            )


class _Mapped:
    """The columns of one shard as views of the file.

    Raises:
        DataError: the file does not hold what was recorded.
    """

    def __init__(self, path: Path, shard: Shard):
        try:
            table = pa.ipc.open_stream(pa.memory_map(str(path))).read_all()
            if table.schema != SCHEMA or table.num_rows != shard.sentences or table["tokens"].num_chunks != 1:
                raise DataError("shard holds something else than recorded", file=path, remedy="see `kshot tokens`")
            lists = table["tokens"].chunk(0)
            self.values: Tokens = lists.values.to_numpy(zero_copy_only=True)
            self.offsets: NDArray[np.int32] = lists.offsets.to_numpy(zero_copy_only=True)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"shard is damaged ({error})", file=path, remedy="copy it again") from None
        if (
            (np.diff(self.offsets) < 0).any()
            or self.offsets[0] != 0
            or not self.offsets[-1] == len(self.values) == shard.tokens
        ):
            raise DataError("shard is damaged (sentences overlap)", file=path, remedy="copy it again")
        self.ids = table["id"].chunk(0)
        self._columns = [_words(table[name].chunk(0), path) for name in ("type", "roles")]

    def tokens(self, row: int) -> Tokens:
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    def words(self, row: int) -> tuple[str, str]:
        (kinds, kind), (roles, role) = self._columns
        return kinds[kind[row]], roles[role[row]]


def _words(column: Any, path: Path) -> tuple[list[str], NDArray[np.int32]]:
    words, indices = column.dictionary.to_pylist(), column.indices.to_numpy(zero_copy_only=True)
    if indices.min(initial=0) < 0 or indices.max(initial=0) >= len(words):
        raise DataError("shard is damaged (unknown type or roles)", file=path, remedy="copy it again")
    return words, indices


@lru_cache(maxsize=4096)
def _split(roles: str) -> tuple[str, ...]:
    return tuple(roles.split())


def check_same_tokenizer(stores: Sequence[TokenStore]) -> TokenizerRecord:
    """See whether stores may be mixed; returns the record of the tokenizer (one that knows its fingerprint, if any does).

    Raises:
        DataError: two of them hold tokens of different tokenizers.
        OptionError: there are none.
    """
    if not stores:
        raise OptionError("no token stores are given")
    first = next((store for store in stores if store.tokenizer.fingerprint is not None), stores[0])
    for store in stores:
        if (why := first.tokenizer.difference(store.tokenizer)) is not None:
            raise DataError(
                f"its tokens are another tokenizer's than those of {first.folder} ({why})",
                file=store.folder,
                remedy="tokenize both with the same tokenizer",
            )
    return first.tokenizer


def open_stores(stores: TokenStore | str | os.PathLike[str] | Iterable[Any]) -> tuple[TokenStore, ...]:
    """Stores of folders, opened ones, or several of either. Those of folders compare their shards with their checksums as they go, so
    that no model learns from damaged tokens."""
    several: Iterable[Any] = [stores] if isinstance(stores, (TokenStore, str, os.PathLike)) else stores
    return tuple(store if isinstance(store, TokenStore) else TokenStore(store, checksums=True) for store in several)


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
