"""LLaMA's vocabulary from a sentencepiece file (``tokenizer.model``), without the sentencepiece library.

Such a file is a message of protocol buffers; what is needed of it are the pieces with their scores and kinds and a few settings,
all of which sit at fixed field numbers (``sentencepiece_model.proto``).

What comes out splits texts as the sentencepiece library does when it is given each stretch between two added tokens by
itself, which is how tokenizers of transformers worked when the checkpoints were made: every stretch, not only the first, gets
a space before it, also one that begins with a space.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, normalizers, processors
from tokenizers.models import BPE

from kshot.errors import ModelError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4
"""Kinds of pieces."""
BPE_MODEL = 2
SPACE = "▁"


@dataclass(frozen=True)
class Piece:
    """An entry of the vocabulary."""

    text: str
    score: float
    kind: int


@dataclass(frozen=True)
class SentencePieceModel:
    """What is needed of a sentencepiece file.

    Attributes:
        pieces: the vocabulary; a piece's place is its id.
        bpe: whether it is byte-pair encoding.
        bos, eos, unk: ids of the special tokens, -1 for none.
        plain: whether texts are taken as they are, but for a space put before them (LLaMA).
    """

    pieces: tuple[Piece, ...]
    bpe: bool
    unk: int
    bos: int
    eos: int
    plain: bool


def read_sentencepiece(path: Path) -> SentencePieceModel:
    """Read ``tokenizer.model``.

    Raises:
        ModelError: it is no sentencepiece file.
    """
    try:
        pieces: list[Piece] = []
        trainer: dict[int, int | bytes] = {}
        normalizer: dict[int, int | bytes] = {}
        for number, value in _fields(path.read_bytes()):
            if not isinstance(value, bytes):
                continue
            if number == 1:
                held = dict(_fields(value))
                pieces.append(Piece(_text(held[1]), _float(held.get(2, b"\0\0\0\0")), _int(held.get(3, NORMAL))))
            elif number == 2:
                trainer = dict(_fields(value))
            elif number == 3:
                normalizer = dict(_fields(value))
    except (ValueError, IndexError, KeyError, struct.error) as error:
        raise ModelError(f"{path} is no sentencepiece file, or damaged: {error}") from error
    if not pieces:
        raise ModelError(f"{path} is no sentencepiece file, or damaged: it has no vocabulary")
    return SentencePieceModel(
        pieces=tuple(pieces),
        bpe=trainer.get(3, 1) == BPE_MODEL,
        unk=_int(trainer.get(40, 0)),
        bos=_int(trainer.get(41, 1)),
        eos=_int(trainer.get(42, 2)),
        # add_dummy_prefix, remove_extra_whitespaces (LLaMA: no), escape_whitespaces, no rules of replacement
        plain=normalizer.get(3, 1) == 1
        and normalizer.get(4, 1) == 0
        and normalizer.get(5, 1) == 1
        and not normalizer.get(2),
    )


def llama_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a LLaMA vocabulary, as a fast tokenizer.

    Raises:
        ModelError: no sentencepiece file, or not of LLaMA's kind.
    """
    model = read_sentencepiece(path)
    if not model.bpe or not model.plain:
        raise ModelError(
            f"{path} is not of LLaMA's kind (byte-pair encoding that leaves white space as it is); convert the tokenizer to "
            "tokenizer.json with transformers first"
        )
    ids = {piece.text: number for number, piece in enumerate(model.pieces)}
    bytes_too = "<0x00>" in ids
    unknown = model.pieces[model.unk].text if 0 <= model.unk < len(model.pieces) else None
    tokenizer = Tokenizer(
        BPE(vocab=ids, merges=_merges(model.pieces, ids), fuse_unk=True, byte_fallback=bytes_too, unk_token=unknown)
    )
    set_llama_pipeline(tokenizer)
    bos = model.pieces[model.bos].text if 0 <= model.bos < len(model.pieces) else None
    if bos is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, model.bos)]
        )
    special = [p.text for p in model.pieces if p.kind in (UNKNOWN, CONTROL)]
    own = [p.text for p in model.pieces if p.kind == USER_DEFINED]
    tokenizer.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in special])
    tokenizer.add_tokens([AddedToken(text, normalized=False, special=False) for text in own])
    return tokenizer


def set_llama_pipeline(tokenizer: Tokenizer) -> None:
    """Let a LLaMA vocabulary be used as the sentencepiece library uses it, stretch by stretch; see the module."""
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    tokenizer.pre_tokenizer = None
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1),
        ]
    )


def _merges(pieces: tuple[Piece, ...], ids: dict[str, int]) -> list[tuple[str, str]]:
    """The pairs that make up each piece, best pieces first.

    The library joins whichever neighbours make the best piece; which pair it was does not matter to it, so all pairs of a piece
    are listed.
    """
    found: list[tuple[float, int, str, str]] = []
    for number, piece in enumerate(pieces):
        if piece.kind != NORMAL:
            continue
        for cut in range(1, len(piece.text)):
            left, right = piece.text[:cut], piece.text[cut:]
            if left in ids and right in ids:
                found.append((-piece.score, number, left, right))
    found.sort(key=lambda item: (item[0], item[1]))
    return [(left, right) for _, _, left, right in found]


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of each field of a message; fixed-width and nested values as bytes."""
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, place = _varint(data, place)
            yield number, value
            continue
        if wire == 2:
            size, place = _varint(data, place)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"a field of kind {wire} at byte {place}")
        if place + size > len(data):
            raise ValueError("it ends in the middle of a field")
        yield number, data[place : place + size]
        place += size


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if not byte & 0x80:
            return (value - (1 << 64) if value >= 1 << 63 else value), place  # negative ids take ten bytes
        if shift > 63:
            raise ValueError(f"a number without end at byte {place}")


def _int(value: int | bytes) -> int:
    if isinstance(value, bytes):
        raise ValueError("text where a number should be")
    return value


def _float(value: int | bytes) -> float:
    if isinstance(value, int):
        raise ValueError("a number of another type than expected")
    return float(struct.unpack("<f", value)[0])


def _text(value: int | bytes) -> str:
    if isinstance(value, int):
        raise ValueError("a number where text should be")
    return value.decode("utf-8")
