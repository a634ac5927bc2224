"""What the language model of the embedded model is graded on: its answers, and what they can be found by.

Each of the losses beside that of the answers teaches one step of finding an answer in the context, at the layer where the step can be
done; the linear probes they go through are thrown away afterwards.

1. *summary*: each answer knows the picture before it (behind the first layer).
2. *prototype*: each answer knows the mean of all pictures shown so far under its label (behind the fourth layer from the end).
3. *hint*: at the cue of the next answer it is known which attribute the labels are about (behind the last but one; scenes only).

:mod:`kshot.training.tiny_matching` has those that renamed scenes need besides.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kshot.training.tiny_batches import IGNORED, TokenBatch
from kshot.training.tiny_matching import agreement_loss, attention_loss, detour, match_loss, values_loss

if TYPE_CHECKING:
    from kshot.training.tiny_language import Features, TinyLanguage


def losses(
    language: TinyLanguage,
    run: Any,
    batch: TokenBatch,
    features: Features,
    *,
    balanced: bool = False,
    wanted: Sequence[str] = (),
    closed: bool = False,
) -> dict[str, Tensor]:
    """The losses of a batch by name: ``answer_loss``, ``summary_loss``, and those ``wanted``.

    Args:
        language: the model and its probes.
        run: ``language.states``, perhaps compiled.
        batch: the episodes.
        features: of the pictures.
        balanced: see :class:`~kshot.training.tiny_mixture.Mixture`.
        wanted: of ``prototype_loss``, ``hint_loss``, ``agreement_loss``, ``values_loss``, ``match_loss``, ``attention_loss``.
        closed: whether attention is restricted by :func:`~kshot.training.tiny_matching.detour`.
    """
    pictures = features.look_up(batch)
    given = (detour(batch),) if closed else ()
    final, behind = run(language.embed(batch, pictures), *given)
    means = pictures.mean(1)
    known = language.probe(behind[0][tuple(batch.summary_at.T)])
    found = {
        "answer_loss": _answers(language, final, batch, balanced),
        "summary_loss": F.mse_loss(known, means[batch.summary_of]),
    }
    if "prototype_loss" in wanted:
        told = language.prototype(_behind(behind, 4)[tuple(batch.group_at.T)])
        found["prototype_loss"] = F.mse_loss(told, _means_by_group(batch, means))
    if "hint_loss" in wanted:
        told = language.hint(_behind(behind, 2)[tuple(batch.task_at.T)])
        found["hint_loss"] = F.cross_entropy(told, batch.task_of) if len(batch.task_of) else told.sum()
    states = _behind(behind, 3)
    if "agreement_loss" in wanted:
        found["agreement_loss"] = agreement_loss(language.matching, states, batch, features)
    if "values_loss" in wanted:
        found["values_loss"] = values_loss(language.matching, states, batch, features)
    if "match_loss" in wanted:
        found["match_loss"] = match_loss(language.matching, states, batch)
    if "attention_loss" in wanted:
        found["attention_loss"] = attention_loss(language, behind, batch)
    return found


def _behind(behind: Sequence[Tensor], from_end: int) -> Tensor:
    """Hidden states behind the n-th layer from the end, or the first one of a model with fewer layers."""
    return behind[max(0, len(behind) - from_end)]


def _answers(language: TinyLanguage, final: Tensor, batch: TokenBatch, balanced: bool) -> Tensor:
    """Cross-entropy of the graded tokens: their mean, or the mean over kinds of episodes of that per answer."""
    graded = batch.targets != IGNORED
    wrong = F.cross_entropy(language.head(final[graded]), batch.targets[graded], reduction="none")
    if not balanced:
        return wrong.mean()
    kind_of = batch.kinds[graded.nonzero()[:, 0]]
    sums = torch.zeros(len(batch.answers)).index_add(0, kind_of, wrong)
    return (sums / batch.answers.clamp(min=1)).sum() / (batch.answers > 0).sum()


def _means_by_group(batch: TokenBatch, means: Tensor) -> Tensor:
    """For each answer, the mean of the pictures shown so far under its label (answers, width)."""
    shape = len(batch.group_at), means.shape[1]
    counts = torch.bincount(batch.group_of, minlength=shape[0]).unsqueeze(1)
    return means.new_zeros(shape).index_add(0, batch.group_of, means[batch.group_pictures]) / counts
