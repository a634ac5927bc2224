"""Which images of a prompt a model is shown.

Normally all. Upstream's code of Link-Context Learning, however, inserts only the last image of a prompt and leaves the embedding of
the placeholder token in the places of all others, in training as in evaluation. To reproduce what checkpoints made with it
saw, a converted one says ``"last_only"`` in its configuration (``kshot_image_mode``).

An image that is left out is a :class:`HiddenPicture`: it has its tokens, and for features it has what stood there before any
image was inserted. So prompts, caches and prefixes need to know nothing of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, cast, get_args

import torch
from PIL import Image

from kshot.errors import ModelError, OptionError
from kshot.models.encoding import EncodedPrompt, Encoder
from kshot.models.features import ImageFeatures
from kshot.picture import Picture

ImageMode = Literal["all", "last_only"]
IMAGE_MODE = "kshot_image_mode"
"""Name in config.json."""


class HiddenPicture(Picture):
    """A picture that has a place in the prompt, but is not inserted there."""

    def __init__(self, source: Picture):
        self.source, self.name = source, source.name

    def load(self) -> Image.Image:
        """Never: whoever asks for its pixels would insert it."""
        raise ModelError(f"{self.name} is left out of its prompt (image mode 'last_only'): take inputs from VLM.inputs")

    @property
    def digest(self) -> str:
        return hashlib.blake2b(f"hidden\0{self.source.digest}".encode(), digest_size=16).hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, HiddenPicture) and self.source == other.source

    def __hash__(self) -> int:
        return hash((HiddenPicture, self.source))


def image_mode_of(model: Any, wish: str | None = None) -> ImageMode:
    """The image mode that was asked for, or else the one in the model's configuration.

    Raises:
        OptionError: there is no such mode.
    """
    mode = wish if wish is not None else getattr(model.config, IMAGE_MODE, "all")
    if mode not in get_args(ImageMode):
        raise OptionError(f"unknown image mode {mode!r}: use 'all' or 'last_only'")
    return cast(ImageMode, mode)


def obstacle(model: Any, encoder: Encoder, no_features: str | None) -> str | None:
    """Why images cannot be left out of this model's prompts, in words; ``None`` if they can."""
    if no_features is not None:
        return no_features
    if "image_grid_thw" in encoder.accepted:
        return f"{type(model).__name__} wants more of an image than its features (image_grid_thw)"
    return None


def hide(encoded: EncodedPrompt, mode: ImageMode) -> EncodedPrompt:
    """The prompt as it is shown in an image mode."""
    if mode == "all" or len(encoded.pictures) < 2:
        return encoded
    *others, last = encoded.pictures
    return replace(encoded, pictures=(*map(HiddenPicture, others), last))


def hides(pictures: Sequence[Picture]) -> bool:
    """Whether one of the pictures is hidden."""
    return any(isinstance(picture, HiddenPicture) for picture in pictures)


def hidden_features(model: Any, placeholder: int, expansion: str, mark: str) -> ImageFeatures:
    """What stands in the places of an image that is not inserted: the placeholder's own embedding, ``[tokens, width]``.

    Args:
        model: the model.
        placeholder: id of the token that stands for a feature.
        expansion: the text that stands for the image.
        mark: the placeholder as text.

    Raises:
        ModelError: the placeholder does not stand for one feature each.
    """
    count = expansion.count(mark)
    if not count:
        raise ModelError(
            f"{type(model).__name__} has no placeholder for each feature of an image, so none can be left out"
        )
    table = model.get_input_embeddings()
    row = table(torch.tensor([placeholder], device=table.weight.device)).detach()
    return ImageFeatures(row.expand(count, -1), expansion)
