"""The visual tokenizer: tokens and pictures as upstream has them, precision, files, and everything that must be refused."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from kshot.errors import CannotWrite, DataError, MissingExtra, ModelError, OptionError
from kshot.visual import vq_files
from kshot.visual.precision import computing_in
from kshot.visual.tokenizer import VisualTokenizer
from kshot.visual.vq_files import WEIGHTS, build
from tests.visual.vq import CONFIG, make_vq, pictures


@pytest.fixture(scope="module")
def tokenizer():
    return VisualTokenizer(make_vq())


def test_a_device_that_is_not_there_is_named():
    for device in ("nowhere", "xpu:77"):
        with pytest.raises(OptionError, match=f"device '{device}' cannot be used"):
            VisualTokenizer(make_vq(), device=device)


def test_pixels_are_upstreams(tokenizer):
    image = pictures(1)[0]
    wanted = np.array(image.convert("RGB").resize((32, 32)), dtype=np.float32) / 255.0
    found = tokenizer.pixels([image])
    assert found.dtype == torch.float32
    assert np.array_equal(found[0].permute(1, 2, 0).numpy(), wanted)


def test_codes_and_pictures_are_diffusers(tokenizer):
    """What diffusers gives with its own calls: latents, quantize, and decode without quantizing again."""
    pixels = tokenizer.pixels(pictures(5))
    with torch.no_grad():
        codes = tokenizer.vq.quantize(tokenizer.vq.encode(pixels).latents)[2][2].reshape(5, 64)
        decoded = tokenizer.vq.decode(codes, force_not_quantize=True, shape=(5, 8, 8, 8)).sample.clamp(0, 1)
    found = tokenizer.encode(pixels)
    assert (found.dtype, tuple(found.shape)) == (torch.int64, (5, 64))
    assert torch.equal(found, codes)
    assert len(found.unique()) > 8
    assert torch.equal(tokenizer.decode(found), decoded)


def test_batches_do_not_matter(tokenizer):
    images = pictures(5)
    whole = tokenizer.encode(images, batch_size=5)
    assert torch.equal(whole, tokenizer.encode(images, batch_size=2))
    assert torch.equal(whole, tokenizer.encode(tokenizer.pixels(images), batch_size=1))
    assert (tokenizer.decode(whole, batch_size=5) - tokenizer.decode(whole, batch_size=2)).abs().max() <= 1e-5
    assert tuple(tokenizer.encode([]).shape) == (0, 64)
    assert tuple(tokenizer.decode(torch.empty(0, 64, dtype=torch.int64)).shape) == (0, 3, 32, 32)


def test_order_is_raster(tokenizer):
    """The token of row r and column c is number 8 r + c; nearest codes by float64, one place at a time."""
    pixels = tokenizer.pixels(pictures(1))
    with torch.no_grad():
        latents = tokenizer.vq.encode(pixels).latents[0].double()
    codebook = tokenizer.vq.quantize.embedding.weight.double()
    ids = tokenizer.encode(pixels)
    for row in range(8):
        for column in range(8):
            nearest = (codebook - latents[:, row, column]).square().sum(1).argmin()
            assert ids[0, 8 * row + column] == nearest
    assert torch.equal(tokenizer.decode(ids.reshape(1, 8, 8)), tokenizer.decode(ids))


def test_images_are_rounded_or_cut_off(tokenizer):
    ids = tokenizer.encode(pictures(2))
    values = tokenizer.decode(ids).permute(0, 2, 3, 1).numpy() * 255
    rounded, cut = tokenizer.to_images(ids), tokenizer.to_images(ids, truncate=True)
    assert np.array_equal(np.stack([np.asarray(image) for image in rounded]), values.round().astype(np.uint8))
    assert np.array_equal(np.stack([np.asarray(image) for image in cut]), values.astype(np.uint8))
    assert rounded[0].size == (32, 32)
    assert not np.array_equal(np.asarray(rounded[0]), np.asarray(cut[0]))


def test_uint8_pixels_and_rules(tokenizer):
    levels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(tokenizer.encode(levels), tokenizer.encode(levels.float() / 255.0))
    wide = [Image.effect_noise((90, 30), 90).convert("RGB")]
    found = [VisualTokenizer(tokenizer.vq, resize=rule).pixels(wide) for rule in ("squash", "crop", "pad")]
    assert not torch.equal(found[0], found[1])
    assert not found[2][:, :, :10].any()


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.full((1, 64), 64), "token 64 at place 0 of picture 0: the codebook has 0 to 63"),
        (torch.tensor([[0] * 63 + [-1]]), "token -1 at place 63 of picture 0"),
        (torch.zeros(1, 48, dtype=torch.long), r"shape \[1, 48\]: a picture is 64 tokens, a square of 8 x 8"),
        (torch.zeros(2, 4, 16, dtype=torch.long), "grid of 4 x 16: a picture is 64 tokens"),
        (torch.zeros(64, dtype=torch.long), r"shape \[64\]"),
        (torch.zeros(1, 64), "tokens of type torch.float32"),
    ],
)
def test_wrong_tokens(tokenizer, ids, message):
    with pytest.raises(DataError, match=message):
        tokenizer.decode(ids)


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (torch.zeros(1, 3, 32, 48), r"\[1, 3, 32, 48\], not \[pictures, 3, 32, 32\]"),
        (torch.zeros(3, 32, 32), "shape"),
        (torch.full((1, 3, 32, 32), -0.5), "between -0.5 and -0.5, not in"),
        (torch.full((1, 3, 32, 32), float("nan")), "not in"),
        (torch.full((1, 3, 32, 32), 200.0), "between 200 and 200"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.int64), "torch.int64"),
    ],
)
def test_wrong_pixels(tokenizer, pixels, message):
    with pytest.raises(DataError, match=message):
        tokenizer.encode(pixels)


def test_wrong_options(tokenizer):
    for options, message in [
        ({"size": 30}, "size is 30: this network halves pictures to 1/4"),
        ({"size": 0}, "size is 0"),
        ({"precision": "float16"}, "unknown precision 'float16'"),
        ({"resize": "stretch"}, "unknown resize rule"),
    ]:
        with pytest.raises(OptionError, match=message):
            VisualTokenizer(tokenizer.vq, **options)
    with pytest.raises(OptionError, match="batch_size is 0"):
        tokenizer.encode(pictures(1), batch_size=0)
    with torch.device("meta"), pytest.raises(ModelError, match="3 channels; this VQModel has 1 and 3"):
        VisualTokenizer(build(CONFIG | {"in_channels": 1}))


def test_another_size_and_another_grid(tokenizer):
    large = VisualTokenizer(tokenizer.vq, size=64)
    assert (large.grid, large.tokens) == (16, 256)
    assert tuple(large.decode(large.encode(pictures(1))).shape) == (1, 3, 64, 64)
    with torch.device("meta"):
        released = {"block_out_channels": [128, 256, 256, 512, 768], "num_vq_embeddings": 8192, "latent_channels": 64}
        kinds = {"down_block_types": ["DownEncoderBlock2D"] * 5, "up_block_types": ["UpDecoderBlock2D"] * 5}
        lvm = VisualTokenizer(build(released | kinds))
    assert (lvm.size, lvm.grid, lvm.tokens, lvm.codes) == (256, 16, 256, 8192)


def test_bfloat16_keeps_weights_and_most_codes(tokenizer):
    half = VisualTokenizer(tokenizer.vq, precision="bfloat16")
    images = pictures(6)
    wanted, found = tokenizer.encode(images), half.encode(images)
    assert 0.8 < (found == wanted).float().mean() < 1
    assert 0 < (half.decode(wanted) - tokenizer.decode(wanted)).abs().max() < 0.2
    assert half.fingerprint == tokenizer.fingerprint
    assert {weight.dtype for weight in half.vq.parameters()} == {torch.float32}


def test_caller_changes_nothing(tokenizer):
    """Neither autocast nor the process's settings of precision reach the network, and those come back as they were."""
    images = pictures(2)
    wanted = tokenizer.encode(images)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(tokenizer.encode(images), wanted)
    conv, matmul = torch.backends.cudnn.conv, torch.backends.mkldnn.matmul
    before = conv.fp32_precision, matmul.fp32_precision
    try:
        conv.fp32_precision, matmul.fp32_precision = "tf32", "bf16"
        with computing_in("float32"):
            assert (conv.fp32_precision, matmul.fp32_precision) == ("ieee", "ieee")
        with computing_in("tf32"):
            assert (conv.fp32_precision, matmul.fp32_precision) == ("tf32", "ieee")
        with pytest.raises(DataError), computing_in("float32"):
            tokenizer.decode(torch.zeros(1, 1))
        assert torch.equal(tokenizer.encode(images), wanted)
        assert (conv.fp32_precision, matmul.fp32_precision) == ("tf32", "bf16")
    finally:
        conv.fp32_precision, matmul.fp32_precision = before


