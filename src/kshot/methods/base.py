"""What the methods have in common: configuration, tuner and layer, as PEFT knows them.

A method of ours wraps nothing. It adds a child module with its parameters to the parts of the model on which it acts (decoder
layers, MLPs, attention modules) and acts through a forward hook (:class:`ResidualShiftLayer`) or from within the attention
function (:class:`~kshot.methods.attention.HeadShiftLayer`). Classes, names and paths of the base model stay what they are, and
without an active adapter its results are the same bit for bit.

A new method is one file: a configuration, a layer, a tuner and a call of :func:`~kshot.methods.registration.register_method`::

    @dataclass
    class MyConfig(ShiftConfig):
        strength: float = 1.0

    class MyLayer(ResidualShiftLayer):
        adapter_layer_names = ("mine_vector",)      # all begin with the prefix: the name of the method and "_"

        def initial(self, config, random):
            return {"mine_vector": torch.zeros(self.width)}

        def shift(self, adapter, hidden):
            return hidden + self.configs[adapter].strength * self.mine_vector[adapter].to(hidden.dtype)

    class MyModel(ShiftModel):
        tuner_layer_cls = MyLayer

    register_method("mine", config=MyConfig, tuner=MyModel, summary="...")

The shared tests in ``tests/methods`` then cover it.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import nn

from kshot.errors import ModelError, OptionError, UnknownName
from kshot.methods.registration import Need, methods
from kshot.models.anatomy import Anatomy, examine


@dataclass
class ShiftConfig(PeftConfig):
    """Options of all methods of ours.

    Args:
        layers: numbers of the decoder layers on which the method acts, negative ones counted from the end; default: all.
        seed: initial values derive from it and the number of the layer, not from torch's global state.
        base: sizes of the model that the adapter belongs to; filled in when it is put into a model, compared when it is loaded.
    """

    # PEFT reads it of every configuration of this kind. Places are found by structure instead: it stays empty.
    target_modules: ClassVar[None] = None
    method_type: ClassVar[Any] = None
    only_initial: ClassVar[tuple[str, ...]] = ("std",)
    """Options that say nothing but initial values; adapters that differ in them can be added up."""

    layers: list[int] | None = None
    seed: int = 0
    base: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = type(self).method_type
        if self.layers is not None:
            self.layers = [int(number) for number in self.layers]

    def chosen(self, anatomy: Anatomy) -> list[int]:
        """The numbers of the layers, from 0, in order.

        Raises:
            OptionError: the decoder has no such layer, or none was chosen.
        """
        count = len(anatomy.layers)
        if self.layers is None:
            return list(range(count))
        wrong = [number for number in self.layers if not -count <= number < count]
        if wrong or not self.layers:
            raise OptionError(f"layers={self.layers}: {anatomy.architecture} has layers 0 to {count - 1}")
        return sorted({number % count for number in self.layers})


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
        for name in self.adapter_layer_names:
            setattr(self, name, nn.ParameterDict())

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
        active = self.active_adapter
        return [name for name in ([active] if isinstance(active, str) else active) if name in self.configs]

    def parameter(self, name: str, adapter: str) -> torch.Tensor:
        """An adapter's parameter, for what runs at each layer and token: looking it up by attributes takes longer than using it."""
        held: Any = self._modules[name]
        found: torch.Tensor | None = held._parameters.get(adapter)
        return held[adapter] if found is None else found  # FSDP may keep it elsewhere

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


