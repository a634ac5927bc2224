"""Reference episodes: the names of the right side, in the order in which they were shown."""

from __future__ import annotations

import ast
import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kshot.chat import render_chat
from kshot.errors import DataError, OptionError
from kshot.prompt import render_plain
from kshot.training.items import load_source
from kshot.training.reference import ReferenceEpisodes
from tests.training.link_toys import classes

CLASSES = classes()


def named(item) -> list[tuple[str, str]]:
    """Class and reference name of each demonstration."""
    found = []
    for d in item.episode.demonstrations:
        match = re.fullmatch(r'The reference name of this image is "([a-z]+_[a-z]+)"\.', d.text_answer)
        assert match
        found.append((d.metadata["class"], match.group(1)))
    return found


@settings(max_examples=100)
@given(
    st.integers(0, 7),
    st.integers(0, 3),
    st.integers(1, 4),
    st.integers(2, 4),
    st.sampled_from(["fixed", "uniform", "exponential"]),
    st.sampled_from(["letters", "invented"]),
)
def test_the_answer_names_the_pictures_of_the_querys_class(index, epoch, shots, ways, sampler, names):
    source = ReferenceEpisodes(CLASSES, shots_per_side=shots, ways=ways, sampler=sampler, names=names)
    item = source.item(epoch, index)
    query = item.episode.query
    pairs = named(item)
    right = [name for key, name in pairs if key == query.metadata["class"]]
    assert query.answer == f"{right}."
    assert ast.literal_eval(query.text_answer.rstrip(".")) == right
    assert 1 <= len(right) <= shots
    assert len(pairs) == ways * len(right)
    assert len({name for _, name in pairs}) == len(pairs)
    assert len({name.split("_")[1] for _, name in pairs}) == 1
    # The class of the query is the one that its picture is of: labels stand the right way round.
    own = next(one for one in CLASSES if one.key == query.metadata["class"])
    assert query.images[0].digest in {p.digest for p in own.pictures}
    assert query.images[0].digest not in {d.images[0].digest for d in item.episode.demonstrations}
    assert item.graded == ()
    assert source.item(epoch, index) == item


def test_one_shot_per_side_works():
    """Upstream's code crashes for fewer than three."""
    item = ReferenceEpisodes(CLASSES, shots_per_side=1).item(0, 0)
    assert len(ast.literal_eval(item.episode.query.text_answer.rstrip("."))) == 1


def test_all_sides_are_asked_about():
    source = ReferenceEpisodes(CLASSES, shots_per_side=1, episodes_per_class=40)
    novel = Counter(source.item(0, i).episode.query.metadata["class"] == CLASSES[i % 8].key for i in range(len(source)))
    assert abs(novel[True] / len(source) - 0.5) < 0.1


def test_the_prompt_is_that_of_the_paper():
    item = ReferenceEpisodes(CLASSES, shots_per_side=1).item(0, 0)
    (_, first), (_, second) = named(item)
    answer = item.episode.query.text_answer
    assert render_plain(item.episode, item.template, answer=answer).text() == (
        "You should find the causal relationship between the examples I am going to show you. "
        "And use that to answer to the [FINAL QUESTION]. "
        "USER: [BEGIN EXAMPLE] Tell me something about this image <image>. "
        f'ASSISTANT: The reference name of this image is "{first}". [END EXAMPLE] '
        "USER: [BEGIN EXAMPLE] Tell me something about this image <image>. "
        f'ASSISTANT: The reference name of this image is "{second}". [END EXAMPLE] '
        "[FINAL QUESTION]: USER: Which images in the previous example are in the same category as this image <image>? "
        f"(Provide the answer in order as list) ASSISTANT: {answer}"
    )


def chat(messages, tokenize=False, add_generation_prompt=False):
    turns = [
        f"[{m['role']}]" + "".join("<image>" if c["type"] == "image" else c["text"] for c in m["content"])
        for m in messages
    ]
    return "\n".join(turns) + ("\n[assistant]" if add_generation_prompt else "")


def test_the_chat_prompt_asks_the_query_in_its_own_words():
    item = ReferenceEpisodes(CLASSES, shots_per_side=1).item(0, 0)
    prompt = render_chat(item.episode, item.template, chat, "<image>", answer=item.episode.query.text_answer)
    assert prompt.text().splitlines()[-2:] == [
        "[user]Which images in the previous example are in the same category as this image <image>? "
        "(Provide the answer in order as list)",
        f"[assistant]{item.episode.query.text_answer}",
    ]
    assert prompt.text().count("[user]Tell me something") == 1  # the first one follows the instruction
    assert prompt.text().count("Tell me something about this image <image>.") == 2


def test_longest_and_description():
    source = load_source({"kind": "reference", "source": CLASSES, "shots_per_side": 3})
    assert len(source) == 8
    assert all(item.episode.shots == 6 for item in source.longest())
    assert source.describe()["sampler"] == "uniform"
    assert source.describe()["source"] == "reference"


def test_what_is_refused():
    with pytest.raises(OptionError, match="shots_per_side= or total_shots="):
        ReferenceEpisodes(CLASSES)
    with pytest.raises(DataError, match="fewer than the 9 pictures"):
        ReferenceEpisodes(CLASSES, shots_per_side=8)
