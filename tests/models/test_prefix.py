"""Reading fixed demonstrations once gives the logits, answers and scores of the whole prompt."""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import Any

import pytest
import torch

from kshot import Episode, Example
from kshot.models import prefix
from kshot.models.memory import BudgetedCache, model_state
from kshot.models.prefix import continue_forward, continue_generate, prefill
from kshot.models.shared_cache import expand
from kshot.models.vlm import VLM
from tests.models.tiny import FAMILIES, build, picture

CANNOT = {"mllama": "cross-attention", "paligemma": "both directions"}
SHARING = sorted(set(FAMILIES) - set(CANNOT))
QUESTIONS = ("what colour?", "how many dogs are there in this one?", "two?")


def demonstrations(first: int = 0) -> tuple[Example, ...]:
    """Four demonstrations; ``first`` chooses the first one's picture."""
    pictures = (first, 101, 102, 103)
    return tuple(Example(picture(p), f"what colour is {i}?", ("red", "blue")[i % 2]) for i, p in enumerate(pictures))


def episodes(shown: tuple[Example, ...]) -> list[Episode]:
    """Queries of different lengths and picture shapes behind the same demonstrations."""
    return [Episode(shown, Example(picture(50 + i, (56, 28 + 14 * i)), q), id=str(i)) for i, q in enumerate(QUESTIONS)]


@lru_cache
def vlm(name: str, reuse: bool) -> VLM:
    return VLM(*build(name), name=name, prefix_cache=reuse, feature_cache=False)


@torch.no_grad()
def logits(model: VLM, asked: list[Episode], keep: int = 2) -> torch.Tensor:
    """Logits of the last tokens of each prompt, through the groups that ``answer`` and ``score`` run."""
    prompts = [model.encode(episode) for episode in asked]
    rows: dict[int, torch.Tensor] = {}
    for group in model.reuse.groups(prompts):
        inputs = model.reuse.inputs(group.prompts, group.prefix)
        if group.prefix is not None:
            inputs = continue_forward(model.model, group.prefix, inputs)
        found = model.model(**inputs).logits[:, -keep:]
        rows |= dict(zip(group.numbers, found, strict=True))
    return torch.stack([rows[i] for i in range(len(asked))])


@pytest.mark.parametrize("name", SHARING)
def test_logits_equal_those_of_the_whole_prompt(name: str) -> None:
    asked = episodes(demonstrations())
    whole = logits(vlm(name, False), asked)
    shared = logits(vlm(name, True), asked)
    torch.testing.assert_close(shared, whole, atol=1e-5, rtol=0)
    other = logits(vlm(name, False), episodes(demonstrations(first=7)))
    assert (other - whole).abs().max() > 1e-3, "the first demonstration's picture must matter, or nothing is tested"


@pytest.mark.parametrize("name", SHARING)
@pytest.mark.parametrize("beams", [1, 3])
def test_generated_texts_equal_those_of_the_whole_prompt(name: str, beams: int) -> None:
    asked = episodes(demonstrations())
    options: dict[str, Any] = {"max_new_tokens": 6, "num_beams": beams}
    before = vlm(name, True).reuse.prefixes.statistics.hits
    assert vlm(name, True).answer(asked, **options) == vlm(name, False).answer(asked, **options)
    again = vlm(name, True).answer(asked, **options)
    assert again == vlm(name, False).answer(asked, **options), "using a cached prefix must not change it"
    assert vlm(name, True).reuse.prefixes.statistics.hits > before


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "idefics", "gemma3"])
@pytest.mark.parametrize("style", ["plain", "chat"])
def test_scores_equal_those_of_the_whole_prompt(name: str, style: Any) -> None:
    asked = episodes(demonstrations())
    candidates = [["red", "blue one"], ["two"], ["a", "b", "c d e"]]
    whole = vlm(name, False).score(asked, candidates, style=style)
    shared = vlm(name, True).score(asked, candidates, style=style)
    for row, expected in zip(shared, whole, strict=True):
        assert row == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize("name", sorted(CANNOT))
