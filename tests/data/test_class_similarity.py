"""Similarity of classes and binned neighbours, against a reference that follows the paper's words one number at a time."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kshot.data.class_similarity import (
    ClassFeatures,
    binned_neighbours,
    chosen_images,
    class_features,
    class_similarity,
    neighbour_bins,
    random_neighbours,
    ranked,
    read_similarity,
    write_similarity,
)
from kshot.data.embedding_store import EmbeddingStore
from kshot.data.embeddings import ContrastiveEmbedder, normalized
from kshot.errors import DataError, OptionError
from kshot.picture import BytesPicture, Picture
from tests.data.concept_files import photo
from tests.data.contrastive import save_contrastive


def reference_similarity(text: np.ndarray, image: np.ndarray) -> np.ndarray:
    """0.5 TT' + 0.8 (IT' + TI') + 0.5 II', entry by entry."""

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.dot(a, b)) / (math.sqrt(float(np.dot(a, a))) * math.sqrt(float(np.dot(b, b))))

    n = len(text)
    result = np.zeros((n, n))
    for a in range(n):
        for b in range(n):
            crossed = cosine(image[a], text[b]) + cosine(text[a], image[b])
            result[a, b] = 0.5 * cosine(text[a], text[b]) + 0.8 * crossed + 0.5 * cosine(image[a], image[b])
    return result


@settings(max_examples=30)
@given(seed=st.integers(0, 10**6), classes=st.integers(1, 12), width=st.integers(1, 9))
def test_the_formula(seed: int, classes: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    text, image = rng.normal(size=(2, classes, width)) * rng.uniform(0.1, 30, size=(2, classes, 1))
    ours = class_similarity(text, image)
    assert np.allclose(ours, reference_similarity(text, image), atol=1e-12)
    assert np.allclose(ours, ours.T, atol=1e-12)


def test_a_class_comes_first_in_its_ranking_and_ties_are_ranked_by_number() -> None:
    similarity = np.array([[0.1, 0.9, 0.9 + 1e-12, 0.5], [0.2, 0.3, 0.9, 0.9], [0, 0, 0, 0], [4, 3, 2, 1.0]])
    assert ranked(similarity).tolist() == [[0, 1, 2, 3], [1, 2, 3, 0], [2, 0, 1, 3], [3, 0, 1, 2]]


def test_the_published_bins() -> None:
    """900 classes, 36 neighbours: ranks 1..24, then 25..49 and so on to 875..899."""
    assert neighbour_bins(900) == [range(1, 25), *(range(25 * j, 25 * j + 25) for j in range(1, 36))]


@given(classes=st.integers(2, 400), bins=st.integers(1, 60))
def test_bins_divide_all_ranks_but_the_first(classes: int, bins: int) -> None:
    cuts = neighbour_bins(classes, bins)
    assert [rank for cut in cuts for rank in cut] == list(range(1, classes))
    assert 1 <= len(cuts) <= bins
    assert all(cuts)
    width = math.ceil(classes / bins)
    assert all(rank // width == cut[0] // width for cut in cuts for rank in cut)


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), classes=st.integers(2, 60), bins=st.integers(1, 40))
def test_one_neighbour_of_each_bin(seed: int, classes: int, bins: int) -> None:
    similarity = np.random.default_rng(seed).normal(size=(classes, classes))
    width = math.ceil(classes / bins)
    for number, own in enumerate(binned_neighbours(similarity, bins=bins, seed=seed)):
        others = sorted((c for c in range(classes) if c != number), key=lambda c: -similarity[number, c])
        expected = [
            set(ranks) for j in range(bins) if (ranks := others[max(0, width * j - 1) : max(0, width * (j + 1) - 1)])
        ]
        assert len(own) == len(expected)
        assert all(neighbour in ranks for neighbour, ranks in zip(own, expected, strict=True))


def test_draws_are_uniform_in_a_bin_and_each_class_draws_by_itself() -> None:
    similarity = -np.abs(np.arange(10)[:, None] - np.arange(10)).astype(
        float
    )  # the neighbours of 0 are 1, 2, ... in order
    drawn = [binned_neighbours(similarity, bins=2, seed=seed)[0] for seed in range(400)]
    near = np.bincount([first for first, _ in drawn], minlength=5)[1:]
    assert near.sum() == 400
    assert np.abs(near - 100).max() < 4 * math.sqrt(400 * 0.25 * 0.75)
    assert {second for _, second in drawn} == {5, 6, 7, 8, 9}
    assert binned_neighbours(similarity, bins=2, seed=3) == binned_neighbours(similarity, bins=2, seed=3)
    keys = [f"k{number}" for number in range(10)]
    turned = binned_neighbours(similarity[::-1, ::-1], bins=2, seed=3, keys=keys[::-1])
    mirrored = [9 - neighbour for neighbour in turned[-1]]
    assert mirrored == binned_neighbours(similarity, bins=2, seed=3, keys=keys)[0]


def test_namesakes_are_no_neighbours() -> None:
    similarity = np.ones((4, 4))
    names = ["crane", "owl", "Crane", "stork"]
    for seed in range(20):
        for found in (
            binned_neighbours(similarity, bins=3, seed=seed, names=names),
            random_neighbours(4, count=3, seed=seed, names=names),
        ):
            assert 2 not in found[0]
            assert 0 not in found[2]
            assert len(set(found[1])) == len(found[1])


@given(classes=st.integers(2, 30), count=st.integers(1, 40), seed=st.integers(0, 99))
def test_random_neighbours_are_different_other_classes(classes: int, count: int, seed: int) -> None:
    for number, own in enumerate(random_neighbours(classes, count=count, seed=seed)):
        assert len(own) == len(set(own)) == min(count, classes - 1)
        assert number not in own


def test_impossible_neighbours() -> None:
    for draw in (
        lambda n, bins: binned_neighbours(np.ones((n, n)), bins=bins),
        lambda n, c: random_neighbours(n, count=c),
    ):
        with pytest.raises(DataError, match="1 classes: a class needs at least one other"):
            draw(1, 36)
        with pytest.raises(OptionError, match="0 neighbours"):
            draw(5, 0)


def test_images_are_chosen_by_seed_and_class() -> None:
    names = [f"{n}.JPEG" for n in range(300)]
    chosen = chosen_images(names, "n01", seed=1)
    assert len(set(chosen)) == 100
    assert chosen == chosen_images(names, "n01", seed=1)
    assert chosen != chosen_images(names, "n01", seed=2) != chosen_images(names, "n02", seed=2)
    assert sorted(chosen_images(names[:7], "n01")) == sorted(names[:7])


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_contrastive(tmp_path_factory.mktemp("clip"))


def pictures(start: int, count: int) -> list[Picture]:
    return [BytesPicture(photo(start + number), f"{start}-{number}.jpg") for number in range(count)]


def test_features_are_means_of_features_with_their_own_lengths(clip: Path, tmp_path: Path) -> None:
    """Against the model itself, one picture at a time: CLIP's projections, averaged, then scaled."""
    embedder = ContrastiveEmbedder(clip, unit=False)
    names, groups = ["cat", "the red dog", "a mat"], [pictures(0, 3), pictures(10, 1), pictures(20, 4)]
    features = class_features(names, groups, EmbeddingStore(embedder, tmp_path))
    text = np.stack([embedder.texts([name])[0] for name in names])
    image = np.stack([np.mean([embedder.images([p.load()])[0] for p in group], axis=0) for group in groups])
    assert np.abs(np.linalg.norm(image, axis=1) - 1).min() > 1e-3
    assert np.allclose(features.text, text, atol=1e-5)
    assert np.allclose(features.image, image, atol=1e-5)
    assert not features.skipped
    # the mean of unit vectors, which is what must not be computed, is another direction
    unit = np.stack([normalized(embedder.images([p.load() for p in group])).mean(axis=0) for group in groups])
    cosine = np.sum(unit * image, 1) / np.linalg.norm(unit, axis=1) / np.linalg.norm(image, axis=1)
    assert cosine[0] < 1 - 1e-7


