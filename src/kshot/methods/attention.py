"""The one attention function of all methods that act inside self-attention.

While a model has an adapter of such a method, its text decoder runs through :func:`attention`, which is registered with
transformers' attention and mask interfaces under names that begin with ``kshot_``. It computes attention together with the
log-sum-exp of its masked logits in one fused kernel and lets each active adapter change the output of each head, before the
output projection. Modules without an active adapter (the vision tower, cross-attention, everything while adapters are disabled)
go through the implementation that the model had before, bit for bit; when the last adapter is removed, the model gets it back.

Two things are easily got wrong. A mask function must be registered beside the attention function, or transformers passes no
masks at all, without a word. And the query that attention functions see is rotated by its position, so what an adapter computes
from it depends on absolute positions: with padding on the left, ``position_ids`` must be given to ``model(...)`` (kshot's own
inputs have them; ``generate`` makes them) or the configuration must say ``query="pre_rope"``.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from kshot.errors import ModelError
from kshot.methods.attend import attend

logger = logging.getLogger(__name__)

PREFIX = "kshot_"
LAYERS = "kshot_layers"
"""Attribute of attention modules: those of their children that act on heads, while there are any."""
ODD = frozenset(("position_bias", "s_aux", "cache"))
"""What some models pass to their attention and adapters of heads do not know."""


class Heads(NamedTuple):
    """One call of a self-attention module, as adapters see it.

    Attributes:
        query: ``[batch, heads, queries, width]``, as the adapter's configuration wants it (rotated or not).
        output: attention over the model's own keys and values, of the same shape.
        normaliser: log-sum-exp of the masked logits, ``[batch, heads, queries]``, float32 or wider.
        rotated: the query that made the logits.
        key, value: ``[batch, key heads, keys, width]``.
        scale, softcap: of the logits; see :func:`~kshot.methods.attend.attend`.
    """

    query: torch.Tensor
    output: torch.Tensor
    normaliser: torch.Tensor
    rotated: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    scale: float
    softcap: float | None


def attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    softcap: float | None = None,
    *,
    plain: Callable[..., Any] = sdpa_attention_forward,
    variant: str = "auto",
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Self-attention with the active adapters of ``module``; signature and result are those of transformers' functions.

    Args:
        query: ``[batch, heads, queries, width]``; ``key`` and ``value`` alike, with key heads and keys.
        attention_mask: as SDPA takes it; ``None`` means causal for more than one query.
        plain: what is computed while no adapter is active.
        variant: kernel; see :func:`~kshot.methods.attend.attend`.

    Returns:
        ``[batch, queries, heads, width]``, and no weights.
    """
    # What runs for each token and layer is written for few steps of Python: with small models they are what an adapter costs.
    found: Sequence[Any] = getattr(module, LAYERS, ())
    if (
        len(found) == 1
        and query.shape[2] == 1
        and variant == "auto"
        and softcap is None
        and not dropout
        and ODD.isdisjoint(kwargs)
        and not torch.is_grad_enabled()
    ):
        short = found[0].one_token(query, key, value, attention_mask, scaling)
        if short is not None:
            return short, None
    present = [(layer, layer.acting()) for layer in found]
    layers = [pair for pair in present if pair[1]]
    if not layers:
        named = {"dropout": dropout, "scaling": scaling, "is_causal": is_causal, "softcap": softcap} | kwargs
        given = {name: argument for name, argument in named.items() if argument is not None}
        return plain(module, query, key, value, attention_mask, **given)
    for odd in sorted(ODD):
        if kwargs.get(odd) is not None:
            raise ModelError(
                f"{type(module).__name__} passes {odd!r} to its attention, which adapters of heads do not know"
            )
    queries = query.shape[2]
    causal = (
        queries > 1
        and attention_mask is None
        and (getattr(module, "is_causal", True) if is_causal is None else is_causal)
    )
    if causal and key.shape[2] > queries:
        # Only when a static cache is filled: what is behind the queries is empty.
        key, value = key[:, :, :queries], value[:, :, :queries]
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    output, normaliser = attend(
        query,
        key,
        value,
        mask=attention_mask,
        causal=causal,
        scale=scale,
        softcap=softcap,
        dropout=dropout,
        variant=variant,
    )
    for layer, adapters in layers:
        output = layer.shifted(Heads(query, output, normaliser, query, key, value, scale, softcap), adapters)
    return output.transpose(1, 2).contiguous(), None


def register(base: str) -> str:
    """The name of :func:`attention` for models whose implementation was ``base``; registered with transformers on first use.

    While no adapter is active, ``"sdpa"`` and ``"eager"`` are computed as before. Others (flash attention packages, whose masks
    have a form of their own) are replaced by SDPA, which has the same meaning and uses the same kind of kernels.
    """
    if base.startswith(PREFIX):
        return base
    plain: Callable[..., Any] = _model_eager if base == "eager" else sdpa_attention_forward
    name = PREFIX + ("eager" if base == "eager" else "sdpa" if base == "sdpa" else f"sdpa_for_{base.replace('/', '_')}")
    if name not in ALL_ATTENTION_FUNCTIONS:
        if base not in ("eager", "sdpa"):
            logger.warning("attention %r cannot be adapted; SDPA is used while the model has an adapter in it", base)
        variant = "eager" if base == "eager" else "auto"

        AttentionInterface.register(name, partial(attention, plain=plain, variant=variant))
        AttentionMaskInterface.register(name, eager_mask if base == "eager" else sdpa_mask)
    return name


def _model_eager(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """The eager attention of the file in which a model is written."""
    for kind in type(module).__mro__:
        function = getattr(sys.modules.get(kind.__module__), "eager_attention_forward", None)
        if function is not None:
            return function(module, *args, **kwargs)
    raise ModelError(f"{type(module).__name__} has no eager attention; load the model with attn_implementation='sdpa'")
