"""MimIC against its formula, written as attention with one key more."""

from __future__ import annotations

import pytest
import torch
import transformers as hf
from peft import get_peft_model
from torch import nn

from kshot.errors import ModelError, OptionError
from kshot.methods import LiveConfig, MimicConfig
from kshot.methods.attend import attend
from kshot.methods.attention import Heads
from kshot.models.anatomy import examine
from tests.methods.common import FAMILIES, adapted, attention_names, base, config_of, fresh, generated, logits, perturb


def layer_and_call(queries=7, keys=9, dtype=torch.float32, masked=True, **options):
    """A perturbed layer of one adapter, and a random call of the attention that holds it."""
    model = get_peft_model(fresh("llava"), config_of("mimic", **options))
    perturb(model, size=1.0)
    attention = examine(model.get_base_model()).attention[0]
    random = torch.Generator().manual_seed(3)
    query, key, value = (
        torch.randn(2, heads, tokens, 16, generator=random, dtype=torch.float64).to(dtype)
        for heads, tokens in ((4, queries), (2, keys), (2, keys))
    )
    mask = torch.ones(2, 1, queries, keys, dtype=torch.bool).tril(keys - queries)
    mask[1, :, :, :1] = False
    seen = mask if masked else torch.ones_like(mask)
    output, normaliser = attend(query, key, value, mask=seen, scale=0.25, variant="eager")
    return attention.shift_mimic, Heads(query, output, normaliser, query, key, value, 0.25, None), seen


def with_one_more_key(layer, heads, mask):
    """Attention over the keys and one more, whose logit is log Z1: its weight is mu, and its value SA + shift."""
    weight, bias, shift = (
        getattr(layer, name)["default"].detach().double() for name in ("mimic_weight", "mimic_bias", "mimic_shift")
    )
    key, value = (part.double().repeat_interleave(2, 1) for part in (heads.key, heads.value))
    scores = torch.einsum("bhtd,bhsd->bhts", heads.query.double(), key) * heads.scale
    scores = scores.masked_fill(~mask, -torch.inf)
    extra = (heads.query.double() * weight[:, None]).sum(-1) + bias[:, None]
    weights = torch.cat([scores, extra[..., None]], -1).softmax(-1)
    plain = scores.softmax(-1) @ value
    return weights[..., -1], weights[..., :-1] @ value + weights[..., -1:] * (plain + shift[:, None])


@pytest.mark.parametrize(("queries", "keys"), [(7, 9), (1, 9), (9, 10)])
def test_mu_is_the_weight_of_one_more_key(queries, keys):
    layer, heads, mask = layer_and_call(queries, keys)
    share, output = with_one_more_key(layer, heads, mask)
    assert 0.01 < float(share.mean()) < 0.99
    assert float((layer.share("default", heads) - share).detach().abs().max()) < 6e-7
    assert float((layer.shift_heads("default", heads) - output).detach().abs().max()) < 2e-6
    layer, heads, mask = layer_and_call(queries, keys, dtype=torch.float64)
    share, output = with_one_more_key(layer, heads, mask)
    layer.double()
    assert float((layer.share("default", heads) - share).detach().abs().max()) < 1e-13
    assert float((layer.shift_heads("default", heads) - output).detach().abs().max()) < 1e-13


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("shared_heads", [True, False])
def test_the_short_way_of_decoding_is_the_formula(shared_heads, masked):
    layer, heads, mask = layer_and_call(1, 9, masked=masked, shared_heads=shared_heads)
    _, output = with_one_more_key(layer, heads, mask)
    with torch.no_grad():
        short = layer.one_token(heads.rotated, heads.key, heads.value, mask if masked else None, heads.scale)
    assert float((short.transpose(1, 2) - output).abs().max()) < 2e-6


def test_what_the_short_way_cannot_do_goes_the_long_way():
    def short(queries=1, dtype=torch.float32, change=lambda layer: None, **options):
        layer, heads, mask = layer_and_call(queries, 9, dtype=dtype, **options)
        change(layer)
        return layer.one_token(heads.rotated, heads.key, heads.value, mask, heads.scale)

    with torch.no_grad():
        assert short() is not None
        assert short(queries=2) is None
        assert short(dtype=torch.float64) is None
        for options in ({"scale": "fixed"}, {"scale": "joint"}, {"query": "pre_rope"}, {"paper_code": True}):
            assert short(**options) is None, options
        assert short(change=lambda layer: layer.double()) is None
        assert short(change=lambda layer: layer.set_adapter(["default", "other"])) is None
        assert short(change=lambda layer: layer.set_adapter("other")) is None
        assert short(change=lambda layer: layer.enable_adapters(False)) is None


