"""Models that were trained on sentences with a token for the beginning get it without being asked."""

from __future__ import annotations

import json

import pytest
import torch

from kshot import Episode, Example
from kshot.models.code_sampling import Sampling
from kshot.models.visual_sentence import VisualSentenceModel
from kshot.visual.processor import VisualSentenceProcessor
from tests.visual.tiny import CODES, noise, noises, tiny_tokenizer, tiny_visual_model

T = 4
GREEDY = Sampling(temperature=0)


@pytest.fixture(scope="module")
def plain():
    return tiny_visual_model()


@pytest.fixture(scope="module")
def begun(plain):
    processor = VisualSentenceProcessor(plain.tokenizer, plain.processor.vocab_size, begins=True)
    return VisualSentenceModel(plain.model, processor)


def ids(pictures: int) -> torch.Tensor:
    return torch.randint(0, CODES, (pictures * T,), generator=torch.Generator().manual_seed(1))


def test_the_default_is_as_the_model_was_trained(plain, begun):
    prompt, target = ids(3), ids(1)
    for default, asked in ((plain, False), (begun, True)):
        expected = plain.imagine_ids([prompt], sampling=GREEDY, bos=asked)[0].ids
        assert torch.equal(default.imagine_ids([prompt], sampling=GREEDY)[0].ids, expected)
        expected = plain.nll_ids([prompt], [target], bos=asked)[0]
        assert torch.equal(default.nll_ids([prompt], [target])[0], expected)
        assert default.capacity() == plain.capacity(bos=asked)
    assert torch.equal(begun.nll_ids([prompt], [target], bos=False)[0], plain.nll_ids([prompt], [target])[0])
    assert not torch.equal(begun.nll_ids([prompt], [target])[0], plain.nll_ids([prompt], [target])[0])


def test_episodes_for_training_begin_so_too(plain, begun):
    x, y, q, a = noises(4)
    episode = Episode((Example((x,), answer=y),), Example((q,), answer=a))
    without = plain.encode(episode, answer=episode.query.answer)
    found = begun.encode(episode, answer=episode.query.answer)
    assert found.tokens.ids == (begun.processor.bos_token_id, *without.tokens.ids)
    assert [(s.start - 1, s.end - 1, s.role, s.index, s.is_answer) for s in found.tokens.spans[1:]] == [
        (s.start, s.end, s.role, s.index, s.is_answer) for s in without.tokens.spans
    ]
    assert (found.tokens.spans[0].start, found.tokens.spans[0].end) == (0, 1)
    assert not found.tokens.spans[0].is_answer


def test_the_processor_remembers(tmp_path):
    processor = VisualSentenceProcessor(tiny_tokenizer(), begins=True)
    processor.save_pretrained(tmp_path)
    again = VisualSentenceProcessor.from_pretrained(tmp_path)
    assert again.begins
    assert again([[noise(0)]])["input_ids"][0, 0] == processor.bos_token_id
    assert again([[noise(0)]], bos=False)["input_ids"].shape == (1, T)
    record = json.loads((tmp_path / "visual_processor.json").read_text())
    del record["begins"]  # as folders of before have it
    (tmp_path / "visual_processor.json").write_text(json.dumps(record))
    assert not VisualSentenceProcessor.from_pretrained(tmp_path).begins
