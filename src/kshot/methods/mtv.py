"""Multimodal task vectors (arXiv 2406.15334): mean outputs of heads over many prompts, for heads found by REINFORCE.

a_lj is the mean output of head j of layer l at the last token of prompts with demonstrations. For the chosen heads, at the last token
of a prompt without, before the output projection::

    z_lj' = a_lj                                (with strength s: z_lj + s (a_lj - z_lj))

Which heads is learnt as independent Bernoulli variables whose log-odds follow the REINFORCE gradient of the answers' loss on
held-out examples. Only the prompt's last token is changed; tokens generated behind it see it through keys and values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from kshot.errors import OptionError
from kshot.methods.activations import answer_length, answer_log_probabilities, bar
from kshot.methods.configuration import ShiftConfig
from kshot.methods.heads import head_maps, mean_heads, replaced
from kshot.methods.layers import Place, generator
from kshot.methods.places import attending, attention_place, output_projection
from kshot.methods.reading import ReadingLayer, ReadingModel, cue_list
from kshot.methods.registration import register_method
from kshot.models.anatomy import Anatomy


@dataclass
class MtvConfig(ShiftConfig):
    """MTV: mean outputs of some attention heads, patched in at the last prompt token.

    Args:
        heads: pairs of a layer's number and a head's, those that are replaced; ``None``: all of the chosen layers. To
            :func:`~kshot.methods.fit.fit_method` ``None`` means that they are to be found.
        strength: 1 replaces outputs, 0 leaves them as they are.
        iterations: steps of REINFORCE.
        rollouts: choices of heads that are tried in each step, all on the same examples.
        examples: held-out examples in each step.
        learning_rate: of the log-odds (Adam).
        cue: ids of the tokens with which prompts end; see :mod:`kshot.methods.reading`.
    """

    heads: list[list[int]] | None = None
    strength: float = 1.0
    iterations: int = 100
    rollouts: int = 8
    examples: int = 4
    learning_rate: float = 0.1
    cue: list[int] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.cue = cue_list(self.cue)
        if self.heads is not None:
            self.heads = [[int(layer), int(head)] for layer, head in self.heads]
        if min(self.iterations, self.examples) < 1 or self.rollouts < 2:
            raise OptionError("iterations and examples must be 1 or more, rollouts 2 or more")


class MtvLayer(ReadingLayer):
    """Mean outputs ``[heads, head width]``, in front of an output projection."""

    adapter_layer_names = ("mtv_output",)
    mtv_output: nn.ParameterDict

    def initial(self, config: MtvConfig, random: torch.Generator) -> Mapping[str, torch.Tensor]:
        return {"mtv_output": torch.zeros(self.heads, self.head_width)}

    def hook(self, module: nn.Module) -> Any:
        return module.register_forward_pre_hook(self._before)

    def gate(self, adapter: str) -> torch.Tensor:
        """How much of each head's output is replaced, ``[heads, 1]``."""
        config = self.configs[adapter]
        chosen = range(self.heads) if config.heads is None else [head for n, head in config.heads if n == self.number]
        gate = torch.zeros(self.heads, 1)
        gate[list(chosen)] = config.strength
        return gate

    def _before(self, module: nn.Module, given: Any) -> Any:
        states: torch.Tensor = given[0]
        for adapter in self.acting():
            end = self.prompt_end(adapter, states)
            if end is None:
                continue
            mean = self.mtv_output[adapter].to(states.dtype)
            own = states.unflatten(-1, mean.shape)
            gate = self.gate(adapter).to(states.device, states.dtype)
            states = torch.where(end, torch.lerp(own, mean.expand_as(own), gate).flatten(-2), states)
        return None if states is given[0] else (states, *given[1:])


class MtvModel(ReadingModel):
    """Puts multimodal task vectors into a model."""

    tuner_layer_cls = MtvLayer
    needs = ("attention_methods",)
    unmergeable = "replaces activations of one token"

    def places(self, config: MtvConfig, anatomy: Anatomy, model: nn.Module) -> list[Place]:
        found = []
        for number in attending(config, anatomy):
            attention = attention_place(anatomy, number, MtvLayer)
            found.append(replace(attention, module=output_projection(attention.module, anatomy.hidden_size)))
        return found


@torch.no_grad()
def find_heads(material: Any, config: MtvConfig, maps: Any, means: Mapping[int, torch.Tensor]) -> list[list[int]]:
    """The heads that REINFORCE prefers: those whose probability is above one half in the end.

    Args:
        material: a :class:`~kshot.methods.fit.Material`.
        config: iterations, rollouts, examples, learning rate, seed.
        maps, means: of :func:`~kshot.methods.heads.head_maps` and :func:`~kshot.methods.heads.mean_heads`.
    """
    from kshot.methods.fit import without

    random = generator(config.seed, "mtv")
    pairs = [(number, head) for number, (_, heads, _) in maps.items() for head in range(heads)]
    sizes = [heads for _, heads, _ in maps.values()]
    odds = torch.zeros(len(pairs), dtype=torch.float64)
    optimizer = torch.optim.Adam([odds], lr=config.learning_rate)
    prompts = material.encoded([without(episode) for episode in material.held_out], answers=True)
    for _ in bar(range(config.iterations), "choosing heads"):
        batch = [prompts[int(i)] for i in torch.randperm(len(prompts), generator=random)[: config.examples]]
        share = odds.sigmoid()
        tried = (torch.rand(config.rollouts, len(pairs), generator=random, dtype=torch.float64) < share).double()
        # All rollouts of an example at once: a row each.
        rewards = torch.zeros(config.rollouts, dtype=torch.float64)
        for prompt in batch:
            gates = dict(zip(maps, tried.split(sizes, dim=1), strict=True))
            place = torch.full((config.rollouts,), answer_length(prompt) + 1)
            with replaced(maps, means, gates, place):
                rewards += answer_log_probabilities(material.vlm, [prompt] * config.rollouts).double().cpu()
        advantage = (rewards - rewards.mean()) / len(batch)
        # The gradient of log p(tried) with respect to log-odds is tried - share.
        odds.grad = -(advantage[:, None] * (tried - share)).mean(0)
        optimizer.step()
    return [list(pair) for pair, value in zip(pairs, odds, strict=True) if value > 0]


def estimate(material: Any, config: MtvConfig) -> Any:
    """Mean outputs of all heads, and which of them to use unless that is given.

    Args:
        material: a :class:`~kshot.methods.fit.Material`.
        config: the method's options.

    Returns:
        A :class:`~kshot.methods.fit.Estimate`.
    """
    from kshot.methods.fit import Estimate

    maps = head_maps(config, material.anatomy)
    means = mean_heads(material, maps)
    heads = config.heads if config.heads is not None else find_heads(material, config, maps, means)
    return Estimate(replace(config, heads=heads), {(number, "mtv_output"): mean for number, mean in means.items()})


register_method(
    "mtv",
    config=MtvConfig,
    tuner=MtvModel,
    summary="mean outputs of heads chosen by REINFORCE, patched in at the last prompt token (arXiv 2406.15334)",
    trainable=False,
    estimate=estimate,
)
