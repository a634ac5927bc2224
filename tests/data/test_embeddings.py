"""Embedders, their cache, and the exact search among vectors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from kshot.data.embedding_store import EmbeddingStore, cache_folder, read_shards, write_shard
from kshot.data.embeddings import (
    ContrastiveEmbedder,
    PixelEmbedder,
    VisionEmbedder,
    WordEmbedder,
    embedders,
    load_embedder,
    model_fingerprint,
)
from kshot.data.retrieval import load_retriever
from kshot.data.similarity import Work, top_k
from kshot.episode import Example
from kshot.errors import BadImage, ModelError, OptionError, UnknownName
from kshot.picture import BytesPicture, FilePicture, as_picture
from tests.data.contrastive import save_contrastive, word_tokenizer


def photo(seed: int, size: tuple[int, int] = (40, 30)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


# --- the search ---------------------------------------------------------------------------------------------------------


def brute_force(queries: torch.Tensor, support: torch.Tensor, k: int) -> np.ndarray:
    products = queries.double().numpy() @ support.double().numpy().T
    return np.stack([np.lexsort((np.arange(len(row)), -row))[:k] for row in products])


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    sizes=st.tuples(st.integers(1, 20), st.integers(1, 90), st.integers(1, 9)),
    k=st.integers(0, 90),
    block=st.tuples(st.integers(3, 21), st.integers(9, 91)),
    values=st.integers(0, 3),
)
def test_equals_brute_force_with_ties_by_index(seed, sizes, k, block, values):
    """Small whole numbers make exact ties, many more than the first pass keeps when there are few values."""
    q, n, d = sizes
    rng = torch.Generator().manual_seed(seed)
    queries = torch.randint(-values, values + 1, (q, d), generator=rng).float()
    support = torch.randint(-values, values + 1, (n, d), generator=rng).float()
    k = min(k, n)
    scores, indices = top_k(queries, support, k, block=block)
    expected = brute_force(queries, support, k)
    assert indices.tolist() == expected.tolist()
    assert torch.equal(scores, torch.gather(queries.double() @ support.double().T, 1, indices))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_equals_brute_force_on_unit_vectors_of_any_precision(dtype):
    rng = torch.Generator().manual_seed(0)
    queries, support = (torch.nn.functional.normalize(torch.randn(n, 64, generator=rng), dim=1) for n in (70, 3000))
    queries, support = queries.to(dtype), support.to(dtype)
    _, indices = top_k(queries, support, 8, block=(32, 500))
    assert indices.tolist() == brute_force(queries, support, 8).tolist()


def test_near_ties_below_the_precision_of_the_first_pass_are_ranked_exactly():
    """Scores that differ by less than float32 can tell, and more of them than are kept: only the second look finds the best."""
    rng = np.random.default_rng(0)
    n, d = 400, 32
    support = np.tile(rng.normal(size=d), (n, 1)).astype(np.float32)
    best = rng.permutation(n)
    column = np.float32(1e-7) * best.astype(
        np.float32
    )  # 1e-7 * query value 1e-3: far below one float32 step of the sum
    support[:, 5] = column
    query = rng.normal(size=(1, d)).astype(np.float32)
    query[0, 5] = 1e-3
    work = Work()
    _, indices = top_k(torch.from_numpy(query), torch.from_numpy(support), 5, block=(1, 64), work=work)
    assert indices[0].tolist() == [int(np.flatnonzero(best == n - 1 - i)[0]) for i in range(5)]
    assert work.second_looks == 1
    naive = (torch.from_numpy(support) @ torch.from_numpy(query[0])).topk(5).indices.tolist()
    assert naive != indices[0].tolist()  # else this test would show nothing


def test_result_does_not_depend_on_blocks_or_on_the_other_queries():
    rng = torch.Generator().manual_seed(3)
    queries, support = torch.randn(40, 48, generator=rng), torch.randn(1500, 48, generator=rng)
    support[700:760] = support[:60]  # exact ties
    expected = top_k(queries, support, 20)
    for block in ((1, 1500), (7, 13), (40, 100), (3, 1499)):
        scores, indices = top_k(queries, support, 20, block=block)
        assert torch.equal(indices, expected[1])
        assert torch.equal(scores, expected[0])
    alone = torch.cat([top_k(query[None], support, 20)[1] for query in queries])
    assert torch.equal(alone, expected[1])
    shorter = top_k(queries, support, 5)[1]
    assert torch.equal(shorter, expected[1][:, :5])


def test_never_holds_more_than_a_block(monkeypatch):
    queries, support = torch.randn(100, 8), torch.randn(5000, 8)
    work = Work()
    top_k(queries, support, 4, block=(16, 256), work=work)
    assert work.largest_block == 16 * 256
    sizes: list[int] = []
    original = torch.Tensor.__matmul__
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda a, b: _note(sizes, original(a, b)))
    top_k(queries, support, 4, block=(16, 256))
    assert max(sizes) == 16 * 256
    assert sum(sizes) == 100 * 5000


def _note(sizes: list[int], product: torch.Tensor) -> torch.Tensor:
    sizes.append(product.numel())
    return product


def test_precision_set_by_the_user_is_not_used_and_kept():
    torch.set_float32_matmul_precision("medium")
    try:
        rng = torch.Generator().manual_seed(0)
        queries, support = torch.randn(20, 64, generator=rng), torch.randn(500, 64, generator=rng)
        assert top_k(queries, support, 9)[1].tolist() == brute_force(queries, support, 9).tolist()
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_wrong_sizes_and_numbers_that_are_none():
    with pytest.raises(ValueError, match="k=4: must be 0 to 3"):
        top_k(torch.ones(1, 2), torch.ones(3, 2), 4)
    with pytest.raises(ValueError, match=r"\[1, 2\], \[3, 5\]"):
        top_k(torch.ones(1, 2), torch.ones(3, 5), 1)
    nan = torch.tensor([[1.0, float("nan")]])
    with pytest.raises(ValueError, match="query vector is not finite"):
        top_k(nan, torch.ones(3, 2), 1)
    with pytest.raises(ValueError, match="support vector is not finite"):
        top_k(torch.ones(1, 2), nan, 1)
    assert top_k(torch.ones(0, 2), torch.ones(3, 2), 2)[1].shape == (0, 2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_gpu_equals_cpu():
    rng = torch.Generator().manual_seed(5)
    queries, support = torch.randn(300, 128, generator=rng), torch.randn(20000, 128, generator=rng)
    support[9000:9100] = support[:100]
    assert torch.equal(top_k(queries, support, 8)[1], top_k(queries, support.cuda(), 8)[1])


# --- embedders ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["clip", "siglip"])
def contrastive(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny random CLIP or SigLIP model."""
    return save_contrastive(tmp_path_factory.mktemp(request.param), request.param)


