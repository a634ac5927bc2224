"""Constant shifts as biases of a model's linear maps, such that the result is a plain model which transformers saves and loads.

Whether a linear map has a bias is decided by the model's configuration, and often for several maps at once (Llama's
``attention_bias`` gives one to queries, keys, values and outputs). :func:`merge_biases` looks for a setting which gives a bias to
all maps in question, by building the architecture with it on no device, and fills what else it creates with zeros.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from kshot.errors import ModelError


def merge_biases(model: Any, shifts: Mapping[nn.Module, torch.Tensor]) -> None:
    """Add constants to the outputs of modules by way of biases.

    Args:
        model: a model of transformers; its weights and, where biases are created, its configuration are changed.
        shifts: a vector ``[width]`` for each module: a linear map, or an MLP which ends in one.

    Raises:
        ModelError: a module ends in no plain linear map, or the architecture has no setting that gives it a bias. The model
            is as it was.
    """
    names = {id(module): name for name, module in model.named_modules()}
    maps = {names[id(last)]: shift for module, shift in shifts.items() for last in [_last_map(module, len(shift))]}
    needed = {f"{name}.bias" for name in maps if model.get_submodule(name).bias is None}
    created = _enable(model, needed) if needed else set()
    for key in created:
        owner = model.get_submodule(key.removesuffix(".bias"))
        zeros = owner.weight.new_zeros(owner.weight.shape[0])
        owner.register_parameter("bias", nn.Parameter(zeros, requires_grad=owner.weight.requires_grad))
    for name, shift in maps.items():
        bias = model.get_submodule(name).bias
        bias.data += shift.to(bias.device, bias.dtype)


def _last_map(module: nn.Module, width: int) -> nn.Linear:
    """The linear map to ``width`` whose output is that of the module."""
    if type(module) is nn.Linear:
        return module
    fitting = [part for part in module.children() if type(part) is nn.Linear and part.out_features == width]
    last = fitting[-1] if fitting else None
    if last is None or not last.weight.dtype.is_floating_point or not _ends_in(module, last):
        raise ModelError(
            f"{type(module).__name__} does not end in a plain linear map (it is quantized, adapted, or a mixture of experts), so "
            "that a constant cannot be merged into it"
        )
    return last


@torch.no_grad()
def _ends_in(module: nn.Module, last: nn.Linear) -> bool:
    """Whether the module returns what its last linear map computes."""
    seen: list[Any] = []
    handle = last.register_forward_hook(lambda part, inputs, output: seen.append(output))
    # The adapter's own hook would add the shift.
    hooks, module._forward_hooks = module._forward_hooks, type(module._forward_hooks)()
    try:
        width = last.out_features
        found = module(torch.ones(1, 1, width, device=last.weight.device, dtype=last.weight.dtype))
    finally:
        handle.remove()
        module._forward_hooks = hooks
    return len(seen) == 1 and isinstance(found, torch.Tensor) and torch.equal(found, seen[0])


def _enable(model: Any, needed: set[str]) -> set[str]:
    """Change the text configuration so that the architecture has the needed parameters; give the names of all that it gains.

    Raises:
        ModelError: no setting does it.
    """
    adapted = [f"{name}." for name, module in model.named_modules() if hasattr(module, "adapter_layer_names")]
    own = {key for key in model.state_dict() if not key.startswith(tuple(adapted))}
    text = model.config.get_text_config(decoder=True)
    switches = [name for name, value in vars(text).items() if "bias" in name and value is False]
    for chosen in [*([name] for name in switches), switches]:
        gained = _gained(model, own, chosen)
        if gained is not None and needed <= gained:
            for name in chosen:
                setattr(text, name, True)
            return gained
    raise ModelError(
        f"the text decoder of {type(model).__name__} ({text.model_type}) has no setting for a bias at {min(needed)}"
        + (f" (tried: {', '.join(switches)})" if switches else "")
        + ", so the merged model could not be saved and loaded; keep the adapter beside the model"
    )


def _gained(model: Any, own: set[str], switches: list[str]) -> set[str] | None:
    """Names of the biases that these settings add; ``None`` if they change anything else or the architecture refuses them."""
    config = copy.deepcopy(model.config)
    for name in switches:
        setattr(config.get_text_config(decoder=True), name, True)
    try:
        with torch.device("meta"):
            names = set(type(model)(config).state_dict())
    except (ValueError, TypeError, NotImplementedError, RuntimeError):
        return None
    gained = names - own
    return gained if own <= names and all(name.endswith(".bias") for name in gained) else None
