"""Attention that also gives the logarithm of its normaliser: one meaning, several kernels.

:func:`attend` computes, for each query, softmax attention and ``log sum exp`` of its masked logits, with exact gradients through
both. The eager variant is the reference; the fused ones are kernels of PyTorch which compute the normaliser anyway but are called
by ``scaled_dot_product_attention`` in a way that hides it, and whose backward passes take no gradient for it.

That gradient needs no kernel of its own. With P the attention weights, O the output and dO, dP, dlse gradients, the logits get ::

    dS = P * (dP - rowsum(dO * O) + dlse)

so a backward kernel that computes the row sums itself gives it when queries, keys and values get extra channels of zeros, dO
one of ones, and O one of -dlse in the same place.

A fused variant is used on a device only after it agreed there with the eager one, gradients included (:func:`trusted`).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

logger = logging.getLogger(__name__)

aten = torch.ops.aten
Attended = tuple[torch.Tensor, torch.Tensor]
"""Output ``[batch, heads, queries, width]`` in the queries' dtype, and log-sum-exp ``[batch, heads, queries]`` in float32 or wider."""
EXTRA = 8
"""Channels added in backward passes: the fewest that keep the kernels' alignment."""


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    mask: torch.Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
    softcap: float | None = None,
    dropout: float = 0.0,
    variant: str = "auto",
) -> Attended:
    """Attention and the log-sum-exp of its masked logits.

    Args:
        query: ``[batch, heads, queries, width]``.
        key, value: ``[batch, key heads, keys, width]``; heads are a multiple of key heads.
        mask: ``[batch or 1, heads or 1, queries, keys]``: boolean (true: attend) or to be added to the logits. A query that may
            attend to nothing gets finite values of no meaning.
        causal: each query attends to the keys up to its own place, counted from the first; only without a mask.
        scale: factor of the logits; default: 1 / sqrt(width).
        softcap: logits become ``softcap * tanh(logits / softcap)``, before masking.
        dropout: probability with which attention weights are dropped (the log-sum-exp is that without dropout).
        variant: ``"auto"``, or a name in :data:`VARIANTS`.

    Raises:
        ValueError: the variant cannot do this; the message says why.
    """
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    if (
        variant == "auto"
        and query.shape[2] == 1
        and query.device.type == "cpu"
        and query.dtype is torch.float32
        and softcap is None
        and not dropout
        and (mask is None or mask.shape[1] == 1)
        and query.stride(-1) == key.stride(-1) == value.stride(-1) == 1
        and not torch.is_grad_enabled()
    ):
        return _one_token(query, key, value, mask, scale)
    call = Call(query, key, value, mask, causal and mask is None, scale, softcap, dropout)
    if variant == "auto":
        return VARIANTS[choose(call)].run(call)
    why = VARIANTS[variant].obstacle(call)
    if why is not None:
        raise ValueError(f"{variant} attention: {why}")
    return VARIANTS[variant].run(call)


