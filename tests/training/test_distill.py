"""Distillation: losses against their formulas, alignment, demonstrations, the teacher's cache, and the command."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from torch.nn import functional

import kshot
from kshot.cli import main
from kshot.data.task import load_task
from kshot.episode import Episode
from kshot.errors import CannotWrite, ModelError, OptionError
from kshot.models.anatomy import Ability
from kshot.models.loading import EMBEDDED
from kshot.models.vlm import VLM
from kshot.training.alignment import Watch, common_span
from kshot.training.distill import distill
from kshot.training.distill_adapter import add_adapter, parameter_groups, remove_adapter
from kshot.training.distill_items import DistillItems
from kshot.training.distill_losses import Losses, distance, divergence, most_probable
from kshot.training.distill_objective import DistillObjective
from kshot.training.distill_plans import QUICK, SMALL, Plan, chosen_losses, plan_of
from kshot.training.held_out import EpochChoice
from kshot.training.teacher_cache import TeacherCache
from tests.models import tiny

LIVE, MIMIC = plan_of("live").losses, plan_of("mimic").losses
BOTH = Losses(kl=1.0, align=1.0, ce=0.5)


@pytest.fixture(scope="module")
def vlm():
    return kshot.load_model("tiny")


def colour():
    return load_task("scenes", tasks=["colour"], episodes=8)


def items(**options):
    return DistillItems(colour(), **({"shots": 3, "samples": 6, "held_out": 4} | options))


def step(objective, batch):
    """The loss of a step that consists of this batch."""
    total, parts = objective.loss(objective.model, batch)
    return (total.detach() / torch.tensor(objective.amount(batch))).sum().item(), {
        name: float(v.detach()) for name, v in parts.items()
    }


def batch_of(objective, epoch=0, count=3):
    return objective.collate([objective.item(epoch, index) for index in range(count)])


# --- losses ---------------------------------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 2**20), temperature=st.sampled_from([0.5, 1.0, 2.0]), k=st.integers(1, 12))
def test_the_divergence_of_the_most_probable_tokens(seed, temperature, k):
    random = torch.Generator().manual_seed(seed)
    teacher, student = torch.randn(4, 9, generator=random) * 4, torch.randn(4, 9, generator=random) * 4
    every, none = most_probable(teacher, temperature, None)
    exact = divergence(every, student, temperature, none)
    p, q = (teacher / temperature).softmax(-1), (student / temperature).softmax(-1)
    assert float(exact) == pytest.approx(float(temperature**2 * (p * (p / q).log()).sum()), rel=1e-4, abs=1e-5)
    some = divergence(*_with(most_probable(teacher, temperature, k), student, temperature))
    assert float(some) <= float(exact) + 1e-4
    assert float(some) >= -1e-5
    if k >= 8:  # with all but one named, the rest is that one
        assert float(some) == pytest.approx(float(exact), rel=1e-4, abs=1e-5)


def _with(said, student, temperature):
    return said[0], student, temperature, said[1]


def test_a_certain_teacher_gives_no_nan():
    teacher = torch.tensor([[200.0, 0.0, -200.0]])
    student = torch.randn(1, 3, requires_grad=True)
    for k in (None, 1, 2):
        log_probs, indices = most_probable(teacher, 1.0, k)
        loss = divergence(log_probs, student, 1.0, indices)
        (gradient,) = torch.autograd.grad(loss, student)
        assert torch.isfinite(loss)
        assert torch.isfinite(gradient).all()


def test_the_distance_of_hidden_states_is_a_mean_for_each_query():
    one, other = [torch.ones(2, 3, 4), torch.ones(2, 5, 4)], [torch.zeros(2, 3, 4), 3 * torch.ones(2, 5, 4)]
    assert float(distance(one, other, "mse")) == 1 + 4
    assert float(distance(one, [torch.zeros(2, 3, 4) - 1, 3 * torch.ones(2, 5, 4)], "cosine")) == pytest.approx(2)


def test_the_methods_are_trained_as_in_their_papers():
    assert (LIVE.kl, LIVE.align, LIVE.ce, LIVE.temperature) == (1.0, 0.0, 0.5, 1.0)
    assert (MIMIC.kl, MIMIC.align, MIMIC.ce, MIMIC.align_to, MIMIC.align_by) == (0.0, 1.0, 0.5, "mlp", "mse")
    assert not plan_of("lora").losses.teacher
    assert chosen_losses(plan_of("live"), False) == Losses()
    assert chosen_losses(plan_of("lora"), True) == LIVE
    assert chosen_losses(plan_of("mimic"), None, align_by="cosine", ce=0.0) == replace(MIMIC, align_by="cosine", ce=0.0)
    with pytest.raises(OptionError, match="switched off"):
        chosen_losses(plan_of("live"), False, kl=1.0)
    with pytest.raises(OptionError, match="align_to='head'"):
        Losses(align_to="head")  # type: ignore[arg-type]


def test_small_models_have_settings_of_their_own():
    for method in QUICK:
        small, large = plan_of(method, SMALL - 1), plan_of(method, SMALL)
        assert large == plan_of(method)
        assert small.losses == large.losses  # what is learnt is the paper's, how fast is not
        assert small.settings({})["max_steps"] == small.steps
        assert "max_steps" not in large.settings({})
        assert "max_steps" not in small.settings({"num_train_epochs": 2})
        assert small.settings({"learning_rate": 0.5})["learning_rate"] == 0.5
    assert plan_of("somebody's", 5) == Plan()


# --- demonstrations -------------------------------------------------------------------------------------------------------------


@settings(max_examples=12)
@given(seed=st.integers(0, 99), epoch=st.integers(0, 9), fixed=st.booleans(), own=st.booleans())
def test_demonstrations_are_never_the_query_nor_held_out(seed, epoch, fixed, own):
    made = items(seed=seed, demonstrations="fixed" if fixed else "redrawn", pool="samples" if own else "support")
    unseen = {example.id for example in made.unseen}
    queries = {example.id for example in made.examples}
    assert len(unseen) == 4
    assert not unseen & queries
    assert not any(query.id in queries | unseen for query in made.task.queries)
    for index in range(len(made)):
        item = made.item(epoch, index)
        shown = [example.id for example in item.taught.demonstrations]
        assert len(set(shown)) == 3
        assert not set(shown) & {item.taught.query.id, *unseen}
        assert not own or set(shown) <= queries
        assert ids(item.taught) == ids(made.item(epoch, index).taught)
        assert ids(item.asked) == [item.taught.query.id]


def ids(episode):
    return [example.id for example in (*episode.demonstrations, episode.query)]


def test_demonstrations_are_redrawn_in_each_epoch_or_fixed():
    redrawn, fixed = items(), items(demonstrations="fixed")
    assert [ids(redrawn.item(0, i).taught) for i in range(6)] != [ids(redrawn.item(1, i).taught) for i in range(6)]
    assert [ids(fixed.item(0, i).taught) for i in range(6)] == [ids(fixed.item(7, i).taught) for i in range(6)]
    assert [e.id for e in items(seed=1).examples] != [e.id for e in redrawn.examples]
    assert [e.id for e in items(seed=1).unseen] == [e.id for e in redrawn.unseen]


def test_a_share_of_the_students_keeps_the_demonstrations():
    made = items(samples=60, mix=0.5)
    kept = [made.item(epoch, index).asked.shots for epoch in range(4) for index in range(60)]
    assert set(kept) == {0, 3}
    assert 80 < kept.count(3) < 160
    assert kept[:60] != kept[60:120]


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("glyphs", {}, "no support set"),
        ("scenes", {"shots": 600}, "600 shots"),
        ("scenes", {"samples": 600}, "take fewer"),
        ("scenes", {"pool": "samples", "shots": 6}, "5 examples to show"),
        ("scenes", {"mix": 1.5}, "between 0 and 1"),
    ],
)
def test_a_support_set_that_does_not_do(task, options, message):
    made = load_task(task, **({"tasks": ["colour"]} if task == "scenes" else {}), episodes=4)
    with pytest.raises(OptionError, match=message):
        DistillItems(made, **({"shots": 3, "samples": 6} | options))


def test_test_queries_are_not_trained_on():
    class Same(type(colour())):  # type: ignore[misc]
        support = property(lambda self: self.queries)

    with pytest.raises(OptionError, match="training on the test"):
        DistillItems(Same(tasks=["colour"], episodes=50), shots=2, samples=6)


# --- teacher and student --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", ["chat", "plain"])
def test_the_loss_is_that_of_whole_passes(vlm, style):
    """Against a plain computation: one prompt at a time, all logits, all hidden states."""
    made = add_adapter(vlm, "mimic", {}, 0)
    try:
        shift(made)
        objective = DistillObjective(vlm, items(), replace(BOTH, temperature=2.0), model=made, style=style)
        loss, parts = step(objective, batch_of(objective))
        kl = ce = align = tokens = 0.0
        for index in range(3):
            item = objective.item(0, index)
            student, teacher = objective.row(item.asked).prompt, objective.row(item.taught).prompt
            span = common_span(student.tokens, teacher.tokens)
            answer = len(objective.row(item.asked).targets)
            end = vlm.tokenizer.eos_token_id if style == "plain" else vlm.model.generation_config.eos_token_id
            assert student.tokens.ids[-1] in (end if isinstance(end, list) else [end])
            with torch.no_grad():
                own, own_states = whole(vlm, vlm.model, student)
                with made.disable_adapter():
                    aim, aim_states = whole(vlm, vlm.model, teacher)
            p = (aim[-answer - 1 : -1] / 2).softmax(-1)
            q = (own[-answer - 1 : -1] / 2).log_softmax(-1)
            kl += 4 * float((p * (p.log() - q)).sum())
            targets = torch.tensor(student.tokens.ids[-answer:])
            ce += float(functional.cross_entropy(own[-answer - 1 : -1], targets, reduction="sum"))
            align += float(functional.mse_loss(own_states[:, -span:], aim_states[:, -span:]))
            tokens += answer
        assert parts["kl_loss"] == pytest.approx(kl / tokens, rel=1e-4)
        assert parts["answer_loss"] == pytest.approx(ce / tokens, rel=1e-4)
        assert parts["align_loss"] == pytest.approx(align / 3, rel=1e-4)
        assert loss == pytest.approx((kl + 0.5 * ce) / tokens + align / 3, rel=1e-4)
    finally:
        remove_adapter(vlm, made)


def whole(vlm, model, encoded):
    """All logits and the outputs of all MLPs for one prompt."""
    states = []
    hooks = [
        layer.mlp.register_forward_hook(lambda module, inputs, output: states.append(output[0]))
        for layer in vlm.anatomy.layers
    ]
    logits = model(**vlm.reuse.inputs([encoded])).logits[0]
    for hook in hooks:
        hook.remove()
    return logits, torch.stack(states)


def shift(made, scale=0.3):
    """Give an adapter an effect."""
    random = torch.Generator().manual_seed(5)
    for parameter in made.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn(parameter.shape, generator=random) * scale


def test_the_teacher_is_the_model_without_the_adapter(vlm):
    before = DistillObjective(vlm, items(), BOTH)
    rows = [before.row(before.item(0, index).taught) for index in range(2)]
    plain = before.teacher.signals(rows)
    made = add_adapter(vlm, "lora", {"lora_dropout": 0.5}, 0)
    try:
        shift(made)
        made.train()
        objective = DistillObjective(vlm, items(), BOTH, model=made)
        for one, other in zip(plain, objective.teacher.signals(rows), strict=True):
            assert torch.equal(one.log_probs, other.log_probs)
            assert torch.equal(one.states, other.states)
        assert made.training
        assert all(p.requires_grad for name, p in made.named_parameters() if "lora_" in name)
    finally:
        remove_adapter(vlm, made)
    assert not hasattr(vlm.model, "peft_config")
    again = DistillObjective(vlm, items(), BOTH).teacher.signals(rows)
    assert torch.equal(again[0].log_probs, plain[0].log_probs)


def test_a_student_that_keeps_the_demonstrations_has_nothing_to_learn_from_the_teacher(vlm):
    objective = DistillObjective(vlm, items(mix=1.0), Losses(kl=1.0, align=1.0, ce=0.0))
    loss, parts = step(objective, batch_of(objective))
    assert loss == pytest.approx(0, abs=1e-6)
    assert parts["answer_loss"] > 0


def test_a_step_does_not_depend_on_its_batches(vlm):
    objective = DistillObjective(vlm, items(), BOTH)
    together = batch_of(objective, count=4)
    parts = [objective.collate([objective.item(0, index)]) for index in range(4)]
    whole_sum = objective.loss(vlm.model, together)[0]
    torch.testing.assert_close(whole_sum, torch.stack([objective.loss(vlm.model, p)[0] for p in parts]).sum(0))
    assert objective.amount(together) == [sum(objective.amount(p)[i] for p in parts) for i in (0, 1)]
    assert objective.amount(objective.blank(together)) == [0, 0]


def test_prompts_that_cannot_be_aligned_are_an_error(vlm):
    objective = DistillObjective(vlm, items(), LIVE)
    student, other = (objective.row(objective.item(0, index).asked).prompt.tokens for index in (0, 1))
    changed = replace(other, ids=(*other.ids[:-8], *(token + 1 for token in other.ids[-8:])))
    with pytest.raises(ModelError, match="cannot be aligned"):
        common_span(student, changed)


def test_layers_and_parts_can_be_chosen(vlm):
    assert len(Watch(vlm.anatomy, "attention", [0, -1]).modules) == 2
    assert len(Watch(vlm.anatomy, "layer").modules) == len(vlm.anatomy.layers)
    with pytest.raises(OptionError, match="has layers 0 to"):
        Watch(vlm.anatomy, "mlp", [99])


def test_a_loss_that_is_no_number_names_the_step(vlm):
    made = add_adapter(vlm, "live", {}, 0)
    try:
        objective = DistillObjective(vlm, items(), LIVE, model=made)
        objective.step = 6
        for parameter in made.parameters():
            if parameter.requires_grad:
                parameter.data.fill_(float("nan"))
        with pytest.raises(ModelError, match="step 7"):
            objective.loss(made, batch_of(objective))
    finally:
        remove_adapter(vlm, made)


@pytest.mark.parametrize("family", sorted(tiny.FAMILIES))
def test_teacher_and_student_are_aligned_in_every_family(family):
    """The same prompt gives no loss; the query alone some, which has a gradient. Positions cover the query's picture."""
    vlm = VLM(*tiny.build(family))
    same = DistillObjective(vlm, items(mix=1.0, shots=2), Losses(kl=1.0, align=1.0, ce=0.0), style="plain")
    assert step(same, batch_of(same, count=2))[0] == pytest.approx(0, abs=1e-5)
    made = add_adapter(vlm, "live", {}, 0)
    objective = DistillObjective(vlm, items(shots=2), BOTH, model=made, style="plain")
    batch = batch_of(objective, count=2)
    total, parts = objective.loss(made, batch)
    assert parts["kl_loss"] > 1e-6
    assert parts["align_loss"] > 1e-9
    total.sum().backward()
    assert all(p.grad.abs().max() > 0 for p in made.parameters() if p.requires_grad)
    for row in batch["rows"]:
        first = row.prompt.tokens.span("query")
        assert first is not None
        assert len(row.prompt) - row.span - first[0] <= 2  # Mllama: <s> behind the picture