def test_mu_to_6e_8():
    """With logits as they are in the middle of a model, in single precision."""
    layer, heads, mask = layer_and_call()
    calm = heads._replace(query=heads.query / 4, rotated=heads.query / 4)
    output, normaliser = attend(calm.query, calm.key, calm.value, mask=mask, scale=0.25)
    calm = calm._replace(output=output, normaliser=normaliser)
    share, _ = with_one_more_key(layer, calm, mask)
    assert float((layer.share("default", calm) - share).detach().abs().max()) < 1.2e-7
    assert float((layer.share("default", calm) - share).detach().abs().mean()) < 6e-8


def test_the_published_code_forgets_the_mask():
    layer, heads, mask = layer_and_call(paper_code=True)
    share, _ = with_one_more_key(layer, heads, torch.ones_like(mask))
    masked, _ = with_one_more_key(layer, heads, mask)
    found = layer.share("default", heads)
    assert float((found - share).detach().abs().max()) < 6e-7
    assert float((found - masked).detach().abs().max()) > 0.05


@pytest.mark.parametrize("paper_code", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_whole_models_are_the_formula(family, paper_code):
    """Each self-attention of a plain copy goes through an attention that is written out here."""
    _, inputs, _ = base(family)
    model = adapted(family, "mimic", paper_code=paper_code).get_base_model()
    found = logits(model, inputs)
    layers = {id(module): module.shift_mimic for module in examine(model).attention}

    def written_out(module, query, key, value, attention_mask, scaling=None, softcap=None, **kwargs):
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        scores = query @ key.transpose(2, 3) * scaling
        scores = softcap * (scores / softcap).tanh() if softcap else scores
        everything = scores
        if attention_mask is None:
            attention_mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
        if attention_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
        else:
            scores = scores + attention_mask
        output = scores.softmax(-1) @ value
        layer = layers.get(id(module))
        if layer is not None:
            weight, bias, shift = (getattr(layer, f"mimic_{part}")["default"] for part in ("weight", "bias", "shift"))
            z1 = (query * weight[:, None]).sum(-1) + bias[:, None]
            z2 = (everything if paper_code else scores).logsumexp(-1)
            output = output + (1 / (1 + (z2 - z1).exp()))[..., None] * shift[:, None]
        return output.transpose(1, 2).contiguous(), None

    from kshot.methods import attention

    name = attention_names(model).pop()
    held = attention.ALL_ATTENTION_FUNCTIONS[name]
    try:
        hf.AttentionInterface.register(name, written_out)
        expected = logits(model, inputs)
    finally:
        hf.AttentionInterface.register(name, held)
    shown = inputs["attention_mask"].bool()
    assert float((found - expected)[shown].abs().max()) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_shares_of_zero_are_the_base_model(family):
    model, inputs, _ = base(family)
    expected = logits(model, inputs)
    with_adapter = adapted(family, "mimic").get_base_model()
    for name, parameter in with_adapter.named_parameters():
        if "mimic_bias" in name:
            parameter.data.fill_(-1e4)
    shown = inputs["attention_mask"].bool()
    assert torch.equal(logits(with_adapter, inputs)[shown], expected[shown])


def test_number_of_parameters_and_initial_values():
    config = hf.LlavaConfig(text_config={"model_type": "llama"}, vision_config={"num_hidden_layers": 1})
    assert (config.text_config.num_attention_heads, config.text_config.head_dim) == (32, 128)
    with torch.device("meta"):
        model = hf.LlavaForConditionalGeneration(config)
    assert get_peft_model(model, MimicConfig()).get_nb_trainable_parameters()[0] == 263_168
    for options, count in {
        ("shared_heads", True): 32 * (128 + 128 + 1),
        ("scale", "fixed"): 32 * 4096,
        ("scale", "joint"): 32 * (2 * 4096 + 1),
        ("ffn", True): 263_168 + 32 * 4096,
    }.items():
        with torch.device("meta"):
            model = hf.LlavaForConditionalGeneration(config)
        assert get_peft_model(model, MimicConfig(**dict([options]))).get_nb_trainable_parameters()[0] == count
    state = get_peft_model(fresh("llava"), MimicConfig()).state_dict()
    values = {
        part: torch.stack([state[key] for key in state if f".{part}." in key])
        for part in ("mimic_shift", "mimic_weight", "mimic_bias")
    }
    assert float(values["mimic_shift"].std()) == pytest.approx(0.001, rel=0.2)
    assert float(values["mimic_weight"].std()) == pytest.approx(0.02, rel=0.2)
    assert values["mimic_bias"].abs().max() == 0


def test_options():
    _, inputs, _ = base("llava")
    model = adapted("llava", "mimic", shared_heads=True).get_base_model()
    layer = examine(model).attention[0].shift_mimic
    assert layer.mimic_shift["default"].shape == (1, 16)
    wide = adapted("llava", "mimic").get_base_model()
    for attention, other in zip(examine(model).attention, examine(wide).attention, strict=True):
        for part in ("mimic_shift", "mimic_weight", "mimic_bias"):
            shared = getattr(attention.shift_mimic, part)["default"].data
            getattr(other.shift_mimic, part)["default"].data = shared.expand(4, *shared.shape[1:]).clone()
    torch.testing.assert_close(logits(model, inputs), logits(wide, inputs), rtol=0, atol=2e-6)
    fixed = adapted("llava", "mimic", scale="fixed").get_base_model()
    for attention, other in zip(examine(fixed).attention, examine(wide).attention, strict=True):
        other.shift_mimic.mimic_shift["default"].data = attention.shift_mimic.mimic_shift["default"].data.clone()
        other.shift_mimic.mimic_bias["default"].data.fill_(1e4)
    torch.testing.assert_close(logits(fixed, inputs), logits(wide, inputs), rtol=0, atol=2e-6)
    with pytest.raises(OptionError, match="unknown scale 'none'"):
        MimicConfig(scale="none")
    with pytest.raises(OptionError, match="leave one of them out"):
        MimicConfig(scale="joint", shared_heads=True)
    with pytest.raises(OptionError, match="nothing to rescale"):
        MimicConfig(ffn_rescaled=True)
    with pytest.raises(ModelError, match="cannot be added up"):
        adapted("llava", "mimic").add_weighted_adapter(["default"], [1.0], "sum")


def test_the_ffn_shift_is_added_to_the_output_of_each_mlp():
    _, inputs, _ = base("llava")
    model = adapted("llava", "mimic", ffn=True).get_base_model()
    found = logits(model, inputs)
    for layer in examine(model).layers:
        vector = layer.mlp.shift_mimic.mimic_ffn["default"].data
        layer.mlp.shift_mimic.detach()
        layer.mlp.register_forward_hook(lambda module, given, output, vector=vector: output + vector)
    torch.testing.assert_close(logits(model, inputs), found, rtol=0, atol=2e-6)


def test_a_joint_scale_prefills_as_it_decodes():
    _, inputs, _ = base("llava")
    model = adapted("llava", "mimic", scale="joint").get_base_model()
    sequences, steps = generated(model, inputs)
    whole = torch.cat([inputs["input_ids"], sequences], 1)
    mask = torch.cat([inputs["attention_mask"], torch.ones_like(sequences)], 1)
    given = inputs | {"input_ids": whole, "attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp_min(0)}
    found = logits(model, given)[:, -sequences.shape[1] - 1 : -1]
    torch.testing.assert_close(found, steps, rtol=0, atol=5e-5)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "qwen3_vl", "idefics2"])
