"""Fixed demonstrations are read once: the keys and values of a prompt's beginning, kept and shared by many queries.

All queries with the same demonstrations begin with the same tokens and images. A causal decoder computes the same keys and
values for them each time, so they are computed once (:func:`prefill`) and every batch of queries continues from there:
:func:`continue_forward` gives the arguments of ``model(...)``, :func:`continue_generate` those of ``model.generate(...)``. The
logits are those of the full prompt up to rounding.

What must be right for that, and is easily wrong:

- *positions*: queries are padded on the left, i.e. between prefix and query, so positions are always given explicitly;
- *multimodal rotary positions* (Qwen-VL) advance by fewer steps than there are tokens in an image;
- *masks by token type* (Gemma3 lets the tokens of an image see each other) are read by absolute place and must cover the prefix too;
- *sliding windows* count places, not positions: padding between prefix and query would use up the window;
- *cross attention* (Idefics) is not cached: the query needs the states of the images that it looks at, and only those.

Where the beginning of a prompt does depend on what follows, nothing can be shared; :func:`unsupported` says so in words.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.cache_utils import Cache

from kshot.models.memory import BudgetedCache, CacheStatistics, model_state, tensor_bytes
from kshot.models.shared_cache import Buffers, checked_cache, expand, layers_of

GIBIBYTE = 1 << 30
SHORTEST = 16
"""Prefixes of fewer tokens are not worth keeping: reading them anew costs less than handling them."""

TYPE_IDS = "token_type_ids"


class Progress:
    """Where the reading of a prompt stands.

    Attributes:
        unfinished: only the beginning of a prompt is read: what acts at a prompt's end must not take it for the whole.
    """

    unfinished = False


progress = Progress()
"""Of the pass that is under way. A plain object, because compiled models can read its attribute."""


@dataclass(frozen=True)
class Prefix:
    """A prompt's beginning as the decoder remembers it.

    Attributes:
        ids: its tokens, ``[1, P]``.
        cache: keys and values for a batch of one; never changed, see :func:`~kshot.models.shared_cache.expand`.
        next_position: position of the token that follows.
        positions: positions of its tokens, ``[1, P]``, or ``[3, 1, P]`` where positions are multimodal.
        token_types: types of its tokens, ``[1, P]``, for models that mask by type.
        spare: buffers that one batch of queries leaves to the next; to be cleared behind the last.
    """

    ids: torch.Tensor
    cache: Cache
    next_position: int
    positions: torch.Tensor
    token_types: torch.Tensor | None = None
    spare: dict[tuple[int, int], Buffers] = field(default_factory=dict)

    @property
    def length(self) -> int:
        """Number of tokens P."""
        return int(self.ids.shape[1])

    @property
    def size(self) -> int:
        """Bytes of memory."""
        return tensor_bytes(tensor for layer in layers_of(self.cache) for tensor in (layer.keys, layer.values))


def unsupported(model: Any) -> str | None:
    """Why the beginning of a prompt cannot be shared in this model, in words; ``None`` if it can."""
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return "the model takes no explicit positions"
    text = model.config.get_text_config()
    if getattr(text, "cross_attention_layers", None):
        return "text before an image can attend to it through cross-attention, so a prefix depends on what follows"
    layers = getattr(model.get_decoder(), "layers", ())
    if any(getattr(part, "is_causal", None) is False for layer in layers for part in layer.modules()):
        return "the decoder reads the whole prompt in both directions (a prefix language model)"
    kinds = set(getattr(text, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if kinds:
        return f"the decoder has layers whose state cannot be shared ({', '.join(sorted(kinds))})"
    return None


def needs_equal_lengths(prefix: Prefix, longest: int) -> bool:
    """Whether queries must be batched without padding, because padding would fall into a sliding window.

    Args:
        prefix: the prefix.
        longest: most tokens that follow it (query, answer and padding).
    """
    windows = [layer.sliding_window for layer in layers_of(prefix.cache) if getattr(layer, "is_sliding", False)]
    return bool(windows) and prefix.length + longest > min(windows)


def positions_of(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Positions of the tokens of a left-padded batch, from 0: ``[B, T]``, or ``[3, B, T]`` for multimodal rotary embeddings."""
    mask = inputs["attention_mask"]
    plain = (mask.cumsum(-1) - 1).clamp_min(0)
    index = getattr(model.base_model, "get_rope_index", None)
    if index is None:
        return plain
    if inputs.get("image_grid_thw") is None:
        return plain[None].expand(3, -1, -1)
    positions, _ = index(
        inputs["input_ids"],
        mm_token_type_ids=inputs["mm_token_type_ids"],
        image_grid_thw=inputs["image_grid_thw"],
        attention_mask=mask,
    )
    return positions


