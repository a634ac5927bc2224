"""The tokenizer of ``tiny-visual``: a small ``VQModel`` with one token for each square of a board.

For answers that can be compared to the last token, a tile must have the same code whatever lies around it. Group normalisation and
3 x 3 convolutions make the latents of a square depend on the whole picture; so the encoder is not trained but made: its convolutions
look into their own square only, its residual branches are switched off, and large constant channels take over the variance that
group normalisation divides by. What is left is a random orthogonal projection of each square. The codebook holds the mean latent
of each of the world's tiles, so that a token *is* a tile, and of some plain colours. The decoder is trained, see
:mod:`kshot.training.tiny_visual_decoder`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kshot.data.drawing.functions import CHANGES, UNDEFINED, random_boards
from kshot.data.drawing.tiles import BOARD_PIXELS, NUMBER, SIDE, TILES, Board, Tile, board_pixels
from kshot.visual.tokenizer import VisualTokenizer
from kshot.visual.vq_files import build

CODES, LATENT, GROUPS = 256, 32, 8
WIDTHS = (16, 16, 32, 64, 64)
CONSTANT = 4.0
"""Size of the constant channels beside pixel values of at most 1."""


def build_vq(seed: int = 0, widths: Sequence[int] = WIDTHS) -> Any:
    """The ``VQModel`` at its beginning: its encoder as it stays, its decoder untrained, its codebook empty."""
    torch.manual_seed(seed)
    levels = len(widths)
    vq = build(
        {
            "in_channels": 3,
            "out_channels": 3,
            "down_block_types": ["DownEncoderBlock2D"] * levels,
            "up_block_types": ["UpDecoderBlock2D"] * levels,
            "block_out_channels": list(widths),
            "layers_per_block": 1,
            "latent_channels": LATENT,
            "num_vq_embeddings": CODES,
            "vq_embed_dim": LATENT,
            "norm_num_groups": GROUPS,
            "mid_block_add_attention": False,
            "sample_size": BOARD_PIXELS,
        }
    )
    make_encoder(vq)
    return vq


@torch.no_grad()
def make_encoder(vq: Any) -> None:
    """Make the encoder a projection of single squares, see above; uses torch's random state."""
    encoder = vq.encoder
    for module in encoder.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
            seen = torch.zeros(3, 3, dtype=torch.bool)
            if module.stride == (2, 2):
                seen[:2, :2] = True  # diffusers pads on the right and below: these are the four pixels that become one
            else:
                seen[1, 1] = True
            rows, columns = module.weight.shape[:2]
            taps = torch.empty(rows, columns * int(seen.sum()))
            nn.init.orthogonal_(taps)
            module.weight.zero_()
            module.weight[:, :, seen] = taps.view(rows, columns, -1)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in encoder.modules():
        if type(module).__name__ == "ResnetBlock2D":
            nn.init.zeros_(module.conv2.weight)
            nn.init.zeros_(module.conv2.bias)
            if module.conv_shortcut is not None:
                nn.init.orthogonal_(module.conv_shortcut.weight)
                nn.init.zeros_(module.conv_shortcut.bias)
    last = encoder.down_blocks[-2].downsamplers[0].conv
    signs = 1.0 - 2.0 * (torch.arange(len(last.bias)) % 2)
    last.bias.copy_(CONSTANT * signs)


def pixels(boards: Board) -> Tensor:
    """Pictures of boards (n, 16) as float (n, 3, 64, 64) in 0..1."""
    return torch.from_numpy(board_pixels(boards)).movedim(-1, 1).float() / 255


def sample_boards(rng: np.random.Generator, count: int) -> Board:
    """Boards on which every tile of the world turns up: random ones, some of them after a change."""
    boards = random_boards(rng, count, split="train", held_out=True)
    changes = rng.integers(-1, len(CHANGES), size=count)
    for number, change in enumerate(changes):
        if change >= 0:
            changed = CHANGES[change](boards[number])
            boards[number] = changed if (changed != UNDEFINED).all() else boards[number]
    return boards


@torch.no_grad()
def latents(vq: Any, pictures: Tensor) -> Tensor:
    """Latents (n * 16, width) of pictures."""
    found = [vq.encode(pictures[i : i + 64]).latents for i in range(0, len(pictures), 64)]
    return torch.cat(found).movedim(1, -1).reshape(-1, LATENT)


@torch.no_grad()
def make_codebook(vq: Any, rng: np.random.Generator, count: int) -> None:
    """Scale the latents of ``count`` boards to unit variance, and enter the codes.

    Code i is the mean latent of tile i; tiles that none of the boards shows are put on some more. The codes beyond the tiles are
    plain colours; nothing is taught about them.
    """
    boards = sample_boards(rng, count)
    missing = np.setdiff1d(np.arange(len(TILES)), boards)
    boards = np.concatenate([boards, *(_boards_with(int(tile), rng) for tile in missing)])
    tiles = torch.from_numpy(boards.ravel())
    found = latents(vq, pixels(boards))
    times = torch.bincount(tiles, minlength=len(TILES))
    means = torch.zeros(len(TILES), LATENT).index_add_(0, tiles, found) / times[:, None]
    centre = means.mean(0)
    scale = 1 / float((means - centre).std())
    vq.quant_conv.weight.mul_(scale)
    vq.quant_conv.bias.copy_((vq.quant_conv.bias - centre) * scale)
    vq.quantize.embedding.weight[: len(TILES)] = (means - centre) * scale
    plain = latents(vq, _plain_squares(plain_colours()))
    spare = CODES - len(TILES)
    chosen = torch.arange(len(plain) // (SIDE * SIDE)) * SIDE * SIDE  # the squares of a plain picture are all alike
    vq.quantize.embedding.weight[len(TILES) :] = plain[chosen[:spare]]


def _boards_with(tile: int, rng: np.random.Generator, count: int = 6) -> Board:
    """Boards of a tile's ground that show it, and one to three pieces besides."""
    wanted = TILES[tile]
    fitting = [
        n
        for n, t in enumerate(TILES)
        if t.pattern and (t.ground, t.colour == "mask") == (wanted.ground, wanted.colour == "mask")
    ]
    boards = np.full((count, SIDE * SIDE), NUMBER[Tile(wanted.ground)])
    for number, board in enumerate(boards):
        squares = rng.permutation(SIDE * SIDE)[: 2 + number % 3]
        board[squares] = rng.choice(fitting, len(squares))
        board[squares[0]] = tile
    return boards


def plain_colours() -> NDArray[np.uint8]:
    """One colour for each code beyond the tiles: greys, and colours of three lightnesses around the circle."""
    count = CODES - len(TILES)
    greys = np.repeat(np.linspace(32, 224, 8)[:, None], 3, 1)
    angles = np.arange((count - 8 + 2) // 3) / ((count - 8 + 2) // 3) * 2 * np.pi
    circle = 0.5 + 0.5 * np.cos(angles[:, None] + np.array([0, 2, 4]) * np.pi / 3)
    shades = np.concatenate([circle * 110, 60 + circle * 140, 130 + circle * 110])
    return np.concatenate([greys, shades])[:count].round().astype(np.uint8)


def _plain_squares(colours: NDArray[np.uint8]) -> Tensor:
    filled = torch.from_numpy(colours)[:, :, None, None].expand(-1, -1, BOARD_PIXELS, BOARD_PIXELS)
    return filled.float() / 255


def stable(tokenizer: VisualTokenizer, boards: Board) -> float:
    """The share of squares of boards (n, 16) whose token is their tile."""
    tokens = tokenizer.encode(pixels(boards), batch_size=64).numpy()
    return float((tokens == boards).mean())