def test_the_unrotated_query_does_not_depend_on_positions(family):
    _, both, alone = base(family)
    careless = {name: value for name, value in both.items() if name != "position_ids"}
    length = int(alone["attention_mask"].sum())
    expected = {}
    for query in ("pre_rope", "post_rope"):
        model = adapted(family, "mimic", query=query).get_base_model()
        expected[query] = logits(model, alone)[0, -length:]
        difference = float((logits(model, careless)[1, -length:] - expected[query]).abs().max())
        exact = query == "pre_rope" or "position_ids" not in both  # Qwen-VL makes positions from the mask
        assert (difference < 5e-6) == exact
        _, stepwise = generated(model, both)
        _, at_once = generated(model, both, use_cache=False)
        assert float((stepwise - at_once).abs().max()) < 1e-5
    assert float((expected["pre_rope"] - expected["post_rope"]).abs().max()) > 1e-2


def test_gradients_are_those_of_the_reference():
    _, inputs, _ = base("llava")
    model = adapted("llava", "mimic").get_base_model()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    weight = torch.randn(model(**inputs).logits.shape, generator=torch.Generator().manual_seed(0))
    weight *= inputs["attention_mask"].unsqueeze(-1)  # what comes out at padding means nothing
    found = torch.autograd.grad((model(**inputs).logits * weight).sum(), trained)
    slow = fresh("llava")
    slow.set_attn_implementation({"text_config": "eager"})
    slow = get_peft_model(slow, config_of("mimic")).get_base_model()
    perturb(slow)
    assert attention_names(slow) == {"kshot_eager"}
    trained = [parameter for parameter in slow.parameters() if parameter.requires_grad]
    expected = torch.autograd.grad((slow(**inputs).logits * weight).sum(), trained)
    for gradient, reference in zip(found, expected, strict=True):
        assert float(reference.abs().max()) > 1e-3
        assert float((gradient - reference).abs().max()) < 1e-5 * max(1.0, float(reference.abs().max()))


