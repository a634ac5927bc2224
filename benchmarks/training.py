"""What training costs beside the model: episodes per second of the loader, tokens per second of the Trainer against a plain loop.

``loader``: 2-way link-context episodes of invented characters (``glyphs``) for the embedded model, from drawing the episode to
what the decoder reads of its pictures: item, prompt, tokens, pictures, vision tower, batch. ``way`` says whether the features of a
picture are kept (``features: true`` of ``kshot train``), and ``epoch`` whether the cache is empty at first or holds all pictures.

``trainer``: optimiser steps on the same batches, made in the same process while training, three ways in alternating rounds:

- ``plain loop``: what one writes by hand: forward pass with labels, backward, clipping, AdamW;
- ``Trainer``: Hugging Face's, with its own loss on the labels;
- ``KshotTrainer``: ours, which computes logits only where something is learnt.

All begin with the same weights and must end with the same loss. Tokens are those that are not padding. Reported is the median over
rounds of the CPU time of one thread, wall-clock time beside it. ``ratio`` is the speed as a part of the first way's, for ``trainer``
the median of the rounds' own ratios, for what disturbs one round disturbs all its ways.

    python benchmarks/training.py --out results/training.csv
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import transformers
from torch import Tensor
from transformers import PrinterCallback, Trainer, TrainerCallback

from kshot import load_model
from kshot.models.vlm import VLM
from kshot.training.answers import AnswerObjective
from kshot.training.link import LinkEpisodes
from kshot.training.run import training_arguments
from kshot.training.trainer import KshotTrainer
from kshot.version import __version__

Clock = tuple[float, float]
"""Seconds of CPU time and of wall-clock time."""


def now() -> Clock:
    return time.process_time(), time.perf_counter()


def since(start: Clock) -> Clock:
    end = now()
    return end[0] - start[0], end[1] - start[1]


def episodes(shots_per_side: int) -> LinkEpisodes:
    return LinkEpisodes(
        "glyphs",
        shots_per_side=shots_per_side,
        negatives="random",
        template="plain",
        style="plain",
        episodes_per_class=8,
    )


def objective(vlm: VLM, shots_per_side: int, features: bool = False) -> AnswerObjective:
    vlm.model.requires_grad_(True)
    vlm.model.get_encoder(modality="image").requires_grad_(False)
    if features:
        vlm.model.requires_grad_(False)
    return AnswerObjective(vlm, episodes(shots_per_side), features=features)


@torch.inference_mode()
def load_epoch(made: AnswerObjective, epoch: int, count: int, batch: int) -> Clock:
    """Time of an epoch's first ``count`` episodes, from nothing to features."""
    start = now()
    order = list(made.order(epoch))[:count]
    for first in range(0, count, batch):
        rows = made.collate([made.item(epoch, index) for index in order[first : first + batch]])
        inputs = made._inputs(rows)
        if not made.features:
            made.vlm.model.get_image_features(inputs["pixel_values"])
    return since(start)


def loader_rows(count: int, batch: int, rounds: int, shots_per_side: int) -> list[dict[str, Any]]:
    vlm = load_model("tiny")
    ways = {
        (False, "each"): objective(vlm, shots_per_side),
        (True, "first"): objective(vlm, shots_per_side, features=True),
    }
    for made in ways.values():
        load_epoch(made, 99, batch, batch)
    found: dict[tuple[bool, str], list[Clock]] = {(False, "each"): [], (True, "first"): [], (True, "again"): []}
    for _ in range(rounds):
        found[False, "each"].append(load_epoch(ways[False, "each"], 0, count, batch))
        vlm.reuse.clear()
        found[True, "first"].append(load_epoch(ways[True, "first"], 0, count, batch))
        found[True, "again"].append(load_epoch(ways[True, "first"], 0, count, batch))
    base = statistics.median(cpu for cpu, _ in found[False, "each"])
    return [
        {
            "what": "loader", "model": "tiny", "way": "features" if features else "pixels", "epoch": epoch,
            "shots": 2 * shots_per_side, "batch_size": batch, "amount": count, "unit": "episodes", "rounds": rounds,
            "cpu_per_s": round(count / statistics.median(cpu for cpu, _ in times), 2),
            "wall_per_s": round(count / statistics.median(wall for _, wall in times), 2),
            "ratio": round(base / statistics.median(cpu for cpu, _ in times), 3),
        }
        for (features, epoch), times in found.items()
    ]  # fmt: skip


class Stopwatch(TrainerCallback):
    """Time from the end of one step to the end of the last."""

    def __init__(self, after: int):
        self.after, self.took = after, (0.0, 0.0)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.after:
            self.start = now()
        self.took = since(self.start) if state.global_step > self.after else self.took


class Labelled(Trainer):
    """Hugging Face's Trainer on an objective's batches, with labels in place of targets."""

    def get_train_dataloader(self) -> Any:
        return self.batches


def optimizer_of(model: Any) -> Any:
    made = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, weight_decay=0.0)
    return made, torch.optim.lr_scheduler.LambdaLR(made, lambda step: 1.0)


