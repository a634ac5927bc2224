"""How the next code of an imagined picture is chosen: among which codes, how boldly, and by which random numbers.

The order is that of ``generate`` in transformers, whose own classes do the work: codes that must not come are left out first, then
temperature, ``top_k``, ``top_p``. LVM's programs name temperature and ``top_p`` only, and inherit ``top_k=50`` from the library's
default; here it is said.

Every candidate of every prompt has random numbers of its own, one for each place in its frames, derived from (seed, the prompt's key,
the candidate's number). So a candidate stays the same whatever else is imagined along with it, and however many frames it has.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from kshot.data.derived import generator
from kshot.errors import OptionError

TOP_K = 50
"""What LVM's programs use without naming it."""


@dataclass(frozen=True)
class Sampling:
    """How codes are drawn.

    Args:
        top_k: only so many of the likeliest codes are considered; 0 = all.
        top_p: of these, the fewest that have so much probability together.
        temperature: logits are divided by it; 0 = always the likeliest code (then ``top_k`` and ``top_p`` mean nothing).
        seed: of all random numbers.

    Raises:
        OptionError: a value out of range.
    """

    top_k: int = TOP_K
    top_p: float = 1.0
    temperature: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.top_k, bool) or not isinstance(self.top_k, int) or self.top_k < 0:
            raise OptionError(f"top_k is {self.top_k!r}; it must be a whole number, 0 for all codes")
        if not 0.0 < self.top_p <= 1.0:
            raise OptionError(f"top_p is {self.top_p!r}; it must be above 0 and at most 1")
        if not (math.isfinite(self.temperature) and self.temperature >= 0.0):
            raise OptionError(f"temperature is {self.temperature!r}; it must be 0 (the likeliest code) or larger")

    @property
    def greedy(self) -> bool:
        """Whether nothing is random."""
        return self.temperature == 0.0


class CodeSampler:
    """Chooses codes from logits.

    Args:
        sampling: how.
        codes: ids below this are codes; others never come.
        allowed: for each row, the codes that may come; ``None`` = all. Must not be empty.
    """

    def __init__(self, sampling: Sampling, codes: int, allowed: Sequence[torch.Tensor | None] | None = None):
        self.sampling, self.codes = sampling, codes
        self.forbidden = _forbidden(codes, allowed)
        self.warpers: Any = LogitsProcessorList()
        if not sampling.greedy and sampling.temperature != 1.0:
            self.warpers.append(TemperatureLogitsWarper(sampling.temperature))
        if 0 < sampling.top_k < codes:
            self.warpers.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1.0:
            self.warpers.append(TopPLogitsWarper(sampling.top_p))

    def choose(self, logits: torch.Tensor, numbers: torch.Tensor | None) -> torch.Tensor:
        """The next code of each row, of shape ``(rows,)``.

        Args:
            logits: of shape ``(rows, vocabulary)``, in any precision; computed with in float32.
            numbers: a random number in [0, 1) for each row, or ``None`` if nothing is random.
        """
        scores = logits[:, : self.codes].float()
        if self.forbidden is not None:
            self.forbidden = self.forbidden.to(scores.device)
            scores = scores.masked_fill(self.forbidden, -torch.inf)
        if self.sampling.greedy:
            return scores.argmax(-1)
        assert numbers is not None
        nothing = torch.empty(
            0, dtype=torch.long, device=scores.device
        )  # these processors do not look at what came before
        probabilities: torch.Tensor = self.warpers(nothing, scores).softmax(-1)
        if probabilities.device.type == "mps":
            probabilities = probabilities.cpu()  # which knows no float64
        # By code, not by rank: two codes of nearly equal probability may change ranks from one batch to another.
        bounds = probabilities.double().cumsum(-1)
        wanted = numbers.to(bounds).unsqueeze(-1) * bounds[:, -1:]
        return torch.searchsorted(bounds, wanted, right=True).squeeze(-1).to(logits.device)


def random_numbers(seed: int, key: str, candidate: int, count: int) -> torch.Tensor:
    """The numbers of one candidate's places; the first n are the same whatever ``count`` is. Of shape ``(count,)``, in [0, 1)."""
    # float32 values times a sum in float64 stay below that sum: a place behind the last code is never chosen
    return torch.from_numpy(generator(seed, "imagine", key, candidate).random(count, dtype="float32"))


def _forbidden(codes: int, allowed: Sequence[torch.Tensor | None] | None) -> torch.Tensor | None:
    if allowed is None or all(row is None for row in allowed):
        return None
    forbidden = torch.ones(len(allowed), codes, dtype=torch.bool)
    for row, seen in zip(forbidden, allowed, strict=True):
        row[slice(None) if seen is None else seen] = False
    return forbidden