def test_recomputed_layers_give_the_same_gradient(vlm):
    gradients = []
    for recompute in (False, True):
        made = add_adapter(vlm, "mimic", {}, 0)
        try:
            if recompute:
                vlm.model.activation_checkpointing_enable({"use_reentrant": False})
            made.train()
            objective = DistillObjective(vlm, items(), BOTH, model=made)
            objective.loss(made, batch_of(objective))[0].sum().backward()
            gradients.append([p.grad.clone() for p in made.parameters() if p.requires_grad])
        finally:
            vlm.model.activation_checkpointing_disable()
            vlm.model.eval()
            remove_adapter(vlm, made)
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_a_model_that_cannot_take_a_method_is_refused_with_the_reason(vlm, monkeypatch):
    changed = replace(vlm.anatomy, attention_methods=Ability(False, "it has none"))
    monkeypatch.setattr(vlm, "anatomy", changed)
    with pytest.raises(ModelError, match="cannot take mimic: it has none"):
        add_adapter(vlm, "mimic", {}, 0)


@pytest.mark.parametrize("method", ["live", "mimic", "bias", "lora", "prompt_tuning", "prefix_tuning"])
def test_every_method_learns(vlm, method):
    options = {"num_virtual_tokens": 4} if "tuning" in method else {}
    made = add_adapter(vlm, method, options, 0)
    try:
        objective = DistillObjective(vlm, items(), BOTH, model=made)
        groups = parameter_groups(made, 1e-2, {}, 0.0)
        optimizer = torch.optim.AdamW(groups)
        batch = batch_of(objective)
        losses = []
        for _ in range(6):
            optimizer.zero_grad()
            total, _ = objective.loss(made, batch)
            total = (total / torch.tensor(objective.amount(batch))).sum()
            total.backward()
            optimizer.step()
            losses.append(float(total.detach()))
        assert losses[-1] < losses[0]
        assert not any(p.grad is not None for p in vlm.anatomy.decoder.parameters() if not p.requires_grad)
    finally:
        remove_adapter(vlm, made)


