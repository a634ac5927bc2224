"""Adapters that change the output of single attention heads: their layers, their tuner, and where they act."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from kshot.methods.attention import Heads
from kshot.methods.attention_selection import Selection, selection_for
from kshot.methods.layers import Place, ShiftLayer
from kshot.methods.places import attending, attention_place, query_projection
from kshot.methods.tuner import ShiftModel
from kshot.models.anatomy import Anatomy

Query = Literal["post_rope", "pre_rope"]


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

    def one_token(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        scale: float | None,
    ) -> torch.Tensor | None:
        """Attention and shift of one query a row in as few steps as can be, where this is the only method in the attention.

        Behind much attention each operation, and each step of Python, is read from memory anew: what decides on the way costs
        more than the shift.

        Args:
            query: ``[batch, heads, 1, width]``; key and value as for :func:`~kshot.methods.attend.attend`, and neither soft cap, nor
                dropout, nor gradients.

        Returns:
            ``[batch, 1, heads, width]``; ``None``: this has to go the long way.
        """
        return None

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
        self._selection = held_selection(modules) or selection_for(model, modules)

    def _new_layer(self, place: Place) -> ShiftLayer:
        layer = super()._new_layer(place)
        if isinstance(layer, HeadShiftLayer):
            layer.selection.append(self._selection)
        return layer


def held_selection(modules: Iterable[nn.Module]) -> Selection | None:
    """The selection that adapters which are there already use; ``None`` if attention modules have no such adapter."""
    for module in modules:
        for layer in module.children():
            if isinstance(layer, HeadShiftLayer) and layer.selection:
                return layer.selection[0]
    return None
