"""The Trainer: what it optimises, what it repeats exactly, what it refuses."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from kshot.errors import ContextTooLong, KshotError, ModelError, OptionError, UnknownName
from kshot.models import VLM
from kshot.training.answers import AnswerObjective
from kshot.training.run import run, training_arguments
from kshot.training.trainer import complete_checkpoints
from tests.models import tiny
from tests.training.toys import Glyphs


def build(name: str) -> VLM:
    return VLM(*tiny.build(name))


@pytest.fixture
def vlm():
    return build("llava")


def steps(objective, folder, count=4, *, batch=2, accumulate=1, seed=0, config=None, **trainer):
    options = {
        "max_steps": count, "per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulate,
        "learning_rate": 1e-2, "save_steps": 2, "logging_steps": 1, **trainer,
    }  # fmt: skip
    return run(objective, folder, config=config or {}, trainer=options, seed=seed)


def plain_loss(vlm, objective, items):
    """Cross-entropy per graded token, one prompt at a time, from the model's full logits."""
    total, count = torch.zeros(()), 0
    for item in items:
        encoded, targets = objective.encode(item)
        logits = vlm.model(**vlm.inputs([encoded])).logits[0, :-1].float()
        wanted = torch.tensor(targets[1:])
        total = total + F.cross_entropy(logits, wanted, reduction="sum", ignore_index=-100)
        count += int((wanted != -100).sum())
    return total / count


@pytest.mark.parametrize("name", sorted(tiny.FAMILIES))
def test_loss_of_a_batch_is_that_of_its_prompts_one_by_one(name):
    vlm = build(name)
    shots = (2,) if vlm.encoder.dialect.equal_counts else (1, 3)
    objective = AnswerObjective(vlm, Glyphs(shots=shots, graded=not vlm.anatomy.prefix_lm))
    items = [objective.item(0, i) for i in range(3)]
    batch = objective.collate(items)
    with torch.no_grad():
        total, parts = objective.loss(vlm.model, batch)
        assert float(total / objective.amount(batch)) == pytest.approx(
            float(plain_loss(vlm, objective, items)), rel=2e-4
        )
    assert float(parts["answer_loss"]) > 0


def test_only_answers_are_learnt(vlm):
    objective = AnswerObjective(vlm, Glyphs())
    item = objective.item(0, 0)
    encoded, targets = objective.encode(item)
    learnt = vlm.tokenizer.decode([token for token in targets if token != -100])
    assert item.episode.query.text_answer in learnt
    assert all(
        d.text_answer not in learnt or d.text_answer == item.episode.query.text_answer
        for d in item.episode.demonstrations
    )
    end = vlm.tokenizer.eos_token_id
    assert targets[-1] == end or vlm.prompt(item.episode, item.template).style == "chat"
    assert len(targets) == len(encoded)


def test_graded_demonstrations_are_learnt_too(vlm):
    few = AnswerObjective(vlm, Glyphs(graded=False)).encode(Glyphs(graded=False).item(0, 0))[1]
    many = AnswerObjective(vlm, Glyphs(graded=True)).encode(Glyphs(graded=True).item(0, 0))[1]
    assert sum(t != -100 for t in many) > sum(t != -100 for t in few)


def test_features_and_pixels_give_the_same_loss(vlm):
    vlm.model.requires_grad_(False)
    plain, cached = AnswerObjective(vlm, Glyphs()), AnswerObjective(vlm, Glyphs(), features=True)
    items = [plain.item(0, i) for i in range(3)]
    with torch.no_grad():
        a = plain.loss(vlm.model, plain.collate(items))[0]
        b = [cached.loss(vlm.model, cached.collate(items))[0] for _ in range(2)]
    assert all(float(x) == pytest.approx(float(a), rel=1e-5) for x in b)
    assert vlm.reuse.statistics()["features"]["hits"] > 0


@pytest.mark.parametrize("name", ["llava", "idefics3", "smolvlm", "internvl"])
def test_packed_and_padded_batches_give_the_same_loss(name):
    vlm = build(name)
    padded, packed = AnswerObjective(vlm, Glyphs(graded=True)), AnswerObjective(vlm, Glyphs(graded=True), packed=True)
    items = [padded.item(0, i) for i in range(3)]
    a, b = padded.collate(items), packed.collate(items)
    assert b["targets"].shape[0] == 1
    assert padded.amount(a) == packed.amount(b)
    with torch.no_grad():
        assert float(packed.loss(vlm.model, b)[0]) == pytest.approx(float(padded.loss(vlm.model, a)[0]), rel=1e-4)


def test_a_model_that_cannot_be_packed_is_refused():
    with pytest.raises(ModelError, match="packed: false"):
        AnswerObjective(build("qwen2_vl"), Glyphs(), packed=True)


def test_accumulated_steps_equal_large_batches(tmp_path):
    """With plain gradient descent, whose steps (unlike Adam's) are as large as the gradient."""
    start = torch.cat([p.detach().flatten() for p in build("llava").model.parameters()])
    moves = []
    for batch, accumulate in ((4, 1), (2, 2), (1, 4)):
        vlm = build("llava")
        objective = AnswerObjective(vlm, Glyphs(graded=True))
        folder = tmp_path / str(batch)
        steps(
            objective, folder, 2, batch=batch, accumulate=accumulate, optim="sgd", learning_rate=0.1, max_grad_norm=0.0
        )
        moves.append(torch.cat([p.detach().flatten() for p in vlm.model.parameters()]) - start)
    for other in moves[1:]:
        assert float((other - moves[0]).norm() / moves[0].norm()) < 1e-3


