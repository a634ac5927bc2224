"""The import of the LVM's tokenizer, against its network written out in plain torch."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from kshot.cli import main
from kshot.convert.lvm_layout import read_layout
from kshot.convert.lvm_tokenizer import convert_lvm_tokenizer, key_map
from kshot.errors import ModelError, OptionError
from kshot.visual.tokenizer import VisualTokenizer
from kshot.visual.vq_files import build
from tests.convert.vectors import Evil
from tests.visual.upstream_vq import RELEASED, SMALL, UpstreamVQ, make_upstream, write_upstream

ATTENTIVE = SMALL | {
    "channel_mult": [1, 1, 2],
    "attn_resolutions": [8, 16],
    "no_attn_mid_block": False,
    "quantized_embed_dim": 4,
}
SHALLOW = ATTENTIVE | {"num_res_blocks": 1}


def released():
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in UpstreamVQ(RELEASED).state_dict().items()}


def test_released_network_has_its_277_names_and_shapes():
    shapes = released()
    assert len(shapes) == 277
    count = {
        part: sum(torch.Size(s).numel() for n, s in shapes.items() if n.startswith(part))
        for part in ("encoder", "decoder", "")
    }
    assert count == {"encoder": 58_693_568, "decoder": 87_018_499, "": 146_244_675}


@pytest.mark.parametrize("config", [RELEASED, {}], ids=["config", "weights alone"])
def test_names_are_a_bijection(config, tmp_path):
    shapes = released()
    settings = read_layout(shapes, config, tmp_path).config()
    with torch.device("meta"):
        vq = build(settings)
    names = key_map(vq)
    state = vq.state_dict()
    assert len(names) == 277
    assert set(names) == set(shapes)
    assert set(names.values()) == set(state)
    assert all(shapes[old] == tuple(state[new].shape) for old, new in names.items())
    assert settings["block_out_channels"] == [128, 256, 256, 512, 768]
    assert settings["mid_block_add_attention"] is False
    assert settings["lookup_from_codebook"] is True
    assert names["decoder.up.4.block.2.conv1.weight"] == "decoder.up_blocks.0.resnets.2.conv1.weight"
    assert names["encoder.down.1.block.0.nin_shortcut.bias"] == "encoder.down_blocks.1.resnets.0.conv_shortcut.bias"
    assert names["decoder.up.1.upsample.conv.weight"] == "decoder.up_blocks.3.upsamplers.0.conv.weight"
    assert names["encoder.norm_out.weight"] == "encoder.conv_norm_out.weight"


@pytest.mark.parametrize("with_config", [True, False], ids=["config", "weights alone"])
@pytest.mark.parametrize("config", [SMALL, ATTENTIVE, SHALLOW], ids=["plain", "attention", "one block"])
def test_network_is_upstreams(tmp_path, config, with_config):
    upstream = write_upstream(tmp_path / "in", config=config, with_config=with_config)
    from diffusers import VQModel

    vq = VQModel.from_pretrained(convert_lvm_tokenizer(tmp_path / "in", out=tmp_path / "out")).eval()
    tokenizer = VisualTokenizer(vq, size=32)
    pixels = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found, wanted = vq.encode(pixels).latents, upstream.latents(pixels)
        decoded = upstream.decode_code(upstream.get_code(pixels)).clamp(0, 1)
    if config is SMALL:
        assert torch.equal(found, wanted)
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    codes = tokenizer.encode(pixels)
    assert torch.equal(codes, upstream.get_code(pixels))
    assert len(codes.unique()) > 8
    assert (tokenizer.decode(codes) - decoded).abs().max() <= 1e-4


def test_file_alone_safetensors_and_half(tmp_path):
    model = make_upstream()
    save_file({name: tensor.half() for name, tensor in model.state_dict().items()}, tmp_path / "weights.safetensors")
    out = convert_lvm_tokenizer(tmp_path / "weights.safetensors", out=tmp_path / "out")
    written = load_file(out / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in written.values()} == {torch.float16}
    assert torch.equal(written["quant_conv.weight"], model.quant_conv.weight.half())
    record = json.loads((out / "kshot_conversion.json").read_text())
    assert record["notes"]
    assert record["dtypes"] == ["float16"]
    assert VisualTokenizer.from_pretrained(out).fingerprint == record["fingerprint"]


def test_command(tmp_path, capsys):
    write_upstream(tmp_path / "in")
    assert main(["convert", "lvm-tokenizer", str(tmp_path / "in"), "--out", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "32 x 32 pixels are 64 tokens of 64 codes" in shown
    assert "equal their source bit for bit" in shown
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "config.json",
        "diffusion_pytorch_model.safetensors",
        "kshot_conversion.json",
    ]
    assert main(["convert", "lvm-tokenizer", str(tmp_path / "out"), "--out", str(tmp_path / "again")]) == 2
    assert "VQModel of diffusers already" in capsys.readouterr().err
    with pytest.raises(OptionError, match="not empty"):
        convert_lvm_tokenizer(tmp_path / "in", out=tmp_path / "out")


def drop(name):
    return lambda state: {key: value for key, value in state.items() if key != name}


MASKGIT = {
    "encoder.conv_in.weight": torch.zeros(32, 3, 3, 3),
    "encoder.mid.0.conv1.weight": torch.zeros(32, 32, 3, 3),
    "quantize.embedding.weight": torch.zeros(64, 8),
}
DAMAGE = {
    "missing": (drop("encoder.down.1.block.0.conv2.bias"), r"lacks encoder\.down\.1\.block\.0\.conv2\.bias$"),
    "missing in the middle": (drop("encoder.mid.block_2.norm1.weight"), "lacks encoder.mid.block_2.norm1.weight"),
    "left over": (
        lambda s: s | {"decoder.up.0.block.9.extra": torch.zeros(1)},
        r"has decoder\.up\.0\.block\.9\.extra, which",
    ),
    "shape": (
        lambda s: s | {"encoder.mid.block_1.conv1.weight": torch.zeros(96, 96, 1, 1)},
        r"conv1\.weight of shape \[96, 96, 1, 1\] where the configuration says \[96, 96, 3, 3\]",
    ),
    "no codebook": (drop("quantize.embedding.weight"), "no VQGANModel"),
    "MaskGit": (lambda s: MASKGIT, r"MaskGitVQGAN \(3 tensors; with the released configuration 170\)"),
    "other": (lambda s: {"layers.0.weight": torch.zeros(2, 2)}, "no VQGANModel: .* layers.0.weight"),
    "empty": (lambda s: {}, "no VQGANModel"),
    "no tensor": (lambda s: s | {"epoch": 3}, "'epoch' is no tensor but a int"),
    "nested": (lambda s: {"state_dict": s}, "'state_dict' is no tensor but a dict"),
}


@pytest.mark.parametrize("with_config", [True, False], ids=["config", "weights alone"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_weights(tmp_path, damage, with_config):
    change, message = DAMAGE[damage]
    write_upstream(tmp_path, with_config=with_config)
    torch.save(change(make_upstream().state_dict()), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match=message):
        convert_lvm_tokenizer(tmp_path, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_class_name": "MaskGitVQGAN"}, "configuration of MaskGitVQGAN, not of VQGANModel: another network"),
        ({"_class_name": "VQModel"}, "VQModel of diffusers already"),
        ({"channel_mult": [1, 2, 2]}, r"fit its VQGANModel of widths \[32, 64, 64\]"),
        (
            {"num_embeddings": 128},
            r"quantize.embedding.weight of shape \[64, 8\] where the configuration says \[128, 8\]",
        ),
        ({"no_attn_mid_block": False}, "lacks decoder.mid.attn_1"),
        ({"attn_resolutions": [8]}, "lacks decoder.up.2.attn"),
        ({"resample_with_conv": False}, "resample_with_conv is False"),
        ({"decoder_channel_mult": [1, 2, 3]}, "decoder_channel_mult"),
        ({"channel_mult": "1,2"}, "channel_mult is '1,2'"),
        ({"num_res_blocks": 0}, "num_res_blocks is 0"),
        ({"hidden_channels": 30}, "makes no VQModel"),
    ],
)
def test_configuration_does_not_fit(tmp_path, changes, message):
    write_upstream(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(SMALL | changes))
    with pytest.raises(ModelError, match=message):
        convert_lvm_tokenizer(tmp_path, out=tmp_path / "out")


def test_nothing_is_run_and_files_are_whole(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_upstream(tmp_path)
    torch.save({"encoder.conv_in.weight": Evil()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="is not read"):
        convert_lvm_tokenizer(tmp_path, out=tmp_path / "out")
    assert not (tmp_path / "kshot-was-here").exists()
    (tmp_path / "pytorch_model.bin").write_bytes(b"PK\x03\x04 not a checkpoint")
    with pytest.raises(ModelError, match="damaged"):
        convert_lvm_tokenizer(tmp_path, out=tmp_path / "out")
    (tmp_path / "pytorch_model.bin").unlink()
    with pytest.raises(ModelError, match=r"neither model\.safetensors nor pytorch_model\.bin"):
        convert_lvm_tokenizer(tmp_path, out=tmp_path / "out")
    with pytest.raises(ModelError, match="no file or folder"):
        convert_lvm_tokenizer(tmp_path / "nowhere", out=tmp_path / "out")
