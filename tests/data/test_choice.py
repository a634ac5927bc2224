"""MME and SEED-Bench."""

from __future__ import annotations

import json
import zipfile

import pytest

from kshot.data.task import load_task
from kshot.episode import Episode
from kshot.errors import DataError, OptionError
from kshot.metrics.base import metrics
from kshot.prompt import render_plain
from tests.data import formats


@pytest.fixture
def mme(tmp_path):
    return load_task("mme", **formats.mme(tmp_path))


@pytest.fixture
def seedbench(tmp_path):
    return load_task("seedbench", **formats.seedbench(tmp_path))


def test_mme_reads_both_layouts_of_a_category(mme):
    assert len(mme.queries) == 12  # two categories, three images each, two questions each; eval_tool/ is no category
    first, second = mme.queries[0], mme.queries[1]
    assert first.id == "OCR/0000.jpg#1"
    assert first.question == 'Is the word in the logo "angie0\'s"? Please answer yes or no.'
    assert (first.answer, second.answer) == ("Yes", "No")
    assert first.metadata["image_id"] == second.metadata["image_id"] == "OCR/0000.jpg"
    artwork = [q for q in mme.queries if q.metadata["category"] == "artwork"]
    assert len(artwork) == 6
    assert artwork[0].images[0].name.endswith("artwork/images/10000.png")
    assert mme.labels == ("Yes", "No")


def test_mme_demonstrations_come_from_the_category_but_not_from_the_image(mme):
    for query in mme.queries:
        pool = mme.pool(query)
        assert len(pool) == 4
        assert {d.metadata["category"] for d in pool} == {query.metadata["category"]}
        assert query.metadata["image_id"] not in {d.metadata["image_id"] for d in pool}


def test_mme_scores_pairs(mme):
    queries = list(mme.queries)
    result = metrics.get("mme")([mme.parse(f"{q.answer}, it is.\nQuestion") for q in queries], queries)
    assert result.value == 400
    only_yes = metrics.get("mme")(["yes"] * 12, queries)
    assert only_yes.value == 100  # acc 50 and acc+ 0 in both categories


def test_mme_with_a_support_set_of_its_own(tmp_path):
    options = formats.mme(tmp_path)
    own = formats.jsonl(tmp_path / "own")
    task = load_task("mme", **options, support=own["support"], support_images=own["images"])
    assert [d.id for d in task.pool(task.queries[0])] == [f"item-{n}" for n in range(4)]
    assert task.describe()["files"]["support"]["name"] == "support.jsonl"
    other = load_task("jsonl", **own)
    task = load_task("mme", **options, support=other)
    assert list(task.pool(task.queries[0])) == list(other.support)
    assert task.describe()["support"]["task"] == "jsonl"
    formats.write_lines(own["support"], [{"question": "without answer"}])
    with pytest.raises(DataError, match="has no answer, so it cannot be a demonstration"):
        _ = load_task("mme", **options, support=own["support"]).support


def test_mme_results_are_written_as_its_tool_reads_them(mme, tmp_path):
    queries = list(mme.queries)
    mme.write_results({q.id: "Yes,\tit\nis" for q in queries[:3]}, tmp_path / "results")
    lines = (tmp_path / "results" / "OCR.txt").read_text().splitlines()
    assert len(lines) == 3
    assert lines[1].split("\t") == ["0000.jpg", queries[1].question, "No", "Yes, it is"]


def test_mme_categories_may_be_chosen(tmp_path):
    options = formats.mme(tmp_path)
    assert len(load_task("mme", **options, categories=["artwork"]).queries) == 6
    with pytest.raises(OptionError, match="no category 'ocr' here; there are: OCR, artwork"):
        load_task("mme", **options, categories=["ocr"])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("Is it? Yes\n", r"0001\.txt:1: not of the form"),
        ("Is it?\tYes\nIs it not?\tmaybe\n", r"0001\.txt:2: not of the form"),
        ("\n", "no questions"),
    ],
)
def test_mme_files_that_are_wrong(tmp_path, text, problem):
    options = formats.mme(tmp_path)
    (options["root"] / "OCR" / "0001.txt").write_text(text)
    with pytest.raises(DataError, match=problem):
        load_task("mme", **options)


