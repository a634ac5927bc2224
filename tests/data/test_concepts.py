"""The episode sampler that Omniglot, glyphs and digits share, and the two ways in which episodes are written."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from kshot.chat import render_chat
from kshot.data.concepts import Concept
from kshot.data.demonstrations import choose
from kshot.data.derived import LazySequence, generator
from kshot.data.drawing.names import invent_name
from kshot.data.naming import make_names
from kshot.data.nway import NWayTask
from kshot.data.task import Task, load_task
from kshot.episode import Episode, Example
from kshot.errors import DataError, OptionError
from kshot.metrics import metrics
from kshot.picture import DrawnPicture, Picture
from kshot.prompt import render_plain


class Toy(NWayTask):
    name = "toy"


def picture(name: str) -> Picture:
    return DrawnPicture(lambda: Image.new("RGB", (4, 4)), name)


def concept(number: int, pictures: int = 4, *, queries: int = 0, group: str = "", name: str | None = None) -> Concept:
    key = f"c{number}"
    own = [picture(f"{key}/{i}") for i in range(pictures)]
    return Concept(key, name or f"class {number:03d}", own, [picture(f"{key}/q{i}") for i in range(queries)], group)


def toy(concepts: list[Concept], **options: object) -> Toy:
    defaults = {"episodes": 20, "ways": 2, "seed": 0, "names": "invented", "shots_per_class": 1, "style": "plain"}
    return Toy(concepts, source="toy classes", **(defaults | options))  # type: ignore[arg-type]


@st.composite
def tasks_of_toys(draw: st.DrawFn) -> Toy:
    ways = draw(st.integers(2, 6))
    shots = draw(st.integers(1, 3))
    own_queries = draw(st.booleans())
    groups = draw(st.lists(st.integers(0, 9), min_size=1, max_size=4))
    concepts = []
    for g, extra in enumerate(groups):
        size = ways + extra if g == 0 else max(1, extra)
        for _ in range(size):
            least = shots if own_queries else shots + 1
            count = draw(st.integers(least, least + 3))
            concepts.append(concept(len(concepts), count, queries=2 * own_queries, group=f"g{g}"))
    return toy(
        concepts,
        ways=ways,
        shots_per_class=shots,
        seed=draw(st.integers(0, 2**40)),
        names=draw(st.sampled_from(["invented", "letters", "unseen", "classes"])),
        within_group=draw(st.booleans()),
    )


@settings(max_examples=60, deadline=None)
@given(tasks_of_toys(), st.integers(0, 19))
def test_every_episode_is_answerable_and_does_not_show_its_query(task: Toy, index: int) -> None:
    query = task.queries[index]
    pool = list(task.pool(query))
    assert len(query.choices) == len(set(query.choices)) == task.ways
    if task.names != "classes":
        assert not any(a in b for a in query.choices for b in query.choices if a is not b)
    assert query.answer in query.choices
    assert query.references == (query.answer,)

    named = {example.metadata["class"]: example.answer for example in pool}
    assert len(named) == len(set(named.values())) == task.ways
    assert named[query.metadata["class"]] == query.answer
    assert all(named[e.metadata["class"]] == e.answer for e in pool)
    counts = Counter(e.metadata["class"] for e in pool)
    assert min(counts.values()) >= task.shots_per_class

    assert query.images[0].name not in {e.images[0].name for e in pool}
    assert query.images[0].name.startswith(query.metadata["class"] + "/")
    assert all(e.images[0].name.startswith(e.metadata["class"] + "/") for e in pool)
    assert len({e.id for e in (*pool, query)}) == len(pool) + 1
    if task.within_group:
        group = {c.key: c.group for c in task.concepts}
        assert len({group[key] for key in named}) == 1


def test_episodes_do_not_depend_on_the_order_in_which_they_are_asked_for() -> None:
    concepts = [concept(i) for i in range(9)]
    forwards, backwards = toy(concepts, ways=4), toy(concepts, ways=4)
    seen = [(q, list(forwards.pool(q))) for q in forwards.queries]
    for index in reversed(range(20)):
        query = backwards.queries[index]
        assert query == seen[index][0]
        assert list(backwards.pool(query)) == seen[index][1]
    assert [q.id for q in forwards.queries[3:9:2]] == [seen[i][0].id for i in (3, 5, 7)]
    assert len({q.id for q in forwards.queries}) == 20


def test_another_seed_gives_other_episodes() -> None:
    concepts = [concept(i) for i in range(9)]
    a, b = toy(concepts, seed=0), toy(concepts, seed=1)
    assert [q.metadata["class"] for q in a.queries] != [q.metadata["class"] for q in b.queries]
    assert [q.choices for q in a.queries] != [q.choices for q in b.queries]


def test_neither_class_nor_place_of_the_right_name_is_preferred() -> None:
    task = toy([concept(i) for i in range(5)], ways=4, episodes=1000)
    queries = list(task.queries)
    classes = Counter(q.metadata["class"] for q in queries)
    places = Counter(q.choices.index(q.text_answer) for q in queries)
    # 4 standard deviations of a binomial count around its mean
    assert all(abs(n - 200) < 4 * 12.7 for n in classes.values()), classes
    assert len(classes) == 5
    assert all(abs(n - 250) < 4 * 13.7 for n in places.values()), places
    assert len(places) == 4
    rivals = Counter(c.key for i in range(1000) for c in task.draw(i).concepts)
    assert all(abs(n - 800) < 4 * 12.7 for n in rivals.values()), rivals


def test_the_pool_holds_all_other_pictures_of_the_classes() -> None:
    task = toy([concept(0, 3), concept(1, 5)])
    for query in task.queries:
        names = {e.images[0].name for e in task.pool(query)} | {query.images[0].name}
        assert names == {f"c0/{i}" for i in range(3)} | {f"c1/{i}" for i in range(5)}


def test_only_queries_of_the_task_have_a_pool() -> None:
    task = toy([concept(0), concept(1)], episodes=3)
    strangers = [Example((picture("x"),), answer="a"), task.queries[0].with_(id="episode-00002")]
    strangers.append(toy([concept(0), concept(1)], episodes=9).queries[8])
    for stranger in strangers:
        with pytest.raises(DataError, match="no query of the task 'toy'"):
            task.pool(stranger)
    assert len(task.pool(task.queries[0].with_(answer=None, references=()))) == 7
    assert list(task.support) == []


def test_shots_are_counted_in_total() -> None:
    concepts = [concept(i, 6) for i in range(5)]
    assert toy(concepts, ways=5, shots_per_class=3).shots == (15,)


@pytest.mark.parametrize(
    ("concepts", "options", "message"),
    [
        ([], {}, "toy classes: no classes found"),
        ([concept(0), concept(0)], {}, "two classes of one name: c0"),
        ([concept(0, name="Tern"), concept(1, name="tern")], {"names": "classes"}, "two classes of one name: tern"),
        ([concept(0), concept(1, 2)], {"shots_per_class": 2}, r"c1 \(2 of 3\)"),
        ([concept(0), concept(1, 0)], {}, r"c1 \(0 of 2\)"),
        ([concept(0, 2, queries=1), concept(1, 1, queries=1)], {"shots_per_class": 2}, r"c1 \(1 of 2\)"),
        ([concept(0), concept(1)], {"ways": 3}, "ways=3: toy classes: only 2 classes"),
        ([concept(i, group=f"g{i}") for i in range(4)], {"within_group": True}, "only 1 classes in the largest group"),
        ([concept(0), concept(1)], {"ways": 1}, "ways=1: must be 2 or more"),
        ([concept(0), concept(1)], {"episodes": 0}, "episodes=0: must be 1 or more"),
        ([concept(0), concept(1)], {"shots_per_class": 0}, "shots_per_class=0: must be 1 or more"),
        ([concept(0), concept(1)], {"names": "real"}, "names='real': must be one of invented, letters"),
        ([concept(0), concept(1)], {"style": "chat"}, "style='chat': must be one of plain, link"),
    ],
)
def test_classes_that_make_no_episode_are_refused(concepts: list[Concept], options: dict, message: str) -> None:
    with pytest.raises((DataError, OptionError), match=message):
        toy(concepts, **options)


def test_equal_class_names_do_no_harm_where_they_are_not_shown() -> None:
    assert len(set(toy([concept(0, name="tern"), concept(1, name="tern")]).queries[0].choices)) == 2


def test_groups_too_small_for_an_episode_are_left_out_and_reported() -> None:
    concepts = [concept(i, group="large") for i in range(4)] + [concept(i, group="small") for i in range(4, 6)]
    task = toy(concepts, ways=3, within_group=True, episodes=50)
    assert task.left_out == ("small",)
    assert task.describe()["left_out_groups"] == ["small"]
    assert {q.metadata["category"] for q in task.queries} == {"large"}


def test_names_of_the_unseen_family_never_meet_the_seen_one() -> None:
    seen = {invent_name(np.random.default_rng(i), seen=True) for i in range(400)}
    unseen = {n for i in range(50) for n in make_names("unseen", 5, generator(i))}
    assert not seen & unseen
    with pytest.raises(OptionError, match="100 names"):
        make_names("letters", 100, _OneLetter())  # type: ignore[arg-type]


class _OneLetter:
    """A generator that knows one number only."""

    def integers(self, low: int, high: int, size: int | None = None) -> object:
        return low if size is None else [low] * size


def test_generators_depend_on_all_their_parts() -> None:
    draws = [
        generator(*parts).integers(2**60) for parts in [(0, "a", 1), (1, "a", 1), (0, "b", 1), (0, "a", 2), (0, "a1")]
    ]
    assert len(set(draws)) == 5
    assert generator(0, "a", 1).integers(2**60) == draws[0]


def test_lazy_sequences_make_nothing_before_it_is_asked_for() -> None:
    made: list[int] = []
    items = LazySequence(10, lambda i: made.append(i) or i * i)  # type: ignore[func-returns-value]
    part = items[2:9:3]
    assert made == []
    assert list(part) == [4, 25, 64]
    assert items[-1] == 81
    with pytest.raises(IndexError):
        items[10]
    assert made == [2, 5, 8, 9]


def pair(style: str) -> tuple[Toy, Episode]:
    task = toy([concept(0, name="airstone"), concept(1, name="stone")], names="classes", style=style)
    query = next(q for q in task.queries if q.answer == "airstone")
    pool = task.pool(query)
    shown = [next(e for e in pool if e.answer == name) for name in ("stone", "airstone")]
    return task, Episode(tuple(shown), query)


def test_plain_wording() -> None:
    task, episode = pair("plain")
    assert render_plain(episode, task.template).text() == (
        "<image>Question:What is it? Short answer:stone.\n\n"
        "<image>Question:What is it? Short answer:airstone.\n\n"
        "<image>Question:What is it? Short answer:"
    )
    assert task.parse("airstone.\n\n<image>Question") == "airstone"


def test_link_wording_is_the_published_one() -> None:
    task, episode = pair("link")
    before = 'USER: [BEGIN EXAMPLE] What is in the image <image>? ASSISTANT: there is "'
    assert render_plain(episode, task.template, answer="airstone").text() == (
        "You should find the causal relationship between the examples I am going to show you. "
        "And use that to answer to the [FINAL QUESTION]. "
        f'{before}stone" in the image. [END EXAMPLE] '
        f'{before}airstone" in the image. [END EXAMPLE] '
        "[FINAL QUESTION]: USER: Based on the previous examples, what is in the image <image>? "
        'ASSISTANT: there is "airstone" in the image.'
    )


def test_link_wording_in_chats() -> None:
    task, episode = pair("link")

    def chat(messages: list[dict], tokenize: bool, add_generation_prompt: bool) -> str:
        turns = [
            f"<{m['role']}>" + "".join("<image>" if c["type"] == "image" else c["text"] for c in m["content"])
            for m in messages
        ]
        return "".join(turns) + "<assistant>" * add_generation_prompt

    text = render_chat(episode, task.template, chat, "<image>").text()
    assert '<user>What is in the image <image>?<assistant>there is "airstone" in the image.' in text
    assert text.endswith("<user>Based on the previous examples, what is in the image <image>?<assistant>")


@pytest.mark.parametrize(
    "said",
    [
        'airstone" in the image. [END EXAMPLE] USER: what is',
        'there is "airstone" in the image.',
        'there is "airstone". There is "stone" too',
        "there is airstone in the image",
        'There is "airstone" in the image.',
        'airstone", not "stone"',
        '"airstone"',
        " airstone",
    ],
)
def test_link_answers_are_understood_in_both_prompt_forms(said: str) -> None:
    task, episode = pair("link")
    assert task.parse(said) == "airstone"
    assert metrics.get("two_name")([task.parse(said)], [episode.query]).value == 1.0


@pytest.mark.parametrize(
    "said", ['The picture shows an "airstone".', 'This is not a "stone" but airstone', "an Airstone!"]
)
def test_link_answers_in_another_form_are_left_to_the_metric(said: str) -> None:
    task, episode = pair("link")
    assert task.parse(said) == said
    expected = "other" if 'stone" but' in said else "right"  # what stands in quotation marks counts
    assert metrics.get("two_name")([task.parse(said)], [episode.query]).details[expected] == 1.0


def test_templates_can_be_changed_field_by_field() -> None:
    task = toy([concept(0), concept(1)], template={"instruction": "Look."})
    assert task.template.instruction == "Look."
    assert task.template.demonstration == "<image>Question:{question} Short answer:{answer}."


def test_balanced_demonstrations_show_every_class_equally_often() -> None:
    task = load_task("digits", ways=3, episodes=20)
    for episode in choose(task, task.retriever, shots=6, seed=0).episodes(task):
        assert Counter(e.answer for e in episode.demonstrations) == dict.fromkeys(episode.query.choices, 2)


_GENERATED = [
    ("glyphs", {"ways": 3}),
    ("digits", {"names": "letters"}),
    ("scenes", {"labels": "invented"}),
    ("scenes", {}),
]


def fingerprint(task: Task) -> str:
    """Everything that identifies the episodes of a task: texts, order, and pixels."""
    hasher = hashlib.blake2b()
    for query in task.queries[::97]:
        pool = task.pool(query)
        hasher.update(repr((query.id, query.answer, query.choices, query.images[0].digest)).encode())
        hasher.update(repr([(e.id, e.answer, e.images[0].digest) for e in pool[:9]]).encode())
    return hasher.hexdigest()


def test_episodes_are_the_same_in_another_process() -> None:
    here = [fingerprint(load_task(name, **options)) for name, options in _GENERATED]
    code = (
        f"import tests.data.test_concepts as t\nfor n, o in {_GENERATED!r}: print(t.fingerprint(t.load_task(n, **o)))"
    )
    environment = os.environ | {"PYTHONHASHSEED": "12345", "PYTHONPATH": str(Path(__file__).parents[2])}
    out = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert out.stdout.split() == here
    assert len(set(here)) == len(here)


def test_names_can_be_drawn_from_a_list():
    task = load_task("glyphs", ways=2, episodes=20, names=["blue", "green", "tin"])
    offered = {name for query in task.queries for name in query.choices}
    assert offered == {"blue", "green", "tin"}
    assert load_task("glyphs", ways=2, episodes=1, names=["invented"]).names == "invented"
    for wrong in (["one"], ["a", "a"], ["a", " "], "funny"):
        with pytest.raises(OptionError, match="names"):
            load_task("glyphs", ways=2, names=wrong)
    with pytest.raises(OptionError, match="could not be found"):
        list(load_task("glyphs", ways=3, episodes=1, names=["a", "ab", "b"]).queries)
