"""Tiny random parts of models of visual sentences: the real classes of diffusers and transformers at toy size.

Pictures are 8 x 8 pixels and 2 x 2 tokens of 16 codes, unless another size is asked for. Weights depend on the seed alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from diffusers import VQModel
from PIL import Image
from transformers import LlamaConfig, LlamaForCausalLM

from kshot.models.visual_sentence import VisualSentenceModel
from kshot.visual.processor import VisualSentenceProcessor
from kshot.visual.tokenizer import VisualTokenizer

CODES, SPARE, PICTURES = 16, 4, 6


def tiny_vq(*, codes: int = CODES, size: int = 8, halvings: int = 2, seed: int = 0) -> VQModel:
    """A random VQ network: ``size / 2 ** halvings`` tokens a side."""
    torch.manual_seed(seed)
    levels = halvings + 1
    vq = VQModel(
        block_out_channels=[8] * levels,
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
        layers_per_block=1,
        latent_channels=4,
        num_vq_embeddings=codes,
        norm_num_groups=4,
        sample_size=size,
        mid_block_add_attention=False,
        lookup_from_codebook=True,
    )
    # A fresh codebook lies at the origin: every picture would have the same code everywhere.
    torch.nn.init.normal_(vq.quantize.embedding.weight, std=0.5)
    return vq.eval()


def tiny_tokenizer(**options: Any) -> VisualTokenizer:
    return VisualTokenizer(tiny_vq(**options))


def tiny_processor(*, spare: int = SPARE, **options: Any) -> VisualSentenceProcessor:
    tokenizer = tiny_tokenizer(**options)
    return VisualSentenceProcessor(tokenizer, tokenizer.codes + spare)


def tiny_llama(
    vocab_size: int = CODES + SPARE, positions: int = 24, *, seed: int = 0, **changes: Any
) -> LlamaForCausalLM:
    """A random LLaMA, whose weights are large enough for its logits to depend on the context.

    Its generation settings name code 2 as the end token, as those of the published LVM do.
    """
    torch.manual_seed(seed)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(
        vocab_size=vocab_size,
        max_position_embeddings=positions,
        initializer_range=0.3,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
        **(shape | changes),
    )
    model = LlamaForCausalLM(config).eval()
    model.generation_config.eos_token_id = 2
    return model


def tiny_visual_model(
    *, pictures: int = PICTURES, seed: int = 0, context_pictures: int | None = None, **changes: Any
) -> VisualSentenceModel:
    """A random model of visual sentences whose context holds so many pictures."""
    processor = tiny_processor(seed=seed)
    model = tiny_llama(processor.vocab_size, pictures * processor.tokenizer.tokens, seed=seed, **changes)
    return VisualSentenceModel(model, processor, name="tiny-random", context_pictures=context_pictures)


def noise(seed: int, edge: int = 8) -> Image.Image:
    """A picture of coloured squares that depends on the seed alone."""
    squares = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(squares).resize((edge, edge), Image.Resampling.NEAREST)


def noises(count: int, first: int = 0) -> list[Image.Image]:
    return [noise(first + number) for number in range(count)]
