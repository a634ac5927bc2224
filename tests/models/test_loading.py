"""What is loaded, what is refused, and in which words."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.utils import is_torchvision_available

from kshot.episode import Episode, Example
from kshot.errors import MissingExtra, ModelError, OptionError
from kshot.models import load_model
from kshot.models.identity import weight_hash
from kshot.models.loading import EMBEDDED
from kshot.models.processors import image_only, load_processor
from tests.models import tiny


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "some-llava"
    model, processor = tiny.build("llava")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def change_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_folder_is_loaded_under_its_name_with_its_dtype(saved):
    model = load_model(saved)
    assert (model.name, model.model.dtype, model.model.training) == ("some-llava", torch.float32, False)
    assert load_model(str(saved), name="mine", dtype="bfloat16").model.dtype == torch.bfloat16
    facts = model.describe()
    assert json.loads(json.dumps(facts)) == facts
    assert (facts["architecture"], facts["source"]) == ("LlavaForConditionalGeneration", str(saved))


def test_half_precision_answers(saved):
    model = load_model(saved, dtype="bfloat16")
    one = Episode((Example((tiny.picture(1),), "what?", "red"),), Example((tiny.picture(2),), "what?"))
    assert isinstance(model.answer([one])[0], str)
    full = load_model(saved).score([one], ["red", "two"])[0]
    assert model.score([one], ["red", "two"])[0] == pytest.approx(full, rel=0.02)


def test_the_weight_hash_sees_a_training_step():
    model, _ = tiny.build("llava")
    before = weight_hash(model)
    assert before == weight_hash(tiny.build("llava")[0])
    assert before != weight_hash(tiny.build("llava", seed=1)[0])
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    model(input_ids=torch.tensor([[1, 40, 50]]), labels=torch.tensor([[1, 40, 50]])).loss.backward()
    optimizer.step()
    assert weight_hash(model) != before


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_model", "no model 'no_such_model'"),
        ("./nowhere", "no model"),
        ("a/b/c", "no model"),
        ("someone/no-such", "Hub"),
    ],
)
def test_a_model_that_is_not_there(name, message):
    with pytest.raises(ModelError, match=message):
        load_model(name)


def test_a_mistyped_folder_is_suggested(saved):
    with pytest.raises(ModelError, match="did you mean 'some-llava'"):
        load_model(saved.parent / "some-lava")


def test_a_file_or_an_empty_folder(tmp_path, saved):
    with pytest.raises(ModelError, match=r"no config\.json, no model\.safetensors, no tokenizer\.json"):
        load_model(tmp_path)
    with pytest.raises(ModelError, match="is a file"):
        load_model(saved / "config.json")


def test_an_adapter_alone(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="adapter, not a model"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        (("model.safetensors",), r"missing: model\.safetensors$"),
        (("tokenizer.json",), r"missing: tokenizer\.json$"),
        (("processor_config.json",), r"missing: processor_config\.json or"),
    ],
)
def test_missing_files_are_named(folder, gone, message):
    for name in gone:
        (folder / name).unlink()
    with pytest.raises(ModelError, match=message):
        load_model(folder)


def test_pickled_weights_are_not_read(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="pickled weights are not read"):
        load_model(folder)


def test_a_missing_shard_is_named(folder):
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, "model-00001-of-00002.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="model-00001-of-00002"):
        load_model(folder)
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ModelError, match="damaged"):
        load_model(folder)


def test_truncated_weights(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(folder)


def test_incomplete_weights_are_not_filled_with_random_values(folder):
    weights = load_file(folder / "model.safetensors")
    lost = next(name for name in weights if "layers.1" in name and "down_proj" in name)
    del weights[lost]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"1 are missing .*down_proj"):
        load_model(folder)


def test_weights_of_another_shape(folder):
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["intermediate_size"] += 8
    change_config(folder, text_config=config["text_config"])
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(folder)


def test_damaged_configurations(folder):
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json is no valid JSON"):
        load_model(folder)
    (folder / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="no model_type"):
        load_model(folder)


def test_a_text_only_model(folder):
    change_config(folder, model_type="llama", architectures=["LlamaForCausalLM"])
    with pytest.raises(ModelError, match=r"a text-only model \(LlamaForCausalLM\)"):
        load_model(folder)
    change_config(folder, model_type="vit", architectures=["ViTModel"])
    with pytest.raises(ModelError, match="no model of images and text"):
        load_model(folder)


def test_code_from_a_repository_is_never_run(folder):
    change_config(folder, model_type="my_vlm", auto_map={"AutoModel": "evil.Evil"})
    (folder / "evil.py").write_text("raise SystemExit('ran')")
    with pytest.raises(ModelError, match=r"no architecture 'my_vlm'; it brings code of its own, which is never run"):
        load_model(folder)


def test_an_original_link_context_checkpoint_is_told_from_transformers_llava(folder):
    config = {
        "model_type": "llava",
        "architectures": ["LlavaLlamaForCausalLM"],
        "hidden_size": 4096,
        "mm_vision_tower": "openai/clip-vit-large-patch14",
        "mm_hidden_size": 1024,
        "use_mm_proj": True,
    }
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"mm_hidden_size, mm_vision_tower, use_mm_proj.*kshot convert lcl"):
        load_model(folder)


def test_a_processor_of_an_unknown_class(folder):
    for name in ("processor_config.json", "tokenizer_config.json"):
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | {"processor_class": "MyOwnProcessor"}))
    with pytest.raises(ModelError, match="MyOwnProcessor"):
        load_model(folder)


@pytest.mark.skipif(is_torchvision_available(), reason="torchvision is installed")
def test_a_processor_that_exists_for_torchvision_only(folder):
    path = folder / "processor_config.json"
    config = json.loads(path.read_text())
    config["image_processor"]["image_processor_type"] = "Llama4ImageProcessor"
    path.write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"torchvision"):
        load_model(folder)


def test_options(saved):
    with pytest.raises(OptionError, match="dtype"):
        load_model(saved, dtype="float3")
    with pytest.raises(OptionError, match="quantization"):
        load_model(saved, quantization="2bit")  # type: ignore[arg-type]
    if importlib.util.find_spec("bitsandbytes") is None:
        with pytest.raises(MissingExtra, match=r"kshot\[quantization\]"):
            load_model(saved, quantization="4bit")


def test_processors_without_a_video_slot_keep_their_name_and_files(tmp_path):
    model, processor = tiny.build("qwen2_5_vl")
    processor.save_pretrained(tmp_path)
    loaded = load_processor(tmp_path, model.config)
    assert type(loaded).__name__ == "Qwen2_5_VLProcessor"
    assert image_only(type(loaded)) is image_only(type(loaded))
    again = tmp_path / "again"
    loaded.save_pretrained(again)
    saved = json.loads((again / "processor_config.json").read_text())
    assert saved["processor_class"] == "Qwen2_5_VLProcessor"
    assert "video_processor" not in saved


def test_the_chat_template_that_a_constructor_swallows_is_put_back(tmp_path):
    model, processor = tiny.build("idefics")
    processor.save_pretrained(tmp_path)
    assert load_processor(tmp_path, model.config).chat_template == processor.chat_template


@pytest.mark.skipif(
    not (EMBEDDED / "tiny" / "config.json").is_file(), reason="the embedded model is not in this checkout"
)
def test_the_embedded_model_is_computed_in_single_precision():
    assert load_model("tiny").model.dtype == torch.float32
