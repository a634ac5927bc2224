"""The import of LIVE's learnt vectors, against what upstream's hooks compute."""

from __future__ import annotations

import json

import pytest
import torch
from peft import PeftModel

from kshot.cli import main
from kshot.convert.live import convert_live
from kshot.errors import ModelError, OptionError
from kshot.methods.places import mlp_of
from kshot.models.anatomy import examine
from tests.convert.vectors import Evil, live_hooks, write_live
from tests.methods.common import base, fresh, logits

LAYER = {
    "name": "idefics-9b",
    "total_layers": 2,
    "layer_format": "model.model.layers.<LAYER_NUM>",
    "intervention_layer": -1,
}
MLP = LAYER | {
    "layer_format": "model.model.text_model.layers.<LAYER_NUM>.mlp",
    "hidden_size": 64,
    "model_name": "idefics2-8b",
}


def learnt(rows=2, width=64, seed=0):
    random = torch.Generator().manual_seed(seed)
    return torch.randn(rows, width, generator=random), torch.randn(rows, generator=random)


def with_adapter(family, folder):
    model = PeftModel.from_pretrained(fresh(family), folder).get_base_model()
    return logits(model, base(family)[1])


@pytest.mark.parametrize("settings", [LAYER, MLP], ids=["layer", "mlp"])
@pytest.mark.parametrize("family", ["idefics", "idefics2", "llava"])
def test_logits_are_upstreams(tmp_path, configured, family, settings):
    vectors, scales = learnt()
    source = write_live(tmp_path / "icv_cpk.pth", vectors, scales, settings=settings)
    out = convert_live(source, model=configured(family), out=tmp_path / "out")
    upstream = fresh(family)
    anatomy = examine(upstream)
    modules = list(anatomy.layers) if settings is LAYER else [mlp_of(anatomy, number) for number in range(2)]
    live_hooks(upstream, modules, vectors, scales)
    expected = logits(upstream, base(family)[1])
    assert (expected - logits(base(family)[0], base(family)[1])).abs().max() > 0.1
    assert (with_adapter(family, out) - expected).abs().max() <= 1e-5


def test_sigmoid_and_chosen_layers(tmp_path, configured):
    vectors, scales = learnt(rows=1)
    settings = LAYER | {"intervention_layer": [1]}
    source = write_live(tmp_path / "icv_cpk.pth", vectors, scales, settings=settings, use_sigmoid=True)
    out = convert_live(source, model=configured("llava"), out=tmp_path / "out")
    upstream = fresh("llava")
    live_hooks(upstream, [examine(upstream).layers[1]], vectors, scales.sigmoid())
    assert (with_adapter("llava", out) - logits(upstream, base("llava")[1])).abs().max() <= 1e-5
    config = json.loads((out / "adapter_config.json").read_text())
    assert (config["layers"], config["sigmoid"], config["placement"]) == ([1], True, "layer")
    assert config["base_model_name_or_path"] == str(configured("llava"))


@pytest.mark.parametrize("scaled", [True, False])
def test_live_as_trained_by_mimics_code(tmp_path, configured, scaled):
    vectors, scales = learnt()
    (tmp_path / "epoch-3").mkdir()
    torch.save(
        {"ffn_shift": vectors} | ({"ffn_shift_scale": scales} if scaled else {}), tmp_path / "epoch-3" / "encoder.pth"
    )
    scales = scales if scaled else torch.ones(2)
    out = convert_live(tmp_path / "epoch-3", model=configured("llava"), out=tmp_path / "out")
    upstream = fresh("llava")
    live_hooks(upstream, [mlp_of(examine(upstream), number) for number in range(2)], vectors, scales)
    assert (with_adapter("llava", out) - logits(upstream, base("llava")[1])).abs().max() <= 1e-5


def test_the_command_names_the_base_and_the_result_can_be_loaded(tmp_path, capsys):
    from kshot import load_model

    width = load_model("tiny").anatomy.hidden_size
    vectors, scales = learnt(rows=len(load_model("tiny").anatomy.layers), width=width)
    run = tmp_path / "run"
    run.mkdir()
    write_live(
        run / "icv_cpk.pth",
        vectors.to(torch.bfloat16),
        scales,
        settings=LAYER | {"model_name": "idefics-9b"},
        extra=torch.ones(1),
    )
    assert main(["convert", "live", str(run), "--model", "tiny", "--out", str(tmp_path / "out")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    for part in ("run/icv_cpk.pth for tiny", "bfloat16, float32", "not used: extra", "bit for bit"):
        assert part in said
    model = load_model("tiny", adapter=tmp_path / "out")
    held = [value for name, value in model.model.named_parameters() if "live_vector" in name]
    assert len(held) == len(vectors)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path, configured, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"icv_encoder.icv": Evil()}, tmp_path / "icv_cpk.pth")
    with pytest.raises(ModelError, match=r"is not read: .*mkdir.* runs code"):
        convert_live(tmp_path, model=configured("llava"), out=tmp_path / "out")
    assert not (tmp_path / "kshot-was-here").exists()
    assert not (tmp_path / "out").exists()


