"""Tables, plots and pictures: what is in them, not how they look."""

from __future__ import annotations

import csv
import io

import pytest
from PIL import Image

import kshot
from kshot.errors import DataError, OptionError
from kshot.evaluation.picture import save_prompt_picture
from kshot.evaluation.plots import plot
from kshot.evaluation.report import markdown_table
from kshot.prompt import render_plain
from tests.evaluation.toys import Lookup, Swatches


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    kshot.evaluate(Lookup(), Swatches(queries=30), shots=(0, 3), seeds=2, controls="shuffled-labels", out=folder / "a")
    kshot.evaluate(Lookup(), Swatches(queries=12, bad=(1,)), shots=(0, 6), on_bad_image="skip", out=folder / "b")
    return folder


def test_the_table_of_a_run(runs):
    lines = (runs / "a" / "results.md").read_text().splitlines()
    assert any(line.startswith("| intact | 3 | 1.000 | 1.000 .. 1.000 | ± 0.000 | 30 |") for line in lines)
    assert any(line.startswith("| none | 0 | 0.000 |") for line in lines)
    assert any(line.startswith("| red | 10 |") for line in lines)
    rows = list(csv.DictReader(io.StringIO((runs / "a" / "results.csv").read_text())))
    assert [(row["demonstrations"], row["shots"], row["seeds"]) for row in rows] == [
        ("demonstrations", "0", "1"),
        ("demonstrations", "3", "2"),
        ("shuffled-labels", "3", "2"),
    ]
    assert {row["model"] for row in rows} == {"lookup"}


def test_text_of_data_cannot_break_a_table():
    assert markdown_table(("a",), [("x|y\nz",)])[-1] == "| x\\|y z |"


def test_plots_are_pictures_and_the_same_each_time(runs):
    from kshot.evaluation.compare import load_run

    result = load_run(runs / "a")
    assert plot([result]) == plot([result])
    assert Image.open(io.BytesIO(plot([result]))).size[0] > 600


def test_compare_puts_runs_side_by_side_and_warns(runs, tmp_path):
    found = kshot.compare([runs / "a", runs / "b"], out=tmp_path / "out")
    assert found.names == ("a", "b")
    text = (tmp_path / "out" / "comparison.md").read_text()
    assert "| intact | 3 | 1.000 [1.000, 1.000] |  |" in text
    assert "| intact | 6 |  | 1.000 [1.000, 1.000] |" in text
    assert "answered different queries" in text
    assert "skipped in some runs" in text
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out" / "comparison.csv").read_text())))
    assert {row["run"] for row in rows} == {"a", "b"}
    assert Image.open(tmp_path / "out" / "comparison.png").format == "PNG"


def test_compare_needs_runs(tmp_path):
    with pytest.raises(OptionError, match="one or more"):
        kshot.compare([])
    with pytest.raises(DataError, match="file not found"):
        kshot.compare([tmp_path])
    (tmp_path / "metrics.json").write_text('{"rows": ')
    with pytest.raises(DataError, match="not valid JSON"):
        kshot.compare(tmp_path)


def test_runs_of_one_name_are_told_apart_by_their_folders(runs):
    from kshot.evaluation.compare import _names

    assert _names([runs / "a" / "x", runs / "b" / "x"]) == ("a/x", "b/x")


def test_show_gives_the_prompt_and_the_answer(tmp_path):
    class Speaking(Lookup):
        """A model that shows its prompts, as vision-language models do."""

        def prompt(self, episode, template, style):
            return render_plain(episode, template)

        def encode(self, episode, template, style):
            from types import SimpleNamespace

            return SimpleNamespace(tokens=None)

    shown = kshot.show(Swatches(), Speaking(), query=4, shots=3, save=tmp_path / "p.png")
    assert shown.episode.query.id == "q4"
    assert shown.answer == " wug\nand so on"
    assert str(shown).count("<image>") == 4
    assert Image.open(tmp_path / "p.png").format == "PNG"
    blank = kshot.show(Swatches(), query=4, shots=3, control="no-query-image")
    assert str(blank).count("<image>") == 3
    with pytest.raises(OptionError, match="queries 0 to 149"):
        kshot.show(Swatches(), query=150)


GREEN, RED = (34, 104, 58), (179, 55, 43)


@pytest.mark.parametrize(("answer", "colour", "other"), [("wug", GREEN, RED), ("dax", RED, GREEN)])
def test_the_picture_says_whether_the_answer_is_right(tmp_path, answer, colour, other):
    episode = kshot.show(Swatches(), query=4, shots=3).episode
    save_prompt_picture(
        episode, render_plain(episode, Swatches.template), answer, tmp_path / "p.png", correct=answer == "wug"
    )
    pixels = set(Image.open(tmp_path / "p.png").convert("RGB").get_flattened_data())
    assert colour in pixels
    assert other not in pixels or colour is RED  # the labels that are shown have green letters


def test_the_picture_holds_every_image_any_words_and_no_image_at_all(tmp_path):
    many = kshot.Example(
        [Image.new("RGB", (9, 5), (250, 0, n)) for n in range(3)],
        "x" * 300 + "\n\nمرحبا \x00\x1b\ud800\ue000\U0010ffff",
        "a",
        id="odd",
    )
    none = kshot.Example((), "nothing to see", "b")
    episode = kshot.Episode((many, none), none, instruction="Do as the examples do. " * 20)
    save_prompt_picture(episode, render_plain(episode, Swatches.template), "", tmp_path / "p.png")
    pixels = set(Image.open(tmp_path / "p.png").convert("RGB").get_flattened_data())
    assert {(250, 0, n) for n in range(3)} <= pixels
