"""Link-context episodes: what is drawn, how it is called, what is learnt, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kshot.data.link_class import LinkClass, Neighbour
from kshot.errors import DataError, OptionError, UnknownName
from kshot.metrics.common import fold
from kshot.prompt import render_plain
from kshot.training.items import load_source
from kshot.training.link import LinkEpisodes
from kshot.training.link_prompts import QUERY_QUESTION, QUERY_QUESTIONS
from tests.training.link_toys import classes, picture, write_list

ROOT = Path(__file__).parents[2]
CLASSES = classes()
BY_KEY = {one.key: one for one in CLASSES}


def sides_of(item) -> Counter:
    return Counter(d.metadata["side"] for d in item.episode.demonstrations)


def digests(examples) -> list[str]:
    return [example.images[0].digest for example in examples]


def text(item) -> str:
    return render_plain(item.episode, item.template, answer=item.episode.query.text_answer).text()


OPTIONS = st.fixed_dictionaries(
    {
        "ways": st.integers(2, 4),
        "sampler": st.sampled_from(["fixed", "uniform", "exponential"]),
        "shots_per_side": st.integers(1, 4),
        "negatives": st.sampled_from(["neighbours", "random"]),
        "stored_pictures": st.booleans(),
        "names": st.sampled_from(["letters", "invented"]),
        "rename": st.sampled_from([0.0, 0.5, 1.0]),
        "loss": st.sampled_from(["query", "shown"]),
        "template": st.sampled_from(["link", "plain"]),
        "seed": st.integers(0, 5),
    }
)


@settings(max_examples=100)
@given(OPTIONS, st.integers(0, 3), st.integers(0, 7))
def test_every_episode_keeps_the_rules(options, epoch, index):
    source = LinkEpisodes(CLASSES, **options)
    item = source.item(epoch, index)
    episode, ways = item.episode, options["ways"]
    support, query = episode.demonstrations, episode.query
    # The query is never among the demonstrations, which all differ.
    assert query.images[0].digest not in digests(support)
    assert len(set(digests(support))) == len(support)
    # All sides are shown equally often, each under one name; names differ.
    names = {(d.metadata["class"], d.answer) for d in support}
    assert len(names) == ways
    assert len({fold(name) for _, name in names}) == ways
    assert set(Counter(d.metadata["class"] for d in support).values()) == {len(support) // ways}
    assert 1 <= len(support) // ways <= options["shots_per_side"]
    # The query goes by the name of its class; the novel side is the indexed class, never under its real name.
    assert (query.metadata["class"], query.answer) in names
    novel = {d.metadata["class"] for d in support if d.metadata["side"] == "novel"}
    assert novel == {CLASSES[index].key}
    for key, name in names:
        real = BY_KEY[key].name.lower()
        if key in novel or options["rename"] == 1:
            assert name != real
            assert name.isascii()
            assert name.islower()
            assert name.isalpha()
        elif options["rename"] == 0:
            assert name == real
    # Pictures are those of their class, or the one that is stored with the neighbour.
    for example in (*support, query):
        one = BY_KEY[example.metadata["class"]]
        own = [p.digest for p in one.pictures]
        stored = [n.picture.digest for n in CLASSES[index].neighbours if n.key == one.key]
        assert example.images[0].digest in own + (stored if example is not query else [])
    if options["negatives"] == "neighbours":
        assert {key for key, _ in names} - novel <= {n.key for n in CLASSES[index].neighbours}
    # Graded: exactly the demonstrations whose class was shown before.
    if options["loss"] == "shown":
        keys = [d.metadata["class"] for d in support]
        assert item.graded == tuple(key in keys[:place] for place, key in enumerate(keys))
    else:
        assert item.graded == ()
    # The same item whenever it is asked for.
    assert LinkEpisodes(CLASSES, **options).item(epoch, index) == item


def test_an_epoch_has_each_class_once_as_the_novel_one():
    source = LinkEpisodes(CLASSES, shots_per_side=1, episodes_per_class=2)
    novel = [next(d.metadata["class"] for d in source.item(0, i).episode.demonstrations if d.metadata["side"] == "novel")
             for i in range(len(source))]  # fmt: skip
    assert novel == 2 * [one.key for one in CLASSES]
    with pytest.raises(IndexError):
        source.item(0, len(source))


def test_epochs_seeds_and_repetitions_differ():
    source = LinkEpisodes(CLASSES, shots_per_side=4, episodes_per_class=2)
    other = LinkEpisodes(CLASSES, shots_per_side=4, episodes_per_class=2, seed=1)
    made = [source.item(0, 0), source.item(1, 0), source.item(0, 8), other.item(0, 0)]
    assert len({text(item) for item in made}) == 4


def test_an_episode_is_the_same_in_another_process():
    code = (
        "from kshot.training.link import LinkEpisodes; from tests.training.link_toys import classes\n"
        "s = LinkEpisodes(classes(), shots_per_side=3, ways=3, sampler='uniform', loss='shown')\n"
        "episodes = [s.item(2, i).episode for i in range(8)]\n"
        "print([(e.id, e.answer, e.images[0].digest) for x in episodes for e in (*x.demonstrations, x.query)])"
    )
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    s = LinkEpisodes(CLASSES, shots_per_side=3, ways=3, sampler="uniform", loss="shown")
    items = [s.item(2, i) for i in range(8)]
    here = [
        (e.id, e.answer, e.images[0].digest)
        for item in items
        for e in (*item.episode.demonstrations, item.episode.query)
    ]
    assert made.strip() == str(here)


def test_the_prompt_is_that_of_the_paper():
    item = LinkEpisodes(CLASSES, shots_per_side=1, questions="fixed").item(0, 0)
    first, second = (d.answer for d in item.episode.demonstrations)
    assert text(item) == (
        "You should find the causal relationship between the examples I am going to show you. "
        "And use that to answer to the [FINAL QUESTION]. "
        f'USER: [BEGIN EXAMPLE] What is in the image <image>? ASSISTANT: there is "{first}" in the image. [END EXAMPLE] '
        f'USER: [BEGIN EXAMPLE] What is in the image <image>? ASSISTANT: there is "{second}" in the image. [END EXAMPLE] '
        "[FINAL QUESTION]: USER: Based on the previous examples, what is in the image <image>? "
        f'ASSISTANT: there is "{item.episode.query.answer}" in the image.'
    )


def test_wordings_are_many_different_and_all_used():
    assert 20 <= len(QUERY_QUESTIONS) == len({fold(q) for q in QUERY_QUESTIONS})
    source = LinkEpisodes(CLASSES, shots_per_side=1, episodes_per_class=40)
    assert {source.item(0, i).episode.query.question for i in range(len(source))} == set(QUERY_QUESTIONS)
    assert not any("?" in q or "<" in q or q != q.strip() for q in QUERY_QUESTIONS)  # the template closes each
    fixed = LinkEpisodes(CLASSES, shots_per_side=1, questions="fixed")
    assert {fixed.item(0, i).episode.query.question for i in range(8)} == {QUERY_QUESTION}


def test_sides_orders_and_neighbours_are_drawn_as_published():
    """Query sides and orders alike; neighbour j of N with probability (N + 1 - j) over the sum, the stored picture among them."""
    many = classes(count=37, pictures=3, neighbours=36)
    source = LinkEpisodes(many, shots_per_side=2, episodes_per_class=60)
    asked, first, ranks, stored = Counter(), Counter(), Counter(), 0
    for index in range(len(source)):
        episode = source.item(0, index).episode
        asked[episode.query.metadata["side"]] += 1
        first[episode.demonstrations[0].metadata["side"]] += 1
        known = next(d.metadata["class"] for d in episode.demonstrations if d.metadata["side"] == "known")
        ranks[(int(known[1:]) - index) % 37] += 1
        stored += sum(d.id.endswith("#stored") for d in episode.demonstrations)
    total = len(source)
    assert abs(asked["novel"] / total - 0.5) < 0.05
    assert abs(first["novel"] / total - 0.5) < 0.05
    assert stored == total
    for rank in range(1, 37):
        p = (37 - rank) / 666
        assert abs(ranks[rank] - total * p) < 5 * (total * p) ** 0.5 + 1


def test_all_ways_are_asked_about():
    source = LinkEpisodes(CLASSES, shots_per_side=1, ways=4, episodes_per_class=50)
    asked = Counter()
    for index in range(len(source)):
        episode = source.item(0, index).episode
        # the order in which classes were drawn is not told; novel against known is
        asked[episode.query.metadata["side"]] += 1
    assert abs(asked["novel"] / len(source) - 0.25) < 0.08


def test_random_letters_are_as_long_as_published():
    source = LinkEpisodes(CLASSES, shots_per_side=1, episodes_per_class=100)
    names = [n for i in range(len(source)) for d in source.item(0, i).episode.demonstrations
             if d.metadata["side"] == "novel" for n in [d.answer]]  # fmt: skip
    lengths = Counter(map(len, names))
    assert set(lengths) == set(range(1, 11))
    assert max(lengths.values()) < 2 * min(lengths.values())
    assert len(set(names)) > 500  # drawn anew for every episode


def test_namesakes_never_meet():
    names = ["crane", "Crane ", "heron", "stork", "CRANE", "ibis"]
    many = classes(count=6, neighbours=5, names=names)
    for negatives in ("neighbours", "random"):
        source = LinkEpisodes(many, shots_per_side=1, ways=4, negatives=negatives, episodes_per_class=30)
        for index in range(len(source)):
            keys = {d.metadata["class"] for d in source.item(0, index).episode.demonstrations}
            assert len({fold(names[int(key[1:])]) for key in keys}) == 4
    with pytest.raises(DataError, match="fewer than the 4 neighbours that 5 ways take"):
        LinkEpisodes(many, shots_per_side=1, ways=5)
    with pytest.raises(OptionError, match="6 classes with 4 different names"):
        LinkEpisodes(many, shots_per_side=1, ways=5, negatives="random")


def test_copies_of_the_query_are_left_out():
    same, other = picture(1, 1), picture(1, 2)
    copies = [same, type(same)(same.read(), "copy"), type(same)(same.read(), "another copy"), other]
    pair = [
        LinkClass("a", "a thing", copies, (Neighbour("b", same),)),
        LinkClass("b", "b thing", [picture(2, n) for n in range(4)]),
    ]
    source = LinkEpisodes(pair, shots_per_side=1, negatives="random", episodes_per_class=40)
    for index in range(len(source)):
        episode = source.item(0, index).episode
        assert episode.query.images[0].digest not in digests(episode.demonstrations)
    too_many = LinkEpisodes(pair, shots_per_side=2, negatives="random", episodes_per_class=40)
    with pytest.raises(DataError, match="a a thing: only 1 different pictures"):
        [too_many.item(0, index) for index in range(len(too_many))]


def test_a_stored_picture_that_is_also_a_sample_is_shown_once():
    """In the published file 2.6 % of the stored pictures are among the class' own."""
    pictures = [picture(9, n) for n in range(3)]
    pair = [
        LinkClass("a", "first", [picture(8, n) for n in range(3)], (Neighbour("b", pictures[0]),)),
        LinkClass("b", "second", pictures, (Neighbour("a", None),)),
    ]
    source = LinkEpisodes(pair, shots_per_side=2, episodes_per_class=60)
    for index in range(0, len(source), 2):
        episode = source.item(0, index).episode
        shown = digests(episode.demonstrations)
        assert len(set(shown)) == 4
        assert episode.query.images[0].digest not in shown


