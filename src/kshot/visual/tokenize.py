"""``kshot tokenize``: pictures in folders to a token store of visual sentences.

Three steps, each of which carries on where a stopped run left it:

1. *digests*: each picture's content is hashed, so that a picture that the sentences show again (in another epoch, under another name)
   is tokenized once;
2. *tokens* of every distinct picture, in this process, in several, or on a Ray cluster;
3. *shards*: the sentences in their order, put together by this process.

What a shard holds depends on the sentences and the tokenizer alone, so one process, many and a cluster write the same bytes.
Sentences with a picture that cannot be read are left out and listed with it in ``skipped.jsonl``: nothing is put in its place.
"""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from kshot.data.sources import write_text
from kshot.errors import ContextTooLong, DataError, OptionError
from kshot.visual.grammar import Sentence, sentences_of
from kshot.visual.store import StoredSentence, TokenizerRecord, TokenStore
from kshot.visual.store_writer import SHARD_SENTENCES, StoreWriter
from kshot.visual.tokenize_parts import DIGEST, Digests, TokenParts, group, write_part
from kshot.visual.tokenize_units import Bench, Outcome, as_digests, digest_unit, load_tokenizer, token_unit
from kshot.visual.tokenize_workers import (
    Outcomes,
    usual_threads,
    work_here,
    work_in_processes,
    work_on_ray,
)

if TYPE_CHECKING:
    from rich.text import Text

    from kshot.visual.tokenizer import VisualTokenizer

DIGEST_PICTURES = 4096
"""Pictures of a unit of digests, about."""
MOST_PICTURES = 512
"""Pictures of a unit of tokens, at most: what a worker that dies loses."""


@dataclass(frozen=True)
class Tokenized:
    """What ``kshot tokenize`` has done.

    Attributes:
        store: the finished store.
        pictures: places for pictures in all sentences.
        distinct: different pictures in them.
        tokenized: pictures that went through the network in this run; the others were tokenized before.
        seconds: that this took.
        skipped: lines of ``skipped.jsonl``: pictures and sources that could not be used.
        left_out: sentences that are not in the store because of them.
    """

    store: TokenStore
    pictures: int
    distinct: int
    tokenized: int
    seconds: float
    skipped: int
    left_out: int

    def __str__(self) -> str:
        record = self.store.record
        types = ", ".join(f"{count:,} {name}" for name, count in record["types"].items())
        lines = [
            f"token store: {self.store.folder}",
            f"{len(self.store):>12,}  sentences ({types}) in {len(self.store.shards)} shards",
            f"{record['tokens']:>12,}  tokens",
            f"{self.distinct:>12,}  distinct pictures in {self.pictures:,} places",
        ]
        speed = f", {self.tokenized / self.seconds:,.1f} images/s" if self.tokenized and self.seconds > 0 else ""
        lines.append(f"{self.tokenized:>12,}  tokenized in this run{speed}")
        listed = f": see {self.store.folder / 'skipped.jsonl'}" if self.skipped else ""
        lines.append(f"{self.skipped:>12,}  pictures and sources skipped{listed}")
        if self.left_out:
            lines.append(f"{self.left_out:>12,}  sentences left out for them")
        return "\n".join(lines)

    def __rich__(self) -> Text:
        from rich.text import Text

        return Text(str(self))


