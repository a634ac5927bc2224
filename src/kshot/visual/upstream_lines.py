"""Upstream's token files: JSON lines ``{"tokens": "<base64 of little-endian int32>"}``, to token stores and back.

A line is a sentence: codes and nothing else, no name, no shape, no tokenizer. Who imports such a file has to know what made it.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from kshot.errors import CannotWrite, DataError, OptionError, listed
from kshot.visual.store import StoredSentence, TokenizerRecord, TokenStore
from kshot.visual.store_writer import SHARD_SENTENCES, StoreWriter

LVM_CODES, LVM_TOKENS = 8192, 256
FIELD = "tokens"
REMEDY = 'a line must be {"tokens": "<base64 of little-endian int32>"}'


def encode_line(tokens: Iterable[int] | NDArray[Any]) -> str:
    """A sentence as upstream's programs write it, without the line break."""
    values = np.asarray(tokens if isinstance(tokens, np.ndarray) else list(tokens)).astype("<i4")
    return json.dumps({FIELD: base64.b64encode(values.tobytes()).decode("ascii")})


def decode_line(
    line: str | bytes, file: str | os.PathLike[str] | None = None, number: int | None = None
) -> NDArray[np.int32]:
    """The tokens of a line.

    Args:
        line: the line.
        file, number: where it stands, for messages.

    Raises:
        DataError: it is no such line.
    """

    def wrong(problem: str, field: str | None = None) -> DataError:
        return DataError(problem, file=file, line=number, field=field, remedy=REMEDY)

    try:
        record = json.loads(line)
    except ValueError as error:
        raise wrong(f"not valid JSON ({error})") from None
    if not isinstance(record, dict) or FIELD not in record:
        raise wrong("no field 'tokens'" if isinstance(record, dict) else "not a JSON object")
    if not isinstance(record[FIELD], str):
        raise wrong("not a text in base64", FIELD)
    try:
        data = base64.b64decode(record[FIELD], validate=True)
    except (binascii.Error, ValueError) as error:
        raise wrong(f"not base64 ({error})", FIELD) from None
    if len(data) % 4:
        raise wrong(f"{len(data)} bytes are no whole number of int32 values", FIELD)
    return np.frombuffer(data, "<i4")


def read_lines(file: str | os.PathLike[str]) -> Iterator[tuple[int, bytes]]:
    """The lines of a file with their numbers, counted from 1; empty ones are left out, as upstream does.

    Raises:
        DataError: the file is missing.
    """
    try:
        with open(file, "rb") as stream:
            for number, line in enumerate(stream, 1):
                if line.strip():
                    yield number, line
    except OSError as error:
        raise DataError(f"file cannot be read: {error.strerror}", file=file) from None


def import_lines(
    source: str | os.PathLike[str],
    *,
    out: str,
    tokenizer: str | None = None,
    codes: int = LVM_CODES,
    tokens_per_image: int = LVM_TOKENS,
    type: str = "imported",
    roles: str = "image",
    on_bad: Literal["error", "list"] = "error",
    shard_sentences: int = SHARD_SENTENCES,
) -> Path:
    """A token store of upstream's JSON lines; carries on where it was stopped.

    Args:
        source: a file, or a folder of .jsonl files, which are read one after the other by name.
        out: folder of the store.
        tokenizer: folder of the tokenizer that made the tokens. Without it the store does not know its tokenizer, and only the
            numbers of codes and tokens guard it against being mixed with others.
        codes: size of the tokenizer's codebook, where its folder is not given. Default: the LVM's.
        tokens_per_image: tokens of a picture, likewise.
        type: of the sentences.
        roles: of the pictures, separated by commas, repeated as often as it takes: x,y for pairs.
        on_bad: whether a line that cannot be read is an error, or is listed in skipped.jsonl and left out.
        shard_sentences: sentences a shard.

    Raises:
        DataError: a line that is damaged, is no whole number of pictures or holds other numbers than codes; names file and line.
        OptionError: options that cannot be used.
    """
    if on_bad not in ("error", "list"):
        raise OptionError(f"on_bad={on_bad!r}: must be 'error' or 'list'")
    named = roles.split(",")
    if any(role.split() != [role] for role in named):
        raise OptionError(f"roles={roles!r}: words separated by commas, without blanks")
    files = _files(Path(source))
    record = TokenizerRecord(codes, tokens_per_image) if tokenizer is None else _record_of(tokenizer)
    plan = {
        "source": "JSON lines",
        "files": [{"name": file.name, "bytes": file.stat().st_size} for file in files],
        "type": type,
        "roles": named,
        "on_bad": on_bad,
    }
    with StoreWriter(out, record, plan, shard_sentences=shard_sentences) as writer:
        if writer.complete:
            return writer.folder
        skipped: list[dict[str, Any]] = []
        sentences = _sentences(files, record, type, named, skipped if on_bad == "list" else None)
        shards = writer.extend(sentences)
        if not shards:
            raise DataError("no lines with tokens" + (f": {skipped[0]['problem']}" if skipped else ""), file=source)
        return writer.finish(shards, skipped=skipped).folder


