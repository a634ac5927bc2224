"""How a visual tokenizer is trained, and what its log says."""

from __future__ import annotations

from dataclasses import dataclass

from kshot.errors import OptionError


@dataclass(frozen=True)
class VQSettings:
    """How a tokenizer is trained.

    Attributes:
        steps: optimizer steps.
        seed: of weights, batches and restarts; together with the step it decides all that is random.
        batch_size: pictures of a step, where they are drawn from a tensor.
        learning_rate: highest one; Adam, linear warm-up, then half a cosine to a hundredth of it.
        warmup: steps of the warm-up.
        l1, l2: weights of the two terms of reconstruction.
        beta: weight of the commitment.
        free_until: part of the steps in which latents pass without codes.
        restart_every: steps between restarts of dead codes; 0: none.
        restart_until: part of the steps after which there are none, so that the last codes settle.
        dead_below: a code is dead that was chosen, since the last restart, less often than this part of an equal share.
        clip: largest norm of the gradient.
        log_every: steps between lines of the log.
        save_every: steps between checkpoints in ``out``; 0: only the end is saved.
    """

    steps: int
    seed: int = 0
    batch_size: int = 32
    learning_rate: float = 1e-3
    warmup: int = 50
    l1: float = 1.0
    l2: float = 1.0
    beta: float = 0.25
    free_until: float = 0.2
    restart_every: int = 50
    restart_until: float = 0.8
    dead_below: float = 0.05
    clip: float = 1.0
    log_every: int = 50
    save_every: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "log_every"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name} is {getattr(self, name)}: give at least 1")
        for name in (
            "warmup",
            "l1",
            "l2",
            "beta",
            "free_until",
            "restart_every",
            "restart_until",
            "dead_below",
            "save_every",
        ):
            if not getattr(self, name) >= 0:
                raise OptionError(f"{name} is {getattr(self, name)}: give 0 or more")
        for name in ("learning_rate", "clip"):
            if not getattr(self, name) > 0:
                raise OptionError(f"{name} is {getattr(self, name)}: give a number above 0")
        if self.free_until >= 1:
            raise OptionError(f"free_until is {self.free_until}: with 1 or more no code would be learnt")


@dataclass(frozen=True)
class VQLine:
    """What a step gave.

    Attributes:
        step: counted from 1.
        loss, l1, l2, codebook: the sum and its parts on the step's batch; ``codebook`` (without beta, so also the commitment) is 0 as
            long as latents pass without codes.
        used: part of the codes that was chosen at least once since the line before.
        restarted: codes put elsewhere since the line before.
    """

    step: int
    loss: float
    l1: float
    l2: float
    codebook: float
    used: float
    restarted: int
