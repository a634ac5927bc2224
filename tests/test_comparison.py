"""Methods side by side: the figures against the files that they come from, what is not done twice, times, agreement."""

from __future__ import annotations

import csv
import json
import math
import statistics
import time
from contextlib import contextmanager, nullcontext
from importlib.resources import files

import pytest
import torch

import kshot
from kshot.cli import COMMANDS, main, parse
from kshot.comparison import compare_methods, comparing, shift_agreement
from kshot.comparison import obtain as obtaining
from kshot.comparison.agreement import mean_cosine
from kshot.comparison.cost import measure, peak_memory
from kshot.comparison.obtain import Budget, adapter_in, wanted_methods
from kshot.data.task import load_task
from kshot.episode import Episode
from kshot.errors import DataError, OptionError, UnknownName
from kshot.models.identity import weight_hash
from kshot.models.vlm import VLM
from kshot.training.distill_items import DistillItems
from tests.models import tiny
from tests.models.test_families import QA, episode

PAIR = {"queries": 12, "support": 40}
OPTIONS = {
    "shots": 4,
    "samples": 12,
    "epochs": 1,
    "rounds": 1,
    "tokens": 2,
    "batch_size": 16,
    "trainer": {"learning_rate": 0.02, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1},
}


@pytest.fixture(scope="module")
def model():
    return kshot.load_model("tiny")


@pytest.fixture(scope="module")
def compared(model, tmp_path_factory):
    """A comparison of one trained and one estimated method."""
    folder = tmp_path_factory.mktemp("compared") / "out"
    before = weight_hash(model.model)
    found = compare_methods(
        model, load_task("concept_pair", **PAIR), methods="live,task_vector", out=folder, transfer=load_task("scenes", episodes=6),
        **OPTIONS,
    )  # fmt: skip
    assert weight_hash(model.model) == before
    assert not hasattr(model.model, "peft_config")
    assert model.adapter is None
    return found


def scores(folder, cell):
    lines = (folder / "predictions" / f"{cell}.jsonl").read_text(encoding="utf-8").splitlines()
    return {row["id"]: row["score"] for row in map(json.loads, lines)}


def test_rows_are_those_of_the_runs(compared, model):
    assert [row.method for row in compared.rows] == ["zero_shot", "format_only", "few_shot", "live", "task_vector"]
    assert [row.kind for row in compared.rows] == ["baseline"] * 3 + ["trained", "estimated"]
    zero = scores(compared.folder / "base" / "queries", "shots-0")
    few = scores(compared.folder / "base" / "queries", "shots-4_seed-0")
    row = compared.row("few_shot")
    assert row.score.value == pytest.approx(statistics.fmean(few.values()))
    assert row.score.value > 0.5  # the embedded model learns the names from its context
    assert compared.row("zero_shot").score.value == 0.0
    for name in ("few_shot", "live", "task_vector"):
        row = compared.row(name)
        own = few if name == "few_shot" else scores(compared.folder / name / "seed-0" / "queries", "shots-0")
        assert row.gain.value == pytest.approx(statistics.fmean(own[key] - zero[key] for key in zero))
        assert row.gain.low <= row.gain.value <= row.gain.high
    for name in ("live", "task_vector"):
        row, place = compared.row(name), compared.folder / name / "seed-0"
        left = scores(place / "with_demonstrations", "shots-4_seed-0")
        assert row.with_demonstrations.value == pytest.approx(statistics.fmean(left.values()))
        assert row.transfer.value == pytest.approx(statistics.fmean(scores(place / "transfer", "shots-0").values()))
        assert row.adapter_bytes == (place / "adapter" / "adapter_model.safetensors").stat().st_size
        assert row.training_seconds > 0
        assert row.training_cpu_seconds > 0
    layers, width = len(model.anatomy.layers), compared.row("task_vector").parameters
    assert compared.row("live").parameters == layers * (width + 1)


def test_the_budget_is_the_same_for_all(compared):
    held = json.loads((compared.folder / "live" / "seed-0" / "adapter" / "training" / "config.json").read_text())
    data = held["config"]["data"]
    assert (data["samples"], data["held_out"], data["shots"]) == (9, 3, 4)
    assert data["pool"] == 9  # nothing else is seen, demonstrations included
    trainer = held["used"]["trainer"]
    assert (trainer["learning_rate"], trainer["num_train_epochs"]) == (0.02, 1)
    assert held["seeds"]["0"]["steps"] == 3


def test_all_methods_see_the_same_labelled_examples(model, tmp_path, monkeypatch):
    task, budget, seen = load_task("concept_pair", **PAIR), Budget(shots=2, samples=12), {}
    monkeypatch.setattr(
        obtaining, "fit_method", lambda vlm, method, source, **options: seen.update({method: source}) or Nothing()
    )
    budget.obtain(model, task, "task_vector", 1, tmp_path / "task_vector", {})
    monkeypatch.setattr(obtaining, "distill", lambda out, **options: seen.update(options))
    budget.obtain(model, task, "live", 1, tmp_path / "live", {})
    names = ("shots", "samples", "held_out", "pool")
    items = DistillItems(task, **{name: seen[name] for name in names}, seed=seen["seeds"])
    assert {e.id for e in seen["task_vector"]} == {e.id for e in (*items.examples, *items.unseen)}
    assert len(seen["task_vector"]) == 12
    assert seen["trainer"] == {}  # as many steps as the method takes by itself


