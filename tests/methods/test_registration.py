"""Methods in PEFT's dictionaries and in kshot's registry; programs that import no more of kshot than its name."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

import kshot.methods
from kshot.errors import KshotError, ModelError, UnknownName
from kshot.methods import LiveConfig, MethodType, methods, register_method
from kshot.methods.live import LiveModel
from kshot.models.anatomy import Ability
from tests.methods.common import OURS, adapted, base, config_of, logits

PROGRAM = """
import sys
import kshot
assert not {"torch", "peft"} & set(sys.modules)
import safetensors.torch, torch
from transformers import AutoModelForImageTextToText
model = AutoModelForImageTextToText.from_pretrained(sys.argv[1]).requires_grad_(False).eval()
inputs = safetensors.torch.load_file(sys.argv[2])
for number, folder in enumerate(sys.argv[3:]):
    if number % 2:
        model.load_adapter(folder, adapter_name="loaded")
        found = model(**inputs).logits
        model.delete_adapter("loaded")
    else:
        from peft import PeftModel
        adapted = PeftModel.from_pretrained(model, folder)
        found = adapted(**inputs).logits
        model = adapted.unload()
    safetensors.torch.save_file({"logits": found.contiguous()}, folder + "/logits.safetensors")
"""


def test_another_process_loads_every_adapter(tmp_path):
    from safetensors.torch import load_file, save_file

    model, inputs, _ = base("llava")
    model.save_pretrained(tmp_path / "model")
    inputs = {name: value.contiguous() for name, value in inputs.items() if isinstance(value, torch.Tensor)}
    save_file(inputs, tmp_path / "inputs")
    folders = []
    for method in OURS:
        with_adapter = adapted("llava", method)
        for way in ("peft", "transformers"):
            folders.append(tmp_path / f"{method} {way}")
            with_adapter.save_pretrained(folders[-1])
        save_file({"logits": logits(with_adapter.get_base_model(), inputs)}, tmp_path / f"{method}.safetensors")
    arguments = [str(path) for path in (tmp_path / "model", tmp_path / "inputs", *folders)]
    subprocess.run([sys.executable, "-c", PROGRAM, *arguments], check=True, capture_output=True, timeout=600)
    for folder in folders:
        found = load_file(folder / "logits.safetensors")["logits"]
        expected = load_file(tmp_path / f"{folder.name.split()[0]}.safetensors")["logits"]
        assert torch.equal(found, expected), folder.name


def test_peft_may_be_imported_first():
    program = "import peft, kshot, sys; sys.exit('LIVE' not in peft.PEFT_TYPE_TO_CONFIG_MAPPING)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize("name", list(methods))
def test_every_method_says_what_it_is(name):
    method = methods.get(name)
    assert method.name == name
    assert 20 < len(method.summary) < 120
    assert method.trainable or method.estimate is not None
    assert set(method.needs) <= {"residual_methods", "attention_methods"}


@pytest.mark.parametrize("name", OURS)
def test_configurations_come_back_from_json(name, tmp_path):
    config = config_of(name, seed=3, layers=[-1, 0])
    config.save_pretrained(tmp_path)
    found = PeftConfig.from_pretrained(tmp_path)
    assert found == config
    assert type(found) is methods.get(name).config
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == config.peft_type.value
    assert PEFT_TYPE_TO_CONFIG_MAPPING[config.peft_type.value] is type(config)


def test_names_that_would_not_work_are_refused():
    def attempt(name, **options):
        return register_method(name, **{"config": LiveConfig, "tuner": LiveModel, "summary": ""} | options)

    with pytest.raises(KshotError, match="must begin with 'other_'"):
        attempt("other")
    with pytest.raises(KshotError, match="occurs in"):
        attempt("live", peft_type="SHIFT")
    with pytest.raises(KshotError, match="PEFT has a method LORA already"):
        attempt("live", peft_type="LORA")
    assert "other" not in methods
    assert LiveModel.prefix == "live_"
    with pytest.raises(UnknownName, match="did you mean 'live'"):
        methods.get("lives")


def test_a_model_without_the_ability_is_refused_with_its_reason():
    class Blind:
        architecture = "BlindForNothing"
        residual_methods, attention_methods = Ability(True), Ability(False, "it has no eyes")

    methods.get("live").check(Blind)
    with pytest.raises(ModelError, match="BlindForNothing cannot take mimic: it has no eyes"):
        methods.get("mimic").check(Blind)


def test_types_are_words():
    kind = MethodType("LIVE")
    assert (kind.value, kind.name, kind, json.dumps(kind)) == ("LIVE", "LIVE", "LIVE", '"LIVE"')
    assert kshot.methods.LiveConfig().peft_type is LiveConfig.method_type
