"""Which attention a model runs through: kshot's own while an adapter needs it, and otherwise the one that it had."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import PreTrainedConfig

from kshot.errors import ModelError
from kshot.methods.attention import LAYERS, PREFIX, register

if TYPE_CHECKING:
    from kshot.methods.head_layers import HeadShiftLayer


class Selection:
    """The text configurations of a model that are set to :func:`~kshot.methods.attention.attention` while a layer needs it.

    Attributes:
        before: pairs of a configuration and the name of the implementation that it had.
        users: the layers that need it, each with the attention module that it is a child of.
    """

    def __init__(self, configs: list[Any]):
        self.before = [(config, str(config._attn_implementation)) for config in configs]
        self.users: list[tuple[HeadShiftLayer, Any]] = []
        self._watch: Any = None

    def take(self, layer: HeadShiftLayer, module: Any) -> None:
        """One more user, unless it is one already; the first sets the attention."""
        if any(user is layer for user, _ in self.users):
            return
        if not self.users:
            self.before = [(config, str(config._attn_implementation)) for config, _ in self.before]
            for config, name in self.before:
                config._attn_implementation_internal = register(name)
        self.users.append((layer, module))
        setattr(module, LAYERS, [*getattr(module, LAYERS, ()), layer])
        self._watch_first()

    def release(self, layer: HeadShiftLayer) -> None:
        """One user less, if it is one; the last restores what was before."""
        for user, module in self.users:
            if user is layer:
                left = [other for other in getattr(module, LAYERS) if other is not layer]
                setattr(module, LAYERS, left) if left else delattr(module, LAYERS)
        self.users = [(user, module) for user, module in self.users if user is not layer]
        self._watch_first()
        if not self.users:
            for config, name in self.before:
                if str(config._attn_implementation).startswith(PREFIX):
                    config._attn_implementation_internal = name

    def _watch_first(self) -> None:
        # One module is enough to notice a change, and a hook on each would be a good part of what an adapter costs.
        if self._watch is not None:
            self._watch.remove()
        self._watch = self.users[0][1].register_forward_pre_hook(self._check) if self.users else None

    def _check(self, module: Any, inputs: Any) -> None:
        # Without this, set_attn_implementation would switch adapters off in silence.
        for config, _ in self.before:
            name = str(config._attn_implementation)
            if not name.startswith(PREFIX) and any(layer.acting() for layer, _ in self.users):
                raise ModelError(
                    f"the attention of a model with an active adapter was set to {name!r}, which knows nothing of the "
                    "adapter: choose the attention before the adapter is put into the model"
                )


def selection_for(model: Any, modules: list[nn.Module]) -> Selection:
    """What lets attention modules of a model run through kshot's attention; one serves all adapters in the model.

    Raises:
        ModelError: the model does not go through transformers' attention interface.
    """
    configs: Any = list(
        {id(m.config): m.config for m in modules if isinstance(getattr(m, "config", None), PreTrainedConfig)}.values()
    )
    names = [str(config._attn_implementation) for config in configs]
    try:
        for config, name in zip(configs, names, strict=True):
            wanted: Any = register(name)
            for key in reversed(_way_to(model.config, config) or [""]):
                wanted = {key: wanted}
            model.set_attn_implementation(wanted)  # it checks whether the model can
        possible = configs and all(str(config._attn_implementation).startswith(PREFIX) for config in configs)
    finally:
        for config, name in zip(configs, names, strict=True):
            config._attn_implementation_internal = name
    if not possible:
        raise ModelError(
            f"{type(model).__name__} does not let its text attention be chosen through transformers' attention interface"
        )
    return Selection(configs)


def _way_to(config: Any, wanted: Any) -> list[str] | None:
    """The keys that lead from a configuration to one nested in it; empty if it is the same."""
    if config is wanted:
        return []
    for key in config.sub_configs:
        inner = getattr(config, key, None)
        way = _way_to(inner, wanted) if inner is not None else None
        if way is not None:
            return [key, *way]
    return None
