"""What every registered task must do, on a small data set in its official format (see ``formats.py``)."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from kshot.chat import render_chat
from kshot.data.task import Task, load_task, tasks
from kshot.episode import Episode, Example
from kshot.errors import OptionError
from kshot.metrics.base import metrics, picture_metrics
from kshot.picture import Picture, as_picture
from kshot.prompt import render_plain
from tests.data.formats import all_fixtures

FIXTURES = all_fixtures()
FEW = 40  # generated worlds have thousands of queries; the first ones tell


@pytest.fixture(scope="module", params=tasks.names())
def loaded(request, tmp_path_factory) -> tuple[Task, dict, Path]:
    name = request.param
    assert name in FIXTURES, f"task {name!r} has no fixture in its official format: add one to tests/data/formats.py"
    folder = tmp_path_factory.mktemp(name)
    options = FIXTURES[name](folder)
    return load_task(name, **options), options, folder


@pytest.fixture
def written(loaded) -> Task:
    """A task whose answers are text."""
    task, _, _ = loaded
    if task.answers == "picture":
        pytest.skip("answered by pictures: nothing is written")
    return task


@pytest.fixture
def painted(loaded) -> Task:
    """A task whose answers are pictures."""
    task, _, _ = loaded
    if task.answers == "text":
        pytest.skip("answered by text")
    return task


def some(examples) -> list[Example]:
    return [examples[i] for i in range(min(FEW, len(examples)))]


def with_demonstrations(task: Task) -> Episode:
    query = task.queries[0]
    pool = task.pool(query)
    return Episode(tuple(pool[i] for i in range(min(2, len(pool)))), query)


def test_there_are_queries_with_unique_ids(loaded):
    task, _, _ = loaded
    ids = [task.queries[i].id for i in range(min(5000, len(task.queries)))]
    assert ids
    assert len(set(ids)) == len(ids)


def test_slices_and_negative_indices_work_as_in_a_list(loaded):
    task, _, _ = loaded
    for examples in (task.queries, task.support, task.pool(task.queries[0])):
        if not len(examples):  # episodic tasks have no support set that all queries share
            assert examples is not task.queries
            continue
        assert examples[-1].id == examples[len(examples) - 1].id
        assert [e.id for e in examples[1:3]] == [examples[i].id for i in range(1, min(3, len(examples)))]
        with pytest.raises(IndexError):
            examples[len(examples)]


def test_queries_have_references_and_demonstrations_have_answers(loaded):
    task, _, _ = loaded
    assert all(query.references for query in some(task.queries))
    demonstrations = some(task.pool(task.queries[0]))
    assert demonstrations
    assert all(demonstration.answer is not None for demonstration in demonstrations)


def test_no_pool_shows_the_querys_image(loaded):
    task, _, _ = loaded
    for query in some(task.queries):
        shown = {p.digest for p in query.images}
        for demonstration in some(task.pool(query)):
            assert demonstration.id != query.id
            assert not shown & {p.digest for p in demonstration.images}


def test_images_decode_to_rgb(loaded):
    task, _, _ = loaded
    for example in (*some(task.queries)[:4], *some(task.pool(task.queries[0]))[:4]):
        assert example.images
        assert all(p.load().mode == "RGB" for p in example.images)


def test_plain_prompts_hold_every_image_and_end_where_the_answer_begins(written):
    task = written
    episode = with_demonstrations(task)
    prompt = render_plain(episode, task.template)
    assert len(prompt.pictures) == len(episode.pictures)
    full = render_plain(episode, task.template, answer=episode.query.text_answer)
    text = prompt.text()
    assert full.text().startswith(text + episode.query.text_answer)
    for demonstration in episode.demonstrations:
        assert demonstration.text_answer in text
    assert "{" not in text  # no field of the template is left unfilled


def test_chat_prompts_have_one_turn_each(written):
    task = written
    episode = with_demonstrations(task)

    def apply(messages, tokenize=False, add_generation_prompt=False):
        turns = []
        for message in messages:
            parts = ["<image>" if c["type"] == "image" else c["text"] for c in message["content"]]
            turns.append(f"[{message['role']}]{''.join(parts)}\n")
        return "".join(turns) + ("[assistant]" if add_generation_prompt else "")

    prompt = render_chat(episode, task.template, apply, "<image>")
    assert len(prompt.pictures) == len(episode.pictures)
    text = prompt.text()
    assert text.count("[user]") == episode.shots + 1
    # A user turn of nothing but an image does not say what is wanted.
    for turn in text.split("[user]")[1:]:
        assert turn.split("[assistant]")[0].replace("<image>", "").strip()


def test_answers_are_pictures_throughout_and_the_metric_knows_the_true_ones(painted):
    queries = some(painted.queries)
    for example in (*queries, *some(painted.pool(queries[0]))):
        assert isinstance(example.answer, Picture)
        assert example.answer.load().mode == "RGB"
    metric = picture_metrics.get(painted.metric)
    perfect = metric([query.answer for query in queries], queries)
    wrong = metric([as_picture(Image.new("RGB", (8, 8), (90, 200, 30)))] * len(queries), queries)
    best = 1.0 if wrong.value < perfect.value else 0.0  # a share, or an error
    assert perfect.value == pytest.approx(best, abs=0.01)
    assert abs(wrong.value - best) > 0.1


def test_the_metric_is_registered_and_gives_its_maximum_for_the_references(written):
    task = written
    metric = metrics.get(task.metric)
    queries = some(task.queries)
    assert not all(query.answer is None for query in queries)
    perfect = metric([task.parse(query.text_answer + "\n\nQuestion:") for query in queries], queries)
    wrong = metric(["something else entirely"] * len(queries), queries)
    assert wrong.value < perfect.value
    if task.metric in ("cider", "grounded_caption"):
        assert perfect.value > 1  # CIDEr has no fixed maximum for several references
    elif task.metric == "mme":
        assert perfect.value == pytest.approx(200 * len(perfect.categories))
    else:
        assert perfect.value == pytest.approx(1.0)


def test_candidates_hold_the_answer(loaded):
    task, _, _ = loaded
    for query in some(task.queries):
        candidates = task.candidates(query)
        assert not candidates or query.text_answer in candidates
        assert len(set(candidates)) == len(candidates)


def test_parse_keeps_what_stands_before_the_stop_string(written):
    task = written
    for query in some(task.queries)[:5]:
        said = task.parse(f" {query.text_answer}{task.stop[0]} and more")
        assert said.rstrip(".") == query.text_answer.strip().rstrip(".")


def test_the_description_is_json_and_names_no_place_on_this_machine(loaded):
    task, _, folder = loaded
    described = json.dumps(task.describe())
    assert json.loads(described)["task"] == task.name
    assert str(folder) not in described


def test_an_unknown_option_is_an_error_that_lists_the_options(loaded):
    task, options, _ = loaded
    with pytest.raises(OptionError, match="its options are"):
        load_task(task.name, **options, no_such_option=1)


def test_two_loads_are_equal(loaded):
    task, options, _ = loaded
    assert digest(task) == digest(load_task(task.name, **options))
    assert task.describe() == load_task(task.name, **options).describe()


def test_another_process_sees_the_same(tmp_path):
    made = {}
    for name, write in FIXTURES.items():
        (tmp_path / name).mkdir()
        options = write(tmp_path / name)
        made[name] = {k: str(v) if isinstance(v, Path) else v for k, v in options.items()}
    code = (
        "import json, sys; from kshot.data.task import load_task; from tests.data.test_all_tasks import digest;"
        "made = json.loads(sys.argv[1]); print(json.dumps({n: digest(load_task(n, **o)) for n, o in made.items()}))"
    )
    root = Path(__file__).parents[2]
    out = subprocess.run(
        [sys.executable, "-c", code, json.dumps(made)],
        cwd=root,
        env=os.environ | {"PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
    )
    assert out.returncode == 0, out.stderr
    assert json.loads(out.stdout) == {name: digest(load_task(name, **options)) for name, options in made.items()}


def digest(task: Task) -> str:
    """A hash of the first queries, of the first pool, and of their images."""
    hasher = hashlib.sha256()
    for example in (*some(task.queries), *some(task.pool(task.queries[0]))):
        said = [
            answer.digest if isinstance(answer, Picture) else answer for answer in (example.answer, *example.references)
        ]
        parts = (example.id, example.question, said, example.choices)
        hasher.update(repr((parts, dict(example.metadata), [p.digest for p in example.images])).encode())
    return hasher.hexdigest()


def test_every_fixture_belongs_to_a_task():
    assert set(FIXTURES) <= set(tasks.names())