def test_learning_rates_by_name(vlm):
    made = add_adapter(vlm, "mimic", {}, 0)
    try:
        groups = parameter_groups(made, 5e-3, {"mimic_weight": 1e-2}, 1e-3)
        count = len(vlm.anatomy.layers)
        assert {(g["lr"], g["weight_decay"]): len(g["params"]) for g in groups} == {
            (5e-3, 1e-3): count,  # shifts
            (1e-2, 1e-3): count,
            (5e-3, 0.0): count,  # biases do not decay
        }
        with pytest.raises(OptionError, match=r"rates\.mimic_wieght.*mimic_weight"):
            parameter_groups(made, 5e-3, {"mimic_wieght": 1e-2}, 1e-3)
    finally:
        remove_adapter(vlm, made)


@pytest.mark.parametrize(
    ("demonstrations", "mix", "asked"),
    [("fixed", 0.0, [3, 0, 0]), ("redrawn", 0.0, [3, 3, 3]), ("fixed", 0.5, [3, 0, 0])],
)
def test_what_does_not_change_is_done_once(vlm, monkeypatch, demonstrations, mix, asked):
    """Three epochs: how often the teacher is asked, and that the losses are those of a fresh start."""
    made = {"demonstrations": demonstrations, "mix": mix}
    objective = DistillObjective(vlm, items(**made), BOTH)
    calls, encoded = [], []
    signals, row = objective.teacher.signals, type(objective).row
    monkeypatch.setattr(objective.teacher, "signals", lambda rows: calls.append(len(rows)) or signals(rows))
    monkeypatch.setattr(type(objective), "row", _counted(row, encoded))
    found = []
    for epoch in range(3):
        calls.append(0)
        found.append(step(objective, batch_of(objective, epoch)))
    assert [sum(part) for part in _parts(calls)] == asked
    students = [episode.query.id for episode in encoded if not episode.shots]
    assert len(students) == len(set(students)) == 3
    for epoch, (loss, parts) in enumerate(found):
        fresh = DistillObjective(vlm, items(**made), BOTH)
        expected = step(fresh, batch_of(fresh, epoch))
        assert loss == pytest.approx(expected[0], rel=1e-5)
        assert parts == pytest.approx(expected[1], rel=1e-5, abs=1e-7)


