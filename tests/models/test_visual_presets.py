"""Presets of visual models against upstream's table, and the two tables of rotary angles."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from kshot.errors import ModelError, OptionError, UnknownName
from kshot.models.rope_table import RoundedRotary, rope_table_of, use_rope_table
from kshot.models.visual_presets import PRESETS, new_visual_model, visual_config

TABLE = {  # hidden, feed-forward, layers, heads, millions of parameters
    "debug": (128, 256, 2, 4, 2.5),
    "100m": (640, 1664, 22, 10, 117.0),
    "300m": (1024, 2688, 22, 8, 291.0),
    "600m": (1536, 4096, 22, 16, 648.4),
    "1b": (2048, 5504, 22, 16, 1147),
    "3b": (3200, 8640, 26, 32, 3275),
    "7b": (4096, 11008, 32, 32, 6544),
    "13b": (5120, 13824, 40, 40, 12773),
    "20b": (6144, 16128, 46, 48, 20723),
    "30b": (6656, 17920, 60, 52, 32213),
}
IDS = {"bos_token_id": 8192, "eos_token_id": 8193, "pad_token_id": 8194}


@pytest.mark.parametrize("name", sorted(TABLE))
def test_a_preset_is_as_tabled(name):
    hidden, inner, layers, heads, millions = TABLE[name]
    config = visual_config(name)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    count = sum(p.numel() for p in model.parameters())
    digits = len(str(millions).partition(".")[2])
    assert round(count / 1e6, digits) == millions
    assert (config.hidden_size, config.intermediate_size, config.num_hidden_layers) == (hidden, inner, layers)
    assert config.num_attention_heads == config.num_key_value_heads == heads
    assert (config.vocab_size, config.max_position_embeddings, config.rms_norm_eps) == (8292, 4096, 1e-6)
    assert config.rope_parameters["rope_theta"] == 1e4
    assert not any((config.tie_word_embeddings, config.attention_bias, config.mlp_bias))
    assert {key: getattr(config, key) for key in IDS} == IDS
    assert visual_config(f"vqlm_{name}").to_dict() == config.to_dict()


def test_all_presets_are_tested():
    assert set(PRESETS) == {*TABLE, "tiny"}


def test_wrong_presets_are_named():
    with pytest.raises(UnknownName, match="'7b'"):
        visual_config("7bb")
    with pytest.raises(OptionError, match="no room"):
        visual_config("debug", 64, spare=2)
    with pytest.raises(OptionError, match="float16"):
        visual_config("debug", rope_table_dtype="float16")


def test_weights_depend_on_the_seed_only():
    config = visual_config("debug", 64)
    first = new_visual_model(config, seed=1)
    torch.manual_seed(5)
    second, other = new_visual_model(config, seed=1), new_visual_model(config, seed=2)
    a, b, c = (m.lm_head.weight for m in (first, second, other))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert float(a.detach().std()) == pytest.approx(0.02, rel=0.05)
    assert first.config.vocab_size == 164


def test_no_code_ends_a_picture_and_nothing_else_is_generated():
    config = visual_config("debug", 8, spare=3)
    model = new_visual_model(config)
    with torch.no_grad():
        model.lm_head.weight[2] += 1.0  # what upstream's published checkpoint calls the end
        model.lm_head.weight[8:] += 5.0
    made = model.generate(torch.randint(0, 8, (2, 5)), max_new_tokens=40, do_sample=True)
    assert made.shape == (2, 45)
    assert int(made.max()) < 8


def upstream_table(head, positions, kind):
    """The maths of upstream's precompute_freqs_cis, in NumPy with ml_dtypes' bfloat16."""
    exponents = np.arange(0, head, 2).astype(kind) / head
    angles = np.outer(np.arange(positions), 1.0 / (10000.0**exponents)).astype(kind)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


@pytest.mark.parametrize("head", [16, 64, 96, 100, 128])
def test_the_rounded_table_is_upstreams_to_the_bit(head):
    config = visual_config("debug", hidden_size=head, num_attention_heads=1, head_dim=head)
    cosines, sines = RoundedRotary(config)(torch.zeros(1, dtype=torch.float32), torch.arange(8192)[None])
    expected = upstream_table(head, 8192, ml_dtypes.bfloat16)
    for found, wanted in zip((cosines, sines), expected, strict=True):
        assert np.array_equal(found[0, :, : head // 2].numpy(), wanted)
        assert torch.equal(found[..., : head // 2], found[..., head // 2 :])


def test_the_rounded_table_is_as_wrong_as_upstreams():
    config = visual_config("debug", hidden_size=128, num_attention_heads=1, head_dim=128)
    rounded = RoundedRotary(config)
    true = 10000.0 ** -(np.arange(0, 128, 2) / 128)
    angle = (torch.tensor([4095.0])[:, None] * rounded.frequencies).bfloat16().double().numpy()[0]
    error = np.abs(angle - 4095 * true)
    assert error.max() == pytest.approx(5.88, abs=0.01)
    assert (error > 0.5).sum() == 17
    cosines, _ = rounded(torch.zeros(1), torch.arange(4096)[None])
    assert int((cosines[0, :, 0] == cosines[0, 3000, 0]).sum()) >= 17


def test_the_table_is_kept_and_changes_what_is_computed(tmp_path):
    ids = torch.randint(0, 64, (1, 600))
    model = new_visual_model(visual_config("debug", 64, rope_table_dtype="bfloat16")).eval()
    assert rope_table_of(model) == "bfloat16"
    with torch.no_grad():
        rounded = model(ids).logits
        use_rope_table(model, "float32")
        exact = model(ids).logits
        assert rope_table_of(model) == model.config.rope_table_dtype == "float32"
        assert (rounded - exact).abs().max() > 1e-4
        use_rope_table(model, "bfloat16")
        model.save_pretrained(tmp_path)
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
        assert torch.equal(loaded(ids).logits, exact)  # plain transformers knows nothing of it
        use_rope_table(loaded)
        assert torch.equal(loaded(ids).logits, rounded)
    assert loaded.generation_config.eos_token_id is None


def test_other_models_have_no_table():
    with pytest.raises(ModelError, match="rotary"):
        use_rope_table(torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2)}), "bfloat16")
    scaled = visual_config("debug", rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0})
    with pytest.raises(ModelError, match="scaled"):
        use_rope_table(LlamaForCausalLM(scaled), "bfloat16")
