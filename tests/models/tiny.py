"""Tiny random vision-language models: the real transformers classes at toy size, with processors that need no network.

``build(name)`` gives ``(model, processor)`` for each name in ``FAMILIES``: 2 decoder layers of width 64, a
2-layer vision tower, 4 tokens an image, 0.2 million parameters, about 50 ms to build. Weights depend on the seed alone.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import transformers as hf
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

WIDTH, HEADS = 64, 4
MARKS = [
    *("<pad>", "<s>", "</s>", "<unk>", "<image>", "<|im_start|>", "<|im_end|>"),
    *("<fake_token_around_image>", "<end_of_utterance>", "<global-img>"),
    *("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"),
    *("<start_of_image>", "<end_of_image>", "<image_soft_token>"),
    *("<img>", "</img>", "<IMG_CONTEXT>", "<video>", "<|image|>", "<|python_tag|>"),
    *(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)),
]
"""Special tokens of all families. One vocabulary serves all, so that token ids in tests mean the same everywhere."""

CORPUS = [
    "Question: what colour is the square? Short answer: red",
    "Question: how many dogs are there? Short answer: two",
    "user assistant system a photo of a cat sitting on the mat, blue green yellow black white",
    "0 1 2 3 4 5 6 7 8 9 + - = ? ! . ,",
]

CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for c in m.content %}{% if c.type == 'image' %}IMAGE{% else %}{{ c.text }}{% endif %}{% endfor %}"
    "{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

Built = tuple[Any, Any]
FAMILIES: dict[str, Callable[[dict[str, Any], dict[str, Any]], Built]] = {}


def build(name: str, *, seed: int = 0, vision: dict[str, Any] | None = None, **text: Any) -> Built:
    """A random model of a family, in evaluation mode, and its processor.

    Args:
        name: a key of ``FAMILIES``.
        seed: of the weights.
        vision: changes to the vision tower's configuration.
        text: changes to the text decoder's configuration, e.g. ``num_hidden_layers=4``.
    """
    torch.manual_seed(seed)
    model, processor = FAMILIES[name](TEXT | text, VISION | (vision or {}))
    _enliven(model)
    settings = model.generation_config
    settings.pad_token_id, settings.bos_token_id, settings.eos_token_id = (id_of(m) for m in ("<pad>", "<s>", "</s>"))
    return model.eval(), processor


def _enliven(model: Any) -> None:
    """Give weights that start at zero or all alike random values, and matrices larger ones.

    A fresh Gemma3 projects every image to zero, Mllama's gates start closed, the queries of a resampler start equal: with such
    weights the images would have little or no influence and tests of them could not fail.
    """
    for name, weight in model.named_parameters():
        last = name.rsplit(".", 1)[-1]
        if "gate" in last and weight.numel() == 1:
            weight.data.fill_(0.7)
        elif weight.ndim >= 2:
            weight.data.normal_(0.0, 0.5 if "latents" in name else 0.06)


def picture(seed: int, size: tuple[int, int] = (56, 56)) -> Image.Image:
    """An image of random pixels; ``size`` is (width, height)."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


TEXT: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "pad_token_id": MARKS.index("<pad>"),
    "bos_token_id": MARKS.index("<s>"),
    "eos_token_id": MARKS.index("</s>"),
}
VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": 14,
}
GEMMA_TEXT = {
    "head_dim": WIDTH // HEADS,
    "query_pre_attn_scalar": WIDTH // HEADS,
    "sliding_window": 16,
    "layer_types": ["sliding_attention", "full_attention"],
}


def tokenizer(**special: str) -> Any:
    """A byte-level BPE tokenizer over ``MARKS``; ``special`` names a family's extra tokens (``image_token="<image>"``)."""
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_trained_tokenizer()),
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        padding_side="left",
        **({"extra_special_tokens": special} if special else {}),
    )


@lru_cache
def _trained_tokenizer() -> str:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=MARKS, initial_alphabet=alphabet, min_frequency=1, show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    return backend.to_str()


def id_of(mark: str) -> int:
    return MARKS.index(mark)


def vocabulary() -> int:
    return Tokenizer.from_str(_trained_tokenizer()).get_vocab_size()


