"""Prompts: what is written, and what each token is."""

from __future__ import annotations

import string

import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from kshot.chat import render_chat
from kshot.episode import Episode, Example
from kshot.errors import DataError, OptionError
from kshot.prompt import Template, render_plain, tokenize

LIVE = Template(
    "<image>Question:{question} Short answer:{answer}.",
    instruction="Provide an answer to the question. Use the image to answer.\n",
)
CHAT = (
    "{% for m in messages %}<|start|>{{ m.role }}\n{% for c in m.content %}"
    "{% if c.type == 'image' %}<image>{% else %}{{ c.text | trim }}{% endif %}{% endfor %}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


def chat_template(source: str):
    template = jinja2.Environment().from_string(source)

    def apply(messages, tokenize=False, add_generation_prompt=False):
        return template.render(messages=messages, add_generation_prompt=add_generation_prompt)

    return apply


@pytest.fixture(scope="module")
def tokenizer():
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    corpus = ["Question:what colour is it? Short answer:red.", "Question: how many? Answer: two dogs\n\n"] * 8
    special = ["<pad>", "<s>", "</s>", "<image>", "<|start|>", "<|end|>"]
    core.train_from_iterator(
        corpus,
        trainers.BpeTrainer(
            vocab_size=420, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        ),
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def example(question: str = "what?", answer: str | None = "red", images: int = 1) -> Example:
    return Example([Image.new("RGB", (4, 4))] * images, question, answer)


def test_the_live_prompt_is_written_as_published():
    episode = Episode((example("how many?", "two"), example("what colour?", "red")), example("where?", "here"))
    assert render_plain(episode, LIVE).text() == (
        "Provide an answer to the question. Use the image to answer.\n"
        "<image>Question:how many? Short answer:two.\n\n"
        "<image>Question:what colour? Short answer:red.\n\n"
        "<image>Question:where? Short answer:"
    )


def test_the_querys_own_answer_is_never_shown():
    episode = Episode((example("q", "demonstrated"),), example("q", "secret"))
    for prompt in (render_plain(episode, LIVE), render_chat(episode, LIVE, chat_template(CHAT), "<image>")):
        assert "secret" not in prompt.text()
        assert "demonstrated" in prompt.text()


def test_several_images_and_none():
    episode = Episode((example(images=2), example(images=0)), example(images=3))
    prompt = render_plain(episode, LIVE)
    assert [s.index for s in prompt.segments if s.picture] == [0, 0, -1, -1, -1]
    chat = render_chat(episode, LIVE, chat_template(CHAT), "<image>")
    assert [s.index for s in chat.segments if s.picture] == [0, 0, -1, -1, -1]


def test_chat_turns_and_their_closing_marks(tokenizer):
    episode = Episode((example("q0", "a0"), example("q1", "a1")), example("q2"))
    prompt = render_chat(episode, LIVE, chat_template(CHAT), "<image>", answer="a2")
    tokens = tokenize(prompt, tokenizer, ["<image>"] * 3, add_special_tokens=False)
    shown = [t for t in tokens.labels(demonstrations=True) if t >= 0]
    assert tokenizer.decode(shown) == "a0<|end|>\na1<|end|>\na2<|end|>\n"
    assert tokenizer.decode([t for t in tokens.labels() if t >= 0]) == "a2<|end|>\n"
    assert tokenizer.decode(tokens.ids[: tokens.prefix]).endswith("a1<|end|>\n<|start|>user\n")


def test_a_chat_caption_task_without_questions():
    template = Template("<image>Caption:{answer}", user="<image>")
    episode = Episode((example("", "a dog"),), example("", "a cat"))
    prompt = render_chat(episode, template, chat_template(CHAT), "<image>")
    assert [(s.role, s.index) for s in prompt.segments if s.picture] == [("demonstration", 0), ("query", -1)]
    assert prompt.segments[prompt.prefix_segments].picture is episode.query.images[0]
    with_answer = render_chat(episode, template, chat_template(CHAT), "<image>", answer="a cat")
    assert "".join(s.text for s in with_answer.segments if s.role == "answer") == "a cat<|end|>\n"


def test_a_chat_template_that_rewrites_is_refused():
    shouting = CHAT.replace("c.text | trim", "c.text | trim | upper")
    dropping = CHAT.replace("{% for m in messages %}", "{% for m in messages[1:] %}")
    episode = Episode((example(),), example())
    for source in (shouting, dropping):
        with pytest.raises(OptionError, match="plain"):
            render_chat(episode, LIVE, chat_template(source), "<image>")


def test_data_cannot_smuggle_in_an_image():
    hostile = example("look: <image></s>", "<image>")
    prompt = render_plain(Episode((hostile,), hostile), LIVE, reserved=("<image>", "</s>"))
    assert prompt.text("IMG").count("<image>") == 0
    assert prompt.text("IMG").count("IMG") == 2


def test_a_demonstration_needs_an_answer():
    with pytest.raises(DataError, match="no answer"):
        render_plain(Episode((example(answer=None),), example()), LIVE)


def test_an_answer_that_is_a_picture_stands_as_an_image_in_its_place():
    drawn = Example([Image.new("RGB", (4, 4))], answer=Image.new("RGB", (4, 4), "red"))
    prompt = render_plain(Episode((drawn,), drawn), LIVE, answer=drawn.answer)
    assert [s.is_answer for s in prompt.segments if s.picture is not None] == [False, True, False, True]
    assert prompt.pictures == (drawn.images[0], drawn.answer, drawn.images[0], drawn.answer)
    assert prompt.text("[]").count("Short answer:[]") == 2


def test_a_template_must_say_where_the_answer_stands():
    with pytest.raises(OptionError, match="answer"):
        Template("<image>Question:{question}")


text = st.text(alphabet=string.ascii_letters + string.digits + " .,?{}é日\n", max_size=12)


@settings(max_examples=60, deadline=None)
@given(
    demos=st.lists(st.tuples(text, text), max_size=4),
    question=text,
    answer=text.filter(bool),
    chat=st.booleans(),
    repeats=st.integers(1, 5),
)
def test_spans_cover_every_token_and_the_mask_is_the_answer(tokenizer, demos, question, answer, chat, repeats):
    episode = Episode(tuple(example(q, a) for q, a in demos), example(question))
    if chat:
        source = CHAT.replace(" | trim", "")
        prompt = render_chat(episode, LIVE, chat_template(source), "<image>", answer=answer)
    else:
        prompt = render_plain(episode, LIVE, answer=answer)
    expansions = ["<image>" * repeats] * len(prompt.pictures)
    tokens = tokenize(prompt, tokenizer, expansions, add_special_tokens=False)
    whole = prompt.text("<image>" * repeats)
    assert list(tokens.ids) == tokenizer(whole, add_special_tokens=False)["input_ids"]
    assert [s.start for s in tokens.spans[1:]] == [s.end for s in tokens.spans[:-1]]
    assert tokens.spans[0].start == 0
    assert tokens.spans[-1].end == len(tokens)
    end = "<|end|>\n" if chat else "."
    kept = tokenizer.decode([t for t in tokens.labels() if t >= 0])
    # A token may straddle an edge; whole pieces otherwise.
    assert (answer + end).endswith(kept) or kept.endswith(answer + end)
    # What comes before the query does not depend on it.
    other = Episode(episode.demonstrations, example(question + "x"))
    if not chat:
        again = tokenize(render_plain(other, LIVE), tokenizer, expansions, add_special_tokens=False)
        assert again.ids[: tokens.prefix - 1] == tokens.ids[: tokens.prefix - 1]


def test_a_token_across_the_edge_belongs_to_the_answer_not_to_the_space_before_it(tokenizer):
    spaced = Template("<image>Question: {question} Answer: {answer}\n")
    prompt = render_plain(Episode((example("how many?", "two"),), example("how many?")), spaced, answer="two dogs")
    tokens = tokenize(prompt, tokenizer, ["<image>", "<image>"])
    assert " two" in tokenizer.convert_tokens_to_string(tokenizer.convert_ids_to_tokens(tokens.ids))
    assert tokenizer.decode([t for t in tokens.labels() if t >= 0]) == " two dogs\n"
    start, end = tokens.span("demonstration", 0, is_answer=True)
    assert tokenizer.decode(tokens.ids[start:end]) == " two"
