"""The behaviour that all families of models share; a family added to ``tiny.FAMILIES`` is tested by itself."""

from __future__ import annotations

import tempfile

import pytest
import torch

from kshot.episode import Episode, Example
from kshot.models import load_model
from kshot.models.base import Model
from kshot.prompt import Template
from tests.models import tiny
from tests.models.reference import inputs_of, logits, mark, process, vlm

QA = Template("<image>Question:{question} Short answer:{answer}.", instruction="Answer the question.\n")
ADJACENT = Template("<image>Question:{question} Short answer:{answer}.", separator="")
WORD_FIRST = Template("A photo {question} <image>of:{answer},", separator=" ")
QUESTIONS = ("what colour is the square?", "how many dogs are there?", "what?")
ANSWERS = ("red", "two", "green")


def example(seed: int, answer: str | None = "red", question: str = "what colour?", images: int = 1) -> Example:
    sizes = ((56, 56), (70, 42), (40, 64))
    return Example(tuple(tiny.picture(seed + 50 * i, sizes[(seed + i) % 3]) for i in range(images)), question, answer)


def episode(shots: int, seed: int = 0, question: str = "what is it?", images: int = 1) -> Episode:
    demos = tuple(example(seed + i, ANSWERS[i % 3], QUESTIONS[i % 3], images) for i in range(shots))
    return Episode(demos, example(seed + 90, None, question, images))


