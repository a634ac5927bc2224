"""``kshot imagine``: prompts from files, sheets of pictures, and results that can be traced."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from kshot.cli import main
from kshot.errors import BadImage, ContextTooLong, DataError, ModelError, OptionError
from kshot.evaluation.imagine import imagine
from kshot.evaluation.sheets import check_output, parse_size, save_picture, sheet
from tests.evaluation.visual_files import save_lines, save_model, save_pictures
from tests.visual.tiny import noise, tiny_visual_model


@pytest.fixture(scope="module")
def model():
    return tiny_visual_model()


@pytest.fixture
def pictures(tmp_path):
    return save_pictures(tmp_path / "pictures", 6)


def pixels(path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def test_the_command_writes_a_sheet(tmp_path, pictures, capsys):
    place = save_model(tmp_path / "model")
    out = tmp_path / "out"
    words = ["--prompt", ",".join(pictures[:3]), "--frames", "2", "--candidates", "3", "--out", str(out)]
    assert main(["imagine", "--model", str(place), *words, "--model.name", "mine"]) == 0
    assert "sheet.png" in capsys.readouterr().out
    assert pixels(out / "sheet.png").shape == (3 * 8, 2 * 8, 3)
    held = json.loads((out / "results.json").read_text())
    assert held["settings"]["top_k"] == 50
    assert held["settings"]["seed"] == 0
    assert held["model"]["name"] == "mine"
    assert held["prompts"][0]["input"] == pictures[:3]
    assert held["prompts"][0]["candidates"] == [0, 1, 2]


def test_rows_are_candidates_and_columns_frames(tmp_path, model, pictures):
    out = tmp_path / "out"
    imagine(model, prompt=pictures[:3], frames=2, candidates=3, out=str(out), separate=True, average=True)
    expected = model.imagine([pictures[:3]], 2, 3)[0].images
    found = pixels(out / "sheet.png")
    mean = np.mean([[np.asarray(image, float) for image in row] for row in expected], axis=0)
    assert np.abs(pixels(out / "sheet_average.png") - np.concatenate(mean, axis=1)).max() <= 1.0
    for row in range(3):
        for column in range(2):
            cell = found[row * 8 : row * 8 + 8, column * 8 : column * 8 + 8]
            assert np.array_equal(cell, np.asarray(expected[row][column]))
            alone = pixels(out / f"sheet_candidate-{row + 1}_frame-{column + 1}.png")
            assert np.array_equal(cell, alone)


def test_a_folder_is_a_prompt_in_the_order_of_numbers(tmp_path, model):
    folder = tmp_path / "film"
    folder.mkdir()
    for number in (2, 10, 1):
        noise(number).save(folder / f"f{number}.png")
    found = imagine(model, prompt=str(folder), out=str(tmp_path / "out"))
    assert [name.rpartition("/")[2] for name in found.rows[0]["input"]] == ["f1.png", "f2.png", "f10.png"]


@pytest.mark.parametrize(("option", "cell"), [(None, (8, 8)), ("original", (12, 12)), ("5,7", (5, 7)), ("5x7", (5, 7))])
def test_sizes(tmp_path, model, pictures, option, cell):
    imagine(model, prompt=pictures[:3], candidates=2, out=str(tmp_path / "o"), resize_output=option, include_input=True)
    with Image.open(tmp_path / "o" / "sheet.png") as found:
        assert found.size == (4 * cell[0], 2 * cell[1])


def test_inputs_stand_in_front(tmp_path, model, pictures):
    imagine(model, prompt=pictures[:3], out=str(tmp_path / "a"))
    imagine(model, prompt=pictures[:3], out=str(tmp_path / "b"), include_input=True)
    both = pixels(tmp_path / "b" / "sheet.png")
    assert np.array_equal(both[:, 24:], pixels(tmp_path / "a" / "sheet.png"))
    shown = model.tokenizer.pixels(pictures[:1])[0].permute(1, 2, 0).numpy() * 255
    assert np.abs(both[:, :8] - shown).max() <= 0.5 + 1e-3


def test_lines_as_upstream_reads_them(tmp_path, model, pictures):
    """Sub-folders are made; the error is the mean over everything, upstream's that times the channels."""
    rows = [
        {"input": pictures[:3], "output": "a/b/one.png", "target": [pictures[3]]},
        {"input": pictures[1:3], "output": "two.jpg", "target": [pictures[4]]},
    ]
    out = tmp_path / "out"
    found = imagine(model, data=save_lines(tmp_path / "d.jsonl", rows), candidates=2, out=str(out))
    assert (out / "a" / "b" / "one.png").is_file()
    assert (out / "two.jpg").is_file()
    for row, given in zip(found.rows, rows, strict=True):
        made = model.imagine([given["input"]], 1, 2)[0].pixels
        wanted = model.tokenizer.pixels(given["target"])
        assert row["mse"] == pytest.approx(float(((made - wanted) ** 2).mean()), rel=1e-5)
        assert np.mean(row["candidate_mse"]) == pytest.approx(row["mse"], rel=1e-5)
        assert row["average_mse"] == pytest.approx(float(((made.mean(0) - wanted) ** 2).mean()), rel=1e-5)
    held = json.loads((out / "results.json").read_text())
    assert held["mse"] == pytest.approx(np.mean([row["mse"] for row in found.rows]))
    assert held["mse_summed_over_channels"] == pytest.approx(3 * held["mse"])


