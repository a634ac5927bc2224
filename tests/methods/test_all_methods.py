"""The behaviour that all methods of ours share, on all families of models; a method that is registered is tested by itself."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel

from tests.methods.common import FAMILIES, OURS, adapted, attention_names, base, fresh, generated, logits, obstacle

PAIRS = [(method, family) for method in OURS for family in FAMILIES]
UNLIKE = ("gemma3", "idefics", "llava", "mllama", "qwen2_5_vl")
"""Families that differ most; the others are like one of them."""


@pytest.fixture(params=PAIRS, ids=lambda pair: "-".join(pair))
def every_pair(request: pytest.FixtureRequest) -> tuple[str, str]:
    return possible(request)


@pytest.fixture(
    params=[pytest.param(pair, marks=() if pair[1] in UNLIKE else pytest.mark.slow) for pair in PAIRS], ids="-".join
)
def pair(request: pytest.FixtureRequest) -> tuple[str, str]:
    return possible(request)


def possible(request: pytest.FixtureRequest) -> tuple[str, str]:
    method, family = request.param
    why = obstacle(family, method)
    if why is not None:
        pytest.skip(why)
    return method, family


def test_an_adapter_acts_only_while_it_is_active(every_pair):
    method, family = every_pair
    model, inputs, _ = base(family)
    expected = logits(model, inputs)
    with_adapter = adapted(family, method)
    inner = with_adapter.get_base_model()
    found = logits(inner, inputs)
    assert torch.isfinite(found).all()
    assert float((found - expected).abs().max()) > 1e-2
    with with_adapter.disable_adapter():
        assert torch.equal(logits(inner, inputs), expected)
    assert torch.equal(logits(inner, inputs), found)
    plain = with_adapter.unload()
    assert torch.equal(logits(plain, inputs), expected)
    assert attention_names(plain) == attention_names(model)
    assert list(plain.state_dict()) == list(model.state_dict())
    hooks = [
        hook
        for module in plain.modules()
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    ]
    assert not [hook for hook in hooks if "kshot" in str(getattr(hook, "__module__", ""))]


def test_saved_and_loaded_by_peft_and_by_transformers(pair, tmp_path):
    method, family = pair
    _, inputs, _ = base(family)
    model = adapted(family, method)
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}
    expected = logits(model.get_base_model(), inputs)
    by_peft = PeftModel.from_pretrained(fresh(family), tmp_path).get_base_model()
    assert torch.equal(logits(by_peft, inputs), expected)
    by_transformers = fresh(family)
    by_transformers.load_adapter(tmp_path)
    assert torch.equal(logits(by_transformers, inputs), expected)


def test_padding_changes_nothing(pair):
    method, family = pair
    _, both, alone = base(family)
    model = adapted(family, method).get_base_model()
    length = int(alone["attention_mask"].sum())
    padded = logits(model, both)[1, -length:]
    assert float((padded - logits(model, alone)[0, -length:]).abs().max()) < 5e-6


def test_decoding_step_by_step_is_reading_at_once(pair):
    method, family = pair
    _, inputs, _ = base(family)
    model = adapted(family, method).get_base_model()
    steps, stepwise = generated(model, inputs)
    expected_steps, expected = generated(model, inputs, use_cache=False)
    assert torch.equal(steps, expected_steps)
    assert float((stepwise - expected).abs().max()) < 1e-5