def test_pictures_repeat_only_where_asked_and_needed():
    few = classes(pictures=2)
    with pytest.raises(
        DataError, match=r"fewer than the 5 pictures that 4 shots per side and a query take: c0 Thing 0 \(2\)"
    ):
        LinkEpisodes(few, shots_per_side=4)
    source = LinkEpisodes(few, shots_per_side=4, stored_pictures=False, repeat_pictures=True)
    for index in range(len(source)):
        episode = source.item(0, index).episode
        shown = Counter(digests(episode.demonstrations))
        assert len(episode.demonstrations) == 8
        assert episode.query.images[0].digest not in shown
        assert sorted(shown.values()) == [2, 2, 4]  # the side of the query has one picture left, the other two
    with pytest.raises(DataError, match="fewer than the 2 pictures"):
        LinkEpisodes(classes(pictures=1), shots_per_side=1, repeat_pictures=True)


def test_both_names_made_up():
    source = LinkEpisodes(CLASSES, shots_per_side=1, novel="all", names="invented")
    for index in range(8):
        for d in source.item(0, index).episode.demonstrations:
            assert not d.text_answer.startswith("thing")


def test_names_may_be_drawn_from_a_list():
    source = LinkEpisodes(CLASSES, shots_per_side=1, names=["red", "green", "thing 1"], novel="all")
    assert {d.answer for i in range(8) for d in source.item(0, i).episode.demonstrations} == {"red", "green", "thing 1"}
    pair = classes(count=2, neighbours=1)
    one_real = LinkEpisodes(pair, shots_per_side=1, names=["red", "thing 1"], episodes_per_class=9)
    for index in range(0, len(one_real), 2):  # "thing 1" is what the known class is called
        assert {d.answer for d in one_real.item(0, index).episode.demonstrations} == {"red", "thing 1"}
    with pytest.raises(OptionError, match="none could be drawn that is not the name of a known class, thing 1"):
        LinkEpisodes(pair, shots_per_side=1, names=["thing 1", "Thing 1"]).item(0, 0)


