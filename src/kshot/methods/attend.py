"""Attention and the logarithm of its normaliser by the fastest kernel that can do it: one meaning, several kernels.

:func:`attend` computes, for each query, softmax attention and ``log sum exp`` of its masked logits, with exact gradients through
both. A fused kernel is used on a device only after it agreed there with the reference, gradients included (:func:`trusted`).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch

from kshot.methods.attention_kernels import EXTRA, efficient, flash, flex, fused_cpu, one_token
from kshot.methods.attention_reference import Attended, Call, eager

logger = logging.getLogger(__name__)


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
    if variant == "auto" and softcap is None and not dropout and not torch.is_grad_enabled():
        attended = one_token(query, key, value, mask, scale)
        if attended is not None:
            return attended[0].transpose(1, 2), attended[1].squeeze(1)
    call = Call(query, key, value, mask, causal and mask is None, scale, softcap, dropout)
    if variant == "auto":
        return VARIANTS[choose(call)].run(call)
    why = VARIANTS[variant].obstacle(call)
    if why is not None:
        raise ValueError(f"{variant} attention: {why}")
    return VARIANTS[variant].run(call)


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
