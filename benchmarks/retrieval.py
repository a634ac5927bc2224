"""How long the exact search for similar demonstrations takes, and how much memory.

    python benchmarks/retrieval.py --queries 2000 --support 100000 --width 128 --shots 8

prints one JSON line: seconds, products a second, and the time that ``--full`` queries would take against a support set of
``--full`` vectors. The time is proportional to queries x support, since the search goes through fixed blocks.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import time

import torch

from kshot.data.similarity import Work, top_k


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("queries", 2000), ("support", 100_000), ("width", 128), ("shots", 8), ("full", 100_000)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()

    rng = torch.Generator().manual_seed(0)
    dtype = getattr(torch, options.dtype)

    def unit(count: int) -> torch.Tensor:
        vectors = torch.randn(count, options.width, generator=rng)
        return torch.nn.functional.normalize(vectors, dim=1).to(dtype)

    queries, support = unit(options.queries), unit(options.support).to(options.device)
    top_k(queries[:64], support[:1000], options.shots)  # start the thread pool, or the GPU's libraries
    before, work = _peak_memory(), Work()
    start, cpu = time.perf_counter(), time.process_time()
    _, indices = top_k(queries, support, options.shots, work=work)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu

    checked = min(50, options.queries)
    products = queries[:checked].double() @ support.cpu().double().T
    assert torch.equal(indices[:checked], products.topk(options.shots).indices), "differs from brute force"
    done = options.queries * options.support
    record = {
        **vars(options),
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu, 2),
        "products_per_second": round(done / seconds),
        f"seconds_for_{options.full}_x_{options.full}": round(seconds * options.full**2 / done),
        f"cpu_seconds_for_{options.full}_x_{options.full}": round(cpu * options.full**2 / done),
        "largest_block_mb": round(work.largest_block * 4 / 2**20, 1),
        "peak_memory_growth_mb": round(_peak_memory() - before),
        "second_looks": work.second_looks,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "machine": torch.cuda.get_device_name()
        if options.device == "cuda"
        else platform.processor() or platform.machine(),
    }
    print(json.dumps(record))


def _peak_memory() -> float:
    """Most memory this process has held so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
