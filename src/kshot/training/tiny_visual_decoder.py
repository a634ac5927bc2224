"""The decoder of ``tiny-visual``'s tokenizer: from a token for each square to 16 x 16 pixels.

``VQModel`` enlarges by repeating pixels, and convolutions cannot tell a repeated pixel from its copy: where neighbouring squares are
alike, nothing says which half of a square a pixel is in. Large networks learn to find out from the zeros around the picture; this
one had learnt nothing but the ground after 750 steps. So it is told at the beginning: one channel holds a ramp over the picture's
columns and one over its rows, each enlargement halves their steps, and two more channels say which of the repeated pixels is which.
All of it is done by the layers' own weights, which are then trained like the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kshot.data.derived import generator
from kshot.data.drawing.functions import CHANGES, UNDEFINED, random_boards
from kshot.data.drawing.tiles import GROUNDS, SIDE, SQUARE, TILES, Board
from kshot.training.objective import Objective
from kshot.training.run import run_steps
from kshot.training.tiny_model import learning_rate
from kshot.training.tiny_visual_tokenizer import LATENT, pixels

PLACES = 8
"""Channels, at the size of the tokens, that know nothing but places."""
TOLD = 4
"""Of these (and in every later level) two ramps and two that tell repeated pixels apart."""


@torch.no_grad()
def spread_codes(vq: Any) -> None:
    """Make the layer behind the codebook give a constant channel, and the codes' principal components with unit variance.

    Tiles of one colour lie so close together that it would take long to learn to tell them apart.
    """
    codes = vq.quantize.embedding.weight[: len(TILES)]
    values, directions = torch.linalg.eigh(torch.cov(codes.T))
    values, directions = values.flip(0), directions.flip(1)
    scale = values.clamp_min(float(values.max()) * 1e-4).rsqrt()
    components = (directions.T * scale[:, None])[: LATENT - 1]
    vq.post_quant_conv.weight.zero_()
    vq.post_quant_conv.weight[1:, :, 0, 0] = components
    vq.post_quant_conv.bias[0] = 1
    vq.post_quant_conv.bias[1:] = -(components @ codes.mean(0))


def tell_places(vq: Any, steps: int = 400) -> float:
    """Give the decoder its ramps; the constant channel is the first one. Returns the ramps' mean squared error before enlargement."""
    decoder = vq.decoder
    own = []  # layers, and which of their weights make places from nothing but places
    with torch.no_grad():
        inner = [conv for block in decoder.mid_block.resnets for conv in (block.conv1, block.conv2)]
        for conv, known in ((decoder.conv_in, 1), *((conv, PLACES) for conv in inner)):
            conv.weight[:PLACES, known:] = 0
            mask = torch.zeros_like(conv.weight)
            mask[:PLACES, :known] = 1
            own.append((conv, mask))
    count = torch.arange(1.0, SIDE + 1)
    wanted = torch.stack([count.expand(SIDE, SIDE), count[:, None].expand(SIDE, SIDE)])
    given = torch.zeros(1, LATENT, SIDE, SIDE)
    given[:, 0] = 1
    parameters = [tensor for conv, _ in own for tensor in (conv.weight, conv.bias)]
    optimizer = torch.optim.Adam(parameters, lr=1e-2)
    error = torch.zeros(())
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * (1 - step / steps)
        error = (decoder.mid_block(decoder.conv_in(given))[0, :2] - wanted).square().mean()
        optimizer.zero_grad()
        error.backward()
        for conv, mask in own:
            conv.weight.grad *= mask
            conv.bias.grad[PLACES:] = 0
        optimizer.step()
    decoder.zero_grad()  # also what the other layers got, which would spoil the first step of training
    _carry_places(decoder)
    return float(error.detach())


