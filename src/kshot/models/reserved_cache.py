"""A key-value cache whose memory is reserved once, for generation of known length.

The growing cache of transformers copies all keys and values at each new token, which for a few thousand tokens of context costs more
than reading them. The static one reads its whole reserved length at each token and hides the end by a mask. This one does neither:
new keys and values are written into their place, and attention gets a view of what is there.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer


class ReservedLayer(DynamicLayer):
    """Keys and values of one layer, of shape ``(rows, heads, capacity, width)``.

    Args:
        capacity: most tokens a row will have.
    """

    def __init__(self, capacity: int):
        super().__init__()
        self.capacity, self.length = capacity, 0
        self._held: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write new keys and values behind those there are; gives a view of all."""
        if self._held is None:
            self.lazy_initialization(key_states, value_states)
            self._held = self._reserved(key_states), self._reserved(value_states)
        end = self.length + key_states.shape[-2]
        if end > self.capacity:
            raise ValueError(f"{end} tokens in a cache reserved for {self.capacity}")
        for held, new in zip(self._held, (key_states, value_states), strict=True):
            held[:, :, self.length : end] = new
        self.length = end
        return self._view()

    def get_seq_length(self) -> int:
        """Tokens there are."""
        return self.length

    def select_rows(self, rows: torch.Tensor) -> None:
        """Make the rows of those numbers (which may repeat) the new rows, in new memory."""
        if self._held is None:
            return
        copies = []
        for held in self._held:
            copy = held.new_empty(len(rows), *held.shape[1:])
            there = held[:, :, : self.length]
            # A single row is spread without a second copy of it.
            copy[:, :, : self.length] = there if len(there) == 1 else there[rows.to(held.device)]
            copies.append(copy)
        self._held = copies[0], copies[1]
        self._view()

    def _reserved(self, states: torch.Tensor) -> torch.Tensor:
        rows, heads, _, width = states.shape
        return states.new_empty(rows, heads, self.capacity, width)

    def _view(self) -> tuple[torch.Tensor, torch.Tensor]:
        assert self._held is not None
        keys, values = (held[:, :, : self.length] for held in self._held)
        self.keys, self.values = keys, values
        return keys, values


def make_cache(config: Any, capacity: int) -> Cache:
    """An empty cache for a model: with reserved memory if all its layers attend to everything, otherwise that of transformers."""
    text = config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or ("full_attention",))
    if kinds != {"full_attention"} or getattr(text, "sliding_window", None):
        return DynamicCache(config=config)
    return Cache(layers=[ReservedLayer(capacity) for _ in range(text.num_hidden_layers)])


def select_rows(cache: Cache, rows: torch.Tensor) -> None:
    """Make the rows of those numbers (which may repeat) the rows of a cache."""
    layers: list[Any] = cache.layers
    for layer in layers:
        if isinstance(layer, ReservedLayer):
            layer.select_rows(rows)
        else:
            layer.batch_select_indices(rows)
