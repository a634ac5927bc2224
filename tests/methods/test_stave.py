"""STAVE: which token gets which vector, whatever way the tokens are read."""

from __future__ import annotations

import pytest
import torch
from peft import get_peft_model

from kshot.methods import methods
from kshot.methods.activations import answer_cue
from kshot.models.anatomy import examine
from kshot.models.vlm import VLM
from tests.methods.common import CUE, base, fresh, logits, perturb
from tests.models import tiny
from tests.models.test_families import QA, episode

Config = methods.get("stave").config


def expected_logits(family, inputs, cue_at, cue, other):
    """The formula, by hand: a hook on the first layer's input."""
    model = fresh(family)
    added = torch.where(cue_at[..., None], cue, other)

    def add(module, given, named):
        if given:
            return ((given[0] + added, *given[1:]), named)
        return (given, named | {"hidden_states": named["hidden_states"] + added})

    examine(model).layers[0].register_forward_pre_hook(add, with_kwargs=True)
    return logits(model, inputs)


@pytest.mark.parametrize("family", ["llava", "idefics", "gemma3"])
def test_cues_and_the_last_token_get_one_vector_and_all_others_the_other(family):
    _, inputs, _ = base(family)  # one demonstration and a query, that is, two cues a row
    ids = inputs["input_ids"].tolist()
    cue_at = torch.zeros(inputs["input_ids"].shape, dtype=torch.bool)
    for row, tokens in enumerate(ids):
        for place in range(len(tokens) - len(CUE) + 1):
            if tokens[place : place + len(CUE)] == CUE:
                cue_at[row, place : place + len(CUE)] = True
    assert cue_at.sum(1).tolist() == [2 * len(CUE)] * 2
    model = get_peft_model(fresh(family), Config(cue=CUE)).eval()
    perturb(model)
    held = {name.split(".")[-2]: p.detach() for name, p in model.named_parameters() if ".shift_" in name}
    found = logits(model.get_base_model(), inputs)
    assert torch.equal(found, expected_logits(family, inputs, cue_at, held["stave_cue"], held["stave_other"]))


def test_without_a_cue_it_is_the_last_token_alone():
    _, inputs, _ = base("llava")
    model = get_peft_model(fresh("llava"), Config()).eval()
    perturb(model)
    held = {name.split(".")[-2]: p.detach() for name, p in model.named_parameters() if ".shift_" in name}
    last = torch.zeros(inputs["input_ids"].shape, dtype=torch.bool)
    last[:, -1] = True
    expected = expected_logits("llava", inputs, last, held["stave_cue"], held["stave_other"])
    assert torch.equal(logits(model.get_base_model(), inputs), expected)


def test_an_untrained_adapter_is_the_base_model():
    model, inputs, _ = base("llava")
    adapted = get_peft_model(fresh("llava"), Config(cue=CUE)).eval().get_base_model()
    assert torch.equal(logits(adapted, inputs), logits(model, inputs))


@pytest.mark.parametrize("style", ["plain", "chat"])
def test_the_cue_of_a_task_is_what_its_prompts_end_with_and_no_part_of_the_question(style):
    vlm = VLM(*tiny.build("llava"))
    cue = answer_cue(vlm, [episode(0)], QA, style)
    text = vlm.tokenizer.decode(cue)
    assert 0 < len(cue) <= 8
    assert "what is it" not in text
    assert vlm.encode(episode(2), QA, style).tokens.ids[-len(cue) :] == tuple(cue)
    if style == "plain":
        assert text.strip() == "Short answer:"