def test_renaming_is_a_probability():
    source = LinkEpisodes(CLASSES, shots_per_side=1, rename=0.3, episodes_per_class=60)
    renamed = sum(
        not d.text_answer.startswith("thing")
        for i in range(len(source))
        for d in source.item(0, i).episode.demonstrations
        if d.metadata["side"] == "known"
    )
    assert abs(renamed / len(source) - 0.3) < 0.08


def test_the_longest_items_have_the_most_shots():
    source = LinkEpisodes(CLASSES, shots_per_side=4, sampler="exponential", base=0.01, ways=3)
    assert source.item(0, 0).episode.shots == 3  # such a base favours few
    longest = source.longest()
    assert longest
    assert all(item.episode.shots == 12 for item in longest)
    assert len(text(longest[0])) >= max(len(text(source.item(0, i))) for i in range(len(source)))


def test_the_published_format_is_read(tmp_path):
    source = load_source(
        {"kind": "link", "source": str(write_list(tmp_path)), "shots_per_side": 2, "sampler": "uniform"}
    )
    assert len(source) == 5
    item = source.item(0, 0)
    assert [p.load().size for p in item.episode.pictures] == [(24, 16)] * len(item.episode.pictures)
    known = [d for d in item.episode.demonstrations if d.metadata["side"] == "known"]
    assert all(d.answer == f"kind {int(d.metadata['class']) - 1}" for d in known)


