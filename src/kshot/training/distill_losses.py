"""The losses of distillation, as sums, and which of them each method is trained with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from kshot.errors import OptionError
from kshot.training.alignment import AlignTo

AlignBy = Literal["mse", "cosine"]


@dataclass(frozen=True)
class Losses:
    """Weights of the losses, and what they compare.

    Attributes:
        kl: of the divergence of the student's from the teacher's distribution over the answer's tokens, mean over tokens.
        align: of the distance of hidden states over query and answer, mean over elements, layers and queries.
        ce: of the cross-entropy of the answer, mean over tokens.
        temperature: at which distributions are compared; their divergence is multiplied by its square.
        align_to: whose outputs are compared.
        align_by: mean squared error, or 1 - cosine of each position.
    """

    kl: float = 0.0
    align: float = 0.0
    ce: float = 1.0
    temperature: float = 1.0
    align_to: AlignTo = "mlp"
    align_by: AlignBy = "mse"

    def __post_init__(self) -> None:
        for name in ("kl", "align", "ce"):
            if getattr(self, name) < 0:
                raise OptionError(f"{name}={getattr(self, name)}: a weight cannot be negative")
        if not self.kl and not self.align and not self.ce:
            raise OptionError("kl, align and ce are all 0: nothing would be learnt")
        if self.temperature <= 0:
            raise OptionError(f"temperature={self.temperature}: must be more than 0")
        for name, known in (("align_to", get_args(AlignTo)), ("align_by", get_args(AlignBy))):
            if getattr(self, name) not in known:
                raise OptionError(f"{name}={getattr(self, name)!r}: must be one of {', '.join(known)}")

    @property
    def teacher(self) -> bool:
        """Whether a teacher is needed."""
        return bool(self.kl or self.align)


@dataclass(frozen=True)
class Plan:
    """How a method is trained unless the user says otherwise (the papers' settings; see docs/how_to/distill.md).

    Attributes:
        losses: the losses.
        learning_rate: of all parameters but those in ``rates``.
        rates: learning rates by the beginning of a parameter's own name.
        weight_decay: of all parameters but biases.
        batch: queries a step and process: at once, and times accumulated.
        mix: share of student prompts that keep the demonstrations.
    """

    losses: Losses = field(default_factory=Losses)
    learning_rate: float = 5e-4
    rates: dict[str, float] = field(default_factory=dict)
    weight_decay: float = 0.0
    batch: tuple[int, int] = (8, 1)
    mix: float = 0.0


LIKE_LIVE = Losses(kl=1.0, ce=0.5)

PLANS: dict[str, Plan] = {
    "live": Plan(LIKE_LIVE, 1e-3, {"live_alpha": 1e-2}, 1e-3, (8, 2)),
    "bias": Plan(LIKE_LIVE, 1e-3, {}, 1e-3, (8, 2)),
    "mimic": Plan(Losses(align=1.0, ce=0.5), 5e-3, {}, 1e-3, (2, 2)),
    "hificl": Plan(Losses(), 5e-3, {}, 1e-3, (2, 2)),
    "stave": Plan(Losses(), 5e-3, {}, 0.0, (8, 1), mix=0.5),
    "lora": Plan(Losses(), 5e-4, {}, 0.0, (8, 1)),
    "prompt_tuning": Plan(Losses(), 1e-2, {}, 0.0, (8, 1)),
    "prefix_tuning": Plan(Losses(), 5e-3, {}, 0.0, (8, 1)),
}


def plan_of(method: str) -> Plan:
    """The plan of a method; for those of other people, cross-entropy alone."""
    return PLANS.get(method, Plan())


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


def divergence(log_teacher: Tensor, student: Tensor, temperature: float, indices: Tensor | None = None) -> Tensor:
    """T^2 KL(teacher || student), summed over tokens.

    Args:
        log_teacher: log-probabilities at this temperature, ``[tokens, vocabulary]``; or ``[tokens, k + 1]``, those of ``indices`` and
            that of all others together. The divergence then is that of k + 1 outcomes, which is never more than that of all.
        student: logits ``[tokens, vocabulary]``.
        temperature: T.
        indices: ids of the k tokens, ``[tokens, k]``; ``None``: all are there.
    """
    log_student = F.log_softmax(student.float() / temperature, -1)
    if indices is not None:
        named = log_student.gather(-1, indices)
        others = log_student.scatter(-1, indices, -torch.inf).logsumexp(-1, keepdim=True)
        log_student = torch.cat([named, others], -1)
    log_teacher = log_teacher.to(log_student)
    share = log_teacher.exp()
    terms = torch.where(share > 0, share * (log_teacher - log_student), 0.0)
    return terms.sum() * temperature**2


def most_probable(logits: Tensor, temperature: float, k: int | None) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities at a temperature, float32: all of them, or the k greatest and the logarithm of the rest's sum, with their ids.

    Args:
        logits: ``[tokens, vocabulary]``.
        temperature: T.
        k: how many; ``None``, or no fewer than there are: all.
    """
    every = F.log_softmax(logits.float() / temperature, -1)
    if k is None or k >= every.shape[-1]:
        return every, None
    named, indices = every.topk(k, -1)
    rest = every.scatter(-1, indices, -torch.inf).logsumexp(-1, keepdim=True)
    return torch.cat([named, rest], -1), indices


def distance(student: Sequence[Tensor], teacher: Sequence[Tensor], by: AlignBy) -> Tensor:
    """Distance of the hidden states of queries, a mean over layers, positions (and elements) for each query, summed over queries.

    Args:
        student, teacher: for each query ``[layers, positions, width]``.
        by: ``mse`` or ``cosine``.
    """
    total = student[0].new_zeros((), dtype=torch.float32)
    for one, other in zip(student, teacher, strict=True):
        own, aim = one.float(), other.to(one.device).float()
        total = total + (F.mse_loss(own, aim) if by == "mse" else (1 - F.cosine_similarity(own, aim, dim=-1)).mean())
    return total
