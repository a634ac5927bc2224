"""Loading a model by name, Hub id or folder, with errors that say what is wrong with it."""

from __future__ import annotations

import difflib
import json
import os
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, PretrainedConfig
from transformers import __version__ as transformers_version
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)
from transformers.utils import cached_file

from kshot.errors import ModelError, OptionError
from kshot.models.adapters import adapted
from kshot.models.loading_weights import (
    default_device,
    dtype_of,
    load_weights,
    quantization_of,
    quiet_unless_watched,
    sentence_of,
)
from kshot.models.processors import load_processor
from kshot.models.reuse import Switch
from kshot.models.rope_table import RopeTable
from kshot.models.visual_loading import load_visual, visual_folder
from kshot.models.visual_sentence import VisualSentenceModel
from kshot.models.vlm import VLM

Quantization = Literal["8bit", "4bit"]
EMBEDDED = Path(__file__).resolve().parents[1] / "assets"
"""Where the models that come with the package lie, one folder each."""
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


def load_model(
    id_or_path: str | os.PathLike[str],
    *,
    dtype: str | torch.dtype = "auto",
    device_map: Any = None,
    quantization: Quantization | None = None,
    name: str | None = None,
    revision: str | None = None,
    attn_implementation: str | None = None,
    prefix_cache: Switch = "auto",
    feature_cache: Switch = "auto",
    feature_folder: str | None = None,
    image_mode: str | None = None,
    adapter: str | os.PathLike[str] | None = None,
    rope_table_dtype: RopeTable | None = None,
    context_pictures: int | None = None,
) -> VLM | VisualSentenceModel:
    """Load a vision-language model and its processor, or a model of visual sentences.

    Any architecture of transformers' ``AutoModelForImageTextToText`` whose processor works without torchvision; or any language
    model whose words are codes of pictures, with ``visual_processor.json`` in its folder. Code from a repository is never run, and
    only safetensors weights are read.

    Args:
        id_or_path: ``"tiny"`` for the model that comes with the package, a folder written by ``save_pretrained``, or a Hub id.
        dtype: ``"auto"`` (as saved; ``"tiny"`` is computed in float32), ``"float32"``, ``"bfloat16"``, ``"float16"``.
        device_map: as in transformers; default: the first accelerator if there is one, otherwise the CPU.
        quantization: ``"8bit"`` or ``"4bit"`` (NF4) through bitsandbytes.
        name: name in reports; default: the last part of ``id_or_path``.
        revision: branch, tag or commit of a Hub repository.
        attn_implementation: attention of transformers (``"sdpa"``, ``"eager"``, ``"flash_attention_2"`` ...).
        prefix_cache, feature_cache: whether fixed demonstrations are read once and pictures encoded once; see
            :class:`~kshot.models.reuse.Reuse`.
        feature_folder: keeps vision features on disk, for later runs.
        image_mode: "all" inserts every image of a prompt, "last_only" only the last, as upstream's Link-Context Learning does;
            default: what the model's config.json says (kshot convert lcl --image-mode).
        adapter: a folder (or Hub id) with an adapter of PEFT, such as ``kshot train --method lora`` writes, trained on this model.
        rope_table_dtype: "float32" or "bfloat16", for models of visual sentences; see :mod:`kshot.models.rope_table`. Default: what
            config.json says.
        context_pictures: pictures that a model of visual sentences is shown at most, new ones included; default: as many as fit.

    Returns:
        :class:`~kshot.models.vlm.VLM`, or :class:`~kshot.models.visual_sentence.VisualSentenceModel`.

    Raises:
        ModelError: no such model, files missing or damaged, not a model of images and text, or a processor that cannot be used; an
            adapter of another model.
        OptionError: an option has an unknown value.
        MissingExtra: an optional package is needed.
    """
    source = str(id_or_path)
    embedded = source in _embedded_names()
    folder = EMBEDDED / source if embedded else Path(source).expanduser()
    place = str(folder) if folder.is_dir() else source
    config_dict = _read_config(source, folder, revision)
    visual = visual_folder(source, folder, config_dict, revision)
    if visual is None:
        _check_architecture(source, config_dict)
    if folder.is_dir():
        _check_files(folder, visual is not None)
    config = _config(place, revision)
    if dtype == "auto" and embedded:
        dtype = "float32"
    weights = partial(
        load_weights,
        place,
        config,
        dtype=dtype_of(dtype),
        device_map=device_map if device_map is not None else default_device(),
        quantization_config=quantization_of(quantization),
        revision=revision,
        attn_implementation=attn_implementation,
    )
    if visual is not None:
        return load_visual(
            place,
            visual,
            config,
            weights=weights,
            rope_table_dtype=rope_table_dtype,
            name=name or Path(source.rstrip("/")).name,
            source=source,
            adapter=str(adapter) if adapter is not None else None,
            context_pictures=context_pictures,
        )
    if rope_table_dtype is not None or context_pictures is not None:
        raise OptionError(
            f"rope_table_dtype and context_pictures are for models of visual sentences, which {source} is not"
        )
    processor = load_processor(place, config, revision=revision)
    model = weights(AutoModelForImageTextToText)
    if adapter is not None:
        model = adapted(model, adapter)
    return VLM(
        model,
        processor,
        name=name or Path(source.rstrip("/")).name,
        source=source,
        prefix_cache=prefix_cache,
        feature_cache=feature_cache,
        feature_folder=feature_folder,
        image_mode=image_mode,
        adapter=str(adapter) if adapter is not None else None,
    )


