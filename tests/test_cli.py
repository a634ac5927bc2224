"""The command line: exit codes, one-line errors, and the ways in which options may be written."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from PIL import Image

from kshot.cli import COMMANDS, build_parser, main, parse
from kshot.version import __version__


def run(capsys, *words: str) -> tuple[int, str, str]:
    status = main(words)
    said = capsys.readouterr()
    return status, said.out, said.err


@pytest.mark.parametrize("words", [(), ("--help",), ("help",)])
def test_the_overview_names_every_command(capsys, words):
    status, out, _ = run(capsys, *words)
    assert status == 0
    assert all(f"  {name} " in out for name in COMMANDS)


def test_kinds_of_a_command_stand_apart_from_what_they_are(capsys):
    """However long their names are."""
    from kshot.convert import CONVERSIONS

    status, out, _ = run(capsys, "convert", "--help")
    assert status == 0
    assert all(f"  {kind}  " in re.sub(" +", "  ", out) for kind in CONVERSIONS)


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["--data", "d", "--separate", "--average", "false"], {"separate": True, "average": False}),
        (["--separate=false", "--data", "d", "--average"], {"separate": False, "average": True}),
        (["--data", "d"], {"separate": False, "average": False}),
        (["--data", "d", "--bos"], {"bos": True}),
    ],
)
def test_an_option_that_is_true_or_false_needs_no_value_to_be_true(words, wanted):
    command = COMMANDS["imagine"]
    found = parse("imagine", command, command.function(), ["--model", "m", "--out", "o", *words])
    assert {name: found[name] for name in wanted} == wanted


def test_the_version(capsys):
    assert run(capsys, "--version") == (0, f"kshot {__version__}\n", "")


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "train"])
def test_every_option_of_a_command_is_explained(name):
    command = COMMANDS[name]
    parser = build_parser(name, command, command.function())
    for action in parser._actions:
        assert action.help, f"kshot {name}: {action.option_strings or action.dest} has no help text"


def test_help_of_a_command_is_the_functions_signature(capsys):
    with pytest.raises(SystemExit) as left:
        main(["evaluate", "--help"])
    assert left.value.code == 0
    out = capsys.readouterr().out
    assert "--on_bad_image" in out
    assert "carried on" in out


def error(capsys, *words: str) -> str:
    """The one line that a command which fails by the user's fault writes."""
    status, out, err = run(capsys, *words)
    assert status == 2
    assert out == ""
    assert "Traceback" not in err
    assert err.startswith("kshot: error: ")
    assert err.count("\n") == 1
    return err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["evalute"], "unknown command 'evalute': did you mean 'evaluate'"),
        (["evaluate", "--model", "tiny", "--task", "digit"], "unknown task 'digit': did you mean 'digits'?"),
        (
            ["show", "--task", "digits", "--retriever", "balancd"],
            "unknown retriever 'balancd': did you mean 'balanced'",
        ),
        (["show", "--task", "digits", "--control", "shuffled"], "unknown control 'shuffled'"),
        (["show", "--task", "digits", "--wayz", "3"], "unknown option '--wayz': did you mean '--ways'"),
        (["show", "--task", "digits", "--ways", "30"], "ways=30"),
        (["show", "--task", "digits", "--ways", "many"], "ways"),
        (["show", "--task", "digits", "--shots", "5000"], "5000 shots, but the support set holds only"),
        (["show", "--task", "digits", "--shots", "few"], "shots"),
        (["show", "--task", "digits", "--query", "100000"], "query=100000"),
        (["show", "--task", "digits", "--style", "chat"], "give a model"),
        (["show", "--task", "omniglot"], "root"),
        (["show", "--task", "omniglot", "--root", "nowhere.zip"], "nowhere.zip"),
        (["show", "--task", "vqav2", "--root", "nowhere"], "nowhere"),
        (["show"], "task"),
        (["tasks", "digitz"], "did you mean 'digits'?"),
        (["compare", "nowhere"], "nowhere/metrics.json: file not found"),
        (["evaluate", "--config", "nowhere.yaml"], "nowhere.yaml"),
        (["evaluate", "--model", "./nowhere", "--task", "digits"], "nowhere"),
        (["evaluate", "--model", "tinny", "--task", "digits"], "tinny"),
    ],
)
def test_an_error_is_one_line_with_a_remedy(capsys, words, message):
    assert message in error(capsys, *words)