def _parts(calls):
    """Divided before each zero."""
    starts = [place for place, call in enumerate(calls) if not call]
    return [calls[start:end] for start, end in zip(starts, [*starts[1:], len(calls)], strict=True)]


def test_what_is_recalled_is_of_the_same_example(vlm):
    """Two examples of a user may bear one id."""
    objective = DistillObjective(vlm, items(), LIVE)
    one, other = (objective.item(0, index).taught.query for index in (0, 1))
    other = other.with_(id=one.id)
    rows = [objective.recall.row(Episode((), query), objective.row) for query in (one, other, one)]
    assert rows[0].prompt.pictures != rows[1].prompt.pictures
    assert rows[2].prompt.pictures == rows[0].prompt.pictures


@pytest.mark.parametrize(("epochs", "expected"), [(3, [1, 2, 3]), (15, [*range(1, 16)]), (38, [*range(3, 38, 3), 38])])
def test_not_all_of_very_many_epochs_are_examined(tmp_path, epochs, expected):
    scores = iter(range(epochs))
    choice = EpochChoice(tmp_path, lambda: {"a": torch.zeros(1)}, lambda: {"score": float(next(scores))}, leads=True)
    for epoch in range(1, epochs + 1):
        state = SimpleNamespace(
            epoch=float(epoch), num_train_epochs=epochs, global_step=2 * epoch, max_steps=2 * epochs
        )
        choice.on_epoch_end(None, state, None)
    assert [int(name) for name in choice.figures] == expected
    assert choice.best == str(epochs)


