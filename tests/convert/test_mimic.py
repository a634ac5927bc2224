"""The import of MimIC's epoch folders, against what upstream's attention heads compute."""

from __future__ import annotations

import json

import pytest
import torch

from kshot.cli import main
from kshot.convert.mimic import convert_mimic
from kshot.errors import ModelError, OptionError
from kshot.methods.places import mlp_of
from kshot.models.anatomy import examine
from tests.convert.vectors import Evil, live_hooks, mimic_attention
from tests.methods.common import base, fresh, logits

LAYERS, HEADS, WIDTH = 2, 4, 16


def learnt(layers=LAYERS, heads=HEADS, width=WIDTH, scale=True):
    random = torch.Generator().manual_seed(1)
    held = {"attn_shift": torch.randn(layers, heads, width, generator=random)}
    for number in range(layers if scale else 0):
        held[f"log_Z1_lin.{number}.weight"] = torch.randn(heads, width, generator=random)
        held[f"log_Z1_lin.{number}.bias"] = torch.randn(heads, generator=random) + 3
    return held


def write(place, held, name="epoch-4"):
    (place / name).mkdir()
    torch.save(held, place / name / "encoder.pth")
    return place / name


def upstream(family, held, masked=False):
    model = fresh(family)
    inputs = base(family)[2]
    with mimic_attention(model, held, masked):
        return logits(model, inputs)


def of_adapter(family, folder):
    from peft import PeftModel

    return logits(PeftModel.from_pretrained(fresh(family), folder).get_base_model(), base(family)[2])


@pytest.mark.parametrize("family", ["idefics", "idefics2", "llava"])
def test_logits_are_upstreams(tmp_path, configured, family):
    held = learnt()
    out = convert_mimic(write(tmp_path, held), model=configured(family), out=tmp_path / "out")
    expected = upstream(family, held)
    assert (expected - logits(base(family)[0], base(family)[2])).abs().max() > 0.1
    assert (of_adapter(family, out) - expected).abs().max() <= 1e-5


