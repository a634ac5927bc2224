"""Any task as training data."""

from __future__ import annotations

import json

import pytest

from kshot.data.concepts import PLAIN
from kshot.data.task import Task, load_task, tasks
from kshot.episode import Example
from kshot.errors import DataError, OptionError, UnknownName
from kshot.prompt import render_plain
from kshot.training.items import load_source
from kshot.training.task_source import TaskSource
from tests.data.formats import all_fixtures
from tests.training.link_toys import picture

FIXTURES = all_fixtures()


@pytest.fixture(scope="module")
def vqa(tmp_path_factory):
    return load_task("vqav2", **FIXTURES["vqav2"](tmp_path_factory.mktemp("vqav2")))


def key(item):
    examples = (*item.episode.demonstrations, item.episode.query)
    return [(e.id, e.answer) for e in examples]


@pytest.mark.parametrize("name", tasks.names())
def test_every_task_can_be_trained_on(name, tmp_path):
    """Its support set, or its queries where every episode has a support set of its own; tasks of pictures are refused."""
    task = load_task(name, **FIXTURES[name](tmp_path))
    if task.answers == "picture":
        with pytest.raises(OptionError, match="answered by pictures"):
            TaskSource(task)
        return
    of = "support" if len(task.support) else "queries"
    source = TaskSource(task, of=of)
    assert len(source) + len(source.skipped) == len(task.support if of == "support" else task.queries)
    item = source.item(0, 0)
    assert item.episode.shots == 0
    assert item.template == task.template
    answer = item.episode.query.text_answer
    assert answer
    assert answer in render_plain(item.episode, item.template, answer=answer).text()
    json.dumps(source.describe())


def test_each_example_comes_once_an_epoch(vqa):
    source = load_source({"kind": "task", "task": vqa})
    assert [source.item(1, i).episode.query.id for i in range(len(source))] == [e.id for e in vqa.support]
    assert load_source({"kind": "task", "task": vqa, "of": "queries"}).item(0, 0).episode.query.id == vqa.queries[0].id


def test_demonstrations_are_drawn_anew_each_epoch_and_never_show_the_example(vqa):
    source = TaskSource(vqa, shots=3, seed=1)
    assert len({str(key(source.item(epoch, 0))) for epoch in range(5)}) > 1
    for epoch in range(3):
        for index in range(len(source)):
            episode = source.item(epoch, index).episode
            assert episode.shots == 3
            assert episode.query.id not in {d.id for d in episode.demonstrations}
            images = {p.digest for p in episode.query.images}
            assert not images & {p.digest for d in episode.demonstrations for p in d.images}
    again = TaskSource(vqa, shots=3, seed=1)
    assert [key(again.item(2, i)) for i in (5, 0)] == [key(source.item(2, i)) for i in (5, 0)]
    other = TaskSource(vqa, shots=3, seed=2)
    assert [key(other.item(2, i)) for i in range(8)] != [key(source.item(2, i)) for i in range(8)]


def test_fixed_demonstrations_are_fixed_for_an_epoch(vqa):
    source = TaskSource(vqa, shots=2, retriever="fixed")
    shown = [
        {tuple(d.id for d in source.item(e, i).episode.demonstrations) for i in range(len(source))} for e in range(3)
    ]
    # where one of them is the query itself, or shows its image, another one stands in for it
    assert all(len(in_epoch) <= 6 for in_epoch in shown)
    assert shown[0] != shown[1] or shown[1] != shown[2]


def test_episodes_with_a_support_set_of_their_own():
    source = TaskSource(
        "glyphs", options={"episodes": 6, "classes": 9}, of="queries", shots=4, retriever="balanced", loss="all"
    )
    for index in range(6):
        item = source.item(0, index)
        assert item.graded == (True,) * 4
        assert {d.answer for d in item.episode.demonstrations} <= set(item.episode.query.choices)
    with pytest.raises(OptionError, match="of: queries trains on its queries"):
        TaskSource("glyphs", options={"episodes": 6, "classes": 9})


def test_loss_on_the_query_or_on_all(vqa):
    assert TaskSource(vqa, shots=2).item(0, 0).graded == ()
    assert TaskSource(vqa, shots=2, loss="all").item(0, 0).graded == (True, True)


def test_any_reference_may_be_the_answer(vqa):
    source = TaskSource(vqa, answer="any")
    for index, example in enumerate(vqa.support):
        said = {source.item(epoch, index).episode.query.answer for epoch in range(150)}
        assert said == set(example.references)
    assert source.item(3, 1).episode == source.item(3, 1).episode
    assert {TaskSource(vqa).item(epoch, 0).episode.query.answer for epoch in range(9)} == {vqa.support[0].answer}


class Partly(Task):
    """Examples of which one has no answer and one is answered by a picture."""

    name, template = "partly", PLAIN
    queries = support = tuple(
        Example((picture(i),), "what?", {0: None, 3: picture(9)}.get(i, "this"), id=f"r{i}") for i in range(5)
    )


def test_examples_without_an_answer_in_text_are_left_out_and_listed():
    source = TaskSource(Partly())
    assert source.skipped == ("r0", "r3")
    assert [source.item(0, i).episode.query.id for i in range(len(source))] == ["r1", "r2", "r4"]
    assert (source.describe()["examples"], source.describe()["skipped"]) == (3, 2)


def test_splits_without_answers_are_refused(tmp_path):
    options = FIXTURES["vqav2"](tmp_path) | {"split": "test-dev"}
    with pytest.raises(DataError, match=r"none of 4 examples has an answer in text.*take the split with answers"):
        TaskSource("vqav2", options=options, of="queries")


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({"shots": 99}, OptionError, "99 shots, but the support set holds only 8 examples"),
        ({"shots": -1}, OptionError, "cannot be negative"),
        ({"of": "test"}, OptionError, "support, queries"),
        ({"loss": "shown"}, OptionError, "query, all"),
        ({"answer": "all"}, OptionError, "own, any"),
        ({"retriever": "ranom"}, UnknownName, "did you mean 'random'"),
        ({"options": {"root": "x"}}, OptionError, "is made already"),
    ],
)
def test_what_is_refused(vqa, options, error, told):
    with pytest.raises(error, match=told):
        TaskSource(vqa, **options)


def test_an_unknown_task_is_named():
    with pytest.raises(UnknownName, match="did you mean"):
        load_source({"kind": "task", "task": "vqav3"})
