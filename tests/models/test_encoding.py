"""Token ids and inputs where processors cut images into tiles, add <s> themselves, or are unknown; answers that must fit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image
from tokenizers.processors import TemplateProcessing

from kshot.episode import Episode, Example
from kshot.errors import BadImage, ContextTooLong, ModelError, OptionError
from kshot.models.dialects import dialect_of
from kshot.models.encoding import Encoder
from kshot.models.vlm import VLM
from kshot.picture import BytesPicture
from kshot.prompt import Template
from tests.models import tiny
from tests.models.reference import inputs_of, vlm
from tests.models.test_families import ADJACENT, QA, episode, example

TILES: dict[str, dict[str, Any]] = {
    "idefics2": {"do_image_splitting": True},
    "idefics3": {"do_image_splitting": True, "size": {"longest_edge": 112}},
    "smolvlm": {"do_image_splitting": True, "size": {"longest_edge": 112}},
    "internvl": {"max_patches": 4},
    "gemma3": {"do_pan_and_scan": True, "pan_and_scan_min_crop_size": 16},
    "mllama": {"max_image_tiles": 4},
}


def check_against_processor(family: str, model: VLM, style: str, **options: Any) -> dict[str, Any]:
    """The model's inputs for two prompts, which must be those of its processor."""
    prompts = [model.prompt(e, t, style) for e, t in ((episode(2), QA), (episode(3, 5), ADJACENT))]
    expected = inputs_of(family, prompts, model.processor, **options)
    found = model.encoder.collate([model.encoder.encode(prompt) for prompt in prompts])
    for name, value in expected.items():
        torch.testing.assert_close(found[name].float(), value.float(), rtol=0, atol=0, msg=name)
    return found


@pytest.mark.parametrize("style", ["plain", "chat"])
@pytest.mark.parametrize("family", TILES)
def test_images_cut_into_tiles(family, style):
    hf_model, processor = tiny.build(family)
    whole = Encoder(hf_model, processor)
    picture = example(1).images[0]
    short = whole.expansion(picture)
    for name, value in TILES[family].items():
        setattr(processor.image_processor, name, value)
    model = VLM(hf_model, processor)
    check_against_processor(family, model, style)
    if family in ("idefics2", "idefics3", "smolvlm"):  # Gemma3 cuts elongated images only, InternVL cuts by default
        assert len(model.encoder.expansion(picture)) > 2 * len(short)
    assert model.encoder.fingerprint != Encoder(*tiny.build(family)).fingerprint


@pytest.mark.parametrize("in_chat", [False, True], ids=["template without <s>", "template with <s>"])
@pytest.mark.parametrize("family", ["gemma3", "mllama", "llava", "paligemma", "idefics2", "qwen2_vl"])
def test_tokenizers_that_add_the_first_token(family, in_chat):
    hf_model, processor = tiny.build(family)
    first = TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", tiny.id_of("<s>"))])
    processor.tokenizer._tokenizer.post_processor = first
    if in_chat:
        processor.chat_template = "{{ bos_token }}" + processor.chat_template
    model = VLM(hf_model, processor)
    check_against_processor(family, model, "plain")
    # transformers' own rule for chat: no second <s> where the template writes one.
    check_against_processor(family, model, "chat", **({"add_special_tokens": False} if in_chat else {}))


def test_a_prefix_language_model_is_told_what_the_answer_is():
    model = vlm("paligemma")
    encoded = model.encode(episode(1), QA, "plain", answer="two dogs")
    prompt = model.prompt(episode(1), QA, "plain")
    expected = inputs_of("paligemma", [prompt], suffix=["two dogs."])
    found = model.inputs([encoded])
    assert found["input_ids"].tolist() == expected["input_ids"].tolist()
    assert found["token_type_ids"].tolist() == expected["token_type_ids"].tolist()


def test_positions_leave_out_the_padding_and_begin_where_the_model_begins():
    prompts = {"llava": 0, "paligemma": 1, "gemma3": 0}
    for family, first in prompts.items():
        model = vlm(family)
        encoded = [model.encode(e, QA, "plain") for e in (episode(1), episode(2))]
        positions, mask = (model.inputs(encoded)[name] for name in ("position_ids", "attention_mask"))
        assert positions[0][mask[0] == 1].tolist() == list(range(first, first + len(encoded[0])))
        assert not positions[0][mask[0] == 0].any()
    assert "position_ids" not in vlm("qwen2_vl").inputs([vlm("qwen2_vl").encode(episode(1))])


def test_an_unknown_way_of_writing_images_is_refused():
    hf_model, processor = tiny.build("llava")

    class Strange(type(processor)):  # type: ignore[misc]
        def __call__(self, text=None, **options):
            return super().__call__(text=[t.replace(" ", "  ") for t in text], **options)

    processor.__class__ = Strange
    with pytest.raises(ModelError, match="Strange writes prompts with several images in a way that is not known"):
        VLM(hf_model, processor)

    _, clip = tiny.build("idefics2")
    del clip.fake_image_token
    with pytest.raises(ModelError, match="does not say how it writes images"):
        dialect_of(clip)


def test_an_image_is_decoded_once_between_encoding_and_batching():
    class Counted(BytesPicture):
        loads = 0

        def load(self) -> Image.Image:
            type(self).loads += 1
            return tiny.picture(3)

    model = vlm("llava")
    one = Episode((), Example((Counted(b"x"),), "what?"))
    encoded = model.encode(one, QA, "plain")
    model.inputs([encoded])
    assert Counted.loads == 1


def test_a_bad_image_is_reported_not_answered():
    one = Episode((example(1),), Example((BytesPicture(b"no image", "broken.jpg"),), "what?"))
    with pytest.raises(BadImage, match=r"broken\.jpg"):
        vlm("llava").answer([one])


def test_a_prompt_longer_than_the_context_is_refused_with_both_lengths():
    hf_model, processor = tiny.build("llava", max_position_embeddings=64)
    model = VLM(hf_model, processor, name="small")
    assert model.answer([episode(1)], template=QA, style="plain", max_new_tokens=2)
    length = len(model.encode(episode(1), QA, "plain"))
    message = rf"has {length} tokens and {65 - length} more .* small takes 64: use fewer than its 1 shots"
    with pytest.raises(ContextTooLong, match=message):
        model.answer([episode(1)], template=QA, style="plain", max_new_tokens=65 - length)
    with pytest.raises(ContextTooLong, match="use fewer than its 8 shots"):
        model.score([episode(8)], ["red"], template=QA)


def test_prompt_styles():
    model = vlm("llava")
    assert model.prompt(episode(1)).style == "chat"
    assert model.prompt(episode(1), style="plain").text().endswith("Answer:")
    with pytest.raises(OptionError, match="unknown prompt style"):
        model.prompt(episode(1), style="fancy")  # type: ignore[arg-type]
    hf_model, processor = tiny.build("llava")
    for template, reason in ((None, "no chat template"), ("{{ raise_exception('one image only') }}", "one image only")):
        processor.chat_template = template
        plain = VLM(hf_model, processor, name="base")
        assert plain.prompt(episode(1)).style == "plain"
        with pytest.raises(OptionError, match=f"base: no chat prompts: .*{reason}"):
            plain.prompt(episode(1), style="chat")


def test_images_may_stand_between_spaces_in_interleaved_lists():
    template = Template("  {question} <image> is {answer} ;  ", separator=" ")
    model = vlm("idefics")
    prompt = model.prompt(episode(2), template, "plain")
    expected = inputs_of("idefics", [prompt])["input_ids"][0].tolist()
    assert list(model.encoder.encode(prompt).tokens.ids) == expected