class Nothing:
    """An adapter that is not one."""

    active_peft_config = None

    def save_pretrained(self, *args, **options):
        pass

    def unload(self):
        pass


@pytest.mark.parametrize("method", ["prompt_tuning", "prefix_tuning"])
def test_methods_before_the_prompt_are_compared_too(model, tmp_path, method):
    task, budget = load_task("concept_pair", **PAIR), Budget(shots=2, samples=8, epochs=1)
    held = budget.obtain(model, task, method, 0, tmp_path, {"num_virtual_tokens": 2, "trainer": {"learning_rate": 1.0}})
    assert held["cpu_seconds"] > 0
    asked, names = [Episode((), task.queries[0])], [list(task.labels)]
    bare = model.score(asked, names)
    with adapter_in(model, tmp_path / "adapter", method):
        assert model.soft is not None
        assert model.soft.length == 2
        within = model.score(asked, names)
    assert model.soft is None
    assert model.score(asked, names) == bare
    loaded = kshot.load_model("tiny", adapter=tmp_path / "adapter")
    assert loaded.score(asked, names)[0] == pytest.approx(within[0], abs=1e-5)
    assert loaded.describe()["soft_prompt"] != ""
    assert max(abs(a - b) for a, b in zip(within[0], bare[0], strict=True)) > 1e-3


def test_times_and_memory_are_of_every_row_but_one(compared):
    for row in compared.rows:
        known = row.method != "format_only"
        assert (row.first_token_ms > 0 and row.token_ms > 0) == known
        assert (row.peak_mb > 10) == known
    assert compared.row("zero_shot").first_token_ratio == 1.0


def test_the_files_say_the_same(compared):
    with (compared.folder / "methods.csv").open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert [line["method"] for line in lines] == [row.method for row in compared.rows]
    for line, row in zip(lines, compared.rows, strict=True):
        assert float(line["score"]) == row.score.value
        assert line["gain"] == ("" if math.isnan(row.gain.value) else str(row.gain.value))
        assert (line["samples"], line["queries"], line["shots"]) == (
            "12",
            "12",
            "4" if row.method == "few_shot" else "0",
        )
        assert line["torch_version"] == torch.__version__
        assert line["first_seed"] == "0"
    held = json.loads((compared.folder / "methods.json").read_text(encoding="utf-8"))
    assert held["facts"]["budget_shots"] == 4
    assert held["rows"][0]["gain"] == {"value": None, "low": None, "high": None}
    text = (compared.folder / "methods.md").read_text(encoding="utf-8")
    assert all(f"| {row.method} |" in text for row in compared.rows)
    assert "Agreement of shifts" in text
    assert (compared.folder / "methods.png").read_bytes().startswith(b"\x89PNG")
    from rich.console import Console

    console = Console(width=250)
    with console.capture() as capture:
        console.print(compared)
    assert "task_vector" in capture.get()


def test_nothing_is_done_twice_and_methods_can_be_added(compared, model, monkeypatch):
    task, transfer = load_task("concept_pair", **PAIR), load_task("scenes", episodes=6)
    done = []
    monkeypatch.setattr(comparing, "measure", lambda *args, **options: done.append("measured"))
    monkeypatch.setattr(comparing, "shift_agreement", lambda *args, **options: done.append("agreement"))
    monkeypatch.setattr(comparing.Budget, "_train", lambda *args: done.append("trained"))
    monkeypatch.setattr(comparing.Budget, "_estimate", lambda *args: done.append("estimated"))
    monkeypatch.setattr(model, "answer", lambda *args, **options: done.append("answered"))
    again = compare_methods(model, task, methods="live,task_vector", out=compared.folder, transfer=transfer, **OPTIONS)
    assert not done
    assert again.csv() == compared.csv()
    fewer = compare_methods(model, task, methods="live", out=compared.folder, transfer=transfer, **OPTIONS)
    assert fewer.row("live") == compared.row("live")


def test_another_comparison_in_the_same_folder_is_refused(compared, model, tmp_path):
    task, transfer = load_task("concept_pair", **PAIR), load_task("scenes", episodes=6)
    with pytest.raises(OptionError, match="holds another comparison: samples: 12 -> 13"):
        compare_methods(model, task, out=compared.folder, transfer=transfer, **OPTIONS | {"samples": 13})
    with pytest.raises(OptionError, match=r"live.*was made with other options of live"):
        compare_methods(
            model,
            task,
            methods="live",
            out=compared.folder,
            transfer=transfer,
            options={"live": {"sigmoid": True}},
            **OPTIONS,
        )
    (tmp_path / "file").write_text("")
    with pytest.raises(OptionError, match="neither empty nor the folder of a comparison"):
        compare_methods(model, task, out=tmp_path, **OPTIONS)


