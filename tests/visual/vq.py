"""A small random VQModel and pictures for tests."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from kshot.visual.vq_files import build

CONFIG = {
    "block_out_channels": [32, 32, 64],
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "layers_per_block": 1,
    "latent_channels": 8,
    "num_vq_embeddings": 64,
    "sample_size": 32,
    "mid_block_add_attention": False,
    "lookup_from_codebook": True,
}


def make_vq(config=CONFIG, seed=0):
    """With a codebook as wide as its latents, so that many codes are chosen, and pictures with contrast."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vq = build(config)
        with torch.no_grad():
            size = config["sample_size"]
            latents = vq.encode(torch.rand(4, 3, size, size)).latents.permute(0, 2, 3, 1).flatten(0, 2)
            chosen = latents[torch.randint(len(latents), (config["num_vq_embeddings"],))]
            vq.quantize.embedding.weight.copy_(chosen + 0.3 * latents.std() * torch.randn(chosen.shape))
            vq.decoder.conv_out.bias.fill_(0.5)
    return vq


def pictures(count, size=(48, 40), seed=0):
    random = np.random.default_rng(seed)
    return [Image.fromarray(random.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)) for _ in range(count)]
