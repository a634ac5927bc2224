"""What a model is made of, and what can be done with it.

Methods that change a model from within (shifts of hidden states or of attention) and caches that reuse part of its work need to
know where the text decoder's layers and self-attention modules are, and whether the architecture allows them. :func:`examine`
finds out from the model itself, by structure and signatures, not by its name.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

from torch import nn

from kshot.errors import ModelError
from kshot.models import features, prefix


@dataclass(frozen=True)
class Ability:
    """Whether a model can be used in some way, and why not (or with which care)."""

    possible: bool
    reason: str = ""

    def __bool__(self) -> bool:
        return self.possible

    def __str__(self) -> str:
        return ("yes" if self.possible else "no") + (f": {self.reason}" if self.reason else "")


@dataclass(frozen=True)
class Anatomy:
    """Report on a loaded model.

    Attributes:
        architecture: class name of the model.
        model_type: transformers' name of the architecture.
        parameters: number of parameters.
        decoder: the text decoder.
        layers: its layers, in order.
        attention: the text self-attention modules, in order; a layer may have none (hybrid models, cross-attention layers).
        cross_attention: modules in which text attends to images.
        hidden_size: width of the residual stream.
        heads: query heads of a self-attention module.
        kv_heads: its key and value heads.
        head_dim: width of a head.
        max_context: longest sequence the model takes, or ``None`` if it does not say.
        sliding_window: tokens seen by layers with a sliding window, or ``None``.
        hybrid: some layers are no attention layers (linear attention, state spaces, convolutions).
        prefix_lm: the prompt attends to itself in both directions.
        vision_features: whether features of images can be given in place of pixels.
        prefix_reuse: whether keys and values of fixed demonstrations can be reused.
        residual_methods: whether methods that shift the output of layers apply.
        attention_methods: whether methods inside self-attention apply (through transformers' attention interface).
    """

    architecture: str
    model_type: str
    parameters: int
    decoder: nn.Module
    layers: tuple[nn.Module, ...]
    attention: tuple[nn.Module, ...]
    cross_attention: tuple[nn.Module, ...]
    hidden_size: int
    heads: int
    kv_heads: int
    head_dim: int
    max_context: int | None
    sliding_window: int | None
    hybrid: bool
    prefix_lm: bool
    vision_features: Ability
    prefix_reuse: Ability
    residual_methods: Ability
    attention_methods: Ability

    def describe(self) -> str:
        """The report as text, one fact a line."""
        kinds = [
            name
            for name, present in (
                (f"sliding window of {self.sliding_window}", self.sliding_window is not None),
                ("hybrid", self.hybrid),
                ("prefix language model", self.prefix_lm),
                (f"{len(self.cross_attention)} cross-attention modules", bool(self.cross_attention)),
            )
            if present
        ]
        facts = {
            "architecture": f"{self.architecture} ({self.model_type})",
            "parameters": f"{self.parameters:,}",
            "decoder": f"{type(self.decoder).__name__}, {len(self.layers)} layers, width {self.hidden_size}",
            "self-attention": f"{len(self.attention)} modules, {self.heads} heads of {self.head_dim}, {self.kv_heads} key/value heads",
            "context": f"{self.max_context:,} tokens" if self.max_context else "unknown",
            "kind": ", ".join(kinds) or "causal decoder, full attention",
            "vision features": str(self.vision_features),
            "prefix reuse": str(self.prefix_reuse),
            "residual methods": str(self.residual_methods),
            "attention methods": str(self.attention_methods),
        }
        width = max(map(len, facts))
        return "\n".join(f"{name:<{width}}  {fact}" for name, fact in facts.items())


def examine(model: Any) -> Anatomy:
    """The anatomy of a transformers model of images and text.

    Raises:
        ModelError: the model has no text decoder made of layers.
    """
    decoder, layers = _decoder(model)
    attention = tuple(m for m in _modules(layers) if _is_self_attention(m))
    cross = tuple(m for m in decoder.modules() if _is_cross_attention(m))  # not always inside the layers (Idefics)
    config = model.config.get_text_config(decoder=True)
    heads, kv_heads, head_dim = _heads(attention, config)
    carrying = sum(any(_is_self_attention(m) for m in layer.modules()) for layer in layers)
    crossing = sum(any(_is_cross_attention(m) for m in layer.modules()) for layer in layers)
    hybrid = carrying + crossing < len(layers) and not all(_has_both(layer) for layer in layers)
    prefix_lm = any(getattr(m, "is_causal", True) is False for m in attention)
    windows = [w for m in attention if isinstance(w := getattr(m, "sliding_window", None), int)]
    window = min(windows) if windows else None
    return Anatomy(
        architecture=type(model).__name__,
        model_type=str(model.config.model_type),
        parameters=sum(p.numel() for p in model.parameters()),
        decoder=decoder,
        layers=layers,
        attention=attention,
        cross_attention=cross,
        hidden_size=int(config.hidden_size),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        # Models converted by kshot may have been trained beyond the length that their configuration names.
        max_context=getattr(model.config, "kshot_max_context", getattr(config, "max_position_embeddings", None)),
        sliding_window=window,
        hybrid=hybrid,
        prefix_lm=prefix_lm,
        vision_features=_unless(features.unsupported(model)),
        prefix_reuse=_unless(prefix.unsupported(model), _care(hybrid, window)),
        residual_methods=_residual_methods(prefix_lm),
        attention_methods=_attention_methods(attention, hybrid, prefix_lm),
    )


def _decoder(model: Any) -> tuple[nn.Module, tuple[nn.Module, ...]]:
    """The text decoder and its layers; a few models keep them one or two levels below ``get_decoder()``."""
    candidates: list[Any] = [model.get_decoder()]
    for candidate in candidates:  # grows: breadth first
        layers = getattr(candidate, "layers", None)
        if isinstance(layers, nn.ModuleList) and len(layers):
            return candidate, tuple(layers)
        inner = [getattr(candidate, name, None) for name in ("model", "decoder")]
        candidates += [part for part in inner if isinstance(part, nn.Module) and part is not candidate]
    raise ModelError(f"{type(model).__name__} has no text decoder made of layers")


def _modules(layers: tuple[nn.Module, ...]) -> list[nn.Module]:
    return [module for layer in layers for module in layer.modules()]


def _is_self_attention(module: nn.Module) -> bool:
    # Cross-attention shares layer_idx and is_causal with self-attention (Idefics), or has no is_causal (Mllama).
    return (
        hasattr(module, "layer_idx")
        and hasattr(module, "is_causal")
        and not getattr(module, "is_cross_attention", False)
    )


def _is_cross_attention(module: nn.Module) -> bool:
    if getattr(module, "is_cross_attention", False):
        return True
    inputs = inspect.signature(module.forward).parameters
    return hasattr(module, "k_proj") and "cross_attention_states" in inputs


def _has_both(layer: nn.Module) -> bool:
    return any(_is_self_attention(m) for m in layer.modules())


def _heads(attention: tuple[nn.Module, ...], config: Any) -> tuple[int, int, int]:
    """Heads, key/value heads, head width, measured on a module where the projections have the usual names."""
    heads = int(config.num_attention_heads)
    kv_heads = int(getattr(config, "num_key_value_heads", None) or heads)
    head_dim = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    first: Any = attention[0] if attention else None
    head_dim = int(getattr(first, "head_dim", None) or head_dim)
    if first is not None and hasattr(first, "o_proj") and hasattr(first.o_proj, "in_features"):
        heads = first.o_proj.in_features // head_dim
    if first is not None and hasattr(first, "k_proj") and hasattr(first.k_proj, "out_features"):
        kv_heads = first.k_proj.out_features // head_dim
    return heads, kv_heads, head_dim


def _unless(obstacle: str | None, care: str = "") -> Ability:
    return Ability(True, care) if obstacle is None else Ability(False, obstacle)


def _care(hybrid: bool, window: int | None) -> str:
    if hybrid:
        return "queries in groups of equal length (padding would enter the recurrent state)"
    if window is not None:
        return "queries in groups of equal length where padding would use up the sliding window"
    return ""


def _residual_methods(prefix_lm: bool) -> Ability:
    return Ability(
        True, "prefix language model: the shift reaches tokens that see the whole prompt" if prefix_lm else ""
    )


def _attention_methods(attention: tuple[nn.Module, ...], hybrid: bool, prefix_lm: bool) -> Ability:
    if not attention:
        return Ability(False, "no self-attention modules of transformers' attention interface were found")
    if prefix_lm:
        return Ability(True, "prefix language model: the shift reaches tokens that see the whole prompt")
    if hybrid:
        return Ability(True, f"only in the {len(attention)} layers with self-attention")
    return Ability(True)
