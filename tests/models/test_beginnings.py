"""Encoding only what follows known demonstrations gives the tokens of the whole prompt."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest

from kshot import Episode, Example
from kshot.models.beginnings import Beginning
from kshot.models.vlm import VLM
from kshot.prompt import Template
from tests.models.tiny import FAMILIES, build, picture

IMAGE_FIRST = Template("<image>Question: {question} Short answer:{answer}.")
WORDS_FIRST = Template("Look: <image> is {answer}", separator=" ")
WHOLE_ALWAYS = ("idefics", "mllama")
"""Their processors put <s> before whatever they are given."""


@lru_cache
def vlms(name: str) -> tuple[VLM, VLM]:
    model, processor = build(name)
    return VLM(model, processor, prefix_cache=True), VLM(model, processor, prefix_cache=False)


def episodes() -> list[Episode]:
    shown = tuple(Example(picture(i, (56, 42)), f"what is {i}?", ("red", "blue")[i % 2]) for i in range(3))
    queries = (
        Example(picture(9), "what colour?"),
        Example(picture(9, (42, 56)), "2 + 2 = ? <image> </s>"),
        Example(picture(6), " how many "),
        Example((picture(8), picture(7)), "what colour?"),
        Example((picture(8), picture(9)), " how many "),
        Example((picture(7), picture(9)), "two?"),
        Example((), "no picture?"),
        Example(picture(5), ""),
    )
    return [Episode(shown, query, id=str(i)) for i, query in enumerate(queries)]


@pytest.mark.parametrize("name", sorted(FAMILIES))
@pytest.mark.parametrize(("template", "style"), [(IMAGE_FIRST, "plain"), (WORDS_FIRST, "plain"), (IMAGE_FIRST, "chat")])
@pytest.mark.parametrize("answer", [None, "red car"])
def test_tokens_spans_and_pictures_are_those_of_the_whole_prompt(
    name: str, template: Template, style: Any, answer: str | None
) -> None:
    quick, whole = vlms(name)
    quick._beginnings._seen.clear()
    for episode in episodes():
        assert quick.encode(episode, template, style, answer=answer) == whole.encode(
            episode, template, style, answer=answer
        )
    learnt = any(isinstance(beginning, Beginning) for _, beginning in quick._beginnings._seen.values())
    assert not (learnt and name in WHOLE_ALWAYS)
    assert learnt or name in WHOLE_ALWAYS or template is WORDS_FIRST, "nothing was saved, so nothing was tested"


def test_sets_of_demonstrations_that_come_once_cost_nothing_and_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kshot.models.beginnings.KEPT", 4)
    model = VLM(*build("llava"), prefix_cache="auto")
    calls = []
    encode = model.encoder.encode
    monkeypatch.setattr(model.encoder, "encode", lambda *a, **k: calls.append(1) or encode(*a, **k))
    for _ in range(6):
        model.encode(episodes()[0])
    assert len(calls) == 6
    assert len(model._beginnings._seen) == 4


def test_a_template_that_numbers_its_images_is_rendered_whole() -> None:
    model, processor = build("llava")
    processor.chat_template = (
        "{% set n = namespace(i=0) %}{% for m in messages %}<|im_start|>{{ m.role }}\n{% for c in m.content %}"
        "{% if c.type == 'image' %}{% set n.i = n.i + 1 %}Picture {{ n.i }}: <image>{% else %}{{ c.text }}{% endif %}"
        "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    quick, whole = VLM(model, processor, prefix_cache=True), VLM(model, processor, prefix_cache=False)
    for episode in episodes():
        assert quick.encode(episode, style="chat") == whole.encode(episode, style="chat")
    assert "Picture 4" in whole.prompt(episodes()[0], style="chat").text()
