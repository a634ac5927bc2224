"""Vision features, computed once per image.

In few-shot evaluation the same pictures are shown again and again: as demonstrations of many queries, at several numbers of shots,
for several candidates. A :class:`FeatureCache` keeps what the decoder gets to see of each picture (the output of
``model.get_image_features``) together with the text that stands for the picture in the prompt, so that a known picture is
neither decoded nor preprocessed nor encoded again. It holds a bounded number of bytes in memory and, if a folder is given, a copy
on disk that later runs read.

The features go back into the model through transformers' own argument ``mm_encoder_outputs``, in ``forward`` and in ``generate``.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import os
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers.modeling_outputs import BaseModelOutputWithPooling

from kshot.models.memory import BudgetedCache, CacheStatistics, model_state, tensor_bytes
from kshot.whole_file import whole_file

logger = logging.getLogger(__name__)

GIBIBYTE = 1 << 30


@dataclass(frozen=True)
class ImageFeatures:
    """What a model's decoder sees of one picture.

    Attributes:
        states: features, ``[tokens, width]``; ``[tiles, tokens per tile, width]`` if the model stacks equal tiles.
        deepstack: features that are added in the first decoder layers (Qwen3-VL), each ``[tokens, width]``; usually none.
        expansion: the text that stands for the picture in the prompt, placeholders repeated once per token.
        inputs: this picture's row of the small inputs that the decoder needs beside the features (``image_grid_thw``),
            each with a leading dimension of 1.
    """

    states: torch.Tensor
    expansion: str
    deepstack: tuple[torch.Tensor, ...] = ()
    inputs: Mapping[str, torch.Tensor] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of memory."""
        return tensor_bytes((self.states, *self.deepstack, *self.inputs.values())) + len(self.expansion)


def unsupported(model: Any) -> str | None:
    """Why features of this model cannot be cached, in words; ``None`` if they can."""
    base = model.base_model
    if not hasattr(base, "get_image_features"):
        return f"{type(model).__name__} does not give out its image features (it has no get_image_features)"
    if "mm_encoder_outputs" not in inspect.signature(model.forward).parameters:
        return f"{type(model).__name__} takes pixels only (its forward has no mm_encoder_outputs)"
    return None


def vision_modules(model: Any) -> list[torch.nn.Module]:
    """The parts of a model that make image features: everything outside the text decoder and its head."""
    decoder = model.get_decoder()
    inside = {id(module) for module in decoder.modules()}
    inside |= {
        id(module) for module in (model.get_input_embeddings(), model.get_output_embeddings()) if module is not None
    }
    found: list[torch.nn.Module] = []

    def walk(module: torch.nn.Module) -> None:
        if id(module) in inside:
            return
        if any(id(part) in inside for part in module.modules()):
            for child in module.children():
                walk(child)
        else:
            found.append(module)

    walk(model)
    return found


def compute_features(
    model: Any, inputs: Mapping[str, torch.Tensor], expansions: Sequence[str], placeholder: str
) -> list[ImageFeatures]:
    """The features of several pictures in one pass through the vision tower.

    Args:
        model: the model.
        inputs: what the image processor gives for the pictures, each as a prompt of its own: ``pixel_values`` and what belongs to it.
        expansions: the text that stands for each picture.
        placeholder: the token that is repeated in it once per feature.

    Raises:
        ValueError: the model gives another number of features than there are placeholders.
    """
    base = model.base_model
    names = inspect.signature(base.get_image_features).parameters
    wanted = {name: value for name, value in inputs.items() if name in names}
    with torch.no_grad():
        output = base.get_image_features(**wanted, return_dict=True)
    counts = [text.count(placeholder) for text in expansions]
    states = _per_picture(output.pooler_output, counts)
    layers = [_per_picture(layer, counts) for layer in (getattr(output, "deepstack_features", None) or ())]
    rows = _rows(inputs, len(expansions))
    return [
        ImageFeatures(states[i].clone(), expansions[i], tuple(layer[i].clone() for layer in layers), rows[i])
        for i in range(len(expansions))
    ]


def encoder_outputs(features: Sequence[ImageFeatures]) -> dict[str, BaseModelOutputWithPooling]:
    """``mm_encoder_outputs`` for pictures in prompt order. Make a new one for each call: ``generate`` changes it."""
    states = [f.states for f in features]
    stacked = states[0].ndim == 3
    shown: Any = torch.cat(states) if stacked else states  # annotated as a tensor; most models take a list of them
    output = BaseModelOutputWithPooling(pooler_output=shown)
    if features[0].deepstack:
        output["deepstack_features"] = [[f.deepstack[i] for f in features] for i in range(len(features[0].deepstack))]
    return {"image": output}


def side_inputs(features: Sequence[ImageFeatures]) -> dict[str, torch.Tensor]:
    """The inputs that accompany features, in the pictures' order (``image_grid_thw``)."""
    return {name: torch.cat([f.inputs[name] for f in features]) for name in (features[0].inputs if features else ())}