def test_bad_input_is_refused_before_anything_is_done(model, tmp_path):
    task = load_task("concept_pair", **PAIR)
    for methods, error, message in (
        ("lvie", UnknownName, "did you mean"),
        ("zero_shot", OptionError, "is a baseline and always there"),
    ):
        with pytest.raises(error, match=message):
            compare_methods(model, task, methods=methods, out=tmp_path / "out", **OPTIONS)
    with pytest.raises(UnknownName, match="method in options"):
        compare_methods(model, task, methods="live", out=tmp_path / "out", options={"mimic": {}}, **OPTIONS)
    with pytest.raises(OptionError, match="samples=3: must be 8 or more"):
        compare_methods(model, task, out=tmp_path / "out", **OPTIONS | {"samples": 3})
    with pytest.raises(DataError, match="no support set that all its queries share"):
        compare_methods(model, load_task("glyphs", episodes=4), out=tmp_path / "out", **OPTIONS)
    assert not (tmp_path / "out").exists()


def test_the_command_says_what_is_wrong(capsys, tmp_path):
    words = ["compare-methods", "--model", "tiny", "--task", "concept_pair", "--out", str(tmp_path / "out")]
    assert main([*words, "--methods", "live", "--options.mimc.ce", "1.0"]) == 2
    assert "mimc" in capsys.readouterr().err
    assert main([*words, "--worlds", "glyphs"]) == 2
    assert "--world" in capsys.readouterr().err


@pytest.mark.parametrize(
    "recipe", sorted(path.name for path in files("kshot").joinpath("recipes", "compare").iterdir())
)
def test_recipes_are_read_as_the_command_line_reads_them(recipe):
    words = ["--config", str(files("kshot").joinpath("recipes", "compare", recipe)), "--transfer-options.root", "OKVQA"]
    given = parse("compare-methods", COMMANDS["compare-methods"], compare_methods, words)
    assert (given["shots"], given["samples"], given["seeds"], given["transfer"]) == (8, 1000, 3, "okvqa")
    assert given["transfer_options"] == {"root": "OKVQA"}
    assert given["model_options"] == {"dtype": "bfloat16"}
    assert wanted_methods(given["methods"])[:2] == ("live", "mimic")
    assert set(wanted_methods("all")) >= {"live", "mtv", "lora", "prompt_tuning", "prefix_tuning"}


# --- agreement ------------------------------------------------------------------------------------------------------------------


def test_the_mean_cosine_of_all_pairs():
    random = torch.Generator().manual_seed(0)
    vectors = torch.randn(5, 7, generator=random)
    every = [
        torch.nn.functional.cosine_similarity(vectors[i], vectors[j], dim=0)
        for i in range(5)
        for j in range(5)
        if i != j
    ]
    assert mean_cosine(vectors) == pytest.approx(float(torch.stack(every).mean()), abs=1e-6)
    assert mean_cosine(torch.ones(3, 4) * torch.tensor([[1.0], [2.0], [3.0]])) == pytest.approx(1.0)
    assert mean_cosine(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])) == pytest.approx(-1.0)


@torch.no_grad()
def test_shifts_are_those_of_the_hidden_states():
    vlm = VLM(*tiny.build("llava"))
    episodes = [episode(2, number, f"what is number {number}?") for number in (1, 2, 3)]
    found = shift_agreement(vlm, episodes, template=QA, style="plain", batch_size=2)

    def state(shown):
        inputs = vlm.inputs([vlm.encode(shown, QA, "plain")])
        return vlm.model(**inputs, output_hidden_states=True).hidden_states[1][0, -1]

    first = torch.stack([state(e) - state(Episode((), e.query)) for e in episodes])
    assert found.layers[0] == pytest.approx(mean_cosine(first), abs=1e-4)
    assert found.cosine == pytest.approx(statistics.fmean(found.layers))
    assert (found.queries, found.shots) == (3, 2)
    with pytest.raises(OptionError, match="at least two queries"):
        shift_agreement(vlm, episodes[:1], template=QA)


# --- times ----------------------------------------------------------------------------------------------------------------------


def test_a_slower_model_is_measured_as_slower():
    vlm = VLM(*tiny.build("llava"))
    prompt = vlm.encode(Episode((), episode(0).query), QA, "plain")

    @contextmanager
    def slowed():
        handle = vlm.model.register_forward_hook(lambda *args: time.sleep(0.25))
        try:
            yield
        finally:
            handle.remove()

    bare, (same, slow) = measure(vlm, prompt, [(prompt, nullcontext), (prompt, slowed)], rounds=1, tokens=2)
    assert slow.first >= 250
    assert slow.token >= 150  # the difference of two times: noise in the first of them is subtracted
    assert slow.token_ratio > 1.5 * same.token_ratio
    assert slow.first > bare.first


def test_peak_memory_sees_what_was_given_back():
    with peak_memory(torch.device("cpu")) as before:
        pass
    with peak_memory(torch.device("cpu")) as during:
        held = torch.ones(50_000_000)  # 200 MB
        del held
    assert during.megabytes - before.megabytes > 150
