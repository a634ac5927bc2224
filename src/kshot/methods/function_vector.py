"""Function vectors (arXiv 2310.15213): what the heads that carry a task add to the residual stream, added without demonstrations.

1. a_lj: mean output of head j of layer l at the last token of prompts with demonstrations.
2. Its causal indirect effect: in prompts whose demonstrations have their answers shuffled, its output at the last token is replaced
   by a_lj; the effect is how much more probable the right answer's first token becomes, on average.
3. v = sum of W_O a_lj over the heads with the highest effect (W_O: the output projection's columns of that head).

At one layer, at the last token of a prompt: ``h' = h + s v``. Only the prompt's last token is changed; tokens generated behind it see
it through the keys and values of the layers above.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from kshot.data.derived import generator
from kshot.episode import Episode
from kshot.errors import OptionError
from kshot.methods.activations import bar, forward_many
from kshot.methods.configuration import ShiftConfig
from kshot.methods.heads import head_maps, mean_heads, projected, replaced
from kshot.methods.reading import PromptEndLayer, ReadingModel, cue_list
from kshot.methods.registration import register_method


@dataclass
class FunctionVectorConfig(ShiftConfig):
    """Function vector: the sum of the mean outputs of a task's heads, added at one layer.

    Args:
        layers: where it is added; to :func:`~kshot.methods.fit.fit_method`, the layers among which it chooses one.
        heads: number of heads that are summed.
        prompts: prompts with shuffled answers in which each head's effect is measured.
        strength: factor s of the vector.
        cue: ids of the tokens with which prompts end; see :mod:`kshot.methods.reading`.
    """

    only_initial = ("strength", "heads", "prompts")  # what they stand for is in the vectors that are added up

    heads: int = 10
    prompts: int = 16
    strength: float = 1.0
    cue: list[int] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.heads < 1 or self.prompts < 1:
            raise OptionError(f"heads={self.heads}, prompts={self.prompts}: both must be 1 or more")
        self.cue = cue_list(self.cue)


class FunctionVectorLayer(PromptEndLayer):
    """A vector ``[width]``."""

    adapter_layer_names = ("function_vector_sum",)
    function_vector_sum: nn.ParameterDict

    def initial(self, config: FunctionVectorConfig, random: torch.Generator) -> Mapping[str, torch.Tensor]:
        return {"function_vector_sum": torch.zeros(self.width)}

    def shift_end(self, adapter: str, hidden: torch.Tensor) -> torch.Tensor:
        return hidden + self.offset(adapter).to(hidden.dtype)

    def offset(self, adapter: str) -> torch.Tensor:
        """What is added, ``[width]``."""
        return self.configs[adapter].strength * self.function_vector_sum[adapter]

    def combine(self, adapter: str, parts: Sequence[tuple[str, float]]) -> None:
        self.configs[adapter].strength = 1.0
        self.function_vector_sum[adapter].copy_(sum(weight * self.offset(name) for name, weight in parts))


class FunctionVectorModel(ReadingModel):
    """Puts function vectors into a model."""

    tuner_layer_cls = FunctionVectorLayer
    needs = ("residual_methods", "attention_methods")
    unmergeable = "changes one token alone"


def shuffled(episode: Episode, seed: int) -> Episode:
    """The episode with the answers of its demonstrations dealt out anew among them."""
    shown = episode.demonstrations
    order = generator(seed, "function_vector", episode.query.id).permutation(len(shown))
    dealt = [example.with_(answer=shown[int(i)].answer) for example, i in zip(shown, order, strict=True)]
    return replace(episode, demonstrations=tuple(dealt))


@torch.no_grad()
def indirect_effects(
    material: Any, maps: Any, means: Mapping[int, torch.Tensor], prompts: int
) -> dict[int, torch.Tensor]:
    """Mean causal indirect effect of each head, ``[heads]`` by layer number.

    Args:
        material: a :class:`~kshot.methods.fit.Material`.
        maps, means: of :func:`~kshot.methods.heads.head_maps` and :func:`~kshot.methods.heads.mean_heads`.
        prompts: number of prompts with shuffled answers.
    """
    vlm = material.vlm
    pairs = [(number, head) for number, (_, heads, _) in maps.items() for head in range(heads)]
    effects = torch.zeros(len(pairs), dtype=torch.float64)
    episodes = [shuffled(episode, material.seed) for episode in material.shown[:prompts]]
    asked, answered = material.encoded(episodes), material.encoded(episodes, answers=True)
    for prompt, whole in bar(list(zip(asked, answered, strict=True)), "effects of heads"):
        start = whole.tokens.span("answer")[0]
        target = whole.tokens.ids[start]
        # The first row of each batch is left as it is, for comparison under the same rounding.
        for begin in range(0, len(pairs), material.batch_size):
            some = pairs[begin : begin + material.batch_size]
            gates = {number: torch.zeros(len(some) + 1, heads) for number, (_, heads, _) in maps.items()}
            for row, (number, head) in enumerate(some, 1):
                gates[number][row, head] = 1
            with replaced(maps, means, gates, torch.ones(len(some) + 1, dtype=torch.long)):
                logits = forward_many(vlm, prompt, len(some) + 1)
            right = logits.double().softmax(-1)[:, target].cpu()
            effects[begin : begin + len(some)] += right[1:] - right[0]
    found = (effects / len(episodes)).split([heads for _, heads, _ in maps.values()])
    return dict(zip(maps, found, strict=True))


def estimate(material: Any, config: FunctionVectorConfig) -> Any:
    """The vector, and the layer at which it makes held-out answers most probable.

    Args:
        material: a :class:`~kshot.methods.fit.Material`.
        config: ``layers`` are the candidates for adding it; heads are taken from all layers.

    Returns:
        A :class:`~kshot.methods.fit.Estimate`.
    """
    from kshot.methods.fit import Estimate

    maps = head_maps(replace(config, layers=None), material.anatomy)
    means = mean_heads(material, maps)
    effects = indirect_effects(material, maps, means, config.prompts)
    ranked = sorted(((float(e), n, j) for n, row in effects.items() for j, e in enumerate(row)), key=lambda t: -t[0])
    total = torch.zeros(material.anatomy.hidden_size)
    for number, (projection, _, _) in maps.items():
        chosen = [head for _, n, head in ranked[: config.heads] if n == number]
        if chosen:
            total += projected(projection, means[number], chosen)
    candidates = [
        Estimate(replace(config, layers=[number]), {(number, "function_vector_sum"): total})
        for number in config.chosen(material.anatomy)
    ]
    return material.best(candidates, "choosing the layer")


register_method(
    "function_vector",
    config=FunctionVectorConfig,
    tuner=FunctionVectorModel,
    summary="the sum of mean outputs of the heads with the highest causal effect, added at one layer (arXiv 2310.15213)",
    trainable=False,
    combinable=True,
    estimate=estimate,
)
