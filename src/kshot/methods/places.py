"""Where in a decoder a method acts: MLPs, self-attention and its projections, found by structure.

Anatomy knows the layers and their self-attention. What lies within is told apart by shapes and order: names differ between
architectures (``mlp``, ``feed_forward``, ``fc2``; ``o_proj``, ``out_proj``, ``dense``).
"""

from __future__ import annotations

from typing import Any

from torch import nn

from kshot.errors import ModelError, OptionError
from kshot.methods.layers import Place, ShiftLayer
from kshot.models.anatomy import Anatomy


def own_attention(anatomy: Anatomy, number: int) -> nn.Module | None:
    """The self-attention of decoder layer ``number``; ``None`` if that layer has none (linear attention, cross-attention)."""
    held = {id(module) for module in anatomy.layers[number].modules()}
    return next((module for module in anatomy.attention if id(module) in held), None)


def mlp_of(anatomy: Anatomy, number: int) -> nn.Module:
    """The feed-forward part of decoder layer ``number``: the module whose output is added to the residual stream.

    It is the one part with matrices that is no attention. Where a layer holds its matrices itself (OPT), it is the last of them.

    Raises:
        ModelError: the layer is built in another way.
    """
    layer = anatomy.layers[number]
    looking = {id(module) for module in (*anatomy.attention, *anatomy.cross_attention)}
    parts = [
        part
        for part in layer.children()
        if any(weight.ndim >= 2 for weight in part.parameters()) and not any(id(m) in looking for m in part.modules())
    ]
    if parts and all(is_linear(part) for part in parts):
        return parts[-1]
    if len(parts) == 1:
        return parts[0]
    names = ", ".join(type(part).__name__ for part in parts) or "none"
    raise ModelError(
        f"layer {number} of {anatomy.architecture} ({type(layer).__name__}) has no single feed-forward part: {names}"
    )


def output_projection(attention: nn.Module, width: int) -> Any:
    """The linear map from all heads back to the residual stream of ``width``: the last that an attention module has.

    Raises:
        ModelError: there is none.
    """
    found = [part for part in attention.children() if is_linear(part) and part.out_features == width]
    if not found:
        raise ModelError(f"{type(attention).__name__} has no output projection to width {width}")
    return found[-1]


def query_projection(attention: nn.Module) -> Any:
    """The linear map that makes the queries alone.

    Raises:
        ModelError: queries, keys and values are made by one map, or it has another name than anywhere in transformers.
    """
    found = getattr(attention, "q_proj", None)
    if found is None or not is_linear(found):
        raise ModelError(f"{type(attention).__name__} has no query projection of its own (q_proj)")
    return found


def head_width(attention: nn.Module, anatomy: Anatomy) -> int:
    """Width of the attention's heads, of queries as well as of values.

    Raises:
        ModelError: queries and values have different widths (latent attention).
    """
    module: Any = attention
    width = int(getattr(module, "head_dim", None) or anatomy.head_dim)
    values = getattr(module, "v_head_dim", width)
    if values != width or hasattr(module, "kv_lora_rank"):
        raise ModelError(
            f"{type(attention).__name__}: heads whose queries and values differ in width are not supported"
        )
    return width


def is_linear(module: Any) -> bool:
    """Whether a module is a linear map (plain, quantized or wrapped by an adapter)."""
    return isinstance(getattr(module, "in_features", None), int) and isinstance(
        getattr(module, "out_features", None), int
    )


def attending(config: Any, anatomy: Anatomy) -> list[int]:
    """Numbers of the chosen decoder layers that have self-attention (hybrid models have layers without).

    Raises:
        OptionError: a layer was asked for by number that has none, or no layer has.
    """
    chosen = config.chosen(anatomy)
    found = [number for number in chosen if own_attention(anatomy, number) is not None]
    if not found or (config.layers is not None and len(found) < len(chosen)):
        missing = sorted(set(chosen) - set(found))
        raise OptionError(f"layers {missing} of {anatomy.architecture} have no self-attention")
    return found


def attention_place(anatomy: Anatomy, number: int, kind: type[ShiftLayer]) -> Place:
    """The self-attention of decoder layer ``number`` as a place.

    Raises:
        ModelError: its heads are of a kind that is not supported.
    """
    module = own_attention(anatomy, number)
    assert module is not None
    width = head_width(module, anatomy)
    # Not from the query projection, which may make more than queries.
    heads = output_projection(module, anatomy.hidden_size).in_features // width
    return Place(number, module, kind, anatomy.hidden_size, heads, width)