def labelled(made: AnswerObjective, indices: list[int]) -> dict[str, Tensor]:
    rows = made.collate([made.item(0, index) for index in indices])
    return {**rows["inputs"], "labels": rows["targets"]}


def train(way: str, vlm: VLM, shots_per_side: int, steps: int, warm: int, batch: int) -> tuple[Clock, list[Tensor]]:
    """Time of all steps but the first ones, and the weights at the end."""
    made = objective(vlm, shots_per_side)
    order = list(made.order(0))
    chunks = [order[first : first + batch] for first in range(0, (steps + warm) * batch, batch)]
    optimizer, schedule = optimizer_of(vlm.model)
    watch = Stopwatch(warm)
    vlm.model.train()
    if way == "plain loop":
        for number, chunk in enumerate(chunks, 1):
            loss = vlm.model(**labelled(made, chunk), use_cache=False).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(vlm.model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            if number == warm:
                start = now()
        took = since(start)
    else:
        with tempfile.TemporaryDirectory() as folder:
            options = {
                "max_steps": steps + warm, "per_device_train_batch_size": batch, "save_strategy": "no", "logging_steps": 1000,
                "dataloader_pin_memory": False, "use_cpu": True,
            }  # fmt: skip
            arguments = training_arguments(Path(folder), options, 0)
            given: Any = {"callbacks": [watch], "optimizers": (optimizer, schedule)}
            if way == "KshotTrainer":
                trainer: Trainer = KshotTrainer(made, arguments, **given)
            else:
                data = torch.utils.data.DataLoader(order, batch, collate_fn=lambda chunk: labelled(made, chunk))  # type: ignore[arg-type]
                trainer = Labelled(vlm.model, arguments, train_dataset=order, **given)  # type: ignore[arg-type]
                trainer.batches = data
                trainer.remove_callback(PrinterCallback)
            trainer.train()
        took = watch.took
    vlm.model.eval()
    return took, [p.detach().clone() for p in vlm.model.parameters() if p.requires_grad]


def tokens_of(vlm: VLM, shots_per_side: int, steps: int, warm: int, batch: int) -> int:
    made = objective(vlm, shots_per_side)
    order = list(made.order(0))[warm * batch : (steps + warm) * batch]
    return sum(len(made.encode(made.item(0, index))[0]) for index in order)


def trainer_rows(steps: int, batch: int, rounds: int, shots_per_side: int) -> list[dict[str, Any]]:
    warm = 2
    vlm = load_model("tiny")
    start = {key: value.clone() for key, value in vlm.model.state_dict().items()}
    tokens = tokens_of(vlm, shots_per_side, steps, warm, batch)
    ways = ("plain loop", "Trainer", "KshotTrainer")
    found: dict[str, list[Clock]] = {way: [] for way in ways}
    ends: dict[str, list[Tensor]] = {}
    for number in range(rounds):
        for way in ways[number % 3 :] + ways[: number % 3]:
            vlm.model.load_state_dict(start)
            took, ends[way] = train(way, vlm, shots_per_side, steps, warm, batch)
            found[way].append(took)
    ratios = {
        way: sorted(plain[0] / own[0] for plain, own in zip(found["plain loop"], found[way], strict=True))
        for way in ways
    }
    moved = apart(ends["plain loop"], [start[key] for key, p in vlm.model.named_parameters() if p.requires_grad])
    return [
        {
            "what": "trainer", "model": "tiny", "way": way, "epoch": "", "shots": 2 * shots_per_side, "batch_size": batch,
            "amount": tokens, "unit": "tokens", "rounds": rounds,
            "cpu_per_s": round(tokens / statistics.median(cpu for cpu, _ in found[way]), 1),
            "wall_per_s": round(tokens / statistics.median(wall for _, wall in found[way]), 1),
            "ratio": round(statistics.median(ratios[way]), 3),
            "ratios_of_rounds": " ".join(f"{ratio:.2f}" for ratio in ratios[way]),
            "weights_differ_by": f"{apart(ends[way], ends['plain loop']) / moved:.1g}",
        }
        for way in ways
    ]  # fmt: skip


def apart(some: list[Tensor], others: list[Tensor]) -> float:
    """The largest difference of two sets of weights."""
    return max(float((a - b).abs().max()) for a, b in zip(some, others, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--episodes", type=int, default=64)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--shots-per-side", type=int, default=2)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = loader_rows(options.episodes, options.batch_size, options.rounds, options.shots_per_side)
    for row in rows:
        print(" ".join(f"{key}={value}" for key, value in row.items()), flush=True)
    rows += trainer_rows(options.steps, options.batch_size, options.rounds, options.shots_per_side)
    for row in rows[3:]:
        print(" ".join(f"{key}={value}" for key, value in row.items()), flush=True)
    if options.out:
        versions = {
            "kshot": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
            "machine": f"{platform.machine()}, 1 thread",
        }
        blank = {"ratios_of_rounds": "", "weights_differ_by": ""}
        write(
            options.out, [row | {key: row.get(key, value) for key, value in blank.items()} | versions for row in rows]
        )


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[-1]))
        writer.writeheader()
        writer.writerows(rows)
    os.replace(temporary, path)


if __name__ == "__main__":
    main()
