"""LIVE against its formula."""

from __future__ import annotations

import pytest
import torch
import transformers as hf
from peft import get_peft_model
from torch import nn

from kshot.errors import ModelError, OptionError
from kshot.methods import LiveConfig, live
from kshot.methods.live import rescaled
from kshot.models.anatomy import examine
from tests.methods.common import FAMILIES, adapted, base, fresh, logits


def expected_logits(family, inputs, model, placement, sigmoid=False):
    """Logits of a plain copy whose layers are shifted by hooks that spell the formula out in double precision."""
    plain = fresh(family)
    state = model.state_dict()
    for number, layer in enumerate(examine(plain).layers):
        place = layer if placement == "layer" else layer.mlp
        keys = [key for key in state if f"layers.{number}." in key and ".live_" in key]
        vector, alpha = (
            next(state[key] for key in keys if part in key).double() for part in ("live_vector", "live_alpha")
        )
        factor = 1 / (1 + (-alpha).exp()) if sigmoid else alpha

        def hook(module, given, output, vector=vector, factor=factor):
            hidden = output.double()
            moved = hidden + factor * vector
            return (
                moved * hidden.square().sum(-1, keepdim=True).sqrt() / moved.square().sum(-1, keepdim=True).sqrt()
            ).float()

        place.register_forward_hook(hook)
    return logits(plain, inputs)


