"""Prompt tuning and prefix tuning in front of prompts: the same logits as PEFT's own forward, and answers that follow from them."""

from __future__ import annotations

import pytest
import torch
from peft import PrefixTuningConfig, PromptTuningConfig, get_peft_model

from kshot import Episode, Example
from kshot.errors import ContextTooLong, ModelError
from kshot.models.vlm import VLM
from tests.models.tiny import build, picture

KINDS = {"prompt": PromptTuningConfig, "prefix": PrefixTuningConfig}
STYLE = "plain"


def tuned(kind: str, family: str = "llava"):
    """PEFT's model with four learnt tokens that say something, the processor, and the bare model."""
    model, processor = build(family)
    outer = get_peft_model(model, KINDS[kind](num_virtual_tokens=4, task_type="CAUSAL_LM")).eval()
    random = torch.Generator().manual_seed(3)
    for name, parameter in outer.named_parameters():
        if "prompt_encoder" in name:
            parameter.data = torch.randn(parameter.shape, generator=random) * 0.5
    return outer, processor, model


def asked() -> list[Episode]:
    """Queries of different lengths, one of them behind demonstrations."""
    shown = tuple(Example(picture(i), f"what is {i}?", "red") for i in (1, 2))
    questions = ("what colour?", "how many dogs are there in this one?", "two?")
    return [
        Episode(shown if not number else (), Example(picture(9 + number), question, "red"), id=str(number))
        for number, question in enumerate(questions)
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_pefts_own_forward(kind: str) -> None:
    outer, processor, model = tuned(kind)
    vlm = VLM(outer, processor)
    assert vlm.model is model
    found = vlm.score(asked(), ["red", "blue"], style=STYLE)
    bare = VLM(model, processor).score(asked(), ["red", "blue"], style=STYLE)
    for episode, scores, without in zip(asked(), found, bare, strict=True):
        for answer, score, plain in zip(("red", "blue"), scores, without, strict=True):
            encoded = vlm.encode(episode, style=STYLE, answer=answer)
            mask = encoded.tokens.answer_mask()
            with torch.no_grad():  # one prompt at a time: without padding, PEFT numbers positions as we do
                logits = outer(**vlm.inputs([encoded])).logits[0, -len(mask) :]
            said = logits.float().log_softmax(-1)
            ids = encoded.tokens.ids
            expected = sum(float(said[place - 1, ids[place]]) for place in range(len(mask)) if mask[place])
            assert score == pytest.approx(expected, abs=2e-4)
            assert abs(score - plain) > 1e-2  # it does stand before the prompt


@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_the_most_probable_words(kind: str) -> None:
    outer, processor, _ = tuned(kind)
    vlm = VLM(outer, processor)
    together = vlm.answer(asked(), style=STYLE, max_new_tokens=4)
    for episode, text in zip(asked(), together, strict=True):
        ids = vlm.inputs([vlm.encode(episode, style=STYLE)])
        words: list[int] = []
        for _ in range(4):
            with torch.no_grad():
                logits = outer(**ids).logits[0, -1]
            words.append(int(logits.argmax()))
            if words[-1] == vlm.tokenizer.eos_token_id:
                break
            one = torch.tensor([[words[-1]]])
            ids["input_ids"] = torch.cat([ids["input_ids"], one], 1)
            ids["attention_mask"] = torch.ones_like(ids["input_ids"])
            ids.pop("position_ids", None)
        assert text == vlm.tokenizer.decode(words, skip_special_tokens=True)
    assert vlm.answer(asked()[1:2], style=STYLE, max_new_tokens=4) == together[1:2]  # padding changes nothing


def test_a_run_of_another_soft_prompt_is_another_run() -> None:
    outer, processor, model = tuned("prompt")
    vlm = VLM(outer, processor)
    first = vlm.describe()
    assert "soft_prompt" not in VLM(model, processor).describe()
    outer.prompt_encoder["default"].embedding.weight.data[0, 0] += 1
    assert vlm.describe()["soft_prompt"] != first["soft_prompt"]


def test_learnt_tokens_count_against_the_context(monkeypatch: pytest.MonkeyPatch) -> None:
    outer, processor, model = tuned("prompt")
    vlm, bare = VLM(outer, processor), VLM(model, processor)
    length = len(bare.encode(asked()[0], style=STYLE))
    from dataclasses import replace

    for one in (vlm, bare):
        monkeypatch.setattr(one, "anatomy", replace(one.anatomy, max_context=length + 3))
    bare.encode(asked()[0], style=STYLE)
    with pytest.raises(ContextTooLong):
        vlm.encode(asked()[0], style=STYLE)


@pytest.mark.parametrize(("family", "why"), [("mllama", "cross-attention"), ("qwen2_vl", "several axes")])
def test_models_that_cannot_take_one_say_why(family: str, why: str) -> None:
    outer, processor, _ = tuned("prompt", family)
    with pytest.raises(ModelError, match=why):
        VLM(outer, processor)
