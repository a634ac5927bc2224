"""What every registered source of training items must do, on small data in the published formats."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kshot.chat import render_chat
from kshot.errors import OptionError
from kshot.prompt import render_plain
from kshot.training.items import Source, load_source, sources
from kshot.training.mixture import Mixture
from tests.data.formats import all_fixtures
from tests.training.link_toys import write_list


def listed(folder: Path, **options: Any) -> dict[str, Any]:
    return {"source": str(write_list(folder, count=4, pictures=5, neighbours=2)), **options}


OPTIONS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "link": lambda folder: listed(folder, shots_per_side=2, sampler="uniform", loss="shown"),
    "reference": lambda folder: listed(folder, shots_per_side=2),
    "jigsaw": lambda folder: listed(folder, pieces=[4, 6]),
    "task": lambda folder: {"task": "vqav2", "options": all_fixtures()["vqav2"](folder), "shots": 2},
}


@pytest.fixture(scope="module", params=sources.names())
def made(request, tmp_path_factory) -> tuple[Source, dict[str, Any], Path]:
    kind = request.param
    assert kind in OPTIONS, f"source {kind!r} has no small data to be tested with: add some to OPTIONS"
    folder = tmp_path_factory.mktemp(kind)
    options = {"kind": kind, **OPTIONS[kind](folder)}
    return load_source(options), options, folder


def content(item) -> list[Any]:
    examples = (*item.episode.demonstrations, item.episode.query)
    shown = [(e.id, e.question, e.answer, [p.digest for p in e.images]) for e in examples]
    return [item.episode.id, *shown, item.template, item.graded, item.style, item.source]


def test_an_item_depends_on_epoch_and_index_alone(made):
    source, options, _ = made
    places = [(epoch, index) for epoch in (0, 1) for index in range(min(len(source), 6))]
    in_order = {place: content(source.item(*place)) for place in places}
    again = load_source(options)
    assert {place: content(again.item(*place)) for place in reversed(places)} == in_order
    assert any(in_order[0, index] != in_order[1, index] for _, index in places)
    sent = pickle.loads(pickle.dumps(source))
    assert content(sent.item(1, 0)) == in_order[1, 0]


def test_another_seed_gives_other_items(made):
    source, options, _ = made
    other = load_source(options | {"seed": 1})
    assert [content(source.item(0, i)) for i in range(4)] != [content(other.item(0, i)) for i in range(4)]
    assert source.describe() != other.describe()


def test_there_are_no_items_beyond_the_epoch(made):
    source, _, _ = made
    assert len(source) > 0
    for index in (-1, len(source)):
        with pytest.raises(IndexError):
            source.item(0, index)


def test_items_are_complete_and_never_show_the_querys_picture(made):
    source, _, _ = made
    for index in range(min(len(source), 8)):
        item = source.item(0, index)
        query = item.episode.query
        shown = [p.digest for d in item.episode.demonstrations for p in d.images]
        assert query.text_answer
        assert query.images
        assert not {p.digest for p in query.images} & set(shown)
        assert all(p.load().mode == "RGB" for p in item.episode.pictures)
        answered = render_plain(item.episode, item.template, answer=query.text_answer)
        assert "{" not in answered.text()
        assert answered.text().startswith(render_plain(item.episode, item.template).text())
        assert len(answered.pictures) == len(item.episode.pictures)


def test_chat_prompts_have_one_turn_each(made):
    source, _, _ = made

    def apply(messages, tokenize=False, add_generation_prompt=False):
        turns = []
        for message in messages:
            parts = ["<image>" if c["type"] == "image" else c["text"] for c in message["content"]]
            turns.append(f"[{message['role']}]{''.join(parts)}|")
        return "".join(turns)

    item = source.item(0, 0)
    prompt = render_chat(item.episode, item.template, apply, "<image>", answer=item.episode.query.text_answer)
    assert prompt.text().count("[user]") == item.episode.shots + 1
    assert len(prompt.pictures) == len(item.episode.pictures)
    graded = "".join(s.text for s in prompt.segments if s.role == "answer")
    assert item.episode.query.text_answer in graded


def test_the_longest_items_are_as_long_as_any(made):
    source, _, _ = made
    longest = max(item.episode.shots for item in source.longest())
    assert longest == max(source.item(epoch, i).episode.shots for epoch in range(8) for i in range(len(source)))


def test_the_description_is_a_record_without_machine_paths(made):
    source, options, folder = made
    told = json.dumps(source.describe(), sort_keys=True)
    assert str(folder) not in told
    assert json.dumps(load_source(options).describe(), sort_keys=True) == told


def test_style_is_passed_on_and_checked(made):
    _, options, _ = made
    assert load_source(options | {"style": "chat"}).item(0, 0).style == "chat"
    with pytest.raises(OptionError, match="auto, plain, chat"):
        load_source(options | {"style": "poem"})


def test_all_kinds_go_together_in_a_mixture(tmp_path):
    parts = {kind: load_source({"kind": kind, **make(tmp_path / kind)}) for kind, make in OPTIONS.items()}
    mixture = Mixture(parts, {"link": 0.4, "reference": 0.1, "jigsaw": 0.2, "task": 0.3}, items=20)
    named = [mixture.item(0, index).source for index in range(20)]
    assert {name: named.count(name) for name in named} == {"link": 8, "reference": 2, "jigsaw": 4, "vqav2": 6}
    assert {item.source for item in mixture.longest()} == set(named)
