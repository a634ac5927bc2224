"""The weights of a large vision model under two names: EasyLM's keys and transformers' ``LlamaForCausalLM``.

Kernels of EasyLM are ``[in, out]``, weights of transformers ``[out, in]``. Rotary angles turn neighbouring pairs of a head's channels
in EasyLM, and channel ``i`` with channel ``i + head / 2`` in transformers, so that the rows of queries and keys change places.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from kshot.convert.easylm import Key

Form = Literal["plain", "transposed", "queries", "keys"]
"""How a weight differs between the two."""


@dataclass(frozen=True)
class Pair:
    """A weight under its two names."""

    easylm: Key
    llama: str
    form: Form


_LAYER: tuple[tuple[tuple[str, ...], str, Form], ...] = (
    (("attention_norm",), "input_layernorm", "plain"),
    (("attention", "wq"), "self_attn.q_proj", "queries"),
    (("attention", "wk"), "self_attn.k_proj", "keys"),
    (("attention", "wv"), "self_attn.v_proj", "transposed"),
    (("attention", "wo"), "self_attn.o_proj", "transposed"),
    (("ffn_norm",), "post_attention_layernorm", "plain"),
    (("feed_forward", "w1"), "mlp.gate_proj", "transposed"),
    (("feed_forward", "w2"), "mlp.down_proj", "transposed"),
    (("feed_forward", "w3"), "mlp.up_proj", "transposed"),
)
EMBEDDING: Key = ("transformer", "wte", "embedding")
HEAD: Key = ("lm_head", "kernel")


def pairs(layers: int) -> list[Pair]:
    """All weights of a model of so many layers, in the order in which transformers has them."""
    found = [Pair(EMBEDDING, "model.embed_tokens.weight", "plain")]
    for layer in range(layers):
        for path, name, form in _LAYER:
            key = ("transformer", "h", str(layer), *path, "kernel")
            found.append(Pair(key, f"model.layers.{layer}.{name}.weight", form))
    found.append(Pair(("transformer", "ln_f", "kernel"), "model.norm.weight", "plain"))
    return [*found, Pair(HEAD, "lm_head.weight", "transposed")]


def to_llama(tensor: torch.Tensor, form: Form, heads: int, kv_heads: int) -> torch.Tensor:
    """A weight of transformers from that of EasyLM.

    Args:
        tensor: EasyLM's.
        form: how they differ.
        heads, kv_heads: of queries, and of keys and values.
    """
    if form == "plain":
        return tensor
    turned = tensor.t()
    if form == "transposed":
        return turned.contiguous()
    return halves_from_pairs(turned, heads if form == "queries" else kv_heads)


def to_easylm(tensor: torch.Tensor, form: Form, heads: int, kv_heads: int) -> torch.Tensor:
    """The inverse of :func:`to_llama`, bit for bit."""
    if form == "plain":
        return tensor
    if form != "transposed":
        tensor = pairs_from_halves(tensor, heads if form == "queries" else kv_heads)
    return tensor.t().contiguous()


def halves_from_pairs(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of each head from (0 1)(2 3)... to 0 2 4 ... 1 3 5 ...: from rotated neighbours to rotated halves [out, in]."""
    out, width = weight.shape
    return weight.reshape(heads, out // heads // 2, 2, width).transpose(1, 2).reshape(out, width)


def pairs_from_halves(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """The inverse of :func:`halves_from_pairs`."""
    out, width = weight.shape
    return weight.reshape(heads, 2, out // heads // 2, width).transpose(1, 2).reshape(out, width)


Make = Callable[[], torch.Tensor]
