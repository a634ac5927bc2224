"""The token store beside upstream's token lines: bytes a token, and how long it takes to read a sentence at random.

Both hold the same random sentences of 16 pictures of 256 tokens (the LVM's context). The same sentences are read in the same random
order, in alternating rounds of one process, with files that are in the system's cache. A way of reading ends either with the tokens
as an array as they come (``array``), or with them copied into a row of int64, which is what a model is given (``row``):

- ``store``: a slice of the mapped file;
- ``datasets``: the same shards through ``datasets.Dataset.from_file`` with NumPy formatting;
- ``lines, indexed``: upstream's JSON lines, where the place of every line is known beforehand: seek, parse, decode base64;
- ``lines``: the same without such an index, as the files are published: lines are skipped from the beginning of the file.

``bytes_per_token`` counts everything in the folder or file; that of the index (8 bytes a line) is not counted.

    python benchmarks/token_store.py --out results/token_store.csv
"""

from __future__ import annotations

import argparse
import csv
import itertools
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import datasets
import numpy as np
import pyarrow

from kshot.version import __version__
from kshot.visual.store import StoredSentence, TokenizerRecord, TokenStore
from kshot.visual.store_writer import StoreWriter
from kshot.visual.upstream_lines import decode_line, export_lines

CODES, TOKENS, PICTURES = 8192, 256, 16
ROLES = {"pairs": ("x", "y") * 8, "frames": ("frame",) * 16, "colorization": ("x", "y") * 8, "images": ("image",) * 16}


def make_store(folder: Path, sentences: int) -> TokenStore:
    rng = np.random.default_rng(0)
    kinds = list(ROLES)
    writer = StoreWriter(
        folder, TokenizerRecord(CODES, TOKENS, "0" * 32, "float32", "squash", 256), shard_sentences=1024
    )
    made = (
        StoredSentence(
            rng.integers(0, CODES, TOKENS * PICTURES).astype(np.uint16),
            f"{kinds[n % len(kinds)]}:0:{n:09d}",
            kinds[n % len(kinds)],
            ROLES[kinds[n % len(kinds)]],
        )
        for n in range(sentences)
    )
    return writer.finish(writer.extend(made))


def places_of_lines(file: Path) -> list[int]:
    with file.open("rb") as stream:
        lengths = [len(line) for line in stream]
    return [0, *itertools.accumulate(lengths)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sentences", type=int, default=2048)
    parser.add_argument("--reads", type=int, default=1000, help="reads of a round")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        rows = measure(Path(place), options.sentences, options.reads, options.rounds)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    for row in rows:
        print({name: row[name] for name in list(row)[:7]})


def measure(place: Path, sentences: int, reads: int, rounds: int) -> list[dict[str, object]]:
    store = make_store(place / "store", sentences)
    lines = export_lines(store.folder, out=str(place / "lines.jsonl"))
    begins = places_of_lines(lines)
    shards = [datasets.Dataset.from_file(str(store.folder / shard.file)) for shard in store.shards]
    held = datasets.concatenate_datasets(shards).with_format("numpy", columns=["tokens"])
    tokens = store.record["tokens"]
    sizes = {
        "store": sum(path.stat().st_size for path in store.folder.iterdir()) / tokens,
        "lines": lines.stat().st_size / tokens,
    }
    stream = lines.open("rb")
    row = np.empty(TOKENS * PICTURES, np.int64)

    def indexed(number: int) -> np.ndarray:
        stream.seek(begins[number])
        return decode_line(stream.readline())

    def scanned(number: int) -> np.ndarray:
        stream.seek(0)
        return decode_line(next(itertools.islice(stream, number, None)))

    ways: dict[str, Callable[[int], np.ndarray]] = {
        "store": store.tokens,
        "datasets": lambda number: held[number]["tokens"],
        "lines, indexed": indexed,
        "lines": scanned,
    }
    order = np.random.default_rng(1).integers(0, sentences, reads).tolist()
    for number in order[:20]:
        assert all(np.array_equal(read(number), store.tokens(number)) for read in ways.values())
    times: dict[tuple[str, str], list[float]] = {}
    for _, (way, read), ends in itertools.product(range(rounds), ways.items(), ("array", "row")):
        some = order[: 40 if way == "lines" else reads]
        begun = time.thread_time()
        for number in some:
            if ends == "row":
                row[:] = read(number)
            else:
                read(number)
        times.setdefault((way, ends), []).append((time.thread_time() - begun) / len(some) * 1e6)
    stream.close()
    medians = {key: statistics.median(values) for key, values in times.items()}
    return [
        {
            "way": way,
            "ends_as": ends,
            "bytes_per_token": round(sizes["lines" if way.startswith("lines") else "store"], 4),
            "cpu_us_per_read": round(median, 2),
            "slower_than_store": round(median / medians["store", ends], 1),
            "sentences": sentences,
            "rounds": rounds,
            "kshot": __version__,
            "pyarrow": pyarrow.__version__,
            "datasets": datasets.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
            "machine": f"{platform.machine()}, 1 thread",
        }
        for (way, ends), median in medians.items()
    ]


if __name__ == "__main__":
    sys.exit(main())
