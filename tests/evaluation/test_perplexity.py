"""``kshot perplexity`` and ``kshot calibrate``."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from kshot.cli import main
from kshot.errors import BadImage, ContextTooLong, DataError, OptionError
from kshot.evaluation.calibrate import calibrate
from kshot.evaluation.perplexity import figures_of, perplexity
from kshot.evaluation.runs import read_jsonl
from kshot.models.rope_table import rope_table_of, use_rope_table
from tests.evaluation.visual_files import save_lines, save_model, save_pictures
from tests.visual.tiny import noises, tiny_visual_model


@pytest.fixture(scope="module")
def model():
    return tiny_visual_model()


@pytest.fixture
def pictures(tmp_path):
    return save_pictures(tmp_path / "pictures", 12)


@pytest.fixture
def data(tmp_path, pictures):
    rows = [
        {"input": pictures[:4], "target": [pictures[5]]},
        {"input": pictures[2:5], "target": pictures[6:8]},
        {"input": pictures[1:4], "target": [pictures[9]]},
    ]
    return save_lines(tmp_path / "data.jsonl", rows)


def by_hand(model, shown, wanted) -> list[float]:
    """Negative log-likelihoods of the target's tokens, by the plain formula."""
    before, after = (model.tokenizer.encode(paths).flatten().tolist() for paths in (shown, wanted))
    with torch.no_grad():
        logs = model.model(torch.tensor([before + after])).logits[0].double().log_softmax(-1)
    return [-float(logs[len(before) - 1 + place, code]) for place, code in enumerate(after)]


def test_both_averages(model, data):
    lines = read_jsonl(Path(data))
    nll = [by_hand(model, line["input"], line["target"]) for line in lines]
    found = perplexity(model, data=data)
    assert found.value == pytest.approx(np.mean([math.exp(np.mean(values)) for values in nll]), rel=1e-5)
    figure = found.figures[0]
    assert figure.exp_mean_nll == pytest.approx(math.exp(np.mean(np.concatenate(nll))), rel=1e-5)
    assert (figure.context, figure.examples, figure.tokens) == (None, 3, 16)
    assert figure.interval[0] <= figure.perplexity <= figure.interval[1]
    assert figure.exp_mean_nll_interval[0] <= figure.exp_mean_nll <= figure.exp_mean_nll_interval[1]


def test_the_figure_of_the_specification():
    """The two averages differ: 73.4 and 68.4 in a toy; here 55 and 10 times the root of 10."""
    rows = [{"context": None, "nll": math.log(value), "tokens": 4, "perplexity": value} for value in (10.0, 100.0)]
    figure = figures_of(rows)[0]
    assert figure.perplexity == pytest.approx(55.0)
    assert figure.exp_mean_nll == pytest.approx(10 * math.sqrt(10))


def test_the_same_target_behind_less_context(model, data):
    found = perplexity(model, data=data, context_lengths="1,3")
    assert [figure.context for figure in found.figures] == [1, 3]
    first = read_jsonl(Path(data))[0]
    for length in (1, 3):
        row = next(r for r in found.rows if r["id"] == "1" and r["context"] == length)
        assert row["nll"] == pytest.approx(np.mean(by_hand(model, first["input"][-length:], first["target"])), rel=1e-5)
    with pytest.raises(OptionError, match="4 pictures wanted, but example 2"):
        perplexity(model, data=data, context_lengths=4)
    with pytest.raises(OptionError, match="nothing can be foreseen"):
        perplexity(model, data=data, context_lengths="0,1")
    assert len(perplexity(model, data=data, context_lengths="0,1", bos=True).figures) == 2


def test_windows_of_frames(tmp_path, model, pictures):
    rows = [{"frames": pictures}, {"frames": str(tmp_path / "pictures")}, {"frames": pictures[:3]}]
    data = save_lines(tmp_path / "films.jsonl", rows)
    options = {"data": data, "context_lengths": "1,3", "windows": 4, "max_stride": 3}
    found = perplexity(model, **options)
    assert found.skipped == ("line 3: 3 frames, fewer than the 4 of a window",)
    ids = [row["id"] for row in found.rows]
    assert len({name for name in ids if name.startswith("1#")}) > 1
    for name in ids:
        start, stride = map(int, name.partition("#")[2].split("+"))
        assert 1 <= stride <= 3
        assert start + 3 * stride < 12
    assert perplexity(model, **options).rows == found.rows
    assert perplexity(model, **options, seed=1).rows != found.rows
    row = next(r for r in found.rows if r["context"] == 3)
    start, stride = map(int, row["id"].partition("#")[2].split("+"))
    shown = pictures[start : start + 3 * stride : stride]
    assert row["nll"] == pytest.approx(np.mean(by_hand(model, shown, [pictures[start + 3 * stride]])), rel=1e-5)


