"""Adapters of PEFT in a loaded model."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers.utils import cached_file

from kshot.errors import ModelError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def adapted(model: Any, adapter: str | os.PathLike[str]) -> Any:
    """The model with an adapter (not merged into its weights, so that quantized models can have one, too).

    Args:
        model: a model of transformers; it is changed.
        adapter: a folder with ``adapter_config.json`` and ``adapter_model.safetensors``, or a Hub id.

    Returns:
        The same model, with the adapter in its layers. For prompt tuning and prefix tuning, which stand outside the layers: the model
        of PEFT around it, as :class:`~kshot.models.vlm.VLM` takes it.

    Raises:
        ModelError: files are missing or damaged, or the adapter belongs to another model.
    """
    from peft import PeftModel, get_peft_model_state_dict

    folder = _folder(str(adapter))
    _check_record(folder, model)
    try:
        with safe_open(folder / WEIGHTS, "pt") as file:
            held = set(file.keys())
        with warnings.catch_warnings():  # said below as an error
            warnings.filterwarnings("ignore", "Found missing adapter keys", UserWarning)
            outer = PeftModel.from_pretrained(model, folder)
    except (OSError, SafetensorError, RuntimeError, ValueError, TypeError, KeyError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ModelError(
            f"the adapter {adapter} cannot be put into {type(model).__name__}; was it trained on this model? "
            f"({': '.join(lines[:2]) or type(error).__name__})"
        ) from error
    # Without embeddings: to see whether a vocabulary has grown, PEFT looks for the base model by its name, on the Hub if need be.
    wanted = set(get_peft_model_state_dict(outer, save_embedding_layers=False))
    if held > wanted:
        wanted = set(get_peft_model_state_dict(outer))
    if held != wanted:  # PEFT would go on with what fits
        odd = sorted(held ^ wanted)
        raise ModelError(
            f"the adapter {adapter} was trained on another model: {len(held - wanted)} of its weights have no place here, "
            f"{len(wanted - held)} are missing ({odd[0]} ...)"
        )
    return outer if outer.active_peft_config.is_prompt_learning else outer.get_base_model()


def _folder(adapter: str) -> Path:
    """Where the adapter's files are.

    Raises:
        ModelError: they are not.
    """
    folder = Path(adapter).expanduser()
    if not folder.is_dir() and adapter.count("/") == 1 and not adapter.startswith((".", "/", "~")):
        try:
            cached_file(adapter, CONFIG)
            return Path(str(cached_file(adapter, WEIGHTS))).parent
        except OSError as error:
            lines = str(error).splitlines() or [type(error).__name__]
            raise ModelError(f"the adapter {adapter!r} is neither a folder here nor on the Hub: {lines[0]}") from None
    missing = [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]
    if missing:
        what = "a model, not an adapter" if (folder / "config.json").is_file() else "no adapter"
        raise ModelError(f"{adapter} is {what}: it has no {', no '.join(missing)}")
    return folder


def _check_record(folder: Path, model: Any) -> None:
    """Compare with the model that the adapter was trained on, if the folder tells (PEFT would take any with layers of such names).

    Raises:
        ModelError: it was another one.
    """
    path = folder / "training" / "config.json"
    if not path.is_file():
        return
    try:
        trained = json.loads(path.read_text(encoding="utf-8"))["config"]["model"]
        then = trained["architecture"], int(trained["parameters"])
        quantized = bool(trained["quantization"])
    except (OSError, ValueError, LookupError, TypeError):
        raise ModelError(f"{path} is damaged") from None
    now = type(model).__name__, sum(p.numel() for p in model.parameters())
    # Quantized weights are counted as they are stored, several in one.
    counted = not quantized and getattr(model.config, "quantization_config", None) is None
    if then[0] != now[0] or (counted and then != now):
        raise ModelError(
            f"the adapter {folder} was trained on another model: {then[0]} with {then[1]:,} parameters, not {now[0]} with {now[1]:,}"
        )