@torch.no_grad()
def _carry_places(decoder: Any) -> None:
    """Let ramps pass through the levels; in each enlargement, halve their steps and tell repeated pixels apart.

    Behind the repetition a ramp is 1 1 2 2 3 3 4 4: half of it and of its left neighbour are 0.5 1 1.5 2 2.5 ..., and the difference
    to the left neighbour is 1 0 1 0 1 0. The zeros around the picture fit both.
    """
    for level, block in enumerate(decoder.up_blocks):
        for resnet in block.resnets:
            resnet.conv2.weight[:TOLD] = 0
            resnet.conv2.bias[:TOLD] = 0
            if resnet.conv_shortcut is not None:
                resnet.conv_shortcut.weight[:TOLD] = 0
                resnet.conv_shortcut.bias[:TOLD] = 0
                resnet.conv_shortcut.weight[range(TOLD), range(TOLD)] = 1
        for upsampler in block.upsamplers or []:
            weight, bias = upsampler.conv.weight, upsampler.conv.bias
            weight[:TOLD] = 0
            bias[:TOLD] = 0
            double = 2.0 * 2.0**level  # the step of the ramp was 1 / 2 ** level
            for axis, neighbour in enumerate(((1, 0), (0, 1))):
                weight[axis, axis, 1, 1] = weight[(axis, axis, *neighbour)] = 0.5
                weight[2 + axis, axis, 1, 1] = double
                weight[(2 + axis, axis, *neighbour)] = -double
                bias[2 + axis] = -1


class DecoderModel(nn.Module):
    """What is trained: from codes to pixels."""

    def __init__(self, vq: Any):
        super().__init__()
        self.post_quant_conv, self.decoder = vq.post_quant_conv, vq.decoder

    def forward(self, vectors: Tensor) -> Tensor:
        """Pixels (n, 3, 64, 64) of code vectors (n, 16, width)."""
        squares = vectors.view(-1, SIDE, SIDE, LATENT).permute(0, 3, 1, 2).contiguous()
        found: Tensor = self.decoder(self.post_quant_conv(squares))
        return found


class DecoderObjective(Objective):
    """Reconstruction of boards from their codes. An item is the batch of a step.

    Args:
        vq: with its codebook.
        steps, boards: steps, and boards in each.
        seed: batches derive from (seed, step).
        pieces: weight of squares that show a piece, beside 1 for empty ones.
    """

    def __init__(self, vq: Any, *, steps: int, boards: int = 8, seed: int = 0, pieces: float = 5.0):
        self.model = DecoderModel(vq)
        self.codebook = vq.quantize.embedding.weight.detach().clone().half().float()  # as it is written
        self.steps, self.boards, self.seed, self.pieces = steps, boards, seed, pieces

    def __len__(self) -> int:
        return self.steps

    def item(self, epoch: int, index: int) -> dict[str, Tensor]:
        boards = crowded_boards(generator(self.seed, "tiny-visual decoder", index), self.boards)
        return {"codes": torch.from_numpy(boards), "pixels": pixels(boards)}

    def collate(self, items: Sequence[dict[str, Tensor]]) -> dict[str, Any]:
        return items[0]

    def loss(self, model: nn.Module, batch: Mapping[str, Any]) -> tuple[Tensor, Mapping[str, Tensor]]:
        wrong = self.model(self.codebook[batch["codes"]]) - batch["pixels"]
        weights = 1 + (self.pieces - 1) * (batch["codes"] >= len(GROUNDS)).float().view(-1, 1, SIDE, SIDE)
        weights = weights.repeat_interleave(SQUARE, 2).repeat_interleave(SQUARE, 3)
        return (weights * (wrong.abs() + 2 * wrong.square())).mean(), {"l1": wrong.abs().mean()}


def crowded_boards(rng: np.random.Generator, count: int) -> Board:
    """Boards of 3 to 14 pieces, half of the times after a change, so that masks turn up too."""
    boards = random_boards(rng, count, split="train", held_out=True, pieces=(3, 14))
    change = int(rng.integers(2 * len(CHANGES)))
    if change < len(CHANGES):
        changed = CHANGES[change](boards)
        boards = np.where((changed != UNDEFINED).all(1, keepdims=True), changed, boards)
    return boards


def train_decoder(
    objective: DecoderObjective,
    folder: Path,
    *,
    peak: float = 3e-3,
    trainer: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
) -> None:
    """Train the decoder in place; ``folder`` keeps checkpoints, from which a run resumes."""
    optimizer = torch.optim.AdamW(objective.model.parameters(), lr=peak, weight_decay=0.0, betas=(0.9, 0.98))

    def factor(step: int) -> float:
        return learning_rate(step, objective.steps, 1.0, warm_up=30, hold=0.4)

    record = {"peak": peak, "boards": objective.boards, "pieces": objective.pieces, **(config or {})}
    own = {"save_steps": 250, **(trainer or {})}
    run_steps(objective, folder, optimizer, factor, trainer=own, config=record, seed=objective.seed)
