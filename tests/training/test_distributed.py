"""Several processes: the same items, the same losses, nothing that silently is not what was asked for."""

from __future__ import annotations

import importlib.util
import json
from collections import Counter

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from safetensors.torch import load_file
from torch.utils.data import BatchSampler

from kshot.errors import OptionError
from kshot.models import VLM
from kshot.training.answers import AnswerObjective
from kshot.training.run import _sharding, run, training_arguments
from kshot.training.trainer import Collator, KeyedDataset, KeySampler
from tests.models import tiny
from tests.training.processes import Group, kill_when, train
from tests.training.sharded import descend, fully_sharded, objective, train_as_on_accelerators
from tests.training.toys import Glyphs


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "llava"
    made, processor = tiny.build("llava")
    made.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def words(model, out, batch, summary=0, **trainer):
    options = {
        "max_steps": 6,
        "per_device_train_batch_size": batch,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_steps": 2,
    }
    return [
        *("--model", str(model), "--out", str(out), "--summary", str(summary), "--data.glyphs.kind", "task"),
        *("--data.glyphs.task", "glyphs", "--data.glyphs.of", "queries", "--data.glyphs.shots", "2"),
        *("--data.glyphs.options.episodes", "9"),
        *(word for name, value in (options | trainer).items() for word in (f"--trainer.{name}", str(value))),
    ]  # fmt: skip