# PEFT warns of what is done here on purpose: the active adapter is deleted, and another one put in.
@pytest.mark.filterwarnings("ignore:Adapter default was active which is now deleted:UserWarning")
@pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning")
def test_attention_is_chosen_for_the_text_alone_and_given_back():
    model = fresh("idefics2")
    with_adapter = get_peft_model(model, MimicConfig())
    assert attention_names(model) == {"kshot_sdpa"}
    assert model.config.vision_config._attn_implementation == "sdpa"
    with_adapter.add_adapter("second", MimicConfig(layers=[1]))
    with_adapter.delete_adapter("default")
    assert attention_names(model) == {"kshot_sdpa"}
    with_adapter.delete_adapter("second")
    assert attention_names(model) == {"sdpa"}
    model = fresh("llava")
    model.add_adapter(MimicConfig(), "one")
    model.add_adapter(MimicConfig(), "two")
    assert attention_names(model) == {"kshot_sdpa"}
    model.delete_adapter(["one", "two"])
    assert attention_names(model) == {"sdpa"}
    model.add_adapter(LiveConfig(), "three")
    model.add_adapter(MimicConfig(), "four")
    assert attention_names(model) == {"kshot_sdpa"}


def test_switching_attention_under_an_adapter_is_noticed():
    _, inputs, _ = base("llava")
    model = adapted("llava", "mimic").get_base_model()
    model.set_attn_implementation({"text_config": "sdpa"})
    with pytest.raises(ModelError, match="set to 'sdpa', which knows nothing of the adapter"):
        logits(model, inputs)


def test_models_outside_the_attention_interface_are_refused():
    model = fresh("llava")
    type(model.model.language_model)._can_set_attn_implementation, held = (
        classmethod(lambda kind: False),
        type(model.model.language_model)._can_set_attn_implementation,
    )
    try:
        with pytest.raises(ModelError, match="does not let its text attention be chosen"):
            get_peft_model(model, MimicConfig())
    finally:
        type(model.model.language_model)._can_set_attn_implementation = held
    assert attention_names(model) == {"sdpa"}
    with pytest.raises(ModelError, match="no language model of transformers"):
        get_peft_model(nn.Sequential(nn.Linear(2, 2)), MimicConfig())


def hybrid():
    """The text decoder of a Qwen3.5 with one layer of linear attention and one of self-attention, whose queries are gated."""
    from tests.models import tiny

    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4, "mrope_interleaved": True}
    linear = {
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
    }
    kinds = {"layer_types": ["linear_attention", "full_attention"], "rope_parameters": rope, "head_dim": 16}
    config = hf.Qwen3_5Config(
        text_config=tiny.TEXT | {"vocab_size": tiny.vocabulary()} | kinds | linear,
        vision_config={"depth": 1, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64},
    )
    torch.manual_seed(0)
    return hf.Qwen3_5ForConditionalGeneration(config).requires_grad_(False).eval()


@pytest.mark.parametrize("query", ["post_rope", "pre_rope"])
def test_hybrid_models_take_it_where_they_have_attention(query):
    inputs = {"input_ids": torch.arange(60, 69)[None]}
    model = hybrid()
    expected = logits(model, inputs)
    with_adapter = get_peft_model(model, MimicConfig(query=query))
    assert with_adapter.get_nb_trainable_parameters()[0] == 4 * (16 + 16 + 1)
    perturb(with_adapter)
    seen = []
    examine(model).attention[0].q_proj.register_forward_hook(lambda module, given, output: seen.append(output))
    layer = examine(model).attention[0].shift_mimic
    calls = []
    held, layer.shift_heads = layer.shift_heads, lambda name, heads: calls.append(heads) or held(name, heads)
    assert float((logits(model, inputs) - expected).abs().max()) > 1e-3
    plain = seen[0].view(1, 9, 4, 32)[..., :16].transpose(1, 2)  # the second half of each head is its gate
    assert torch.equal(calls[0].query, plain) == (query == "pre_rope")
    with with_adapter.disable_adapter():
        assert torch.equal(logits(model, inputs), expected)
    with pytest.raises(OptionError, match=r"layers \[0\] of Qwen3_5ForConditionalGeneration have no self-attention"):
        get_peft_model(hybrid(), MimicConfig(layers=[0, 1]))