@torch.no_grad()
def prefill(model: Any, inputs: dict[str, Any]) -> Prefix:
    """Read a prefix.

    Args:
        inputs: a batch of one as the model takes it, without padding.

    Raises:
        ValueError: the model keeps something else than keys and values per layer.
    """
    positions = inputs["position_ids"] if "position_ids" in inputs else positions_of(model, inputs)
    progress.unfinished = True
    try:
        output = model(**inputs | {"position_ids": positions}, use_cache=True, logits_to_keep=1)
    finally:
        progress.unfinished = False
    cache = checked_cache(output.past_key_values)
    return Prefix(inputs["input_ids"], cache, int(positions.max()) + 1, positions, inputs.get(TYPE_IDS))


def continue_forward(model: Any, prefix: Prefix, inputs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of ``model(...)`` for queries that follow a prefix.

    Args:
        inputs: the batch of queries alone as the model takes it, left-padded ``[B, T]``.
    """
    mask = inputs["attention_mask"]
    rows = mask.shape[0]
    arguments = {name: value for name, value in inputs.items() if name != "mm_token_type_ids"}
    arguments |= {
        "attention_mask": torch.cat([mask.new_ones(rows, prefix.length), mask], dim=1),
        "position_ids": positions_of(model, inputs) + prefix.next_position,
        "past_key_values": expand(prefix.cache, rows),
        "use_cache": True,
    }
    if TYPE_IDS in inputs and prefix.token_types is not None:
        arguments[TYPE_IDS] = torch.cat([prefix.token_types.expand(rows, -1), inputs[TYPE_IDS]], dim=1)
    return arguments


def continue_generate(
    model: Any,
    prefix: Prefix,
    inputs: dict[str, Any],
    *,
    new_tokens: int = 0,
    num_beams: int = 1,
    placeholder: int | None = None,
) -> dict[str, Any]:
    """Arguments of ``model.generate(...)`` for queries that follow a prefix.

    ``generate`` wants the ids of all tokens, cached or not; the generated ids begin at ``prefix.length + T``.

    Args:
        inputs: the batch of queries alone, left-padded ``[B, T]``.
        new_tokens: tokens that will be generated, if known.
        num_beams: beams per query.
        placeholder: id of the image token. The prefix must not show it: beam search counts the images of each row.
    """
    arguments = continue_forward(model, prefix, inputs)
    rows = len(inputs["input_ids"])
    seen = prefix.ids
    if placeholder is not None:
        others = seen[seen != placeholder]
        seen = seen.masked_fill(seen == placeholder, int(others[0]) if len(others) else 0)
    # Beam search reorders the cache at each step, which copies it anyway.
    room = inputs["input_ids"].shape[1] + new_tokens if new_tokens > 1 and num_beams == 1 else 0
    queried = arguments["position_ids"]
    before = prefix.positions.expand(*queried.shape[:-1], -1)
    positions = torch.cat([before, queried], dim=-1)
    arguments |= {
        "input_ids": torch.cat([seen.expand(rows, -1), inputs["input_ids"]], dim=1),
        "position_ids": positions,
        "past_key_values": expand(prefix.cache, rows * num_beams, room, prefix.spare),
    }
    del arguments["use_cache"]  # a setting of generation, not an input
    return arguments


class PrefixCache:
    """The prefixes read last, within a number of bytes.

    Several fixed sets of demonstrations (or groups of queries that share theirs) are each read once as long as all fit.

    Args:
        model: the model; prefixes are forgotten when it changes (weights, adapters, hooks).
        budget: bytes of keys and values to keep, on the model's device. A larger prefix is used for its batch and not kept.
    """

    def __init__(self, model: Any, *, budget: int = GIBIBYTE):
        self.model = model
        self._memory: BudgetedCache[Prefix] = BudgetedCache(budget)
        self._state: int | None = None

    @property
    def statistics(self) -> CacheStatistics:
        """Hits, misses and bytes so far."""
        return self._memory.statistics

    def refresh(self) -> None:
        """Forget everything if the model has changed since the last call. Call it once per call of the model's user."""
        state = model_state([self.model])
        if state != self._state:
            self._memory.clear()
            self._state = state

    def clear(self) -> None:
        """Forget everything."""
        self._memory.clear()

    def __contains__(self, key: Hashable) -> bool:
        return key in self._memory

    def get(self, key: Hashable, inputs: Callable[[], dict[str, Any]]) -> Prefix:
        """The prefix with this key, from memory or read now.

        Args:
            key: token ids and the digests of the pictures in them.
            inputs: makes the arguments of :func:`prefill`; called only when the prefix is not held.
        """
        found = self._memory.get(key)
        if found is None:
            self.statistics.misses += 1
            found = prefill(self.model, inputs())
            self._memory.put(key, found, found.size)
        return found
