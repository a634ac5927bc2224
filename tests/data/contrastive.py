"""Tiny random CLIP and SigLIP models with their processors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


def word_tokenizer(mask: bool) -> Any:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<unk>", "<s>", "</s>", *["a", "red", "green", "blue", "cat", "dog", "on", "the", "mat"]]
    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    raw.normalizer, raw.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    raw.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 2), ("</s>", 3)])
    names = ["input_ids", "attention_mask"] if mask else ["input_ids"]
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", unk_token="<unk>", eos_token="</s>", model_input_names=names
    )


def save_contrastive(folder: Path, kind: str = "clip") -> Path:
    """A folder with a tiny random model, ``clip`` or ``siglip``, of 16 x 16 pixels."""
    import transformers as tf

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {
        **sizes,
        "vocab_size": 13,
        "max_position_embeddings": 10,
        "pad_token_id": 0,
        "bos_token_id": 2,
        "eos_token_id": 3,
    }
    vision = {**sizes, "image_size": 16, "patch_size": 8}
    tokenizer, size = word_tokenizer(mask=kind == "clip"), {"height": 16, "width": 16}
    if kind == "clip":
        model: Any = tf.CLIPModel(tf.CLIPConfig(text_config=text, vision_config=vision, projection_dim=12))
        images = tf.CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=size)
        processor: Any = tf.CLIPProcessor(images, tokenizer)
    else:
        model = tf.SiglipModel(tf.SiglipConfig(text_config=text, vision_config=vision))
        processor = tf.SiglipProcessor(tf.SiglipImageProcessorPil(size=size), tokenizer)
    with torch.no_grad():
        for weight in model.parameters():  # library initialisation is so small that all pictures come out alike
            weight.normal_(0, 0.3)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
