"""PyTorch's fused attention kernels with the logarithm of their normaliser, and exact gradients through both.

The kernels compute the normaliser anyway, but are called by ``scaled_dot_product_attention`` in a way that hides it, and their
backward passes take no gradient for it.

That gradient needs no kernel of its own. With P the attention weights, O the output and dO, dP, dlse gradients, the logits get ::

    dS = P * (dP - rowsum(dO * O) + dlse)

so a backward kernel that computes the row sums itself gives it when queries, keys and values get extra channels of zeros, dO
one of ones, and O one of -dlse in the same place.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F

from kshot.methods.attention_reference import Attended, Call, additive, packed, repeated

aten = torch.ops.aten
EXTRA = 8
"""Channels added in backward passes: the fewest that keep the kernels' alignment."""


def fused_cpu(call: Call) -> Attended:
    """The flash kernel of the CPU, which groups heads itself."""
    groups = call.query.shape[1] // call.key.shape[1]
    if groups > 1 and call.query.shape[2] == 1:
        return packed(call, groups, fused_cpu)
    mask = None if call.mask is None else additive(call.mask, call.query.dtype)
    causal = call.causal and call.query.shape[2] > 1
    if not torch.is_grad_enabled():  # a call through autograd costs as much as attention to a short prompt
        return aten._scaled_dot_product_flash_attention_for_cpu(
            call.query, call.key, call.value, 0.0, causal, attn_mask=mask, scale=call.scale
        )
    return _CpuFlash.apply(call.query, call.key, call.value, mask, causal, call.scale)