class Call(NamedTuple):
    """Arguments of :func:`attend`, defaults filled in."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    mask: torch.Tensor | None
    causal: bool
    scale: float
    softcap: float | None = None
    dropout: float = 0.0


@dataclass(frozen=True)
class Variant:
    """A way to compute it.

    Attributes:
        run: computes it.
        obstacle: why it cannot be used for a call, in words; ``None`` if it can.
        device: type of device it runs on; empty: all.
    """

    run: Callable[[Call], Attended]
    obstacle: Callable[[Call], str | None]
    device: str = ""


def choose(call: Call) -> str:
    """The name of the fastest variant that can be used for a call."""
    device = call.query.device.type
    if device == "cpu":
        if call.query.shape[2] == 1 and call.query.dtype in (torch.bfloat16, torch.float16):
            return "eager"  # measured: four times as fast as the fused kernel, which is made for long queries
        return "cpu_flash" if _cpu_obstacle(call) is None else "eager"
    for name, variant in VARIANTS.items():
        usable = variant.device == device and variant.obstacle(call) is None
        if usable and trusted(name, device, call.query.dtype):
            return name
    return "eager"


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
        return _packed(call, groups, eager)
    key, value = _repeated(call.key, groups), _repeated(call.value, groups)
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


def _repeated(states: torch.Tensor, groups: int) -> torch.Tensor:
    return states if groups == 1 else states.repeat_interleave(groups, 1)


def _packed(call: Call, groups: int, run: Callable[[Call], Attended]) -> Attended:
    """One query a row: the query heads of a key head become its queries, so that keys and values need not be repeated."""
    rows, heads, _, width = call.query.shape
    mask = call.mask
    if mask is not None and mask.shape[1] > 1:
        mask = mask.expand(-1, heads, -1, -1).reshape(mask.shape[0], heads // groups, groups, -1)
    query = call.query.reshape(rows, heads // groups, groups, width)
    packed = Call(query, call.key, call.value, mask, False, call.scale, call.softcap, call.dropout)
    output, normaliser = run(packed)
    return output.reshape(rows, heads, 1, -1), normaliser.reshape(rows, heads, 1)


def fused_cpu(call: Call) -> Attended:
    """The flash kernel of the CPU, which groups heads itself."""
    groups = call.query.shape[1] // call.key.shape[1]
    if groups > 1 and call.query.shape[2] == 1:
        return _packed(call, groups, fused_cpu)
    mask = None if call.mask is None else additive(call.mask, call.query.dtype)
    causal = call.causal and call.query.shape[2] > 1
    if not torch.is_grad_enabled():  # a call through autograd costs as much as attention to a short prompt
        return aten._scaled_dot_product_flash_attention_for_cpu(
            call.query, call.key, call.value, 0.0, causal, attn_mask=mask, scale=call.scale
        )
    return _CpuFlash.apply(call.query, call.key, call.value, mask, causal, call.scale)


def _one_token(query: Any, key: Any, value: Any, mask: Any, scale: float) -> Attended:
    """:func:`fused_cpu` of one query a row, without gradients: decoding, where the steps of Python count as much as attention."""
    rows, heads, _, width = query.shape
    key_heads = key.shape[1]
    if key_heads != heads:
        query = query.reshape(rows, key_heads, heads // key_heads, width)
    if mask is not None:
        mask = additive(mask, query.dtype)
    output, normaliser = aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, 0.0, False, attn_mask=mask, scale=scale
    )
    if key_heads != heads:
        return output.reshape(rows, heads, 1, width), normaliser.reshape(rows, heads, 1)
    return output, normaliser


def efficient(call: Call) -> Attended:
    """The memory-efficient kernel of CUDA."""
    groups = call.query.shape[1] // call.key.shape[1]
    if groups > 1 and call.query.shape[2] == 1:
        return _packed(call, groups, efficient)
    key, value = _repeated(call.key, groups), _repeated(call.value, groups)
    mask = None if call.mask is None else additive(call.mask, call.query.dtype)
    if mask is not None:
        mask = _aligned(mask.expand(call.query.shape[0], call.query.shape[1], call.query.shape[2], -1))
    return _Efficient.apply(call.query, key, value, mask, call.causal and call.query.shape[2] > 1, call.scale)


def flash(call: Call) -> Attended:
    """The flash kernel of CUDA: half precision, no masks."""
    groups = call.query.shape[1] // call.key.shape[1]
    if groups > 1 and call.query.shape[2] == 1:
        return _packed(call, groups, flash)
    key, value = _repeated(call.key, groups), _repeated(call.value, groups)
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


def _plain_only(call: Call) -> str | None:
    if call.softcap is not None:
        return "no soft caps"
    return "no dropout of attention weights" if call.dropout else None


def _cpu_obstacle(call: Call) -> str | None:
    if call.query.stride(-1) != 1 or call.key.stride(-1) != 1 or call.value.stride(-1) != 1:
        return "channels must be contiguous"
    return _plain_only(call)


def _flash_obstacle(call: Call) -> str | None:
    if call.query.dtype not in (torch.float16, torch.bfloat16):
        return "half precision only"
    if call.mask is not None:
        return "no masks"
    if call.query.shape[-1] % 8 or call.query.shape[-1] + EXTRA > 256:
        return "heads of a multiple of 8 channels, at most 248"
    return _plain_only(call)


def _flex_obstacle(call: Call) -> str | None:
    if call.softcap is None and call.query.shape[2] < 16:
        return (
            "not worth it for a few queries"  # one compiled kernel against the efficient one, which needs no compiling
        )
    return "no dropout of attention weights" if call.dropout else None


VARIANTS: dict[str, Variant] = {
    "cpu_flash": Variant(fused_cpu, _cpu_obstacle, "cpu"),
    "cuda_flash": Variant(flash, _flash_obstacle, "cuda"),
    "cuda_efficient": Variant(efficient, _plain_only, "cuda"),
    "cuda_flex": Variant(flex, _flex_obstacle, "cuda"),
    "eager": Variant(eager, lambda call: None),
}
"""All variants, the preferred first."""


@torch.compiler.assume_constant_result
@cache
def trusted(name: str, device: str, dtype: torch.dtype) -> bool:
    """Whether a fused variant agrees with the eager one on this device: output, normaliser and all gradients.

    Kernels differ between devices and releases; one that fails or disagrees is left out, with a warning.
    """
    worst = 0.0
    try:
        for causal in (True, False):
            results = [_probe(variant, device, dtype, causal) for variant in (name, "eager")]
            for found, expected in zip(*results, strict=True):
                worst = max(worst, float((found.double() - expected.double()).abs().max() / expected.double().std()))
    except Exception as error:  # a kernel that this device or release does not have
        logger.warning("attention kernel %s is not used: %s", name, str(error).split("\n")[0])
        return False
    tolerance = 1e-4 if dtype in (torch.float32, torch.float64) else 0.1
    if not worst < tolerance:
        logger.warning("attention kernel %s is not used: it differs from the reference by %.1g", name, worst)
        return False
    return True


def _probe(name: str, device: str, dtype: torch.dtype, causal: bool) -> list[torch.Tensor]:
    """Output, normaliser and gradients of a small random call; the kernel's obstacles do not count."""
    random = torch.Generator().manual_seed(0)
    tensors = [
        torch.randn(2, heads, 24, 64, generator=random).to(device, dtype).requires_grad_() for heads in (4, 2, 2)
    ]
    with torch.enable_grad(), torch.inference_mode(False):
        output, normaliser = VARIANTS[name].run(Call(tensors[0], tensors[1], tensors[2], None, causal, 0.125))
        loss = (output.float() * torch.linspace(-1, 1, 64, device=device)).sum() + normaliser.float().square().sum()
        return [output.detach(), normaliser.detach(), *torch.autograd.grad(loss, tensors)]
