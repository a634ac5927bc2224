"""What answering costs: time to the first token, time a token, memory.

Machines are not equally fast from one minute to the next, so base model and method take turns in one process, and what is compared are
the ratios of neighbours.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kshot.models.encoding import EncodedPrompt
from kshot.models.visual_sentence import VisualSentenceModel
from kshot.models.vlm import VLM

MEGABYTE = 1e6
REPEATS = 3


@dataclass(frozen=True)
class Speed:
    """Medians over rounds.

    Attributes:
        first: milliseconds from the prompt's ids and pixels to the first new token.
        token: milliseconds for each further token.
        first_ratio, token_ratio: median over rounds of the ratio to the bare model on the query alone, measured right before.
        peak: most memory during this, in megabytes: allocated on the accelerator, or held by the process.
    """

    first: float
    token: float
    first_ratio: float
    token_ratio: float
    peak: float


def measure(
    vlm: VLM | VisualSentenceModel,
    query: EncodedPrompt,
    sides: Sequence[tuple[EncodedPrompt, Callable[[], AbstractContextManager[Any]]]],
    *,
    rounds: int,
    tokens: int,
) -> tuple[Speed, list[Speed]]:
    """Times of the bare model on a query, and of each side, in alternating rounds.

    Args:
        vlm: the model, without an adapter.
        query: the query alone.
        sides: what is compared: the prompt, and a context in which the model has the side's adapter.
        rounds: how often everything is measured; one more round before warms up.
        tokens: further tokens that are generated after the first.
    """
    bare: list[tuple[float, float, float]] = []
    found: list[list[tuple[float, float, float]]] = [[] for _ in sides]
    ratios: list[list[tuple[float, float]]] = [[] for _ in sides]
    for number in range(rounds + 1):
        for place, (prompt, within) in enumerate(sides):
            before = _times(vlm, query, tokens)
            with within():
                times = _times(vlm, prompt, tokens)
            if number:
                bare.append(before)
                found[place].append(times)
                ratios[place].append((times[0] / before[0], times[1] / before[1]))
        if not sides and number:
            bare.append(_times(vlm, query, tokens))
    return _speed(bare, [(1.0, 1.0)]), [_speed(times, rates) for times, rates in zip(found, ratios, strict=True)]


def _speed(times: Sequence[tuple[float, float, float]], ratios: Sequence[tuple[float, float]]) -> Speed:
    first, token, peak = ([row[i] for row in times] for i in range(3))
    rates = [statistics.median(row[i] for row in ratios) for i in range(2)]
    return Speed(statistics.median(first), statistics.median(token), rates[0], rates[1], max(peak))


@torch.inference_mode()
def _times(vlm: VLM | VisualSentenceModel, prompt: EncodedPrompt, tokens: int) -> tuple[float, float, float]:
    """Milliseconds to the first token and for each further one (the least of a few repetitions), and peak megabytes."""
    inputs = vlm.inputs([prompt])
    inputs.pop("position_ids", None)  # generate makes the same ones, and goes on from them
    with peak_memory(vlm.device) as peak:
        one = min(_generate(vlm, inputs, 1) for _ in range(REPEATS))
        all_ = min(_generate(vlm, inputs, 1 + tokens) for _ in range(REPEATS))
    return one, max(all_ - one, 1e-6) / tokens, peak.megabytes


def _generate(vlm: VLM | VisualSentenceModel, inputs: dict[str, Any], tokens: int) -> float:
    given = dict(inputs)
    synchronize(vlm.device)
    begin = time.perf_counter()
    vlm.model.generate(
        **given,
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        do_sample=False,
        num_beams=1,
        pad_token_id=vlm.encoder.pad_id,
    )
    synchronize(vlm.device)
    return (time.perf_counter() - begin) * 1e3


def synchronize(device: torch.device) -> None:
    """Wait until the accelerator has done what it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


@dataclass
class Peak:
    """Most memory in a block, in megabytes; known when the block has ended. ``nan`` where the system does not tell."""

    megabytes: float = float("nan")


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Peak]:
    """Most memory while the block runs: allocated on a CUDA device, or resident in the process (weights included in both)."""
    peak = Peak()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield peak
        peak.megabytes = torch.cuda.max_memory_allocated(device) / MEGABYTE
        return
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # Linux: the high-water mark begins anew
    yield peak
    with suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        kilobytes = next(line for line in lines if line.startswith("VmHWM:")).split()[1]
        peak.megabytes = int(kilobytes) * 1024 / MEGABYTE
