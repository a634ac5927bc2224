"""What holds for every type of sentence that is registered."""

from __future__ import annotations

import json
import pickle
import random

import pytest
from PIL import Image

from kshot.errors import ContextTooLong, DataError, OptionError, UnknownName
from kshot.visual.grammar import (
    SentencePlan,
    regrouped,
    sentence_plan,
    sentence_type,
    sentences,
    sentences_of,
)
from kshot.visual.sources import Record
from tests.visual.pictures import numbered, write
from tests.visual.sentence_data import MAKERS

TYPES = sentences.names()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return {name: MAKERS[name](tmp_path_factory.mktemp(name)) for name in TYPES}


@pytest.fixture(params=TYPES)
def plan(request, data) -> SentencePlan:
    return sentence_plan(request.param, epochs=3, seed=5, **data[request.param])


def shown(sentence):
    return sentence.id, sentence.type, sentence.roles, sentence.sources, [p.name for p in sentence.pictures]


def used(plan, epoch):
    """The sources of every sentence of an epoch, for the first layout or stride only (others show the same records again)."""
    variants = plan.grammar.variants
    return [set(plan[epoch * plan.per_epoch + i].sources) for i in range(0, plan.per_epoch, variants)]


def test_a_sentence_has_a_role_and_a_source_for_every_picture(plan):
    for sentence in plan:
        assert len(sentence.pictures) == len(sentence.roles) == len(sentence.sources) == plan.images
        assert sentence.type == plan.type == sentence.id.split(":")[0]
    assert len({sentence.id for sentence in plan}) == len(plan)
    assert all(len(plan.grammar.places(variant)) == plan.images for variant in range(plan.grammar.variants))


def test_pictures_can_be_looked_at(plan):
    sentence = plan[len(plan) - 1]
    assert all(isinstance(p.load(), Image.Image) and p.load().mode == "RGB" for p in sentence.pictures)


def test_the_order_of_access_does_not_matter(plan, data):
    straight = [shown(sentence) for sentence in plan]
    order = list(range(len(plan)))
    random.Random(1).shuffle(order)
    again = sentence_plan(plan.type, epochs=3, seed=5, **data[plan.type])
    assert {i: shown(again[i]) for i in order} == dict(enumerate(straight))
    assert [shown(sentence) for sentence in again[1:3]] == straight[1:3]
    assert shown(again[-1]) == straight[-1]
    with pytest.raises(IndexError):
        again[len(again)]


def test_a_plan_can_be_sent_to_another_process(plan):
    sent = pickle.loads(pickle.dumps(plan))
    assert [shown(sentence) for sentence in sent] == [shown(sentence) for sentence in plan]
    assert pickle.loads(pickle.dumps(plan[0])).pictures[0].load().size == plan[0].pictures[0].load().size


def test_no_source_is_used_twice_in_an_epoch(plan):
    for epoch in range(3):
        of_sentences = used(plan, epoch)
        assert sum(map(len, of_sentences)) == len(set().union(*of_sentences))


def test_what_is_left_over_is_counted(plan):
    record_of_source = {source.id: record.id for record in plan.records for source in record.parts} | {
        source: record.id
        for record in plan.records
        for track in record.tracks
        for source, _ in track.at(range(len(track)))
    }
    for epoch in range(3):
        records = {record_of_source[source] for of_sentence in used(plan, epoch) for source in of_sentence}
        assert len(plan.records) - len(records) == plan.left_over


def test_a_record_that_turns_out_to_be_unusable_can_be_left_out(plan):
    sentence = plan[len(plan) - 1]
    record = plan.record_of(len(plan) - 1, sentence.sources[-1])
    assert record is not None
    assert record.holds(sentence.sources[-1])
    assert plan.record_of(0, "nowhere.png") is None
    try:
        rest = plan.without({record.id: "damaged"})
    except DataError:
        assert plan.per_epoch == plan.grammar.variants  # there was one group of records, and it is not whole any more
        return
    assert rest.skipped == [*plan.skipped, (record.id, "damaged")]
    assert not any(record.holds(source) for sentence in rest for source in sentence.sources)
    assert rest.grammar == plan.grammar


def test_epochs_differ_unless_there_is_nothing_to_draw(plan):
    if plan.type in ("images",):
        return
    epochs = [[shown(plan[e * plan.per_epoch + i])[2:] for i in range(plan.per_epoch)] for e in range(3)]
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_another_seed_draws_something_else(plan, data):
    other = sentence_plan(plan.type, epochs=3, seed=6, **data[plan.type])
    assert len(other) == len(plan)
    if plan.type != "images":
        assert [shown(s) for s in other] != [shown(s) for s in plan]


def test_a_description_makes_the_same_object_again(plan):
    text = json.dumps(plan.grammar.to_dict())
    again = sentences_of(json.loads(text))
    assert again.grammar == plan.grammar
    assert shown(again[0]) == shown(plan[0])
    assert plan.grammar.to_dict()["type"] == plan.type


def test_a_plan_describes_itself_in_json(plan):
    told = json.loads(json.dumps(plan.describe()))
    assert told["sentences"] == len(plan) == 3 * plan.per_epoch
    assert told["images"] == plan.images
    assert told["records"] == len(plan.records)
    assert [len(words.split()) for words in told["layouts"]] == [plan.images] * plan.grammar.variants