def test_models_whose_prefix_depends_on_the_query_say_so_and_answer_as_ever(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    asked = episodes(demonstrations())
    with caplog.at_level(logging.INFO, logger="kshot.models.reuse"):
        shared = VLM(*build(name), prefix_cache=True, feature_cache=False)
        assert shared.answer(asked, max_new_tokens=4) == vlm(name, False).answer(asked, max_new_tokens=4)
    assert [record.message for record in caplog.records if CANNOT[name] in record.message]
    assert len(shared.reuse.prefixes._memory) == 0


def test_several_sets_of_demonstrations_are_kept_side_by_side() -> None:
    model = VLM(*build("llava"), prefix_cache="auto", feature_cache=False)
    sets = [demonstrations(first) for first in (1, 2, 3)]
    mixed = [episodes(shown)[i] for i in range(3) for shown in sets]
    assert model.answer(mixed, max_new_tokens=3) == vlm("llava", False).answer(mixed, max_new_tokens=3)
    assert model.reuse.prefixes.statistics.misses == 3
    model.answer(mixed, max_new_tokens=3)
    assert (model.reuse.prefixes.statistics.misses, model.reuse.prefixes.statistics.hits) == (3, 3)


def test_a_single_prompt_is_not_worth_a_prefix_unless_asked_for() -> None:
    one = episodes(demonstrations())[:1]
    automatic = VLM(*build("llava"), prefix_cache="auto")
    automatic.answer(one, max_new_tokens=2)
    assert automatic.reuse.prefixes.statistics.misses == 0
    asked = VLM(*build("llava"), prefix_cache=True)
    asked.answer(one, max_new_tokens=2)
    assert asked.reuse.prefixes.statistics.misses == 1


def test_a_changed_model_forgets_its_prefixes() -> None:
    model = VLM(*build("llava"), prefix_cache=True)
    asked = episodes(demonstrations())
    before = model.score(asked, ["red"])
    with torch.no_grad():
        model.model.get_decoder().layers[0].self_attn.k_proj.weight.mul_(3.0)
    after = model.score(asked, ["red"])
    changed = VLM(model.model, model.processor, prefix_cache=False, feature_cache=False).score(asked, ["red"])
    assert [row[0] for row in after] == pytest.approx([row[0] for row in changed], abs=2e-5)
    assert [row[0] for row in after] != pytest.approx([row[0] for row in before], abs=1e-3)


def test_an_architecture_that_does_not_continue_rightly_is_found_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = VLM(*build("llava"), prefix_cache=True)
    asked = episodes(demonstrations())

    def forgetful(*arguments: Any) -> dict[str, Any]:
        found = continue_forward(*arguments)
        return found | {"position_ids": found["position_ids"] + 50}

    monkeypatch.setattr(prefix, "continue_forward", forgetful)
    with caplog.at_level(logging.WARNING, logger="kshot.models.reuse"):
        assert model.answer(asked, max_new_tokens=3) == vlm("llava", False).answer(asked, max_new_tokens=3)
    assert "differ from those of the whole prompt" in caplog.text


def test_padding_in_a_sliding_window_is_avoided_by_groups_of_equal_length() -> None:
    model = vlm("gemma3", True)
    prompts = [model.encode(episode) for episode in episodes(demonstrations())]
    groups = list(model.reuse.groups(prompts, new_tokens=4))
    assert len(groups) == len({len(prompt) for prompt in prompts}) > 1
    roomy = VLM(*build("gemma3", sliding_window=4096), prefix_cache=True)
    assert len(list(roomy.reuse.groups(prompts, new_tokens=4))) == 1, "a window that holds all needs no such care"


@torch.no_grad()
def test_expanding_copies_nothing_and_leaves_the_prefix_alone() -> None:
    model = vlm("llava", True)
    prompt = model.encode(episodes(demonstrations())[0])
    held = prefill(model.model, model.inputs([prompt]))
    kept = [layer.keys.clone() for layer in held.cache.layers]
    rows = expand(held.cache, 5)
    assert rows.layers[0].keys.shape[0] == 5
    assert rows.layers[0].keys.data_ptr() == held.cache.layers[0].keys.data_ptr()
    inputs = model.inputs([prompt, prompt])
    model.model(**continue_forward(model.model, held, inputs))
    model.model.generate(**continue_generate(model.model, held, inputs, num_beams=2), num_beams=2, max_new_tokens=3)
    assert held.cache.get_seq_length() == held.length
    for layer, keys in zip(held.cache.layers, kept, strict=True):
        assert torch.equal(layer.keys, keys)


@torch.no_grad()
def test_a_layer_with_room_grows_like_any_other() -> None:
    model = vlm("llava", True)
    held = prefill(model.model, model.inputs([model.encode(episodes(demonstrations())[0])]))
    roomy, other = expand(held.cache, 2, room=4), expand(held.cache, 2)
    layers = (roomy.layers[0], other.layers[0])
    buffer = layers[0].keys.data_ptr()
    for step, tokens in enumerate((3, 1, 2)):  # the last one finds no more room
        new = torch.randn(2, *held.cache.layers[0].keys.shape[1:2], tokens, held.cache.layers[0].keys.shape[-1])
        found, expected = (layer.update(new, -new) for layer in layers)
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])
        assert (layers[0].keys.data_ptr() == buffer) == (step < 2)
    for layer in layers:
        layer.reorder_cache(torch.tensor([1, 1]))
    assert torch.equal(layers[0].update(new, new)[0], layers[1].update(new, new)[0])
    assert held.cache.get_seq_length() == held.length


