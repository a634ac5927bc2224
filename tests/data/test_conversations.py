"""Conversations in LLaVA's form."""

from __future__ import annotations

import pytest

from kshot.data.task import load_task
from kshot.episode import Episode
from kshot.errors import DataError, OptionError
from kshot.prompt import render_plain
from tests.data import answer_formats, formats
from tests.data.answer_formats import conversation


@pytest.fixture
def options(tmp_path):
    return answer_formats.conversations(tmp_path)


def test_each_answer_is_an_example_with_the_turns_before_it(options, tmp_path):
    task = load_task("conversations", **options)
    assert [q.id for q in task.queries[:3]] == ["00000#1", "00000#2", "00001#1"]
    first, second = task.queries[0], task.queries[1]
    assert (first.question, first.answer) == ("What is in picture 0?", "A bus with an advertisement on side 0.")
    assert second.question == (
        "What is in picture 0?\nASSISTANT: A bus with an advertisement on side 0.\nUSER: What colour is it?"
    )
    assert second.answer == "It is red, and\nits roof 0 is white."
    assert [p.name for p in second.images] == [str(tmp_path / "train2017" / "00000.jpg")]
    text = render_plain(Episode((task.queries[2],), second), task.template).text()
    assert text.endswith("USER: What colour is it? ASSISTANT: ")
    assert task.parse(f" {second.answer} USER: and") == second.answer  # answers may have lines


@pytest.mark.parametrize(("turns", "ids"), [("first", ["00000#1", "00001#1"]), ("last", ["00000#2", "00001#2"])])
def test_the_first_or_the_last_answer_only(options, turns, ids):
    task = load_task("conversations", **options, turns=turns)
    assert [q.id for q in task.queries[:2]] == ids
    assert len(task.queries) == 4
    assert ("ASSISTANT" in task.queries[0].question) == (turns == "last")


def test_demonstrations_are_about_other_images(options):
    task = load_task("conversations", **options)
    for query in task.queries:
        pool = task.pool(query)
        assert len(pool) == 6
        assert query.metadata["image_id"] not in {d.metadata["image_id"] for d in pool}


def test_ids_that_llava_repeats_and_several_files(options, tmp_path):
    again = formats.write_lines(tmp_path / "more.jsonl", [conversation(0), conversation(0), conversation(3, id=7)])
    task = load_task("conversations", files=[options["files"], again], images=options["images"], turns="first")
    assert [q.id for q in task.queries] == [
        *("00000#1", "00001#1", "00002#1", "00003#1"),
        *("00000~2#1", "00000~3#1", "7#1"),
    ]
    assert set(task.describe()["files"]) == {"queries", "queries 1"}


def test_prefix_system_text_several_images_and_none(tmp_path):
    formats.coco_images(tmp_path, "train2014", 5, 2)
    turns = conversation(1)["conversations"]
    rows = [
        {"id": "a", "image": ["000000000005.jpg", "000000000006.jpg"], "conversations": turns},
        {"id": "b", "conversations": [{"from": "system", "value": "Be brief."}, *turns]},
    ]
    file = formats.write_json(tmp_path / "mix.json", rows)
    given = {"images": tmp_path / "train2014", "image_prefix": "COCO_train2014_"}
    task = load_task("conversations", files=file, **given)
    assert [q.id for q in task.queries] == ["a#1", "a#2"]
    assert task.skipped == task.describe()["skipped"] == {"conversations without image": 1}
    assert [p.load().size for p in task.queries[0].images] == [(12, 8)] * 2
    kept = load_task("conversations", files=file, **given, text_only=True).queries
    assert kept[2].images == ()
    assert kept[2].question == "Be brief.\nWhat is in picture 1?"


def turns(*speakers: str, text: str = "words") -> list[dict[str, str]]:
    return [{"from": speaker, "value": text} for speaker in speakers]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"conversations": turns("human", "human")}, ":2 field 'conversations': turns must be human, gpt"),
        ({"conversations": turns("gpt", "human")}, "they are: gpt, human"),
        ({"conversations": turns("human", "gpt", "human")}, "turns must be human, gpt"),
        ({"conversations": []}, "they are: none"),
        ({"conversations": turns("human", "robot")}, "unknown speaker 'robot'"),
        ({"conversations": turns("human", "gpt", text=" ")}, "an answer is empty"),
        ({"conversations": [{"from": "human"}]}, ":2 field 'value': field is missing"),
        ({"conversations": "hello"}, ":2 field 'conversations': a list is expected"),
        ({"image": [3]}, ":2 field 'image': not a file name"),
    ],
)
def test_files_that_are_wrong(options, change, problem):
    formats.write_json(options["files"], [conversation(0), conversation(1, **change)])
    with pytest.raises(DataError, match=problem):
        load_task("conversations", **options)


def test_options_that_are_wrong(options):
    with pytest.raises(OptionError, match="turns='all': must be one of each, first, last"):
        load_task("conversations", **options, turns="all")
    with pytest.raises(OptionError, match="metric='bleu'"):
        load_task("conversations", **options, metric="bleu")
    with pytest.raises(DataError, match="the file holds no examples"):
        load_task("conversations", files=formats.write_json(options["files"], []), images=options["images"])
