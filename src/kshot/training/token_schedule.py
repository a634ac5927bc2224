"""The learning rate by tokens: one counter for the schedule, the length of training and the log."""

from __future__ import annotations

import math
from dataclasses import dataclass

from kshot.errors import OptionError


@dataclass(frozen=True)
class TokenSchedule:
    """Linear warm-up from nothing, then a cosine down to a floor, where the rate stays.

    The rates are those of optax' ``warmup_cosine_decay_schedule``, which upstream uses, at steps of equally many tokens.

    Attributes:
        per_step: tokens of an optimiser step.
        peak: the learning rate at the end of the warm-up.
        warmup: tokens of the warm-up.
        end: tokens after which the floor is reached, from the beginning on.
        floor: the learning rate then.
    """

    per_step: float
    peak: float
    warmup: float
    end: float
    floor: float

    def __post_init__(self) -> None:
        if not 0 <= self.floor <= self.peak or not self.peak > 0:
            raise OptionError(
                f"learning_rate={self.peak:g}, min_rate={self.floor:g}: 0 <= min_rate <= learning_rate is needed"
            )
        if not 0 <= self.warmup <= self.end:
            raise OptionError(
                f"warmup_tokens={self.warmup:,.0f}: must lie between 0 and the end of the schedule at {self.end:,.0f} tokens"
            )

    def rate(self, tokens: float) -> float:
        """The learning rate after so many tokens."""
        if tokens < self.warmup:
            return self.peak * tokens / self.warmup
        left = self.end - self.warmup
        done = min(1.0, (tokens - self.warmup) / left) if left > 0 else 1.0
        return self.floor + (self.peak - self.floor) * 0.5 * (1 + math.cos(math.pi * done))

    def tokens(self, step: int) -> float:
        """Tokens seen before an optimiser step (from 0)."""
        return step * self.per_step

    def factor(self, step: int) -> float:
        """What :attr:`peak` is multiplied by in an optimiser step (from 0)."""
        return self.rate(self.tokens(step)) / self.peak
