"""How answers are produced: stopping, batching, memory, settings of the model that must not leak in."""

from __future__ import annotations

import logging

import pytest
import torch

from kshot.errors import OptionError
from kshot.models.batching import BatchRunner
from kshot.models.vlm import VLM
from tests.models import tiny
from tests.models.reference import vlm
from tests.models.test_families import QA, episode

OPTIONS = {"template": QA, "style": "plain"}


class Watched:
    """Calls of a function, with what it returned."""

    def __init__(self, function):
        self.function, self.calls, self.results = function, [], []

    def __call__(self, *args, **kwargs):
        result = self.function(*args, **kwargs)
        self.calls.append(kwargs)
        self.results.append(result)
        return result


@pytest.fixture
def model() -> VLM:
    return VLM(*tiny.build("llava_llama"))


def test_generation_ends_when_every_row_has_met_a_stop_text(model):
    episodes = [episode(1, i) for i in range(3)]
    whole = model.answer(episodes, max_new_tokens=12, **OPTIONS)
    stops = sorted({text[2] for text in whole})
    model.model.generate = watched = Watched(model.model.generate)
    stopped = model.answer(episodes, max_new_tokens=12, stop=stops, **OPTIONS)
    for text, full in zip(stopped, whole, strict=True):
        assert full.startswith(text)
        assert any(stop in text for stop in stops)
    longest = max(
        result.shape[1] - call["input_ids"].shape[1]
        for call, result in zip(watched.calls, watched.results, strict=True)
    )
    assert longest < 12
    # Rows that meet no stop text go on, and the others wait for them.
    first = model.answer(episodes, max_new_tokens=12, stop=[whole[0]], **OPTIONS)
    assert first[1:] == whole[1:]


def test_the_mask_is_always_passed(model):
    model.model.generate = watched = Watched(model.model.generate)
    model.answer([episode(2), episode(0)], **OPTIONS)
    for call in watched.calls:
        assert call["attention_mask"].shape == call["input_ids"].shape


def test_answers_do_not_depend_on_batches_or_order(model):
    episodes = [episode(i % 4, i) for i in range(9)]
    one_by_one = model.answer(episodes, batch_size=1, **OPTIONS)
    assert model.answer(episodes, batch_size=4, **OPTIONS) == one_by_one
    assert model.answer(episodes[::-1], batch_size=9, **OPTIONS) == one_by_one[::-1]
    assert model.answer([], **OPTIONS) == []


def test_sampling_and_penalties_of_the_models_own_settings_are_left_out(model):
    expected = model.answer([episode(2)], max_new_tokens=6, **OPTIONS)
    settings = model.model.generation_config
    settings.do_sample, settings.temperature, settings.repetition_penalty = True, 9.0, 9.0
    settings.num_beams, settings.max_length, settings.min_new_tokens, settings.no_repeat_ngram_size = 4, 3, 5, 1
    for _ in range(2):
        assert model.answer([episode(2)], max_new_tokens=6, **OPTIONS) == expected
    assert model.model.generation_config is settings
    settings.suppress_tokens = [model.tokenizer(expected[0])["input_ids"][0]]
    assert model.answer([episode(2)], max_new_tokens=6, **OPTIONS) != expected


def test_candidates_per_episode_must_match(model):
    with pytest.raises(OptionError, match="1 lists of candidates for 2 episodes"):
        model.score([episode(1), episode(2)], [["red"]], **OPTIONS)
    with pytest.raises(OptionError, match="list of texts"):
        model.score([episode(1)], "red", **OPTIONS)
    assert model.score([], ["red"], **OPTIONS) == []
    assert model.score([episode(1)], [[]], **OPTIONS) == [[]]


def test_a_candidate_that_begins_like_another_has_its_own_score(model):
    ours = model.score([episode(1)], ["red", "redd", "red"], **OPTIONS)[0]
    assert ours[0] == pytest.approx(ours[2], abs=1e-5)
    assert ours[1] < ours[0]


def test_only_logits_of_the_answer_are_computed(model):
    head = model.model.get_output_embeddings()
    seen = []
    handle = head.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[1]))
    model.score([episode(3)], ["red"], **OPTIONS)
    handle.remove()
    assert max(seen) <= 4


def test_out_of_memory_halves_the_batch_and_says_so(caplog):
    tried: list[int] = []

    def work(batch: list[int]) -> list[int]:
        tried.append(len(batch))
        if len(batch) > 3:
            raise torch.OutOfMemoryError("no memory")
        return [10 * number for number in batch]

    runner = BatchRunner(8)
    with caplog.at_level(logging.WARNING):
        assert runner.run([3, 1, 4, 1, 5, 9, 2, 6, 5], work) == [10 * i for i in range(9)]
    assert (runner.size, tried) == (2, [8, 4, 2, 2, 2, 2, 1])
    assert "batch size halved from 8 to 4" in caplog.text
    with pytest.raises(torch.OutOfMemoryError):
        BatchRunner(1).run([1], lambda batch: [_raise()])


def _raise() -> None:
    raise torch.OutOfMemoryError("no memory")


def test_batches_hold_like_with_like():
    batches: list[list[int]] = []

    def work(batch: list[int]) -> list[int]:
        batches.append(batch)
        return batch

    assert BatchRunner(2).run([1, 9, 2, 8, 3], work, [0, 0, 1, 0, 1]) == [0, 1, 2, 3, 4]
    assert batches == [[1, 3], [0], [4, 2]]


@pytest.mark.parametrize("family", ["idefics2", "qwen2_5_vl", "gemma3"])
def test_a_long_list_is_answered_as_short_ones(family):
    model = vlm(family)
    episodes = [episode(i % 3, i) for i in range(40)]
    options = OPTIONS | {"max_new_tokens": 2, "batch_size": 2}
    assert model.answer(episodes, **options)[30:] == model.answer(episodes[30:], **options)
