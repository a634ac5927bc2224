"""Cached vision features give what pixels give, cost nothing twice, and survive a damaged disk cache."""

from __future__ import annotations

import logging
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from PIL import Image

from kshot import Episode, Example, load_model
from kshot.models.features import FeatureCache, ImageFeatures
from kshot.models.vlm import VLM
from kshot.picture import DrawnPicture
from tests.models.tiny import FAMILIES, build, picture

CANNOT = ("idefics", "mllama")
CACHING = sorted(set(FAMILIES) - set(CANNOT))


class CountedPicture(DrawnPicture):
    """A picture that counts how often it is decoded."""

    def __init__(self, seed: int, size: tuple[int, int] = (56, 56)):
        self.decoded = 0
        super().__init__(lambda: picture(seed, size), f"picture {seed}")

    def load(self) -> Image.Image:
        self.decoded += 1
        return super().load()


def episodes(changed: int = 0) -> list[Episode]:
    """Prompts with different numbers of pictures, some of which return; ``changed`` chooses one of them."""
    shown = tuple(Example(picture(s), f"what is {s}?", "red") for s in (changed, 11, 12))
    return [
        Episode(shown, Example(picture(50, (56, 28)), "what colour?"), id="a"),
        Episode(shown[:1], Example(picture(11), "two?"), id="b"),
        Episode(shown[1:], Example((picture(51, (42, 56)), picture(50, (56, 28))), "how many dogs?"), id="c"),
    ]


@lru_cache
def vlm(name: str, cached: bool) -> VLM:
    return VLM(*build(name), name=name, prefix_cache=False, feature_cache=cached)


@torch.no_grad()
def logits(model: VLM, asked: list[Episode]) -> torch.Tensor:
    return model.model(**model.reuse.inputs([model.encode(episode) for episode in asked])).logits[:, -2:]


@pytest.mark.parametrize("name", CACHING)
def test_logits_equal_those_from_pixels(name: str) -> None:
    from_pixels = logits(vlm(name, False), episodes())
    for _ in range(2):  # computed, then remembered
        torch.testing.assert_close(logits(vlm(name, True), episodes()), from_pixels, atol=1e-5, rtol=0)
    other = logits(vlm(name, False), episodes(changed=7))
    assert (other - from_pixels)[:2].abs().amax((1, 2)).min() > 1e-3, "the pictures must matter, or nothing is tested"


@pytest.mark.parametrize("name", CACHING)
@pytest.mark.parametrize("beams", [1, 3])
def test_generated_texts_equal_those_from_pixels(name: str, beams: int) -> None:
    answers = vlm(name, False).answer(episodes(), max_new_tokens=5, num_beams=beams)
    for _ in range(2):
        assert vlm(name, True).answer(episodes(), max_new_tokens=5, num_beams=beams) == answers


