"""All methods by name, and how those that are not PEFT's own enter PEFT.

PEFT keeps its methods in an enumeration that nobody else can add to. Its members are strings, and everything that looks a method
up does so in three dictionaries with such strings as keys; a string that answers ``.value`` and ``.name`` as a member does is a
key like any other. :func:`register_method` enters a method there and in :data:`methods`. From then on ``get_peft_model``,
``PeftModel.from_pretrained`` and transformers' ``load_adapter`` treat it as one of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from kshot.errors import KshotError, ModelError
from kshot.registry import Registry

Need = Literal["residual_methods", "attention_methods"]
"""What a method needs of a model: the name of an ability in its :class:`~kshot.models.anatomy.Anatomy`."""


@dataclass(frozen=True)
class Method:
    """A way to put demonstrations into an adapter.

    Attributes:
        name: what users call it.
        summary: one line.
        config: its configuration, a class derived from ``peft.PeftConfig``; its options are the method's options.
        needs: what a model must be able to, as attributes of its anatomy.
        tuner: the class that puts adapters into models; ``None`` for PEFT's own methods.
        trainable: whether gradients train it. Training-free methods have adapters, too, and ``estimate`` fills them.
        mergeable: whether ``merge_and_unload`` gives a plain model.
        combinable: whether ``add_weighted_adapter`` has a meaning.
        estimate: sets the parameters of an adapter without training; see the method's own documentation for the arguments.
    """

    name: str
    summary: str
    config: type[Any]
    needs: tuple[Need, ...] = ()
    tuner: type[Any] | None = None
    trainable: bool = True
    mergeable: bool = False
    combinable: bool = False
    estimate: Callable[..., Any] | None = None

    def obstacle(self, anatomy: Any) -> str | None:
        """Why a model cannot take this method, in words; ``None`` if it can."""
        for need in self.needs:
            ability = getattr(anatomy, need)
            if not ability:
                return str(ability.reason)
        return None

    def check(self, anatomy: Any) -> None:
        """Whether a model can take this method.

        Raises:
            ModelError: it cannot; the message says why.
        """
        why = self.obstacle(anatomy)
        if why is not None:
            raise ModelError(f"{anatomy.architecture} cannot take {self.name}: {why}")


class MethodType(str):
    """A key of PEFT's dictionaries that is no member of its enumeration."""

    @property
    def value(self) -> str:
        """As of a member of an enumeration of strings."""
        return str(self)

    @property
    def name(self) -> str:
        """As of a member of an enumeration."""
        return str(self)


methods: Registry[Method] = Registry(
    "method",
    "kshot.methods",
    modules=(
        "kshot.methods.live",
        "kshot.methods.mimic",
        "kshot.methods.bias",
        "kshot.methods.hificl",
        "kshot.methods.stave",
        "kshot.methods.task_vector",
        "kshot.methods.function_vector",
        "kshot.methods.icv",
        "kshot.methods.i2cl",
        "kshot.methods.mtv",
    ),
)
"""All methods. The first lookup imports the modules that hold them (and with them torch and PEFT)."""


def register_method(
    name: str, *, config: type[Any], tuner: type[Any], summary: str, peft_type: str | None = None, **facts: Any
) -> Method:
    """Enter a method of ours in :data:`methods` and in PEFT. To be called at the end of the module that holds it.

    Args:
        name: what users call it.
        config: a :class:`~kshot.methods.configuration.ShiftConfig`.
        tuner: a :class:`~kshot.methods.tuner.ShiftModel`; it is given its ``prefix`` and ``child`` here.
        summary: one line.
        peft_type: its name in ``adapter_config.json``; default: the name in capitals. It should be no word that occurs in the
            parameter names of models, because transformers finds an adapter's parameters by it.
        facts: further attributes of :class:`Method`.

    Raises:
        KshotError: the name is taken, or a parameter's name would not be found again when the adapter is loaded.
    """
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

    kind: Any = MethodType(peft_type or name.upper())
    prefix, child = f"{kind.lower()}_", f"shift_{name}"
    held = PEFT_TYPE_TO_CONFIG_MAPPING.get(kind)
    if held is not None and held.__qualname__ != config.__qualname__:
        raise KshotError(
            f"PEFT has a method {kind} already ({held.__module__}.{held.__qualname__}); give another peft_type"
        )
    # transformers renames (prefix...) to (prefix...).<adapter> in the names of parameters, at the first place where it occurs.
    if prefix in f"{child}.":
        raise KshotError(
            f"the prefix {prefix!r} occurs in {child!r}, so that parameters would not be found; choose another name"
        )
    for layer in tuner.layer_classes():
        odd = [part for part in layer.adapter_layer_names if not part.startswith(prefix)]
        if odd or not layer.adapter_layer_names:
            raise KshotError(f"the parameters of {layer.__name__} must begin with {prefix!r}: {odd}")
    config.method_type, tuner.method, tuner.prefix, tuner.child = kind, name, prefix, child
    PEFT_TYPE_TO_CONFIG_MAPPING[kind] = config
    PEFT_TYPE_TO_TUNER_MAPPING[kind] = tuner
    PEFT_TYPE_TO_PREFIX_MAPPING[kind] = prefix
    needs = facts.pop("needs", tuner.needs)
    return methods.register(name)(Method(name, summary, config, needs, tuner, **facts))
