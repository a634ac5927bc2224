"""Distillation of tasks that are answered by pictures: the same command, methods and losses."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import logging as hf_logging

import kshot
from kshot.episode import Episode
from kshot.errors import ContextTooLong, DataError, OptionError
from kshot.models.encoding import EncodedPrompt
from kshot.models.visual_sentence import VisualSentenceModel
from kshot.training.distill import distill
from tests.evaluation.test_picture_answers import Negatives
from tests.evaluation.toys import Swatches
from tests.visual.tiny import tiny_visual_model

hf_logging.disable_progress_bar()


class Pairs(Negatives):
    """Forty negatives to learn from, and two others to be asked about."""

    @property
    def queries(self):
        return self._examples[40:42]

    @property
    def support(self):
        return self._examples[:40]


@pytest.fixture
def model() -> VisualSentenceModel:
    return tiny_visual_model()


def episode(task: Pairs, shots: int) -> Episode:
    return Episode(tuple(task.support[:shots]), task.queries[0])


def answered(model: VisualSentenceModel, asked: Episode) -> EncodedPrompt:
    return model.encode(asked, answer=asked.query.answer)


def test_an_episode_is_pairs_a_query_and_its_answer(model):
    task = Pairs()
    encoded = answered(model, episode(task, 2))
    tokens = encoded.tokens
    assert len(encoded) == 6 * model.tokens
    pictures = [p for e in (*task.support[:2], task.queries[0]) for p in (e.images[0], e.answer)]
    assert list(tokens.ids) == model.codes_of([pictures])[0].tolist()
    assert tokens.prefix == 4 * model.tokens
    assert tokens.span("demonstration", 1) == (2 * model.tokens, 4 * model.tokens)
    assert tokens.span("query") == (4 * model.tokens, 5 * model.tokens)
    assert [i for i, wanted in enumerate(tokens.answer_mask()) if wanted] == list(
        range(5 * model.tokens, 6 * model.tokens)
    )
    assert sum(tokens.answer_mask(demonstrations=True)) == 3 * model.tokens


def test_shorter_rows_are_filled_up_in_front_and_change_nothing(model):
    task = Pairs()
    rows = [answered(model, episode(task, shots)) for shots in (0, 2)]
    together = model.reuse.inputs(rows)
    alone = model.reuse.inputs(rows[:1])
    with torch.no_grad():
        logits = model.model(**together).logits[0, -len(rows[0]) :]
        assert torch.allclose(logits, model.model(**alone).logits[0], atol=1e-5)
    assert together["input_ids"][0, 0] == model.processor.pad_token_id


def test_what_does_not_fit_or_is_no_picture_is_refused(model):
    with pytest.raises(ContextTooLong, match="use fewer shots"):
        answered(model, episode(Pairs(), 3))
    task = Pairs()
    with pytest.raises(DataError, match="no picture as its answer"):
        model.encode(Episode((), task.queries[0]), answer="red")
    with pytest.raises(OptionError, match="answered by texts"):
        distill("never", model=model, task=Swatches(), method="live", shots=2, samples=4)


@pytest.mark.parametrize("method", ["live", "mimic", "lora"])
def test_an_adapter_learns_from_pairs_and_is_loaded_again(method, tmp_path, model):
    task = Pairs()
    settings = {"max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 0.01}
    made = distill(
        str(tmp_path / "adapter"),
        model=model,
        task=task,
        method=method,
        shots=2,
        samples=12,
        held_out=4,
        trainer=settings,
    )
    model.model.save_pretrained(tmp_path / "base")
    model.processor.save_pretrained(tmp_path / "base")
    taught = kshot.load_model(tmp_path / "base", adapter=made)
    assert kshot.evaluate(taught, task, shots=0).rows[0].queries == 2
    again = kshot.load_model(tmp_path / "base", adapter=made)
    inputs = again.reuse.inputs([answered(again, episode(task, 0))])
    with torch.no_grad():
        assert torch.equal(again.model(**inputs).logits, taught.model(**inputs).logits)
        assert not torch.equal(again.model(**inputs).logits, model.model(**inputs).logits)


def test_cross_entropy_falls_on_the_examples_learnt(tmp_path, model):
    task = Pairs()
    settings = {"max_steps": 60, "per_device_train_batch_size": 8, "learning_rate": 0.02}
    distill(
        str(tmp_path / "made"),
        model=model,
        task=task,
        method="lora",
        shots=1,
        samples=8,
        held_out=8,
        teacher=False,
        trainer=settings,
    )
    log = list((tmp_path / "made").rglob("log*.jsonl"))
    assert log

    losses = [json.loads(line)["loss"] for line in log[0].read_text().splitlines() if "loss" in json.loads(line)]
    assert losses[-1] < losses[0] / 2
