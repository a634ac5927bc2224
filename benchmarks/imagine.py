"""What it saves to read a prompt once for all its candidates: imagining 8 candidates behind 15 pictures.

A random LLaMA of 15 million parameters over 8,192 codes, at 16 and 64 tokens a picture. Timed in one process, in alternating
rounds:

- ``one``: one candidate; and its first part alone, the reading of the prompt (``prefill``), so that ``decode = one - prefill``;
- ``together``: 8 candidates by one call;
- ``calls``: 8 candidates by 8 calls, as LVM's own programs do;
- ``generate``: 8 candidates by ``generate(num_return_sequences=8)`` of transformers, which reads the prompt 8 times in one batch.

Reported are medians over rounds of the CPU time (one thread; wall-clock time beside it), and

- ``to_bound = together / (prefill + 8 decode)``, what sharing alone would give (to be at most 1.5; below 1, because rows that go on
  together read the weights together);
- ``times_faster = calls / together``.

The candidates of ``together`` and ``calls`` are compared: ``same`` says whether all are equal.

    python benchmarks/imagine.py --out results/imagine.csv
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.prefix_reuse import write  # noqa: E402
from kshot.models.code_sampling import Sampling  # noqa: E402
from kshot.models.imagining import Imaginer, Row  # noqa: E402
from kshot.models.visual_sentence import VisualSentenceModel  # noqa: E402
from kshot.models.visual_window import plan  # noqa: E402
from kshot.version import __version__  # noqa: E402
from tests.visual.tiny import tiny_processor  # noqa: E402

CODES, SPARE, CONTEXT = 8192, 100, 16
SIDES = {16: 4, 64: 8}
"""Tokens of a picture and of its side."""


def random_model(tokens: int) -> VisualSentenceModel:
    """15 million parameters, more than half of them in the layers."""
    processor = tiny_processor(codes=CODES, spare=SPARE, size=4 * SIDES[tokens])
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=CODES + SPARE, hidden_size=384, intermediate_size=1024, num_hidden_layers=5, num_attention_heads=6,
        max_position_embeddings=CONTEXT * tokens, tie_word_embeddings=False,
    )  # fmt: skip
    return VisualSentenceModel(LlamaForCausalLM(config), processor, name="llama-15m-random")


def timed(work: Callable[[], object]) -> tuple[float, float, object]:
    """CPU and wall-clock seconds, and the result."""
    cpu, wall = time.process_time(), time.perf_counter()
    found = work()
    return time.process_time() - cpu, time.perf_counter() - wall, found


def measure(model: VisualSentenceModel, pictures: int, candidates: int, rounds: int) -> dict:
    ids = torch.randint(0, CODES, (pictures * model.tokens,), generator=torch.Generator().manual_seed(1))
    kept = list(range(CODES, CODES + SPARE))

    def prefill() -> object:
        with torch.inference_mode():
            return model.model(ids[None], use_cache=True, logits_to_keep=1).logits

    def together() -> object:
        return model.imagine_ids([ids], 1, candidates, sampling=Sampling(seed=1), keys=["prompt"])[0].ids

    def one() -> object:
        return model.imagine_ids([ids], sampling=Sampling(seed=1))[0].ids

    def calls() -> object:
        imaginer, alone = Imaginer(model.model, CODES, model.tokens), plan(pictures, 1, CONTEXT)
        # Candidate n by itself, with its own random numbers.
        return torch.cat([imaginer.run([Row(0, ids, "prompt", n)], alone, Sampling(seed=1)) for n in range(candidates)])

    def generate() -> object:
        return model.model.generate(
            ids[None], attention_mask=torch.ones_like(ids[None]), do_sample=True, top_k=50, max_new_tokens=model.tokens,
            num_return_sequences=candidates, suppress_tokens=kept, eos_token_id=None, pad_token_id=CODES,
        )  # fmt: skip

    ways = {"prefill": prefill, "one": one, "together": together, "calls": calls, "generate": generate}
    for work in (prefill, one):
        work()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    results: dict = {}
    for _ in range(rounds):
        for name, work in ways.items():
            cpu, wall, results[name] = timed(work)
            times[name].append((cpu, wall))
    cpu = {name: statistics.median(c for c, _ in found) for name, found in times.items()}
    wall = {name: statistics.median(w for _, w in found) for name, found in times.items()}
    decode = cpu["one"] - cpu["prefill"]
    bound = cpu["prefill"] + candidates * decode
    return {
        "model": model.name,
        "parameters": sum(p.numel() for p in model.model.parameters()),
        "tokens_per_picture": model.tokens,
        "pictures": pictures,
        "candidates": candidates,
        "rounds": rounds,
        **{f"{name}_cpu_s": round(value, 4) for name, value in cpu.items()},
        **{f"{name}_wall_s": round(value, 4) for name, value in wall.items()},
        "decode_cpu_s": round(decode, 4),
        "to_bound": round(cpu["together"] / bound, 3),
        "times_faster": round(cpu["calls"] / cpu["together"], 2),
        "times_faster_than_generate": round(cpu["generate"] / cpu["together"], 2),
        "same": bool(torch.equal(results["calls"], results["together"])),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", default="16,64")
    parser.add_argument("--pictures", type=int, default=CONTEXT - 1)
    parser.add_argument("--candidates", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for tokens in map(int, options.tokens.split(",")):
        row = measure(random_model(tokens), options.pictures, options.candidates, options.rounds)
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


if __name__ == "__main__":
    main()
