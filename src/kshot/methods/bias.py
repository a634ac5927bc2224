"""A constant shift: LIVE without rescaling, which can be merged into the model as a bias and then costs nothing.

On the output h of the MLP or of the attention of each layer, at every position: ``h' = h + v``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from kshot.errors import OptionError
from kshot.methods.configuration import ShiftConfig
from kshot.methods.layers import Place, ResidualShiftLayer
from kshot.methods.merging import merge_biases
from kshot.methods.places import attending, mlp_of, output_projection, own_attention
from kshot.methods.registration import register_method
from kshot.methods.tuner import ShiftModel
from kshot.models.anatomy import Anatomy


@dataclass
class BiasConfig(ShiftConfig):
    """A learnt constant after each MLP or attention, which ``merge_and_unload`` turns into a bias.

    Args:
        placement: whether the outputs of MLPs (``"mlp"``) or of the attentions' output projections (``"attention"``) are shifted.
        std: standard deviation of the initial vectors.
    """

    placement: Literal["mlp", "attention"] = "mlp"
    std: float = 0.001

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.placement not in ("mlp", "attention"):
            raise OptionError(f"unknown placement {self.placement!r}: use 'mlp' or 'attention'")


class BiasLayer(ResidualShiftLayer):
    """A vector ``[width]``."""

    adapter_layer_names = ("bias_shift_vector",)
    bias_shift_vector: nn.ParameterDict

    def initial(self, config: BiasConfig, random: torch.Generator) -> Mapping[str, torch.Tensor]:
        return {"bias_shift_vector": torch.randn(self.width, generator=random) * config.std}

    def shift(self, adapter: str, hidden: torch.Tensor) -> torch.Tensor:
        return hidden + self.parameter("bias_shift_vector", adapter).to(hidden.dtype)

    def combine(self, adapter: str, parts: Sequence[tuple[str, float]]) -> None:
        self.bias_shift_vector[adapter].copy_(sum(weight * self.bias_shift_vector[name] for name, weight in parts))


class BiasModel(ShiftModel):
    """Puts constant shifts into a model."""

    tuner_layer_cls = BiasLayer

    def places(self, config: BiasConfig, anatomy: Anatomy, model: nn.Module) -> list[Place]:
        numbers = config.chosen(anatomy) if config.placement == "mlp" else attending(config, anatomy)
        return [Place(number, _part(config, anatomy, number), BiasLayer, anatomy.hidden_size) for number in numbers]

    def _merge(self, adapters: Sequence[str]) -> None:
        with torch.no_grad():
            shifts = {
                module: sum(layer.bias_shift_vector[name] for name in adapters if name in layer.configs)
                for module, layer in self._held()
                if isinstance(layer, BiasLayer) and any(name in layer.configs for name in adapters)
            }
            merge_biases(self.model, shifts)


def _part(config: BiasConfig, anatomy: Anatomy, number: int) -> nn.Module:
    if config.placement == "mlp":
        return mlp_of(anatomy, number)
    attention = own_attention(anatomy, number)
    assert attention is not None
    found: nn.Module = output_projection(attention, anatomy.hidden_size)
    return found


register_method(
    "bias",
    config=BiasConfig,
    tuner=BiasModel,
    peft_type="BIAS_SHIFT",  # "bias" is part of many parameters' names
    summary="a learnt constant after each MLP or attention, which can be merged into the model as a bias",
    needs=("residual_methods",),
    mergeable=True,
    combinable=True,
)
