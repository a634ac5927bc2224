"""Task vectors (arXiv 2310.15916): the state in which demonstrations leave the model, put in place of the query's own.

theta is the output of one decoder layer at the last token of prompts that show demonstrations; at that layer, at the last token of
a prompt without them::

    h' = theta                                (with strength s: h + s (theta - h))

Only the prompt's last token is patched. Tokens generated behind it see it through the keys and values of the layers above.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from kshot.methods.configuration import ShiftConfig
from kshot.methods.reading import PromptEndLayer, ReadingModel, cue_list
from kshot.methods.registration import register_method


@dataclass
class TaskVectorConfig(ShiftConfig):
    """Task vector: the hidden state of the last prompt token at one layer.

    Args:
        layers: where it is patched in; to :func:`~kshot.methods.fit.fit_method`, the layers among which it chooses one.
        strength: 1 replaces the state, 0 leaves it as it is.
        cue: ids of the tokens with which prompts end; see :mod:`kshot.methods.reading`.
    """

    strength: float = 1.0
    cue: list[int] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.cue = cue_list(self.cue)


class TaskVectorLayer(PromptEndLayer):
    """A hidden state ``[width]``."""

    adapter_layer_names = ("task_vector_state",)
    task_vector_state: nn.ParameterDict

    def initial(self, config: TaskVectorConfig, random: torch.Generator) -> Mapping[str, torch.Tensor]:
        return {"task_vector_state": torch.zeros(self.width)}

    def shift_end(self, adapter: str, hidden: torch.Tensor) -> torch.Tensor:
        state = self.task_vector_state[adapter].to(hidden.dtype).expand_as(hidden)
        return torch.lerp(hidden, state, self.configs[adapter].strength)


class TaskVectorModel(ReadingModel):
    """Puts task vectors into a model."""

    tuner_layer_cls = TaskVectorLayer
    unmergeable = "replaces the hidden state of one token"


def estimate(material: Any, config: TaskVectorConfig) -> Any:
    """Mean states of prompts with demonstrations; the layer is the one that makes held-out answers most probable.

    Args:
        material: a :class:`~kshot.methods.fit.Material`.
        config: ``layers`` are the candidates.

    Returns:
        A :class:`~kshot.methods.fit.Estimate`.
    """
    from kshot.methods.fit import Estimate

    numbers = config.chosen(material.anatomy)
    states = material.ends([material.anatomy.layers[number] for number in numbers], material.shown)
    candidates = [
        Estimate(replace(config, layers=[number]), {(number, "task_vector_state"): state.mean(0)})
        for number, state in zip(numbers, states, strict=True)
    ]
    return material.best(candidates, "choosing the layer")


register_method(
    "task_vector",
    config=TaskVectorConfig,
    tuner=TaskVectorModel,
    summary="the hidden state of the last prompt token at one layer, patched into the zero-shot run (arXiv 2310.15916)",
    trainable=False,
    estimate=estimate,
)
