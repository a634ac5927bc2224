"""What a visual tokenizer takes: pixels in [0, 1], and tokens that its codebook has."""

from __future__ import annotations

import torch

from kshot.errors import DataError


def check_pixels(pixels: torch.Tensor, size: int) -> None:
    """Refuse what are no pictures of ``size`` pixels a side in [0, 1], or of 8 bits.

    Raises:
        DataError: says what they are instead.
    """
    if pixels.ndim != 4 or tuple(pixels.shape[1:]) != (3, size, size):
        raise DataError(
            f"pixels of shape {list(pixels.shape)}, not [pictures, 3, {size}, {size}]",
            remedy="pictures of any size go through VisualTokenizer.pixels",
        )
    if pixels.dtype == torch.uint8 or not len(pixels):
        return
    if not pixels.is_floating_point():
        raise DataError(f"pixels of type {pixels.dtype}", remedy="give float in [0, 1], or uint8")
    least, most = float(pixels.amin()), float(pixels.amax())
    if not (least >= 0 and most <= 1):  # also where they are not numbers
        raise DataError(f"pixels between {least:g} and {most:g}, not in [0, 1]", remedy="no mean and deviation here")


def checked_ids(ids: torch.Tensor, grid: int, codes: int) -> torch.Tensor:
    """Tokens of pictures as int64 ``(b, grid ** 2)``.

    Raises:
        DataError: not so many tokens, a grid that is no such square, or tokens that the codebook does not have.
    """
    tokens = grid**2
    found = torch.as_tensor(ids)
    if found.is_floating_point() or found.is_complex() or found.dtype == torch.bool:
        raise DataError(f"tokens of type {found.dtype}, not integers")
    square_of = f"a picture is {tokens} tokens, a square of {grid} x {grid}"
    if found.ndim == 3 and tuple(found.shape[1:]) != (grid, grid):
        raise DataError(f"tokens in a grid of {found.shape[1]} x {found.shape[2]}: {square_of}")
    if found.ndim not in (2, 3) or (found.ndim == 2 and found.shape[1] != tokens):
        raise DataError(f"tokens of shape {list(found.shape)}: {square_of}")
    flat = found.reshape(len(found), tokens).to(torch.int64)
    outside = ((flat < 0) | (flat >= codes)).nonzero()
    if len(outside):
        row, place = outside[0].tolist()
        raise DataError(
            f"token {int(flat[row, place])} at place {place} of picture {row}: the codebook has 0 to {codes - 1}"
        )
    return flat
