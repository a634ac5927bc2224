"""``kshot train`` from the command line to a folder that others can read, and what it says when it cannot."""

from __future__ import annotations

import json
import shutil

import pytest
from PIL import Image
from safetensors.torch import load_file

from kshot.cli import main
from kshot.models.loading import EMBEDDED
from kshot.training import outcome, train_answers
from tests.models import tiny
from tests.training.processes import Group

RECIPE = """
model: tiny
data:
  glyphs: {kind: task, task: glyphs, of: queries, shots: 4, options: {episodes: 6}}
  sums: {kind: task, task: digits, of: queries, shots: 0, share: 0.5}
items: 12
trainer: {max_steps: 8, per_device_train_batch_size: 2, save_steps: 3, learning_rate: 0.001, logging_steps: 2}
"""
GLYPHS = [
    *("--model", "tiny", "--data.glyphs.kind", "task", "--data.glyphs.task", "glyphs", "--data.glyphs.of", "queries"),
    *("--data.glyphs.shots", "2", "--data.glyphs.options.episodes", "4"),
    *("--trainer.max_steps", "2", "--trainer.per_device_train_batch_size", "1"),
]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    file = tmp_path_factory.mktemp("recipe") / "train.yaml"
    file.write_text(RECIPE)
    return file


@pytest.fixture(scope="module")
def trained(recipe, tmp_path_factory):
    out = tmp_path_factory.mktemp("trained") / "model"
    assert main(command(recipe, out)) == 0
    return out


def command(recipe, out, *more):
    overrides = ["--data.glyphs.shots", "2", "--data.glyphs.share", "0.5", "--trainer.learning_rate", "1e-4", *more]
    return ["train", "--config", str(recipe), "--out", str(out), *overrides]