def log(folder):
    lines = [json.loads(line) for line in (folder / "training" / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


@pytest.fixture(scope="module")
def alone(model, tmp_path_factory):
    """The result of one process with batches of four: 9 items, so that the last step of an epoch has a single one."""
    folder = tmp_path_factory.mktemp("alone")
    made = train(words(model, folder / "out", 4), folder / "said")
    assert made.wait() == [0], made.said
    return folder


@pytest.mark.parametrize("count", [1, 7, 8, 9])
def test_ranks_share_the_items_of_an_epoch(count):
    """Each item once, and in each step those that a single process would have; what is left over does not count."""

    class Numbers:
        def __len__(self):
            return count

        def order(self, epoch):
            return reversed(range(count))

    ranks, batch = 2, 2
    steps = []
    for rank in range(ranks):
        batches = BatchSampler(KeySampler(Numbers(), ranks * batch), batch, drop_last=False)
        steps.append([[i for _, i, counts in keys if counts] for keys in BatchSamplerShard(batches, ranks, rank)])
    assert len(steps[0]) == len(steps[1]) == -(-count // 4)
    assert Counter(i for rank in steps for keys in rank for i in keys) == Counter(range(count))
    order = list(reversed(range(count)))
    assert [a + b for a, b in zip(*steps, strict=True)] == [order[i : i + 4] for i in range(0, count, 4)]


def test_a_batch_without_items_of_its_own_changes_nothing():
    made = AnswerObjective(VLM(*tiny.build("llava")), Glyphs(), summary=0.5)
    data = KeyedDataset(made)
    batch = Collator(made)([data[0, 3, False], data[0, 3, False]])
    assert made.amount(batch) == 0
    made.loss(made.model, batch)[0].backward()
    assert all(not p.grad.any() for p in made.model.parameters() if p.grad is not None)
    assert made.summary.probe.weight.grad is not None  # otherwise the ranks would wait for it
    mixed = Collator(made)([data[0, 3, True], data[0, 4, False]])
    assert torch.equal(mixed["targets"], made.collate([made.item(0, 3)])["targets"])


def test_two_processes_learn_what_one_does(alone, model, tmp_path):
    two = train(words(model, tmp_path / "out", 2), tmp_path / "said", ranks=2)
    assert two.wait() == [0, 0], two.said
    a, b = log(alone / "out"), log(tmp_path / "out")
    assert [entry["step"] for entry in a] == [entry["step"] for entry in b] == [1, 2, 3, 4, 5, 6]
    for name in ("loss", "answer_loss", "learning_rate", "grad_norm"):
        assert [e[name] for e in b] == pytest.approx([e[name] for e in a], rel=1e-4), name
    record = json.loads((tmp_path / "out" / "training" / "config.json").read_text())
    assert record["world_size"] == 2
    # Going on alone would be another run.
    (tmp_path / "out").rename(tmp_path / "moved")
    refused = train(words(model, tmp_path / "out", 2), tmp_path / "refused")
    assert refused.wait() == [2]
    assert refused.said.count("\n") == 1
    assert "world_size: 2 then, 1 now" in refused.said


def test_real_sharding_gives_what_a_whole_model_gives(tmp_path):
    """FSDP2 (``fully_shard``) over two processes: loss, summary loss, gradients, and the parameters gathered again."""
    group = Group(fully_sharded, [str(tmp_path)], tmp_path / "said", ranks=2)
    made = objective()
    losses = descend(made, made.model)
    assert group.wait() == [0, 0], group.said
    facts = json.loads((tmp_path / "facts.json").read_text())
    assert facts["losses"] == pytest.approx(losses, rel=1e-5)
    assert 0.4 < facts["held"] / facts["whole"] < 0.6
    gathered, whole = load_file(tmp_path / "model.safetensors"), made.model.state_dict()
    assert gathered.keys() == whole.keys()
    assert "summary_probe.weight" in gathered
    start = objective().model.state_dict()
    moved = torch.cat([(whole[name] - start[name]).flatten() for name in whole])
    error = torch.cat([(whole[name] - gathered[name]).flatten() for name in whole])
    assert float(moved.norm()) > 0
    assert float(error.norm() / moved.norm()) < 1e-4


@pytest.mark.parametrize("method", ["full", "lora"])
def test_sharding_through_the_trainer(method, model, tmp_path):
    """The command with ``trainer.fsdp``, killed once; accelerate shards on accelerators only, so it is told that there are some."""

    summary, more = (0.3, []) if method == "full" else (0, ["--method", "lora", "--lora.r", "4"])

    def start():
        given = [[*words(model, tmp_path / "out", 2, summary, fsdp="true"), *more]]
        return Group(train_as_on_accelerators, given, tmp_path / "said", ranks=2)

    replicated = train([*words(model, tmp_path / "plain", 2, summary), *more], tmp_path / "said-plain", ranks=2)
    assert replicated.wait() == [0, 0], replicated.said
    kill_when(start(), (tmp_path / "out.work" / "checkpoint-2" / "complete").exists)
    last = start()
    assert last.wait() == [0, 0], last.said
    assert "sharded by accelerate" in last.said
    a, b = log(tmp_path / "plain"), log(tmp_path / "out")
    assert [entry["step"] for entry in b] == [1, 2, 3, 4, 5, 6]
    for name in ("loss", "answer_loss", *(["summary_loss"] if summary else [])):
        assert [e[name] for e in b] == pytest.approx([e[name] for e in a], rel=1e-3), name
    file = "model.safetensors" if method == "full" else "adapter_model.safetensors"
    whole, sharded = (load_file(tmp_path / name / file) for name in ("plain", "out"))
    assert {key: value.shape for key, value in whole.items()} == {key: value.shape for key, value in sharded.items()}
    if method == "lora":
        return
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["LlavaForConditionalGeneration"]


def test_sharding_that_would_not_happen_is_an_error(model, tmp_path, monkeypatch):
    monkeypatch.delenv("ACCELERATE_USE_FSDP", raising=False)
    made = AnswerObjective(VLM(*tiny.build("llava")), Glyphs())
    with pytest.raises(OptionError, match="fsdp only works in distributed training"):
        run(made, tmp_path / "work", config={}, trainer={"fsdp": True, "max_steps": 1}, seed=0)
    assert not (tmp_path / "work").exists()  # no record that the next attempt would contradict
    two = train(words(model, tmp_path / "out", 2, fsdp="true"), tmp_path / "said", ranks=2)
    assert two.wait() == [2, 2], two.said
    assert "trainer.fsdp: accelerate does not shard models on the CPU (it would train with MULTI_CPU)" in two.said
    assert not (tmp_path / "out.work" / "config.json").exists()


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3", "mllama"])
def test_the_layers_to_shard_are_ones_that_the_model_has(name):
    vlm = VLM(*tiny.build(name))
    layers = _sharding({"fsdp": True}, vlm.model)["fsdp_config"]["transformer_layer_cls_to_wrap"]
    assert {type(layer).__name__ for layer in vlm.anatomy.layers} <= set(layers)
    assert set(layers) <= {type(module).__name__ for module in vlm.model.modules()}
    named = {"fsdp": True, "fsdp_config": {"transformer_layer_cls_to_wrap": ["Mine"]}}
    assert _sharding(named, vlm.model) == named
    assert _sharding({}, vlm.model) == {}


def test_settings_of_sharding_reach_the_trainer(tmp_path, monkeypatch):
    monkeypatch.delenv("ACCELERATE_USE_FSDP", raising=False)
    given = {"fsdp": True, "fsdp_config": {"transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"], "cpu_offload": True}}
    made = training_arguments(tmp_path, given, 0)
    assert made.fsdp is True
    assert made.fsdp_plugin_args["fsdp_version"] == 2
    assert made.fsdp_plugin_args["transformer_cls_names_to_wrap"] == "LlamaDecoderLayer"
    assert made.fsdp_plugin_args["cpu_offload"] is True


@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is not None, reason="deepspeed is installed")
def test_deepspeed_that_is_not_installed(tmp_path):
    with pytest.raises(OptionError, match="pip install deepspeed"):
        training_arguments(tmp_path, {"deepspeed": {"zero_optimization": {"stage": 2}}}, 0)


@pytest.mark.parametrize("name", sorted(tiny.FAMILIES))
def test_no_parameter_is_a_scalar(name):
    """``fully_shard`` refuses parameters without dimensions."""
    vlm = VLM(*tiny.build(name))
    assert all(parameter.ndim for parameter in vlm.model.parameters())
