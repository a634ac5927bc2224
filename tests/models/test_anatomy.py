"""What the anatomy says of each family, against what is known of the architectures."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kshot.errors import ModelError
from kshot.models.anatomy import examine
from tests.models import tiny
from tests.models.reference import vlm

FEATURELESS = ("idefics", "mllama")
SLIDING = ("gemma3", "paligemma")


@pytest.fixture(params=sorted(tiny.FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    return request.param


def test_layers_and_attention(family):
    model = vlm(family)
    found = model.anatomy
    layers = 4 if family == "mllama" else 2
    assert (len(found.layers), found.hidden_size, found.head_dim, found.heads) == (layers, 64, 16, 4)
    assert found.kv_heads == (4 if family == "idefics" else 2)
    assert len(found.attention) == 2
    assert found.max_context == 4096
    assert found.parameters == sum(p.numel() for p in model.model.parameters())
    assert all(isinstance(layer, nn.Module) for layer in found.layers)
    assert len(found.cross_attention) == {"idefics": 2, "mllama": 2}.get(family, 0)


def test_the_attention_modules_are_those_that_text_runs_through(family):
    model = vlm(family)
    called: list[nn.Module] = []
    modules = [m for m in model.model.modules() if type(m).__name__.endswith("Attention")]
    handles = [m.register_forward_hook(lambda module, inputs, output: called.append(module)) for m in modules]
    with torch.no_grad():
        # No image: neither the vision tower nor cross-attention has a part in it, except where the model always runs it.
        ids = torch.tensor([[1, 60, 61, 62]])
        extra = {"token_type_ids": torch.zeros_like(ids)} if family == "paligemma" else {}
        if family == "idefics":
            extra = {"pixel_values": torch.zeros(1, 1, 3, 28, 28), "image_attention_mask": torch.zeros(1, 4, 1)}
        model.model(input_ids=ids, attention_mask=torch.ones_like(ids), **extra)
    for handle in handles:
        handle.remove()
    decoder = {id(m) for layer in model.anatomy.layers for m in layer.modules()}
    cross = {id(m) for m in model.anatomy.cross_attention}
    expected = {id(m) for m in called if id(m) in decoder} - cross
    assert {id(m) for m in model.anatomy.attention} == expected


def test_abilities(family):
    found = vlm(family).anatomy
    assert bool(found.vision_features) == (family not in FEATURELESS)
    assert bool(found.prefix_reuse) == (family not in ("mllama", "paligemma"))
    assert found.prefix_lm == (family == "paligemma")
    assert found.sliding_window == (16 if family in SLIDING else None)
    assert found.residual_methods
    assert found.attention_methods
    assert not found.hybrid
    for ability in (found.vision_features, found.prefix_reuse):
        assert ability or len(ability.reason) > 20


def test_the_report_is_readable(family):
    text = vlm(family).anatomy.describe()
    assert f"({vlm(family).model.config.model_type})" in text
    assert "4,096 tokens" in text
    assert all(len(line) < 200 for line in text.splitlines())


def test_hybrid_models_are_recognised():
    import transformers as hf

    text = tiny.TEXT | {
        "vocab_size": tiny.vocabulary(),
        "head_dim": 16,
        "rope_parameters": {
            "rope_type": "default",
            "mrope_section": [2, 3, 3],
            "rope_theta": 1e4,
            "mrope_interleaved": True,
        },
        "layer_types": ["linear_attention", "full_attention"],
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
    }
    config = hf.Qwen3_5Config(
        text_config=text,
        vision_config={"depth": 1, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64},
    )
    with torch.device("meta"):
        found = examine(hf.Qwen3_5ForConditionalGeneration(config))
    assert found.hybrid
    assert len(found.layers) == 2
    assert len(found.attention) == 1
    assert found.heads == 4  # though the query projection is twice as wide: it holds the gate, too
    assert "self-attention" in found.attention_methods.reason


def test_a_model_without_layers_is_refused():
    class Empty(nn.Module):
        def get_decoder(self) -> nn.Module:
            return nn.Linear(1, 1)

    with pytest.raises(ModelError, match="Empty has no text decoder"):
        examine(Empty())