@pytest.mark.parametrize("name", CANNOT)
def test_models_that_take_pixels_only_say_so_and_answer_as_ever(name: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="kshot.models.reuse"):
        model = VLM(*build(name), prefix_cache=False, feature_cache=True)
        assert model.answer(episodes()[:1], max_new_tokens=3) == vlm(name, False).answer(
            episodes()[:1], max_new_tokens=3
        )
    assert "no feature cache" in caplog.text
    assert "get_image_features" in caplog.text


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "idefics3"])
def test_a_known_picture_is_neither_decoded_nor_encoded_again(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = VLM(*build(name), prefix_cache=False, feature_cache=True)
    first = Example(CountedPicture(1), "what?", "red")
    model.answer([Episode((first,), Example(CountedPicture(2), "what?"))], max_new_tokens=2)
    assert model.reuse.features.statistics.misses == 2

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a known picture went through the vision tower")

    monkeypatch.setattr(model.model.base_model, "get_image_features", refuse)
    known = CountedPicture(2)
    assert known.digest  # of a drawn picture, made from its pixels
    decoded = known.decoded
    model.answer([Episode((first,), Example(known, "what else?"))], max_new_tokens=2)
    assert known.decoded == decoded
    assert model.reuse.features.statistics.hits == 2


def features(tokens: int = 4, width: int = 8) -> ImageFeatures:
    return ImageFeatures(torch.randn(tokens, width), "<image>" * tokens)


def test_the_budget_holds() -> None:
    one = features()
    cache = FeatureCache(build("llava")[0], "p", budget=3 * one.size)
    for number in range(5):
        cache.put(str(number), features())
    assert cache.statistics.entries == 3
    assert cache.statistics.bytes <= 3 * one.size
    assert cache.get("0") is None
    assert cache.get("4") is not None
    assert (cache.statistics.hits, cache.statistics.misses, cache.statistics.evictions) == (1, 1, 2)


def test_a_changed_vision_tower_is_noticed() -> None:
    model = VLM(*build("llava"), prefix_cache=False, feature_cache=True)
    before = model.score(episodes(), ["red"])
    with torch.no_grad():
        next(model.model.base_model.vision_tower.parameters()).mul_(2.0)
    after = model.score(episodes(), ["red"])
    expected = VLM(model.model, model.processor, prefix_cache=False, feature_cache=False).score(episodes(), ["red"])
    assert [row[0] for row in after] == pytest.approx([row[0] for row in expected], abs=2e-5)
    assert [row[0] for row in after] != pytest.approx([row[0] for row in before], abs=1e-3)


@pytest.mark.parametrize("name", ["llava", "qwen3_vl", "gemma3"])
def test_features_on_disk_serve_another_process(name: str, tmp_path: Path) -> None:
    def fresh(seed: int = 0) -> VLM:
        return VLM(*build(name, seed=seed), prefix_cache=False, feature_cache=True, feature_folder=str(tmp_path))

    expected = fresh().score(episodes(), ["red"])
    second = fresh()
    assert second.score(episodes(), ["red"]) == expected
    assert second.reuse.features.statistics.misses == 0
    assert second.reuse.features.statistics.disk_hits == 5
    other = fresh(seed=1)
    other.score(episodes(), ["red"])
    assert other.reuse.features.statistics.disk_hits == 0, "other weights, other features"
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize("damage", ["truncated", "empty", "flipped"])
def test_damaged_features_on_disk_are_computed_again(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fresh() -> VLM:
        return VLM(*build("llava"), prefix_cache=False, feature_cache=True, feature_folder=str(tmp_path))

    expected = fresh().score(episodes(), ["red"])
    files = sorted(tmp_path.rglob("*.safetensors"))
    good = files[0].read_bytes()
    bad = {"truncated": good[:-7], "empty": b"", "flipped": good[:-4] + bytes([good[-4] ^ 1]) + good[-3:]}[damage]
    files[0].write_bytes(bad)
    with caplog.at_level(logging.WARNING, logger="kshot.models.features"):
        second = fresh()
        # Computed in a batch of its own, so equal up to rounding.
        assert [row[0] for row in second.score(episodes(), ["red"])] == pytest.approx(
            [row[0] for row in expected], abs=2e-5
        )
    assert caplog.text.count("are damaged") == 1
    assert second.reuse.features.statistics.misses == 1
    third = fresh()
    third.score(episodes(), ["red"])
    assert third.reuse.features.statistics.disk_hits == 5, "the damaged entry is replaced"
    assert caplog.text.count("are damaged") == 1


def test_caches_are_options_of_loading(tmp_path: Path) -> None:
    model, processor = build("llava")
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    options = {"prefix_cache": False, "feature_cache": True, "feature_folder": str(tmp_path / "features")}
    loaded = load_model(tmp_path / "model", device_map="cpu", **options)
    loaded.answer(episodes()[:1], max_new_tokens=1)
    assert loaded.reuse.prefix_cache is False
    assert len(list((tmp_path / "features").rglob("*.safetensors"))) == 4
