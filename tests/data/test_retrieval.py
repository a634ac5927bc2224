"""What every retriever must do, and what each of them does."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from kshot.data.candidates import Contents
from kshot.data.retrieval import Fixed, Random, Retriever, generator, load_retriever, random_order, retrievers
from kshot.episode import Example
from kshot.errors import BadImage, OptionError, UnknownName
from kshot.picture import BytesPicture, FilePicture

CLASSES = ("cat", "dog", "owl")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KSHOT_CACHE", str(tmp_path / "cache"))


def encoded(seed: int) -> bytes:
    """A picture file of its own for each seed."""
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((24, 24)).save(buffer, "PNG")
    return buffer.getvalue()


def example(number: int, *, id: str | None = None, image: int | None = None, answer: str | None = "") -> Example:
    return Example(
        images=(BytesPicture(encoded(number if image is None else image)),),
        question=f"What is the {('colour', 'name', 'size')[number % 3]} of thing {number}?",
        answer=CLASSES[number % 3] if answer == "" else answer,
        id=id or f"s{number}",
    )


@pytest.fixture(scope="module")
def pool() -> list[Example]:
    return [example(number) for number in range(30)]


@pytest.fixture(scope="module")
def queries() -> list[Example]:
    return [example(100 + number, id=f"q{number}") for number in range(6)]


def chosen(retriever: Retriever, query: Example, pool: Sequence[Example], shots: int, seed: int = 0) -> list[int]:
    return retriever.choose(query, pool, shots, retriever.generator(seed, shots, query))


@pytest.mark.parametrize("name", retrievers.names())
class TestEveryRetriever:
    @pytest.mark.parametrize("shots", [0, 1, 3, 7, 30])
    def test_gives_as_many_as_asked_for_and_none_twice(self, name, shots, pool, queries):
        places = chosen(load_retriever(name), queries[0], pool, shots)
        assert len(places) == len(set(places)) == shots
        assert all(type(place) is int and 0 <= place < len(pool) for place in places)

    def test_never_shows_the_query_itself(self, name, pool):
        retriever = load_retriever(name)
        for number, query in enumerate(pool):
            assert number not in chosen(retriever, query, pool, 6, seed=number)
        assert number not in chosen(retriever, query, pool, 29)  # all others

    def test_never_shows_the_image_of_the_query_under_another_id(self, name, pool):
        query = example(4, id="a copy")
        for seed in range(20):
            assert 4 not in chosen(load_retriever(name), query, pool, 27, seed=seed)

    def test_passes_over_examples_without_answer_and_counts_them(self, name, queries):
        pool = [example(number, answer=None if number % 5 == 0 else "") for number in range(30)]
        retriever = load_retriever(name)
        places = chosen(retriever, queries[0], pool, 24)
        assert sorted(places) == [number for number in range(30) if number % 5]
        with pytest.raises(OptionError, match=r"25 shots, but only 24 of the 30 .*6 without answer"):
            chosen(retriever, queries[0], pool, 25)
        assert retriever.unanswered == {f"s{number}" for number in range(0, 30, 5)}

    def test_depends_on_nothing_but_query_pool_shots_and_seed(self, name, pool, queries):
        forwards, backwards, alone = load_retriever(name), load_retriever(name), {}
        forwards.prepare(pool, queries, 5)
        expected = {query.id: chosen(forwards, query, pool, 5) for query in queries}
        backwards.prepare(pool, queries[3:], 5)
        assert {query.id: chosen(backwards, query, pool, 5) for query in reversed(queries)} == expected
        for query in queries:
            alone[query.id] = chosen(load_retriever(name), query, list(pool), 5)
        assert alone == expected

    def test_global_random_state_is_neither_used_nor_changed(self, name, pool, queries):
        np.random.seed(1)
        before = np.random.get_state()[1].tolist()  # type: ignore[index]
        first = chosen(load_retriever(name), queries[0], pool, 5)
        assert np.random.get_state()[1].tolist() == before  # type: ignore[index]
        np.random.seed(2)
        assert chosen(load_retriever(name), queries[0], pool, 5) == first

    def test_works_when_pools_differ_from_query_to_query(self, name, pool, queries):
        retriever = load_retriever(name)
        for start, query in enumerate(queries):
            own = pool[start : start + 6]
            assert chosen(retriever, query, own, 3) == chosen(load_retriever(name), query, list(own), 3)

    def test_more_shots_than_examples_names_both_numbers(self, name, pool, queries):
        with pytest.raises(OptionError, match=r"31 shots.* 30 examples"):
            chosen(load_retriever(name), queries[0], pool, 31)
        with pytest.raises(OptionError, match=r"negative: -1"):
            chosen(load_retriever(name), queries[0], pool, -1)
        with pytest.raises(OptionError, match=r"1 shots.* 0 examples"):
            chosen(load_retriever(name), queries[0], [], 1)

    def test_too_few_after_leaving_out_the_query_says_why(self, name, pool):
        with pytest.raises(OptionError, match=r"30 shots, but only 29 of the 30 .*'s3' .*1 the query itself"):
            chosen(load_retriever(name), pool[3], pool, 30)

    def test_shuffled_order_shows_the_same_examples(self, name, pool, queries):
        plain, mixed = load_retriever(name, order="given"), load_retriever(name, order="shuffled")
        results = [(chosen(plain, query, pool, 9), chosen(mixed, query, pool, 9)) for query in queries]
        if name.startswith("nearest"):  # the others draw the shuffling from the same generator, before all else
            assert all(sorted(a) == sorted(b) for a, b in results)
        assert any(a != b for a, b in results)

    def test_orders_by_nearness_only_where_there_is_one(self, name, pool, queries):
        retriever = load_retriever(name)
        if not retriever.ranks:
            with pytest.raises(OptionError, match=r"nothing about nearness"):
                load_retriever(name, order="nearest_last")
            return
        first, last = load_retriever(name, order="nearest_first"), load_retriever(name)
        assert last.order == "nearest_last"
        assert chosen(last, queries[0], pool, 5) == chosen(first, queries[0], pool, 5)[::-1]

    def test_unknown_order_and_option(self, name):
        with pytest.raises(OptionError, match=r"order='upside'.*nearest_last"):
            load_retriever(name, order="upside")  # type: ignore[arg-type]
        with pytest.raises(OptionError, match=r"its options are: .*order"):
            load_retriever(name, colour="red")

    def test_describes_itself_in_json(self, name):
        import json

        described = load_retriever(name).describe()
        assert described["retriever"] == name
        assert json.loads(json.dumps(described)) == described


def test_unknown_retriever_suggests():
    with pytest.raises(UnknownName, match=r"nearest_image"):
        load_retriever("nearest_imag")


def test_a_made_retriever_takes_another_order_but_no_options():
    made = Random()
    assert made.order == "given"
    assert load_retriever(made, "shuffled").order == "shuffled"
    assert made.order == "given"
    with pytest.raises(OptionError, match=r"made already"):
        load_retriever(made, classes=["a"])


class TestFixed:
    def test_all_queries_are_shown_the_same(self, pool, queries):
        fixed = load_retriever("fixed")
        assert len({tuple(chosen(fixed, query, pool, 8)) for query in queries}) == 1
        assert chosen(fixed, queries[0], pool, 8, seed=1) != chosen(fixed, queries[0], pool, 8, seed=2)

    @pytest.mark.parametrize("order", ["given", "shuffled"])
    def test_a_clash_changes_one_demonstration_and_leaves_the_others_in_place(self, pool, queries, order):
        fixed = load_retriever("fixed", order)
        usual = chosen(fixed, queries[0], pool, 8)
        for position, place in enumerate(usual):
            for query in (pool[place], example(place, id="other id, same image")):
                changed = chosen(fixed, query, pool, 8)
                assert [i for i in range(8) if changed[i] != usual[i]] == [position]
        assert fixed.clashes == 16


class TestBalanced:
    def test_an_empty_class_is_an_error(self, pool):
        query = example(100, id="q").with_(choices=(*CLASSES, "emu"))
        offered = [shown.with_(choices=query.choices) for shown in pool]
        with pytest.raises(OptionError, match=r"class 'emu' is empty"):
            chosen(load_retriever("balanced"), query, offered, 4)
        with pytest.raises(OptionError, match=r"class 'emu' is empty"):
            chosen(load_retriever("balanced", classes=["cat", "emu"]), example(100, id="q"), pool, 4)

    def test_a_class_that_only_the_query_belongs_to_is_an_error(self):
        pool = [example(number, answer="lone" if number == 0 else "rest") for number in range(5)]
        with pytest.raises(OptionError, match=r"class 'lone' has no example that can be shown with query 's0'"):
            chosen(load_retriever("balanced"), pool[0], pool, 2)

    def test_classes_can_be_restricted(self, pool, queries):
        places = chosen(load_retriever("balanced", classes=["dog", "owl"]), queries[0], pool, 6)
        assert Counter(pool[place].answer for place in places) == {"dog": 3, "owl": 3}

    def test_picture_answers_are_classed_by_their_metadata(self, pool, queries):
        drawn = [shown.with_(answer=shown.images[0], metadata={"class": shown.answer}) for shown in pool]
        places = chosen(load_retriever("balanced"), queries[0], drawn, 6)
        assert Counter(drawn[place].metadata["class"] for place in places) == dict.fromkeys(CLASSES, 2)
        with pytest.raises(OptionError, match=r"'s0' is answered by a picture"):
            chosen(load_retriever("balanced"), queries[0], [drawn[0].with_(metadata={})], 1)

    def test_order_is_not_by_class(self, pool, queries):
        orders = [
            tuple(pool[p].answer for p in chosen(load_retriever("balanced"), queries[0], pool, 3, s)) for s in range(30)
        ]
        assert len(set(orders)) == 6  # all arrangements of three classes

    @settings(max_examples=60, deadline=None)
    @given(st.data())
    def test_counts_differ_by_at_most_one_unless_a_class_runs_out(self, data):
        sizes = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=5))
        shots = data.draw(st.integers(0, sum(sizes)))
        labels = data.draw(st.permutations([f"c{c}" for c, size in enumerate(sizes) for _ in range(size)]))
        pool = [Example(answer=label, question="?", id=f"{i}") for i, label in enumerate(labels)]
        query = Example(question="?", id="q")
        places = load_retriever("balanced").choose(
            query, pool, shots, np.random.default_rng(data.draw(st.integers(0, 99)))
        )
        counts = Counter(pool[place].answer for place in places)
        assert len(set(places)) == shots
        most = max(counts.values(), default=0)
        for c, size in enumerate(sizes):
            assert counts[f"c{c}"] >= min(size, most - 1)


class TestRandom:
    @settings(max_examples=60, deadline=None)
    @given(size=st.integers(1, 40), seed=st.integers(0, 2**32), data=st.data())
    def test_any_part_of_any_pool(self, size, seed, data):
        banned = data.draw(st.sets(st.integers(0, size - 1)))
        shots = data.draw(st.integers(0, size - len(banned)))
        pool = [Example(question="?", answer=None if i in banned else "a", id=f"{i}") for i in range(size)]
        places = Random().choose(Example(question="?", id="q"), pool, shots, np.random.default_rng(seed))
        assert len(places) == len(set(places)) == shots
        assert not banned & set(places)

    def test_all_examples_and_positions_are_equally_likely(self):
        pool = [Example(question="?", answer="a", id=f"{i}") for i in range(5)]
        query = Example(question="?", id="q")
        counts = np.zeros((3, 5))
        for seed in range(3000):
            for position, place in enumerate(chosen(Random(), query, pool, 3, seed)):
                counts[position, place] += 1
        assert np.abs(counts / 3000 - 0.2).max() < 0.03  # 4 standard deviations

    def test_a_huge_pool_costs_no_more_than_its_demonstrations(self):
        class Huge(Sequence[Example]):
            made = 0

            def __len__(self) -> int:
                return 10**12

            def __getitem__(self, index):
                Huge.made += 1
                return Example(question="?", answer="a", id=f"{index}")

        for retriever in (Random(), Fixed()):
            places = chosen(retriever, Example(question="?", id="q"), Huge(), 8)
            assert len(set(places)) == 8
        assert Huge.made <= 32


@settings(max_examples=100, deadline=None)
@given(size=st.integers(0, 60), seed=st.integers(0, 2**32), part=st.integers(0, 60))
def test_random_order_is_a_permutation_whose_beginning_can_be_drawn_alone(size, seed, part):
    whole = list(random_order(size, np.random.default_rng(seed)))
    assert sorted(whole) == list(range(size))
    assert list(islice(random_order(size, np.random.default_rng(seed)), part)) == whole[:part]


def test_generators_differ_by_every_part():
    parts = [(0, 4, "a"), (1, 4, "a"), (0, 8, "a"), (0, 4, "b"), (0, 4, "")]
    assert len({generator(*p).integers(2**62) for p in parts}) == len(parts)
    assert generator(0, 4, "a").integers(2**62) == generator(0, 4, "a").integers(2**62)


class TestNearest:
    @pytest.fixture
    def shades(self) -> list[Example]:
        """Gradients turned little by little, questions that share fewer and fewer words."""
        words = ["one", "two", "three", "four", "five", "six", "seven", "eight"]
        y, x = np.mgrid[-1:1:32j, -1:1:32j]

        def shade(turn: float) -> Image.Image:
            values = 127 + 80 * (np.cos(turn) * x + np.sin(turn) * y)
            return Image.fromarray(values.astype(np.uint8))

        return [
            Example(images=(shade(0.3 * i),), question=" ".join(words[i:]), answer="yes", id=f"{i}") for i in range(8)
        ]

    @pytest.mark.parametrize("name", ["nearest", "nearest_image", "nearest_text"])
    def test_the_most_similar_stands_last(self, name, shades):
        assert chosen(load_retriever(name), shades[0], shades, 3) == [3, 2, 1]

    def test_weights_decide_between_image_and_question(self, shades):
        like_image = shades[6].with_(id="like the image")
        like_text = shades[1].with_(id="like the text")
        query = shades[0].with_(id="q", images=shades[7].images)
        by_image, by_text = load_retriever("nearest", text_weight=0.1), load_retriever("nearest", image_weight=0.1)
        assert chosen(by_image, query, [like_text, like_image], 1) == [1]
        assert chosen(by_text, query, [like_image, like_text], 1) == [1]

    def test_scores_are_the_weighted_sum_of_cosines(self, shades):
        retriever = load_retriever("nearest", order="nearest_first", image_weight=0.7, text_weight=1.9)
        images = retriever.image_store.images([e.images[0] for e in shades]).astype(float)
        texts = retriever.text_store.texts([e.question for e in shades]).astype(float)
        scores = 0.7 * images @ images[0] + 1.9 * texts @ texts[0]
        expected = [int(i) for i in np.argsort(-scores) if i != 0]
        assert chosen(retriever, shades[0], shades, 7) == expected

    def test_many_copies_of_the_query_do_not_crowd_out_the_rest(self, queries):
        copies = [example(100, id=f"copy{i}", answer="x") for i in range(100)]
        pool = [*copies, *(example(number) for number in range(20))]
        for prepared in (True, False):
            retriever = load_retriever("nearest_image")
            if prepared:
                retriever.prepare(pool, queries[:1], 5)
            places = chosen(retriever, queries[0], pool, 20)
            assert sorted(places) == list(range(100, 120))

    def test_what_cannot_be_compared_is_an_error(self, pool, queries):
        with pytest.raises(OptionError, match=r"'blind' has no image"):
            chosen(load_retriever("nearest_image"), Example(question="?", id="blind"), pool, 2)
        with pytest.raises(OptionError, match=r"'mute' has no question"):
            chosen(load_retriever("nearest_text"), queries[0].with_(id="mute", question=""), pool, 2)
        with pytest.raises(OptionError, match=r"nor both 0"):
            load_retriever("nearest", image_weight=0, text_weight=0)
        with pytest.raises(OptionError, match=r"'pixels' takes no texts"):
            chosen(load_retriever("nearest_text", embedder="pixels"), queries[0], pool, 2)
        with pytest.raises(UnknownName, match=r"pixels"):
            load_retriever("nearest_image", embedder="pixel")

    def test_bad_images_are_errors_or_passed_over_and_listed(self, pool, queries):
        broken = [*pool[:10], pool[10].with_(images=(BytesPicture(b"no image", "broken.png"),)), *pool[11:]]
        broken[12] = pool[12].with_(images=(FilePicture("missing.png"),))
        with pytest.raises(BadImage, match=r"broken.png|missing.png"):
            chosen(load_retriever("nearest_image"), queries[0], broken, 5)
        retriever = load_retriever("nearest_image")
        retriever.on_bad_image = "skip"
        assert sorted(chosen(retriever, queries[0], broken, 28)) == [i for i in range(30) if i not in (10, 12)]
        assert set(retriever.bad_images) == {"broken.png", "missing.png"}
        bad_query = queries[0].with_(images=(BytesPicture(b"x", "bad query"),))
        assert len(chosen(retriever, bad_query, broken, 5)) == 5


class TestContents:
    def test_files_are_compared_by_content_and_read_only_if_sizes_agree(self, tmp_path, monkeypatch):
        paths = [tmp_path / f"{name}.png" for name in "abcd"]
        for path, data in zip(paths, (encoded(1), encoded(1), encoded(2), encoded(2)[:-1] + b"?"), strict=True):
            path.write_bytes(data)
        read: list[Path] = []
        original = FilePicture.read
        monkeypatch.setattr(FilePicture, "read", lambda self: read.append(self.path) or original(self))
        a, b, c, d = (FilePicture(path) for path in paths)
        contents = Contents()
        assert contents.same(a, FilePicture(paths[0]))
        assert not read
        assert contents.same(a, b)
        assert not contents.same(c, d)  # of one size
        seen = len(read)
        assert seen == 4
        assert contents.same(FilePicture(paths[0]), FilePicture(paths[1]))  # made anew, remembered by place
        (tmp_path / "e.png").write_bytes(b"short")
        assert not contents.same(a, FilePicture(tmp_path / "e.png"))
        assert len(read) == seen

    def test_bytes_in_memory_equal_a_file(self, tmp_path):
        (tmp_path / "a.png").write_bytes(encoded(1))
        assert Contents().same(FilePicture(tmp_path / "a.png"), BytesPicture(encoded(1)))
        assert not Contents().same(FilePicture(tmp_path / "a.png"), BytesPicture(encoded(2)))

    def test_unreadable_files_equal_nothing(self, tmp_path):
        assert not Contents().same(FilePicture(tmp_path / "none.png"), BytesPicture(encoded(1)))
