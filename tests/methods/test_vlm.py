"""A vision-language model that answers with an adapter: its caches must notice whatever changes what it computes."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel, get_peft_model

from kshot.episode import Episode, Example
from kshot.models.vlm import VLM
from tests.methods.common import OURS, config_of, perturb
from tests.models import tiny
from tests.models.test_families import QA, example

QUESTIONS = ("what is it?", "how many of them are there?", "what?")


def episodes() -> list[Episode]:
    demonstrations = tuple(example(number, answer) for number, answer in enumerate(("red", "two")))
    queries = [Example((tiny.picture(90 + number),), question) for number, question in enumerate(QUESTIONS)]
    return [Episode(demonstrations, query) for query in queries]


def scores(vlm: VLM) -> torch.Tensor:
    return torch.tensor(vlm.score(episodes(), ["red", "two dogs"], template=QA, style="plain"))


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "idefics"])
@pytest.mark.parametrize("method", OURS)
def test_caches_follow_the_adapter(family, method):
    model, processor = tiny.build(family)
    plain = scores(VLM(model, processor, prefix_cache=False, feature_cache=False))
    outer = get_peft_model(model, config_of(method))
    cached = VLM(model, processor, prefix_cache=True)
    uncached = VLM(model, processor, prefix_cache=False, feature_cache=False)
    seen = []
    for seed in (1, 2):
        perturb(model, seed)  # as a step of an optimizer does
        seen.append(scores(cached))
        torch.testing.assert_close(seen[-1], scores(uncached), rtol=0, atol=5e-5)
        answers = [vlm.answer(episodes(), template=QA, style="plain", max_new_tokens=3) for vlm in (cached, uncached)]
        assert answers[0] == answers[1]
        beams = [
            vlm.answer(episodes(), template=QA, style="plain", max_new_tokens=3, num_beams=3)
            for vlm in (cached, uncached)
        ]
        assert beams[0] == beams[1]
    assert cached.reuse.prefixes.statistics.hits > 0
    assert float((seen[0] - seen[1]).abs().max()) > 1e-2
    with outer.disable_adapter():
        torch.testing.assert_close(scores(cached), plain, rtol=0, atol=5e-5)
    assert torch.equal(scores(cached), seen[1])
    outer.add_adapter("second", config_of(method))
    outer.set_adapter("second")
    assert float((scores(cached) - seen[1]).abs().max()) > 1e-3
    outer.set_adapter("default")
    assert torch.equal(scores(cached), seen[1])
    outer.unload()
    torch.testing.assert_close(scores(cached), plain, rtol=0, atol=5e-5)


@pytest.mark.parametrize("method", OURS)
def test_models_are_loaded_with_an_adapter(method, tmp_path):
    from kshot.models import load_model

    model, processor = tiny.build("llava")
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    outer = get_peft_model(model, config_of(method))
    perturb(model)
    outer.save_pretrained(tmp_path / "adapter")
    expected = scores(VLM(model, processor))
    loaded = load_model(tmp_path / "model", adapter=tmp_path / "adapter", device_map="cpu")
    assert not isinstance(loaded.model, PeftModel)
    torch.testing.assert_close(scores(loaded), expected, rtol=0, atol=5e-5)
    assert float((scores(load_model(tmp_path / "model", device_map="cpu")) - expected).abs().max()) > 1e-2
