"""The work of tokenizing in pieces that can be done anywhere, in any order, any number of times, with the same result.

There are two kinds of units, written as JSON: *digests* of the pictures of some sentences, by which repeated pictures are found;
and *tokens* of some pictures. A :class:`Bench` does them: it holds the plan and the tokenizer, and stands in the process itself, in
a worker process, or in an actor of Ray. What comes back is bytes.

Tokens of a picture must not depend on which other pictures share its unit. Convolutions may round differently in batches of another
size; so every batch has the same size, and the last one is filled up.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kshot.errors import DataError, KshotError
from kshot.picture import BytesPicture, DerivedPicture, DrawnPicture, Picture
from kshot.visual.grammar import Sentence
from kshot.visual.tokenize_parts import DIGEST, Digests

if TYPE_CHECKING:
    from kshot.visual.tokenizer import VisualTokenizer

Progress = Callable[[int], object]
REMEMBERED = 200_000
"""Pictures whose digests a bench remembers: plans of several epochs show the same ones again."""


@dataclass(frozen=True)
class Outcome:
    """What a unit gave.

    Attributes:
        data: digests (pictures x 16 bytes), or tokens (pictures x tokens, uint16).
        told: JSON: ``counts`` of pictures a sentence and the ``stamp`` of their files (digests only), ``problems`` by picture,
            ``error`` if the whole unit failed for a reason that the user has to put right.
    """

    data: bytes
    told: str

    def read(self) -> dict[str, Any]:
        """The told part.

        Raises:
            KshotError: the unit failed.
        """
        told: dict[str, Any] = json.loads(self.told)
        if "error" in told:
            raise KshotError(told["error"])
        return told


def digest_unit(start: int, stop: int) -> str:
    """A unit: the digests of the pictures of sentences ``start`` to ``stop`` - 1."""
    return json.dumps({"digests": [start, stop]})


def token_unit(places: Iterable[tuple[int, int]]) -> str:
    """A unit: the tokens of pictures, each named by a sentence and its place in it."""
    return json.dumps({"tokens": [[int(sentence), int(place)] for sentence, place in places]})


@dataclass
class Bench:
    """Where units are worked off.

    Args:
        plan: the sentences.
        tokenizer: the tokenizer, or its folder.
        precision: of the arithmetic, where a folder is given.
        device: where to compute, where a folder is given.
        batch_size: pictures in the network at a time.
        threads: that decode pictures while the network is busy with others.
        known: digests of pictures that were looked at lately.
    """

    plan: Sequence[Sentence]
    tokenizer: VisualTokenizer | str
    precision: str = "float32"
    device: str | None = None
    batch_size: int = 32
    threads: int = 1
    known: dict[Picture, bytes] = field(default_factory=dict, repr=False)

    def do(self, unit: str, progress: Progress = lambda _: None) -> Outcome:
        """Work a unit off; errors that the user has to put right are part of the outcome."""
        try:
            (kind, work), *_ = json.loads(unit).items()
            if kind == "digests":
                return self._digests(range(*work), progress)
            return self._tokens([(sentence, place) for sentence, place in work], progress)
        except KshotError as error:
            return Outcome(b"", json.dumps({"error": str(error)}))

    def _digests(self, sentences: range, progress: Progress) -> Outcome:
        found, counts, problems = bytearray(), [], {}
        stamp = stamp_of(
            self.plan, sentences
        )  # before the files are read: one that changes meanwhile will be looked at again
        for number in sentences:
            sentence = self.plan[number]
            counts.append(len(sentence.pictures))
            for picture in sentence.pictures:
                try:
                    found += self._digest(picture)
                except DataError as error:
                    problems[len(found) // DIGEST] = [picture.name, problem_of(error)]
                    found += bytes(DIGEST)
            progress(len(sentence.pictures))
        return Outcome(bytes(found), json.dumps({"counts": counts, "problems": problems, "stamp": stamp}))

    def _digest(self, picture: Picture) -> bytes:
        origin = picture.origin if isinstance(picture, DerivedPicture) else picture
        if isinstance(origin, (BytesPicture, DrawnPicture)):  # to remember them would be to keep them in memory
            return bytes.fromhex(picture.digest)
        known = self.known.get(picture)
        if known is None:
            if len(self.known) >= REMEMBERED:
                self.known.clear()
            known = self.known[picture] = bytes.fromhex(picture.digest)
        return known

    def _tokens(self, places: Sequence[tuple[int, int]], progress: Progress) -> Outcome:
        tokenizer = self.opened()
        found = np.zeros((len(places), tokenizer.tokens), np.uint16)
        problems: dict[int, str] = {}
        # Levels and values go through the network apart: a GPU scales levels by itself, and rounds otherwise.
        waiting: dict[Any, list[tuple[int, NDArray[Any]]]] = {}

        def flush(held: list[tuple[int, NDArray[Any]]]) -> None:
            found[[row for row, _ in held]] = self._encoded(tokenizer, [square for _, square in held])
            progress(len(held))
            held.clear()

        for row, square in enumerate(self._squares(places)):
            if isinstance(square, DataError):
                problems[row] = problem_of(square)
                progress(1)
                continue
            held = waiting.setdefault(square.dtype, [])
            held.append((row, square))
            if len(held) == self.batch_size:
                flush(held)
        for held in waiting.values():
            if held:
                flush(held)
        return Outcome(found.tobytes(), json.dumps({"problems": problems}))

    def _squares(self, places: Sequence[tuple[int, int]]) -> Iterator[NDArray[Any] | DataError]:
        """The pictures as the network takes them, decoded by several threads."""
        from kshot.visual.resize import squared

        tokenizer = self.opened()

        def prepare(place: tuple[int, int]) -> NDArray[Any] | DataError:
            sentence, which = place
            try:
                shown = squared(self.plan[sentence].pictures[which], tokenizer.size, tokenizer.resize)
            except DataError as error:
                return error
            return shown.transpose(2, 0, 1)

        if self.threads == 1:
            yield from map(prepare, places)
            return
        with ThreadPoolExecutor(self.threads) as pool:
            yield from pool.map(prepare, places)

    def _encoded(self, tokenizer: VisualTokenizer, squares: Sequence[NDArray[Any]]) -> NDArray[np.uint16]:
        import torch

        missing = self.batch_size - len(squares)
        pixels = torch.from_numpy(np.stack([*squares, *[squares[-1]] * missing]))
        codes = tokenizer.encode(pixels, batch_size=self.batch_size)[: len(squares)]
        return codes.numpy().astype(np.uint16)

    def opened(self) -> VisualTokenizer:
        """The tokenizer, loaded when it is first needed."""
        if isinstance(self.tokenizer, str):
            self.tokenizer = load_tokenizer(self.tokenizer, precision=self.precision, device=self.device)
        return self.tokenizer


def load_tokenizer(
    folder: str | os.PathLike[str], *, precision: str = "float32", device: str | None = None
) -> VisualTokenizer:
    """The visual tokenizer in a folder: its own, or that of a visual model.

    Raises:
        ModelError: there is none, or it is damaged.
    """
    from kshot.visual.processor import PROCESSOR, VisualSentenceProcessor
    from kshot.visual.tokenizer import VisualTokenizer

    if (Path(folder).expanduser() / PROCESSOR).is_file():
        return VisualSentenceProcessor.from_pretrained(folder, precision=precision, device=device).tokenizer
    return VisualTokenizer.from_pretrained(folder, precision=precision, device=device)


def stamp_of(plan: Sequence[Sentence], sentences: range) -> str:
    """Hash of size and times of the files that sentences show: another one if a file was changed, put right or taken away."""
    hasher = hashlib.blake2b(digest_size=16)
    seen: dict[str, bytes] = {}
    for number in sentences:
        for picture in plan[number].pictures:
            origin = picture.origin if isinstance(picture, DerivedPicture) else picture
            place = getattr(origin, "path", None) or getattr(origin, "archive", None)
            if place is None:
                continue
            known = seen.get(name := str(place))
            if known is None:
                try:
                    told = os.stat(name)
                    known = f"{told.st_size} {told.st_mtime_ns} {told.st_ctime_ns}".encode()
                except OSError:
                    known = b"gone"
                seen[name] = known
            hasher.update(known + b"\0")
    return hasher.hexdigest()


def problem_of(error: DataError) -> str:
    """What is wrong, without the file's name, which may be one of several."""
    return getattr(error, "problem", None) or str(error)


def as_digests(data: bytes) -> Digests:
    """(pictures, 16) of a unit's data."""
    return np.frombuffer(data, np.uint8).reshape(-1, DIGEST)
