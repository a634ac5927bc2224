"""Which weight of a Link-Context Learning checkpoint becomes which of ``LlavaForConditionalGeneration``."""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import LlavaConfig, LlavaForConditionalGeneration

from kshot.convert.shards import DTYPES, Entry
from kshot.convert.vision import vision_names
from kshot.convert.weights import Weights
from kshot.errors import ModelError

PROJECTOR = "model.mm_projector"


def lcl_entries(weights: Weights, vision: Weights, config: LlavaConfig) -> tuple[list[Entry], tuple[str, ...]]:
    """All weights to be written, and the names of the source's that are left out.

    Args:
        weights: of the checkpoint.
        vision: of the vision model.
        config: of the new model.

    Raises:
        ModelError: the weights do not fit the configuration.
    """
    entries: list[Entry] = []
    dropped: list[str] = []
    tied = config.tie_word_embeddings
    for name in weights.files:
        new = _renamed(name)
        if new is None or (tied and new == "lm_head.weight"):
            dropped.append(name)
            continue
        entries.append(_copy(new, name, weights))
    projector = next(entry for entry in entries if entry.name.endswith("linear_1.weight"))
    width, dtype = projector.shape[0], projector.dtype
    second = "model.multi_modal_projector.linear_2"
    entries.append(Entry(f"{second}.weight", dtype, (width, width), lambda: torch.eye(width, dtype=dtype)))
    for layer in ("linear_1", "linear_2"):
        bias = f"model.multi_modal_projector.{layer}.bias"
        if not any(entry.name == bias for entry in entries):
            entries.append(Entry(bias, dtype, (width,), lambda: torch.zeros(width, dtype=dtype)))
    for own, name in vision_names(vision).items():
        entries.append(_copy(f"model.vision_tower.{own}", name, vision))
    _check_shapes({entry.name: entry.shape for entry in entries}, config, tied)
    return entries, tuple(dropped)


def _renamed(name: str) -> str | None:
    """The name of a weight in transformers; ``None`` for what is computed there, or comes from elsewhere."""
    if name.endswith("rotary_emb.inv_freq") or name.startswith(("model.vision_tower.", "vision_tower.")):
        return None
    if name.startswith(f"{PROJECTOR}."):
        return name.replace(PROJECTOR, "model.multi_modal_projector.linear_1", 1)
    if name.startswith("model."):
        return name.replace("model.", "model.language_model.", 1)
    return name


def _copy(new: str, name: str, weights: Weights) -> Entry:
    tensor = weights.get(name)
    if tensor.dtype not in DTYPES:
        raise ModelError(
            f"{weights.files[name]}: {name!r} is of type {tensor.dtype}; weights are 16-bit or 32-bit floats"
        )
    make: Callable[[], torch.Tensor] = lambda: weights.get(name)  # noqa: E731 - the tensor itself must not be kept
    return Entry(new, tensor.dtype, tuple(tensor.shape), make, name)


def _check_shapes(found: dict[str, tuple[int, ...]], config: LlavaConfig, tied: bool) -> None:
    """Compare with what a model of this configuration has.

    Raises:
        ModelError: weights are missing, too many or of another shape.
    """
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if tied:
        del wanted["lm_head.weight"]
    missing = sorted(set(wanted) - set(found))
    strange = sorted(set(found) - set(wanted))
    other = [name for name in wanted if name in found and found[name] != wanted[name]]
    problems = [f"{len(missing)} missing ({', '.join(missing[:3])} ...)"] if missing else []
    problems += [f"{len(strange)} unknown ({', '.join(strange[:3])} ...)"] if strange else []
    problems += [f"{name} is {list(found[name])} where config.json makes it {list(wanted[name])}" for name in other[:3]]
    if problems:
        raise ModelError(f"the weights do not fit the configuration: {'; '.join(problems)}")