# --- the teacher's cache --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("top", [None, 10])
def test_what_is_cached_is_what_was_said(vlm, tmp_path, top):
    live = DistillObjective(vlm, items(demonstrations="fixed"), BOTH, top=top)
    cache = TeacherCache(tmp_path / "cache", {"weights": "a"}, live.teacher.describe())
    cached = DistillObjective(vlm, items(demonstrations="fixed"), BOTH, top=top, cache=cache)
    expected = step(live, batch_of(live))
    first, second = (step(cached, batch_of(cached, epoch)) for epoch in (0, 1))
    assert (cache.hits, cache.misses) == (3, 3)
    assert first == second  # bit for bit: a resumed run may find what the first one made
    assert first[0] == pytest.approx(expected[0], rel=2e-3)
    assert first[1] == pytest.approx(expected[1], rel=2e-3)
    written = sum(path.stat().st_size for path in cache.folder.glob("*/*.safetensors"))
    assert written <= sum(cached.teacher.size(cached.row(cached.item(0, i).asked)) for i in range(3)) < 1.3 * written


def test_a_cached_step_asks_no_teacher(vlm, tmp_path, monkeypatch):
    cache = TeacherCache(tmp_path, {}, {})
    objective = DistillObjective(vlm, items(demonstrations="fixed"), BOTH, cache=cache)
    step(objective, batch_of(objective))
    monkeypatch.setattr(objective.teacher, "signals", lambda rows: pytest.fail("asked again"))
    encoded = []
    monkeypatch.setattr(type(objective), "row", _counted(type(objective).row, encoded))
    step(objective, batch_of(objective, epoch=3))
    assert not encoded  # neither the long prompts nor, once more, the short ones


