"""The demonstrations of a whole task: chosen once per (task, retriever, shots, seed), written down, read back by all who need them.

What a query is shown depends on the seed, the number of shots and its id alone, so that any part of the queries may be chosen for
in any process and in any order.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from kshot.data.retrieval import Order, Retriever, check_shots, load_retriever
from kshot.data.task import Task
from kshot.episode import Episode, Example
from kshot.errors import DataError, OptionError
from kshot.whole_file import whole_file

FORMAT = "kshot choices, version 1"


@dataclass(frozen=True)
class Choices(Mapping[str, tuple[str, ...]]):
    """Which demonstrations each query is shown: ids of support examples by query id, in the order in which they are shown.

    Attributes:
        header: what was chosen for: task, retriever and its options, order, shots, seed, fingerprint of the support set.
        ids: ids of the demonstrations by query id.
        places: their places in the query's support set, so that none of it has to be searched.
        passed_over: why examples were not used: ``without_answer`` (number of examples met), ``same_image`` (number of times that
            an example was the query or showed its image), ``bad_images`` (number of pictures that cannot be decoded).
    """

    header: Mapping[str, Any]
    ids: Mapping[str, tuple[str, ...]]
    places: Mapping[str, tuple[int, ...]]
    passed_over: Mapping[str, int] = field(default_factory=dict)

    def __getitem__(self, query_id: str) -> tuple[str, ...]:
        return self.ids[query_id]

    def __iter__(self) -> Iterator[str]:
        return iter(self.ids)

    def __len__(self) -> int:
        return len(self.ids)

    def episodes(self, task: Task, queries: Iterable[Example] | None = None) -> list[Episode]:
        """The episodes of these choices.

        Args:
            task: the task that was chosen for.
            queries: which of its queries; default: all those chosen for, in the task's order.

        Raises:
            DataError: a query has no choice, or the support set is not the one that was chosen from.
        """
        if queries is None:
            queries = (query for query in task.queries if query.id in self.ids)
        support = task.support if shares_support(task) and self.header["shots"] else None
        return [self._episode(task, query, support) for query in queries]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write as JSON, one line a query; the file is there in full or not at all."""
        with whole_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
            file.write('{\n"format": ' + json.dumps(FORMAT) + ",\n")
            file.write('"header": ' + _json(self.header) + ",\n")
            file.write('"passed_over": ' + _json(self.passed_over) + ",\n")
            file.write('"choices": {')
            for number, (query, ids) in enumerate(self.ids.items()):
                shown = [list(pair) for pair in zip(self.places[query], ids, strict=True)]
                file.write((",\n" if number else "\n") + f"{_json(query)}: {_json(shown)}")
            file.write("\n}\n}\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Choices:
        """Read a file written by :meth:`save`.

        Raises:
            DataError: the file is missing, damaged, or no file of choices.
        """
        try:
            record = json.loads(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise DataError("file of choices not found", file=path) from None
        except (ValueError, OSError) as error:
            raise DataError(f"not a readable file of choices ({error})", file=path, remedy="delete it") from None
        try:
            if record["format"] != FORMAT:
                raise DataError(f"a file of {record['format']!r}, not of {FORMAT!r}", file=path, remedy="delete it")
            ids, places = {}, {}
            for query, shown in record["choices"].items():
                places[query] = tuple(int(place) for place, _ in shown)
                ids[query] = tuple(str(name) for _, name in shown)
            return cls(dict(record["header"]), ids, places, dict(record["passed_over"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            problem = f"not a file of choices ({type(error).__name__}: {error})"
            raise DataError(problem, file=path, remedy="delete it") from None

    def _episode(self, task: Task, query: Example, support: Sequence[Example] | None) -> Episode:
        if query.id not in self.ids:
            raise DataError(f"no demonstrations were chosen for query {query.id!r}", remedy="choose for all queries")
        if not self.ids[query.id]:
            return task.without_demonstrations(query)
        pool = support if support is not None else task.pool(query)
        shown = []
        for place, name in zip(self.places[query.id], self.ids[query.id], strict=True):
            if not 0 <= place < len(pool) or (example := pool[place]).id != name:
                raise DataError(
                    f"the support set of query {query.id!r} has changed: {name!r} is no longer example {place}",
                    remedy="choose anew",
                )
            shown.append(example)
        return Episode(tuple(shown), query)


def choose(
    task: Task,
    retriever: str | Retriever,
    shots: int,
    seed: int,
    *,
    queries: Sequence[Example] | None = None,
    order: Order | None = None,
    out: str | os.PathLike[str] | None = None,
    options: Mapping[str, Any] | None = None,
    on_bad_image: Literal["error", "skip"] = "error",
) -> Choices:
    """Choose the demonstrations of a task's queries.

    Args:
        task: the task.
        retriever: a registered name, or a retriever.
        shots: number of demonstrations in total.
        seed: what everything random derives from, together with the shots and each query's id.
        queries: default: all of the task's.
        order: how the demonstrations are arranged, see :data:`~kshot.data.retrieval.Order`; default: the retriever's own.
        out: a JSON file. If it is there it is read and verified; otherwise it is written.
        options: further arguments of the retriever, where it is given by name.
        on_bad_image: what a retriever does about a picture that cannot be decoded: stop, or pass over the example.

    Raises:
        OptionError: more shots than a support set can give, an empty class, a wrong option.
        BadImage: a picture cannot be decoded and ``on_bad_image`` is "error".
        DataError: two queries of one id; ``out`` is damaged or holds other choices (the message says what differs).
    """
    made = load_retriever(retriever, order, **(options or {}))
    made.reset()
    made.on_bad_image = on_bad_image
    if shots < 0:
        raise OptionError(f"the number of shots cannot be negative: {shots}")
    queries = queries if queries is not None else task.queries
    header = _header(task, made, shots, seed)
    if out is not None and Path(out).exists():
        return _verified(Choices.load(out), header, queries, Path(out))
    choices = _choose(task, made, shots, seed, queries, header)
    if out is not None:
        choices.save(out)
    return choices


def shares_support(task: Task) -> bool:
    """Whether all queries of a task have the same support set."""
    return type(task).pool is Task.pool and "pool" not in vars(task)


def _choose(
    task: Task, retriever: Retriever, shots: int, seed: int, queries: Sequence[Example], header: Mapping[str, Any]
) -> Choices:
    ids: dict[str, tuple[str, ...]] = {}
    places: dict[str, tuple[int, ...]] = {}
    # Taken once: a task may make a new sequence each time, and retrievers keep what they know about one by its identity.
    support = task.support if shots and shares_support(task) else None
    if support is not None:
        check_shots(shots, support)
        retriever.prepare(support, queries, shots)
    silent = len(queries) < 1000 or None
    try:
        for query in tqdm(queries, "choosing demonstrations", unit="query", leave=False, disable=silent):
            if query.id in ids:
                raise DataError(
                    f"two queries of the task {_name(task)!r} have the id {query.id!r}", remedy="make ids unique"
                )
            pool: Sequence[Example] = () if not shots else support if support is not None else task.pool(query)
            chosen = retriever.choose(query, pool, shots, retriever.generator(seed, shots, query))
            places[query.id] = tuple(chosen)
            ids[query.id] = tuple(pool[place].id for place in chosen)
    finally:
        retriever.close()
    passed_over = {
        "without_answer": len(retriever.unanswered),
        "same_image": retriever.clashes,
        "bad_images": len(retriever.bad_images),
    }
    return Choices(header, ids, places, passed_over)


def _header(task: Task, retriever: Retriever, shots: int, seed: int) -> dict[str, Any]:
    described = hashlib.blake2b(json.dumps(task.describe(), sort_keys=True, default=str).encode(), digest_size=8)
    return {
        "task": _name(task),
        "task_hash": described.hexdigest(),
        **retriever.describe(),
        "shots": shots,
        "seed": seed,
        "pool": _fingerprint(task) if shots else "not used",
    }


def _fingerprint(task: Task) -> str:
    """Identifies the support set by its size and a few examples; the task's own description covers the rest by file hashes."""
    hasher = hashlib.blake2b(digest_size=8)
    pools: Iterable[Sequence[Example]]
    pools = [task.support] if shares_support(task) else (task.pool(query) for query in _spread(task.queries, 8))
    for pool in pools:
        hasher.update(f"{len(pool)}\n".encode())
        for example in _spread(pool, 32):
            answer = example.answer if isinstance(example.answer, str) else type(example.answer).__name__
            hasher.update(repr((example.id, example.question, answer, len(example.images))).encode())
    return hasher.hexdigest()


def _spread(items: Sequence[Example], most: int) -> list[Example]:
    """At most so many items, evenly spread from the first to the last."""
    count = min(most, len(items))
    return [items[round(i * (len(items) - 1) / max(1, count - 1))] for i in range(count)]


def _verified(choices: Choices, header: Mapping[str, Any], queries: Sequence[Example], path: Path) -> Choices:
    """The choices for some queries from a file, if it was written for the same header."""
    held, wanted = dict(choices.header), json.loads(_json(header))
    for name in sorted({*held, *wanted}):
        if held.get(name) != wanted.get(name):
            raise DataError(
                f"these choices were made for {name} {held.get(name)!r}, not {wanted.get(name)!r}",
                file=path,
                remedy="delete the file or name another one",
            )
    names = [query.id for query in queries]
    missing = [name for name in names if name not in choices]
    if missing:
        raise DataError(
            f"these choices leave out {len(missing)} of {len(names)} queries, such as {missing[0]!r}",
            file=path,
            remedy="delete the file or name another one",
        )
    for name in names:
        if len(choices[name]) != header["shots"]:
            raise DataError(f"query {name!r} has {len(choices[name])} demonstrations, not {header['shots']}", file=path)
    return Choices(
        choices.header,
        {name: choices.ids[name] for name in names},
        {name: choices.places[name] for name in names},
        choices.passed_over,
    )


def _name(task: Task) -> str:
    return getattr(task, "name", type(task).__name__)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
