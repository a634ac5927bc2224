"""Outputs of single attention heads: measured and replaced where they enter the output projection."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from kshot.methods.activations import hooks
from kshot.methods.layers import ShiftLayer
from kshot.methods.places import attending, attention_place, output_projection
from kshot.models.anatomy import Anatomy
from kshot.models.prefix import progress


def head_maps(config: Any, anatomy: Anatomy) -> dict[int, tuple[nn.Module, int, int]]:
    """The output projection of each chosen layer's self-attention, the number of heads and their width, by layer number."""
    found = {}
    for number in attending(config, anatomy):
        place = attention_place(anatomy, number, ShiftLayer)
        found[number] = output_projection(place.module, anatomy.hidden_size), place.heads, place.head_width
    return found


def mean_heads(material: Any, maps: Mapping[int, tuple[nn.Module, int, int]]) -> dict[int, torch.Tensor]:
    """Mean outputs of heads at the ends of prompts with demonstrations: ``[heads, width]`` by layer number.

    Args:
        material: a :class:`~kshot.methods.fit.Material`.
        maps: of :func:`head_maps`.
    """
    ends = material.input_ends([projection for projection, _, _ in maps.values()], material.shown)
    return {
        number: states.mean(0).reshape(heads, width)
        for (number, (_, heads, width)), states in zip(maps.items(), ends, strict=True)
    }


@contextmanager
def replaced(
    maps: Mapping[int, tuple[nn.Module, int, int]],
    means: Mapping[int, torch.Tensor],
    gates: Mapping[int, torch.Tensor],
    from_end: torch.Tensor,
) -> Iterator[None]:
    """Forward passes within the block have the outputs of some heads replaced by means, at one token of each row.

    Args:
        maps: of :func:`head_maps`.
        means: of :func:`mean_heads`.
        gates: which heads, ``[rows, heads]`` by layer number, 0 or 1.
        from_end: the token, counted from the end of the row (1 is the last), ``[rows]``.
    """

    def listen(number: int) -> Any:
        def before(module: nn.Module, given: Any) -> Any:
            # What the rows have in common is read in a batch of one, and is not to be changed.
            if progress.unfinished or len(given[0]) != len(from_end):
                return None
            states = given[0].clone()
            rows = torch.arange(len(states), device=states.device)
            places = states.shape[1] - from_end.to(states.device)
            gate = gates[number].to(states.device, states.dtype).unsqueeze(-1)
            mean = means[number].to(states.device, states.dtype)
            own = states[rows, places].unflatten(-1, mean.shape)
            states[rows, places] = torch.lerp(own, mean.expand_as(own), gate).flatten(1)
            return (states, *given[1:])

        return maps[number][0].register_forward_pre_hook(before)

    with hooks([listen(number) for number in gates]):
        yield


def projected(projection: nn.Module, heads: torch.Tensor, chosen: Sequence[int]) -> torch.Tensor:
    """What some heads add to the residual stream: ``[width of the stream]``, float32, on the CPU.

    Args:
        projection: the output projection.
        heads: outputs of all its heads, ``[heads, width]``.
        chosen: numbers of those that count.
    """
    like = next(weight for weight in projection.parameters() if weight.dtype.is_floating_point)
    kept = torch.zeros_like(heads)
    kept[list(chosen)] = heads[list(chosen)]
    both = torch.stack([kept.flatten(), torch.zeros_like(kept).flatten()]).to(like.device, like.dtype)
    with torch.no_grad():
        found, constant = projection(both).float().cpu()
    return found - constant
