"""Processors without torchvision.

A processor turns text and images into a model's inputs. Many have a slot for videos, and video processors exist only where
torchvision does; kshot needs no videos, so the slot is left out (:func:`image_only`). Image processors then use their Pillow
implementation, which transformers chooses by itself.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from transformers import AutoProcessor, PretrainedConfig, ProcessorMixin
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING, processor_class_from_name
from transformers.utils import cached_file, is_torchvision_available

from kshot.errors import MissingExtra, ModelError

FILES = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json")
"""Files that may name the processor's class, in order of precedence."""

BACKGROUND = "kshot_background"
"""Setting of an image processor: the colour in which images are padded to squares."""


def load_processor(source: str | Path, config: PretrainedConfig, *, revision: str | None = None) -> Any:
    """The processor saved with a model, whether torchvision is there or not.

    Args:
        source: a model folder or a Hub id.
        config: the model's configuration.
        revision: branch, tag or commit of the Hub repository.

    Raises:
        ModelError: there is no processor, or none that works without torchvision.
        MissingExtra: the processor needs an optional package.
    """
    cls: Any = _processor_class(source, config, revision)
    if cls is None:
        raise ModelError(
            f"{source} has no processor: none of {', '.join(FILES)} names one, and transformers has none for model type "
            f"{config.model_type!r}; save the processor beside the weights (processor.save_pretrained)"
        )
    loader = AutoProcessor
    if not is_torchvision_available() and any("video" in name for name in cls.get_attributes()):
        loader = image_only(cls)
    try:
        processor = loader.from_pretrained(str(source), revision=revision, trust_remote_code=False)
    except ImportError as error:
        raise _import_error(source, cls, error) from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelError(
            f"the processor of {source} ({cls.__name__}) cannot be loaded: {_first_line(error)}"
        ) from error
    if not isinstance(processor, ProcessorMixin):
        raise ModelError(
            f"{source} has no processor, only a {type(processor).__name__}; a model of images and text needs one"
        )
    if getattr(processor, "tokenizer", None) is None or getattr(processor, "image_processor", None) is None:
        raise ModelError(f"the processor of {source} ({cls.__name__}) lacks a tokenizer or an image processor")
    if processor.chat_template is None:
        # Some constructors swallow the template that lies beside them (Idefics), some repositories keep it with the tokenizer.
        saved, _ = ProcessorMixin.get_processor_dict(str(source), revision=revision)
        processor.chat_template = saved.get("chat_template") or getattr(processor.tokenizer, "chat_template", None)
    if getattr(processor.image_processor, BACKGROUND, None) is not None:
        own: Any = type(processor.image_processor)
        processor.image_processor.__class__ = padded_with_background(own)
    return processor


@cache
def padded_with_background(cls: Any) -> Any:
    """LLaVA's image processor, padding images to squares in a colour of their own (``kshot_background``, RGB).

    transformers' own pads in the mean colour that it normalizes with, and has no setting for another. Saved and loaded without kshot,
    the processor does that.
    """

    class Padded(cls):
        def pad_to_square(self, image: Any, background_color: Any = None) -> Any:
            return super().pad_to_square(image, tuple(getattr(self, BACKGROUND)))

        def __reduce__(self) -> Any:
            return _padded, (cls, self.__dict__)  # the class has no name of its own to be found by

    Padded.__name__, Padded.__qualname__, Padded.__module__ = cls.__name__, cls.__qualname__, cls.__module__
    return Padded


def _padded(cls: Any, settings: dict[str, Any]) -> Any:
    made = object.__new__(padded_with_background(cls))
    made.__dict__ |= settings
    return made


@cache
def image_only(cls: Any) -> Any:
    """A processor class without its slot for videos; it saves and loads under the name of the original."""

    class ImageOnly(cls):
        # Read by SmolVLM when it applies its chat template, whether there are videos or not.
        video_processor = SimpleNamespace(num_frames=1, fps=1)

        @classmethod
        def get_attributes(cls) -> list[str]:
            return [name for name in super().get_attributes() if "video" not in name]

        @classmethod
        def _get_arguments_from_pretrained(cls, *args: Any, **kwargs: Any) -> list[Any]:
            # Constructors take their parts by position, so an empty one has to stand where the video processor would.
            parts = iter(super()._get_arguments_from_pretrained(*args, **kwargs))
            return [None if "video" in name else next(parts) for name in super().get_attributes()]

    ImageOnly.__name__, ImageOnly.__qualname__, ImageOnly.__module__ = cls.__name__, cls.__qualname__, cls.__module__
    return ImageOnly


def _processor_class(source: str | Path, config: PretrainedConfig, revision: str | None) -> Any:
    """The class named in the processor's files, or else the one that belongs to the model type."""
    for name in FILES:
        path = cached_file(
            str(source),
            name,
            revision=revision,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_connection_errors=False,
        )
        if path is None:
            continue
        try:
            named = json.loads(Path(path).read_text(encoding="utf-8")).get("processor_class")
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ModelError(f"{path} is no valid JSON: {error}") from None
        if named is None:
            continue
        cls = processor_class_from_name(named)
        if cls is None:
            raise ModelError(
                f"{path} names the processor {named!r}, which transformers does not have; code from a repository is never run"
            )
        return cls
    return PROCESSOR_MAPPING.get(type(config), None)


def _import_error(source: str | Path, cls: type, error: ImportError) -> Exception:
    text = str(error)
    if "num2words" in text:
        return MissingExtra("num2words", "smolvlm", f"the processor of {source}")
    if "orchvision" in text:
        return ModelError(
            f"the processor of {source} ({cls.__name__}) exists only for torchvision, which kshot does without; "
            "its architecture cannot be used"
        )
    return ModelError(f"the processor of {source} ({cls.__name__}) cannot be loaded: {_first_line(error)}")


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