def test_saved_and_loaded(tokenizer, tmp_path):
    kept = VisualTokenizer(tokenizer.vq, size=64, resize="pad")
    kept.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", WEIGHTS, "visual_tokenizer.json"]
    loaded = VisualTokenizer.from_pretrained(tmp_path)
    assert (loaded.size, loaded.resize, loaded.fingerprint) == (64, "pad", kept.fingerprint)
    assert torch.equal(loaded.encode(pictures(2)), kept.encode(pictures(2)))
    assert VisualTokenizer.from_pretrained(tmp_path, size=32, resize="squash").fingerprint == tokenizer.fingerprint
    from diffusers import VQModel

    plain = VQModel.from_pretrained(tmp_path)
    assert all(torch.equal(plain.state_dict()[name], value) for name, value in tokenizer.vq.state_dict().items())


def test_fingerprint_tells_weights_and_rules_apart(tokenizer):
    other = make_vq()
    assert VisualTokenizer(other).fingerprint == tokenizer.fingerprint
    other.decoder.conv_out.bias.data[0] += 1e-6
    marks = {VisualTokenizer(other).fingerprint, tokenizer.fingerprint}
    marks |= {
        VisualTokenizer(tokenizer.vq, resize="crop").fingerprint,
        VisualTokenizer(tokenizer.vq, size=64).fingerprint,
    }
    assert len(marks) == 4
    assert tokenizer.describe()["precision"] == "float32"
    assert json.loads(json.dumps(tokenizer.describe()))["tokens"] == 64