def chat_template(image: str) -> str:
    return CHAT_TEMPLATE.replace("IMAGE", image)


def without_video(cls: type) -> type:
    """A processor class without its video slot: video processors exist only where torchvision does."""

    class ImageOnly(cls):  # type: ignore[misc, valid-type]
        @classmethod
        def get_attributes(cls) -> list[str]:
            return [name for name in super().get_attributes() if "video" not in name]

    ImageOnly.video_processor = SimpleNamespace(num_frames=1, fps=1)  # SmolVLM's apply_chat_template reads both
    ImageOnly.__name__, ImageOnly.__qualname__ = cls.__name__, cls.__qualname__
    return ImageOnly


def family(name: str) -> Callable[[Callable[..., Built]], Callable[..., Built]]:
    """Enter a build function ``(text, vision) -> (model, processor)`` into ``FAMILIES``."""

    def enter(function: Callable[..., Built]) -> Callable[..., Built]:
        FAMILIES[name] = function
        return function

    return enter


@family("idefics")
def _idefics(text: dict[str, Any], vision: dict[str, Any]) -> Built:
    text = {key: value for key, value in text.items() if key != "num_key_value_heads"}
    vision = vision | {"embed_dim": vision["hidden_size"], "image_size": 28}
    config = hf.IdeficsConfig(
        vocab_size=vocabulary(),
        additional_vocab_size=0,
        alpha_initializer="ones",  # the published initial value of the gates, 0, would hide the images
        cross_layer_interval=1,
        use_resampler=True,
        perceiver_config={"use_resampler": True, **_resampler()},
        vision_config={key: value for key, value in vision.items() if key != "hidden_size"},
        **text,
    )
    images = hf.IdeficsImageProcessorPil(image_size=28)
    processor = hf.IdeficsProcessor(images, tokenizer(), image_size=28)
    processor.chat_template = chat_template("<image>")  # its constructor has no such argument
    return hf.IdeficsForVisionText2Text(config), processor


@family("idefics2")
def _idefics2(text: dict[str, Any], vision: dict[str, Any]) -> Built:
    config = hf.Idefics2Config(
        image_token_id=id_of("<image>"),
        text_config={"model_type": "mistral", "vocab_size": vocabulary(), "sliding_window": None, **text},
        vision_config=vision | {"image_size": 28},
        perceiver_config={"hidden_size": text["hidden_size"], "num_key_value_heads": 1, **_resampler()},
    )
    size = {"longest_edge": 28, "shortest_edge": 14}
    images = hf.Idefics2ImageProcessorPil(do_image_splitting=False, size=size)
    processor = hf.Idefics2Processor(images, tokenizer(), image_seq_len=4, chat_template=chat_template("<image>"))
    return hf.Idefics2ForConditionalGeneration(config), processor


@family("idefics3")
def _idefics3(text: dict[str, Any], vision: dict[str, Any]) -> Built:
    images = hf.Idefics3ImageProcessorPil(**_one_tile())
    words = _idefics3_tokenizer()
    processor = hf.Idefics3Processor(images, words, image_seq_len=4, chat_template=chat_template("<image>"))
    return hf.Idefics3ForConditionalGeneration(_idefics3_config(hf.Idefics3Config, text, vision)), processor


@family("smolvlm")
def _smolvlm(text: dict[str, Any], vision: dict[str, Any]) -> Built:
    images = hf.SmolVLMImageProcessorPil(**_one_tile())
    processor = without_video(hf.SmolVLMProcessor)(
        images, _idefics3_tokenizer(), None, image_seq_len=4, chat_template=chat_template("<image>")
    )
    return hf.SmolVLMForConditionalGeneration(_idefics3_config(hf.SmolVLMConfig, text, vision)), processor


@family("llava")
def _llava(text: dict[str, Any], vision: dict[str, Any]) -> Built:
    return _llava_over("qwen2", text, vision)


@family("llava_llama")
def _llava_llama(text: dict[str, Any], vision: dict[str, Any]) -> Built:
    return _llava_over("llama", text, vision)