def _counted(function, calls):
    def row(self, episode):
        calls.append(episode)
        return function(self, episode)

    return row


def test_redrawn_demonstrations_are_other_entries(vlm, tmp_path):
    cache = TeacherCache(tmp_path, {}, {})
    objective = DistillObjective(vlm, items(), LIVE, cache=cache)
    for epoch in (0, 1, 0):
        step(objective, batch_of(objective, epoch))
    assert (cache.hits, cache.misses) == (3, 6)


def test_a_damaged_entry_is_made_again(vlm, tmp_path):
    cache = TeacherCache(tmp_path, {}, {})
    objective = DistillObjective(vlm, items(), LIVE, cache=cache)
    expected = step(objective, batch_of(objective))
    for path in tmp_path.glob("*/*.safetensors"):
        path.write_bytes(path.read_bytes()[:40])
    assert step(objective, batch_of(objective)) == expected
    assert step(objective, batch_of(objective)) == expected
    assert (cache.hits, cache.misses) == (3, 6)


def test_a_cache_of_another_model_is_refused(tmp_path):
    TeacherCache(tmp_path, {"architecture": "A", "weights": "1"})
    TeacherCache(tmp_path, {"architecture": "A", "weights": "1"})
    with pytest.raises(ModelError, match=r"another model.*weights '1' there, '2' here"):
        TeacherCache(tmp_path, {"architecture": "A", "weights": "2"})


