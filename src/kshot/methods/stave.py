"""STAVE (arXiv 2610.07572): two vectors added to the input embeddings, and nothing else.

On the embeddings e that the decoder's first layer is given, text and images alike::

    e'_t = e_t + v_cue    at the tokens of answer cues ("Short answer:", wherever it occurs) and at the last token of the prompt
    e'_t = e_t + v_other  at all others, generated ones included

Both begin at zero, so that an untrained adapter is the base model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from kshot.methods.configuration import ShiftConfig
from kshot.methods.reading import ReadingLayer, ReadingModel, cue_list
from kshot.methods.registration import register_method
from kshot.models.anatomy import Anatomy


@dataclass
class StaveConfig(ShiftConfig):
    """STAVE: a vector for the tokens that ask for an answer, and one for all others.

    Args:
        layers: layers to whose input the vectors are added; default: the first alone, whose input are the embeddings.
        cue: ids of the tokens with which prompts end, as :func:`~kshot.methods.activations.answer_cue` finds them. Training needs
            them: without, the last token read is taken for the prompt's end, and in training that is the answer's.
    """

    cue: list[int] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.cue = cue_list(self.cue)

    def chosen(self, anatomy: Anatomy) -> list[int]:
        return [0] if self.layers is None else super().chosen(anatomy)


class StaveLayer(ReadingLayer):
    """Two vectors ``[width]``."""

    adapter_layer_names = ("stave_cue", "stave_other")
    stave_cue: nn.ParameterDict
    stave_other: nn.ParameterDict

    def initial(self, config: StaveConfig, random: torch.Generator) -> Mapping[str, torch.Tensor]:
        return {"stave_cue": torch.zeros(self.width), "stave_other": torch.zeros(self.width)}

    def hook(self, module: nn.Module) -> Any:
        return module.register_forward_pre_hook(self._before, with_kwargs=True)

    def combine(self, adapter: str, parts: Sequence[tuple[str, float]]) -> None:
        for held in (self.stave_cue, self.stave_other):
            held[adapter].copy_(sum(weight * held[name] for name, weight in parts))

    def _before(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        acting = self.acting()
        if not acting:
            return None
        hidden: torch.Tensor = kwargs["hidden_states"] if not args else args[0]
        for adapter in acting:
            cue = self.reading[0].cues(hidden, self.configs[adapter].cue).unsqueeze(-1)
            own, other = (held[adapter].to(hidden.dtype) for held in (self.stave_cue, self.stave_other))
            hidden = hidden + torch.where(cue, own, other)
        return ((hidden, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": hidden})


class StaveModel(ReadingModel):
    """Puts STAVE into a model."""

    tuner_layer_cls = StaveLayer
    unmergeable = "depends on what a token is in the prompt"


register_method(
    "stave",
    config=StaveConfig,
    tuner=StaveModel,
    summary="two learnt vectors added to the input embeddings, one where an answer is asked for (arXiv 2610.07572)",
    combinable=True,
)
