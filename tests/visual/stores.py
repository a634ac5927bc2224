"""Small token stores for tests, whose tokens say where they come from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kshot.visual.store import StoredSentence, TokenizerRecord, TokenStore
from kshot.visual.store_writer import StoreWriter

CODES, SIZE = 1000, 4
RECORD = TokenizerRecord(CODES, SIZE, "one", "float32", "squash", 32)


def sentence(number: int, pictures: int, roles: Sequence[str] | None = None, kind: str = "pairs") -> StoredSentence:
    """A sentence of random tokens, its number first."""
    tokens = np.random.default_rng(number).integers(0, CODES, pictures * SIZE).astype(np.uint16)
    tokens[0] = number
    named = tuple(roles) if roles else tuple("xy"[place % 2] for place in range(pictures))
    return StoredSentence(tokens, f"{kind}:0:{number}", kind, named)


def make_store(
    folder: Path,
    pictures: Sequence[int],
    *,
    first: int = 0,
    record: TokenizerRecord = RECORD,
    kind: str = "pairs",
    roles: Sequence[str] | None = None,
    shard: int = 7,
) -> TokenStore:
    """A store with a sentence of so many pictures each, numbered from ``first``."""
    writer = StoreWriter(folder, record, {"test": kind}, shard_sentences=shard)
    made = (sentence(first + number, count, roles, kind) for number, count in enumerate(pictures))
    return writer.finish(writer.extend(made))
