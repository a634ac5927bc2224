"""What a step of distillation costs: memory beside prompt, answer and vocabulary, and time with and without a teacher cache.

``memory``: most memory that one step of MimIC with all losses (hidden states, KL, cross-entropy) holds beyond what was held before it,
teacher's pass, student's pass and gradients, for a random LLaVA of width 128 with a vocabulary of 32,000, one query, by number of
demonstrations and tokens of the answer. ``all logits`` is the same with the head applied everywhere.
Figures are resident memory (the allocator returns what is freed); ``logits_mb`` is what prompt x vocabulary alone would be.

``step``: CPU time of a training step of MimIC, 8 demonstrations, 8 queries: the teacher asked, or its states in the cache, in turns.
Models: a random LLaVA of 15 million parameters, and the embedded one. Pictures are encoded once in both ways.

    python benchmarks/distill_cost.py --out results/distill_cost.csv
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
MMAP = "MALLOC_MMAP_THRESHOLD_"
if __name__ == "__main__" and MMAP not in os.environ:  # read by the C library when a process begins
    os.execve(
        sys.executable, [sys.executable, *sys.argv], os.environ | {MMAP: "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    )

import torch  # noqa: E402
import transformers  # noqa: E402
from peft import get_peft_model  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.method_cost import llava, write  # noqa: E402
from kshot import Example, load_model  # noqa: E402
from kshot.comparison.cost import peak_memory  # noqa: E402
from kshot.data.task import Task, load_task  # noqa: E402
from kshot.methods import MimicConfig  # noqa: E402
from kshot.models.vlm import VLM  # noqa: E402
from kshot.prompt import Template  # noqa: E402
from kshot.training import teacher as teachers  # noqa: E402
from kshot.training.distill_items import DistillItems  # noqa: E402
from kshot.training.distill_losses import Losses  # noqa: E402
from kshot.training.distill_objective import DistillObjective  # noqa: E402
from kshot.training.teacher_cache import TeacherCache  # noqa: E402
from kshot.version import __version__  # noqa: E402
from tests.models.tiny import build, picture  # noqa: E402

VOCABULARY = 32_000


class Words(Task):
    """Pictures of noise whose answers have a given number of words."""

    name = "words"
    template = Template("<image>Question:{question} Short answer:{answer}.")

    def __init__(self, words: int, count: int = 48, edge: int = 28):
        answers = (" ".join((["red", "blue", "green"][(i + n) % 3]) for n in range(words)) for i in range(count))
        self.examples = [
            Example((picture(i, (edge, edge)),), "what is it?", answer, id=f"noise {i}")
            for i, answer in enumerate(answers)
        ]

    @property
    def queries(self) -> Sequence[Example]:
        return self.examples[:1]

    @property
    def support(self) -> Sequence[Example]:
        return self.examples[1:]


def objective(vlm: VLM, task: Task, shots: int, losses: Losses, cache: TeacherCache | None = None) -> DistillObjective:
    items = DistillItems(
        task, shots=shots, samples=8, held_out=0, demonstrations="redrawn" if cache is None else "fixed"
    )
    model = get_peft_model(vlm.model, MimicConfig())
    model.train()
    return DistillObjective(vlm, items, losses, model=model, cache=cache, style="plain")


def step(made: DistillObjective, epoch: int, queries: int) -> None:
    """Passes of teacher and student, and gradients."""
    batch = made.collate([made.item(epoch, number) for number in range(queries)])
    total, _ = made.loss(made.model, batch)
    total.sum().backward()
    made.model.zero_grad()


@contextmanager
def every_logit() -> Iterator[None]:
    """The head applied to every token."""
    from kshot.training import distill_objective

    def all_logits(vlm: Any, model: Any, inputs: dict[str, Any], keep: int) -> torch.Tensor:
        return model(**inputs, use_cache=False).logits[:, -keep - 1 : -1]

    before = teachers.answer_logits
    teachers.answer_logits = distill_objective.answer_logits = all_logits
    try:
        yield
    finally:
        teachers.answer_logits = distill_objective.answer_logits = before


def memory() -> Iterator[dict[str, Any]]:
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
    model, processor = build("llava_llama", **sizes, num_key_value_heads=4, vocab_size=VOCABULARY)
    vlm = VLM(model.requires_grad_(False), processor, name="llava-32k-random")
    losses = Losses(kl=1.0, align=1.0, ce=0.5)
    for way in ("kshot", "all logits"):
        for words, shots in ((2, 1), (2, 8), (2, 32), (16, 32), (64, 32)) if way == "kshot" else ((2, 1), (2, 32)):
            made = objective(vlm, Words(words), shots, losses)
            rows = made.collate([made.item(1, 0)])
            prompt, answer = len(rows["taught"][0].prompt), len(rows["taught"][0].targets)
            with every_logit() if way == "all logits" else _nothing():
                step(made, 0, 1)  # lazy initialization
                gc.collect()
                held = resident()
                with peak_memory(torch.device("cpu")) as peak:
                    step(made, 1, 1)
            made.model.unload()
            yield {
                "what": "memory", "way": way, "model": vlm.name, "shots": shots, "prompt_tokens": prompt, "answer_tokens": answer,
                "logits_mb": round(4e-6 * prompt * VOCABULARY, 1), "peak_mb": round(peak.megabytes - held, 1),
            }  # fmt: skip


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def resident() -> float:
    """Megabytes that the process holds."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def times(rounds: int) -> Iterator[dict[str, Any]]:
    cases: list[tuple[VLM, Task]] = [
        (llava(), Words(2, edge=112)), (load_model("tiny"), load_task("scenes", tasks="colour", episodes=8)),
    ]  # fmt: skip
    for vlm, task in cases:
        losses, queries = Losses(align=1.0, ce=0.5), 8
        with tempfile.TemporaryDirectory() as folder:
            asked = objective(vlm, task, 8, losses)
            asked.recall.said = False  # the same demonstrations in each epoch, and the teacher asked nevertheless
            asked.items.demonstrations = "fixed"
            cache = TeacherCache(Path(folder) / "cache", {"benchmark": 1})
            known = DistillObjective(vlm, asked.items, losses, model=asked.model, cache=cache, style="plain")
            pairs = []
            for number in range(rounds + 1):
                taken = []
                for made in (asked, known):
                    begin = time.process_time()
                    step(made, 0, queries)
                    taken.append(time.process_time() - begin)
                if number:
                    pairs.append(taken)
        without, within = (statistics.median(pair[i] for pair in pairs) for i in range(2))
        yield {
            "what": "step", "way": "teacher cache", "model": vlm.name, "shots": 8, "without_ms": round(1e3 * without, 1),
            "ms": round(1e3 * within, 1), "ratio": round(statistics.median(b / a for a, b in pairs), 3), "rounds": rounds,
        }  # fmt: skip
        asked.model.unload()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--what", default="memory,step")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for what in options.what.split(","):
        for row in memory() if what == "memory" else times(options.rounds):
            rows.append(row)
            print(" ".join(f"{key}={value}" for key, value in row.items()), flush=True)
    if options.out:
        names = list(dict.fromkeys(name for row in rows for name in row))
        versions = {
            "kshot": __version__, "torch": torch.__version__, "transformers": transformers.__version__,
            "python": platform.python_version(), "machine": f"{platform.machine()}, 1 thread",
        }  # fmt: skip
        write(options.out, [{name: row.get(name, "") for name in names} | versions for row in rows])


if __name__ == "__main__":
    main()
