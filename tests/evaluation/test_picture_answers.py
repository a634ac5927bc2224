"""Tasks that are answered by pictures go through the same evaluation."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import kshot
from kshot.data.task import Task
from kshot.episode import Episode, Example
from kshot.errors import DataError, OptionError
from kshot.picture import Picture, as_picture
from kshot.prompt import Template, TokenizedPrompt
from tests.evaluation.toys import Lookup, Swatches


def noise(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (6, 6, 3), dtype=np.uint8)


def image(values: np.ndarray) -> Image.Image:
    return Image.fromarray(values.astype(np.uint8))


class Negatives(Task):
    """The answer is the picture's negative."""

    name = "negatives"
    answers = "picture"
    metric = "pixel_l1"
    shots = (0, 2)
    template = Template("<image>{answer}")

    def __init__(self, bad: bool = False):
        self._examples = [Example(image(noise(i)), answer=image(255 - noise(i)), id=f"pairs/{i}") for i in range(70)]
        if bad:
            self._examples[3] = self._examples[3].with_(images=(as_picture(b"no picture", "broken.png"),))

    @property
    def queries(self):
        return self._examples[:66]

    @property
    def support(self):
        return self._examples[66:]


class Copier:
    """Does what the demonstrations do if they all show the negative, and repeats the query otherwise."""

    name = "copier"

    def answer_episodes(self, episodes: list[Episode], **options: object) -> list[Picture]:
        return [self._one(episode) for episode in episodes]

    def _one(self, episode: Episode) -> Picture:
        shown = [(np.asarray(d.images[0].load()), np.asarray(d.answer.load())) for d in episode.demonstrations]
        values = np.asarray(episode.query.images[0].load())
        learnt = shown and all((x.astype(int) + y == 255).all() for x, y in shown)
        return as_picture(image(255 - values if learnt else values))

    def describe(self) -> dict[str, object]:
        return {"name": self.name}


def test_pictures_are_answers_scored_and_kept(tmp_path):
    found = kshot.evaluate(Copier(), Negatives(), controls="shuffled-labels", out=tmp_path / "run")
    none, two, shuffled = found.rows
    assert (none.kind, none.shots, two.shots, shuffled.kind) == ("demonstrations", 0, 2, "shuffled-labels")
    assert two.value == 0
    expected = np.mean([np.abs(255 - 2 * noise(i).astype(float)).mean() / 255 for i in range(66)])
    assert none.value == pytest.approx(expected)
    assert 0 < shuffled.value < none.value  # half of the permutations of two leave the answers where they are
    rows = [
        json.loads(line)
        for line in (tmp_path / "run" / "predictions" / "shots-2_seed-0.jsonl").read_text().splitlines()
    ]
    assert [row["id"] for row in rows] == [f"pairs/{i}" for i in range(66)]
    kept = tmp_path / "run" / "pictures" / "shots-2_seed-0"
    assert len({row["prediction"] for row in rows}) == 66
    assert (np.asarray(Image.open(kept / rows[5]["prediction"])) == 255 - noise(5)).all()
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    again = kshot.evaluate(Copier(), Negatives(), controls="shuffled-labels", out=tmp_path / "run")
    assert again.rows == found.rows
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def test_a_bad_picture_is_skipped_and_listed():
    found = kshot.evaluate(Copier(), Negatives(bad=True), shots=2, on_bad_image="skip")
    assert found.rows[0].queries == 65
    (left_out,) = found.rows[0].seeds[0].skipped
    assert left_out["id"] == "pairs/3"
    with pytest.raises(DataError, match=r"broken\.png"):
        kshot.evaluate(Copier(), Negatives(bad=True), shots=2)


def test_models_and_tasks_must_speak_the_same_language():
    with pytest.raises(OptionError, match="answered by pictures, which 'lookup' does not make"):
        kshot.evaluate(Lookup(), Negatives())
    with pytest.raises(OptionError, match="answered by texts, which 'copier' does not make"):
        kshot.evaluate(Copier(), Swatches())
    with pytest.raises(OptionError, match="no candidates"):
        kshot.evaluate(Copier(), Negatives(), scoring="likelihood")


def test_a_prompt_of_pictures_is_shown_with_the_answer_behind_the_query(tmp_path):
    class Shower(Copier):
        def encode(self, episode: Episode) -> SimpleNamespace:
            return SimpleNamespace(tokens=TokenizedPrompt((), (), 0))

    bare = kshot.show(Negatives(), shots=2)
    assert [(s.role, s.index, s.is_answer) for s in bare.prompt.segments if s.picture is not None] == [
        ("demonstration", 0, False),
        ("demonstration", 0, True),
        ("demonstration", 1, False),
        ("demonstration", 1, True),
        ("query", -1, False),
    ]
    shown = kshot.show(Negatives(), Shower(), shots=2, query=4, save=tmp_path / "prompt.png")
    assert (np.asarray(shown.prompt.pictures[-1].load()) == 255 - noise(4)).all()
    assert Image.open(tmp_path / "prompt.png").size[0] > 100
    assert len(shown.prompt.pictures) == 6