def export_lines(source: str | os.PathLike[str], *, out: str) -> Path:
    """A token store as a file of JSON lines, byte for byte as upstream's programs write it.

    Args:
        source: folder of the store.
        out: the file.

    Raises:
        DataError: there is no whole store in the folder.
        CannotWrite: no space, no permission, or something is there.
    """
    store, target = TokenStore(source), Path(out)
    if target.exists():
        raise CannotWrite(target, "it exists", "choose another --out, or remove it")
    with _new_file(target) as file:
        for number in tqdm(range(len(store)), "lines", unit="sentence", disable=None, leave=False):
            file.write(encode_line(store.tokens(number)) + "\n")
    return target


def _sentences(
    files: Sequence[Path],
    tokenizer: TokenizerRecord,
    kind: str,
    roles: Sequence[str],
    skipped: list[dict[str, Any]] | None,
) -> Iterator[StoredSentence]:
    for file in files:
        prefix = "" if len(files) == 1 else f"{file.name}:"
        for number, line in tqdm(read_lines(file), file.name, unit="line", disable=None, leave=False):
            try:
                tokens = decode_line(line, file, number)
                check_tokens(tokens, tokenizer, file, number)
            except DataError as error:
                if skipped is None:
                    raise
                skipped.append({"file": file.name, "line": number, "problem": str(error)})
                continue
            pictures = len(tokens) // tokenizer.tokens_per_image
            named = tuple(roles[place % len(roles)] for place in range(pictures))
            yield StoredSentence(tokens.astype(np.uint16), f"{prefix}{number}", kind, named)


def check_tokens(
    tokens: NDArray[np.int32], tokenizer: TokenizerRecord, file: str | os.PathLike[str], line: int
) -> None:
    """See whether a line is whole pictures of a tokenizer's codes.

    Raises:
        DataError: it is not.
    """
    size = tokenizer.tokens_per_image
    if not len(tokens) or len(tokens) % size:
        raise DataError(
            f"{len(tokens)} tokens are no whole number of pictures of {size} tokens", file=file, line=line, field=FIELD
        )
    wrong = tokens[(tokens < 0) | (tokens >= tokenizer.codes)]
    if len(wrong):
        raise DataError(
            f"code {wrong[0]}, but the tokenizer has {tokenizer.codes} (0 to {tokenizer.codes - 1})",
            file=file,
            line=line,
            field=FIELD,
            remedy="are they another tokenizer's, or do they hold BOS and EOS?",
        )


def _files(source: Path) -> list[Path]:
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise DataError("no such file or folder", file=source)
    found = sorted(source.glob("*.jsonl"))
    if not found:
        raise DataError(f"no .jsonl files in it, only {listed(sorted(p.name for p in source.iterdir()))}", file=source)
    return found


def _record_of(folder: str) -> TokenizerRecord:
    from kshot.visual.tokenize_units import load_tokenizer

    return TokenizerRecord.of(load_tokenizer(folder))


@contextmanager
def _new_file(target: Path) -> Iterator[IO[str]]:
    """A text file that gets its name when all is in it."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="ascii", newline="\n") as file:
            yield file
        os.replace(temporary, target)
    except OSError as error:
        raise CannotWrite(target, str(error.strerror or error), "choose another --out") from None
    finally:
        temporary.unlink(missing_ok=True)