class TestContrastiveEmbedder:
    def test_gives_the_models_own_features_whatever_the_batch(self, contrastive):
        embedder = ContrastiveEmbedder(contrastive)
        images = [photo(i, (40 + i, 30)) for i in range(5)]
        vectors = embedder.images(images)
        assert vectors.shape == (5, 16 if contrastive.name.startswith("siglip") else 12)
        assert vectors.dtype == np.float32
        assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
        assert np.allclose(np.concatenate([embedder.images([image]) for image in images]), vectors, atol=1e-6)
        assert np.abs(vectors[0] - vectors[1]).max() > 1e-3
        with torch.no_grad():
            pixels = embedder.processor.image_processor(images=images, return_tensors="pt")["pixel_values"]
            ids = embedder.processor.tokenizer(
                ["a cat"], padding="max_length", max_length=10, truncation=True, return_tensors="pt"
            )
            direct = embedder.model(pixel_values=pixels, **ids)
        assert np.allclose(vectors, direct.image_embeds.numpy(), atol=1e-6)
        assert np.allclose(embedder.texts(["a cat"]), direct.text_embeds.numpy(), atol=1e-6)

    def test_lengths_are_kept_where_they_are_asked_for(self, contrastive):
        raw, unit = ContrastiveEmbedder(contrastive, unit=False), ContrastiveEmbedder(contrastive)
        images = [photo(i) for i in range(3)]
        lengths = np.linalg.norm(raw.images(images), axis=1, keepdims=True)
        assert np.abs(lengths - 1).min() > 1e-3
        assert np.allclose(raw.images(images) / lengths, unit.images(images), atol=1e-6)
        assert raw.fingerprint != unit.fingerprint  # they must not share a cache

    def test_texts_do_not_depend_on_their_neighbours_or_on_too_many_words(self, contrastive):
        embedder = ContrastiveEmbedder(contrastive)
        texts = ["a red cat", "the dog on the mat", "green", "a " * 50]
        vectors = embedder.texts(texts)
        assert np.allclose(np.concatenate([embedder.texts([text]) for text in texts]), vectors, atol=1e-6)
        assert np.abs(vectors[0] - vectors[1]).max() > 1e-3

    def test_fingerprint_changes_with_weights_and_preprocessing_only(self, contrastive):
        first, second = ContrastiveEmbedder(contrastive), ContrastiveEmbedder(contrastive)
        assert first.fingerprint == second.fingerprint
        second.processor.image_processor.image_mean = [0.1, 0.2, 0.3]
        assert model_fingerprint(second.model, second.processor) != first.fingerprint
        with torch.no_grad():
            for weight in first.model.parameters():
                weight.add_(1e-3)
        assert model_fingerprint(first.model, first.processor) != second.fingerprint

    def test_serves_the_nearest_retriever(self, contrastive, tmp_path):
        pool = [Example(images=(photo(i),), question="a cat", answer="x", id=f"{i}") for i in range(9)]
        retriever = load_retriever("nearest", embedder=str(contrastive), cache=tmp_path, order="nearest_first")
        places = retriever.choose(pool[2], pool, 8, np.random.default_rng(0))
        vectors = ContrastiveEmbedder(contrastive).images([example.images[0].load() for example in pool])
        assert places == [int(i) for i in np.argsort(-(vectors @ vectors[2]), kind="stable") if i != 2]
        assert contrastive.parent.name not in json.dumps(retriever.describe())  # no machine paths

    def test_a_folder_without_such_a_model(self, tmp_path):
        with pytest.raises(ModelError, match="cannot be loaded"):
            load_embedder(str(tmp_path))
        import transformers as tf

        tf.BertModel(
            tf.BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=13)
        ).save_pretrained(tmp_path)
        word_tokenizer(True).save_pretrained(tmp_path)
        with pytest.raises(ModelError, match="no CLIP or SigLIP model"):
            load_embedder(str(tmp_path))