class FeatureCache:
    """Features of one model, in memory and optionally on disk.

    Args:
        model: the model; features are forgotten when its vision part changes.
        preparation: identifies how images are prepared (:attr:`kshot.models.encoding.Encoder.fingerprint`).
        budget: bytes of memory, on the model's device.
        folder: where to keep a copy on disk. Entries there are keyed by picture, preprocessing and weights, and carry a
            checksum; a damaged entry is computed again and replaced. The folder is never emptied.
    """

    def __init__(
        self,
        model: Any,
        preparation: str,
        *,
        budget: int = GIBIBYTE,
        folder: str | os.PathLike[str] | None = None,
    ):
        self.model, self.preparation = model, preparation
        self.folder = Path(folder) if folder is not None else None
        self._memory: BudgetedCache[ImageFeatures] = BudgetedCache(budget)
        self._state: Hashable = None
        self._identity: str | None = None

    @property
    def statistics(self) -> CacheStatistics:
        """Hits, misses and bytes so far."""
        return self._memory.statistics

    def refresh(self) -> None:
        """Forget everything if the vision part has changed since the last call. Call it once per batch of lookups."""
        state = model_state(vision_modules(self.model))
        if state != self._state:
            self._memory.clear()
            self._state, self._identity = state, None

    def clear(self) -> None:
        """Forget everything in memory."""
        self._memory.clear()

    def get(self, digest: str) -> ImageFeatures | None:
        """The features of the picture with this digest, from memory or disk; ``None`` (a miss) if they must be computed."""
        found = self._memory.get(digest)
        if found is None and self.folder is not None:
            found = self._read(digest)
            if found is not None:
                self.statistics.disk_hits += 1
                self._memory.put(digest, found, found.size)
        if found is None:
            self.statistics.misses += 1
        return found

    def peek(self, digest: str) -> ImageFeatures | None:
        """As :meth:`get`, but only looks into the memory and counts nothing."""
        return self._memory.peek(digest)

    def put(self, digest: str, features: ImageFeatures) -> None:
        """Keep the features of a picture."""
        self._memory.put(digest, features, features.size)
        if self.folder is not None:
            self._write(digest, features)

    def path(self, digest: str) -> Path:
        """The file of a picture's features (whether or not it exists)."""
        assert self.folder is not None
        if self._identity is None:
            self._identity = self.preparation + weight_hash(vision_modules(self.model))
        key = hashlib.blake2b(f"{digest}{self._identity}{self.model.device.type}".encode(), digest_size=16).hexdigest()
        return self.folder / key[:2] / f"{key}.safetensors"

    def _read(self, digest: str) -> ImageFeatures | None:
        path = self.path(digest)
        if not path.exists():
            return None
        try:
            with safe_open(path, framework="pt", device=str(self.model.device)) as file:
                meta = file.metadata()
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
            if meta["checksum"] != _checksum(tensors):
                raise ValueError("checksum")
            features = ImageFeatures(
                tensors.pop("states"),
                json.loads(meta["expansion"]),
                tuple(tensors.pop(f"deepstack.{i}") for i in range(int(meta["deepstack"]))),
                {name.removeprefix("inputs."): tensor for name, tensor in tensors.items()},
            )
        except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
            logger.warning("cached features in %s are damaged (%s); computing them again", path, error)
            return None
        return features

    def _write(self, digest: str, features: ImageFeatures) -> None:
        tensors = {"states": features.states}
        tensors |= {f"deepstack.{i}": tensor for i, tensor in enumerate(features.deepstack)}
        tensors |= {f"inputs.{name}": tensor for name, tensor in features.inputs.items()}
        tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
        meta = {
            "checksum": _checksum(tensors),
            "expansion": json.dumps(features.expansion),
            "deepstack": str(len(features.deepstack)),
        }
        with whole_file(self.path(digest)) as temporary:
            save_file(tensors, temporary, metadata=meta)


def weight_hash(modules: Sequence[torch.nn.Module]) -> str:
    """Hash of the weights of modules: names, types, shapes and values."""
    hasher = hashlib.blake2b(digest_size=16)
    for module in modules:
        for name, tensor in module.state_dict().items():
            hasher.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
            hasher.update(_raw(tensor))
    return hasher.hexdigest()


def _raw(tensor: torch.Tensor) -> Any:
    """The bytes of a tensor (NumPy has no bfloat16, hence the detour)."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy()


def _checksum(tensors: Mapping[str, torch.Tensor]) -> str:
    hasher = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        hasher.update(name.encode())
        hasher.update(_raw(tensors[name]))
    return hasher.hexdigest()


def _per_picture(output: torch.Tensor | Sequence[torch.Tensor], counts: Sequence[int]) -> list[torch.Tensor]:
    """Split a vision tower's output into the pictures' shares, by the number of tokens of each."""
    if isinstance(output, torch.Tensor) and output.ndim == 3:
        tiles = [count // output.shape[1] for count in counts]
        if sum(tiles) != len(output) or [n * output.shape[1] for n in tiles] != list(counts):
            raise ValueError(f"{len(output)} x {output.shape[1]} features for pictures of {list(counts)} tokens")
        return list(output.split(tiles))
    whole = output if isinstance(output, torch.Tensor) else torch.cat([part.flatten(0, -2) for part in output])
    if len(whole) != sum(counts):
        raise ValueError(f"{len(whole)} features for pictures of {list(counts)} tokens")
    return list(whole.split(list(counts)))


def _rows(inputs: Mapping[str, torch.Tensor], pictures: int) -> list[dict[str, torch.Tensor]]:
    """For each picture its row of the inputs that have one row per picture and are no pixels."""

    def small(name: str, value: Any) -> bool:
        return not name.startswith("pixel") and isinstance(value, torch.Tensor) and len(value) == pictures

    kept = {name: value for name, value in inputs.items() if small(name, value)}
    return [{name: value[i : i + 1].clone() for name, value in kept.items()} for i in range(pictures)]