def test_the_result_is_a_plain_model_of_transformers(trained):
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    model, report = LlavaForConditionalGeneration.from_pretrained(trained, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    processor = AutoProcessor.from_pretrained(trained)
    inputs = processor(images=[Image.new("RGB", (64, 64))], text="<image>\nwhat?", return_tensors="pt")
    assert model(**inputs).logits.shape[:2] == inputs["input_ids"].shape
    before, after = load_file(EMBEDDED / "tiny" / "model.safetensors"), load_file(trained / "model.safetensors")
    assert before.keys() == after.keys()
    changed = {name for name in before if not before[name].float().equal(after[name].float())}
    assert changed
    assert not any("vision_tower" in name for name in changed)


def test_the_result_is_a_model_of_ours(trained, capsys):
    assert (
        main(
            [
                "evaluate",
                "--model",
                str(trained),
                "--task",
                "glyphs",
                "--episodes",
                "4",
                "--shots",
                "2",
                "--controls",
                "none",
            ]
        )
        == 0
    )


def test_the_record_of_training(trained):
    held = json.loads((trained / "training" / "config.json").read_text())
    assert held["request"]["trainer"]["learning_rate"] == held["trainer"]["learning_rate"] == 1e-4
    assert held["request"]["data"]["glyphs"]["shots"] == held["config"]["data"]["parts"]["glyphs"]["shots"] == 2
    assert held["config"]["model"]["weights"]
    log = [json.loads(line) for line in (trained / "training" / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log if "loss" in entry] == [2, 4, 6, 8]
    assert all({"answer_loss", "learning_rate", "grad_norm"} <= entry.keys() for entry in log if "loss" in entry)
    with Image.open(trained / "training" / "loss.png") as picture:
        assert picture.width > 800
        assert len(picture.convert("RGB").getcolors(1 << 20)) > 20


def test_a_finished_run_is_not_repeated(trained, recipe, capsys, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("nothing is to be loaded")

    monkeypatch.setattr(train_answers, "load_model", refuse)
    monkeypatch.setattr(train_answers, "load_source", refuse)
    assert main(command(recipe, trained)) == 0
    assert "was finished before" in capsys.readouterr().err
    assert main(command(recipe, trained, "--trainer.logging_steps", "5")) == 0  # changes no result
    assert main(command(recipe, trained, "--trainer.max_steps", "9")) == 2
    assert main(command(recipe, trained, "--seed", "4")) == 2
    said = capsys.readouterr().err
    assert "holds the result of a run with other options (trainer)" in said
    assert "holds the result of a run with other options (seed)" in said


def test_a_result_that_was_lost_is_written_again_without_training(trained, recipe, tmp_path, monkeypatch):
    out = tmp_path / "model"
    shutil.copytree(trained.with_name("model.work"), tmp_path / "model.work")

    def refuse(*args, **kwargs):
        raise AssertionError("nothing is to be trained")

    monkeypatch.setattr(train_answers.AnswerObjective, "loss", refuse)
    assert main(command(recipe, out)) == 0
    a, b = load_file(trained / "model.safetensors"), load_file(out / "model.safetensors")
    assert all(a[name].equal(b[name]) for name in a)


def test_features_kept_or_computed_again_learn_the_same(tmp_path):
    words = [
        "train",
        *GLYPHS,
        "--freeze",
        "vision+projector",
        "--trainer.num_train_epochs",
        "3",
        "--trainer.max_steps",
        "6",
    ]
    assert main([*words, "--out", str(tmp_path / "pixels")]) == 0
    assert main([*words, "--features", "true", "--out", str(tmp_path / "features")]) == 0
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("pixels", "features"))
    start = load_file(EMBEDDED / "tiny" / "model.safetensors")
    moved = max(float((a[name] - start[name].float()).abs().max()) for name in a)
    assert max(float((a[name] - b[name]).abs().max()) for name in a) < 0.1 * moved


def test_another_configuration_is_not_resumed(trained, recipe, tmp_path, capsys):
    work = shutil.copytree(trained.with_name("model.work"), tmp_path / "model.work")
    assert main(command(recipe, tmp_path / "model", "--data.glyphs.shots", "4")) == 2
    said = capsys.readouterr().err
    assert "config.data.parts.glyphs.shots: 2 then, 4 now" in said
    assert str(work) in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("what", ["notes.txt", "model.safetensors", "training/config.json"])
def test_a_folder_that_is_something_else_is_left_alone(what, tmp_path, capsys):
    mine = tmp_path / "out" / what
    mine.parent.mkdir(parents=True)
    mine.write_text("precious")
    assert main(["train", *GLYPHS, "--out", str(tmp_path / "out")]) == 2
    assert "is not the result of a training run: choose another folder" in capsys.readouterr().err
    assert mine.read_text() == "precious"
    assert not (tmp_path / "out.work").exists()


def test_a_file_in_the_place_of_the_result(tmp_path, capsys):
    (tmp_path / "out").write_text("precious")
    assert main(["train", *GLYPHS, "--out", str(tmp_path / "out")]) == 2
    assert main(["train", *GLYPHS, "--out", str(tmp_path / "out" / "model")]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert "cannot be written" in said[1]
    assert (tmp_path / "out").read_text() == "precious"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--model", "tiny"], "data: name at least one source"),
        (["--model", "tiny", "--data.a", "b"], "data.a='b': must hold options"),
        (["--model", "tiny", "--data.a.shots", "2"], "data.a: needs a kind"),
        (["--model", "tiny", "--data.a.kind", "lnk"], "unknown training source 'lnk': did you mean 'link'"),
        ([*GLYPHS, "--data.glyphs.task", "glyphz"], "glyphs"),
        ([*GLYPHS, "--data.glyphs.shotz", "2"], "shotz"),
        ([*GLYPHS, "--data.glyphs.share", "0.7"], "shares sum to 0.7, not to 1"),
        ([*GLYPHS, "--data.glyphs.share", "many"], "data.glyphs.share='many'"),
        (
            [
                *GLYPHS,
                "--data.b.kind",
                "task",
                "--data.b.task",
                "glyphs",
                "--data.b.of",
                "queries",
                "--data.b.share",
                "0.5",
            ],
            "glyphs without a share",
        ),
        ([*GLYPHS, "--model", "tinny"], "tiny"),
        ([*GLYPHS, "--freeze", "vison"], "freeze"),
        ([*GLYPHS, "--trainer.learning_rat", "1"], "learning_rate"),
        ([*GLYPHS, "--trainer.learning_rate", "fast"], "trainer.learning_rate='fast': must be a number"),
        ([*GLYPHS, "--trainer.max_steps", "2.5"], "must be a whole number"),
        ([*GLYPHS, "--trainer.bf16", "often"], "must be true or false"),
        (["--objective", "answrs"], "unknown objective 'answrs': did you mean 'answers'"),
        ([*GLYPHS, "--method", "lora", "--lora.r", "0"], "lora"),
        ([*GLYPHS, "--trainer.deepspeed.zero_optimization.stage", "2"], "deepspeed"),
        ([*GLYPHS, "--trainer.fsdp", "true"], "fsdp only works in distributed training"),
        ([*GLYPHS, "--wrk", "x"], "--work"),
    ],
)
def test_bad_options_are_told_in_one_line(words, says, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("ACCELERATE_USE_FSDP", raising=False)
    assert main(["train", *words, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("kshot: error: ")
    assert said.count("\n") == 1
    assert says in said
    assert not (tmp_path / "out").exists()


def test_a_context_that_is_too_long_is_found_before_the_first_step(tmp_path, capsys, monkeypatch):
    from dataclasses import replace

    load = train_answers.load_model

    def small(*args, **kwargs):
        vlm = load(*args, **kwargs)
        vlm.anatomy = replace(vlm.anatomy, max_context=40)
        return vlm

    monkeypatch.setattr(train_answers, "load_model", small)
    assert main(["train", *GLYPHS, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "but tiny takes 40: use fewer than its 2 shots" in said
    assert not (tmp_path / "out.work").exists()


def with_little_space(words: list[str], most: int) -> int:
    """The command where no file may become larger than ``most`` bytes."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    return main(words)


@pytest.mark.parametrize("most", [1_000, 10_000_000])
def test_a_full_disk(most, tmp_path):
    """At the first file, and at a later one of a checkpoint; with space again, the run goes on."""
    words = ["train", *GLYPHS, "--out", str(tmp_path / "out")]
    full = Group(with_little_space, [words, most], tmp_path / f"said-{most}")
    assert full.wait() == [2], full.said
    assert full.said.count("\n") == 1
    assert "cannot be written" in full.said
    assert not (tmp_path / "out").exists()
    assert main(words) == 0
    assert (tmp_path / "out" / outcome.RECORD / "loss.png").exists()


def test_what_is_trained_is_shown_all_images(tmp_path):
    """Also if the checkpoint that training begins with was converted for its last image only."""
    model, processor = tiny.build("llava")
    model.config.kshot_image_mode = "last_only"
    model.save_pretrained(tmp_path / "start")
    processor.save_pretrained(tmp_path / "start")
    data = {"words": {"kind": "task", "task": "glyphs", "of": "queries", "options": {"episodes": 4}}}
    train_answers.train_answers(
        str(tmp_path / "out"), model=str(tmp_path / "start"), data=data, trainer={"max_steps": 1}
    )
    assert json.loads((tmp_path / "start" / "config.json").read_text())["kshot_image_mode"] == "last_only"
    assert json.loads((tmp_path / "out" / "config.json").read_text())["kshot_image_mode"] == "all"
