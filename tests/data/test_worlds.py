"""Glyphs and digits: n-way tasks that need no download."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from sklearn.datasets import load_digits

from kshot.data.drawing import draw_glyph
from kshot.data.worlds import DIGITS_SUPPORT, SPLITS, Digits, Glyphs
from kshot.errors import OptionError


def test_splits_of_the_seeds_do_not_overlap() -> None:
    spans = sorted((span.start, span.stop) for span in SPLITS.values())
    assert all(a[1] <= b[0] for a, b in pairwise(spans))


def test_glyphs_are_drawn_from_the_seeds_of_their_split() -> None:
    for split in ("test", "validation", "train"):
        task = Glyphs(split=split, episodes=50)  # type: ignore[arg-type]
        for query in task.queries:
            class_seed = int(query.metadata["class"].removeprefix("glyph"))
            assert class_seed in SPLITS[split]
    query = Glyphs(episodes=1).queries[0]
    class_seed, sample = (int("".join(filter(str.isdigit, part))) for part in query.images[0].name.split(","))
    assert np.array_equal(query.images[0].load(), draw_glyph(class_seed, sample))
    assert query.metadata["class"] == f"glyph{class_seed}"


def test_glyphs_take_the_sizes_asked_for() -> None:
    task = Glyphs(ways=20, classes=20, drawings=3, shots_per_class=2, episodes=5)
    assert [len(task.pool(q)) for q in task.queries] == [59] * 5
    assert task.shots == (40,)
    assert task.describe()["split"] == "test"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"names": "classes"}, "glyphs have no names of their own"),
        ({"split": "dev"}, "split='dev': must be one of validation, test, train"),
        ({"classes": 0}, "classes=0: must be 1"),
        ({"classes": 3}, "ways=5: glyphs .test.: only 3 classes"),
    ],
)
def test_glyphs_that_cannot_be(options: dict, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Glyphs(**options)


def test_digits_are_the_real_ones_black_on_white() -> None:
    data = load_digits()
    names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    task = Digits(ways=10, names="classes", episodes=60)
    for query in task.queries:
        number = int(query.images[0].name.split()[-1])
        assert number >= DIGITS_SUPPORT
        assert query.answer == names[data.target[number]]
        image = query.images[0].load()
        small = np.asarray(image.convert("L").resize((8, 8)), dtype=float)
        assert np.corrcoef(small.ravel(), data.images[number].ravel())[0, 1] < -0.9  # ink is dark
        assert np.asarray(image)[0, 0].tolist() == [255, 255, 255]
    pool = task.pool(task.queries[0])
    numbers = [int(e.images[0].name.split()[-1]) for e in pool]
    assert sorted(numbers) == list(range(DIGITS_SUPPORT))
    assert all(e.answer == names[data.target[n]] for e, n in zip(pool, numbers, strict=True))


def test_digits_under_invented_names_change_their_names_from_episode_to_episode() -> None:
    task = Digits(episodes=400)
    zeros = Counter(q.answer for q in task.queries if q.metadata["class"] == "zero")
    assert len(zeros) > 0.9 * zeros.total() > 20


def test_there_are_ten_digits() -> None:
    with pytest.raises(OptionError, match="ways=11: digits: only 10 classes"):
        Digits(ways=11)