@pytest.fixture(params=sorted(tiny.FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("style", ["plain", "chat"])
@pytest.mark.parametrize(
    ("shots", "images", "template"),
    [(0, 1, QA), (1, 1, QA), (3, 1, ADJACENT), (1, 2, QA), (0, 3, ADJACENT), (2, 1, WORD_FIRST)],
    ids=["no shots", "one shot", "three shots", "two images each", "images only in front", "text before the image"],
)
def test_ids_are_those_of_the_processor(family, style, shots, images, template):
    model = vlm(family)
    prompt = model.prompt(episode(shots, images=images), template, style)
    expected = inputs_of(family, [prompt])
    assert list(model.encoder.encode(prompt).tokens.ids) == expected["input_ids"][0].tolist()


@pytest.mark.parametrize("style", ["plain", "chat"])
def test_a_batch_is_what_the_processor_makes_of_it(family, style):
    model = vlm(family)
    prompts = [model.prompt(e, QA, style) for e in (episode(2), episode(1, 7, "how many of them are there?"))]
    expected = inputs_of(family, prompts)
    found = model.encoder.collate([model.encoder.encode(prompt) for prompt in prompts])
    assert set(expected) <= set(found)
    for name, value in expected.items():
        torch.testing.assert_close(found[name].float(), value.float(), rtol=0, atol=0, msg=name)


def test_every_demonstration_is_seen(family):
    model = vlm(family)
    demos = [example(i, ANSWERS[i]) for i in range(3)]
    query = example(90, None)
    prompts = [model.prompt(Episode(tuple(demos), query), QA, "plain")]
    for i in range(3):
        changed = [
            demo.with_(images=(tiny.picture(200 + i, (56, 56)),)) if i == j else demo for j, demo in enumerate(demos)
        ]
        prompts.append(model.prompt(Episode(tuple(changed), query), QA, "plain"))
    encoded = [model.encoder.encode(prompt) for prompt in prompts]
    with torch.no_grad():
        last = [model.model(**model.inputs([one])).logits[0, -1] for one in encoded]
    noise = 1e-6
    for changed in last[1:]:
        assert float((changed - last[0]).abs().max()) > 100 * noise


def test_a_padded_batch_gives_what_single_prompts_give(family):
    model = vlm(family)
    episodes = [episode(2), episode(2, 7, "how many dogs are there in this photo of a mat?"), episode(2, 30, "a?")]
    encoded = [model.encode(e, QA, "plain") for e in episodes]
    assert len({len(one) for one in encoded}) == 3
    with torch.no_grad():
        together = model.model(**model.inputs(encoded)).logits[:, -1]
        alone = torch.cat([model.model(**model.inputs([one])).logits[:, -1] for one in encoded])
    torch.testing.assert_close(together, alone, rtol=0, atol=2e-5)


@pytest.mark.parametrize("style", ["plain", "chat"])
def test_greedy_answers_are_those_of_plain_generate(family, style):
    model = vlm(family)
    episodes = [episode(1), episode(2, 7), episode(0, 30), episode(1, 60, "how many?")]
    expected = []
    for one in episodes:
        inputs = inputs_of(family, [model.prompt(one, QA, style)])
        ids = model.model.generate(**inputs, do_sample=False, max_new_tokens=6)
        expected.append(model.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
    assert model.answer(episodes, template=QA, style=style, max_new_tokens=6, batch_size=3) == expected
    assert style == "chat" or len(set(expected)) > 1


def test_beam_answers_are_those_of_plain_generate(family):
    model = vlm(family)
    episodes = [episode(2), episode(2, 7)]
    expected = []
    for one in episodes:
        inputs = inputs_of(family, [model.prompt(one, QA, "plain")])
        ids = model.model.generate(**inputs, do_sample=False, num_beams=3, length_penalty=0.5, max_new_tokens=5)
        expected.append(model.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
    options = {"template": QA, "style": "plain", "max_new_tokens": 5, "num_beams": 3, "length_penalty": 0.5}
    assert model.answer(episodes, **options) == expected


def test_scores_are_the_log_probabilities_of_the_answers(family):
    model = vlm(family)
    episodes = [episode(2), episode(1, 7, "how many?")]
    candidates = ["red", "two dogs", "green"]
    expected = [[brute_force(family, one, text) for text in candidates] for one in episodes]
    found = model.score(episodes, candidates, template=QA, style="plain", batch_size=4)
    for row, (sums, counts) in zip(found, (zip(*pairs, strict=True) for pairs in expected), strict=True):
        assert row == pytest.approx(list(sums), abs=2e-4)
        assert min(counts) >= 2  # an answer and the full stop behind it
    means = model.score(episodes, [candidates, candidates[:1]], template=QA, style="plain", normalize=True)
    assert means[0] == pytest.approx([total / count for total, count in expected[0]], abs=1e-4)
    assert len(means[1]) == 1


def brute_force(family: str, one: Episode, text: str) -> tuple[float, int]:
    """Log-probability of an answer and its number of tokens, from the processor's inputs and all logits of the model."""
    model = vlm(family)
    prompt = model.prompt(one, QA, "plain")
    images = [[picture.load() for picture in prompt.pictures]]
    written = prompt.text(mark(family))
    asked = process(family, model.processor, [written], images)
    length = asked["input_ids"].shape[1]
    if family == "paligemma":
        inputs = process(family, model.processor, [written], images, suffix=[text + "."])
    else:
        inputs = process(family, model.processor, [written + text + "."], images)
    ids = inputs["input_ids"][0]
    assert ids[:length].tolist() == asked["input_ids"][0].tolist()
    log_probabilities = logits(family, inputs)[0].float().log_softmax(-1)
    answer = range(length, len(ids))
    return sum(float(log_probabilities[place - 1, ids[place]]) for place in answer), len(answer)


@pytest.mark.parametrize("style", ["plain", "chat"])
def test_spans_hold_what_they_say(family, style):
    model = vlm(family)
    encoded = model.encode(episode(3), QA, style, answer="blue")
    ids, tokens = encoded.tokens.ids, encoded.tokens
    for i in range(3):
        start, end = tokens.span("demonstration", i, is_answer=True)
        assert model.tokenizer.decode(ids[start:end]).startswith(ANSWERS[i])
        start, end = tokens.span("demonstration", i)
        assert QUESTIONS[i] in model.tokenizer.decode(ids[start:end])
    start, end = tokens.span("query")
    assert "what is it?" in model.tokenizer.decode(ids[start:end])
    spoken = [token for token, keep in zip(ids, tokens.answer_mask(), strict=True) if keep]
    assert model.tokenizer.decode(spoken).startswith("blue")
    assert tokens.spans[-1].end == len(ids)
    assert encoded.prefix_pictures == 3
    # What is shared by all queries does not depend on the query.
    other = model.encode(episode(3, question="how many are there?"), QA, style)
    assert other.tokens.ids[: other.tokens.prefix] == ids[: tokens.prefix]


def test_plain_prompts_enclose_images_as_the_chat_template_does(family):
    model = vlm(family)
    expected = ("<|vision_start|>", "<|vision_end|>") if "qwen" in family else ("", "")
    assert model.encoder.dialect.enclosure == expected
    text = model.prompt(episode(1), QA, "plain").text("IMAGE")
    assert text.count("IMAGE".join(expected)) == 2


def test_data_cannot_bring_in_images_or_end_the_text(family):
    model = vlm(family)
    marks = [mark(family), "</s>", "<|im_end|>", "<fake_token_around_image>", "<image_soft_token>"]
    sly = Episode((example(1, "".join(marks), " ".join(marks)),), example(2, None, marks[0]))
    plain = Episode((example(1, "x", "y"),), example(2, None, "z"))
    for style in ("plain", "chat"):
        tokens, expected = model.encode(sly, QA, style).tokens, model.encode(plain, QA, style).tokens
        special = set(model.tokenizer.all_special_ids)
        assert [token for token in tokens.ids if token in special] == [t for t in expected.ids if t in special]


def test_saved_and_loaded_it_is_the_same_model(family):
    model = vlm(family)
    with tempfile.TemporaryDirectory() as folder:
        model.model.save_pretrained(folder)
        model.processor.save_pretrained(folder)
        loaded = load_model(folder, name="again", device_map="cpu")
    assert isinstance(loaded, Model)
    assert type(loaded.model) is type(model.model)
    assert loaded.processor.chat_template == model.processor.chat_template
    assert not loaded.no_chat
    episodes = [episode(2), episode(1, 7)]
    for style in ("plain", "chat"):
        options = {"candidates": ["red"], "template": QA, "style": style}
        expected = [pytest.approx(row, abs=1e-4) for row in model.score(episodes, **options)]
        assert loaded.score(episodes, **options) == expected
    assert loaded.describe()["weights"] == model.describe()["weights"]


def test_prompts_of_text_alone_and_of_different_numbers_of_images_go_together(family):
    if family == "paligemma":
        pytest.skip("its processor takes no prompt without an image")
    model = vlm(family)
    text_only = Episode((Example((), "what?", "red"),), Example((), "how many?"))
    episodes = [episode(2), text_only, episode(0, 7), episode(1, 20, images=2)]
    together = model.score(episodes, ["two"], template=QA, style="plain", batch_size=4)
    alone = [model.score([one], ["two"], template=QA, style="plain")[0] for one in episodes]
    assert together == [pytest.approx(row, abs=1e-4) for row in alone]