def test_frames_of_a_video(tmp_path, model):
    pytest.importorskip("av")
    frames = noises(12)
    frames[0].save(tmp_path / "film.gif", save_all=True, append_images=frames[1:], duration=100, loop=0)
    data = save_lines(tmp_path / "films.jsonl", [{"frames": "film.gif"}])
    found = perplexity(model, data=data, context_lengths=3, windows=2)
    assert {row["tokens"] for row in found.rows} == {4}
    assert [row["id"].partition("#")[0] for row in found.rows] == ["1", "1"]


def test_by_default_windows_fill_the_context(tmp_path, model, pictures):
    found = perplexity(model, data=save_lines(tmp_path / "films.jsonl", [{"frames": pictures}]))
    assert found.rows[0]["pictures"] == 5


def test_the_command_keeps_a_run(tmp_path, data, capsys):
    place, out = save_model(tmp_path / "model"), tmp_path / "run"
    words = ["perplexity", "--model", str(place), "--data", data, "--context-lengths", "1,2", "--out", str(out)]
    assert main(words) == 0
    assert "perplexity of model" in capsys.readouterr().out
    held = json.loads((out / "metrics.json").read_text())
    assert [figure["context"] for figure in held["figures"]] == [1, 2]
    rows = (out / "predictions" / "perplexity.jsonl").read_text()
    assert main(words) == 0  # nothing is computed again
    assert (out / "predictions" / "perplexity.jsonl").read_text() == rows
    assert main([*words, "--bos", "true"]) == 2
    assert "another configuration: bos" in capsys.readouterr().err


def test_bad_input(tmp_path, model, pictures):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no picture")
    rows = [{"input": [str(bad)], "target": [pictures[0]]}, {"input": pictures[:1], "target": pictures[1:2]}]
    data = save_lines(tmp_path / "bad.jsonl", rows)
    with pytest.raises(BadImage, match=r"bad\.png"):
        perplexity(model, data=data)
    found = perplexity(model, data=data, on_bad_image="skip")
    assert (len(found.rows), len(found.skipped)) == (1, 1)
    with pytest.raises(DataError, match="no target"):
        perplexity(model, data=save_lines(tmp_path / "a.jsonl", [{"input": pictures[:1]}]))
    with pytest.raises(ContextTooLong, match=r"example 1 has 6 \+ 1 pictures"):
        perplexity(model, data=save_lines(tmp_path / "b.jsonl", [{"input": pictures[:6], "target": pictures[6:7]}]))
    with pytest.raises(DataError, match="nothing to measure"):
        perplexity(model, data=save_lines(tmp_path / "c.jsonl", [{"frames": pictures[:2]}]))
    with pytest.raises(DataError, match="no lines"):
        perplexity(model, data=save_lines(tmp_path / "d.jsonl", []))
    with pytest.raises(OptionError, match="windows"):
        perplexity(model, data=data, windows=0)


@pytest.mark.parametrize("command", ["perplexity", "calibrate"])
@pytest.mark.parametrize(
    ("option", "value"), [("batch_size", "0"), ("windows", "0"), ("max_stride", "0"), ("max_examples", "-1")]
)
def test_counts_that_cannot_be_are_refused_first(tmp_path, data, capsys, command, option, value):
    words = [command, "--model", str(tmp_path / "no-model"), "--data", str(data), "--out", str(tmp_path / "out")]
    assert main([*words, f"--{option}", value]) == 2
    assert f"{option}={value}: must be" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_calibrate_measures_all_four(tmp_path, model, data):
    found = calibrate(model, data=data, out=str(tmp_path / "calibration.json"))
    assert {(c.bos, c.rope_table_dtype) for c in found.combinations} == {
        (bos, table) for bos in (False, True) for table in ("float32", "bfloat16")
    }
    assert rope_table_of(model.model) == "float32"
    for combination in found.combinations:
        use_rope_table(model.model, combination.rope_table_dtype)
        try:
            alone = perplexity(model, data=data, bos=combination.bos)
        finally:
            use_rope_table(model.model, "float32")
        assert combination.figure.perplexity == pytest.approx(alone.value, rel=1e-6)
        best = found.best.figure.exp_mean_nll
        assert combination.figure.exp_mean_nll >= best
    assert found.best.behind == 0.0
    assert len({round(c.figure.perplexity, 6) for c in found.combinations}) == 4
    held = json.loads((tmp_path / "calibration.json").read_text())
    assert held["combinations"][0]["bos"] == found.best.bos
    assert held["options"]["examples"] == 3


def test_calibrate_ranks_by_likelihood(tmp_path, pictures):
    """The best stands first, and the others say how far they are behind."""
    model = tiny_visual_model(seed=3)
    rows = [{"input": pictures[n : n + 5], "target": [pictures[n + 5]]} for n in range(4)]
    found = calibrate(model, data=save_lines(tmp_path / "d.jsonl", rows))
    behind = [combination.behind for combination in found.combinations]
    figures = [combination.figure.exp_mean_nll for combination in found.combinations]
    assert figures == sorted(figures)
    # Equal targets: the mean difference is the logarithm of the ratio.
    assert behind == pytest.approx([math.log(value / figures[0]) for value in figures], abs=1e-9)
