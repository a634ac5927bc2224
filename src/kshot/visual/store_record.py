"""What a token store says of itself, and what its shards look like; see :mod:`kshot.visual.store`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from kshot.data.readers import describe_kind, read_json
from kshot.errors import DataError, OptionError
from kshot.whole_file import write_text

FORMAT = "kshot token store"
VERSION = 1
RECORD = "store.json"
SKIPPED = "skipped.jsonl"
SCHEMA = pa.schema(
    [
        pa.field("tokens", pa.list_(pa.uint16()), nullable=False),
        pa.field("id", pa.string(), nullable=False),
        pa.field("type", pa.dictionary(pa.int32(), pa.string()), nullable=False),
        pa.field("roles", pa.dictionary(pa.int32(), pa.string()), nullable=False),
    ]
)
MOST_CODES = 2**16

Tokens = NDArray[np.uint16]


@dataclass(frozen=True)
class TokenizerRecord:
    """What made the tokens, as far as it matters to those who read them.

    Attributes:
        codes: number of codes; ids are 0 to ``codes`` - 1.
        tokens_per_image: tokens of one picture.
        fingerprint: of the weights, the configuration and the way in which pictures are resized; ``None`` if nobody knows (imported).
        precision, resize, size: how pictures were put in: arithmetic, rule, pixels a side.
    """

    codes: int
    tokens_per_image: int
    fingerprint: str | None = None
    precision: str | None = None
    resize: str | None = None
    size: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.codes <= MOST_CODES:
            raise OptionError(f"a token store holds 1 to {MOST_CODES:,} codes, not {self.codes:,}")
        if self.tokens_per_image < 1:
            raise OptionError(f"{self.tokens_per_image} tokens a picture: must be 1 or more")

    @classmethod
    def of(cls, tokenizer: Any) -> TokenizerRecord:
        """The record of a :class:`~kshot.visual.tokenizer.VisualTokenizer`."""
        return cls(
            tokenizer.codes,
            tokenizer.tokens,
            tokenizer.fingerprint,
            str(tokenizer.precision),
            str(tokenizer.resize),
            tokenizer.size,
        )

    @property
    def special_ids(self) -> dict[str, int]:
        """The ids behind the codes that sentences may be given when they are read: never in the store."""
        return {"bos": self.codes, "eos": self.codes + 1, "pad": self.codes + 2}

    def difference(self, other: TokenizerRecord) -> str | None:
        """Why tokens of the two cannot stand in one sentence or model; ``None`` if they can.

        Records that do not know their fingerprint fit any with the same numbers. Another precision is no obstacle: its codes are
        those of the same codebook, nearly all of them equal.
        """
        for name in ("codes", "tokens_per_image"):
            if getattr(self, name) != getattr(other, name):
                return f"{name.replace('_', ' ')}: {getattr(self, name)} and {getattr(other, name)}"
        if None not in (self.fingerprint, other.fingerprint) and self.fingerprint != other.fingerprint:
            return f"fingerprints {self.fingerprint} and {other.fingerprint}"
        return None


@dataclass(frozen=True)
class StoredSentence:
    """A visual sentence as tokens.

    Attributes:
        tokens: (pictures * tokens a picture,) codes, read-only.
        id: unique within its store, as a rule.
        type: of the sentence: ``pairs``, ``sequence`` ...
        roles: of its pictures: ``x``, ``y``, ``frame`` ...
    """

    tokens: Tokens
    id: str
    type: str
    roles: tuple[str, ...]


@dataclass(frozen=True)
class Shard:
    """One file of a store, as ``store.json`` has it."""

    file: str
    sentences: int
    tokens: int
    bytes: int
    sha256: str


def read_record(folder: Path) -> dict[str, Any]:
    """What ``store.json`` holds.

    Raises:
        DataError: there is none, or it is none of a token store.
    """
    path = folder / RECORD
    if not folder.is_dir():
        raise DataError("no such folder", file=folder, remedy="kshot tokenize makes token stores")
    if not path.exists():
        begun = any(folder.glob("shard-*.arrow")) or (folder / "unfinished").is_dir()
        raise DataError(
            f"no {RECORD}: " + ("the store is not finished" if begun else "the folder is no token store"),
            file=folder,
            remedy="run the command that makes it again, it carries on"
            if begun
            else "kshot tokenize makes token stores",
        )
    record = read_json(path, remedy="copy it again")
    if not isinstance(record, Mapping) or record.get("format") != FORMAT:
        raise DataError("not the record of a token store", file=path)
    if record.get("version") != VERSION:
        raise DataError(
            f"format version {record.get('version')}, this program knows {VERSION}", file=path, remedy="update kshot"
        )
    for field, kind in (("tokenizer", dict), ("shards", list), ("types", dict)):
        if not isinstance(record.get(field), kind):
            raise DataError(f"{describe_kind(record.get(field))}", file=path, field=field)
    return cast(dict[str, Any], record)


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write JSON, in full or not at all."""
    write_text(path, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
