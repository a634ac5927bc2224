"""Whether one vector can say what demonstrations say: how much their effects on different queries agree.

Demonstrations shift the hidden state of a query's last token in each layer. If the shifts of all queries point the same way, adding
one fixed vector can stand for them; if they do not, a method must look at the query (MimIC) or at more than one place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from kshot.episode import Episode
from kshot.errors import OptionError
from kshot.methods.activations import output_ends
from kshot.methods.fit import without
from kshot.models.base import PromptStyle
from kshot.models.visual_sentence import VisualSentenceModel
from kshot.models.vlm import VLM
from kshot.prompt import Template


@dataclass(frozen=True)
class Agreement:
    """How much the shifts of different queries agree.

    Attributes:
        cosine: mean cosine between the shifts of two different queries, over all pairs and layers: 1 for one common shift, about 0
            for unrelated ones.
        layers: the same for each decoder layer.
        queries: number of queries measured.
        shots: demonstrations that made the shifts.
    """

    cosine: float
    layers: tuple[float, ...]
    queries: int
    shots: int

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"Agreement of shifts (mean cosine between those of two queries, {self.queries} queries, {self.shots} shots): "
            f"{self.cosine:.3f}; by layer {', '.join(f'{value:.2f}' for value in self.layers)}. Near 1, one static vector can stand "
            "for the demonstrations; near 0, a method has to look at the query."
        )


def shift_agreement(
    vlm: VLM | VisualSentenceModel,
    episodes: Sequence[Episode],
    *,
    template: Template | None = None,
    style: PromptStyle = "auto",
    batch_size: int = 8,
) -> Agreement:
    """Agreement of the shifts hidden(with demonstrations) - hidden(without) at the last prompt token, in all decoder layers.

    Args:
        vlm: a model without an adapter.
        episodes: queries with demonstrations; their answers are not used.
        template, style: how they are written.
        batch_size: prompts that are read together.

    Raises:
        OptionError: fewer than two episodes, or one without demonstrations.
    """
    if len(episodes) < 2 or any(not episode.shots for episode in episodes):
        raise OptionError("shifts are compared between at least two queries, each with demonstrations")
    shown, bare = (
        output_ends(vlm, vlm.anatomy.layers, [vlm.encode(episode, template, style) for episode in some], batch_size)
        for some in (episodes, [without(episode) for episode in episodes])
    )
    layers = tuple(mean_cosine(after - before) for after, before in zip(shown, bare, strict=True))
    return Agreement(sum(layers) / len(layers), layers, len(episodes), max(episode.shots for episode in episodes))


def mean_cosine(vectors: torch.Tensor) -> float:
    """Mean cosine between two different rows of ``[n, width]``; a row of zeros has cosine 0 with all others."""
    units = torch.nn.functional.normalize(vectors.double(), dim=-1)
    count = len(units)
    total = units.sum(0).square().sum() - units.square().sum()
    return float(total / (count * (count - 1)))