@pytest.mark.parametrize("placement", ["layer", "mlp"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_formula(family, placement):
    _, inputs, _ = base(family)
    model = adapted(family, "live", placement=placement)
    expected = expected_logits(family, inputs, model, placement)
    assert float((logits(model.get_base_model(), inputs) - expected).abs().max()) < 5e-6


def test_the_scale_may_be_a_sigmoid():
    _, inputs, _ = base("llava")
    model = adapted("llava", "live", sigmoid=True)
    expected = expected_logits("llava", inputs, model, "layer", sigmoid=True)
    assert float((logits(model.get_base_model(), inputs) - expected).abs().max()) < 2e-6


def test_rescaling_to_1e_6():
    random = torch.Generator().manual_seed(0)
    hidden, offset = (torch.randn(size, generator=random, dtype=torch.float64) for size in ((2, 5, 64), (64,)))
    moved = hidden + offset
    expected = moved * hidden.norm(dim=-1, keepdim=True) / moved.norm(dim=-1, keepdim=True)
    assert float((rescaled(hidden, offset) - expected).abs().max()) < 1e-14
    assert float((rescaled(hidden.float(), offset.float()) - expected).abs().max()) < 1e-6
    half = rescaled(hidden.bfloat16(), offset)
    assert half.dtype == torch.bfloat16
    assert float((half - expected).abs().max()) < 0.05
    torch.testing.assert_close(half.float().norm(dim=-1), hidden.norm(dim=-1).float(), rtol=0.01, atol=0)
    assert torch.equal(rescaled(hidden, torch.zeros(64)), hidden)
    assert torch.equal(rescaled(torch.zeros(1, 64), offset.float()), torch.zeros(1, 64))


def of_one_layer(sigmoid=False):
    """The layer of a perturbed adapter, and a module whose output it shifts: what it is called with."""
    model = adapted("llava", "live", sigmoid=sigmoid)
    layer = next(module for module in model.modules() if isinstance(module, live.LiveLayer))
    place = nn.Identity()
    place.register_forward_hook(layer._after)
    return layer, place


@pytest.mark.parametrize("sigmoid", [False, True])
@pytest.mark.parametrize("size", [(1, 1), (5, 1), (2, 3), (4, 1, 3), (4, 1, 1)])
def test_one_token_and_many(size, sigmoid):
    layer, place = of_one_layer(sigmoid)
    hidden = torch.randn(*size, layer.width, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        offset = layer.offset("default")
        moved = hidden.double() + offset.double()
        expected = moved * (hidden.double().norm(dim=-1) / moved.norm(dim=-1)).unsqueeze(-1)
        assert float((place(hidden) - expected).abs().max()) < 1e-6
        assert torch.equal(place(torch.zeros_like(hidden)), torch.zeros_like(hidden))
        assert place(hidden.bfloat16()).dtype == torch.bfloat16
        torch.testing.assert_close(place(hidden.bfloat16()), rescaled(hidden.bfloat16(), offset), rtol=0, atol=0)


def test_one_token_has_the_gradients_of_the_formula():
    layer, place = of_one_layer()
    hidden = torch.randn(2, 1, layer.width, generator=torch.Generator().manual_seed(0), requires_grad=True)
    wanted = [hidden, layer.live_vector["default"], layer.live_alpha["default"]]
    expected = torch.autograd.grad(rescaled(hidden, layer.offset("default")).sin().sum(), wanted)
    torch.testing.assert_close(torch.autograd.grad(place(hidden).sin().sum(), wanted), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_alpha_of_zero_is_the_base_model(family):
    model, inputs, _ = base(family)
    expected = logits(model, inputs)
    with_adapter = get_peft_model(fresh(family), LiveConfig(alpha=0.0, std=5.0)).get_base_model()
    assert torch.equal(logits(with_adapter, inputs), expected)


def test_gradients():
    _, inputs, _ = base("llava")
    model = adapted("llava", "live").get_base_model()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    weight = torch.randn(1, generator=torch.Generator().manual_seed(0))
    loss = lambda: (model(**inputs).logits.double().sin() * weight).sum()  # noqa: E731
    found = torch.autograd.grad(loss(), trained)
    for parameter, gradient in zip(trained, found, strict=True):
        step = torch.zeros_like(parameter)
        step.view(-1)[gradient.abs().argmax()] = 1e-3
        with torch.no_grad():
            parameter.add_(step)
            above = loss()
            parameter.sub_(2 * step)
            below = loss()
            parameter.add_(step)
        expected = gradient.view(-1)[gradient.abs().argmax()]
        assert float((above - below) / 2e-3) == pytest.approx(float(expected), rel=0.02)


def test_initial_values_and_number_of_parameters():
    config = hf.LlavaConfig(text_config={"model_type": "llama"}, vision_config={"num_hidden_layers": 1})
    assert (config.text_config.num_hidden_layers, config.text_config.hidden_size) == (32, 4096)
    with torch.device("meta"):
        model = hf.LlavaForConditionalGeneration(config)
    adapter = get_peft_model(model, LiveConfig())
    assert adapter.get_nb_trainable_parameters()[0] == 131_104
    tiny = get_peft_model(fresh("llava"), LiveConfig(layers=[0])).state_dict()
    vector = next(value for key, value in tiny.items() if "live_vector" in key)
    assert next(value for key, value in tiny.items() if "live_alpha" in key).tolist() == [pytest.approx(0.1)]
    assert float(vector.std()) == pytest.approx(0.01, rel=0.3)
    again = get_peft_model(fresh("llava"), LiveConfig(layers=[0])).state_dict()
    other = get_peft_model(fresh("llava"), LiveConfig(layers=[0], seed=1)).state_dict()
    key = next(key for key in again if "live_vector" in key)
    assert torch.equal(again[key], vector)
    assert not torch.equal(other[key], vector)
    sigmoid = get_peft_model(fresh("llava"), LiveConfig(sigmoid=True)).state_dict()
    assert next(value for key, value in sigmoid.items() if "live_alpha" in key).tolist() == [0.0]


@pytest.mark.parametrize("sigmoid", [False, True])
def test_weighted_sums_add_up_what_is_added(sigmoid):
    model = adapted("llava", "live", seed=1, sigmoid=sigmoid)
    model.add_adapter("second", LiveConfig(sigmoid=sigmoid, seed=5))
    model.add_weighted_adapter(["default", "second"], [0.25, -2.0], "sum")
    layers = [layer.shift_live for layer in examine(model.get_base_model()).layers]
    for layer in layers:
        expected = 0.25 * layer.offset("default") - 2.0 * layer.offset("second")
        torch.testing.assert_close(layer.offset("sum"), expected)
    with pytest.raises(OptionError, match="'sum' already"):
        model.add_weighted_adapter(["default"], [1.0], "sum")
    model.add_adapter("other", LiveConfig(placement="mlp"))
    with pytest.raises(OptionError, match="different options"):
        model.add_weighted_adapter(["default", "other"], [1.0, 1.0], "more")


def test_wrong_options():
    with pytest.raises(OptionError, match="unknown placement 'head'"):
        LiveConfig(placement="head")
    with pytest.raises(OptionError, match="has layers 0 to 1"):
        get_peft_model(fresh("llava"), LiveConfig(layers=[2]))
    with pytest.raises(ModelError, match=r"rescaled.*train method 'bias'"):
        adapted("llava", "live").merge_and_unload()