def skeleton(id_or_path: str | os.PathLike[str], *, revision: str | None = None) -> Any:
    """A model without weights, from its configuration alone (on the device "meta"): for what depends on structure only.

    Args:
        id_or_path, revision: as for :func:`load_model`; a folder need hold no more than config.json.

    Raises:
        ModelError: no such model, or no model of images and text.
    """
    source = str(id_or_path)
    folder = EMBEDDED / source if source in _embedded_names() else Path(source).expanduser()
    _check_architecture(source, _read_config(source, folder, revision))
    config = _config(str(folder) if folder.is_dir() else source, revision)
    try:
        with torch.device("meta"):
            return AutoModelForImageTextToText.from_config(config, trust_remote_code=False).eval()
    except (RuntimeError, ValueError, NotImplementedError) as error:
        raise ModelError(f"{source} cannot be built from its configuration: {sentence_of(error)}") from error


def _embedded_names() -> list[str]:
    return sorted(path.parent.name for path in EMBEDDED.glob("*/config.json"))


def _read_config(source: str, folder: Path, revision: str | None) -> dict[str, Any]:
    """config.json of a folder or a repository, as it is written."""
    if folder.is_dir():
        path = folder / "config.json"
        if (folder / "adapter_config.json").is_file() and not path.is_file():
            raise ModelError(
                f"{folder} holds an adapter, not a model: load its base model, with adapter={folder} (--adapter)"
            )
        if not path.is_file():
            missing = [
                name for name in ("config.json", "model.safetensors", "tokenizer.json") if not (folder / name).is_file()
            ]
            raise ModelError(f"{folder} is no model folder: it has no {', no '.join(missing)}")
    elif folder.exists():
        raise ModelError(f"{source} is a file; a model is a folder (config.json, model.safetensors, tokenizer ...)")
    elif source.startswith((".", "/", "~")) or source.count("/") != 1:
        known = [
            *_embedded_names(),
            *(path.name for path in folder.parent.glob("*/") if (path / "config.json").is_file()),
        ]
        near = difflib.get_close_matches(folder.name, known, n=3, cutoff=0.5)
        hint = (
            f"did you mean {' or '.join(map(repr, near))}?"
            if near
            else "give a folder, a Hub id (owner/name) or 'tiny'"
        )
        raise ModelError(f"no model {source!r}: {hint}")
    else:
        path = _fetch(source, revision)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{path} is no valid JSON: {error}") from None
    if not isinstance(config, dict):
        raise ModelError(f"{path} does not hold a configuration")
    return config


