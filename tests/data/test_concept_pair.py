"""Two novel concepts with one support set."""

from __future__ import annotations

import pytest

from kshot.data.task import load_task
from kshot.errors import OptionError


@pytest.mark.parametrize("world", ["glyphs", "digits"])
def test_support_and_queries_are_balanced_and_disjoint(world):
    task = load_task("concept_pair", world=world, queries=20, support=30)
    names = task.labels
    assert len(set(names)) == 2
    for examples in (task.queries, task.support):
        assert [example.answer for example in examples].count(names[0]) == len(examples) / 2
        assert all(example.choices == names for example in examples)
    support, queries = ({e.images[0].digest for e in examples} for examples in (task.support, task.queries))
    assert (len(support), len(queries)) == (30, 20)
    assert not support & queries
    classes = {(e.metadata["class"], e.answer) for e in (*task.support, *task.queries)}
    assert len(classes) == 2
    assert len({key for key, _ in classes}) == 2


def test_pairs_differ_and_derive_from_the_seed():
    first, again, second = (load_task("concept_pair", pair=pair) for pair in (0, 0, 1))
    assert first.describe() == again.describe()
    assert first.labels == again.labels
    assert first.describe()["concepts"] != second.describe()["concepts"]
    assert not set(first.labels) & set(second.labels)
    assert load_task("concept_pair", seed=1).labels != first.labels
    assert first.queries[3].images[0].load().tobytes() == again.queries[3].images[0].load().tobytes()


def test_wrong_options_are_refused_in_words():
    with pytest.raises(OptionError, match="support=1: must be 2 or more"):
        load_task("concept_pair", support=1)
    with pytest.raises(OptionError, match="world='letters'"):
        load_task("concept_pair", world="letters")
    with pytest.raises(OptionError, match=r"support=500: there are \d+ images"):
        load_task("concept_pair", world="digits", support=500)
