"""I2CL, implicit in-context learning (arXiv 2405.14660): mean activations of demonstrations, mixed in by four numbers a layer.

A_l and M_l are the mean outputs of layer l's attention and MLP at the last tokens of demonstrations, each read alone with its answer.
At every position, generated ones included, what attention and MLP add to the residual stream becomes::

    a' = lambda_a A_l + beta_a a,        m' = lambda_m M_l + beta_m m

The coefficients begin at 0.1 and 1 and are calibrated by a few steps on the support set's own answers, without demonstrations, while
noise is added to a' and m' so that they do not fit those examples alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from kshot.episode import Episode, Example
from kshot.errors import ModelError, OptionError
from kshot.methods.activations import answer_length, answer_log_probabilities, bar, kinds
from kshot.methods.configuration import ShiftConfig
from kshot.methods.layers import Place, ResidualShiftLayer, generator
from kshot.methods.places import attending, mlp_of, own_attention
from kshot.methods.registration import register_method
from kshot.methods.tuner import ShiftModel
from kshot.models.anatomy import Anatomy


@dataclass
class I2clConfig(ShiftConfig):
    """I2CL: mean activations of demonstrations, mixed into attention and MLP outputs by calibrated coefficients.

    Args:
        injected: lambda, how much of the mean activation is added: initial value of all layers.
        kept: beta, how much of the own activation is kept: initial value of all layers.
        steps: steps of calibration; 0 leaves the coefficients at their initial values.
        examples: examples in each step.
        learning_rate, weight_decay: of AdamW.
        noise: length of the noise in calibration, relative to the activation it is added to.
    """

    injected: float = 0.1
    kept: float = 1.0
    steps: int = 100
    examples: int = 8
    learning_rate: float = 0.01
    weight_decay: float = 0.001
    noise: float = 0.001

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 0 or self.examples < 1:
            raise OptionError(f"steps={self.steps}, examples={self.examples}: must be 0 or more, and 1 or more")


class I2clLayer(ResidualShiftLayer):
    """A mean activation ``[width]`` and the coefficients lambda and beta ``[2]``. Subclasses: attention and MLP.

    Attributes:
        noise: source of random numbers and relative length of the noise, while coefficients are calibrated.
    """

    def __init__(self, place: Place):
        super().__init__(place)
        self.noise: tuple[torch.Generator, float] | None = None

    def initial(self, config: I2clConfig, random: torch.Generator) -> Mapping[str, torch.Tensor]:
        mean, mixture = self.adapter_layer_names
        return {mean: torch.zeros(self.width), mixture: torch.tensor([config.injected, config.kept])}

    def shift(self, adapter: str, hidden: torch.Tensor) -> torch.Tensor:
        mean, mixture = (getattr(self, name)[adapter].to(hidden.dtype) for name in self.adapter_layer_names)
        mixed = mixture[0] * mean + mixture[1] * hidden
        if self.noise is None:
            return mixed
        random, length = self.noise
        drawn = torch.randn(mixed.shape, generator=random).to(mixed.device, mixed.dtype)
        return mixed + length * drawn * (mixed.norm(dim=-1, keepdim=True) / drawn.norm(dim=-1, keepdim=True)).detach()


class I2clAttentionLayer(I2clLayer):
    """On the output of self-attention."""

    adapter_layer_names = ("i2cl_attention", "i2cl_attention_mixture")
    i2cl_attention: nn.ParameterDict
    i2cl_attention_mixture: nn.ParameterDict


class I2clMlpLayer(I2clLayer):
    """On the output of an MLP."""

    adapter_layer_names = ("i2cl_mlp", "i2cl_mlp_mixture")
    i2cl_mlp: nn.ParameterDict
    i2cl_mlp_mixture: nn.ParameterDict


class I2clModel(ShiftModel):
    """Puts I2CL into a model."""

    tuner_layer_cls = (I2clAttentionLayer, I2clMlpLayer)
    needs = ("residual_methods", "attention_methods")
    unmergeable = "also scales the model's own activations"

    def places(self, config: I2clConfig, anatomy: Anatomy, model: nn.Module) -> list[Place]:
        return injection_places(config, anatomy)


def injection_places(config: I2clConfig, anatomy: Anatomy) -> list[Place]:
    """Self-attention and MLPs of the chosen layers."""
    found = []
    for number in attending(config, anatomy):
        module = own_attention(anatomy, number)
        assert module is not None
        found.append(Place(number, module, I2clAttentionLayer, anatomy.hidden_size))
    for number in config.chosen(anatomy):
        found.append(Place(number, mlp_of(anatomy, number), I2clMlpLayer, anatomy.hidden_size))
    return found


def demonstrations(episodes: Sequence[Episode]) -> list[Example]:
    """The demonstrations of episodes, each once, in the order in which they are first shown."""
    return list({example.id: example for episode in episodes for example in episode.demonstrations}.values())


def estimate(material: Any, config: I2clConfig) -> Any:
    """Mean activations, and coefficients calibrated on the labelled queries.

    Args:
        material: a :class:`~kshot.methods.fit.Material`.
        config: the method's options.

    Returns:
        A :class:`~kshot.methods.fit.Estimate`.
    """
    from kshot.methods.fit import Estimate

    places = injection_places(config, material.anatomy)
    alone = [Episode((), example) for example in demonstrations(material.shown)]
    means = material.ends([place.module for place in places], alone, answers=True)
    values = {
        (place.number, place.kind.adapter_layer_names[0]): mean.mean(0)
        for place, mean in zip(places, means, strict=True)
    }
    found = Estimate(config, values)
    return Estimate(config, calibrated(material, found)) if config.steps else found


def calibrated(material: Any, found: Any) -> dict[tuple[int, str], torch.Tensor]:
    """The values of an estimate, with calibrated coefficients.

    Raises:
        ModelError: the loss is no number any more.
    """
    from kshot.methods.fit import ADAPTER, install, without

    config = found.config
    prompts = material.encoded([without(e) for e in (*material.shown, *material.held_out)], answers=True)
    by_kind: dict[int, list[Any]] = {}
    for kind, prompt in zip(kinds(material.vlm, prompts), prompts, strict=True):
        by_kind.setdefault(kind, []).append(prompt)
    model = install(material.vlm, found)
    try:
        layers = [layer for layer in model.modules() if isinstance(layer, I2clLayer)]
        mixtures = [getattr(layer, layer.adapter_layer_names[1])[ADAPTER] for layer in layers]
        random = generator(config.seed, "i2cl")
        for layer in layers:
            layer.noise = (random, config.noise) if config.noise else None
        # In the weights' own precision a step of AdamW may be lost in rounding; coefficients are few.
        exact = [mixture.detach().float().clone().requires_grad_() for mixture in mixtures]
        optimizer = torch.optim.AdamW(exact, lr=config.learning_rate, weight_decay=config.weight_decay)
        pools = list(by_kind.values())
        for step in bar(range(config.steps), "calibrating"):
            pool = pools[step % len(pools)]
            batch = [pool[int(i)] for i in torch.randperm(len(pool), generator=random)[: config.examples]]
            for mixture, value in zip(mixtures, exact, strict=True):
                mixture.data.copy_(value.data)
                mixture.requires_grad_(True)
            with torch.enable_grad():
                loss = -answer_log_probabilities(material.vlm, batch).sum() / sum(map(answer_length, batch))
            if not torch.isfinite(loss):
                raise ModelError(f"calibration of i2cl: the loss is {float(loss)} at step {step}; lower learning_rate")
            gradients = torch.autograd.grad(loss, mixtures)
            for value, gradient in zip(exact, gradients, strict=True):
                value.grad = gradient.float()
            optimizer.step()
        names = [(layer.number, layer.adapter_layer_names[1]) for layer in layers]
        return dict(found.values) | {n: value.detach().cpu() for n, value in zip(names, exact, strict=True)}
    finally:
        model.unload()


register_method(
    "i2cl",
    config=I2clConfig,
    tuner=I2clModel,
    summary="mean activations of demonstrations, mixed in by four calibrated coefficients a layer (arXiv 2405.14660)",
    trainable=False,
    estimate=estimate,
)
