"""What the configurations of our methods have in common: the layers chosen, and the model that an adapter belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from peft import PeftConfig

from kshot.errors import ModelError, OptionError
from kshot.models.anatomy import Anatomy


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