def test_a_cache_without_room_is_refused_before_it_is_written(tmp_path, capsys):
    cache = TeacherCache(tmp_path, {})
    cache.announce(10_000, 3)
    assert "up to 10 KB in 3 files" in capsys.readouterr().err
    with pytest.raises(CannotWrite, match="needs 1e"):
        cache.announce(10**19, 3)


# --- the command ----------------------------------------------------------------------------------------------------------------

WORDS = [
    *(
        "--model",
        "tiny",
        "--task",
        "scenes",
        "--tasks",
        "colour",
        "--method",
        "mimic",
        "--shots",
        "2",
        "--samples",
        "12",
    ),
    *(
        "--held-out",
        "6",
        "--trainer.num_train_epochs",
        "2",
        "--trainer.save_steps",
        "2",
        "--trainer.logging_steps",
        "1",
    ),
    *("--rates.mimic_weight", "1e-2", "--method.layers", "0,2", "--trainer.per_device_train_batch_size", "4"),
    *("--trainer.gradient_accumulation_steps", "1", "--trainer.learning_rate", "2e-2"),
]


@pytest.fixture(scope="module")
def distilled(tmp_path_factory):
    out = tmp_path_factory.mktemp("distilled") / "adapter"
    assert main(["distill", *WORDS, "--out", str(out)]) == 0
    return out


