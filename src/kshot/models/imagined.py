"""What a model of visual sentences imagined."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from PIL import Image

from kshot.picture import DrawnPicture, Picture


class Imagined:
    """What a model imagined behind one prompt.

    Attributes:
        ids: of the new pictures, of shape ``(candidates, frames, tokens)``.
        notices: what the user must know: pictures that were left out.
        key: what the random numbers derive from, with the seed and the candidate's number.
    """

    def __init__(self, ids: torch.Tensor, notices: tuple[str, ...], key: str, tokenizer: Any):
        self.ids, self.notices, self.key = ids, notices, key
        self._tokenizer = tokenizer

    @property
    def candidates(self) -> int:
        """Number of candidates."""
        return self.ids.shape[0]

    @property
    def frames(self) -> int:
        """Number of new pictures of each candidate."""
        return self.ids.shape[1]

    @cached_property
    def pixels(self) -> torch.Tensor:
        """The new pictures in [0, 1], of shape ``(candidates, frames, 3, height, width)``; decoded when first asked for."""
        flat = self._tokenizer.decode(self.ids.flatten(0, 1)).float().cpu()
        return flat.reshape(self.candidates, self.frames, *flat.shape[1:])

    @property
    def images(self) -> list[list[Image.Image]]:
        """The new pictures by candidate and frame."""
        return [[to_image(frame) for frame in candidate] for candidate in self.pixels]

    def picture(self, candidate: int = 0, frame: int = 0) -> Picture:
        """One of the new pictures, as episodes take them."""
        return DrawnPicture(lambda: to_image(self.pixels[candidate, frame]), f"imagined picture of {self.key}")

    def average(self, frame: int = 0) -> Image.Image:
        """The mean over candidates of a frame: for masks and maps better than each of them, as a rule."""
        return to_image(self.pixels[:, frame].mean(0))

    def __repr__(self) -> str:
        return f"Imagined({self.candidates} candidates x {self.frames} frames, {len(self.notices)} notices)"


def to_image(pixels: torch.Tensor) -> Image.Image:
    """Pixels in [0, 1] of shape ``(3, height, width)`` as an image; values are rounded."""
    values = (pixels.clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(values.permute(1, 2, 0).contiguous().cpu().numpy(), "RGB")