def test_relative_paths(tmp_path, model, pictures, monkeypatch):
    """From where the program runs, from the file's folder, or from a root that is named."""
    rows = [{"input": ["pictures/f0.png", "pictures/f1.png"]}]
    data = save_lines(tmp_path / "d.jsonl", rows)
    (tmp_path / "elsewhere").mkdir()
    for number, (folder, root) in enumerate(
        [(tmp_path, None), (tmp_path / "elsewhere", None), (tmp_path / "elsewhere", str(tmp_path))]
    ):
        monkeypatch.chdir(folder)
        found = imagine(model, data=data, root=root, out=str(tmp_path / f"out-{number}"))
        assert found.rows[0]["output"] == "1.png"
    with pytest.raises(BadImage, match="not found"):
        imagine(model, data=data, root=str(tmp_path / "elsewhere"), out=str(tmp_path / "none"))


def test_pairs_are_joined_by_name_and_drawn_by_seed(tmp_path, model):
    inputs, answers = save_pictures(tmp_path / "x", 5), save_pictures(tmp_path / "y", 4, 20)
    query = save_pictures(tmp_path / "q", 2, 40)
    options = {"pairs": f"{tmp_path / 'x'},{tmp_path / 'y'}", "query": query, "shots": 2}
    found = imagine(model, out=str(tmp_path / "out"), allowed_codes="demonstrations", **options)
    assert len(found.rows) == 2
    for row, asked in zip(found.rows, query, strict=True):
        x1, y1, x2, y2, last = row["input"]
        assert last == asked
        assert x1 != x2
        for x, y in ((x1, y1), (x2, y2)):
            assert x in inputs
            assert y in answers
            assert x.rpartition("/")[2] == y.rpartition("/")[2]
    assert any("f4.png" in reason and "no partner" in reason for reason in found.skipped)
    again = imagine(model, out=str(tmp_path / "again"), **options)
    assert [row["input"] for row in again.rows] == [row["input"] for row in found.rows]
    orders = {tuple(imagine(model, out=str(tmp_path / f"s{s}"), seed=s, **options).rows[0]["input"]) for s in range(4)}
    assert len(orders) > 1
    own = imagine(model, out=str(tmp_path / "own"), pairs=options["pairs"], query=inputs[0], shots=2)
    assert inputs[0] not in own.rows[0]["input"][:-1]  # the query's own pair would tell the answer
    cut = imagine(model, out=str(tmp_path / "cut"), overflow="drop", **(options | {"shots": 3}))
    assert "the first 2 of the prompt's 7 were left out" in cut.rows[0]["notices"][0]  # a whole pair
    with pytest.raises(OptionError, match="9 pairs wanted"):
        imagine(model, out=str(tmp_path / "many"), **(options | {"shots": 9}))


def test_a_stopped_run_carries_on(tmp_path, model, pictures, monkeypatch):
    data = save_lines(tmp_path / "d.jsonl", [{"input": pictures[:2], "output": f"{n}.png"} for n in range(10)])
    asked = []
    whole = type(model).imagine

    def interrupted(self, prompts, **options):
        asked.append(len(prompts))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return whole(self, prompts, **options)

    monkeypatch.setattr(type(model), "imagine", interrupted)
    with pytest.raises(KeyboardInterrupt):
        imagine(model, data=data, out=str(tmp_path / "out"))
    found = imagine(model, data=data, out=str(tmp_path / "out"))
    assert asked == [8, 2, 2]
    assert len(found.rows) == 10
    with pytest.raises(OptionError, match="another configuration: seed"):
        imagine(model, data=data, out=str(tmp_path / "out"), seed=1)


def test_notices_are_kept(tmp_path, model, pictures):
    found = imagine(model, prompt=pictures, overflow="drop", out=str(tmp_path / "out"))
    assert "first 1 of the prompt's 6 were left out" in found.rows[0]["notices"][0]
    with pytest.raises(ContextTooLong, match="prompt 1: a prompt of 6 pictures"):
        imagine(model, prompt=pictures, out=str(tmp_path / "other"))
    assert not (tmp_path / "other").exists()  # refused before anything is begun