class TestVisionEmbedder:
    def test_averages_the_tokens_of_a_vision_language_model(self):
        import transformers as tf

        torch.manual_seed(0)
        sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        config = tf.LlavaConfig(
            vision_config=tf.CLIPVisionConfig(**sizes, image_size=16, patch_size=8),
            text_config=tf.LlamaConfig(**sizes, vocab_size=20),
            image_token_index=19,
        )
        model = tf.LlavaForConditionalGeneration(config).eval()
        images = tf.CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})

        class Processor:
            image_processor = images

        class OurModel:
            name = "ours"

            def __init__(self) -> None:
                self.model, self.processor = model, Processor()

        embedder = VisionEmbedder(OurModel())
        pictures = [photo(i) for i in range(3)]
        vectors = embedder.images(pictures)
        with torch.no_grad():
            pixels = images(images=pictures, return_tensors="pt")["pixel_values"]
            tokens = model.model.get_image_features(pixel_values=pixels).pooler_output
        means = torch.stack([t.mean(0) for t in tokens])
        assert np.allclose(vectors, torch.nn.functional.normalize(means, dim=1).numpy(), atol=1e-6)
        assert embedder.name == "ours"
        with pytest.raises(OptionError, match="takes no texts"):
            embedder.texts(["a"])

    def test_a_model_without_image_features(self):
        with pytest.raises(ModelError, match="gives no image features"):
            VisionEmbedder(torch.nn.Linear(1, 1), processor=object())


