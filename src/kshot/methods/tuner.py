"""How a method enters a model: the tuner that all methods have in common, as PEFT knows it.

A method of ours wraps nothing. It adds a child module with its parameters to the parts of the model on which it acts (decoder
layers, MLPs, attention modules); see :mod:`kshot.methods.layers`. Classes, names and paths of the base model stay what they are,
and without an active adapter its results are the same bit for bit.

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

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any, ClassVar

import torch
from peft.tuners.tuners_utils import BaseTuner
from torch import nn

from kshot.errors import ModelError, OptionError, UnknownName
from kshot.methods.configuration import compare_bases, facts
from kshot.methods.layers import Place, ShiftLayer
from kshot.methods.registration import Need, methods
from kshot.models.anatomy import Anatomy, examine


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