def test_damaged_folders(tokenizer, tmp_path):
    def refuses(message, folder=tmp_path):
        with pytest.raises(ModelError, match=message):
            VisualTokenizer.from_pretrained(folder)

    refuses("no folder", tmp_path / "nowhere")
    refuses("has no config.json")
    tokenizer.save_pretrained(tmp_path)
    weights = load_file(tmp_path / WEIGHTS)
    save_file({name: value for name, value in weights.items() if name != "quant_conv.bias"}, tmp_path / WEIGHTS)
    refuses("lacks quant_conv.bias$")
    save_file(weights | {"more": torch.zeros(1)}, tmp_path / WEIGHTS)
    refuses("has more, which the network does not")
    (tmp_path / WEIGHTS).write_bytes(b"no tensors")
    refuses("damaged or not complete")
    (tmp_path / WEIGHTS).rename(tmp_path / "diffusion_pytorch_model.bin")
    refuses("is a pickle and is not read")
    save_file(weights, tmp_path / WEIGHTS)
    (tmp_path / "visual_tokenizer.json").write_text('{"size": "large"}')
    refuses("visual_tokenizer.json is damaged")
    (tmp_path / "visual_tokenizer.json").unlink()
    config = json.loads((tmp_path / "config.json").read_text())
    for changes, message in [
        ({"_class_name": "AutoencoderKL"}, "configuration of AutoencoderKL, not of VQModel"),
        ({"_class_name": "VQGANModel"}, "kshot convert lvm-tokenizer"),
        ({"num_vq_embeddings": 128}, r"shape \[64, 8\] where the configuration says \[128, 8\]"),
        ({"surprise": 1}, "makes no VQModel"),
    ]:
        (tmp_path / "config.json").write_text(json.dumps(config | changes))
        refuses(message)
    (tmp_path / "config.json").write_text("{")
    refuses("no valid JSON")
    (tmp_path / "file").touch()
    with pytest.raises(CannotWrite):
        tokenizer.save_pretrained(tmp_path / "file")


def test_without_diffusers(tokenizer, tmp_path, monkeypatch):
    tokenizer.save_pretrained(tmp_path)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(MissingExtra, match=r"pip install 'kshot\[visual\]'"):
        VisualTokenizer.from_pretrained(tmp_path)


def test_importing_needs_no_diffusers():
    code = "import sys, kshot.visual.tokenizer, kshot.visual.processor; sys.exit('diffusers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_import_of_diffusers_is_quiet(caplog):
    with caplog.at_level("INFO"):
        vq_files.vq_class()
        make_vq()
    assert not caplog.records
