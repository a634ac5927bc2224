"""The language models of visual sentences: LLaMA in the sizes of the large vision model (arXiv 2312.00785), and a tiny one.

Token ids 0 .. ``codes - 1`` are codes of the visual tokenizer; behind them come ids that no picture has: begin, end, padding, and
spare ones, which upstream's vocabulary of 8,292 = 8,192 + 100 leaves unused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from kshot.errors import ModelError, OptionError, UnknownName
from kshot.models.rope_table import RopeTable, check_rope_table, use_rope_table

CODES, SPARE, CONTEXT = 8192, 100, 4096
"""Upstream's codebook, its ids that are no codes, and its context: 16 pictures of 256 tokens."""
SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")
"""What the ids ``codes``, ``codes + 1`` and ``codes + 2`` mean."""
PREFIX = "vqlm_"
"""What upstream puts before the names."""


@dataclass(frozen=True)
class Preset:
    """The shape of a model.

    Attributes:
        hidden: width of the residual stream.
        inner: width of the feed-forward layers.
        layers, heads: of them; each head has its own keys and values.
    """

    hidden: int
    inner: int
    layers: int
    heads: int


PRESETS = {
    "tiny": Preset(128, 352, 4, 4),
    "debug": Preset(128, 256, 2, 4),
    "100m": Preset(640, 1664, 22, 10),
    "300m": Preset(1024, 2688, 22, 8),
    "600m": Preset(1536, 4096, 22, 16),
    "1b": Preset(2048, 5504, 22, 16),
    "3b": Preset(3200, 8640, 26, 32),
    "7b": Preset(4096, 11008, 32, 32),
    "13b": Preset(5120, 13824, 40, 40),
    "20b": Preset(6144, 16128, 46, 48),
    "30b": Preset(6656, 17920, 60, 52),
}
"""All are upstream's but ``tiny``, which is ours, for small codebooks and single processors."""


def visual_config(
    name: str,
    codes: int = CODES,
    *,
    spare: int = SPARE,
    context: int = CONTEXT,
    rope_table_dtype: RopeTable = "float32",
    **changes: Any,
) -> LlamaConfig:
    """The configuration of a preset.

    Args:
        name: a name in :data:`PRESETS`; upstream's spelling (``vqlm_7b``) is understood.
        codes: entries of the visual tokenizer's codebook.
        spare: ids that are no codes; the first three are begin, end and padding.
        context: longest sequence, in tokens.
        rope_table_dtype: see :mod:`kshot.models.rope_table`.
        changes: further settings of LlamaConfig.

    Raises:
        UnknownName: no such preset.
        OptionError: no room for the special ids, or an unknown table.
    """
    short = name.lower().removeprefix(PREFIX)
    if short not in PRESETS:
        raise UnknownName("preset of a visual model", name, PRESETS)
    preset = PRESETS[short]
    return shaped_config(
        preset, codes, vocabulary=codes + spare, context=context, rope_table_dtype=rope_table_dtype, **changes
    )


def shaped_config(
    shape: Preset,
    codes: int,
    *,
    vocabulary: int,
    context: int = CONTEXT,
    rope_table_dtype: RopeTable = "float32",
    **changes: Any,
) -> LlamaConfig:
    """The configuration of a visual model of any shape; arguments as for :func:`visual_config`.

    Args:
        vocabulary: rows of the embedding, codes and other ids together.

    Raises:
        OptionError: no room for the special ids, or an unknown table.
    """
    if codes < 1 or vocabulary < codes + len(SPECIAL):
        raise OptionError(
            f"a vocabulary of {vocabulary:,} has no room for {codes:,} codes and the {len(SPECIAL)} ids of begin, end and padding"
        )
    check_rope_table(rope_table_dtype)
    settings: dict[str, Any] = {
        "hidden_size": shape.hidden,
        "intermediate_size": shape.inner,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "vocab_size": vocabulary,
        "max_position_embeddings": context,
        "rms_norm_eps": 1e-6,
        "initializer_range": 0.02,
        "tie_word_embeddings": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "rope_table_dtype": rope_table_dtype,
        **special_ids(codes),
    }
    return LlamaConfig(**(settings | changes))


def special_ids(codes: int) -> dict[str, int]:
    """The ids of begin, end and padding behind so many codes."""
    return {name: codes + number for number, name in enumerate(SPECIAL)}


def codes_of(config: Any) -> int:
    """The codes of a model whose special ids follow them, as here.

    Raises:
        ModelError: they do not, as in upstream's published checkpoint.
    """
    first = getattr(config, SPECIAL[0], None)
    if first is None or {name: getattr(config, name, None) for name in SPECIAL} != special_ids(first):
        raise ModelError(
            "config.json does not say how many codes the model has (bos, eos and pad ids follow them): convert it first with "
            "kshot convert lvm"
        )
    return int(first)


def visual_generation(config: LlamaConfig, codes: int) -> GenerationConfig:
    """How pictures are generated: codes only, and never ended by one of them.

    Upstream's published checkpoint says that id 2, an ordinary code, ends a sequence, so that ``generate`` stops amid a picture.
    Here nothing ends it (a picture's length is known), and ids that are no codes are suppressed.

    Args:
        config: of the model.
        codes: entries of the codebook.
    """
    ids = special_ids(codes)
    return GenerationConfig(
        bos_token_id=ids["bos_token_id"],
        eos_token_id=None,
        pad_token_id=ids["pad_token_id"],
        suppress_tokens=list(range(codes, config.vocab_size)),
    )


def new_visual_model(config: LlamaConfig, *, seed: int = 0) -> LlamaForCausalLM:
    """A model with random weights, always the same for a seed: N(0, 0.02) everywhere, norms 1.

    Args:
        config: from :func:`visual_config`.
        seed: of the weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.generation_config = visual_generation(config, codes_of(config))
    use_rope_table(model)
    return model


__all__ = [
    "CODES",
    "CONTEXT",
    "PRESETS",
    "SPARE",
    "Preset",
    "codes_of",
    "new_visual_model",
    "shaped_config",
    "special_ids",
    "visual_config",
    "visual_generation",
]