def one_token(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scale: float | None
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """:func:`fused_cpu` of one query a row, without gradients, soft caps and dropout: decoding, where each step of Python counts.

    Returns:
        What models go on with, in as few views as can be: the output ``[batch, 1, heads, width]`` and the normaliser
        ``[batch, 1, heads, 1]``. ``None``: this is another case.
    """
    rows, heads, queries, width = query.shape
    if (
        queries != 1
        or query.dtype is not torch.float32
        or not query.is_cpu
        or not query.stride(-1) == key.stride(-1) == value.stride(-1) == 1
    ):
        return None
    if mask is not None:
        if mask.shape[1] != 1:
            return None
        mask = additive(mask, query.dtype)
    key_heads = key.shape[1]
    grouped = query if key_heads == heads else query.reshape(rows, key_heads, heads // key_heads, width)
    # PyTorch's own binding: the same operation called through torch.ops takes some microseconds more.
    output, normaliser = torch._scaled_dot_product_flash_attention_for_cpu(
        grouped, key, value, 0.0, False, attn_mask=mask, scale=scale
    )
    return output.reshape(rows, 1, heads, width), normaliser.reshape(rows, 1, heads, 1)


def efficient(call: Call) -> Attended:
    """The memory-efficient kernel of CUDA."""
    groups = call.query.shape[1] // call.key.shape[1]
    if groups > 1 and call.query.shape[2] == 1:
        return packed(call, groups, efficient)
    key, value = repeated(call.key, groups), repeated(call.value, groups)
    mask = None if call.mask is None else additive(call.mask, call.query.dtype)
    if mask is not None:
        mask = _aligned(mask.expand(call.query.shape[0], call.query.shape[1], call.query.shape[2], -1))
    return _Efficient.apply(call.query, key, value, mask, call.causal and call.query.shape[2] > 1, call.scale)


def flash(call: Call) -> Attended:
    """The flash kernel of CUDA: half precision, no masks."""
    groups = call.query.shape[1] // call.key.shape[1]
    if groups > 1 and call.query.shape[2] == 1:
        return packed(call, groups, flash)
    key, value = repeated(call.key, groups), repeated(call.value, groups)
    return _Flash.apply(call.query, key, value, call.causal and call.query.shape[2] > 1, call.scale)


def flex(call: Call) -> Attended:
    """FlexAttention, compiled: any mask, soft caps and grouped heads in one kernel, gradients of its own."""
    mask = None if call.mask is None else additive(call.mask, call.query.dtype)
    cap, causal = call.softcap, call.causal and call.query.shape[2] > 1
    rows, heads = (mask.shape[0] > 1, mask.shape[1] > 1) if mask is not None else (False, False)

    def score(logit: Any, row: Any, head: Any, query: Any, key: Any) -> Any:
        if cap is not None:
            logit = cap * torch.tanh(logit / cap)
        if mask is not None:
            return logit + mask[row if rows else 0, head if heads else 0, query, key]
        return torch.where(query >= key, logit, torch.finfo(torch.float32).min) if causal else logit

    grouped = call.query.shape[1] != call.key.shape[1]
    output, normaliser = _compiled_flex()(
        call.query, call.key, call.value, score_mod=score, scale=call.scale, enable_gqa=grouped, return_lse=True
    )
    return output, normaliser


@cache
def _compiled_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)


def _aligned(mask: torch.Tensor) -> torch.Tensor:
    """The same mask, whose rows begin at multiples of 16 bytes, as the memory-efficient kernel wants them."""
    keys = mask.shape[-1]
    return F.pad(mask, (0, -keys % 8))[..., :keys]


def _padded(*tensors: torch.Tensor) -> list[torch.Tensor]:
    return [F.pad(tensor, (0, EXTRA)) for tensor in tensors]


def _with_normaliser(
    d_output: torch.Tensor, output: torch.Tensor, d_normaliser: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """dO and O with channels such that their row sums are less by the gradient of the normaliser."""
    width = output.shape[-1]
    wide_d, wide = _padded(d_output, output)
    wide[..., width], wide_d[..., width] = -d_normaliser.to(wide.dtype), 1
    return wide_d, wide


class _CpuFlash(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Any, key: Any, value: Any, mask: Any, causal: bool, scale: float) -> Attended:
        output, normaliser = aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, causal, attn_mask=mask, scale=scale
        )
        ctx.save_for_backward(query, key, value, output, normaliser, mask)
        ctx.settings = causal, scale
        return output, normaliser

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        query, key, value, output, normaliser, mask = ctx.saved_tensors
        causal, scale = ctx.settings
        width = query.shape[-1]
        d_output, output = _with_normaliser(grads[0], output, grads[1])
        found = aten._scaled_dot_product_flash_attention_for_cpu_backward(
            d_output, *_padded(query, key, value), output, normaliser, 0.0, causal, attn_mask=mask, scale=scale
        )
        return *(gradient[..., :width] for gradient in found), None, None, None


class _Efficient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Any, key: Any, value: Any, mask: Any, causal: bool, scale: float) -> Attended:
        output, normaliser, seed, offset = aten._scaled_dot_product_efficient_attention(
            query, key, value, mask, True, 0.0, causal, scale=scale
        )
        ctx.save_for_backward(query, key, value, mask, output, normaliser, seed, offset)
        ctx.settings = causal, scale
        return output, normaliser[..., : query.shape[2]]  # the kernel's is padded to multiples of 32 queries

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        query, key, value, mask, output, normaliser, seed, offset = ctx.saved_tensors
        causal, scale = ctx.settings
        width = query.shape[-1]
        d_output, output = _with_normaliser(grads[0], output, grads[1])
        found = aten._scaled_dot_product_efficient_attention_backward(
            d_output, *_padded(query, key, value), mask, output, normaliser, seed, offset, 0.0,
            [True, True, True, False], causal, scale=scale,
        )  # fmt: skip
        return *(gradient[..., :width] for gradient in found[:3]), None, None, None


class _Flash(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Any, key: Any, value: Any, causal: bool, scale: float) -> Attended:
        found = aten._scaled_dot_product_flash_attention(query, key, value, 0.0, causal, False, scale=scale)
        output, normaliser, starts, key_starts, longest, longest_key, seed, offset, _ = found
        ctx.save_for_backward(query, key, value, output, normaliser, starts, key_starts, seed, offset)
        ctx.settings = longest, longest_key, causal, scale
        return output, normaliser

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        query, key, value, output, normaliser, starts, key_starts, seed, offset = ctx.saved_tensors
        longest, longest_key, causal, scale = ctx.settings
        width = query.shape[-1]
        d_output, output = _with_normaliser(grads[0], output, grads[1])
        found = aten._scaled_dot_product_flash_attention_backward(
            d_output, *_padded(query, key, value), output, normaliser, starts, key_starts, longest, longest_key,
            0.0, causal, seed, offset, scale=scale,
        )  # fmt: skip
        return *(gradient[..., :width] for gradient in found), None, None