def test_mme_questions_without_image(tmp_path):
    options = formats.mme(tmp_path)
    (options["root"] / "artwork" / "images" / "10001.png").unlink()
    with pytest.raises(DataError, match=r"there is no image 10001\.jpg or \.png"):
        load_task("mme", **options)
    with pytest.raises(DataError, match="no category folders"):
        load_task("mme", root=tmp_path / "MME_Benchmark_release_version" / "eval_tool")
    with pytest.raises(DataError, match="no such folder"):
        load_task("mme", root=tmp_path / "none")


def test_seedbench_lists_the_choices_and_asks_for_a_letter(seedbench):
    query = seedbench.queries[1]
    assert query.question == "How many towels are in the image?\nA. One\nB. Two\nC. Three\nD. Four"
    assert query.answer == "B"
    assert query.choices == ("One", "Two", "Three", "Four")
    assert seedbench.labels == ("A", "B", "C", "D")
    assert query.metadata["dimension"] == "Instances Counting"
    assert query.images[0].load().size == (12, 8)
    prompt = render_plain(Episode((query,), seedbench.queries[0]), seedbench.template).text()
    assert "D. Four\nAnswer:B\n\n<image>" in prompt


def test_seedbench_leaves_videos_out_and_says_so(seedbench):
    assert len(seedbench.queries) == 12
    assert seedbench.skipped == seedbench.describe()["skipped"] == {"video questions": 1}


def test_seedbench_demonstrations_are_of_the_dimension_and_of_other_images(seedbench):
    for query in seedbench.queries:
        pool = seedbench.pool(query)
        assert {d.metadata["dimension"] for d in pool} == {query.metadata["dimension"]}
        assert query.metadata["image_id"] not in {d.metadata["image_id"] for d in pool}
    assert len(seedbench.pool(seedbench.queries[0])) == 6


def test_seedbench_may_ask_for_the_text(tmp_path):
    task = load_task("seedbench", **formats.seedbench(tmp_path), answers="text")
    query = task.queries[1]
    assert (query.question, query.answer) == ("How many towels are in the image?", "Two")
    assert task.candidates(query) == ("One", "Two", "Three", "Four")
    queries = list(task.queries)
    assert metrics.get("seed_bench")([q.answer for q in queries], queries).value == 1
    with pytest.raises(OptionError, match="'letter' or 'text'"):
        load_task("seedbench", root=tmp_path, answers="word")


def test_seedbench_images_may_be_zipped_or_have_an_ending(tmp_path):
    options = formats.seedbench(tmp_path / "a")
    digests = [q.images[0].digest for q in load_task("seedbench", **options).queries]
    folder = tmp_path / "a" / "SEED-Bench-image"
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        for path in sorted(folder.iterdir()):
            archive.write(path, f"SEED-Bench-image/{path.name}")
    folder.rename(tmp_path / "moved")
    (tmp_path / "b.zip").rename(tmp_path / "a" / "SEED-Bench-image.zip")
    assert [q.images[0].digest for q in load_task("seedbench", **options, check_images=True).queries] == digests
    for path in sorted((tmp_path / "moved").iterdir()):
        path.rename(path.with_suffix(".jpg"))
    task = load_task("seedbench", **options, images=tmp_path / "moved", check_images=True)
    assert [q.images[0].digest for q in task.queries] == digests


def test_seedbench_results(seedbench, tmp_path):
    seedbench.write_results({"101660": "A"}, tmp_path / "r.jsonl")
    assert json.loads((tmp_path / "r.jsonl").read_text()) == {"question_id": "101660", "prediction": "A"}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda d: d["questions"][1].update(answer="E"), ":2 field 'answer': the answer must be A, B, C or D"),
        (lambda d: d["questions"][1].pop("choice_c"), ":2 field 'choice_c': field is missing"),
        (lambda d: d["questions"][1].update(question_type_id=77), "dimension 77 is not in 'question_type'"),
        (lambda d: d["questions"][1].update(question_id="101660"), "'101660' occurs twice"),
        (lambda d: d.pop("question_type"), "field 'question_type': field is missing"),
        (lambda d: [q.update(data_type="video") for q in d["questions"]], "no questions about images"),
    ],
)
def test_seedbench_files_that_are_wrong(tmp_path, change, problem):
    options = formats.seedbench(tmp_path)
    file = tmp_path / "SEED-Bench.json"
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))
    with pytest.raises(DataError, match=problem):
        load_task("seedbench", **options)
