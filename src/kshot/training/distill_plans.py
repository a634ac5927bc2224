"""How each method is trained unless the user says otherwise: as in its paper, or on small models as was found to serve them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from kshot.errors import OptionError
from kshot.training.distill_items import Demonstrations
from kshot.training.distill_losses import Losses

SMALL = 50_000_000
"""Parameters below which a model is small. The papers' rates are for widths of thousands: in their number of steps, the vectors of a
model of width 128 hardly move."""


@dataclass(frozen=True)
class Plan:
    """The settings of a method (see docs/how_to/distill.md).

    Attributes:
        losses: the losses.
        learning_rate: of all parameters but those in ``rates``.
        rates: learning rates by the beginning of a parameter's own name.
        weight_decay: of all parameters but biases.
        batch: queries a step and process: at once, and times accumulated.
        mix: share of student prompts that keep the demonstrations.
        demonstrations: whether each query's are drawn anew in each epoch.
        steps: of the optimiser, whatever the number of queries; ``None``: what ten epochs are.
        trainer: further arguments of the Trainer.
    """

    losses: Losses = field(default_factory=Losses)
    learning_rate: float = 5e-4
    rates: dict[str, float] = field(default_factory=dict)
    weight_decay: float = 0.0
    batch: tuple[int, int] = (8, 1)
    mix: float = 0.0
    demonstrations: Demonstrations = "redrawn"
    steps: int | None = None
    trainer: dict[str, Any] = field(default_factory=dict)

    def settings(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments of the Trainer.

        Args:
            given: those that the user chose.
        """
        own: dict[str, Any] = {"learning_rate": self.learning_rate, "weight_decay": self.weight_decay} | self.trainer
        own |= {"per_device_train_batch_size": self.batch[0], "gradient_accumulation_steps": self.batch[1]}
        if self.steps is not None and "num_train_epochs" not in given:
            own["max_steps"] = self.steps
        found = COMMON | own | dict(given)
        if found.get("gradient_checkpointing"):
            # Hidden states are read by hooks, which the older way of recomputing would run without gradients.
            found.setdefault("gradient_checkpointing_kwargs", {"use_reentrant": False})
        return found


EPOCHS = 10
COMMON: dict[str, Any] = {
    "num_train_epochs": EPOCHS,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.1,  # below 1: a share of all steps
    "max_grad_norm": 1.0,
}
LIKE_LIVE = Losses(kl=1.0, ce=0.5)

PAPERS: dict[str, Plan] = {
    "live": Plan(LIKE_LIVE, 1e-3, {"live_alpha": 1e-2}, 1e-3, (8, 2)),
    "bias": Plan(LIKE_LIVE, 1e-3, {}, 1e-3, (8, 2)),
    "mimic": Plan(Losses(align=1.0, ce=0.5), 5e-3, {}, 1e-3, (2, 2)),
    "hificl": Plan(Losses(), 5e-3, {}, 1e-3, (2, 2)),
    "stave": Plan(Losses(), 5e-3, {}, 0.0, (8, 1), mix=0.5),
    "lora": Plan(Losses(), 5e-4, {}, 0.0, (8, 1)),
    "prompt_tuning": Plan(Losses(), 1e-2, {}, 0.0, (8, 1)),
    "prefix_tuning": Plan(Losses(), 5e-3, {}, 0.0, (8, 1)),
}


@dataclass(frozen=True)
class Quick:
    """What a small model takes otherwise.

    Attributes:
        learning_rate, rates: as in a plan.
        batch: queries a step.
        steps: of the optimiser.
    """

    learning_rate: float
    rates: dict[str, float] = field(default_factory=dict)
    batch: int = 16
    steps: int = 150


QUICK: dict[str, Quick] = {
    # A static vector has a long way to go: behind the norms of hidden states (some 50 in the embedded model), in all layers at once.
    "live": Quick(2e-1, {"live_alpha": 5e-2}, 8, 600),
    "bias": Quick(2e-1, {}, 8, 600),
    "mimic": Quick(4e-2, {"mimic_weight": 3e-2, "mimic_bias": 3e-2}, 16, 300),
    "hificl": Quick(1e-2),
    "stave": Quick(1e-2),
    "lora": Quick(5e-3),
    "prompt_tuning": Quick(5e-2),
    "prefix_tuning": Quick(2e-2),
}
"""Small models, by method. Found on three of the tasks of benchmarks/methods.py and on shapes, with the embedded model."""


def plan_of(method: str, parameters: int | None = None) -> Plan:
    """The plan of a method; for those of other people, cross-entropy alone.

    Args:
        method: its name.
        parameters: of the model; ``None``: the papers' plan.
    """
    found = PAPERS.get(method, Plan())
    if parameters is None or parameters >= SMALL or method not in QUICK:
        return found
    quick = QUICK[method]
    return replace(
        found, learning_rate=quick.learning_rate, rates=quick.rates, batch=(quick.batch, 1), demonstrations="fixed", steps=quick.steps,
        trainer={"per_device_eval_batch_size": 64},
    )  # fmt: skip


def chosen_losses(plan: Plan, teacher: bool | None, **given: float | str | None) -> Losses:
    """The losses of a plan with what the user changed.

    Args:
        plan: the method's.
        teacher: ``False``: cross-entropy alone; ``True``: as LIVE, for methods that have no teacher by themselves.
        given: fields of :class:`Losses`; ``None`` leaves the plan's.

    Raises:
        OptionError: a value that cannot be, or a teacher's loss without a teacher.
    """
    own = {name: value for name, value in given.items() if value is not None}
    losses = plan.losses
    if teacher is False:
        if own.get("kl") or own.get("align"):
            raise OptionError("teacher: it is switched off, but kl or align is given; leave one of them out")
        losses = replace(losses, kl=0.0, align=0.0, ce=1.0)
    elif teacher and not losses.teacher:
        losses = replace(losses, kl=LIKE_LIVE.kl, ce=LIKE_LIVE.ce)
    return replace(losses, **own)  # type: ignore[arg-type]
