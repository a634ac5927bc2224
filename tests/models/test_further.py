"""Families beyond those of ``tiny``: nothing in kshot names them, and nothing has to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from kshot.models import load_model
from kshot.models.vlm import VLM
from tests.models import tiny
from tests.models.test_families import QA, episode

PINPOINTS = [[56, 28], [28, 56], [56, 56]]


def llava_next() -> tiny.Built:
    config = hf.LlavaNextConfig(
        image_token_index=tiny.id_of("<image>"),
        vision_feature_layer=-1,
        image_grid_pinpoints=PINPOINTS,
        text_config={"model_type": "llama", "vocab_size": tiny.vocabulary(), **tiny.TEXT},
        vision_config={"model_type": "clip_vision_model", "image_size": 28, **tiny.VISION},
    )
    images = hf.LlavaNextImageProcessorPil(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, image_grid_pinpoints=PINPOINTS
    )
    processor = hf.LlavaNextProcessor(
        images,
        tiny.tokenizer(image_token="<image>"),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=tiny.chat_template("<image>"),
    )
    return hf.LlavaNextForConditionalGeneration(config), processor


def llava_onevision() -> tiny.Built:
    config = hf.LlavaOnevisionConfig(
        image_token_index=tiny.id_of("<image>"),
        video_token_index=tiny.id_of("<video>"),
        vision_feature_layer=-1,
        image_grid_pinpoints=PINPOINTS,
        text_config={"model_type": "qwen2", "vocab_size": tiny.vocabulary(), **tiny.TEXT},
        vision_config={
            "model_type": "siglip_vision_model",
            "image_size": 28,
            "vision_use_head": False,
            **tiny.VISION,
        },
    )
    size = {"height": 28, "width": 28}
    images = hf.LlavaOnevisionImageProcessorPil(size=size, image_grid_pinpoints=PINPOINTS)
    processor = tiny.without_video(hf.LlavaOnevisionProcessor)(
        images,
        tiny.tokenizer(image_token="<image>", video_token="<video>"),
        None,
        num_image_tokens=4,
        vision_feature_select_strategy="full",
        chat_template=tiny.chat_template("<image>"),
    )
    return hf.LlavaOnevisionForConditionalGeneration(config), processor


def vipllava() -> tiny.Built:
    config = hf.VipLlavaConfig(
        image_token_index=tiny.id_of("<image>"),
        vision_feature_layers=[-1, -2],
        text_config={"model_type": "llama", "vocab_size": tiny.vocabulary(), **tiny.TEXT},
        vision_config={"model_type": "clip_vision_model", "image_size": 28, **tiny.VISION},
    )
    size = {"height": 28, "width": 28}
    processor = hf.LlavaProcessor(
        hf.CLIPImageProcessorPil(size=size, crop_size=size),
        tiny.tokenizer(image_token="<image>"),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=tiny.chat_template("<image>"),
    )
    return hf.VipLlavaForConditionalGeneration(config), processor


@pytest.fixture(params=[llava_next, llava_onevision, vipllava], ids=lambda build: build.__name__, scope="module")
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> VLM:
    build: Callable[[], tiny.Built] = request.param
    torch.manual_seed(0)
    model, processor = build()
    model.generation_config.pad_token_id = 0
    folder: Path = tmp_path_factory.mktemp(build.__name__)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return load_model(folder, name=build.__name__, device_map="cpu")


@pytest.mark.parametrize("style", ["plain", "chat"])
def test_inputs_are_those_of_the_processor(loaded, style):
    prompts = [loaded.prompt(e, QA, style) for e in (episode(2), episode(0, 5), episode(1, 7))]
    expected: dict[str, Any] = dict(
        loaded.processor(
            text=[prompt.text("<image>") for prompt in prompts],
            images=[[picture.load() for picture in prompt.pictures] for prompt in prompts],
            padding=True,
            return_tensors="pt",
        )
    )
    found = loaded.encoder.collate([loaded.encoder.encode(prompt) for prompt in prompts])
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0, msg=name)


def test_batches_and_caches_change_nothing(loaded):
    episodes = [episode(2), episode(0, 5), episode(1, 7), episode(2)]
    options = {"candidates": ["red", "two dogs"], "template": QA, "style": "plain"}
    together = loaded.score(episodes, batch_size=4, **options)
    alone = [loaded.score([one], batch_size=1, **options)[0] for one in episodes]
    plain = VLM(loaded.model, loaded.processor, prefix_cache=False, feature_cache=False).score(episodes, **options)
    for row, single, without in zip(together, alone, plain, strict=True):
        assert row == pytest.approx(single, abs=1e-4)
        assert row == pytest.approx(without, abs=1e-4)


def test_a_single_image_is_cut_where_several_are_not(loaded):
    picture = episode(0).query.images[0]
    single, one_of_several = (loaded.encoder.expansion(picture, alone=alone) for alone in (True, False))
    assert (single == one_of_several) == (loaded.name != "llava_onevision")
    assert loaded.encoder.company_matters == (loaded.name == "llava_onevision")