def test_the_masked_normaliser_on_request(tmp_path, configured):
    held = learnt()
    source = write(tmp_path, held)
    out = convert_mimic(source / "encoder.pth", model=configured("llava"), out=tmp_path / "out", paper_code=False)
    expected = upstream("llava", held, masked=True)
    assert (expected - upstream("llava", held)).abs().max() > 0.01
    assert (of_adapter("llava", out) - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("masked", [False, True], ids=["paper", "masked"])
def test_one_scale_for_all_heads(tmp_path, configured, masked):
    random = torch.Generator().manual_seed(2)
    held = {"attn_shift": torch.randn(LAYERS, HEADS * WIDTH, generator=random)}
    for number in range(LAYERS):
        held[f"log_Z1_lin.{number}.weight"] = torch.randn(1, HEADS * WIDTH, generator=random) / 4
        held[f"log_Z1_lin.{number}.bias"] = torch.randn(1, generator=random) + 3
    source = write(tmp_path, held)
    out = convert_mimic(source, model=configured("llava"), out=tmp_path / "out", paper_code=not masked)
    expected = upstream("llava", held, masked)
    assert (expected - logits(base("llava")[0], base("llava")[2])).abs().max() > 0.1
    assert (of_adapter("llava", out) - expected).abs().max() <= 1e-5


def test_shifts_of_mlps_keep_the_length_of_their_outputs(tmp_path, configured):
    held = learnt() | {"ffn_shift": torch.randn(LAYERS, 64, generator=torch.Generator().manual_seed(3))}
    out = convert_mimic(write(tmp_path, held), model=configured("llava"), out=tmp_path / "out")
    model = fresh("llava")
    live_hooks(
        model, [mlp_of(examine(model), number) for number in range(LAYERS)], held["ffn_shift"], torch.ones(LAYERS)
    )
    with mimic_attention(model, held):
        expected = logits(model, base("llava")[2])
    assert (expected - upstream("llava", held)).abs().max() > 0.01
    assert (of_adapter("llava", out) - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("flat", [False, True], ids=["heads", "flat"])
def test_shifts_without_a_scale(tmp_path, configured, flat):
    held = learnt(scale=False)
    if flat:
        held = {"attn_shift": held["attn_shift"].reshape(LAYERS, HEADS * WIDTH)}
    out = convert_mimic(write(tmp_path, held), model=configured("llava"), out=tmp_path / "out")
    assert (of_adapter("llava", out) - upstream("llava", held)).abs().max() <= 1e-5
    config = json.loads((out / "adapter_config.json").read_text())
    assert (config["scale"], config["paper_code"]) == ("fixed", False)


def test_the_command(tmp_path, capsys):
    from kshot import load_model

    anatomy = load_model("tiny").anatomy
    held = learnt(len(anatomy.layers), anatomy.heads, anatomy.head_dim)
    source = write(tmp_path, held)
    words = ["convert", "mimic", str(source), "--model", "tiny", "--out", str(tmp_path / "out")]
    assert main([*words, "--paper-code", "false"]) == 0
    assert "epoch-4/encoder.pth for tiny" in " ".join(capsys.readouterr().out.split())
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["paper_code"], config["peft_type"], config["query"]) == (False, "MIMIC", "post_rope")
    model = load_model("tiny", adapter=tmp_path / "out")
    shifts = [value for name, value in model.model.named_parameters() if "mimic_shift" in name]
    assert torch.equal(torch.stack(shifts), held["attn_shift"])


def test_lora_beside_the_shifts_is_not_left_out_silently(tmp_path, configured):
    source = write(tmp_path, learnt())
    (source / "adapter_config.json").write_text("{}")
    with pytest.raises(OptionError, match="also holds a LoRA adapter"):
        convert_mimic(source, model=configured("llava"), out=tmp_path / "out")
    convert_mimic(source, model=configured("llava"), out=tmp_path / "out", without_lora=True)
    assert "is left out" in (tmp_path / "out" / "kshot_conversion.json").read_text()


def damaged(change):
    held = learnt()
    change(held)
    return held


WRONG = {
    "layers": (
        learnt(layers=3),
        r"shifts for 3 layers with 4 heads of 16, but \w+ has 2 layers of width 64 with 4 heads of 16",
    ),
    "heads": (learnt(heads=8), r"2 layers with 8 heads of 16, but"),
    "width": (learnt(width=8), r"2 layers with 4 heads of 8, but"),
    "flat width": ({"attn_shift": torch.ones(2, 32)}, r"the shape \[2, 32\], but"),
    "a layer without a scale": (
        damaged(lambda held: [held.pop(f"log_Z1_lin.1.{part}") for part in ("weight", "bias")]),
        r"shifts for 2 layers, but scales for layers \[0\]",
    ),
    "no bias": (damaged(lambda held: held.pop("log_Z1_lin.1.bias")), r"has no 'log_Z1_lin\.1\.bias'"),
    "other scales": (
        damaged(lambda held: held.update({"log_Z1_lin.1.bias": torch.ones(3)})),
        r"layer 1 has shifts \[4, 16\], weights \[4, 16\] and biases \[3\]",
    ),
    "one scale for all heads": (
        learnt() | {"attn_shift": torch.ones(2, 64)},
        r"layer 0 has shifts \[64\], weights \[4, 16\] and biases \[4\]",
    ),
    "shifts of other MLPs": (
        learnt() | {"ffn_shift": torch.ones(2, 32)},
        r"shifts of MLPs of the shape \[2, 32\], but",
    ),
    "shifts of MLPs alone": ({"ffn_shift": torch.ones(2, 64)}, "kshot convert live"),
    "LIVE": ({"ffn_shift": torch.ones(2, 64), "ffn_shift_scale": torch.ones(2)}, "kshot convert live"),
    "LoRA": ({}, "is empty, as upstream writes it for LoRA"),
    "something else": (learnt() | {"attn_proj": torch.ones(1)}, "holds attn_proj, which no published version"),
    "numbers": (
        learnt() | {"attn_shift": torch.ones(2, 4, 16, dtype=torch.long)},
        "no tensor of floating-point numbers",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_refused_in_words(tmp_path, configured, case):
    held, message = WRONG[case]
    with pytest.raises(ModelError, match=message):
        convert_mimic(write(tmp_path, held), model=configured("llava"), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_epoch_is_never_guessed_and_code_never_run(tmp_path, configured):
    for epoch in (3, 4):
        write(tmp_path, learnt(), f"epoch-{epoch}")
    with pytest.raises(ModelError, match=r"give one of them: epoch-3/encoder\.pth, epoch-4/encoder\.pth"):
        convert_mimic(tmp_path, model=configured("llava"), out=tmp_path / "out")
    torch.save({"attn_shift": Evil()}, tmp_path / "epoch-3" / "encoder.pth")
    with pytest.raises(ModelError, match="runs code"):
        convert_mimic(tmp_path / "epoch-3", model=configured("llava"), out=tmp_path / "out")
