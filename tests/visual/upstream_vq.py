"""The network of the LVM's tokenizer in plain torch, written from its table of layers, with the names in upstream's checkpoints.

It knows nothing of diffusers: what is compared with it was made independently.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

RELEASED = {
    "_class_name": "VQGANModel",
    "_version": "0.0.1",
    "resolution": 256,
    "num_channels": 3,
    "hidden_channels": 128,
    "channel_mult": [1, 2, 2, 4, 6],
    "num_res_blocks": 2,
    "attn_resolutions": [],
    "no_attn_mid_block": True,
    "z_channels": 64,
    "num_embeddings": 8192,
    "quantized_embed_dim": 64,
    "dropout": 0.0,
    "resample_with_conv": True,
    "commitment_cost": 0.25,
}
SMALL = RELEASED | {
    "resolution": 32,
    "hidden_channels": 32,
    "channel_mult": [1, 2, 3],
    "z_channels": 8,
    "num_embeddings": 64,
    "quantized_embed_dim": 8,
}


def norm(width):
    return nn.GroupNorm(32, width, eps=1e-6)


class Block(nn.Module):
    def __init__(self, before, after):
        super().__init__()
        self.norm1, self.conv1 = norm(before), nn.Conv2d(before, after, 3, padding=1)
        self.norm2, self.conv2 = norm(after), nn.Conv2d(after, after, 3, padding=1)
        if before != after:
            self.nin_shortcut = nn.Conv2d(before, after, 1)

    def forward(self, x):
        y = self.conv1(functional.silu(self.norm1(x)))
        y = self.conv2(functional.silu(self.norm2(y)))
        return y + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class Attention(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = norm(width)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(width, width, 1) for _ in range(4))

    def forward(self, x):
        y = self.norm(x)
        q, k, v = (layer(y).flatten(2) for layer in (self.q, self.k, self.v))
        weights = torch.softmax(q.transpose(1, 2) @ k * x.shape[1] ** -0.5, dim=2)
        return x + self.proj_out((v @ weights.transpose(1, 2)).reshape(x.shape))


class Resample(nn.Module):
    def __init__(self, width, down):
        super().__init__()
        self.down = down
        self.conv = nn.Conv2d(width, width, 3, stride=2) if down else nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x):
        if self.down:
            return self.conv(functional.pad(x, (0, 1, 0, 1)))
        return self.conv(functional.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    def __init__(self, before, after, blocks, attends, resample):
        super().__init__()
        self.block = nn.ModuleList(Block(before if n == 0 else after, after) for n in range(blocks))
        self.attn = nn.ModuleList(Attention(after) for _ in range(blocks if attends else 0))
        if resample:
            setattr(self, resample, Resample(after, resample == "downsample"))
        self.resample = resample

    def forward(self, x):
        for number, block in enumerate(self.block):
            x = block(x)
            if len(self.attn) > 1:  # upstream's condition: a single attention exists and is never used
                x = self.attn[number](x)
        return getattr(self, self.resample)(x) if self.resample else x


class Middle(nn.Module):
    def __init__(self, width, attends):
        super().__init__()
        self.block_1 = Block(width, width)
        if attends:
            self.attn_1 = Attention(width)
        self.block_2 = Block(width, width)

    def forward(self, x):
        x = self.block_1(x)
        return self.block_2(self.attn_1(x) if hasattr(self, "attn_1") else x)


class Coder(nn.Module):
    def __init__(self, config, encodes):
        super().__init__()
        widths = [config["hidden_channels"] * factor for factor in config["channel_mult"]]
        attends = [config["resolution"] // 2**n in config["attn_resolutions"] for n in range(len(widths))]
        blocks, last = config["num_res_blocks"], len(widths) - 1
        first = config["num_channels"] if encodes else config["z_channels"]
        self.conv_in = nn.Conv2d(first, widths[0] if encodes else widths[-1], 3, padding=1)
        if encodes:
            before = [widths[0], *widths]
            self.down = nn.ModuleList(
                Level(before[n], widths[n], blocks, attends[n], "downsample" if n < last else "")
                for n in range(last + 1)
            )
        else:
            before = [*widths[1:], widths[-1]]
            self.up = nn.ModuleList(
                Level(before[n], widths[n], blocks + 1, attends[n], "upsample" if n else "") for n in range(last + 1)
            )
        self.mid = Middle(widths[-1], not config["no_attn_mid_block"])
        self.norm_out = norm(widths[-1] if encodes else widths[0])
        self.conv_out = nn.Conv2d(
            widths[-1] if encodes else widths[0], config["z_channels" if encodes else "num_channels"], 3, padding=1
        )

    def forward(self, x):
        x = self.conv_in(x)
        for level in getattr(self, "down", ()):
            x = level(x)
        x = self.mid(x)
        for level in reversed(getattr(self, "up", ())):
            x = level(x)
        return self.conv_out(functional.silu(self.norm_out(x)))


class Codebook(nn.Module):
    def __init__(self, codes, width):
        super().__init__()
        self.embedding = nn.Embedding(codes, width)
        nn.init.uniform_(self.embedding.weight, -1 / codes, 1 / codes)


class UpstreamVQ(nn.Module):
    """Upstream's ``VQGANModel``."""

    def __init__(self, config):
        super().__init__()
        self.encoder, self.decoder = Coder(config, True), Coder(config, False)
        self.quantize = Codebook(config["num_embeddings"], config["quantized_embed_dim"])
        self.quant_conv = nn.Conv2d(config["z_channels"], config["quantized_embed_dim"], 1)
        self.post_quant_conv = nn.Conv2d(config["quantized_embed_dim"], config["z_channels"], 1)

    def latents(self, pixels):
        return self.quant_conv(self.encoder(pixels))

    def get_code(self, pixels):
        flat = self.latents(pixels).permute(0, 2, 3, 1).flatten(0, 2)
        book = self.quantize.embedding.weight.t()
        distances = torch.addmm(
            flat.pow(2).sum(1, keepdim=True) + book.pow(2).sum(0, keepdim=True), flat, book, alpha=-2.0
        )
        return distances.argmin(1).reshape(len(pixels), -1)

    def decode_code(self, ids):
        side = int(ids.shape[1] ** 0.5)
        vectors = self.quantize.embedding(ids).reshape(len(ids), side, side, -1).permute(0, 3, 1, 2)
        return self.decoder(self.post_quant_conv(vectors))


def make_upstream(config=SMALL, seed=0):
    """The network with random weights, its codebook as wide as its latents, so that many codes are used."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = UpstreamVQ(config).eval().requires_grad_(False)
        for module in model.modules():  # norms begin all alike: exchanged ones would go unseen
            if isinstance(module, nn.GroupNorm):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.1)
        latents = model.latents(torch.rand(4, 3, config["resolution"], config["resolution"])).permute(0, 2, 3, 1)
        flat = latents.flatten(0, 2)
        chosen = torch.randperm(len(flat))[: config["num_embeddings"]]
        model.quantize.embedding.weight.copy_(flat[chosen] + 0.1 * flat.std() * torch.randn(len(chosen), flat.shape[1]))
    return model


def write_upstream(folder: Path, model=None, config=SMALL, with_config=True):
    """A folder as upstream publishes it; the model that is in it."""
    model = make_upstream(config) if model is None else model
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    if with_config:
        (folder / "config.json").write_text(json.dumps(config))
    return model
