"""What LIVE's and MimIC's training programs leave on disk, and what their models compute with it, written down independently."""

from __future__ import annotations

import os
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from kshot.models.anatomy import examine


@contextmanager
def omegaconf() -> Iterator[Any]:
    """Classes that pickle as those of OmegaConf 2.x do (it is not installed here): a constructor ``(settings) -> node``."""
    modules = {name: ModuleType(name) for name in ("base", "nodes", "dictconfig", "listconfig")}

    def made(module: str, name: str) -> Any:
        found = type(name, (), {"__module__": f"omegaconf.{module}"})
        setattr(modules[module], name, found)
        return found

    metadata, container = made("base", "Metadata"), made("base", "ContainerMetadata")
    leaf, mapping, sequence = (
        made("nodes", "AnyNode"),
        made("dictconfig", "DictConfig"),
        made("listconfig", "ListConfig"),
    )

    def node(value: Any, parent: Any = None) -> Any:
        own = mapping() if isinstance(value, dict) else sequence() if isinstance(value, list) else leaf()
        about = metadata() if isinstance(own, leaf) else container()
        about.__dict__.update(ref_type=Any, object_type=dict, optional=True, flags=None)
        if not isinstance(own, leaf):
            about.__dict__.update(key_type=Any, element_type=Any, resolver_cache=defaultdict(dict))
        own.__dict__.update(_metadata=about, _parent=parent)
        if isinstance(value, dict):
            own.__dict__["_content"] = {key: node(inner, own) for key, inner in value.items()}
        elif isinstance(value, list):
            own.__dict__["_content"] = [node(inner, own) for inner in value]
        else:
            own.__dict__["_val"] = value
        return own

    package = {"omegaconf": ModuleType("omegaconf")} | {f"omegaconf.{name}": module for name, module in modules.items()}
    before = {name: sys.modules.get(name) for name in package}
    sys.modules.update(package)
    try:
        yield node
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def write_live(
    path: Path, vectors: torch.Tensor, scales: torch.Tensor, *, settings: dict[str, Any] | None, **others: Any
) -> Path:
    """``icv_cpk.pth`` as LIVE's train.py writes it."""
    held: dict[str, Any] = {"icv_encoder.icv": vectors[None], "icv_encoder.alpha": scales[None]}
    held |= {"temperature": torch.tensor(1.0), "use_sigmoid": False} | others
    with omegaconf() as node:
        if settings is not None:
            held["lmm_args"] = node({"lmm": settings, "bs": [1, 2]}).__dict__["_content"]["lmm"]
        torch.save(held, path)
    return path


def live_hooks(model: Any, modules: list[Any], vectors: torch.Tensor, scales: torch.Tensor) -> None:
    """LIVE's forward hooks."""

    def hook(number: int) -> Any:
        def after(module: Any, inputs: Any, output: Any) -> Any:
            hidden = output[0] if isinstance(output, tuple) else output
            moved = hidden + (scales[number] * vectors[number])[None, None]
            hidden = moved / moved.norm(dim=-1, keepdim=True) * hidden.norm(dim=-1, keepdim=True)
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        return after

    for number, module in enumerate(modules):
        module.register_forward_hook(hook(number))


@contextmanager
def mimic_attention(model: Any, held: dict[str, torch.Tensor], masked: bool = False) -> Iterator[None]:
    """MimIC's self-attention heads in all decoder layers, through an attention function of their own."""
    numbers = {id(module): number for number, module in enumerate(examine(model).attention)}

    def forward(module: Any, query: Any, key: Any, value: Any, mask: Any, **options: Any) -> Any:
        output, weights = sdpa_attention_forward(module, query, key, value, mask, **options)
        number = numbers.get(id(module))
        if number is None:
            return output, weights
        shift = held["attn_shift"][number]
        if f"log_Z1_lin.{number}.weight" not in held:
            return output + shift.reshape(output.shape[2:]), weights
        keys = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
        logits = query @ keys.transpose(2, 3) / query.shape[-1] ** 0.5
        if masked:
            length = logits.shape[-1]
            logits = logits.masked_fill(torch.ones(length, length).triu(1).bool(), float("-inf"))
        log_z2 = logits.logsumexp(-1).transpose(1, 2)
        weight, bias = (held[f"log_Z1_lin.{number}.{part}"] for part in ("weight", "bias"))
        if shift.ndim == 1:  # without MULTI_HEAD
            log_z1 = query.transpose(1, 2).flatten(2) @ weight.T + bias
            share = torch.exp(log_z1 - torch.logaddexp(log_z1, log_z2.mean(-1, keepdim=True)))
            return (output.flatten(2) + share * shift).unflatten(2, output.shape[2:]), weights
        log_z1 = (query.transpose(1, 2) * weight).sum(-1) + bias
        share = torch.exp(log_z1 - torch.logaddexp(log_z1, log_z2))
        return output + share[..., None] * shift, weights

    AttentionInterface.register("upstream_mimic", forward)
    before = model.config.get_text_config(decoder=True)._attn_implementation
    model.config.get_text_config(decoder=True)._attn_implementation = "upstream_mimic"
    try:
        yield
    finally:
        model.config.get_text_config(decoder=True)._attn_implementation = before


class Evil:
    """Reading its pickle makes a folder."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("kshot-was-here",)