def test_an_epoch_of_the_published_list(shared_data):
    """900 episodes, one of each class, of 8 + 8 pictures; no pictures are read. ("crane" and "maillot" are two classes each.)"""
    file = shared_data / "imagenet" / "train900_pairs.jsonl"
    source = LinkEpisodes(file, options={"check_images": False}, shots_per_side=8)
    novel, stored, ranks = Counter(), 0, []
    for index in range(len(source)):
        item = source.item(0, index)
        episode = item.episode
        assert sides_of(item) == {"novel": 8, "known": 8}
        paths = [p.name for p in episode.pictures]
        assert len(set(paths)) == 17
        known = next(d for d in episode.demonstrations if d.metadata["side"] == "known")
        one = source.class_of(index)
        assert known.answer == source.classes.by_key(known.metadata["class"]).name == known.text_answer.lower()
        assert fold(known.text_answer) != fold(one.name)
        novel[one.key] += 1
        stored += sum(d.id.endswith("#stored") for d in episode.demonstrations)
        ranks.append([n.key for n in one.neighbours].index(known.metadata["class"]) + 1)
    assert set(novel.values()) == {1}
    assert len(novel) == stored == 900
    expected = sum(rank * (37 - rank) for rank in range(1, 37)) / 666
    assert abs(sum(ranks) / 900 - expected) < 4 * 8.6 / 30  # four standard errors


