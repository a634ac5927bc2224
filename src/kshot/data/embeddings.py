"""Embedders: pictures and questions as vectors, for the choice of similar demonstrations.

``pixels`` and ``words`` need no model, so that every retriever works offline; any CLIP or SigLIP model of transformers, and the
vision part of any vision-language model, can take their place. Vectors are kept by ``embedding_store``; they are compared by
:func:`top_k`.
"""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from PIL import Image

from kshot.data.similarity import top_k
from kshot.errors import ModelError, OptionError
from kshot.registry import Registry

Vectors: TypeAlias = "np.ndarray[Any, np.dtype[np.float32]]"


@runtime_checkable
class Embedder(Protocol):
    """Makes vectors of length 1.

    Attributes:
        name: for messages and files of choices.
        fingerprint: changes whenever the vectors would; part of the key under which they are cached.
        batch_size: how many items are given to it at a time.
    """

    name: str
    fingerprint: str
    batch_size: int

    def images(self, images: Sequence[Image.Image]) -> Vectors:
        """Vectors [n, d] of RGB images.

        Raises:
            OptionError: this embedder takes no images.
        """
        ...

    def texts(self, texts: Sequence[str]) -> Vectors:
        """Vectors [n, d] of texts, to be compared with each other (with images too, if the model was trained so).

        Raises:
            OptionError: this embedder takes no texts.
        """
        ...


embedders: Registry[Callable[[], Embedder]] = Registry("embedder", "kshot.embedders", ("kshot.data.embeddings",))


@embedders.register("pixels")
class PixelEmbedder:
    """A picture as a small grey image, mean-centred: near-copies and equal layouts are near each other. Needs no model.

    Args:
        side: width and height of the small image.
    """

    batch_size = 64

    def __init__(self, side: int = 16):
        self.side = side
        self.name, self.fingerprint = "pixels", f"pixels-{side}-1"

    def images(self, images: Sequence[Image.Image]) -> Vectors:
        small = [image.convert("L").resize((self.side, self.side), Image.Resampling.BOX) for image in images]
        values = np.stack([np.asarray(image, dtype=np.float32).reshape(-1) for image in small])
        return normalized(values - values.mean(axis=1, keepdims=True))

    def texts(self, texts: Sequence[str]) -> Vectors:
        raise _cannot(self, "texts", "words")


@embedders.register("words")
class WordEmbedder:
    """A text as counts of its words and of three-letter pieces of them, hashed into a vector. Needs no model.

    Args:
        width: length of the vectors.
    """

    batch_size = 4096
    _word: ClassVar[re.Pattern[str]] = re.compile(r"\w+")

    def __init__(self, width: int = 512):
        self.width = width
        self.name, self.fingerprint = "words", f"words-{width}-1"

    def images(self, images: Sequence[Image.Image]) -> Vectors:
        raise _cannot(self, "images", "pixels")

    def texts(self, texts: Sequence[str]) -> Vectors:
        values = np.zeros((len(texts), self.width), np.float32)
        for row, text in zip(values, texts, strict=True):
            for piece, weight in self._pieces(text.casefold()):
                code = int.from_bytes(hashlib.blake2b(piece.encode(), digest_size=8).digest(), "big")
                row[code % self.width] += weight if code >> 63 else -weight  # signs keep collisions from adding up
        return normalized(values)

    def _pieces(self, text: str) -> Iterator[tuple[str, float]]:
        for word in self._word.findall(text):
            yield word, 1.0
            padded = f"<{word}>"
            for i in range(len(padded) - 2):
                yield padded[i : i + 3], 0.25


class ContrastiveEmbedder:
    """A CLIP or SigLIP model (any model of transformers with ``get_image_features`` and ``get_text_features``).

    Args:
        model: folder or repository; or the model itself, together with ``processor``.
        processor: its processor, if the model is given itself.
        device: where it runs; default: a GPU if there is one.
        dtype: of its weights; vectors are float32 in any case.
        batch_size: images or texts at a time.
        unit: whether vectors are scaled to length 1, as retrievers need them; averages of features need their own lengths.

    Raises:
        ModelError: it cannot be loaded, or is no model with image and text features.
    """

    def __init__(
        self,
        model: str | Path | torch.nn.Module,
        processor: Any = None,
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype = torch.float32,
        batch_size: int = 64,
        unit: bool = True,
    ):
        self.unit = unit
        self.name, self.batch_size = str(model) if isinstance(model, (str, Path)) else type(model).__name__, batch_size
        if isinstance(model, (str, Path)):
            model, processor = _load(str(model), dtype)
        if processor is None:
            raise OptionError("a model given itself needs processor=")
        for method in ("get_image_features", "get_text_features"):
            if not hasattr(model, method):
                raise ModelError(
                    f"{self.name}: {type(model).__name__} is no CLIP or SigLIP model: it has no {method}()"
                )
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.model: Any = model.to(device).eval()
        self.processor = processor
        self.fingerprint = model_fingerprint(self.model, processor) + ("" if unit else "-raw")

    def images(self, images: Sequence[Image.Image]) -> Vectors:
        inputs = self.processor.image_processor(images=list(images), return_tensors="pt")
        return self._features(self.model.get_image_features, inputs)

    def texts(self, texts: Sequence[str]) -> Vectors:
        tokenizer = self.processor.tokenizer
        # A model that is given no attention mask (SigLIP) sees the padding, and was trained on a fixed length of it.
        masked = "attention_mask" in tokenizer.model_input_names
        length = self.model.config.get_text_config().max_position_embeddings
        inputs = tokenizer(
            list(texts),
            padding=True if masked else "max_length",
            truncation=True,
            max_length=length,
            return_tensors="pt",
        )
        return self._features(self.model.get_text_features, inputs)

    @torch.inference_mode()
    def _features(self, method: Callable[..., Any], inputs: Mapping[str, Any]) -> Vectors:
        output = method(**_fitting(method, inputs, self.model))
        vectors = pooled(output).float().cpu().numpy()
        return normalized(vectors) if self.unit else vectors