@torch.no_grad()
def test_buffers_are_left_to_the_next_batch_and_freed_behind_the_last() -> None:
    model = vlm("llava", True)
    held = prefill(model.model, model.inputs([model.encode(episodes(demonstrations())[0])]))
    spare: dict[Any, Any] = {}
    first = expand(held.cache, 2, 4, spare).layers[0]
    new = torch.randn_like(first.keys[..., :3, :])
    expected = torch.cat([held.cache.layers[0].keys.expand(2, -1, -1, -1), new], dim=-2)
    assert torch.equal(first.update(new, new)[0], expected)
    second = expand(held.cache, 2, 3, spare).layers[0]
    assert second.keys.data_ptr() == first.keys.data_ptr()
    assert torch.equal(second.update(2 * new, new)[0][..., held.length :, :], 2 * new)
    assert expand(held.cache, 2, 9, spare).layers[0].keys.data_ptr() != first.keys.data_ptr()
    model.answer(episodes(demonstrations()), max_new_tokens=3, batch_size=1)
    assert all(not prefix.spare for prefix, _ in model.reuse.prefixes._memory._entries.values())


def test_the_budget_holds_and_the_least_recently_used_goes_first() -> None:
    cache: BudgetedCache[str] = BudgetedCache(10)
    cache.put("a", "A", 4)
    cache.put("b", "B", 4)
    assert cache.get("a") == "A"
    cache.put("c", "C", 4)
    assert "b" not in cache
    assert cache.get("a") == "A"
    cache.put("huge", "H", 11)
    assert "huge" not in cache
    assert cache.statistics.as_dict() == {
        "hits": 2,
        "disk_hits": 0,
        "misses": 0,
        "evictions": 1,
        "entries": 2,
        "bytes": 8,
    }


def test_model_state_notices_weights_hooks_and_nothing_else() -> None:
    model, _ = build("llava")
    state = model_state([model])
    assert model_state([model]) == state
    handle = model.get_decoder().layers[0].register_forward_hook(lambda *_: None)
    assert model_state([model]) != state
    handle.remove()
    assert model_state([model]) == state
    with torch.no_grad():
        next(iter(model.parameters())).add_(1.0)
    assert model_state([model]) != state