WRONG = {
    "layers": (learnt(rows=3), LAYER, r"3 vectors of width 64, but \w+ has 2 layers of width 64"),
    "width": (learnt(width=32), LAYER, r"2 vectors of width 32, but \w+ has 2 layers of width 64"),
    "rows and scales": ((learnt()[0], learnt(rows=3)[1]), LAYER, r"vectors \[1, 2, 64\] and scales \[1, 3\]"),
    "a layer there is not": (learnt(rows=1), LAYER | {"intervention_layer": 2}, r"for layers \[2\], but"),
    "a layer twice": (learnt(), LAYER | {"intervention_layer": [1, 1]}, "names a layer twice"),
    "no layer": (learnt(), LAYER | {"intervention_layer": "all"}, "not -1, a number or a list"),
    "another place": (
        learnt(),
        LAYER | {"layer_format": "model.layers.<LAYER_NUM>.self_attn"},
        "offers decoder layers and their MLPs",
    ),
    "not finite": ((learnt()[0] / 0, learnt()[1]), LAYER, "not finite"),
}


@pytest.mark.parametrize("case", WRONG)
def test_vectors_that_do_not_fit_are_refused_in_words(tmp_path, configured, case):
    (vectors, scales), settings, message = WRONG[case]
    source = write_live(tmp_path / "icv_cpk.pth", vectors, scales, settings=settings)
    with pytest.raises(ModelError, match=message):
        convert_live(source, model=configured("llava"), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_files_are_refused_in_words(tmp_path, configured):
    model, out = configured("llava"), tmp_path / "out"
    with pytest.raises(ModelError, match="no file or folder"):
        convert_live(tmp_path / "nothing", model=model, out=out)
    with pytest.raises(ModelError, match=r"it has no icv_cpk\.pth and no encoder\.pth"):
        convert_live(tmp_path, model=model, out=out)
    for number in (1, 2):
        (tmp_path / f"run{number}").mkdir()
        write_live(tmp_path / f"run{number}" / "icv_cpk.pth", *learnt(), settings=LAYER)
    with pytest.raises(ModelError, match=r"give one of them: run1/icv_cpk\.pth, run2/icv_cpk\.pth"):
        convert_live(tmp_path, model=model, out=out)
    whole = (tmp_path / "run1" / "icv_cpk.pth").read_bytes()
    for name, content in {"short": whole[: len(whole) // 2], "text": b"no pickle", "empty": b""}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ModelError, match="no whole file in the zip format"):
            convert_live(tmp_path / name, model=model, out=out)
    torch.save([1, 2], tmp_path / "list")
    with pytest.raises(ModelError, match="holds a list"):
        convert_live(tmp_path / "list", model=model, out=out)
    torch.save({"weight": torch.ones(2)}, tmp_path / "other")
    with pytest.raises(ModelError, match=r"has no 'icv_encoder\.icv'; it holds weight"):
        convert_live(tmp_path / "other", model=model, out=out)
    torch.save({"attn_shift": torch.ones(2)}, tmp_path / "mimic")
    with pytest.raises(ModelError, match="kshot convert mimic"):
        convert_live(tmp_path / "mimic", model=model, out=out)
    with pytest.raises(ModelError, match="no model"):
        convert_live(tmp_path / "run1", model=tmp_path / "no-model-here", out=out)


def test_the_placement_is_never_guessed(tmp_path, configured):
    vectors, scales = learnt()
    source = write_live(tmp_path / "icv_cpk.pth", vectors, scales, settings=None)
    model = configured("llava")
    with pytest.raises(OptionError, match="give --placement layer"):
        convert_live(source, model=model, out=tmp_path / "out")
    with pytest.raises(OptionError, match="unknown placement 'attention'"):
        convert_live(source, model=model, out=tmp_path / "out", placement="attention")
    convert_live(source, model=model, out=tmp_path / "out", placement="mlp")
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["placement"] == "mlp"
    with pytest.raises(OptionError, match="is not empty"):
        convert_live(source, model=model, out=tmp_path / "out", placement="mlp")
    stored = write_live(tmp_path / "stored.pth", vectors, scales, settings=LAYER)
    with pytest.raises(OptionError, match="output of the layer, not of the mlp"):
        convert_live(stored, model=model, out=tmp_path / "out2", placement="mlp")
