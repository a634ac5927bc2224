"""LIVE, learnable in-context vectors (arXiv 2406.13185): one vector and one scale a layer, added and rescaled.

On the output h of a decoder layer (Idefics upstream) or of its MLP (Idefics2 upstream), at every position::

    h' = (h + alpha v) * |h| / |h + alpha v|
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, _weight_norm, is_grad_enabled, nn
from torch.linalg import vector_norm

from kshot.errors import OptionError
from kshot.methods.configuration import ShiftConfig
from kshot.methods.layers import Place, ResidualShiftLayer
from kshot.methods.places import mlp_of
from kshot.methods.registration import register_method
from kshot.methods.tuner import ShiftModel
from kshot.models.anatomy import Anatomy

FLOAT = torch.float32
LEAST = torch.finfo(torch.float32).tiny
"""Added to lengths that are divided by: it keeps zero out and is lost in the rounding of any other that models have."""


@dataclass
class LiveConfig(ShiftConfig):
    """LIVE: learnable in-context vectors, added to the hidden states and rescaled to their length.

    Args:
        placement: whether the outputs of decoder layers (``"layer"``) or of their MLPs (``"mlp"``) are shifted.
        sigmoid: whether the scale is sigmoid(alpha) in place of alpha.
        alpha: initial alpha; default: 0.1, or 0 with ``sigmoid``.
        std: standard deviation of the initial vectors.
    """

    only_initial = ("alpha", "std")

    placement: Literal["layer", "mlp"] = "layer"
    sigmoid: bool = False
    alpha: float | None = None
    std: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.placement not in ("layer", "mlp"):
            raise OptionError(f"unknown placement {self.placement!r}: use 'layer' or 'mlp'")


class LiveLayer(ResidualShiftLayer):
    """A vector ``[width]`` and a scale ``[1]``."""

    adapter_layer_names = ("live_vector", "live_alpha")
    live_vector: nn.ParameterDict
    live_alpha: nn.ParameterDict

    def __init__(self, place: Place):
        super().__init__(place)
        self._vectors, self._alphas = self._held["live_vector"], self._held["live_alpha"]

    def initial(self, config: LiveConfig, random: torch.Generator) -> Mapping[str, Tensor]:
        alpha = config.alpha if config.alpha is not None else (0.0 if config.sigmoid else 0.1)
        return {
            "live_vector": torch.randn(self.width, generator=random) * config.std,
            "live_alpha": torch.full((1,), alpha),
        }

    def offset(self, adapter: str) -> Tensor:
        """What is added, ``[width]``: the scaled vector."""
        alpha = self.parameter("live_alpha", adapter)
        return (alpha.sigmoid() if self.configs[adapter].sigmoid else alpha) * self.parameter("live_vector", adapter)

    def shift(self, adapter: str, hidden: Tensor) -> Tensor:
        return rescaled(hidden, self.offset(adapter))

    def _after(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        # One adapter is the usual case. What runs at each layer and token is written for few calls and lookups: in small models
        # they are what the method costs.
        active = self._active_adapter
        if len(active) == 1 and type(output) is Tensor and not self._disable_adapters:
            adapter = active[0]
            alpha, vector = self._alphas.get(adapter), self._vectors.get(adapter)
            if alpha is not None and vector is not None:
                offset = (alpha.sigmoid() if self.configs[adapter].sigmoid else alpha) * vector
                if output.dtype is FLOAT is offset.dtype and output.ndim == 3 and output.shape[1] == 1:
                    # One token of each sequence: the same by PyTorch's weight normalisation, v g / |v| for each v of the first
                    # dimension, which is one operation. Where a state is exactly minus the offset the formula has no value, and
                    # this gives NaN (a check would cost half of what it saves): so prompts, where padding can leave rows of zeros,
                    # go the general way.
                    return _weight_norm(output + offset, vector_norm(output, 2, -1, True), 0)
                return rescaled(output, offset)
        return super()._after(module, inputs, output)

    def combine(self, adapter: str, parts: Sequence[tuple[str, float]]) -> None:
        total = sum(weight * self.offset(name) for name, weight in parts)
        sigmoid = self.configs[adapter].sigmoid
        self.live_vector[adapter].copy_(total / 0.5 if sigmoid else total)
        self.live_alpha[adapter].fill_(0.0 if sigmoid else 1.0)


def rescaled(hidden: Tensor, offset: Tensor) -> Tensor:
    """``hidden + offset`` with the length that ``hidden`` had, in the dtype of ``hidden``.

    Args:
        hidden: ``[..., width]``; norms are taken over the width, in float32 at least.
        offset: broadcast against it.
    """
    if hidden.dtype is FLOAT is offset.dtype:
        # The same in fewer steps, which count while decoding.
        moved = hidden + offset
        factor = vector_norm(hidden, 2, -1, True) / (vector_norm(moved, 2, -1, True) + LEAST)
        # In place where it may be: for a long prompt it saves a tensor of the size of the hidden states.
        return moved * factor if is_grad_enabled() else moved.mul_(factor)
    moved = hidden + offset.to(hidden.dtype)
    exact = torch.promote_types(hidden.dtype, torch.float32)
    before = vector_norm(hidden, dim=-1, keepdim=True, dtype=exact)
    after = vector_norm(moved, dim=-1, keepdim=True, dtype=exact)
    return moved * (before / (after + torch.finfo(exact).tiny)).to(hidden.dtype)


class LiveModel(ShiftModel):
    """Puts LIVE into a model."""

    tuner_layer_cls = LiveLayer
    unmergeable = "is rescaled to the length of the hidden state"

    def places(self, config: LiveConfig, anatomy: Anatomy, model: nn.Module) -> list[Place]:
        if config.placement == "layer":
            return super().places(config, anatomy, model)
        return [
            Place(number, mlp_of(anatomy, number), LiveLayer, anatomy.hidden_size) for number in config.chosen(anatomy)
        ]


register_method(
    "live",
    config=LiveConfig,
    tuner=LiveModel,
    summary="one learnt vector and scale a layer, added to the hidden states and rescaled (arXiv 2406.13185)",
    combinable=True,
)
