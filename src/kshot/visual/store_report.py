"""``kshot tokens``: what a token store holds, in words."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from kshot.visual.store import TokenStore
from kshot.visual.store_record import SKIPPED

if TYPE_CHECKING:
    from rich.text import Text


def describe_store(store: str, *, verify: bool = False) -> str:
    """What a token store holds.

    Args:
        store: its folder.
        verify: read every shard and compare it with its checksum.

    Raises:
        DataError: there is no finished store in the folder, or it is damaged.
    """
    opened = TokenStore(store)
    record, tokenizer = opened.record, opened.tokenizer
    size = sum(shard.bytes for shard in opened.shards)
    made_by = f"tokenizer {tokenizer.fingerprint}" if tokenizer.fingerprint else "an unknown tokenizer"
    how = ", ".join(
        f"{value}{unit}"
        for value, unit in ((tokenizer.size, " pixels a side"), (tokenizer.resize, ""), (tokenizer.precision, ""))
        if value is not None
    )
    lines = [
        f"token store: {opened.folder}",
        f"{len(opened):>16,}  sentences: {', '.join(f'{count:,} {name}' for name, count in record['types'].items())}",
        f"{record['tokens']:>16,}  tokens of {made_by}{f' ({how})' if how else ''}",
        f"{tokenizer.codes:>16,}  codes, {tokenizer.tokens_per_image} tokens a picture",
        f"{size:>16,}  bytes in {len(opened.shards)} shards, {size / record['tokens']:.3f} a token",
    ]
    if record.get("skipped"):
        lines.append(f"{record['skipped']:>16,}  pictures, sources or lines skipped: see {opened.folder / SKIPPED}")
    if verify:
        opened.verify()
        lines.append("all checksums are right")
    return "\n".join(lines)


def describe_folder(folder: Path) -> str:
    """The same of a store that was just imported."""
    return describe_store(str(folder))


def describe_file(file: Path) -> str:
    """A file of token lines that was just written."""
    return f"token lines: {file} ({file.stat().st_size:,} bytes)"


def as_text(told: str) -> Text:
    """For the terminal, where brackets in a path are no markup."""
    from rich.text import Text

    return Text(told)