def test_bad_pictures(tmp_path, model, pictures):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no picture")
    rows = [{"input": [*pictures[:2], str(bad)], "output": "a.png"}, {"input": pictures[:3], "output": "b.png"}]
    data = save_lines(tmp_path / "d.jsonl", rows)
    with pytest.raises(BadImage, match=r"bad\.png"):
        imagine(model, data=data, out=str(tmp_path / "a"))
    found = imagine(model, data=data, out=str(tmp_path / "b"), on_bad_image="skip")
    assert [row["output"] for row in found.rows] == ["b.png"]
    assert "bad.png" in found.skipped[0]
    assert not (tmp_path / "b" / "a.png").exists()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([], "not a JSON object"),
        ({"output": "a.png"}, "field 'input'"),
        ({"input": "a.png"}, "must be a list"),
        ({"input": []}, "no pictures"),
        ({"input": [1]}, "must be a list"),
        ({"input": ["a.png"], "output": 3}, "field 'output'"),
        ({"input": ["a.png"], "output": "../a.png"}, "not in the folder"),
        ({"input": ["a.png"], "output": "/tmp/a.png"}, "not in the folder"),
        ({"input": ["a.png"], "output": "a.exe"}, "extension"),
        ({"input": ["a.png"], "output": "a.png", "target": ["b.png", "c.png"]}, "2 targets for 1 frames"),
        ({"frames": ["a.png"]}, "kshot perplexity"),
    ],
)
def test_bad_lines(tmp_path, model, row, message):
    with pytest.raises(DataError, match=message):
        imagine(model, data=save_lines(tmp_path / "d.jsonl", [row]), out=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_two_lines_with_one_output(tmp_path, model, pictures):
    rows = [{"input": pictures[:2], "output": "same.png"}] * 2
    with pytest.raises(DataError, match="lines 1 and 2 would both be written to"):
        imagine(model, data=save_lines(tmp_path / "d.jsonl", rows), out=str(tmp_path / "out"))


def test_what_is_asked_must_be_clear(tmp_path, model, pictures):
    with pytest.raises(OptionError, match="one of prompt"):
        imagine(model, out=str(tmp_path / "out"))
    with pytest.raises(OptionError, match="belong together"):
        imagine(model, out=str(tmp_path / "out"), pairs="a,b")
    with pytest.raises(OptionError, match="resize_output"):
        imagine(model, out=str(tmp_path / "out"), prompt=pictures[:2], resize_output="big")
    with pytest.raises(ModelError, match="no model of visual sentences"):
        imagine("tiny", out=str(tmp_path / "out"), prompt=pictures[:2])


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("batch_size", "0"),
        ("candidates", "0"),
        ("frames", "-1"),
        ("group", "0"),
        ("slide", "0"),
        ("shots", "0"),
        ("max_examples", "-2"),
        ("top_k", "-1"),
        ("top_p", "0"),
        ("temperature", "-0.5"),
    ],
)
def test_counts_that_cannot_be_are_refused_before_anything_is_loaded(tmp_path, capsys, option, value):
    """0 is not "as usual": a batch size of 0 once meant the default."""
    words = ["imagine", "--model", str(tmp_path / "no-model"), "--prompt", "a.png", "--out", str(tmp_path / "out")]
    assert main([*words, f"--{option}", value]) == 2
    said = capsys.readouterr().err
    assert option in said
    assert value in said
    assert "no-model" not in said
    assert not (tmp_path / "out").exists()


def test_no_batch_size_of_a_model_is_0(model, pictures):
    with pytest.raises(OptionError, match="batch_size=0"):
        model.imagine([pictures[:2]], batch_size=0)
    with pytest.raises(OptionError, match="batch_size=0"):
        model.perplexity([pictures[:2]], [pictures[2:3]], batch_size=0)


def test_sheets():
    rows = [[noise(0), noise(1, 4)], [noise(2), noise(3)]]
    found = np.asarray(sheet(rows))
    assert found.shape == (16, 16, 3)
    assert np.array_equal(found[8:, :8], np.asarray(noise(2)))
    assert sheet(rows, (3, 5)).size == (6, 10)
    assert [parse_size(option) for option in (None, "", "original", "3,4")] == [None, None, "original", (3, 4)]
    with pytest.raises(OptionError):
        parse_size("0,4")
    assert check_output("a/b.PNG", "here") == "a/b.PNG"


def test_a_picture_that_cannot_be_written_leaves_nothing(tmp_path):
    (tmp_path / "taken.png").mkdir()
    with pytest.raises(Exception, match=r"taken\.png"):
        save_picture(noise(0), tmp_path / "taken.png")
    assert [path.name for path in tmp_path.iterdir()] == ["taken.png"]
