"""LoRA, frozen parts, checkpointed gradients, half precision."""

from __future__ import annotations

import importlib.util
import json
import shutil

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from kshot import load_model
from kshot.cli import main
from kshot.errors import MissingExtra, ModelError, OptionError
from kshot.models import VLM
from kshot.training import trainer as trainer_module
from kshot.training.answers import AnswerObjective
from kshot.training.train_answers import _adapted, _freeze, train_answers
from tests.models import tiny
from tests.training.toys import Glyphs

DATA = {"glyphs": {"kind": "task", "task": "glyphs", "of": "queries", "shots": 2, "options": {"episodes": 8}}}
LORA = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.1}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "llava"
    model, processor = tiny.build("llava")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def learn(base, out, *, steps=8, save=4, batch=4, trainer=None, **options):
    settings = {
        "max_steps": steps, "per_device_train_batch_size": batch, "learning_rate": 1e-2, "save_steps": save, "logging_steps": 1,
        **(trainer or {}),
    }  # fmt: skip
    return train_answers(str(out), model=str(base), data=DATA, trainer=settings, **options)


def losses(out):
    lines = [json.loads(line) for line in (out / "training" / "log.jsonl").read_text().splitlines()]
    return [line["answer_loss"] for line in lines if "loss" in line]


@pytest.fixture(scope="module")
def adapter(base, tmp_path_factory):
    return learn(base, tmp_path_factory.mktemp("lora") / "adapter", method="lora", lora=LORA)


def logits(model, vlm):
    """Of a prompt, by a model that may be wrapped."""
    made = AnswerObjective(vlm, Glyphs())
    inputs = made.collate([made.item(0, 0)])["inputs"]
    with torch.no_grad():
        return model(**inputs).logits


def test_an_adapter_learns_and_the_base_stays_what_it_was(base, adapter):
    assert losses(adapter)[-1] < losses(adapter)[0] - 0.1
    files = {path.name for path in adapter.iterdir() if path.is_file()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "processor_config.json"} <= files
    assert not files & {"model.safetensors", "adapter_model.bin"}
    assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base)
    weights = load_file(adapter / "adapter_model.safetensors")
    assert all("lora_" in name and "vision_tower" not in name for name in weights)
    assert any(value.any() for name, value in weights.items() if "lora_B" in name)
    plain = load_model(base)
    changed = PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(base), adapter)
    with changed.disable_adapter():
        assert torch.allclose(logits(changed, plain), logits(plain.model, plain), atol=1e-6)


def test_peft_and_load_model_read_the_same_adapter(base, adapter):
    plain, mine = load_model(base), load_model(base, adapter=adapter)
    theirs = PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(base), adapter).eval()
    with_adapter = logits(mine.model, mine)
    assert torch.allclose(with_adapter, logits(theirs, plain), atol=1e-6)
    assert not torch.allclose(with_adapter, logits(plain.model, plain), atol=1e-3)
    facts, before = mine.describe(), plain.describe()
    assert facts["adapter"] == str(adapter)
    assert "adapter" not in before
    assert facts["weights"] != before["weights"]


def test_an_adapter_is_evaluated_by_the_command(base, adapter, tmp_path, capsys):
    words = [
        "evaluate",
        "--model",
        str(base),
        "--task",
        "glyphs",
        "--episodes",
        "4",
        "--shots",
        "2",
        "--controls",
        "none",
    ]
    assert main([*words, "--out", str(tmp_path / "run")]) == 0
    assert main([*words, "--adapter", str(adapter), "--out", str(tmp_path / "with")]) == 0
    capsys.readouterr()
    # The same folder with another model is not the same run.
    assert main([*words, "--adapter", str(adapter), "--out", str(tmp_path / "run")]) == 2