def test_damaged_pictures_are_left_out_and_listed(clip: Path, tmp_path: Path) -> None:
    embedder = ContrastiveEmbedder(clip, unit=False)
    groups = [[*pictures(0, 2), BytesPicture(b"no image", "broken.jpg")], pictures(10, 2)]
    features = class_features(["cat", "dog"], groups, EmbeddingStore(embedder, tmp_path / "a"))
    assert features.skipped.keys() == {"broken.jpg"}
    alone = class_features(["cat", "dog"], [groups[0][:2], groups[1]], EmbeddingStore(embedder, tmp_path / "b"))
    assert np.allclose(features.image, alone.image, atol=1e-6)
    with pytest.raises(DataError, match=r"classes without a usable image: dog: .*not an image"):
        class_features(["cat", "dog"], [groups[0], groups[0][2:]], EmbeddingStore(embedder, tmp_path / "c"))


def test_a_rerun_computes_nothing_again(clip: Path, tmp_path: Path) -> None:
    embedder = ContrastiveEmbedder(clip, unit=False)
    groups = [pictures(0, 3), pictures(10, 3)]
    first, second = (EmbeddingStore(embedder, tmp_path) for _ in range(2))
    features = class_features(["cat", "dog"], groups, first)
    assert first.computed == 6 + 2
    again = class_features(["cat", "dog"], groups, second)
    assert second.computed == 2  # the names
    assert np.array_equal(again.image, features.image)


def test_a_kept_similarity(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "class_similarity.safetensors"
    rng = np.random.default_rng(0)
    text, image = rng.normal(size=(2, 5, 4))
    similarity = class_similarity(text, image)
    features = ClassFeatures(text, image, {"a.jpg": "truncated"})
    write_similarity(file, features, similarity, keys=list("abcde"), made_from="x")
    kept = read_similarity(file, made_from="x")
    assert kept is not None
    assert np.array_equal(kept.similarity, similarity)
    assert kept.skipped == {"a.jpg": "truncated"}
    assert read_similarity(file, made_from="y") is None
    assert read_similarity(tmp_path / "none", made_from="x") is None
    file.write_bytes(file.read_bytes()[:100])
    assert read_similarity(file, made_from="x") is None