def test_training_lowers_the_loss_and_writes_a_log(vlm, tmp_path):
    objective = AnswerObjective(vlm, Glyphs(size=4), summary=0.5)
    steps(objective, tmp_path, 12, batch=4)
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    losses = [entry["answer_loss"] for entry in log if "answer_loss" in entry]
    assert len(losses) == 12
    assert losses[-1] < losses[0] / 2
    assert all("summary_loss" in entry and "learning_rate" in entry for entry in log if "loss" in entry)


def weights_of(folder):
    return load_file(complete_checkpoints(folder)[-1] / "model.safetensors")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_ends_with_the_same_bits(workers, tmp_path, monkeypatch):
    def train(folder, count):
        torch.manual_seed(99)  # the global state must not matter
        return steps(
            AnswerObjective(build("llava"), Glyphs(size=7)), folder, 8, dataloader_num_workers=workers, **count
        )

    class Killed(Exception):
        pass

    train(tmp_path / "whole", {})
    from kshot.training import trainer as module

    seen = []
    original = module.KshotTrainer._save_checkpoint

    def die_at_second(self, *args):
        seen.append(1)
        if len(seen) == 2:  # in the middle of writing: the checkpoint is there but not complete
            super(module.KshotTrainer, self)._save_checkpoint(*args)
            raise Killed
        original(self, *args)

    with monkeypatch.context() as patched:
        patched.setattr(module.KshotTrainer, "_save_checkpoint", die_at_second)
        with pytest.raises(Killed):
            train(tmp_path / "cut", {})
    assert (tmp_path / "cut" / "checkpoint-4").exists()
    assert [path.name for path in complete_checkpoints(tmp_path / "cut")] == ["checkpoint-2"]
    train(tmp_path / "cut", {})
    a, b = weights_of(tmp_path / "whole"), weights_of(tmp_path / "cut")
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_items_do_not_depend_on_loader_workers(vlm, tmp_path):
    def batches(workers):
        objective = AnswerObjective(vlm, Glyphs(size=6))
        made = steps(objective, tmp_path / str(workers), 1, batch=2, dataloader_num_workers=workers)
        made.sampler.epoch = 1
        return [batch["inputs"]["input_ids"] for batch in made.get_train_dataloader()]

    for a, b in zip(batches(0), batches(2), strict=True):
        assert torch.equal(a, b)


def test_epochs_differ_in_order_and_in_demonstrations(vlm):
    objective = AnswerObjective(vlm, Glyphs(size=8))
    assert list(objective.order(0)) != list(objective.order(1))
    assert sorted(objective.order(0)) == sorted(objective.order(1)) == list(range(8))
    ids = [[d.id for d in objective.item(epoch, 3).episode.demonstrations] for epoch in (0, 1, 0)]
    assert ids[0] == ids[2] != ids[1]


def test_other_options_are_not_resumed(vlm, tmp_path):
    objective = AnswerObjective(vlm, Glyphs())
    steps(objective, tmp_path, 2, config={"data": {"shots": 2}})
    with pytest.raises(OptionError, match=r"data\.shots: 2 then, 4 now"):
        steps(objective, tmp_path, 2, config={"data": {"shots": 4}})
    with pytest.raises(OptionError, match=r"trainer\.learning_rate"):
        steps(objective, tmp_path, 2, config={"data": {"shots": 2}}, learning_rate=1e-3)


def test_a_prompt_that_is_too_long_is_found_before_the_first_step(vlm):
    from dataclasses import replace

    vlm.anatomy = replace(vlm.anatomy, max_context=20)
    with pytest.raises(ContextTooLong, match="use fewer"):
        AnswerObjective(vlm, Glyphs())


def test_unequal_images_where_a_model_needs_equal_ones():
    objective = AnswerObjective(build("mllama"), Glyphs(shots=(1, 3)))
    items = [objective.item(0, i) for i in range(8)]
    with pytest.raises(OptionError, match="per_device_train_batch_size"):
        objective.collate(items)


@pytest.mark.parametrize(
    ("trainer", "error", "says"),
    [
        ({"learning_rat": 1}, UnknownName, "learning_rate"),
        ({"output_dir": "x"}, OptionError, "use out"),
        ({"lr_scheduler_type": "cosin"}, OptionError, "cosin"),
    ],
)
def test_wrong_arguments_of_the_trainer(trainer, error, says, tmp_path):
    with pytest.raises(error, match=says) as caught:
        training_arguments(tmp_path, trainer, 0)
    assert isinstance(caught.value, KshotError)


def test_the_probe_of_the_summary_loss_is_taken_out(vlm):
    before = set(vlm.model.state_dict())
    objective = AnswerObjective(vlm, Glyphs(), summary=1.0)
    assert set(vlm.model.state_dict()) != before
    objective.summary.remove()
    assert set(vlm.model.state_dict()) == before
    assert isinstance(vlm, VLM)
