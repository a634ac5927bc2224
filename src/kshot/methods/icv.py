"""In-context vectors (arXiv 2311.06668): the direction in which demonstrations move the hidden states, found without training.

With d_i = h_l(D_i, q_i) - h_l(q_i), the difference that demonstrations make at the last prompt token behind layer l, u_l is the first
principal direction of the d_i (the unit vector with the largest sum of (u . d_i)^2), turned to where they point. At every position::

    h' = (h + s v) * |h| / |h + s v|,         v_l = u_l * mean_i(u_l . d_i)

The paper's vector has unit length; ``length="unit"`` gives that, and the strength then has to make up for the size of hidden states.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn

from kshot.errors import OptionError
from kshot.methods.configuration import ShiftConfig
from kshot.methods.layers import ResidualShiftLayer
from kshot.methods.live import rescaled
from kshot.methods.registration import register_method
from kshot.methods.tuner import ShiftModel

STRENGTHS = (0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
"""Strengths that are tried."""


@dataclass
class IcvConfig(ShiftConfig):
    """ICV: principal directions of what demonstrations change, added to the hidden states and rescaled.

    Args:
        strength: factor s of the vectors; to :func:`~kshot.methods.fit.fit_method`, ``None`` (the default) means: the one among
            :data:`STRENGTHS` (times the mean length of the hidden states, with unit vectors) that does best on held-out examples.
        length: ``"shift"``: vectors as long as the mean shift along them; ``"unit"``: of length 1.
        direction: ``"principal"``, or ``"mean"``: that of the mean difference.
    """

    only_initial = ("strength", "length", "direction")  # what they stand for is in the vectors that are added up

    strength: float | None = None
    length: Literal["shift", "unit"] = "shift"
    direction: Literal["principal", "mean"] = "principal"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, known in {"length": ("shift", "unit"), "direction": ("principal", "mean")}.items():
            if getattr(self, name) not in known:
                raise OptionError(f"unknown {name} {getattr(self, name)!r}: use {known[0]!r} or {known[1]!r}")


class IcvLayer(ResidualShiftLayer):
    """A vector ``[width]``."""

    adapter_layer_names = ("icv_vector",)
    icv_vector: nn.ParameterDict

    def initial(self, config: IcvConfig, random: torch.Generator) -> Mapping[str, torch.Tensor]:
        return {"icv_vector": torch.zeros(self.width)}

    def shift(self, adapter: str, hidden: torch.Tensor) -> torch.Tensor:
        return hidden if self.configs[adapter].strength == 0 else rescaled(hidden, self.offset(adapter))

    def offset(self, adapter: str) -> torch.Tensor:
        """What is added, ``[width]``."""
        strength = self.configs[adapter].strength
        return self.icv_vector[adapter] * (1.0 if strength is None else strength)

    def combine(self, adapter: str, parts: Sequence[tuple[str, float]]) -> None:
        self.configs[adapter].strength = 1.0
        self.icv_vector[adapter].copy_(sum(weight * self.offset(name) for name, weight in parts))


class IcvModel(ShiftModel):
    """Puts in-context vectors into a model."""

    tuner_layer_cls = IcvLayer
    unmergeable = "is rescaled to the length of the hidden state"


def direction(differences: torch.Tensor) -> torch.Tensor:
    """The first principal direction ``[width]`` of differences ``[examples, width]`` (not centred), turned to their mean."""
    _, _, rows = torch.linalg.svd(differences.double(), full_matrices=False)
    sign = torch.sign(rows[0] @ differences.double().mean(0))
    return (rows[0] * (sign if sign else 1.0)).to(differences.dtype)


def estimate(material: Any, config: IcvConfig) -> Any:
    """Vectors of all chosen layers, and the strength unless it is given.

    Args:
        material: a :class:`~kshot.methods.fit.Material`.
        config: the method's options.

    Returns:
        A :class:`~kshot.methods.fit.Estimate`.
    """
    from kshot.methods.fit import Estimate

    numbers = config.chosen(material.anatomy)
    modules = [material.anatomy.layers[number] for number in numbers]
    shown, bare = material.ends(modules, material.shown), material.ends(modules, material.bare)
    values: dict[tuple[int, str], torch.Tensor] = {}
    lengths = []
    for number, after, before in zip(numbers, shown, bare, strict=True):
        moved = after - before
        unit = direction(moved) if config.direction == "principal" else moved.mean(0) / moved.mean(0).norm()
        values[number, "icv_vector"] = unit if config.length == "unit" else unit * (moved @ unit).mean()
        lengths.append(before.norm(dim=-1).mean())
    if config.strength is not None:
        return Estimate(config, values)
    unit_strength = float(torch.stack(lengths).mean()) if config.length == "unit" else 1.0
    candidates = [Estimate(replace(config, strength=s * unit_strength), values) for s in STRENGTHS]
    return material.best(candidates, "choosing the strength")


register_method(
    "icv",
    config=IcvConfig,
    tuner=IcvModel,
    summary="the first principal direction of what demonstrations change, a layer, added and rescaled (arXiv 2311.06668)",
    trainable=False,
    combinable=True,
    estimate=estimate,
)
