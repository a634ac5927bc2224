"""What the caches of this folder share: a memory budget, statistics, and a way to notice that a model has changed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, Generic, TypeVar

import torch

V = TypeVar("V")


@dataclass
class CacheStatistics:
    """What a cache has done so far.

    Attributes:
        hits: lookups answered from memory.
        disk_hits: lookups answered from disk.
        misses: lookups that had to be computed.
        evictions: entries dropped to stay within the budget.
        entries: entries held in memory.
        bytes: memory they take.
    """

    hits: int = 0
    disk_hits: int = 0
    misses: int = 0
    evictions: int = 0
    entries: int = 0
    bytes: int = 0

    def as_dict(self) -> dict[str, int]:
        """For a run folder: JSON-serialisable."""
        return asdict(self)


class BudgetedCache(Generic[V]):
    """A least-recently-used cache that holds entries of known size within a number of bytes.

    An entry larger than the whole budget is not kept; the caller has it anyway.
    """

    def __init__(self, budget: int):
        self.budget = budget
        self.statistics = CacheStatistics()
        self._entries: OrderedDict[Hashable, tuple[V, int]] = OrderedDict()

    def get(self, key: Hashable) -> V | None:
        """The entry, now the most recently used; ``None`` if it is not held. Does not count a miss: see ``statistics``."""
        found = self._entries.get(key)
        if found is None:
            return None
        self._entries.move_to_end(key)
        self.statistics.hits += 1
        return found[0]

    def peek(self, key: Hashable) -> V | None:
        """The entry or ``None``, without counting or moving it."""
        found = self._entries.get(key)
        return found[0] if found is not None else None

    def put(self, key: Hashable, value: V, size: int) -> None:
        """Hold an entry of ``size`` bytes and drop the least recently used ones until all fit."""
        self._drop(key)
        if size > self.budget:
            return
        self._entries[key] = (value, size)
        self.statistics.bytes += size
        while self.statistics.bytes > self.budget:
            self._drop(next(iter(self._entries)))
            self.statistics.evictions += 1
        self.statistics.entries = len(self._entries)

    def clear(self) -> None:
        """Forget all entries; the counts of hits and misses stay."""
        self._entries.clear()
        self.statistics.entries = self.statistics.bytes = 0

    def __contains__(self, key: Hashable) -> bool:
        return key in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def _drop(self, key: Hashable) -> None:
        held = self._entries.pop(key, None)
        if held is not None:
            self.statistics.bytes -= held[1]
            self.statistics.entries = len(self._entries)


def tensor_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Memory taken by tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def model_state(modules: Iterable[torch.nn.Module]) -> int:
    """A number that changes when what the modules compute may have changed.

    It covers parameters and buffers that were replaced or changed in place (an optimizer's step, ``load_state_dict``), hooks
    that came or went, and PEFT adapters that were added, switched or disabled. It reads no weights: about a microsecond a tensor.
    """
    parts: list[Hashable] = []
    for module in modules:
        for part in module.modules():
            for tensor in (*part._parameters.values(), *part._buffers.values()):
                if tensor is not None:
                    # Inference tensors keep no version; they cannot be trained either.
                    parts.append((id(tensor), tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version))
            for hooks in (part._forward_pre_hooks, part._forward_hooks):
                # transformers installs hooks of its own on the first call, which only listen.
                own = [
                    key
                    for key, hook in hooks.items()
                    if not str(getattr(hook, "__module__", "")).startswith("transformers.utils")
                ]
                if own:
                    parts.append(tuple(own))
            # PEFT's layers have properties of these names; transformers' models have methods, which say nothing new.
            if isinstance(getattr(type(part), "disable_adapters", None), property):
                layer: Any = part
                parts.append((bool(layer.disable_adapters), *layer.active_adapters))
    return hash(tuple(parts))
