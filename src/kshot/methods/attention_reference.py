"""Attention that also gives the logarithm of its normaliser: what it means, computed step by step.

The kernels of :mod:`kshot.methods.attention_kernels` are held against :func:`eager`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F

Attended = tuple[torch.Tensor, torch.Tensor]
"""Output ``[batch, heads, queries, width]`` in the queries' dtype, and log-sum-exp ``[batch, heads, queries]`` in float32 or wider."""


class Call(NamedTuple):
    """Arguments of :func:`~kshot.methods.attend.attend`, defaults filled in."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    mask: torch.Tensor | None
    causal: bool
    scale: float
    softcap: float | None = None
    dropout: float = 0.0


def additive(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A mask to be added to logits. Its least value is finite, so that rows without any key stay finite, too."""
    least = torch.finfo(dtype).min
    if mask.dtype == torch.bool:
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, least)
    return mask.to(dtype).clamp_min(least)


def eager(call: Call) -> Attended:
    """The reference: logits in full."""
    groups = call.query.shape[1] // call.key.shape[1]
    if groups > 1 and call.query.shape[2] == 1:
        return packed(call, groups, eager)
    key, value = repeated(call.key, groups), repeated(call.value, groups)
    logits = torch.matmul(call.query, key.transpose(2, 3)) * call.scale
    if call.softcap is not None:
        logits = call.softcap * torch.tanh(logits / call.softcap)
    if call.causal and call.query.shape[2] > 1:
        ones = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).tril()
        logits = logits + additive(ones, logits.dtype)
    elif call.mask is not None:
        logits = logits + additive(call.mask, logits.dtype)
    exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
    weights = exact.softmax(-1).to(call.query.dtype)
    if call.dropout:
        weights = F.dropout(weights, call.dropout)
    return torch.matmul(weights, value), exact.logsumexp(-1)


def repeated(states: torch.Tensor, groups: int) -> torch.Tensor:
    """Keys or values for each query head instead of each key head."""
    return states if groups == 1 else states.repeat_interleave(groups, 1)


def packed(call: Call, groups: int, run: Callable[[Call], Attended]) -> Attended:
    """One query a row: the query heads of a key head become its queries, so that keys and values need not be repeated."""
    rows, heads, _, width = call.query.shape
    mask = call.mask
    if mask is not None and mask.shape[1] > 1:
        mask = mask.expand(-1, heads, -1, -1).reshape(mask.shape[0], heads // groups, groups, -1)
    query = call.query.reshape(rows, heads // groups, groups, width)
    grouped = Call(query, call.key, call.value, mask, False, call.scale, call.softcap, call.dropout)
    output, normaliser = run(grouped)
    return output.reshape(rows, heads, 1, -1), normaliser.reshape(rows, heads, 1)