@family("qwen2_vl")
def _qwen2_vl(text: dict[str, Any], vision: dict[str, Any]) -> Built:
    tower = {"embed_dim": 32, "hidden_size": text["hidden_size"], "mlp_ratio": 2}
    config = _qwen_config(hf.Qwen2VLConfig, text, {}, tower)
    return hf.Qwen2VLForConditionalGeneration(config), _qwen_processor(hf.Qwen2VLProcessor)


@family("qwen2_5_vl")
def _qwen2_5_vl(text: dict[str, Any], vision: dict[str, Any]) -> Built:
    tower = {"intermediate_size": 64, "fullatt_block_indexes": [1], "window_size": 56}
    config = _qwen_config(hf.Qwen2_5_VLConfig, text, {}, _qwen_tower(text) | tower)
    return hf.Qwen2_5_VLForConditionalGeneration(config), _qwen_processor(hf.Qwen2_5_VLProcessor)


@family("qwen3_vl")
def _qwen3_vl(text: dict[str, Any], vision: dict[str, Any]) -> Built:
    tower = {"intermediate_size": 64, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
    text = text | {"head_dim": text["hidden_size"] // text["num_attention_heads"]}
    config = _qwen_config(hf.Qwen3VLConfig, text, {"mrope_interleaved": True}, _qwen_tower(text) | tower)
    return hf.Qwen3VLForConditionalGeneration(config), _qwen_processor(hf.Qwen3VLProcessor)


@family("internvl")
def _internvl(text: dict[str, Any], vision: dict[str, Any]) -> Built:
    config = hf.InternVLConfig(
        image_token_id=id_of("<IMG_CONTEXT>"),
        image_seq_length=4,
        text_config={"model_type": "qwen2", "vocab_size": vocabulary(), **text},
        vision_config=vision | {"image_size": [56, 56], "patch_size": [14, 14]},
    )
    words = tokenizer(
        start_image_token="<img>", end_image_token="</img>", context_image_token="<IMG_CONTEXT>", video_token="<video>"
    )
    images = hf.GotOcr2ImageProcessorPil(size={"height": 56, "width": 56}, crop_to_patches=False)
    processor = without_video(hf.InternVLProcessor)(
        images, words, None, image_seq_length=4, chat_template=chat_template("<IMG_CONTEXT>")
    )
    return hf.InternVLForConditionalGeneration(config), processor


@family("gemma3")
def _gemma3(text: dict[str, Any], vision: dict[str, Any]) -> Built:
    config = hf.Gemma3Config(
        mm_tokens_per_image=4,
        boi_token_index=id_of("<start_of_image>"),
        eoi_token_index=id_of("<end_of_image>"),
        image_token_index=id_of("<image_soft_token>"),
        text_config={"vocab_size": vocabulary(), **GEMMA_TEXT, **text},
        vision_config=vision | {"image_size": 56, "vision_use_head": False},
    )
    words = tokenizer(image_token="<image_soft_token>", boi_token="<start_of_image>", eoi_token="<end_of_image>")
    images = hf.Gemma3ImageProcessorPil(size={"height": 56, "width": 56})
    processor = hf.Gemma3Processor(images, words, image_seq_length=4, chat_template=chat_template("<start_of_image>"))
    return hf.Gemma3ForConditionalGeneration(config), processor


@family("mllama")
def _mllama(text: dict[str, Any], vision: dict[str, Any]) -> Built:
    layers = 2 * text["num_hidden_layers"]
    text = text | {"num_hidden_layers": layers, "cross_attention_layers": list(range(1, layers, 2))}
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    tower = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "attention_heads": 2,
        "num_global_layers": 1,
        "intermediate_layers_indices": [0],
        "vision_output_dim": 64,
        "image_size": 28,
        "patch_size": 14,
        "max_num_tiles": 1,
        "supported_aspect_ratios": [[1, 1]],
    }
    config = hf.MllamaConfig(
        image_token_index=id_of("<|image|>"),
        text_config={"vocab_size": vocabulary(), "rope_parameters": rope, **text},
        vision_config=tower,
    )
    images = hf.MllamaImageProcessorPil(size={"height": 28, "width": 28}, max_image_tiles=1)
    words = tokenizer(image_token="<|image|>")
    processor = hf.MllamaProcessor(images, words, chat_template=chat_template("<|image|>"))
    return hf.MllamaForConditionalGeneration(config), processor


@family("paligemma")
def _paligemma(text: dict[str, Any], vision: dict[str, Any]) -> Built:
    config = hf.PaliGemmaConfig(
        image_token_index=id_of("<image>"),
        projection_dim=text["hidden_size"],
        text_config={"model_type": "gemma2", "vocab_size": vocabulary(), **GEMMA_TEXT, **text},
        vision_config=vision | {"image_size": 28, "vision_use_head": False},
    )
    images = hf.SiglipImageProcessorPil(size={"height": 28, "width": 28})
    images.image_seq_length = 4
    words = tokenizer(image_token="<image>")
    processor = hf.PaliGemmaProcessor(images, words, chat_template=chat_template("<image>"))
    return hf.PaliGemmaForConditionalGeneration(config), processor


def _resampler() -> dict[str, int]:
    return {"resampler_n_latents": 4, "resampler_depth": 1, "resampler_n_heads": 2, "resampler_head_dim": 16}


def _one_tile() -> dict[str, Any]:
    edge = {"longest_edge": 56}
    return {"do_image_splitting": False, "size": edge, "max_image_size": edge}


def _idefics3_tokenizer() -> Any:
    return tokenizer(
        fake_image_token="<fake_token_around_image>",
        image_token="<image>",
        end_of_utterance_token="<end_of_utterance>",
        global_image_token="<global-img>",
    )


def _idefics3_config(config: type, text: dict[str, Any], vision: dict[str, Any]) -> Any:
    return config(
        image_token_id=id_of("<image>"),
        scale_factor=2,
        pad_token_id=id_of("<pad>"),
        text_config={"model_type": "llama", "vocab_size": vocabulary(), **text},
        vision_config=vision | {"image_size": 56},
    )


def _llava_over(decoder: str, text: dict[str, Any], vision: dict[str, Any]) -> Built:
    vision = {"model_type": "siglip_vision_model", "image_size": 28, "vision_use_head": False} | vision
    size, patch = vision["image_size"], vision["patch_size"]
    config = hf.LlavaConfig(
        image_token_index=id_of("<image>"),
        image_seq_length=(size // patch) ** 2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        text_config={"model_type": decoder, "vocab_size": vocabulary(), **text},
        vision_config=vision,
    )
    images = hf.SiglipImageProcessorPil(size={"height": size, "width": size})
    processor = hf.LlavaProcessor(
        images,
        tokenizer(image_token="<image>"),
        patch_size=patch,
        vision_feature_select_strategy="full",
        chat_template=chat_template("<image>"),
    )
    return hf.LlavaForConditionalGeneration(config), processor


def _qwen_tower(text: dict[str, Any]) -> dict[str, Any]:
    return {"hidden_size": 32, "out_hidden_size": text["hidden_size"]}


def _qwen_config(config: type, text: dict[str, Any], rope: dict[str, Any], tower: dict[str, Any]) -> Any:
    # Three sections of rotary frequencies (time, height, width) fill half of a head.
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0} | rope
    common = {"depth": 2, "num_heads": 2, "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2}
    return config(
        image_token_id=id_of("<|image_pad|>"),
        video_token_id=id_of("<|video_pad|>"),
        vision_start_token_id=id_of("<|vision_start|>"),
        vision_end_token_id=id_of("<|vision_end|>"),
        text_config={"vocab_size": vocabulary(), "rope_parameters": rope, **text},
        vision_config=common | tower,
    )


def _qwen_processor(cls: type) -> Any:
    images = hf.Qwen2VLImageProcessorPil(
        patch_size=14, merge_size=2, temporal_patch_size=2, min_pixels=28 * 28, max_pixels=56 * 56
    )
    words = tokenizer(image_token="<|image_pad|>", video_token="<|video_pad|>")
    template = chat_template("<|vision_start|><|image_pad|><|vision_end|>")
    return without_video(cls)(images, words, None, chat_template=template)