class ResidualShiftLayer(ShiftLayer):
    """Shifts the output of a module: a decoder layer, an MLP, an attention module, an embedding."""

    def __init__(self, place: Place):
        super().__init__(place)
        self._handle: Any = None

    def shift(self, adapter: str, hidden: torch.Tensor) -> torch.Tensor:
        """What one adapter makes of the output ``[batch, tokens, width]``; it must not be changed in place."""
        raise NotImplementedError

    def attach(self, module: nn.Module) -> None:
        if self._handle is None:
            self._handle = module.register_forward_hook(self._after)

    def detach(self) -> None:
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def _after(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        acting = self.acting()
        if not acting:
            return None
        hidden = output if isinstance(output, torch.Tensor) else output[0]
        for adapter in acting:
            hidden = self.shift(adapter, hidden)
        return hidden if isinstance(output, torch.Tensor) else (hidden, *output[1:])


class ShiftModel(BaseTuner):
    """Puts the adapters of a method into a model.

    Subclasses give ``tuner_layer_cls`` (one class, or several in a tuple) and, unless they act on the output of decoder layers,
    ``needs`` and :meth:`places`. ``method``, ``prefix`` and ``child`` are set by
    :func:`~kshot.methods.registration.register_method`.

    Attributes:
        unmergeable: why the method cannot be merged into weights, to complete "it ...".
    """

    method: ClassVar[str]
    child: ClassVar[str]
    prefix: str
    tuner_layer_cls: Any
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012 (PEFT's own declaration)
    needs: ClassVar[tuple[Need, ...]] = ("residual_methods",)
    unmergeable: ClassVar[str] = "depends on the hidden states"

    @classmethod
    def layer_classes(cls) -> tuple[type[ShiftLayer], ...]:
        """All classes of child modules that :meth:`places` may name."""
        kinds = cls.tuner_layer_cls
        return kinds if isinstance(kinds, tuple) else (kinds,)

    def places(self, config: Any, anatomy: Anatomy, model: nn.Module) -> list[Place]:
        """The parts of a model that an adapter of this configuration acts on; at most one child a part."""
        return [
            Place(number, anatomy.layers[number], self.tuner_layer_cls, anatomy.hidden_size)
            for number in config.chosen(anatomy)
        ]

    def add_weighted_adapter(self, adapters: Sequence[str], weights: Sequence[float], adapter_name: str) -> None:
        """Add an adapter that shifts as the weighted sum of others.

        Args:
            adapters: names of adapters with the same options.
            weights: a weight for each.
            adapter_name: name of the new one; it is not made active.

        Raises:
            ModelError: sums of this method's adapters have no meaning.
            OptionError: numbers of names and weights differ, the new name is taken, or the adapters' options differ.
            UnknownName: there is no such adapter.
        """
        if all(layer.combine is ShiftLayer.combine for layer in self.layer_classes()):
            raise ModelError(
                f"adapters of {self.method} cannot be added up: what they do is not linear in their parameters"
            )
        if len(adapters) != len(weights) or not adapters:
            raise OptionError(f"{len(weights)} weights for {len(adapters)} adapters")
        if adapter_name in self.peft_config:
            raise OptionError(f"there is an adapter {adapter_name!r} already")
        for name in adapters:
            if name not in self.peft_config:
                raise UnknownName("adapter", name, self.peft_config)
        configs: list[Any] = [self.peft_config[name] for name in adapters]
        apart = {"layers", "seed", "base", "inference_mode", "base_model_name_or_path", *configs[0].only_initial}
        alike = [{key: value for key, value in asdict(config).items() if key not in apart} for config in configs]
        if any(type(config) is not type(configs[0]) for config in configs) or any(one != alike[0] for one in alike):
            raise OptionError(f"adapters {', '.join(adapters)} have different options and cannot be added up")
        chosen = [config.layers for config in configs]
        together = None if None in chosen else sorted({number for numbers in chosen for number in numbers})
        self.peft_config[adapter_name] = replace(configs[0], layers=together)
        self.inject_adapter(self.model, adapter_name)
        with torch.no_grad():
            for layer in self._children():
                if adapter_name in layer.configs:
                    parts = zip(adapters, weights, strict=True)
                    layer.combine(adapter_name, [(name, weight) for name, weight in parts if name in layer.configs])

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete an adapter; with the last one, all traces of the method."""
        super().delete_adapter(adapter_name)
        if not any(layer.configs for layer in self._children()):
            self._remove()

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        """Refused: no method of ours is merged in place."""
        raise ModelError(f"adapters of {self.method} cannot be merged in place")

    def _merge(self, adapters: Sequence[str]) -> None:
        """Write the effect of adapters into the model's weights; the layers are removed afterwards.

        Raises:
            ModelError: it cannot be done.
        """
        raise ModelError(
            f"{self.method} cannot be merged into the model's weights, because its shift {self.unmergeable}; keep the adapter "
            "beside the model (it costs next to nothing), or train method 'bias', which can be merged"
        )

    def _prepare_adapter_config(self, peft_config: Any, model_config: dict[str, Any]) -> Any:
        return peft_config

    def _prepare_model(self, peft_config: Any, model: nn.Module) -> None:
        try:
            anatomy = examine(model)
        except AttributeError as error:
            raise ModelError(f"{type(model).__name__} is no language model of transformers: {error}") from error
        methods.get(self.method).check(anatomy)
        compare_bases(peft_config.base, anatomy)
        names = {id(module): name for name, module in model.named_modules()}
        places = self.places(peft_config, anatomy, model)
        self._places = {names[id(place.module)]: place for place in places}
        peft_config.base = facts(anatomy)
        peft_config._targets = frozenset(self._places)

    @staticmethod
    def _check_target_module_exists(peft_config: Any, key: str) -> bool:
        return key in peft_config._targets

    def _create_and_replace(
        self,
        peft_config: Any,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        layer = target._modules.get(self.child)
        if not isinstance(layer, ShiftLayer):
            layer = self._new_layer(self._places[current_key])
            layer.train(target.training)
            target.add_module(self.child, layer)
        layer.add_adapter(adapter_name, peft_config, *_home(target))
        layer.attach(target)

    def _new_layer(self, place: Place) -> ShiftLayer:
        return place.kind(place)

    def _children(self) -> list[ShiftLayer]:
        return [layer for _, layer in self._held()]

    def _held(self) -> list[tuple[nn.Module, ShiftLayer]]:
        """Every part with a child of this method, and the child."""
        found = ((module, module._modules.get(self.child)) for module in list(self.model.modules()))
        return [(module, layer) for module, layer in found if isinstance(layer, ShiftLayer)]

    def _remove(self) -> None:
        for module, layer in self._held():
            layer.detach()
            del module._modules[self.child]

    def _unload_and_optionally_merge(
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> Any:
        if merge:
            self._merge(adapter_names or self.active_adapters)
        self._remove()
        if hasattr(self.model, "peft_config"):
            del self.model.peft_config
        return self.model


def _home(module: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Device and dtype for new parameters of a module, whose own may be quantized, i.e. integers."""
    device = next((weight.device for weight in module.parameters()), torch.device("cpu"))
    floating = (weight.dtype for weight in module.parameters() if weight.dtype.is_floating_point)
    return device, next(floating, torch.float32)


def facts(anatomy: Anatomy) -> dict[str, Any]:
    """What an adapter must have in common with the model that it is put into."""
    return {
        "architecture": anatomy.architecture,
        "hidden_size": anatomy.hidden_size,
        "layers": len(anatomy.layers),
        "heads": anatomy.heads,
        "head_dim": anatomy.head_dim,
    }


def compare_bases(base: Mapping[str, Any] | None, anatomy: Anatomy) -> None:
    """Whether an adapter that belongs to a model with these :func:`facts` can be put into this one.

    Raises:
        ModelError: it cannot; the message names both models.
    """
    own = facts(anatomy)
    if base is not None and any(base.get(name, value) != value for name, value in own.items()):
        described = [
            "{architecture} ({layers} layers of width {hidden_size}, {heads} heads of {head_dim})".format_map(
                {name: sizes.get(name, "?") for name in own}
            )
            for sizes in (base, own)
        ]
        raise ModelError(f"the adapter belongs to {described[0]}, and this model is {described[1]}")


def generator(seed: int, *about: Any) -> torch.Generator:
    """A source of random numbers on the CPU that depends on the seed and on what it is for, and on nothing else."""
    digest = hashlib.blake2b(repr((seed, *about)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def clone_config(config: Any) -> Any:
    """A configuration for another model: the same options, belonging to no model yet."""
    found = copy.deepcopy(config)
    found.base = None
    return found
