"""The vision tower that a checkpoint was made with: a CLIP model, or only its vision part, and how it wants its images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import CLIPImageProcessorPil, CLIPVisionConfig, LlavaImageProcessorPil

from kshot.convert.weights import Weights, read_json
from kshot.errors import ModelError
from kshot.models.processors import BACKGROUND

PARTS = ("embeddings.", "pre_layrnorm.", "encoder.", "post_layernorm.")
"""What the names of a CLIP vision tower's weights begin with (the misspelling is transformers')."""
WHITE = (255, 255, 255)


@dataclass(frozen=True)
class VisionSource:
    """A CLIP model's folder.

    Attributes:
        folder: where it is.
        config: of the vision tower.
        notes: what was found there that a user may want to know.
    """

    folder: Path
    config: Any
    notes: tuple[str, ...] = ()

    @property
    def patches(self) -> int:
        """Features of an image, the class token not counted."""
        return int(self.config.image_size // self.config.patch_size) ** 2

    def image_processor(self) -> tuple[Any, tuple[str, ...]]:
        """How images are prepared: a white square, then as CLIP does; and remarks.

        Plain transformers makes the square in the mean colour, for it has no setting for another; ``kshot.load_model`` reads
        ``kshot_background``.
        """
        size = int(self.config.image_size)
        options, notes = self._preparation()
        for key in ("size", "crop_size"):
            found = {side for side in dict(options.get(key) or {}).values() if side is not None}
            if found - {size}:
                notes += (
                    f"the preprocessor's {key} is {sorted(found)}, but the vision tower takes {size}: {size} is used",
                )
        options |= {"size": {"shortest_edge": size}, "crop_size": {"height": size, "width": size}}
        options |= {"do_pad": True, BACKGROUND: list(WHITE)}
        return LlavaImageProcessorPil(**options), notes

    def _preparation(self) -> tuple[dict[str, Any], tuple[str, ...]]:
        names = ("preprocessor_config.json", "processor_config.json")
        if not any((self.folder / name).is_file() for name in names):
            note = f"{self.folder} has no {names[0]}: the values of OpenAI's CLIP are used"
            return _options(CLIPImageProcessorPil()), (note,)
        try:
            return _options(CLIPImageProcessorPil.from_pretrained(self.folder)), ()
        except (OSError, ValueError, TypeError) as error:
            raise ModelError(f"the preprocessor configuration in {self.folder} cannot be read: {error}") from error


def open_vision(source: str) -> VisionSource:
    """Find a CLIP model and read its configuration.

    Args:
        source: a folder, or a Hub id.

    Raises:
        ModelError: no such model, or no CLIP.
    """
    folder = Path(source).expanduser()
    if not folder.is_dir():
        folder = _fetch(source)
    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(f"{source} is no model folder: it has no config.json; give the folder of a CLIP model")
    config = read_json(path)
    kind = config.get("model_type")
    if kind not in ("clip", "clip_vision_model"):
        raise ModelError(
            f"{source} is no CLIP model but {kind!r}; upstream sees images through a CLIP (openai/clip-vit-large-patch14)"
        )
    if kind == "clip":
        # Older files keep the vision settings twice, the second time only where they differ from the defaults.
        config = config.get("vision_config") or config.get("vision_config_dict") or {}
    return VisionSource(folder, CLIPVisionConfig.from_dict({**config, "model_type": "clip_vision_model"}))


def vision_names(weights: Weights) -> dict[str, str]:
    """For each weight of the vision tower its name in the tower alone (``encoder.layers.0 ...``) and in the file.

    Raises:
        ModelError: there is none.
    """
    found: dict[str, str] = {}
    for name in weights.files:
        own = name.removeprefix("vision_model.")
        if own.startswith(PARTS) and not own.endswith("position_ids") and not name.startswith("text_model."):
            found[own] = name
    if not found:
        raise ModelError(f"{weights.folder} has no weights of a CLIP vision tower (vision_model.embeddings ...)")
    return found


def _options(images: Any) -> dict[str, Any]:
    """The settings of CLIP's image processor that are LLaVA's, too."""
    names = ["image_mean", "image_std", "resample", "rescale_factor", "do_resize", "do_center_crop", "do_rescale"]
    names += ["do_normalize", "do_convert_rgb", "size", "crop_size"]
    return {name: getattr(images, name) for name in names if getattr(images, name, None) is not None}


def _fetch(source: str) -> Path:
    """The files of a Hub repository, in the local cache."""
    if source.startswith((".", "/", "~")) or source.count("/") != 1:
        raise ModelError(f"no vision model {source!r}: give the folder of a CLIP model, or a Hub id (owner/name)")
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "model*.safetensors"]
    try:
        folder = Path(snapshot_download(source, allow_patterns=patterns))
        if not any(folder.glob("model*.safetensors")):
            folder = Path(snapshot_download(source, allow_patterns=[*patterns, "pytorch_model*.bin"]))
    except Exception as error:  # of the network, the Hub or the cache
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ModelError(
            f"{source!r} is neither a folder here nor available from the Hugging Face Hub: {reason}"
        ) from error
    return folder
