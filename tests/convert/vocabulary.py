"""A small vocabulary of LLaMA's kind, as a sentencepiece file, and what the sentencepiece library does with it.

The file is written, and texts are split, by the rules of sentencepiece's own documentation and not by the code under test.
"""

from __future__ import annotations

import struct
from itertools import pairwise
from pathlib import Path

WORDS = """
    ▁U ▁US ER ▁USER : ▁A ▁AS ▁ASS ▁W ▁Wh ▁What ▁i ▁is ▁in ▁th ▁the ▁im ▁ima age ▁image ag re ▁re d ▁red in an
    ▁an ▁a sw er ▁l ▁li ke ▁like ? ▁? . ▁▁ ▁▁▁▁ th he is at ▁sto ne ▁stone ▁air st on one
""".split()  # noqa: SIM905
LETTERS = sorted(
    {letter for word in WORDS for letter in word} | set("abcdefghijklmnopqrstuvwxyz?.!:\"'[]TSIN\n") | {"▁"}
)
Piece = tuple[str, float, int]
PIECES: list[Piece] = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]
PIECES += [(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)]
PIECES += [(word, -float(rank), 1) for rank, word in enumerate(w for w in WORDS if len(w) > 1)]
PIECES += [(letter, -1000.0 - rank, 1) for rank, letter in enumerate(LETTERS)]


def write_sentencepiece(path: Path, pieces: list[Piece] = PIECES, *, kind: int = 2, keep_spaces: bool = True) -> None:
    """``tokenizer.model`` with these pieces; ``kind`` 2 is byte-pair encoding."""
    data = b""
    for text, score, sort in pieces:
        piece = _bytes(1, text.encode()) + b"\x15" + struct.pack("<f", score) + _number(3, sort)
        data += _bytes(1, piece)
    data += _bytes(
        2, _number(3, kind) + _number(35, 1) + _number(40, 0) + _number(41, 1) + _number(42, 2) + _number(43, -1)
    )
    data += _bytes(3, _bytes(1, b"identity") + _number(3, 1) + _number(4, 0 if keep_spaces else 1) + _number(5, 1))
    path.write_bytes(data)


def split(text: str) -> list[int]:
    """Ids of a stretch of text: a space in front, then the best pair of neighbours is joined until there is none."""
    ids = {piece: number for number, (piece, _, _) in enumerate(PIECES)}
    scores = {piece: score for piece, score, kind in PIECES if kind == 1}
    parts = list("▁" + text.replace(" ", "▁"))
    while True:
        pairs = [(scores[a + b], -i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in scores]
        if not pairs:
            break
        place = -max(pairs)[1]
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
    return [n for p in parts for n in ([ids[p]] if p in ids else [ids[f"<0x{b:02X}>"] for b in p.encode()])]


def slow_ids(text: str, marks: dict[str, int]) -> list[int]:
    """Ids as the slow LLaMA tokenizer of transformers 4.29 gives them, the first ``<s>`` left out.

    Added tokens lose the white space around them, ``<s>`` and ``</s>`` do not; each stretch between them is split by itself.
    """
    special = {"<s>": 1, "</s>": 2} | marks
    stretches: list[str] = [text]
    for mark in special:
        stretches = [
            piece
            for stretch in stretches
            for number, part in enumerate([stretch] if stretch in special else stretch.split(mark))
            for piece in ([mark, part] if number else [part])
        ]
    ids: list[int] = []
    for number, stretch in enumerate(stretches):
        if stretch in special:
            ids.append(special[stretch])
            continue
        if number and stretches[number - 1] in marks:
            stretch = stretch.lstrip()
        if number + 1 < len(stretches) and stretches[number + 1] in marks:
            stretch = stretch.rstrip()
        ids += split(stretch) if stretch else []
    return ids


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value % (1 << 64))


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    data = bytearray()
    while value > 0x7F:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*data, value])
