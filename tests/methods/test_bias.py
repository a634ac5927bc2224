"""Constant shifts, and the plain models that they are merged into."""

from __future__ import annotations

import pytest
import torch
import transformers as hf
from peft import get_peft_model

from kshot.errors import ModelError, OptionError
from kshot.methods import BiasConfig
from kshot.models.anatomy import examine
from tests.methods.common import FAMILIES, adapted, base, fresh, logits

MERGEABLE = {"mlp": {"idefics3", "smolvlm", "llava_llama"}}
"""Families whose decoder has a setting for biases, by placement: Llama for both; Qwen3 and Gemma3 for attention only."""
MERGEABLE["attention"] = MERGEABLE["mlp"] | {"qwen3_vl", "gemma3", "paligemma"}
PLACES = [(placement, family) for placement in MERGEABLE for family in FAMILIES]


def parts(model, placement):
    """The modules that are shifted, by the names that they have in these families."""
    anatomy = examine(model)
    if placement == "mlp":
        return [layer.mlp for layer in anatomy.layers]
    return [attention.o_proj for attention in anatomy.attention]


@pytest.mark.parametrize(("placement", "family"), PLACES)
def test_the_formula(placement, family):
    _, inputs, _ = base(family)
    model = adapted(family, "bias", placement=placement).get_base_model()
    found = logits(model, inputs)
    plain = fresh(family)
    for part, shifted in zip(parts(plain, placement), parts(model, placement), strict=True):
        vector = shifted.shift_bias.bias_shift_vector["default"].data
        part.register_forward_hook(lambda module, given, output, vector=vector: output + vector)
    assert torch.equal(logits(plain, inputs), found)


@pytest.mark.parametrize(("placement", "family"), PLACES)
def test_merged_models_are_plain_models(placement, family, tmp_path):
    _, inputs, _ = base(family)
    model = adapted(family, "bias", placement=placement)
    expected = logits(model.get_base_model(), inputs)
    kind, weights = type(model.get_base_model()), set(base(family)[0].state_dict())
    if family not in MERGEABLE[placement]:
        before = {name: parameter.clone() for name, parameter in model.named_parameters()}
        with pytest.raises(ModelError, match="has no setting for a bias at"):
            model.merge_and_unload()
        assert torch.equal(logits(model.get_base_model(), inputs), expected)
        assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
        return
    merged = model.merge_and_unload()
    assert type(merged) is kind
    assert not [name for name in merged.state_dict() if "shift" in name]
    assert weights < set(merged.state_dict())
    assert float((logits(merged, inputs) - expected).abs().max()) < 5e-6
    merged.save_pretrained(tmp_path)
    loaded, report = hf.AutoModelForImageTextToText.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert torch.equal(logits(loaded.requires_grad_(False).eval(), inputs), logits(merged, inputs))


def test_some_layers_and_several_adapters():
    _, inputs, _ = base("llava_llama")
    model = adapted("llava_llama", "bias", layers=[1])
    model.add_adapter("second", BiasConfig(layers=[0], std=0.5))
    model.base_model.set_adapter(["default", "second"])
    expected = logits(model.get_base_model(), inputs)
    merged = model.merge_and_unload()
    assert float((logits(merged, inputs) - expected).abs().max()) < 5e-6
    for layer in examine(merged).layers:
        assert float(layer.mlp.down_proj.bias.abs().max()) > 0
        assert float(layer.mlp.up_proj.bias.abs().max()) == 0
        assert layer.self_attn.o_proj.bias is None
    # Where a bias is already, the next is added to it.
    again = get_peft_model(merged, BiasConfig(std=0.3))
    expected = logits(again.get_base_model(), inputs)
    assert float((logits(again.merge_and_unload(), inputs) - expected).abs().max()) < 5e-6


def test_weighted_sums():
    _, inputs, _ = base("llava")
    model = adapted("llava", "bias")
    model.add_adapter("second", BiasConfig(layers=[1], std=0.5))
    model.add_weighted_adapter(["default", "second"], [2.0, -1.0], "sum")
    model.set_adapter("sum")
    first, second = (part.shift_bias.bias_shift_vector for part in parts(model.get_base_model(), "mlp"))
    assert torch.equal(first["sum"], 2 * first["default"])
    torch.testing.assert_close(second["sum"].data, 2 * second["default"].data - second["second"].data)
    assert not torch.equal(logits(model.get_base_model(), inputs), logits(base("llava")[0], inputs))


def test_mixtures_of_experts_and_wrong_options_are_refused():
    model = adapted("llava_llama", "bias")
    for layer in examine(model.get_base_model()).layers:
        layer.mlp.down_proj = torch.nn.Sequential(layer.mlp.down_proj)
    with pytest.raises(ModelError, match="does not end in a plain linear map"):
        model.merge_and_unload()
    with pytest.raises(OptionError, match="unknown placement 'layer'"):
        BiasConfig(placement="layer")
    with pytest.raises(ModelError, match="merged in place"):
        adapted("llava_llama", "bias").merge_adapter()


def test_initial_values():
    with torch.device("meta"):
        config = hf.LlavaConfig(text_config={"model_type": "llama"}, vision_config={"num_hidden_layers": 1})
        assert (
            get_peft_model(hf.LlavaForConditionalGeneration(config), BiasConfig()).get_nb_trainable_parameters()[0]
            == 32 * 4096
        )
    state = get_peft_model(fresh("llava"), BiasConfig()).state_dict()
    values = torch.stack([state[key] for key in state if "bias_shift_vector" in key])
    assert float(values.std()) == pytest.approx(0.001, rel=0.2)