def test_an_adapter_that_was_interrupted_ends_with_the_same_bits(base, adapter, tmp_path, monkeypatch):
    class Killed(Exception):
        pass

    def die(self, *args):
        super(trainer_module.KshotTrainer, self)._save_checkpoint(*args)  # not called complete
        raise Killed

    with monkeypatch.context() as patched:
        saving = trainer_module.KshotTrainer._save_checkpoint
        patched.setattr(
            trainer_module.KshotTrainer,
            "_save_checkpoint",
            lambda self, *args: (saving if self.state.global_step == 4 else die)(self, *args),
        )
        with pytest.raises(Killed):
            learn(base, tmp_path / "cut", method="lora", lora=LORA)
    torch.manual_seed(123)
    learn(base, tmp_path / "cut", method="lora", lora=LORA)
    a, b = (load_file(folder / "adapter_model.safetensors") for folder in (adapter, tmp_path / "cut"))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_an_adapter_of_another_model(base, adapter, tmp_path):
    deeper, processor = tiny.build("llava", num_hidden_layers=3)
    deeper.save_pretrained(tmp_path / "deeper")
    processor.save_pretrained(tmp_path / "deeper")
    with pytest.raises(ModelError, match=r"another model: Llava\w+ with [\d,]+ parameters, not Llava\w+ with [\d,]+"):
        load_model(tmp_path / "deeper", adapter=adapter)
    wider, processor = tiny.build("llava", intermediate_size=96)
    wider.save_pretrained(tmp_path / "wider")
    processor.save_pretrained(tmp_path / "wider")
    foreign = shutil.copytree(adapter, tmp_path / "foreign")
    shutil.rmtree(foreign / "training")  # an adapter that others trained does not tell on what
    with pytest.raises(ModelError, match="was it trained on this model"):
        load_model(tmp_path / "wider", adapter=foreign)


