"""What all methods of ours can do as methods of PEFT, each on one family that is like many."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import PeftModel, get_peft_model

from kshot.errors import ModelError, OptionError, UnknownName
from kshot.methods import methods
from kshot.methods.head_layers import HeadShiftLayer
from kshot.models.anatomy import examine
from tests.methods.common import OURS, adapted, attention_names, base, config_of, fresh, generated, logits, perturb


@pytest.fixture(params=OURS)
def method(request: pytest.FixtureRequest) -> str:
    return request.param


def shifts(model):
    return {name: parameter for name, parameter in model.named_parameters() if ".shift_" in name}


@pytest.mark.filterwarnings(
    "ignore:Adapter default was active which is now deleted:UserWarning"
)  # PEFT says what is tested
def test_two_adapters(method):
    model, inputs, _ = base("llava")
    plain = logits(model, inputs)
    two = adapted("llava", method, seed=1)
    inner = two.get_base_model()
    first = logits(inner, inputs)
    two.add_adapter("second", config_of(method, layers=[1]))
    assert torch.equal(logits(inner, inputs), first)
    perturb(inner, seed=2)  # both
    first = logits(inner, inputs)
    two.set_adapter("second")
    second = logits(inner, inputs)
    assert not torch.equal(first, second)
    assert {name.rsplit(".", 1)[1] for name, weight in shifts(two).items() if weight.requires_grad} == {"second"}
    two.set_adapter("default")
    assert torch.equal(logits(inner, inputs), first)
    two.delete_adapter("default")
    two.set_adapter("second")
    assert torch.equal(logits(inner, inputs), second)
    two.delete_adapter("second")
    assert torch.equal(logits(inner, inputs), plain)
    assert not shifts(two)
    assert attention_names(inner) == {"sdpa"}


def test_transformers_own_interface(method):
    model, inputs, _ = base("llava")
    plain = logits(model, inputs)
    own = fresh("llava")
    own.add_adapter(config_of(method), "mine")
    perturb(own)
    found = logits(own, inputs)
    assert not torch.equal(found, plain)
    own.disable_adapters()
    assert torch.equal(logits(own, inputs), plain)
    own.enable_adapters()
    assert torch.equal(logits(own, inputs), found)
    own.delete_adapter("mine")
    assert torch.equal(logits(own, inputs), plain)
    assert attention_names(own) == {"sdpa"}


def test_only_the_chosen_layers(method):
    with_adapter = get_peft_model(fresh("llava"), config_of(method, layers=[-1]))
    assert shifts(with_adapter)
    assert all(".layers.1." in name for name in shifts(with_adapter))
    with pytest.raises(OptionError, match="has layers 0 to 1"):
        get_peft_model(fresh("llava"), config_of(method, layers=[5]))


def test_parameters_can_be_trained_sharded_and_saved(method):
    parameters = shifts(get_peft_model(fresh("llava"), config_of(method)))
    prefix = methods.get(method).tuner.prefix
    assert all(weight.ndim > 0 for weight in parameters.values())
    assert all(weight.is_contiguous() and torch.isfinite(weight).all() for weight in parameters.values())
    assert all(prefix in name and name.count(prefix) == 1 for name in parameters)
    if methods.get(method).trainable:
        assert all(weight.requires_grad for weight in parameters.values())


def test_copies_are_independent(method):
    _, inputs, _ = base("llava")
    model = adapted("llava", method)
    expected = logits(model, inputs)
    other = copy.deepcopy(model)
    assert torch.equal(logits(other, inputs), expected)
    perturb(other, seed=9)
    assert not torch.equal(logits(other, inputs), expected)
    assert torch.equal(logits(model, inputs), expected)
    removed = other.unload()
    assert torch.equal(logits(model, inputs), expected)
    assert torch.equal(logits(removed, inputs), logits(base("llava")[0], inputs))
    assert attention_names(model) == attention_names(adapted("llava", method).get_base_model())


def layer_class(method):
    return methods.get(method).tuner.tuner_layer_cls


@pytest.mark.parametrize(
    "quick",
    [one for one in OURS if getattr(layer_class(one), "one_token", None) not in (None, HeadShiftLayer.one_token)],
)
def test_decoding_takes_the_short_way_and_says_the_same(quick, monkeypatch):
    model, kind = adapted("llava", quick), layer_class(quick)
    long: list[int] = []
    shift_heads = kind.shift_heads

    def counted(self, adapter, heads):
        long.append(heads.query.shape[2])
        return shift_heads(self, adapter, heads)

    monkeypatch.setattr(kind, "shift_heads", counted)
    ids = torch.arange(5, 14)[None]
    tokens = model.generate(input_ids=ids, max_new_tokens=4, do_sample=False)
    assert long
    assert 1 not in long
    monkeypatch.setattr(kind, "one_token", HeadShiftLayer.one_token)
    assert torch.equal(model.generate(input_ids=ids, max_new_tokens=4, do_sample=False), tokens)
    assert 1 in long


def test_loading_without_memory_for_initial_values(method, tmp_path):
    _, inputs, _ = base("llava")
    model = adapted("llava", method)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(fresh("llava"), tmp_path, low_cpu_mem_usage=True)
    assert torch.equal(logits(loaded, inputs), logits(model, inputs))


def test_another_model_is_refused(method, tmp_path):
    from tests.models import tiny

    adapted("llava", method).save_pretrained(tmp_path)
    for other, said in (
        (tiny.build("llava_llama", num_hidden_layers=3)[0], r"2 layers of width 64.*3 layers of width 64"),
        (fresh("idefics2"), r"LlavaForConditionalGeneration .* Idefics2ForConditionalGeneration"),
    ):
        with pytest.raises(ModelError, match=f"the adapter belongs to .*{said}"):
            PeftModel.from_pretrained(other, tmp_path)


def test_beams(method):
    _, inputs, _ = base("llava")
    model = adapted("llava", method).get_base_model()
    found, _ = generated(model, inputs, num_beams=3, length_penalty=0.0)
    expected, _ = generated(model, inputs, num_beams=3, length_penalty=0.0, use_cache=False)
    assert torch.equal(found, expected)


def test_a_static_cache(method):
    _, inputs, _ = base("llava")
    model = adapted("llava", method).get_base_model()
    _, expected = generated(model, inputs)
    _, found = generated(model, inputs, cache_implementation="static", disable_compile=True)
    assert float((found - expected).abs().max()) < 1e-5


def test_half_precision(method):
    _, inputs, _ = base("llava")
    model = adapted("llava", method).get_base_model()
    expected = logits(model, inputs)
    half = {name: value.bfloat16() if value.is_floating_point() else value for name, value in inputs.items()}
    shown = inputs["attention_mask"].bool()
    plain = logits(fresh("llava").bfloat16(), half)
    noise = float((plain.float() - logits(base("llava")[0], inputs))[shown].abs().max())
    model.bfloat16()
    found = logits(model, half)
    assert found.dtype == torch.bfloat16
    assert float((found.float() - expected)[shown].abs().max()) < 4 * noise
    # As PEFT does it: the adapter in single precision in a model in half.
    mixed = get_peft_model(fresh("llava").bfloat16(), config_of(method))
    assert {weight.dtype for weight in shifts(mixed).values()} == {torch.float32}
    assert logits(mixed, half).dtype == torch.bfloat16
    generated(mixed.get_base_model(), half)


def test_gradient_checkpointing_changes_no_gradient(method):
    if not methods.get(method).trainable:
        pytest.skip("not trained")
    _, inputs, _ = base("llava")

    def gradients(checkpointing):
        model = adapted("llava", method)
        model.train()
        if checkpointing:
            model.get_base_model().enable_input_require_grads()
            model.get_base_model().activation_checkpointing_enable()
        weight = torch.linspace(-1, 1, 600)[: base("llava")[0].config.text_config.vocab_size]
        loss = (model(**inputs, use_cache=False).logits[..., : len(weight)] * weight).sum()
        return torch.autograd.grad(loss, [p for p in shifts(model).values() if p.requires_grad])

    for found, expected in zip(gradients(True), gradients(False), strict=True):
        assert float(expected.abs().max()) > 0
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_the_decoder_compiles_as_one_graph(method):
    torch._dynamo.reset()  # the same code is compiled for one method after another; that counts as recompiling
    model = adapted("llava", method).get_base_model()
    decoder = examine(model).decoder
    random = torch.Generator().manual_seed(0)
    given = {
        "inputs_embeds": torch.randn(2, 9, 64, generator=random),
        "attention_mask": torch.ones(2, 9, dtype=torch.long),
        "use_cache": False,
    }
    given["attention_mask"][1, :3] = 0
    with torch.no_grad():
        expected = decoder(**given).last_hidden_state
        # The backend that only records: what is tested is that one graph holds everything.
        found = torch.compile(decoder, fullgraph=True, backend="aot_eager")(**given).last_hidden_state
    assert float((found - expected)[given["attention_mask"].bool()].abs().max()) < 1e-5


@torch._dynamo.config.patch(skip_nnmodule_hook_guards=True)  # as PyTorch has it
def test_what_was_compiled_before_heeds_an_adapter(method):
    torch._dynamo.reset()
    bare = fresh("llava")
    decoder = examine(bare).decoder
    given = {"inputs_embeds": torch.randn(2, 9, 64, generator=torch.Generator().manual_seed(0)), "use_cache": False}
    compiled = torch.compile(decoder, backend="eager")
    with torch.no_grad():
        plain = compiled(**given).last_hidden_state
        model = get_peft_model(bare, config_of(method)).eval()
        perturb(model)
        expected = decoder(**given).last_hidden_state
        assert float((compiled(**given).last_hidden_state - expected).abs().max()) < 1e-5
        assert method == "stave" or not torch.allclose(expected, plain)  # it acts on the embeddings, before the decoder
        model.unload()
        assert float((compiled(**given).last_hidden_state - plain).abs().max()) < 1e-5


def test_merging_is_refused_or_exact(method):
    _, inputs, _ = base("llava_llama")
    model = adapted("llava_llama", method)
    expected = logits(model, inputs)
    if methods.get(method).mergeable:
        assert float((logits(model.merge_and_unload(), inputs) - expected).abs().max()) < 5e-6
        return
    with pytest.raises(ModelError, match=f"{method} cannot be merged"):
        model.merge_and_unload()
    with pytest.raises(ModelError, match="merged in place"):
        model.merge_adapter()
    assert torch.equal(logits(model, inputs), expected)


def test_sums_are_refused_or_made(method):
    model = adapted("llava", method)
    if not methods.get(method).combinable:
        with pytest.raises(ModelError, match="cannot be added up"):
            model.add_weighted_adapter(["default"], [1.0], "sum")
        return
    _, inputs, _ = base("llava")
    expected = logits(model, inputs)
    model.add_weighted_adapter(["default"], [1.0], "same")
    assert torch.equal(logits(model, inputs), expected)
    model.set_adapter("same")
    assert float((logits(model, inputs) - expected).abs().max()) < 5e-6
    with pytest.raises(UnknownName, match="unknown adapter 'lost'"):
        model.add_weighted_adapter(["lost"], [1.0], "sum")
    with pytest.raises(OptionError, match="2 weights for 1 adapters"):
        model.add_weighted_adapter(["default"], [1.0, 2.0], "sum")


# PEFT warns of what is done here on purpose: a second adapter, of another method.
@pytest.mark.filterwarnings("ignore:You are trying to modify a model with PEFT for a second time:UserWarning")
@pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning")
def test_all_methods_in_one_model_and_out_again(method):
    """An adapter beside one of LIVE: both act, and each can be removed without the other."""
    if method == "live":
        pytest.skip("the other one")
    _, inputs, _ = base("llava")
    model = adapted("llava", method).get_base_model()
    alone = logits(model, inputs)
    outer = get_peft_model(model, config_of("live"))
    perturb(model, seed=4)
    both = logits(model, inputs)
    assert not torch.equal(both, alone)
    inner = outer.base_model
    inner._remove()
    assert not any("shift_live" in name for name, _ in model.named_modules())
    assert any(f"shift_{method}" in name for name, _ in model.named_modules())
