"""Scenes with hidden tasks: what is asked, what the demonstrations show, and what cannot leak."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kshot.data.drawing import SCENE_TASKS, Scene, is_held_out
from kshot.data.drawing.scenes import BACKGROUNDS
from kshot.data.scenes import ASKING, QUESTION, WORDS, Scenes, draw_scene
from kshot.data.worlds import SPLITS
from kshot.episode import Example
from kshot.errors import DataError, OptionError
from kshot.metrics import metrics


def scene(example: Example) -> Scene:
    """The scene that an example shows, checked pixel by pixel."""
    *words, seed = example.images[0].name.removeprefix("scene ").split()
    found = Scene(*words, seed=int(seed))
    assert np.array_equal(example.images[0].load(), found.draw())
    return found


@pytest.mark.parametrize("held_out", ["query", "all", "none"])
def test_words_are_those_of_the_scene(held_out: str) -> None:
    task = Scenes(held_out=held_out, episodes=40)  # type: ignore[arg-type]
    for index, query in enumerate(task.queries):
        attribute = tuple(SCENE_TASKS)[index % 8]
        assert query.metadata["category"] == attribute
        shown = scene(query)
        assert query.answer == getattr(shown, attribute)
        assert is_held_out(shown.colour, shown.shape) == (held_out != "none")
        for example in task.pool(query)[:5]:
            demonstration = scene(example)
            assert example.answer == getattr(demonstration, attribute)
            assert is_held_out(demonstration.colour, demonstration.shape) == (held_out == "all")
            assert demonstration.seed in SPLITS["test"]
        assert len({e.images[0].name for e in (*task.pool(query), query)}) == 65


def test_the_background_can_be_seen_in_the_picture() -> None:
    task = Scenes("background", episodes=30)
    for query in task.queries:
        assert tuple(np.asarray(query.images[0].load())[0, 0]) == BACKGROUNDS[query.text_answer]


def test_nothing_but_the_demonstrations_tells_the_task() -> None:
    task = Scenes()
    assert {q.question for q in task.queries} == {"What is it?"}
    assert {task.candidates(q) for q in task.queries} == {WORDS}
    assert set(WORDS) == {w for words in SCENE_TASKS.values() for w in words}
    assert {q.choices for q in task.queries} == {()}
    assert Counter(q.metadata["category"] for q in task.queries) == dict.fromkeys(SCENE_TASKS, 100)
    assert (task.metric, task.retriever, task.shots) == ("exact_match", "random", (0, 1, 2, 4, 8))


def test_figures_are_reported_by_task() -> None:
    task = Scenes(episodes=16)
    result = metrics.get("exact_match")([q.text_answer for q in task.queries], list(task.queries))
    assert set(result.categories) == set(SCENE_TASKS)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["invented", "permuted"]),
    st.sampled_from(["query", "all", "none"]),
    st.integers(2, 3),
    st.integers(0, 10**6),
    st.integers(0, 5),
)
def test_renamed_episodes_are_consistent(labels: str, held_out: str, ways: int, seed: int, index: int) -> None:
    attributes = ("colour", "shape", "position", "count", "background", "outline_colour")
    task = Scenes(attributes, labels=labels, held_out=held_out, ways=ways, seed=seed, pool_size=8)  # type: ignore[arg-type]
    query, attribute = task.queries[index], attributes[index]
    pool = list(task.pool(query))
    names: dict[str, set[str]] = {}
    for example in (*pool, query):
        shown = scene(example)
        held = held_out == "all" if example is not query else held_out != "none"
        assert is_held_out(shown.colour, shown.shape) == held
        value = getattr(shown, attribute)
        names.setdefault(value, set()).add(example.text_answer)
    assert len(names) == ways
    assert all(len(given) == 1 for given in names.values())  # one name for each value, the query's included
    assert {n for given in names.values() for n in given} == set(query.choices)
    assert len(set(query.choices)) == ways
    counts = Counter(e.answer for e in pool)
    assert max(counts.values()) - min(counts.values()) <= 1
    assert counts[query.answer] > 0
    if labels == "permuted":
        assert all(value not in given for value, given in names.items())
        assert set(query.choices) == set(names)
    else:
        assert not set(query.choices) & set(WORDS)
    assert query.text_answer in task.candidates(query)
    assert (task.metric, task.retriever, task.shots) == ("two_name", "balanced", (ways, 2 * ways, 4 * ways))


def test_all_values_are_asked_for_in_renamed_episodes() -> None:
    task = Scenes("outline_shape", labels="permuted", episodes=400)
    asked = Counter(q.text_answer for q in task.queries)
    assert set(asked) == set(SCENE_TASKS["outline_shape"])
    assert all(abs(n - 80) < 4 * 8 for n in asked.values()), asked
    places = Counter(q.choices.index(q.text_answer) for q in task.queries)
    assert abs(places[0] - 200) < 4 * 10


def test_scenes_are_drawn_as_those_that_the_model_learns_from() -> None:
    """Fixed words aside, the distribution is that of ``Scene.random``: uniform over the scenes that are possible."""
    rng = np.random.default_rng(0)
    for held_out in (False, True):
        ours = [draw_scene(rng, held_out=held_out) for _ in range(1500)]
        theirs = [Scene.random(seed, held_out=held_out) for seed in range(1500)]
        for attribute in SCENE_TASKS:
            a, b = (Counter(getattr(s, attribute) for s in scenes) for scenes in (ours, theirs))
            assert all(abs(a[w] - b[w]) < 4 * (2 * 1500 * 0.25) ** 0.5 for w in a | b), (attribute, a, b)
        assert all(is_held_out(s.colour, s.shape) == held_out for s in ours)
        assert all(draw_scene(rng, held_out=held_out, fixed={"shape": "cross"}).shape == "cross" for _ in range(50))


def test_the_common_support_set_is_of_seeds_that_no_query_uses() -> None:
    task = Scenes(("count", "size"))
    support = task.support
    assert len(support) == 1024
    for number in (0, 1, 700, 1023):
        found = scene(support[number])
        assert found.seed in SPLITS["validation"]
        assert support[number].answer == getattr(found, ("count", "size")[number % 2])
    assert len(Scenes(labels="invented").support) == 0


def test_episodes_do_not_depend_on_the_order_in_which_they_are_asked_for() -> None:
    def look(task: Scenes, index: int) -> list[tuple]:
        query = task.queries[index]
        return [(e.id, e.answer, e.choices, e.images[0].name) for e in (query, *task.pool(query)[:9])]

    for labels in ("words", "invented", "permuted"):
        task = Scenes(labels=labels, episodes=16)  # type: ignore[arg-type]
        forwards = [look(task, i) for i in range(16)]
        assert [look(Scenes(labels=labels, episodes=99), i) for i in reversed(range(16))] == forwards[::-1]  # type: ignore[arg-type]
        assert forwards != [look(Scenes(labels=labels, episodes=16, seed=1), i) for i in range(16)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": "color"}, "tasks='color': must be one of colour, shape"),
        ({"tasks": ()}, "name at least one attribute"),
        ({"tasks": ("size", "size")}, "and each once"),
        ({"labels": "renamed"}, "labels='renamed': must be one of words"),
        ({"held_out": True}, "held_out=True: must be one of query"),
        ({"episodes": 0}, "episodes=0: must be 1 or more"),
        ({"labels": "invented", "ways": 3}, "ways=3: too few values in size; name others with tasks=: colour, shape"),
        (
            {"labels": "permuted", "ways": 6, "held_out": "all", "tasks": "colour"},
            "too few values in colour; .*: outline_colour",
        ),
        ({"labels": "permuted", "ways": 9, "tasks": "colour"}, "too few values in colour; ask for fewer ways"),
    ],
)
def test_options_that_make_no_episode(options: dict, message: str) -> None:
    with pytest.raises(OptionError, match=re.compile(message)):
        Scenes(**options)


def test_only_queries_of_the_task_have_a_pool() -> None:
    task = Scenes(episodes=3)
    with pytest.raises(DataError, match="no query of the task 'scenes'"):
        task.pool(Scenes(episodes=9).queries[8])


def test_questions_can_say_what_is_meant():
    task = Scenes(ask="named", episodes=16)
    assert [q.question for q in task.queries] == [ASKING[q.metadata["category"]] for q in task.queries]
    assert [s.question for s in task.support[:8]] == list(ASKING.values())
    assert len(set(ASKING.values())) == 8
    assert Scenes(episodes=2).queries[0].question == QUESTION