def test_what_is_no_adapter(base, adapter, tmp_path):
    with pytest.raises(ModelError, match=r"adapter=.*--adapter"):
        load_model(adapter)
    with pytest.raises(ModelError, match="is a model, not an adapter"):
        load_model(base, adapter=base)
    with pytest.raises(ModelError, match=r"no adapter_config\.json"):
        load_model(base, adapter=tmp_path)
    (tmp_path / "adapter_config.json").write_bytes((adapter / "adapter_config.json").read_bytes())
    (tmp_path / "adapter_model.safetensors").write_bytes(b"{}")
    with pytest.raises(ModelError, match="cannot be put into"):
        load_model(base, adapter=tmp_path)
    save_file({}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="another model"):
        load_model(base, adapter=tmp_path)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"lora": {"r": 4}}, "method is not lora"),
        ({"method": "lora", "lora": {"rank": 4}}, "lora: .*rank"),
        ({"method": "lora", "lora": {"r": 0}}, "lora: "),
        ({"quantization": "4bit"}, "set method: lora"),
        ({"method": "lora", "summary": 0.5}, "needs method: full"),
        ({"features": True}, r"freeze: vision\+projector"),
        ({"freeze": "tower"}, "must be nothing, vision"),
        ({"method": "qlora"}, "must be full or lora"),
    ],
)
def test_options_that_do_not_go_together(options, says, base, tmp_path):
    with pytest.raises(OptionError, match=says):
        learn(base, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
def test_quantization_needs_its_package(base, tmp_path):
    with pytest.raises(MissingExtra, match=r"kshot\[quantization\]"):
        learn(base, tmp_path / "out", method="lora", quantization="4bit")


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3"])
def test_checkpointed_gradients_are_the_same(name):
    def gradients(checkpointing):
        vlm = VLM(*tiny.build(name))
        made = AnswerObjective(vlm, Glyphs(graded=True), summary=0.5)
        batch = made.collate([made.item(0, i) for i in range(2)])
        vlm.model.train()
        if checkpointing:
            vlm.model.activation_checkpointing_enable()
        made.loss(vlm.model, batch)[0].backward()
        return {key: p.grad for key, p in vlm.model.named_parameters() if p.grad is not None}

    plain, saved = gradients(False), gradients(True)
    assert plain.keys() == saved.keys()
    assert "summary_probe.weight" in plain
    for key in plain:
        assert torch.allclose(plain[key], saved[key], rtol=1e-4, atol=1e-6), key


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_trainer_checkpoints_gradients(method, base, tmp_path):
    for name, extra in (("plain", {}), ("saved", {"gradient_checkpointing": True})):
        learn(base, tmp_path / name, steps=2, method=method, trainer={"optim": "sgd", "learning_rate": 0.1} | extra)
    weights = "adapter_model.safetensors" if method == "lora" else "model.safetensors"
    a, b = (load_file(tmp_path / name / weights) for name in ("plain", "saved"))
    assert all(torch.allclose(a[key], b[key], atol=1e-6) for key in a)


def test_mixed_precision_runs_and_saves_full_precision(base, tmp_path):
    learn(base, tmp_path / "half", steps=3, trainer={"bf16": True})
    learn(base, tmp_path / "full", steps=3)
    half, full = losses(tmp_path / "half"), losses(tmp_path / "full")
    assert half != full
    assert half == pytest.approx(full, rel=0.05)
    assert {value.dtype for value in load_file(tmp_path / "half" / "model.safetensors").values()} == {torch.float32}


def descend(vlm):
    """One step of gradient descent."""
    made = AnswerObjective(vlm, Glyphs(shots=(2,)))
    total, _ = made.loss(vlm.model, made.collate([made.item(0, i) for i in range(2)]))
    total.backward()
    torch.optim.SGD([p for p in vlm.model.parameters() if p.requires_grad], lr=0.1).step()


def tells(name):
    """Whether transformers finds the vision tower of a family."""
    model = tiny.build(name)[0]
    return model.get_encoder(modality="image") not in (model, model.base_model)


@pytest.mark.parametrize("name", sorted(tiny.FAMILIES))
def test_a_frozen_vision_tower_does_not_change(name):
    vlm = VLM(*tiny.build(name))
    if not tells(name):
        with pytest.raises(OptionError, match=r"does not tell its vision tower; use vision\+projector or nothing"):
            _freeze(vlm, "vision")
        return
    _freeze(vlm, "vision")
    inside = {id(p) for p in vlm.model.get_encoder(modality="image").parameters()}
    decoder = {id(p) for layer in vlm.anatomy.layers for p in layer.parameters()}
    assert inside
    assert not inside & decoder
    before = {key: p.detach().clone() for key, p in vlm.model.named_parameters()}
    descend(vlm)
    moved = {id(p) for key, p in vlm.model.named_parameters() if not torch.equal(before[key], p)}
    assert not moved & inside
    assert moved & decoder


@pytest.mark.parametrize("name", sorted(tiny.FAMILIES))
def test_adapters_are_in_the_layers_of_the_text_decoder_only(name):
    vlm = VLM(*tiny.build(name))
    vision = {id(m) for m in vlm.model.get_encoder(modality="image").modules()} if tells(name) else set()
    wrapped = _adapted(vlm, {}, None, {}, 0)
    trained = {key for key, p in wrapped.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora_" in key for key in trained)
    places = {key.partition(".lora_")[0] for key in trained}
    assert not any(id(module) in vision for key, module in wrapped.named_modules() if key in places)
    for layer in vlm.anatomy.layers:
        assert any(p.requires_grad for p in layer.parameters())


def test_a_projector_that_cannot_be_told_is_not_frozen_in_silence():
    for name in tiny.FAMILIES:
        vlm = VLM(*tiny.build(name))
        try:
            _freeze(vlm, "vision+projector")
        except OptionError:
            assert name == "idefics"
        else:
            assert any(not p.requires_grad for p in vlm.model.parameters()), name


def test_most_families_tell_their_vision_tower():
    told = {name for name in tiny.FAMILIES if tells(name)}
    assert {"llava", "idefics2", "idefics3", "smolvlm", "qwen2_vl", "qwen2_5_vl", "gemma3", "internvl"} <= told


@pytest.mark.parametrize("freeze", ["nothing", "vision", "vision+projector"])
def test_what_freezing_leaves_to_learn(freeze):
    vlm = VLM(*tiny.build("llava"))
    _freeze(vlm, freeze)
    trained = {
        key.split(".")[1] for key, p in vlm.model.named_parameters() if p.requires_grad and key.startswith("model.")
    }
    parts = {"nothing": {"vision_tower"}, "vision": {"multi_modal_projector"}, "vision+projector": set()}
    expected = {"language_model"} | parts[freeze] | (parts["vision"] if freeze == "nothing" else set())
    assert trained == expected
