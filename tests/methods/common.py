"""Tiny models with adapters, and what the tests ask of them."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import torch
from peft import PeftModel, get_peft_model

from kshot.methods import methods
from kshot.models.anatomy import examine
from kshot.models.vlm import VLM
from tests.models import tiny
from tests.models.test_families import QA, episode

CUE = tiny.tokenizer()("what? Short answer:")["input_ids"][-3:]
"""The tokens with which prompts of the template ``QA`` end."""
OPTIONS: dict[str, dict[str, Any]] = {name: {"cue": CUE} for name in ("task_vector", "stave", "function_vector", "mtv")}
"""Options that a method needs on models as small as these, by its name."""
OURS = [name for name in methods if methods.get(name).tuner is not None]
FAMILIES = sorted(tiny.FAMILIES)
STEPS = 3


@cache
def base(family: str) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """A frozen model (not to be changed), a padded batch of two prompts, and the shorter of the two alone.

    Frozen, because PyTorch's kernels round otherwise when weights do not require gradients.
    """
    model, processor = tiny.build(family)
    model.requires_grad_(False)
    vlm = VLM(model, processor)
    prompts = [
        vlm.encode(episode(1), QA, "plain"),
        vlm.encode(episode(1, 7, "how many of them are there?"), QA, "plain"),
    ]
    prompts.sort(key=len, reverse=True)
    assert len(prompts[0]) > len(prompts[1])
    return model, vlm.inputs(prompts), vlm.inputs(prompts[1:])


def fresh(family: str) -> Any:
    """A copy of the model, which may be changed."""
    return copy.deepcopy(base(family)[0])


def config_of(method: str, **options: Any) -> Any:
    return methods.get(method).config(**OPTIONS.get(method, {}) | options)


@torch.no_grad()
def perturb(model: torch.nn.Module, seed: int = 0, size: float = 0.3) -> None:
    """Move all adapter parameters away from their initial values, which a new adapter would have, too."""
    random = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(model.named_parameters()):
        if ".shift_" in name:
            parameter.add_(size * torch.randn(parameter.shape, generator=random).to(parameter.dtype))


def adapted(family: str, method: str, seed: int = 0, **options: Any) -> PeftModel:
    """A copy of the model with a perturbed adapter."""
    model = get_peft_model(fresh(family), config_of(method, **options)).eval()
    perturb(model, seed)
    return model


def obstacle(family: str, method: str) -> str | None:
    return methods.get(method).obstacle(examine(base(family)[0]))


@torch.no_grad()
def logits(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    return model(**inputs).logits


@torch.no_grad()
def generated(model: Any, inputs: dict[str, Any], **options: Any) -> Any:
    """New tokens and, for greedy search, their logits."""
    given = {name: value for name, value in inputs.items() if name != "position_ids"}
    settings = {"max_new_tokens": STEPS, "min_new_tokens": STEPS, "do_sample": False} | options
    found = model.generate(**given, **settings, return_dict_in_generate=True, output_logits=True)
    return found.sequences[:, inputs["input_ids"].shape[1] :], torch.stack(found.logits, 1)


def attention_names(model: Any) -> set[str]:
    return {str(module.config._attn_implementation) for module in examine(model).attention}