def _fetch(source: str, revision: str | None) -> Path:
    """config.json of a Hub repository."""
    try:
        found = cached_file(source, "config.json", revision=revision)
    except OSError as error:
        offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
        why = (
            "the Hub is switched off (HF_HUB_OFFLINE) and the model is not in the local cache"
            if offline
            else sentence_of(error)
        )
        raise ModelError(
            f"{source!r} is neither a folder here nor available from the Hugging Face Hub: {why}"
        ) from None
    return Path(str(found))


def _check_architecture(source: str, config: dict[str, Any]) -> None:
    """Refuse what is no model of images and text, in words that say what it is.

    Raises:
        ModelError: see the message.
    """
    kind = config.get("model_type")
    if kind is None:
        raise ModelError(f"config.json of {source} has no model_type: it is not a configuration of transformers")
    if kind == "llava" and "vision_config" not in config and "text_config" not in config:
        # The original LLaVA code and its descendants (Link-Context Learning) save a flat Llama configuration under the same name.
        marks = ", ".join(sorted(key for key in config if key.startswith(("mm_", "use_mm"))))
        raise ModelError(
            f"{source} is a checkpoint of the original LLaVA code or of Link-Context Learning, not of transformers: its config.json "
            f"has no vision_config and no text_config{f', but {marks}' if marks else ''}; convert it first: kshot convert lcl "
            f"{source} --vision CLIP --out FOLDER"
        )
    if kind not in CONFIG_MAPPING:
        own = "; it brings code of its own, which is never run" if config.get("auto_map") else ""
        raise ModelError(f"{source}: transformers {transformers_version} has no architecture {kind!r}{own}")
    if kind not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        what = "a text-only model" if kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES else "no model of images and text"
        names = ", ".join(config.get("architectures") or []) or kind
        raise ModelError(f"{source} is {what} ({names}); few-shot evaluation needs a vision-language model")


def _check_files(folder: Path, visual: bool = False) -> None:
    """Weights and tokenizer must be there, all shards of the index included."""
    problems = []
    if not any((folder / name).is_file() for name in WEIGHTS):
        pickled = any(folder.glob("pytorch_model*.bin"))
        problems.append(
            "model.safetensors" + (" (pickled weights are not read: save them as safetensors)" if pickled else "")
        )
    elif not (folder / WEIGHTS[0]).is_file():
        try:
            shards = set(json.loads((folder / WEIGHTS[1]).read_text(encoding="utf-8"))["weight_map"].values())
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, AttributeError, TypeError):
            raise ModelError(f"{folder / WEIGHTS[1]} is damaged") from None
        problems += sorted(name for name in shards if not (folder / name).is_file())
    if visual:
        if problems:
            raise ModelError(f"{folder} is not complete; missing: {', '.join(problems)}")
        return
    tokenizers = ("tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json")
    if not any((folder / name).is_file() for name in tokenizers):
        problems.append("tokenizer.json")
    if not any((folder / name).is_file() for name in ("processor_config.json", "preprocessor_config.json")):
        problems.append("processor_config.json or preprocessor_config.json (save the processor beside the weights)")
    if problems:
        raise ModelError(f"{folder} is not complete; missing: {', '.join(problems)}")


def _config(place: str, revision: str | None) -> PretrainedConfig:
    try:
        return AutoConfig.from_pretrained(place, revision=revision, trust_remote_code=False)
    except Exception as error:  # configurations check themselves, each in its own way
        raise ModelError(f"config.json of {place} is not valid: {sentence_of(error)}") from error


__all__ = ["EMBEDDED", "Quantization", "load_model", "quiet_unless_watched", "skeleton"]
