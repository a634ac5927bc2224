"""Keys and values of one sequence, continued by many: nothing is copied that need not be."""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

Buffers = tuple[torch.Tensor, torch.Tensor]
"""Room for the keys and the values of a layer, ``[rows, heads, tokens, width]``, the prefix's own at its beginning."""


def checked_cache(cache: Any) -> Any:
    """The cache, if it is one that can be shared.

    Raises:
        ValueError: it holds something else than keys and values per layer.
    """
    odd = {type(layer).__name__ for layer in cache.layers if not isinstance(layer, DynamicLayer)}
    if odd:
        raise ValueError(f"cache layers of another kind: {', '.join(sorted(odd))}")
    return cache


def expand(cache: Cache, rows: int, room: int = 0, spare: dict[tuple[int, int], Buffers] | None = None) -> Cache:
    """A cache for ``rows`` sequences that all begin with a cached prefix; the original stays as it is.

    Args:
        cache: of a batch of one.
        rows: number of sequences.
        room: tokens that will follow one by one. Without, nothing is copied: the layers hold views with a stride of zero, and the
            first update, which concatenates, makes new tensors. With it, each layer gets a buffer that is written in place.
        spare: buffers of earlier calls, by rows and layer, that nobody uses any more; they are used again or replaced.
    """
    spare = {} if spare is None else spare
    expanded = copy.copy(cache)
    expanded.layers = []
    for number, layer in enumerate(layers_of(cache)):
        keys, values = layer.keys, layer.values
        if room and type(layer) is DynamicLayer:
            length = keys.shape[-2]
            buffers = spare.get((rows, number))
            if buffers is None or buffers[0].shape[-2] < length + room:
                buffers = spare[rows, number] = (_roomy(keys, rows, room), _roomy(values, rows, room))
            expanded.layers.append(RoomyLayer(buffers, length))
        else:
            view = copy.copy(layer)
            view.keys, view.values = (states.expand(rows, -1, -1, -1) for states in (keys, values))
            expanded.layers.append(view)
    return expanded


def _roomy(states: torch.Tensor, rows: int, room: int) -> torch.Tensor:
    _, heads, length, width = states.shape
    buffer = states.new_empty(rows, heads, length + room, width)
    buffer[..., :length, :] = states
    return buffer


class RoomyLayer(DynamicLayer):
    """A cache layer that grows in place while there is room.

    transformers' own layer concatenates, that is, copies the whole prefix for each new token: with long prefixes and small models
    that takes longer than all else. (Its static layer has a fixed length and needs masks of that length.)

    Args:
        buffers: filled up to ``length``.
        length: tokens in them.
    """

    def __init__(self, buffers: Buffers, length: int):
        super().__init__()
        self.dtype, self.device, self.is_initialized = buffers[0].dtype, buffers[0].device, True
        self._buffers = buffers
        self.keys, self.values = (buffer[..., :length, :] for buffer in buffers)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append keys and values ``[rows, heads, tokens, width]``; give all."""
        held: Any = (self.keys, self.values)
        start = held[0].shape[-2]
        end = start + key_states.shape[-2]
        # Selecting or reordering rows puts other tensors in place of the views.
        in_place = all(a.data_ptr() == b.data_ptr() for a, b in zip(held, self._buffers, strict=True))
        if not in_place or end > self._buffers[0].shape[-2] or len(held[0]) != len(self._buffers[0]):
            return super().update(key_states, value_states, *args, **kwargs)
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[..., start:end, :] = states
        self.keys, self.values = (buffer[..., :end, :] for buffer in self._buffers)
        return self.keys, self.values


def layers_of(cache: Cache) -> list[Any]:
    """The layers, known to be of the kind that :func:`checked_cache` lets through."""
    return list(cache.layers)
