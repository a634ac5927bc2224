"""Methods on models of visual sentences: prompts end with pictures, and answers are pictures."""

from __future__ import annotations

import pytest
import torch

import kshot
from kshot.comparison import compare_methods
from kshot.episode import Episode
from kshot.methods import methods
from kshot.methods.fit import fit_method
from kshot.models.visual_sentence import VisualSentenceModel
from tests.training.test_distill_pictures import Pairs
from tests.visual.tiny import tiny_visual_model


@pytest.fixture
def model() -> VisualSentenceModel:
    return tiny_visual_model()


def logits(model: VisualSentenceModel, episode: Episode, answer: bool) -> torch.Tensor:
    prompt = model.encode(episode, answer=episode.query.answer if answer else None)
    with torch.no_grad():
        return model.model(**model.inputs([prompt])).logits[0]


@pytest.mark.parametrize("shots", [0, 2])
@pytest.mark.parametrize("answer", [False, True])
def test_a_task_vector_is_put_at_the_end_of_the_querys_picture(model, shots, answer):
    task = Pairs()
    episode = Episode(tuple(task.support[:shots]), task.queries[0])
    made = fit_method(model, "task_vector", task, shots=2, samples=8, layers=[1])
    patched = logits(model, episode, answer)
    state = next(p for name, p in made.named_parameters() if "task_vector_state" in name)
    made.unload()
    place = (2 * shots + 1) * model.tokens - 1

    def put(module, given, output):
        hidden = output if isinstance(output, torch.Tensor) else output[0]
        hidden[:, place] = state
        return output

    handle = model.anatomy.layers[1].register_forward_hook(put)
    by_hand = logits(model, episode, answer)
    handle.remove()
    assert torch.allclose(patched, by_hand, atol=1e-6)
    assert not torch.allclose(patched[place:], logits(model, episode, answer)[place:], atol=1e-3)


@pytest.mark.parametrize("method", sorted(name for name in methods if methods.get(name).estimate is not None))
def test_estimated_methods_change_answers_of_pictures_and_leave_no_trace(model, method):
    task = Pairs()
    episode = Episode((), task.queries[0])
    before = logits(model, episode, True)
    made = fit_method(model, method, task, shots=1, samples=8)
    assert not torch.equal(logits(model, episode, True), before)
    made.unload()
    assert torch.equal(logits(model, episode, True), before)


def test_methods_are_compared_on_pictures(model, tmp_path):
    found = compare_methods(
        model, Pairs(), methods="live,task_vector", shots=1, samples=12, limit=2, rounds=1, tokens=2,
        out=tmp_path / "runs", trainer={"max_steps": 2},
    )  # fmt: skip
    assert [row.method for row in found.rows] == ["zero_shot", "few_shot", "live", "task_vector"]
    assert all(row.score.value >= 0 for row in found.rows)
    assert (tmp_path / "runs" / "methods.csv").is_file()
    assert kshot.evaluate(model, Pairs(), shots=0).rows[0].value == pytest.approx(found.rows[0].score.value)