class VisionEmbedder:
    """The vision features of a vision-language model, averaged over an image's tokens.

    Args:
        model: a model of transformers with ``get_image_features``, or a kshot model, which holds one as ``.model`` beside its
            ``.processor``.
        processor: its processor, if the model is one of transformers.
        batch_size: images at a time. They are encoded one by one, since models differ in how they batch images of several sizes.

    Raises:
        ModelError: the model gives no image features.
    """

    def __init__(self, model: Any, processor: Any = None, *, batch_size: int = 16):
        self.batch_size = batch_size
        self.name = str(getattr(model, "name", type(model).__name__))
        self.processor: Any = processor if processor is not None else getattr(model, "processor", None)
        inner: Any = model if isinstance(model, torch.nn.Module) else getattr(model, "model", None)
        inner = getattr(inner, "base_model", inner)
        if self.processor is None or not hasattr(inner, "get_image_features"):
            raise ModelError(
                f"{self.name}: this model gives no image features (use a CLIP or SigLIP model, or 'pixels')"
            )
        self.model: Any = inner
        self.fingerprint = model_fingerprint(self.model, self.processor)

    @torch.inference_mode()
    def images(self, images: Sequence[Image.Image]) -> Vectors:
        method, rows = self.model.get_image_features, []
        for image in images:
            inputs = self.processor.image_processor(images=[[image]], return_tensors="pt")
            features = pooled(method(**_fitting(method, inputs, self.model)))
            rows.append(features.float().reshape(-1, features.shape[-1]).mean(0).cpu().numpy())
        return normalized(np.stack(rows))

    def texts(self, texts: Sequence[str]) -> Vectors:
        raise _cannot(self, "texts", "words")


def load_embedder(spec: str | Path | Embedder) -> Embedder:
    """An embedder by its registered name (``pixels``, ``words``), or a CLIP or SigLIP model by its folder or repository.

    Raises:
        UnknownName: neither a registered name, nor a folder, nor the form ``owner/name`` of a repository.
        ModelError: the model cannot be used.
    """
    if not isinstance(spec, (str, Path)):
        return spec
    if str(spec) in embedders:
        return embedders.get(str(spec))()
    if "/" in str(spec) or Path(spec).is_dir():
        return ContrastiveEmbedder(spec)
    return embedders.get(str(spec))()  # raises, with suggestions


def normalized(vectors: Vectors) -> Vectors:
    """Vectors scaled to length 1; zero vectors (a blank image, an empty text) stay zero: they resemble nothing."""
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=-1, keepdims=True)
    return (vectors / np.where(lengths > 0, lengths, 1)).astype(np.float32)


def pooled(output: Any) -> torch.Tensor:
    """The feature tensor in what ``get_image_features`` and ``get_text_features`` return."""
    output = getattr(output, "pooler_output", output)
    if isinstance(output, (list, tuple)):
        return torch.cat([item.reshape(-1, item.shape[-1]) for item in output])
    if not isinstance(output, torch.Tensor):
        raise ModelError("the model gives no pooled features")
    return output


def model_fingerprint(model: Any, processor: Any) -> str:
    """A hash of a model's configuration, of its preprocessing and of a few thousand numbers of each of its weights.

    Training changes nearly all numbers of a weight, so that a sample tells two models apart without reading gigabytes.
    """
    hasher = hashlib.blake2b(digest_size=16)
    config = {key: value for key, value in model.config.to_dict().items() if not key.startswith("_")}
    config.pop("transformers_version", None)
    hasher.update(repr(sorted(config.items(), key=str)).encode())
    for part in ("image_processor", "tokenizer"):
        held: Any = getattr(processor, part, None)
        settings = held.to_dict() if hasattr(held, "to_dict") else getattr(held, "init_kwargs", {})
        hasher.update(repr(sorted((k, repr(v)) for k, v in settings.items() if "path" not in k)).encode())
    for name, weight in sorted(model.state_dict().items()):
        flat = weight.detach().reshape(-1)
        sample = flat[:: max(1, flat.numel() // 4096)].to("cpu", torch.float64)
        hasher.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        hasher.update(sample.contiguous().numpy().tobytes())
    return hasher.hexdigest()


def _load(name: str, dtype: torch.dtype) -> tuple[torch.nn.Module, Any]:
    from transformers import AutoModel, AutoProcessor

    try:
        return AutoModel.from_pretrained(name, dtype=dtype), AutoProcessor.from_pretrained(name)
    except ImportError as error:
        raise ModelError(f"{name}: {error}".splitlines()[0]) from None
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"embedder {name!r} cannot be loaded: {str(error).splitlines()[0]}") from None


def _fitting(method: Callable[..., Any], inputs: Mapping[str, Any], model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Those inputs that a method takes, on the model's device, floating ones in its dtype."""
    known = inspect.signature(method).parameters
    weight = next(model.parameters())
    return {
        name: value.to(weight.device, weight.dtype) if value.is_floating_point() else value.to(weight.device)
        for name, value in inputs.items()
        if name in known and isinstance(value, torch.Tensor)
    }


def _cannot(embedder: Embedder, what: str, instead: str) -> OptionError:
    return OptionError(f"embedder {embedder.name!r} takes no {what} (use {instead!r}, or a CLIP or SigLIP model)")


__all__ = [
    "ContrastiveEmbedder",
    "Embedder",
    "PixelEmbedder",
    "VisionEmbedder",
    "WordEmbedder",
    "embedders",
    "load_embedder",
    "top_k",
]
