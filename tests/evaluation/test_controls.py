"""Controls take one ingredient away and leave everything else as it is."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from kshot.data.demonstrations import choose
from kshot.episode import Episode
from kshot.evaluation.controls import GREY, controls
from tests.evaluation.toys import Lookup, Swatches, colour_of


@pytest.fixture(scope="module")
def task() -> Swatches:
    return Swatches(queries=900)


def episodes(task: Swatches, shots: int = 6, most: int | None = None) -> list[Episode]:
    return choose(task, "balanced", shots, 0, queries=task.queries[:most]).episodes(task)


def described(episode: Episode) -> list[tuple]:
    """All that a model sees of an episode; drawn pictures are compared by their pixels."""
    examples = (*episode.demonstrations, episode.query)
    return [(e.id, e.question, e.answer, e.references, e.choices, [p.digest for p in e.images]) for e in examples]


@pytest.mark.parametrize("name", controls.names())
def test_a_control_is_a_pure_function_that_keeps_query_id_and_shots(task, name):
    control = controls.get(name)
    for episode in episodes(task, most=4):
        changed = control.change(episode, 3)
        assert described(changed) == described(control.change(episode, 3))
        assert (changed.query.id, changed.shots, changed.id) == (episode.query.id, episode.shots, episode.id)
        assert changed.query.references == episode.query.references
        assert changed.query.question == episode.query.question


def test_shuffled_labels_are_the_same_labels_on_the_same_images(task):
    for episode in episodes(task)[:50]:
        changed = controls.get("shuffled-labels").change(episode, 0)
        assert Counter(d.answer for d in changed.demonstrations) == Counter(d.answer for d in episode.demonstrations)
        assert [d.images for d in changed.demonstrations] == [d.images for d in episode.demonstrations]
        assert all(d.references == (d.answer,) for d in changed.demonstrations)
        assert changed.query is episode.query


def test_a_perfect_learner_falls_to_chance_when_labels_are_shuffled(task):
    model = Lookup()
    changed = [controls.get("shuffled-labels").change(e, 0) for e in episodes(task, shots=3)]
    right = [
        task.parse(text) in e.query.references
        for text, e in zip(model.answer(changed, template=task.template), changed, strict=True)
    ]
    # 900 queries, chance 1/3: a label that told what an image is *not* (a derangement) would give 0.
    assert np.mean(right) == pytest.approx(1 / 3, abs=4 * np.sqrt(2 / 9 / 900))


def test_the_permutation_depends_on_seed_and_query_only(task):
    change = controls.get("shuffled-labels").change
    some = episodes(task, shots=12)[:30]
    first = [tuple(d.answer for d in change(e, 0).demonstrations) for e in some]
    assert first == [tuple(d.answer for d in change(e, 0).demonstrations) for e in reversed(some)][::-1]
    assert first != [tuple(d.answer for d in change(e, 1).demonstrations) for e in some]
    assert len(set(first)) > 20


def test_blank_images_are_grey_of_the_same_size_and_keep_the_query(task):
    episode = episodes(task)[0]
    changed = controls.get("blank-images").change(episode, 0)
    for old, new in zip(episode.demonstrations, changed.demonstrations, strict=True):
        image = new.images[0].load()
        assert image.size == old.images[0].load().size
        assert set(image.get_flattened_data()) == {GREY}
        assert new.answer == old.answer
    assert changed.query is episode.query
    assert colour_of(changed.query.images[0]) != "grey"


def test_no_query_image_keeps_the_demonstrations(task):
    episode = episodes(task)[0]
    changed = controls.get("no-query-image").change(episode, 0)
    assert changed.query.images == ()
    assert changed.demonstrations == episode.demonstrations
