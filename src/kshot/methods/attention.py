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
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from kshot.errors import ModelError, OptionError
from kshot.methods.attention_kernels import attend
from kshot.methods.base import Place, ShiftLayer, ShiftModel
from kshot.methods.places import head_width, output_projection, own_attention, query_projection
from kshot.models.anatomy import Anatomy

logger = logging.getLogger(__name__)

PREFIX = "kshot_"
LAYERS = "kshot_layers"
"""Attribute of attention modules: those of their children that act on heads, while there are any."""
Query = Literal["post_rope", "pre_rope"]


class Heads(NamedTuple):
    """One call of a self-attention module, as adapters see it.

    Attributes:
        query: ``[batch, heads, queries, width]``, as the adapter's configuration wants it (rotated or not).
        output: attention over the model's own keys and values, of the same shape.
        normaliser: log-sum-exp of the masked logits, ``[batch, heads, queries]``, float32 or wider.
        rotated: the query that made the logits.
        key, value: ``[batch, key heads, keys, width]``.
        scale, softcap: of the logits; see :func:`~kshot.methods.attention_kernels.attend`.
    """

    query: torch.Tensor
    output: torch.Tensor
    normaliser: torch.Tensor
    rotated: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    scale: float
    softcap: float | None


class HeadShiftLayer(ShiftLayer):
    """Changes the output of the heads of a self-attention module, before its output projection.

    A query head of a model with grouped heads uses the key head ``number // (heads / key heads)``.
    """

    def __init__(self, place: Place):
        super().__init__(place)
        self.selection: list[Selection] = []  # at most one
        self._query_handle: Any = None
        self._plain_query: torch.Tensor | None = None

    def shift_heads(self, adapter: str, heads: Heads) -> torch.Tensor:
        """What one adapter makes of ``heads.output``; same shape and dtype.

        ``heads.output`` may be changed in place while gradients are off (and is, by others: keep a copy of what you keep).
        """
        raise NotImplementedError

    def attach(self, module: nn.Module) -> None:
        for selection in self.selection:
            selection.take(self, module)
        if self._query_handle is None and any(map(wants_plain_query, self.configs.values())):
            self._query_handle = query_projection(module).register_forward_hook(self._keep_query)

    def detach(self) -> None:
        for selection in self.selection:
            selection.release(self)
        if self._query_handle is not None:
            self._query_handle.remove()
            self._query_handle = None

    def shifted(self, heads: Heads, adapters: Sequence[str]) -> torch.Tensor:
        """What adapters make of the output of the call, one after another."""
        plain, self._plain_query = self._plain_query, None
        output = heads.output
        for adapter in adapters:
            query = heads.rotated
            if wants_plain_query(self.configs[adapter]):
                assert plain is not None
                query = plain
            if query is not heads.query or output is not heads.output:
                heads = heads._replace(query=query, output=output)
            output = self.shift_heads(adapter, heads)
        return output

    def _keep_query(self, module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        if self.acting():
            # A projection of twice the width also makes a gate: for each head, the query comes first (Qwen3.5).
            split = output.unflatten(-1, (self.heads, -1))
            self._plain_query = split[..., : self.head_width].transpose(1, 2)


def wants_plain_query(config: Any) -> bool:
    """Whether a configuration asks for the query as it is before its position rotates it."""
    return getattr(config, "query", "post_rope") == "pre_rope"


class HeadShiftModel(ShiftModel):
    """Puts adapters of a method that acts inside self-attention into a model."""

    needs = ("attention_methods",)
    unmergeable: ClassVar[str] = "depends on the query and on what it attends to"

    def places(self, config: Any, anatomy: Anatomy, model: nn.Module) -> list[Place]:
        return self.attention_places(config, anatomy, self.tuner_layer_cls)

    def attention_places(self, config: Any, anatomy: Anatomy, kind: type[ShiftLayer]) -> list[Place]:
        """The self-attention modules of the chosen layers, each with a child of class ``kind``."""
        return [attention_place(anatomy, number, kind) for number in attending(config, anatomy)]

    def _prepare_model(self, peft_config: Any, model: nn.Module) -> None:
        super()._prepare_model(peft_config, model)
        modules = [place.module for place in self._places.values() if issubclass(place.kind, HeadShiftLayer)]
        self._selection = selection_for(model, modules)

    def _new_layer(self, place: Place) -> ShiftLayer:
        layer = super()._new_layer(place)
        if isinstance(layer, HeadShiftLayer):
            layer.selection.append(self._selection)
        return layer


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


class Selection:
    """The text configurations of a model that are set to :func:`attention` while a layer needs it.

    Attributes:
        before: pairs of a configuration and the name of the implementation that it had.
        users: the layers that need it, each with the attention module that it is a child of.
    """

    def __init__(self, configs: list[Any]):
        self.before = [(config, str(config._attn_implementation)) for config in configs]
        self.users: list[tuple[HeadShiftLayer, Any]] = []
        self._watch: Any = None

    def take(self, layer: HeadShiftLayer, module: Any) -> None:
        """One more user, unless it is one already; the first sets the attention."""
        if any(user is layer for user, _ in self.users):
            return
        if not self.users:
            self.before = [(config, str(config._attn_implementation)) for config, _ in self.before]
            for config, name in self.before:
                config._attn_implementation_internal = register(name)
        self.users.append((layer, module))
        setattr(module, LAYERS, [*getattr(module, LAYERS, ()), layer])
        self._watch_first()

    def release(self, layer: HeadShiftLayer) -> None:
        """One user less, if it is one; the last restores what was before."""
        for user, module in self.users:
            if user is layer:
                left = [other for other in getattr(module, LAYERS) if other is not layer]
                setattr(module, LAYERS, left) if left else delattr(module, LAYERS)
        self.users = [(user, module) for user, module in self.users if user is not layer]
        self._watch_first()
        if not self.users:
            for config, name in self.before:
                if str(config._attn_implementation).startswith(PREFIX):
                    config._attn_implementation_internal = name

    def _watch_first(self) -> None:
        # One module is enough to notice a change, and a hook on each would be a good part of what an adapter costs.
        if self._watch is not None:
            self._watch.remove()
        self._watch = self.users[0][1].register_forward_pre_hook(self._check) if self.users else None

    def _check(self, module: Any, inputs: Any) -> None:
        # Without this, set_attn_implementation would switch adapters off in silence.
        for config, _ in self.before:
            name = str(config._attn_implementation)
            if not name.startswith(PREFIX) and any(layer.acting() for layer, _ in self.users):
                raise ModelError(
                    f"the attention of a model with an active adapter was set to {name!r}, which knows nothing of the "
                    "adapter: choose the attention before the adapter is put into the model"
                )


def selection_for(model: Any, modules: list[nn.Module]) -> Selection:
    """What lets attention modules of a model run through :func:`attention`, shared by all adapters in the model.

    Raises:
        ModelError: the model does not go through transformers' attention interface.
    """
    for module in modules:
        for layer in module.children():
            if isinstance(layer, HeadShiftLayer) and layer.selection:
                return layer.selection[0]
    configs: Any = list(
        {id(m.config): m.config for m in modules if isinstance(getattr(m, "config", None), PreTrainedConfig)}.values()
    )
    names = [str(config._attn_implementation) for config in configs]
    try:
        for config, name in zip(configs, names, strict=True):
            wanted: Any = register(name)
            for key in reversed(_way_to(model.config, config) or [""]):
                wanted = {key: wanted}
            model.set_attn_implementation(wanted)  # it checks whether the model can
        possible = configs and all(str(config._attn_implementation).startswith(PREFIX) for config in configs)
    finally:
        for config, name in zip(configs, names, strict=True):
            config._attn_implementation_internal = name
    if not possible:
        raise ModelError(
            f"{type(model).__name__} does not let its text attention be chosen through transformers' attention interface"
        )
    return Selection(configs)


def _way_to(config: Any, wanted: Any) -> list[str] | None:
    """The keys that lead from a configuration to one nested in it; empty if it is the same."""
    if config is wanted:
        return []
    for key in config.sub_configs:
        inner = getattr(config, key, None)
        way = _way_to(inner, wanted) if inner is not None else None
        if way is not None:
            return [key, *way]
    return None


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
        variant: kernel; see :func:`~kshot.methods.attention_kernels.attend`.

    Returns:
        ``[batch, queries, heads, width]``, and no weights.
    """
    # What runs for each token and layer is written for few steps of Python: with small models they are what an adapter costs.
    present = [(layer, layer.acting()) for layer in getattr(module, LAYERS, ())]
    layers = [pair for pair in present if pair[1]]
    if not layers:
        named = {"dropout": dropout, "scaling": scaling, "is_causal": is_causal, "softcap": softcap} | kwargs
        given = {name: argument for name, argument in named.items() if argument is not None}
        return plain(module, query, key, value, attention_mask, **given)
    for odd in ("position_bias", "s_aux", "cache"):
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