def tokenize(
    sentences: str | None = None,
    *,
    tokenizer: str,
    out: str,
    sentences_options: dict[str, Any] | None = None,
    mix: list[dict[str, Any]] | None = None,
    precision: str = "float32",
    device: str | None = None,
    context: int | None = None,
    batch_size: int = 32,
    workers: int = 1,
    threads: int | None = None,
    ray: str | None = None,
    cache: str | None = None,
    shard_sentences: int = SHARD_SENTENCES,
) -> Tokenized:
    """Tokenize folders of pictures as visual sentences.

    ``kshot tokenize --sentences pairs --x photos --y masks --tokenizer vq --out store``. The same command again carries on where it
    was stopped.

    Args:
        sentences: type of the sentences: pairs, images, colorization, inpainting, frames ...; its options are given like any other.
        tokenizer: folder of the visual tokenizer, or of a visual model.
        out: folder of the token store.
        sentences_options: options of the sentences: folders, shots, epochs, seed ...
        mix: in place of the type, several descriptions of sentences (with --config), which are written one after the other.
        precision: float32, tf32 or bfloat16 (convolutions in bfloat16); kept in the store.
        device: where to compute. Default: GPUs if there are any.
        context: tokens that a sentence may have; longer ones are an error here and not in training.
        batch_size: pictures in the network at a time.
        workers: processes; on a Ray cluster, actors.
        threads: that decode pictures, in each worker. Default: as the machine has.
        ray: work on a Ray cluster: auto for that of this machine, local for a new one, or an address.
        cache: folder that keeps the tokens of pictures for other runs with the same tokenizer. Default: kept only until the store is
            finished.
        shard_sentences: sentences a file.

    Raises:
        DataError: folders without pictures, names that do not match, no picture that can be used.
        OptionError: options that do not go together; a folder that holds something else.
        ModelError: no such tokenizer.
    """
    if (sentences is None) == (not mix):
        raise OptionError(
            "give either --sentences, a type of sentences, or mix: several descriptions in a --config file"
        )
    if mix and sentences_options:
        raise OptionError(f"--{next(iter(sentences_options))}: with mix, options stand in each description")
    described = mix if mix else [{"type": sentences, **(sentences_options or {})}]
    plans = [sentences_of(description) for description in described]
    return tokenize_sentences(
        plans,
        tokenizer,
        out,
        precision=precision,
        device=device,
        context=context,
        batch_size=batch_size,
        workers=workers,
        threads=threads,
        ray=ray,
        cache=cache,
        shard_sentences=shard_sentences,
    )


def tokenize_sentences(
    plans: Sequence[Sequence[Sentence]],
    tokenizer: VisualTokenizer | str | Path,
    out: str | Path,
    *,
    precision: str = "float32",
    device: str | None = None,
    context: int | None = None,
    batch_size: int = 32,
    workers: int = 1,
    threads: int | None = None,
    ray: str | None = None,
    cache: str | None = None,
    shard_sentences: int = SHARD_SENTENCES,
) -> Tokenized:
    """As :func:`tokenize`, of sentences in Python.

    Args:
        plans: sequences of sentences: those of :mod:`kshot.visual.grammar`, or any other that gives the same ones each time it is
            asked. What determines them is taken from their ``describe()``, if they have it.
        tokenizer: the tokenizer or its folder.
        out, precision, device, context, batch_size, workers, threads, ray, cache, shard_sentences: see :func:`tokenize`; precision and
            device are the tokenizer's own if it is given itself.
    """
    if workers < 1 or batch_size < 1 or (threads is not None and threads < 1):
        raise OptionError(f"workers={workers}, batch_size={batch_size}, threads={threads}: each is at least 1")
    plan = Joined(plans)
    opened = tokenizer
    if isinstance(opened, (str, Path)):
        opened = load_tokenizer(opened, precision=precision, device=_device(device))
    record = TokenizerRecord.of(opened)
    for one in plans:
        _check_context(one, record, context)
    writer = StoreWriter(out, record, plan.describe(), shard_sentences=shard_sentences)
    if writer.complete:
        told = TokenStore(writer.folder).record
        return Tokenized(
            TokenStore(writer.folder),
            told["pictures"],
            told["distinct_pictures"],
            0,
            0.0,
            told["skipped"],
            told["sentences_left_out"],
        )
    alone = workers == 1 and ray is None
    if alone:
        placed: VisualTokenizer | str = opened
    elif isinstance(tokenizer, (str, Path)):
        placed = str(Path(tokenizer).expanduser().absolute())
    else:
        placed = str((writer.unfinished / "tokenizer").absolute())
        opened.save_pretrained(placed)
    bench = Bench(
        plan,
        placed,
        opened.precision,
        opened.device.type,
        batch_size,
        usual_threads(workers) if threads is None else threads,
    )
    return _Run(plan, writer, bench, workers, ray, _parts_folder(writer, cache)).run(opened.device.type)


class Joined(Sequence[Sentence]):
    """Plans one behind the other. Where two are of the same type, ids get the number of the plan, so that they differ."""

    def __init__(self, plans: Sequence[Sequence[Sentence]]):
        self.plans = list(plans)
        types = [getattr(plan, "type", None) or plan[0].type for plan in self.plans if len(plan)]
        self._numbered = len(set(types)) < len(types)
        self._ends = np.cumsum([len(plan) for plan in self.plans]).tolist()
        if not self._ends or not self._ends[-1]:
            raise OptionError("no sentences are given")

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(f"sentence {index} of {len(self)}")
        number = int(np.searchsorted(self._ends, index, side="right"))
        found = self.plans[number][index - (self._ends[number - 1] if number else 0)]
        if not self._numbered:
            return found
        return Sentence(f"{number}/{found.id}", found.type, found.pictures, found.roles, found.sources)

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """Sources that the plans do not use, and why."""
        return [entry for plan in self.plans for entry in getattr(plan, "skipped", ())]

    def describe(self) -> list[dict[str, Any]]:
        """What determines the sentences; JSON."""
        found = []
        for plan in self.plans:
            describe = getattr(plan, "describe", None)
            told = dict(describe()) if describe is not None else {"sentences": len(plan)}
            if (records := getattr(plan, "records", None)) is not None:
                ids = "\0".join(record.id for record in records)
                told["records_digest"] = hashlib.blake2b(ids.encode(), digest_size=16).hexdigest()
            found.append(told)
        return found


