"""What it saves to read fixed demonstrations once: time per query with and without reuse, from episodes to answers.

Three ways of answering the same queries behind the same demonstrations are timed in one process, in alternating rounds:

- ``none``: every prompt is encoded in full, every picture each time it is shown;
- ``features``: vision features are computed once per picture;
- ``prefix``: as ``features``, and keys and values of the demonstrations are computed once.

A round begins with empty caches and freshly made pictures, so decoding, preprocessing, rendering, tokenization and building the
caches are all in the time, the last spread over the queries of the round. Reported is the median over rounds of the CPU time per query
(one thread; wall-clock time beside it). The answers of all three ways are compared.

    python benchmarks/prefix_reuse.py --out results/prefix_reuse.csv
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import transformers
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from kshot import Episode, Example, load_model  # noqa: E402
from kshot.models.vlm import VLM  # noqa: E402
from kshot.picture import BytesPicture  # noqa: E402
from kshot.version import __version__  # noqa: E402
from tests.models.tiny import build  # noqa: E402

WAYS = {"none": (False, False), "features": (False, True), "prefix": (True, True)}
WORDS = ("red", "blue", "green", "yellow")


def llava_15m() -> VLM:
    """A random LLaVA of 15 million parameters with 64 tokens an image."""
    tower = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 8, "num_attention_heads": 8}
    text = tower | {"num_key_value_heads": 4}
    model, processor = build("llava", vision=tower | {"image_size": 112}, **text)
    return VLM(model, processor, name="llava-15m-random")


@dataclass(frozen=True)
class Case:
    """A model, the edge of the pictures it is shown, and how much is measured."""

    make: Callable[[], VLM]
    edge: int
    queries: int
    batch_size: int
    rounds: int
    kinds: tuple[str, ...]


CASES = {
    "tiny": Case(lambda: load_model("tiny"), edge=64, queries=256, batch_size=64, rounds=5, kinds=("answer", "score")),
    "llava-15m-random": Case(llava_15m, edge=112, queries=32, batch_size=16, rounds=3, kinds=("answer",)),
}


def picture(seed: int, edge: int) -> BytesPicture:
    pixels = np.random.default_rng(seed).integers(0, 256, (edge, edge, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return BytesPicture(file.getvalue(), f"noise {seed}")


def episodes(shots: int, queries: int, edge: int) -> list[Episode]:
    """Queries behind the same demonstrations."""
    demonstrations = tuple(
        Example(picture(i, edge), "what is it?", WORDS[i % len(WORDS)], id=f"demonstration {i}") for i in range(shots)
    )
    return [
        Episode(demonstrations, Example(picture(1000 + i, edge), "what is it?", id=f"query {i}"))
        for i in range(queries)
    ]


def run(
    model: VLM, way: str, kind: str, shots: int, queries: int, edge: int, batch_size: int
) -> tuple[float, float, list]:
    """CPU and wall-clock seconds per query, and the results."""
    asked = episodes(shots, queries, edge)
    model.reuse.prefix_cache, model.reuse.feature_cache = WAYS[way]
    model.reuse.clear()
    cpu, wall = time.process_time(), time.perf_counter()
    if kind == "answer":
        results: list = model.answer(asked, style="plain", max_new_tokens=3, batch_size=batch_size)
    else:
        results = model.score(asked, WORDS[:2], style="plain", batch_size=batch_size)
    return (time.process_time() - cpu) / queries, (time.perf_counter() - wall) / queries, results


def same(kind: str, a: list, b: list) -> bool:
    return a == b if kind == "answer" else bool(np.allclose(a, b, atol=1e-4))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=",".join(CASES))
    parser.add_argument("--shots", type=int, default=8)
    parser.add_argument("--queries", type=int, help="default: each case's own")
    parser.add_argument("--batch-size", type=int, help="default: each case's own")
    parser.add_argument("--rounds", type=int, help="default: each case's own")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name in options.models.split(","):
        case = CASES[name]
        queries, rounds = options.queries or case.queries, options.rounds or case.rounds
        batch_size = options.batch_size or case.batch_size
        model = case.make()
        for kind in case.kinds:
            sizes = (options.shots, queries, case.edge, batch_size)
            for way in WAYS:  # first calls pay for imports and lazy initialization
                run(model, way, kind, options.shots, 4, case.edge, batch_size)
            found = {way: [] for way in WAYS}
            for _ in range(rounds):
                for way in WAYS:
                    found[way].append(run(model, way, kind, *sizes))
            base = statistics.median(cpu for cpu, _, _ in found["none"])
            for way in WAYS:
                cpu = statistics.median(c for c, _, _ in found[way])
                wall = statistics.median(w for _, w, _ in found[way])
                equal = all(same(kind, results, found["none"][0][2]) for _, _, results in found[way])
                row = {
                    "model": name,
                    "parameters": model.anatomy.parameters,
                    "kind": kind,
                    "reuse": way,
                    "shots": options.shots,
                    "queries": queries,
                    "batch_size": batch_size,
                    "rounds": rounds,
                    "cpu_ms_per_query": round(1e3 * cpu, 3),
                    "wall_ms_per_query": round(1e3 * wall, 3),
                    "times_faster": round(base / cpu, 2),
                    "same_results": equal,
                }
                rows.append(row)
                print(" ".join(f"{key}={value}" for key, value in row.items()), flush=True)
    if options.out:
        versions = {
            "kshot": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
            "machine": f"{platform.machine()}, 1 thread",
        }
        write(options.out, [row | versions for row in rows])


def write(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    os.replace(temporary, path)


if __name__ == "__main__":
    main()
