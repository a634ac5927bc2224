"""The modules that hold a method's parameters at one place of a model, and act there.

Nothing is wrapped: a layer is a child module of the part of the model on which it acts, and reaches it through a forward hook
(:class:`ResidualShiftLayer`) or from within the attention function (:class:`~kshot.methods.head_layers.HeadShiftLayer`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch._dynamo
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from kshot.errors import ModelError


@dataclass(frozen=True)
class Place:
    """A part of the model on which a method acts.

    Attributes:
        number: of the decoder layer.
        module: the part.
        kind: class of the child module that it gets.
        width: of the residual stream.
        heads, head_width: of the attention, for places that are attention modules.
    """

    number: int
    module: nn.Module
    kind: type[ShiftLayer]
    width: int
    heads: int = 0
    head_width: int = 0


class ShiftLayer(nn.Module, BaseTunerLayer):
    """The parameters of all adapters of one method at one place, and what they do there.

    Subclasses name their parameters in ``adapter_layer_names`` and define :meth:`initial`, :meth:`attach`, :meth:`detach`, and
    :meth:`combine` if it has a meaning. Each name is that of a ``ParameterDict`` from adapters to parameters.

    Attributes:
        number, width, heads, head_width: of the :class:`Place`.
        configs: configuration of each adapter.
    """

    adapter_layer_names: tuple[str, ...] = ()
    other_param_names: tuple[str, ...] = ("configs",)

    def __init__(self, place: Place):
        super().__init__()
        self.number, self.width = place.number, place.width
        self.heads, self.head_width = place.heads, place.head_width
        self.configs: dict[str, Any] = {}
        self.merged_adapters: list[str] = []
        self._held: dict[str, dict[str, nn.Parameter | None]] = {}
        for name in self.adapter_layer_names:
            held = nn.ParameterDict()
            setattr(self, name, held)
            self._held[name] = held._parameters

    def initial(self, config: Any, random: torch.Generator) -> Mapping[str, torch.Tensor]:
        """Initial values of the parameters that this configuration has, by name.

        Args:
            config: the adapter's configuration.
            random: source of all randomness, on the CPU.

        Returns:
            Tensors of at least one dimension (FSDP shards no scalars).
        """
        raise NotImplementedError

    def attach(self, module: nn.Module) -> None:
        """Begin to act on the place; called again while attached, it does nothing."""
        raise NotImplementedError

    def detach(self) -> None:
        """Stop acting on the place; it then is as it was."""
        raise NotImplementedError

    def combine(self, adapter: str, parts: Sequence[tuple[str, float]]) -> None:
        """Set an adapter's parameters so that it shifts as the weighted sum of others would."""
        raise NotImplementedError

    def acting(self) -> list[str]:
        """The adapters that are active and have parameters here."""
        if self._disable_adapters or not self.configs:
            return []
        active = self._active_adapter  # what PEFT's property gives, without a call
        return [name for name in ([active] if isinstance(active, str) else active) if name in self.configs]

    def sole(self) -> str | None:
        """The adapter that acts here, if it is the only active one: the usual case, which decoding should find out quickly."""
        active = self._active_adapter
        adapter = active if isinstance(active, str) else active[0] if len(active) == 1 else ""
        return None if self._disable_adapters or adapter not in self.configs else adapter

    def parameter(self, name: str, adapter: str) -> torch.Tensor:
        """An adapter's parameter, for what runs at each layer and token: looking it up by attributes takes longer than using it."""
        found = self._held[name].get(adapter)
        return getattr(self, name)[adapter] if found is None else found  # FSDP may keep it elsewhere

    def add_adapter(self, adapter: str, config: Any, device: torch.device, dtype: torch.dtype) -> None:
        """Give an adapter its initial parameters."""
        for name, value in self.initial(config, generator(config.seed, type(self).__name__, self.number)).items():
            assert value.ndim > 0, f"{name} is a scalar, which FSDP cannot shard"
            getattr(self, name)[adapter] = nn.Parameter(value.to(device, dtype))
        self.configs[adapter] = config

    def delete_adapter(self, adapter_name: str) -> None:
        """Forget an adapter; without any, the place is left alone."""
        super().delete_adapter(adapter_name)
        if not self.configs:
            self.detach()

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """PEFT's name for merging in place, which none of these methods offers."""
        raise ModelError(f"{type(self).__name__} cannot be merged in place")

    def _get_base_layer_device_and_dtype(self, base_layer: Any) -> tuple[Any, Any]:
        # PEFT would ask for base_layer.weight, and this module is its own base layer.
        first = next(self.parameters(), None)
        return (None, None) if first is None else (first.device, first.dtype)


class HookedLayer(ShiftLayer):
    """Acts through one hook on the place."""

    def __init__(self, place: Place):
        super().__init__(place)
        self._handle: Any = None

    def hook(self, module: nn.Module) -> Any:
        """Register the hook; gives the handle by which it is removed."""
        raise NotImplementedError

    def attach(self, module: nn.Module) -> None:
        if self._handle is None:
            heed_hooks()
            self._handle = self.hook(module)

    def detach(self) -> None:
        if self._handle is not None:
            self._handle.remove()
            self._handle = None


class ResidualShiftLayer(HookedLayer):
    """Shifts the output of a module: a decoder layer, an MLP, an attention module, an embedding."""

    def shift(self, adapter: str, hidden: torch.Tensor) -> torch.Tensor:
        """What one adapter makes of the output ``[batch, tokens, width]``; it must not be changed in place."""
        raise NotImplementedError

    def hook(self, module: nn.Module) -> Any:
        return module.register_forward_hook(self._after)

    def _after(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        acting = self.acting()
        if not acting:
            return None
        hidden = output if isinstance(output, torch.Tensor) else output[0]
        for adapter in acting:
            hidden = self.shift(adapter, hidden)
        return hidden if isinstance(output, torch.Tensor) else (hidden, *output[1:])


def heed_hooks() -> None:
    """Let compiled code look whether modules have got hooks since.

    By default it does not, and what ``torch.compile`` made of a model would go on without an adapter that comes later, or be used for
    another model with one, without a word. What was compiled before has to be forgotten once.
    """
    config = torch._dynamo.config
    if config.skip_nnmodule_hook_guards:
        config.skip_nnmodule_hook_guards = False
        torch.compiler.reset()


def generator(seed: int, *about: Any) -> torch.Generator:
    """A source of random numbers on the CPU that depends on the seed and on what it is for, and on nothing else."""
    digest = hashlib.blake2b(repr((seed, *about)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