def test_the_result_is_an_adapter_with_a_card(distilled, vlm):
    assert {path.name for path in distilled.iterdir()} == {
        *("README.md", "adapter_config.json", "adapter_model.safetensors", "training"),
    }
    config = json.loads((distilled / "adapter_config.json").read_text())
    assert (config["peft_type"], config["layers"], config["base_model_name_or_path"]) == ("MIMIC", [0, 2], "tiny")
    card = (distilled / "README.md").read_text()
    count = 2 * vlm.anatomy.heads * (2 * vlm.anatomy.head_dim + 1)
    for said in ("base_model: tiny", "| task | scenes |", "| training queries | 12 |", "exact_match", f"| {count:,} |"):
        assert said in card
    record = json.loads((distilled / "training" / "config.json").read_text())
    assert record["used"]["losses"] == vars(MIMIC)
    epochs = record["seeds"]["0"]["epochs"]
    assert set(epochs) == {"1", "2"}
    assert record["seeds"]["0"]["epoch"] == max((1.0, 2.0), key=lambda epoch: epochs[f"{epoch:g}"]["score"])
    log = [json.loads(line) for line in (distilled / "training" / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log if "align_loss" in entry] == [1, 2, 3, 4, 5, 6]


@pytest.mark.filterwarnings("error:Could not find a config file:UserWarning")  # PEFT looked for "tiny" on the Hub
def test_the_adapter_loads_in_both_ways(distilled):
    adapted = kshot.load_model("tiny", adapter=distilled)
    bare = kshot.load_model("tiny")
    episode = Episode((), colour().queries[0])
    inputs = bare.inputs([bare.encode(episode)])
    plain = bare.model(**inputs).logits
    ours = adapted.model(**adapted.inputs([adapted.encode(episode)])).logits
    theirs = PeftModel.from_pretrained(bare.model, distilled)(**inputs).logits
    assert torch.equal(ours, theirs)
    assert (ours - plain).abs().max() > 1e-3


def test_a_finished_run_is_not_repeated_and_another_is_refused(distilled, capsys):
    assert main(["distill", *WORDS, "--out", str(distilled)]) == 0
    assert "was finished before" in capsys.readouterr().err
    assert main(["distill", *WORDS, "--out", str(distilled), "--ce", "0.1"]) == 2
    assert "other options (losses)" in capsys.readouterr().err


def test_a_resumed_run_ends_with_the_same_bits(distilled, tmp_path):
    """As if killed behind the first checkpoint: the second half is done again."""
    work = tmp_path / "adapter.work"
    shutil.copytree(distilled.with_name("adapter.work"), work)
    run = work / "seed-0"
    kept = [run / "checkpoint-2"] if (run / "checkpoint-2").exists() else sorted(run.glob("checkpoint-*"))[:1]
    for path in [*run.glob("checkpoint-*"), run / "result.json", run / "adapter", run / "log.jsonl"]:
        if path not in kept:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    out = tmp_path / "adapter"
    assert main(["distill", *WORDS, "--out", str(out)]) == 0
    assert (out / "adapter_model.safetensors").read_bytes() == (distilled / "adapter_model.safetensors").read_bytes()
    one, other = (json.loads((folder / "training" / "config.json").read_text()) for folder in (out, distilled))
    assert one["seeds"]["0"]["epochs"] == other["seeds"]["0"]["epochs"]


def test_several_seeds_give_a_spread(vlm, tmp_path):
    out = distill(
        str(tmp_path / "out"), model=vlm, task=colour(), method="live", shots=2, samples=6, held_out=4, seeds="0,1",
        teacher_cache=str(tmp_path / "cache"), teacher_top=20, demonstrations="fixed",
        trainer={"num_train_epochs": 2, "per_device_train_batch_size": 6, "gradient_accumulation_steps": 1},
    )  # fmt: skip
    record = json.loads((out / "training" / "config.json").read_text())
    losses = [record["seeds"][seed]["held_out_loss"] for seed in ("0", "1")]
    spread = record["spread"]["held_out_loss"]
    assert (spread["min"], spread["max"]) == (min(losses), max(losses))
    assert record["chosen"] == losses.index(min(losses))
    assert "mean of 2 seeds" in (out / "README.md").read_text()
    assert len(list((tmp_path / "cache").glob("*/*.safetensors"))) == 12
    assert not hasattr(vlm.model, "peft_config")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--method", "lvie"], "unknown method 'lvie': did you mean 'live'"),
        (["--method.layer", "1"], "unknown option of method live 'layer'"),
        (["--task", "glyphs"], "no support set"),
        (["--shots", "900"], "900 shots"),
        (["--samples", "900"], "take fewer"),
        (["--method.layers", "77"], "has layers 0 to"),
        (["--align-to", "heads"], "align_to"),
        (["--method.placement", "head"], "placement"),
        (["--teacher", "false", "--kl", "1"], "switched off"),
        (["--rates.live_gamma", "1"], "rates.live_gamma"),
        (["--trainer.seed", "1"], "trainer.seed"),
        (["--out", str(EMBEDDED / "tiny")], "choose another folder"),
    ],
)
def test_an_error_is_one_line(words, message, tmp_path, capsys):
    basis = [
        "--model",
        "tiny",
        "--task",
        "scenes",
        "--tasks",
        "colour",
        "--samples",
        "6",
        "--out",
        str(tmp_path / "out"),
    ]
    given = basis + words
    if "glyphs" in given:
        given = [word for word in given if word not in ("--tasks", "colour")]
    assert main(["distill", *given]) == 2
    said = capsys.readouterr()
    assert message in said.err.splitlines()[-1]
    assert not (tmp_path / "out").exists()
