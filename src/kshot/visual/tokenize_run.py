"""The steps of tokenizing; see :mod:`kshot.visual.tokenize`.

Where pictures turn out to be bad, the sentences are laid out anew without the records that they belong to, so that the good
pictures beside them are not lost; then the steps are taken again, which tokenizes only what is new. Plans that know no records lose
the sentence.

What was bad is not kept from run to run: the files may have been put right since, so they are looked at again.
"""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from kshot.errors import DataError
from kshot.visual.store import StoredSentence, TokenStore
from kshot.visual.store_writer import StoreWriter
from kshot.visual.tokenize_layout import Layout, sentence_of
from kshot.visual.tokenize_parts import DIGEST, Digests, TokenParts, group, write_part
from kshot.visual.tokenize_plans import Joined
from kshot.visual.tokenize_units import Bench, Outcome, as_digests, digest_unit, stamp_of, token_unit
from kshot.visual.tokenize_workers import Outcomes, work_here, work_in_processes, work_on_ray
from kshot.whole_file import write_text

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
        left_out: sentences that are missing in the store because of them.
    """

    store: TokenStore
    pictures: int
    distinct: int
    tokenized: int
    seconds: float
    skipped: int
    left_out: int

    @classmethod
    def before(cls, store: TokenStore) -> Tokenized:
        """Of a store that was complete already."""
        told = store.record
        return cls(
            store, told["pictures"], told["distinct_pictures"], 0, 0.0, told["skipped"], told["sentences_left_out"]
        )

    def __str__(self) -> str:
        record = self.store.record
        types = ", ".join(f"{count:,} {name}" for name, count in record["types"].items())
        speed = f", {self.tokenized / self.seconds:,.1f} images/s" if self.tokenized and self.seconds > 0 else ""
        listed = f": see {self.store.folder / 'skipped.jsonl'}" if self.skipped else ""
        lines = [
            f"token store: {self.store.folder}",
            f"{len(self.store):>12,}  sentences ({types}) in {len(self.store.shards)} shards",
            f"{record['tokens']:>12,}  tokens",
            f"{self.distinct:>12,}  distinct pictures in {self.pictures:,} places",
            f"{self.tokenized:>12,}  tokenized in this run{speed}",
            f"{self.skipped:>12,}  pictures and sources skipped{listed}",
        ]
        if self.left_out:
            lines.append(f"{self.left_out:>12,}  sentences fewer for them")
        return "\n".join(lines)

    def __rich__(self) -> Any:
        from rich.text import Text

        return Text(str(self))


@dataclass
class Run:
    """The steps.

    Args:
        plan: the sentences.
        writer: of the store.
        bench: where units are worked off: here, or a copy of it elsewhere.
        workers: processes or actors.
        ray: address of a cluster.
        parts: folder of the tokens of pictures.
    """

    plan: Joined
    writer: StoreWriter
    bench: Bench
    workers: int
    ray: str | None
    parts: Path
    tokenized: int = 0
    seconds: float = 0.0
    _bad: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Lines about bad pictures whose records were left out."""
    _undecodable: dict[bytes, str] = field(default_factory=dict)
    """Problems of pictures that this run could not decode, by digest."""
    _without: list[tuple[int, str]] = field(default_factory=list)
    """The records that were left out."""

    def run(self, device: str) -> Tokenized:
        """Take all steps that are not yet taken.

        Raises:
            DataError: nothing is left.
        """
        sources, wanted = self.plan.skipped, len(self.plan)
        for _ in range(len(self.plan) + 1):
            layout = self._laid_out()
            if not self._leave_out(layout):
                break
        self.writer.begun.laid_out(f"{layout.fingerprint}-{self._left}")
        self._write(layout)
        skipped = [{"source": name, "problem": problem} for name, problem in sources]
        skipped += [*self._bad.values(), *self._left_out(layout)]
        kept = int(layout.whole.sum())
        store = self.writer.finish(
            -(-len(self.plan) // self.writer.shard_sentences),
            skipped=skipped,
            pictures=len(layout.rows),
            distinct_pictures=layout.distinct,
            sentences_left_out=wanted - kept,
            device=device,
        )
        return Tokenized(
            store, len(layout.rows), layout.distinct, self.tokenized, self.seconds, len(skipped), wanted - kept
        )

    @property
    def _left(self) -> str:
        """A name for the plan as it is now: which records are left out of it."""
        return hashlib.blake2b(json.dumps(sorted(self._without)).encode(), digest_size=8).hexdigest()

    def _laid_out(self) -> Layout:
        counts, digests, problems = self._digested()
        ends = np.cumsum(counts)
        readable = np.ones(len(digests), bool)
        readable[list(problems)] = False
        places = np.flatnonzero(readable)
        groups, firsts = group(digests[places])
        distinct = digests[places[firsts]]
        begun = time.monotonic()
        self.tokenized += self._tokenize(distinct, places[firsts], ends)
        self.seconds += time.monotonic() - begun
        parts = TokenParts(self.parts, self.writer.tokenizer.tokens_per_image)
        rows = np.full(len(digests), -1)
        rows[places] = _rows(parts.digests, distinct)[groups]
        for place in places[rows[places] < 0].tolist():
            problems[place] = self._undecodable[digests[place].tobytes()]
        return Layout(ends, rows, parts, problems, len(distinct))

    def _leave_out(self, layout: Layout) -> bool:
        """Lay the plan out without the records of bad pictures; whether there were any."""
        records: dict[tuple[int, str], str] = {}
        for sentence, place, problem in layout.bad():
            record = self.plan.record_of(sentence, place)
            if record is not None:
                name = self.plan[sentence].pictures[place].name
                records.setdefault(record, f"{name}: {problem}")
                self._bad.setdefault(name, {"picture": name, "problem": problem, "record": record[1]})
        if records:
            self._without += records
            self.plan = self.plan.without(records)
            self.bench = replace(self.bench, plan=self.plan)
        return bool(records)

    def _left_out(self, layout: Layout) -> list[dict[str, Any]]:
        """Lines about bad pictures that cost a sentence."""
        lines: dict[str, dict[str, Any]] = {}
        for number, place, problem in layout.bad():
            sentence = self.plan[number]
            name = sentence.pictures[place].name
            line = lines.setdefault(name, {"picture": name, "problem": problem, "sentences": []})
            if sentence.id not in line["sentences"]:
                line["sentences"].append(sentence.id)
        return list(lines.values())

    def _digested(self) -> tuple[NDArray[np.int64], Digests, dict[int, str]]:
        """The number of pictures of each sentence; (places, 16) the digests; the problem of what cannot be read, by place."""
        usual = len(self.plan[0].pictures)
        size = max(1, DIGEST_PICTURES // max(1, usual))
        starts = range(0, len(self.plan), size)
        files = [self.writer.unfinished / f"digests-{self._left}-{number:06d}.json" for number in range(len(starts))]
        held: dict[int, dict[str, Any]] = {}
        for number, start in enumerate(starts):
            found = _read(files[number])
            # A unit with a picture that could not be read, or whose files were changed since, is done again.
            if found is None or found["problems"]:
                continue
            if found.get("stamp") == stamp_of(self.plan, range(start, min(start + size, len(self.plan)))):
                held[number] = found
        units = {
            number: digest_unit(start, min(start + size, len(self.plan)))
            for number, start in enumerate(starts)
            if number not in held
        }
        total = sum(min(size, len(self.plan) - starts[number]) for number in units) * usual
        for number, outcome in self._work(units, "reading pictures", total):
            told = outcome.read()
            told["digests"] = base64.b64encode(outcome.data).decode()
            write_text(files[number], json.dumps(told))
            held[number] = told
        counts: list[int] = []
        data = bytearray()
        unread: dict[int, str] = {}
        for number in range(len(starts)):
            before = len(data) // DIGEST
            counts += held[number]["counts"]
            data += base64.b64decode(held[number]["digests"])
            for place, (_, problem) in held[number]["problems"].items():
                unread[before + int(place)] = problem
        if 0 in counts:
            raise DataError(f"sentence {self.plan[counts.index(0)].id!r} has no pictures")
        return np.array(counts), as_digests(bytes(data)), unread

    def _tokenize(self, distinct: Digests, firsts: NDArray[np.int64], ends: NDArray[np.int64]) -> int:
        """Tokenize the distinct pictures that are in no part; returns the number of those that could be decoded."""
        width = self.writer.tokenizer.tokens_per_image
        missing = np.flatnonzero(_rows(TokenParts(self.parts, width).digests, distinct) < 0)
        if self._undecodable:
            tried = [distinct[place].tobytes() in self._undecodable for place in missing]
            missing = missing[~np.array(tried, bool)]
        before = len(self._undecodable)
        size = self._unit_size(len(missing))
        units, members = {}, {}
        for number, start in enumerate(range(0, len(missing), size)):
            members[number] = missing[start : start + size]
            units[number] = token_unit(sentence_of(ends, place) for place in firsts[members[number]].tolist())
        for number, outcome in self._work(units, "tokenizing", len(missing)):
            told = outcome.read()
            tokens = np.frombuffer(outcome.data, np.uint16).reshape(-1, width)
            own, bad = distinct[members[number]], [int(row) for row in told["problems"]]
            self._undecodable |= {own[row].tobytes(): told["problems"][str(row)] for row in bad}
            if len(bad) < len(own):
                write_part(self.parts, np.delete(own, bad, 0), np.delete(tokens, bad, 0))
        return len(missing) - (len(self._undecodable) - before)

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

    def _write(self, layout: Layout) -> None:
        size = self.writer.shard_sentences
        missing = [number for number in range(-(-len(self.plan) // size)) if not self.writer.has(number)]
        for number in tqdm(missing, "writing", unit="shard", disable=None, leave=False):
            sentences = range(number * size, min((number + 1) * size, len(self.plan)))
            self.writer.write(number, self._stored(layout, sentences))

    def _stored(self, layout: Layout, sentences: range) -> Iterator[StoredSentence]:
        for number, whole in zip(sentences, layout.whole[sentences.start : sentences.stop], strict=True):
            if whole:
                sentence = self.plan[number]
                own = layout.rows[layout.ends[number] - len(sentence.pictures) : layout.ends[number]]
                tokens = np.concatenate([layout.parts.tokens(int(row)) for row in own])
                yield StoredSentence(tokens, sentence.id, sentence.type, sentence.roles)


def _rows(known: Digests, wanted: Digests) -> NDArray[np.int64]:
    """(wanted,) the row of each digest among the known ones, -1 where it is not there."""
    groups, firsts = group(np.concatenate([known, wanted]))
    found = firsts[groups[len(known) :]]
    return np.where(found < len(known), found, -1)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found