@dataclass
class _Run:
    """The three steps."""

    plan: Joined
    writer: StoreWriter
    bench: Bench
    workers: int
    ray: str | None
    parts_folder: Path
    _problems: dict[int, tuple[str, str]] = field(default_factory=dict)
    """Name and problem of pictures that could not even be read, by their place among all."""

    def run(self, device: str) -> Tokenized:
        counts, digests = self._digested()
        ends = np.cumsum(counts)
        readable = np.ones(len(digests), bool)
        readable[list(self._problems)] = False
        places = np.flatnonzero(readable)
        groups, firsts = group(digests[places])
        distinct = digests[places[firsts]]
        begun = time.monotonic()
        tokenized = self._tokenized(distinct, places[firsts], ends)
        seconds = time.monotonic() - begun
        parts = TokenParts(self.parts_folder, self.writer.tokenizer.tokens_per_image)
        rows_of_groups = _rows(parts.digests, distinct)
        rows = np.full(len(digests), -1)
        rows[places] = rows_of_groups[groups]
        bad = np.array([row for row in parts.problems if row >= 0], np.int64)
        usable = (rows >= 0) & ~np.isin(rows, bad)
        whole = np.logical_and.reduceat(usable, ends - counts)
        self._write(parts, rows, ends, whole)
        shards = -(-len(self.plan) // self.writer.shard_sentences)
        skipped = self._skipped(parts, rows, usable, ends)
        left_out = int((~whole).sum())
        store = self.writer.finish(
            shards,
            skipped=skipped,
            pictures=len(digests),
            distinct_pictures=len(distinct),
            sentences_left_out=left_out,
            device=device,
        )
        return Tokenized(store, len(digests), len(distinct), tokenized, seconds, len(skipped), left_out)

    def _digested(self) -> tuple[NDArray[np.int64], Digests]:
        """The number of pictures of each sentence, and (pictures, 16) the digests of all of them, in the plan's order."""
        size = max(1, DIGEST_PICTURES // max(1, len(self.plan[0].pictures)))
        starts = range(0, len(self.plan), size)
        folder = self.writer.unfinished
        files = [folder / f"digests-{number:06d}.json" for number in range(len(starts))]
        held = {number: found for number, path in enumerate(files) if (found := _read_digests(path)) is not None}
        units = {
            number: digest_unit(start, min(start + size, len(self.plan)))
            for number, start in enumerate(starts)
            if number not in held
        }
        total = sum(min(size, len(self.plan) - starts[number]) for number in units) * len(self.plan[0].pictures)
        for number, outcome in self._work(units, "reading pictures", total):
            told = outcome.read()
            told["digests"] = base64.b64encode(outcome.data).decode()
            write_text(files[number], json.dumps(told))
            held[number] = told
        counts: list[int] = []
        data = bytearray()
        for number in range(len(starts)):
            before = len(data) // DIGEST
            told = held[number]
            counts += told["counts"]
            data += base64.b64decode(told["digests"])
            for place, (name, problem) in told["problems"].items():
                self._problems[before + int(place)] = (name, problem)
        if 0 in counts:
            raise DataError(f"sentence {self.plan[counts.index(0)].id!r} has no pictures")
        return np.array(counts), as_digests(bytes(data))

    def _tokenized(self, distinct: Digests, firsts: NDArray[np.int64], ends: NDArray[np.int64]) -> int:
        """Tokenize the distinct pictures that are not in any part; returns their number."""
        width = self.writer.tokenizer.tokens_per_image
        rows = _rows(TokenParts(self.parts_folder, width).digests, distinct)
        missing = np.flatnonzero(rows < 0)
        size = self._unit_size(len(missing))
        units, members = {}, {}
        for number, start in enumerate(range(0, len(missing), size)):
            members[number] = missing[start : start + size]
            sentence = np.searchsorted(ends, firsts[members[number]], side="right")
            begins = np.where(sentence > 0, ends[sentence - 1], 0)
            units[number] = token_unit(zip(sentence, firsts[members[number]] - begins, strict=True))
        for number, outcome in self._work(units, "tokenizing", len(missing)):
            told = outcome.read()
            tokens = np.frombuffer(outcome.data, np.uint16).reshape(-1, width)
            problems = {int(row): str(problem) for row, problem in told["problems"].items()}
            write_part(self.parts_folder, distinct[members[number]], tokens, problems)
        return len(missing)

    def _unit_size(self, pictures: int) -> int:
        """Some units for every worker, each of whole batches."""
        batch = self.bench.batch_size
        fair = -(-pictures // (4 * self.workers))
        return batch * max(1, min(fair, max(MOST_PICTURES, batch)) // batch)

    def _work(self, units: Mapping[int, str], what: str, pictures: int) -> Iterator[tuple[int, Outcome]]:
        if not units:
            return
        with tqdm(total=pictures, desc=what, unit="image", disable=None) as bar:
            outcomes: Outcomes
            if self.ray is not None:
                outcomes = work_on_ray(units, self.bench, bar.update, self.workers, self.ray)
            elif self.workers > 1:
                outcomes = work_in_processes(units, self.bench, bar.update, self.workers)
            else:
                outcomes = work_here(units, self.bench, bar.update)
            yield from outcomes

    def _write(
        self, parts: TokenParts, rows: NDArray[np.int64], ends: NDArray[np.int64], whole: NDArray[np.bool_]
    ) -> None:
        size = self.writer.shard_sentences
        missing = [n for n in range(-(-len(self.plan) // size)) if not self.writer.has(n)]
        for number in tqdm(missing, "writing", unit="shard", disable=None, leave=False):
            self.writer.write(number, self._sentences(parts, rows, ends, whole, number * size, size))

    def _sentences(
        self,
        parts: TokenParts,
        rows: NDArray[np.int64],
        ends: NDArray[np.int64],
        whole: NDArray[np.bool_],
        start: int,
        size: int,
    ) -> Iterator[StoredSentence]:
        for number in range(start, min(start + size, len(self.plan))):
            if whole[number]:
                sentence = self.plan[number]
                own = rows[ends[number - 1] if number else 0 : ends[number]]
                tokens = np.concatenate([parts.tokens(int(row)) for row in own])
                yield StoredSentence(tokens, sentence.id, sentence.type, sentence.roles)

    def _skipped(
        self, parts: TokenParts, rows: NDArray[np.int64], usable: NDArray[np.bool_], ends: NDArray[np.int64]
    ) -> list[dict[str, Any]]:
        """The lines of ``skipped.jsonl``: sources that the plan leaves out, then pictures, in the plan's order."""
        lines: list[dict[str, Any]] = [{"source": name, "problem": problem} for name, problem in self.plan.skipped]
        pictures: dict[str, dict[str, Any]] = {}
        for place in np.flatnonzero(~usable).tolist():
            number = int(np.searchsorted(ends, place, side="right"))
            sentence = self.plan[number]
            which = place - (int(ends[number - 1]) if number else 0)
            name = sentence.pictures[which].name
            problem = self._problems[place][1] if place in self._problems else parts.problems[int(rows[place])]
            line = pictures.setdefault(name, {"picture": name, "problem": problem, "sentences": []})
            if sentence.id not in line["sentences"]:
                line["sentences"].append(sentence.id)
        return lines + list(pictures.values())


def _rows(known: Digests, wanted: Digests) -> NDArray[np.int64]:
    """(wanted,) the row of each digest among the known ones, -1 where it is not there."""
    groups, firsts = group(np.concatenate([known, wanted]))
    found = firsts[groups[len(known) :]]
    return np.where(found < len(known), found, -1)


def _read_digests(path: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found


def _parts_folder(writer: StoreWriter, cache: str | None) -> Path:
    if cache is None:
        return writer.unfinished / "tokens"
    record = writer.tokenizer
    return Path(cache).expanduser() / "tokens" / f"{record.fingerprint}-{record.precision}"


def _check_context(plan: Sequence[Sentence], record: TokenizerRecord, context: int | None) -> None:
    if context is None:
        return
    fits = getattr(plan, "fits", None)
    if fits is not None:
        fits(context, record.tokens_per_image)
        return
    size = len(plan[0].pictures) * record.tokens_per_image
    if size > context:
        raise ContextTooLong(f"sentence {plan[0].id!r} has {size} tokens, more than the context of {context}")


def _device(device: str | None) -> str:
    if device is not None:
        return device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
