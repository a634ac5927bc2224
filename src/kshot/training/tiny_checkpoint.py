"""State of a training run as one safetensors file: parameters, optimiser and step."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn


def save_checkpoint(
    path: str | os.PathLike[str], modules: Mapping[str, nn.Module], optimizer: torch.optim.AdamW, step: int
) -> None:
    """Write modules, AdamW moments and the number of steps done; the file appears under its name only when complete."""
    tensors: dict[str, Tensor] = {}
    for name, module in modules.items():
        tensors |= {f"{name}/{key}": value.detach().contiguous() for key, value in module.state_dict().items()}
    for number, parameter in enumerate(_parameters(optimizer)):
        state = optimizer.state.get(parameter, {})
        tensors |= {
            f"adam/{number}/{key}": state[key].contiguous() for key in ("step", "exp_avg", "exp_avg_sq") if key in state
        }
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".tmp")
    save_file({key: value.clone() for key, value in tensors.items()}, unfinished, metadata={"step": str(step)})
    unfinished.replace(path)


def load_checkpoint(
    path: str | os.PathLike[str], modules: Mapping[str, nn.Module], optimizer: torch.optim.AdamW | None = None
) -> int:
    """Restore what :func:`save_checkpoint` wrote; returns the number of steps done, 0 if there is no file."""
    path = Path(path)
    if not path.exists():
        return 0
    with safe_open(path, "pt") as file:
        step = int(file.metadata()["step"])
        keys = set(file.keys())
        for name, module in modules.items():
            prefix = f"{name}/"
            module.load_state_dict({k[len(prefix) :]: file.get_tensor(k) for k in keys if k.startswith(prefix)})
        if optimizer is not None:
            for number, parameter in enumerate(_parameters(optimizer)):
                moments = {k: f"adam/{number}/{k}" for k in ("step", "exp_avg", "exp_avg_sq")}
                if all(key in keys for key in moments.values()):
                    optimizer.state[parameter] = {k: file.get_tensor(key) for k, key in moments.items()}
    return step


def checkpoint_step(path: str | os.PathLike[str]) -> int:
    """Steps done by the run that wrote a checkpoint; 0 if there is no file."""
    if not Path(path).exists():
        return 0
    with safe_open(path, "pt") as file:
        return int(file.metadata()["step"])


def _parameters(optimizer: torch.optim.AdamW) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]