def test_debug_shows_where_an_error_was_raised(capsys):
    from kshot.errors import UnknownName

    with pytest.raises(UnknownName):
        main(["tasks", "digitz", "--debug"])


def picture() -> bytes:
    data = io.BytesIO()
    Image.effect_noise((64, 64), 50).convert("RGB").save(data, "PNG")
    return data.getvalue()


def bomb() -> bytes:
    """The header of a PNG of 50,000 x 50,000 pixels, and nothing else."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"", "empty"), (picture()[:900], "truncated"), (b"GIF?", "not an image"), (bomb(), "pixels")],
    ids=["empty", "truncated", "unknown", "bomb"],
)
def test_a_bad_image_is_named_in_one_line(capsys, tmp_path, data, message):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(3):
            (tmp_path / name / f"{number}.png").write_bytes(picture() if number else data)
    words = ("--task", "image_folder", "--root", str(tmp_path), "--support_per_class", "1", "--shots", "0")
    saved = ("--save", str(tmp_path / "out.png"))
    said = [
        error(capsys, "show", *words, *saved, "--query", str(q)) for q in range(4) if not shows(capsys, words, saved, q)
    ]
    assert said, "the bad images were all in the support set"
    assert all(message in line and "0.png" in line for line in said)


def shows(capsys, words, saved, query: int) -> bool:
    status = main(["show", *words, *saved, "--query", str(query)])
    capsys.readouterr()
    return status == 0


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (b'{"images": ["a.png"], "question": "q", "answer": "x", "id": "1"}\n' * 2, "1"),
        (b"\xff\xfe{}", "UTF-8"),
        (b'{"images": ["a.png"], ', "JSON"),
        (b"", "queries.jsonl"),
    ],
    ids=["twice the same id", "not UTF-8", "truncated", "empty"],
)
def test_bad_annotations_are_named_in_one_line(capsys, tmp_path, lines, message):
    (tmp_path / "a.png").write_bytes(picture())
    file = tmp_path / "queries.jsonl"
    file.write_bytes(lines)
    said = error(capsys, "show", "--task", "jsonl", "--queries", str(file), "--support", str(file), "--shots", "0")
    assert message in said
    assert "queries.jsonl" in said


def test_an_archive_that_is_none(capsys, tmp_path):
    bad = tmp_path / "images.zip"
    bad.write_bytes(b"PK no zip")
    assert "images.zip" in error(capsys, "show", "--task", "omniglot", "--root", str(bad))
    with zipfile.ZipFile(bad, "w"):
        pass
    assert "images.zip" in error(capsys, "show", "--task", "omniglot", "--root", str(bad))


@pytest.mark.parametrize(
    "words",
    [
        ("--ways", "3", "--task.seed", "5"),
        ("--ways=3", "--task.seed=5"),
        ("--task.ways", "3", "--task_options.seed", "5"),
    ],
)
def test_options_of_a_task_are_given_like_any_other(capsys, words):
    status, out, _ = run(capsys, "show", "--task", "digits", "--shots", "3", *words)
    assert status == 0
    assert "3 demonstrations" in out
    reference = run(capsys, "show", "--task", "digits", "--shots", "3", "--task.ways", "3", "--task.seed", "5")[1]
    assert out == reference
    assert out != run(capsys, "show", "--task", "digits", "--shots", "3", "--task.ways", "3", "--task.seed", "6")[1]


def test_a_list_for_a_task_is_written_with_commas(capsys):
    status, out, _ = run(capsys, "show", "--task", "scenes", "--tasks", "count,colour", "--shots", "2")
    assert status == 0
    assert "2 demonstrations" in out


def test_a_yaml_file_holds_any_option(capsys, tmp_path):
    file = tmp_path / "show.yaml"
    file.write_text(yaml.safe_dump({"task": "digits", "shots": 4, "task_options": {"ways": 4}}))
    status, out, _ = run(capsys, "show", "--config", str(file), "--query", "7")
    assert status == 0
    assert "episode-00007" in out
    assert "4 demonstrations" in out
    assert run(capsys, "show", "--config", str(file), "--ways", "2", "--query", "7")[0] == 0


def test_shipped_recipes_need_no_folder_and_own_files_come_first(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "ISEKAI-10.json" in error(capsys, "evaluate", "--config", "isekai10.yaml", "--root", str(tmp_path))
    Path("isekai10.yaml").write_text("{model: tiny, task: isekai, file: mine.json}")
    assert "mine.json" in error(capsys, "evaluate", "--config", "isekai10.yaml", "--root", str(tmp_path))


@pytest.mark.parametrize("option", ["ways", "task.ways"])
def test_a_yaml_file_holds_options_of_parts_as_the_command_line_does(capsys, tmp_path, option):
    file = tmp_path / "show.yaml"
    file.write_text(yaml.safe_dump({"task": "digits", "shots": 3, option: 3}))
    status, out, _ = run(capsys, "show", "--config", str(file), "--query", "7", "--retriever", "balanced")
    assert status == 0
    assert len(set(re.findall(r"Short answer: ?(\w+)", out))) == 3


def test_show_saves_a_picture(capsys, tmp_path):
    status, out, _ = run(capsys, "show", "--task", "digits", "--shots", "2", "--save", str(tmp_path / "p.png"))
    assert status == 0
    assert "[image 3: " in out
    assert Image.open(tmp_path / "p.png").size[0] > 500


def test_tasks_lists_every_registered_part(capsys):
    from kshot.evaluation.listing import REGISTRIES

    status, out, _ = run(capsys, "tasks")
    assert status == 0
    assert all(name in out for registry in REGISTRIES.values() for name in registry)
    _, out, _ = run(capsys, "tasks", "digits")
    assert "--shots-per-class" in out


def test_importing_kshot_is_cheap_and_lists_its_names():
    code = (
        "import sys, kshot; assert not {'torch', 'numpy', 'transformers', 'matplotlib'} & set(sys.modules);"
        "assert {'evaluate', 'load_model', 'tasks', 'metrics', '__version__'} <= set(dir(kshot));"
        "import json; print(json.dumps([str(type(getattr(kshot, n)).__name__) for n in kshot.__all__ if n != 'load_model']))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert json.loads(done.stdout)


def test_names_of_kshot():
    import kshot

    assert kshot.metrics.vqa_accuracy("red", ["red"] * 10) == 1
    assert "digits" in kshot.tasks
    with pytest.raises(AttributeError, match="evalute"):
        _ = kshot.evalute


@pytest.fixture(scope="module")
def embedded() -> str:
    if not (Path(__file__).parents[1] / "src/kshot/assets/tiny/config.json").exists():
        pytest.skip("the embedded model is not there")
    return "tiny"


def test_evaluate_and_compare_as_in_the_readme(capsys, tmp_path, embedded):
    for name, control in (("a", ()), ("b", ("--control", "shuffled-labels"))):
        words = ("--model", embedded, "--task", "digits", "--shots", "0,2", "--episodes", "12", *control)
        status, out, _ = run(capsys, "evaluate", *words, "--out", str(tmp_path / name))
        assert status == 0
        assert "tiny on digits" in out
    status, out, _ = run(capsys, "compare", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "both"))
    assert status == 0
    assert "shuffled-labels" in out
    assert {p.name for p in (tmp_path / "both").iterdir()} == {"comparison.md", "comparison.csv", "comparison.png"}
    assert "another configuration" in error(
        capsys, "evaluate", "--model", embedded, "--task", "digits", "--shots", "0,4", "--out", str(tmp_path / "a")
    )


def test_an_option_of_a_part_named_wrongly_is_not_blamed(capsys):
    said = error(capsys, "train", "--objective", "embeded", "--model", "tiny", "--out", "x")
    assert "objective" in said
    assert "embedded" in said
    assert "--model" not in said
