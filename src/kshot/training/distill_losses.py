"""The losses of distillation, as sums."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