def test_usual_sentences_fit_the_usual_context(data):
    for name in TYPES:
        made = sentence_type(name, **data[name])
        assert made.fits(4096, 256) == 256 * made.images <= 4096


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("pictures", [1, 2, 3, 5, 8, 15])
def test_what_the_error_recommends_fits(data, name, pictures):
    made = sentence_type(name, **data[name])
    context = 256 * pictures + 2
    if made.images <= pictures:
        assert made.fits(context, 256, bos=True, eos=True) == made.images * 256 + 2
        assert made.fitted(context, 256, bos=True, eos=True) == made
        return
    with pytest.raises(
        ContextTooLong, match=f"{made.images} pictures x 256 tokens .* {pictures} whole pictures"
    ) as caught:
        made.fits(context, 256, bos=True, eos=True)
    smaller = made.within(pictures)
    if smaller is None:
        assert "longer context" in str(caught.value)
        with pytest.raises(ContextTooLong):
            made.fitted(context, 256, bos=True, eos=True)
        return
    assert all(f"{option}={value}" in str(caught.value) for option, value in smaller.items())
    fitted = made.fitted(context, 256, bos=True, eos=True)
    assert 0 < fitted.images <= pictures
    assert len(fitted.plan()[0].pictures) == fitted.images


def test_begin_and_end_count():
    made = sentence_type("category", images=16)
    assert made.fits(4096, 256) == 4096
    for options in ({"bos": True}, {"eos": True}, {"bos": True, "eos": True}):
        with pytest.raises(ContextTooLong, match="15 whole pictures"):
            made.fits(4096, 256, **options)
    assert made.fits(4098, 256, bos=True, eos=True) == 4098
    assert made.fitted(4096, 256, bos=True).images == 15


@pytest.mark.parametrize("name", TYPES)
def test_sources_must_be_named(name):
    with pytest.raises(OptionError, match="needs"):
        sentence_plan(name)


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize(
    "wrong", [{"seed": -1}, {"seed": "x"}, {"epochs": 0}, {"epochs": 1.5}, {"epochs": True}, {"on_bad": "ignore"}]
)
def test_common_options_are_checked(data, name, wrong):
    with pytest.raises(OptionError, match=next(iter(wrong))):
        sentence_type(name, **data[name] | wrong)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("pairs", {"shots": 0}),
        ("pairs", {"join": "order"}),
        ("pairs", {"labels": ["z"]}),
        ("pairs", {"labels": 3}),
        ("pairs", {"x": 3}),
        ("inpainting", {"hole_probability": 1.5}),
        ("inpainting", {"size": 4}),
        ("inpainting", {"resize": "stretch"}),
        ("annotations", {"order": "random"}),
        ("annotations", {"choose": 6}),
        ("annotations", {"choose": 1}),
        ("annotations", {"modalities": {"rgb": "a"}}),
        ("annotations", {"files": {"other": "*"}}),
        ("category", {"images": 0}),
        ("category_shots", {"categories": 0}),
        ("frames", {"max_stride": 0}),
        ("frames", {"strides": [0]}),
        ("frames", {"strides": [2, 2]}),
        ("video", {"strides": "fast"}),
        ("sequences", {"layout": "mixed"}),
        ("sequences", {"frames": 0}),
        ("co3d", {"annotations": ["images"]}),
        ("co3d", {"annotations": 3}),
    ],
)
def test_own_options_are_checked(data, name, wrong):
    with pytest.raises(OptionError, match=next(iter(wrong))):
        sentence_type(name, **data[name] | wrong)


def test_unknown_names_are_corrected():
    with pytest.raises(UnknownName, match="colorization"):
        sentence_type("colourization")
    with pytest.raises(UnknownName, match="did you mean 'shots'"):
        sentence_type("pairs", shot=3)
    with pytest.raises(OptionError, match="type"):
        sentences_of({"x": "a", "y": "b"})
    with pytest.raises(OptionError, match="mapping"):
        sentences_of(["pairs"])


def test_too_few_records_are_an_error(tmp_path):
    write(tmp_path / "x", numbered("", 3))
    write(tmp_path / "y", numbered("", 4))
    with pytest.raises(DataError, match=r"3 pairs make no whole sentence .*x1 y1 .*003.png.*no partner"):
        sentence_plan("pairs", x=tmp_path / "x", y=tmp_path / "y", shots=4)
    assert len(sentence_plan("pairs", x=tmp_path / "x", y=tmp_path / "y", shots=3)) == 1


def test_skipping_can_be_an_error(tmp_path):
    write(tmp_path / "x", numbered("", 3))
    write(tmp_path / "y", numbered("", 4))
    with pytest.raises(DataError, match=r"y/003\.png: no partner"):
        sentence_plan("pairs", x=tmp_path / "x", y=tmp_path / "y", shots=1, on_bad="error")


def test_grammars_cannot_be_changed():
    made = sentence_type("images")
    with pytest.raises(AttributeError):
        made.seed = 3  # type: ignore[misc]


def test_rows_within_groups_hold_one_group():
    import numpy as np

    records = [Record(str(i), group="ab"[i % 3 == 0]) for i in range(20)]
    rows = regrouped(records, 3, np.random.default_rng(0), by_group=True)
    assert rows.shape == (13 // 3 + 7 // 3, 3)
    assert all(len({records[i].group for i in row}) == 1 for row in rows)
    assert regrouped([], 3, np.random.default_rng(0), by_group=True).shape == (0, 3)