class TestWithoutModel:
    def test_pixels_find_the_same_picture_in_another_size_and_brightness(self):
        big = photo(0, (64, 64)).resize((256, 256))
        dim = Image.eval(big.resize((100, 100)), lambda value: value // 2)
        vectors = PixelEmbedder().images([big, dim, photo(1, (64, 64))])
        assert vectors[0] @ vectors[1] > 0.95
        assert abs(vectors[0] @ vectors[2]) < 0.5

    def test_a_blank_picture_and_an_empty_text_resemble_nothing(self):
        assert not PixelEmbedder().images([Image.new("RGB", (9, 9), "red")]).any()
        assert not WordEmbedder().texts(["  "]).any()

    def test_words_know_inflections_and_case(self):
        a, b, c = WordEmbedder().texts(["What colour is the car?", "what colours are the CARS", "Who won the match"])
        assert a @ b > 0.5 > a @ c

    @pytest.mark.parametrize("name", embedders.names())
    def test_every_registered_embedder_takes_images_or_texts(self, name):
        embedder, refused = load_embedder(name), 0
        for method, items in ((embedder.images, [photo(0), photo(1)]), (embedder.texts, ["a b", "c"])):
            try:
                vectors = method(items)  # type: ignore[operator]
            except OptionError:
                refused += 1
                continue
            assert vectors.shape[0] == 2
            assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
        assert refused < 2

    def test_unknown_name(self):
        with pytest.raises(UnknownName, match="'pixels'"):
            load_embedder("pixles")


# --- the cache ----------------------------------------------------------------------------------------------------------


class Counting(PixelEmbedder):
    """Counts what it embeds."""

    def __init__(self) -> None:
        super().__init__(4)
        self.seen = 0

    def images(self, images):
        self.seen += len(images)
        return super().images(images)


@pytest.fixture
def files(tmp_path: Path) -> list[FilePicture]:
    for i in range(6):
        photo(i % 5).save(tmp_path / f"{i}.png")  # the last one is a copy of the first
    return [FilePicture(tmp_path / f"{i}.png") for i in range(6)]


class TestStore:
    def test_each_content_is_embedded_once_and_found_again_by_another_process(self, files, tmp_path):
        embedder = Counting()
        store = EmbeddingStore(embedder, tmp_path / "c")
        vectors = store.images(files)
        assert embedder.seen == store.computed == 5
        assert np.array_equal(vectors[0], vectors[5])
        assert np.array_equal(vectors, PixelEmbedder(4).images([p.load() for p in files]))
        store.flush()
        store.flush()
        assert len(list(store.folder.iterdir())) == 1
        again = EmbeddingStore(embedder, tmp_path / "c")
        assert np.array_equal(again.images(files[::-1]), vectors[::-1])
        assert embedder.seen == 5
        other = EmbeddingStore(PixelEmbedder(5), tmp_path / "c")
        assert other.images(files).shape == (6, 25)

    @pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "nonsense"])
    def test_damaged_shards_are_computed_again(self, files, tmp_path, damage):
        store = EmbeddingStore(Counting(), tmp_path / "c")
        vectors = store.images(files)
        store.flush()
        (shard,) = store.folder.iterdir()
        data = bytearray(shard.read_bytes())
        if damage == "flipped":
            data[-3] ^= 1
        shard.write_bytes({"truncated": data[:-40], "flipped": data, "empty": b"", "nonsense": b"x" * 500}[damage])
        again = EmbeddingStore(Counting(), tmp_path / "c")
        with pytest.warns(UserWarning, match="damaged cache file .* computed again"):
            assert np.array_equal(again.images(files), vectors)
        assert again.computed == 5
        again.flush()
        assert len(read_shards(again.folder)) == 5

    def test_a_long_run_is_kept_shard_by_shard(self, files, tmp_path, monkeypatch):
        monkeypatch.setattr("kshot.data.embedding_store.SHARD", 2)
        embedder = Counting()
        embedder.batch_size = 2
        monkeypatch.setattr(files[4], "load", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
        store = EmbeddingStore(embedder, tmp_path / "c")
        with pytest.raises(KeyboardInterrupt):
            store.images(files)
        assert len(read_shards(store.folder)) == 4

    def test_drawings_are_not_written(self, tmp_path):
        store = EmbeddingStore(Counting(), tmp_path / "c")
        store.images([as_picture(photo(0))])
        store.flush()
        assert not store.folder.exists()

    def test_a_folder_that_cannot_be_written_costs_a_warning(self, files, tmp_path):
        (tmp_path / "file").write_text("in the way")
        store = EmbeddingStore(Counting(), tmp_path / "file")
        vectors = store.images(files)
        with pytest.warns(UserWarning, match="set KSHOT_CACHE"):
            store.flush()
        assert np.array_equal(store.images(files), vectors)

    def test_writers_leave_no_temporary_files_and_do_not_disturb_each_other(self, tmp_path):
        keys = ["00" * 16, "11" * 16]
        for key in keys:
            write_shard(tmp_path, {key: np.ones(3, np.float32)})
        assert sorted(read_shards(tmp_path)) == keys
        assert {path.suffix for path in tmp_path.iterdir()} == {".safetensors"}

    def test_bad_pictures(self, files, tmp_path):
        bad = BytesPicture(b"nothing", "bad.png")
        store = EmbeddingStore(Counting(), tmp_path / "c")
        with pytest.raises(BadImage, match=r"bad\.png"):
            store.images([*files, bad])
        vectors = store.images([*files, bad], skip_bad=True)
        assert not vectors[-1].any()
        assert list(store.bad) == ["bad.png"]
        with pytest.raises(BadImage, match="none of 1 pictures"):
            EmbeddingStore(Counting(), tmp_path / "d").images([bad], skip_bad=True)

    def test_texts(self, tmp_path):
        store = EmbeddingStore(WordEmbedder(), tmp_path / "c")
        vectors = store.texts(["a b", "c", "a b"])
        assert store.computed == 2
        assert np.array_equal(vectors, WordEmbedder().texts(["a b", "c", "a b"]))


def test_cache_folder_follows_argument_then_environment_then_xdg(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("KSHOT_CACHE", str(tmp_path / "own"))
    assert cache_folder(tmp_path / "arg") == tmp_path / "arg"
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("KSHOT_CACHE")
    assert cache_folder() == tmp_path / "xdg" / "kshot"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "kshot"