def test_a_task_with_classes_is_a_source():
    source = LinkEpisodes(
        "glyphs",
        options={"classes": 10, "split": "train"},
        shots_per_side=1,
        negatives="random",
        novel="all",
        template="plain",
    )
    assert len(source) == 10
    assert source.item(0, 3).episode.pictures[0].load().size == (64, 64)


def test_the_description_tells_sources_apart():
    made = [
        LinkEpisodes(CLASSES, shots_per_side=2),
        LinkEpisodes(classes(pictures=5), shots_per_side=2),
        LinkEpisodes(CLASSES, shots_per_side=3),
        LinkEpisodes(CLASSES, shots_per_side=2, seed=1),
        LinkEpisodes(CLASSES, shots_per_side=2, loss="shown"),
        LinkEpisodes(CLASSES, shots_per_side=2, template={"separator": "\n"}),
        LinkEpisodes(CLASSES, shots_per_side=2, sampler="exponential"),
        LinkEpisodes(CLASSES, shots_per_side=2, sampler="exponential", base="release"),
    ]
    assert len({json.dumps(source.describe(), sort_keys=True) for source in made}) == len(made)
    assert LinkEpisodes(CLASSES, shots_per_side=2).describe() == made[0].describe()


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({"shots_per_side": 1, "sampler": "unifrom"}, UnknownName, "did you mean 'uniform'"),
        ({"shots_per_side": 6}, DataError, "8 of 8 classes have fewer than the 7 pictures"),
        ({"shots_per_side": 1, "negatives": "near"}, OptionError, "neighbours, random"),
        ({"shots_per_side": 1, "names": "unseen"}, OptionError, "letters, invented"),
        ({"shots_per_side": 1, "rename": 1.5}, OptionError, "rename=1.5"),
        ({"shots_per_side": 1, "loss": "all"}, OptionError, "query, shown"),
        ({"shots_per_side": 1, "template": "chat"}, OptionError, "link, plain"),
        ({"shots_per_side": 1, "template": {"qeury": "x"}}, OptionError, "no field 'qeury'"),
        ({"shots_per_side": 1, "style": "fancy"}, OptionError, "auto, plain, chat"),
        ({"shots_per_side": 1, "episodes_per_class": 0}, OptionError, "episodes_per_class=0"),
        ({"shots_per_side": 1, "ways": 9, "negatives": "random"}, OptionError, "only 8 classes"),
        ({"shots_per_side": 1, "ways": 6}, DataError, "negatives: random takes any other class"),
    ],
)
def test_what_is_refused_before_training_starts(options, error, told):
    with pytest.raises(error, match=told):
        LinkEpisodes(CLASSES, **options)


def test_classes_without_neighbours_need_random_negatives():
    with pytest.raises(DataError, match=r"c0 Thing 0.*negatives: random"):
        LinkEpisodes(classes(neighbours=0), shots_per_side=1)
    assert LinkEpisodes(classes(neighbours=0), shots_per_side=1, negatives="random").item(0, 0)


def test_a_wrong_option_of_a_recipe_is_named():
    with pytest.raises(OptionError, match=r"data\.episodes: source 'link'.*shots_per_sied.*its options are"):
        load_source({"kind": "link", "source": CLASSES, "shots_per_sied": 1}, where="data.episodes")
    with pytest.raises(UnknownName, match="did you mean 'link'"):
        load_source({"kind": "lnk"})
