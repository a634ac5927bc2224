"""Shapes of the embedded model, and how its parts are run during training."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, SiglipVisionConfig

from kshot.training.tiny_banks import EDGE


@dataclass(frozen=True)
class TinyShape:
    """Sizes of the embedded model.

    Attributes:
        patch: edge of a vision patch; an image becomes ``(EDGE / patch) ** 2`` tokens.
        vision_width, vision_layers: of the vision tower.
        width, layers, heads, head_dim: of the language model.
        positions: longest prompt in tokens.
    """

    patch: int = 16
    vision_width: int = 160
    vision_layers: int = 4
    width: int = 128
    layers: int = 4
    heads: int = 4
    head_dim: int = 64
    positions: int = 4096

    @property
    def image_tokens(self) -> int:
        """Tokens of an image."""
        return (EDGE // self.patch) ** 2


def build_model(shape: TinyShape, tokenizer: Any, seed: int) -> LlavaForConditionalGeneration:
    """A randomly initialised LLaVA of this shape for this tokenizer.

    Input and output word vectors are tied: to name what was read is then to copy a vector, for all tokens alike. (Untied, matching
    under open labels did not emerge in 525 steps; tied, it did within 300.)
    """
    torch.manual_seed(seed)
    vision = SiglipVisionConfig(
        hidden_size=shape.vision_width,
        intermediate_size=3 * shape.vision_width,
        num_hidden_layers=shape.vision_layers,
        num_attention_heads=4,
        image_size=EDGE,
        patch_size=shape.patch,
        vision_use_head=False,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.width,
        intermediate_size=3 * shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        head_dim=shape.head_dim,
        max_position_embeddings=shape.positions,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        rms_norm_eps=1e-5,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        image_seq_length=shape.image_tokens,
        tie_word_embeddings=True,
    )
    return LlavaForConditionalGeneration(config)


def deepen(model: LlavaForConditionalGeneration, *, at: int, count: int) -> None:
    """Insert ``count`` layers into the language model before layer ``at``, in place; at first they change nothing.

    They are copies of layer ``at`` whose two output matrices are zero, so each hands on what it receives until trained.
    """
    decoder = model.model.language_model
    layers = list(decoder.layers)
    for _ in range(count):
        layer = deepcopy(layers[at])
        nn.init.zeros_(layer.self_attn.o_proj.weight)
        nn.init.zeros_(layer.mlp.down_proj.weight)
        layers.insert(at, layer)
    for number, layer in enumerate(layers):
        layer.self_attn.layer_idx = number
    decoder.layers = nn.ModuleList(layers)
    decoder.config.num_hidden_layers = len(layers)


def narrow(model: LlavaForConditionalGeneration, width: int) -> None:
    """Cut the language model's feed-forward layers to ``width`` units, in place: those with the smallest weights go."""
    for layer in model.model.language_model.layers:
        mlp = layer.mlp
        size = mlp.gate_proj.weight.norm(dim=1) * mlp.up_proj.weight.norm(dim=1) * mlp.down_proj.weight.norm(dim=0)
        kept = size.topk(width).indices.sort().values
        for linear, dim in ((mlp.gate_proj, 0), (mlp.up_proj, 0), (mlp.down_proj, 1)):
            linear.weight = nn.Parameter(linear.weight.detach().index_select(dim, kept).contiguous())
        mlp.gate_proj.out_features = mlp.up_proj.out_features = mlp.down_proj.in_features = mlp.intermediate_size = (
            width
        )
    model.model.language_model.config.intermediate_size = width


class ImageEncoder(nn.Module):
    """Vision tower and projector of a LLaVA as one module: pixels (n, 3, EDGE, EDGE) -> features (n, tokens, width).

    Equal to the model's own image features, but without the bookkeeping of ``output_hidden_states``, which a compiler cannot
    see through.
    """

    def __init__(self, model: LlavaForConditionalGeneration):
        super().__init__()
        self.tower = model.model.vision_tower
        self.projector = model.model.multi_modal_projector

    def forward(self, pixels: Tensor) -> Tensor:
        return self.projector(self.tower.encoder(inputs_embeds=self.tower.embeddings(pixels)).last_hidden_state)


def decoder_states(decoder: Any, embeddings: Tensor, early_mask: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
    """Hidden states (rows, length, width) that a Llama makes of embeddings: final, and behind each layer.

    Nothing but its layers, causal and without padding, so that a compiler sees through it.

    Args:
        decoder: the Llama.
        embeddings: (rows, length, width).
        early_mask: (rows, 1, length, length), true where attention may look, for all layers but the last.
    """
    positions = torch.arange(embeddings.shape[1])[None]
    rotary = decoder.rotary_emb(embeddings, positions)
    hidden, behind = embeddings, []
    last = len(decoder.layers) - 1
    for number, layer in enumerate(decoder.layers):
        mask = early_mask if number < last else None
        hidden = layer(hidden, attention_mask=mask, position_ids=positions, position_embeddings=rotary)
        behind.append(hidden)
    return decoder.norm(hidden), behind


def normalise(pixels: Tensor) -> Tensor:
    """uint8 (n, EDGE, EDGE[, 3]) -> float (n, 3, EDGE, EDGE) in [-1, 1], as the exported processor does."""
    if pixels.dim() == 3:
        pixels = pixels.unsqueeze(-1).expand(-1, -1, -1, 3)
    return pixels.movedim(-1, 1).float() / 127.5 - 1


def learning_rate(step: int, steps: int, peak: float, *, warm_up: int, hold: float) -> float:
    """Linear warm-up, then ``peak`` up to the fraction ``hold`` of all steps, then half a cosine down to 2 % of it."""
    rate = peak * min(1.0, (step + 1) / max(1, warm_up))
    progress = step / max(1, steps)
    if progress <= hold:
        return rate
    return rate * (0.02 + 0.98 * 0.5 * (1 + float(torch.cos(torch.tensor(torch.pi * (progress - hold) / (1 - hold))))))
