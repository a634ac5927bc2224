"""What training on token stores begins with: a model with random weights or a trained one, and the tokenizer that goes with it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import LlamaForCausalLM

from kshot.convert.weights import read_json
from kshot.errors import ModelError, OptionError
from kshot.models.loading import quiet_unless_watched
from kshot.models.rope_table import ROPE_TABLE, RopeTable, use_rope_table
from kshot.models.visual_presets import codes_of, new_visual_model, visual_config, visual_generation
from kshot.visual.processor import PROCESSOR, VisualSentenceProcessor
from kshot.visual.store import TokenizerRecord, check_same_tokenizer, open_stores
from kshot.visual.tokenizer import VisualTokenizer


@dataclass
class Start:
    """What training begins with.

    Attributes:
        model: its weights are float32, whatever it is computed in: so is the optimiser's state.
        processor: saved beside the weights; ``None`` if nobody knows the tokenizer.
        codes: of the tokenizer.
        length: tokens a row.
        identity: for the record of the run.
    """

    model: LlamaForCausalLM
    processor: VisualSentenceProcessor | None
    codes: int
    length: int
    identity: dict[str, Any]


def open_start(
    stores: Sequence[str],
    preset: str | None,
    model: str | None,
    tokenizer: str | None,
    length: int | None,
    table: RopeTable | None,
    seed: int,
) -> Start:
    """The model with its tokenizer, checked against the stores.

    Raises:
        OptionError, ModelError, DataError: see :func:`pretrain`.
    """
    if (preset is None) == (model is None):
        raise OptionError("give either a preset (tiny, 100m, 300m ...) or a model to go on from")
    opened = open_stores(stores)
    record = check_same_tokenizer(opened)
    folder = None if model is None else Path(model).expanduser()
    visual = _tokenizer(tokenizer, folder)
    if folder is not None:
        made = _load(folder)
        codes = codes_of(made.config)
        use_rope_table(made, table)
    else:
        codes = record.codes
        made = new_visual_model(visual_config(str(preset), codes, rope_table_dtype=table or "float32"), seed=seed)
    for held in opened:
        held.check(fingerprint=None if visual is None else visual.fingerprint, vocab_size=made.config.vocab_size)
    if visual is not None and (why := record.difference(TokenizerRecord.of(visual))) is not None:
        raise ModelError(
            f"{stores[0]} holds tokens of another tokenizer than the one that is given ({why}): use the one it goes with"
        )
    if codes != record.codes:
        raise ModelError(
            f"{stores[0]} holds tokens of {record.codes:,} codes, but the model has {codes:,}: tokenize with the model's tokenizer"
        )
    made.generation_config = visual_generation(made.config, codes)
    size = length if length is not None else int(made.config.max_position_embeddings)
    if size > made.config.max_position_embeddings:
        raise OptionError(f"length={size:,}: the model's context has {made.config.max_position_embeddings:,} tokens")
    processor = None if visual is None else VisualSentenceProcessor(visual, made.config.vocab_size)
    identity = {
        "start": preset if folder is None else folder.resolve().name,
        "config": {key: value for key, value in made.config.to_diff_dict().items() if key != "transformers_version"},
        ROPE_TABLE: getattr(made.config, ROPE_TABLE),
    }
    if folder is not None:
        identity["weights"] = _digest(made)
    return Start(made, processor, codes, size, identity)


def _tokenizer(given: str | None, folder: Path | None) -> VisualTokenizer | None:
    place = folder if given is None else Path(given).expanduser()
    if place is None or (given is None and not (place / PROCESSOR).is_file()):
        return None
    if (place / PROCESSOR).is_file():
        return VisualSentenceProcessor.from_pretrained(place).tokenizer
    return VisualTokenizer.from_pretrained(place)


def _load(folder: Path) -> LlamaForCausalLM:
    """A trained model in float32.

    Raises:
        ModelError: it is not there, damaged, incomplete or of another architecture.
    """
    kind = read_json(folder / "config.json").get("model_type")
    if kind != "llama":
        raise ModelError(f"{folder} is no folder of a visual model: its model type is {kind!r}, not 'llama'")
    try:
        with quiet_unless_watched():
            loaded: Any = LlamaForCausalLM.from_pretrained(
                folder, dtype=torch.float32, use_safetensors=True, output_loading_info=True
            )
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        raise ModelError(f"the weights of {folder} cannot be loaded: {str(error).splitlines()[0]}") from error
    made, report = loaded
    if report["missing_keys"]:
        raise ModelError(
            f"the weights of {folder} are not complete: {', '.join(sorted(report['missing_keys'])[:3])} are missing"
        )
    held: LlamaForCausalLM = made
    return held


def _digest(model: nn.Module) -> str:
    hasher = hashlib.blake2b(digest_size=16)
    for name, tensor in model.state_dict().items():
        hasher.update(name.encode())
        hasher.update(tensor.detach().contiguous().view(torch.uint8).numpy().data)
    return hasher.hexdigest()


def with_lora(
    model: LlamaForCausalLM, lora: Mapping[str, Any], trainer: Mapping[str, Any], seed: int, name: str
) -> Any:
    """A LoRA model around the model.

    Raises:
        OptionError: options that PEFT refuses.
    """
    from peft import LoraConfig, get_peft_model

    linear = [
        f"model.layers.{part}" for part, module in model.model.layers.named_modules() if isinstance(module, nn.Linear)
    ]
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            made = get_peft_model(model, LoraConfig(**{"r": 16, "lora_alpha": 32, "target_modules": linear, **lora}))
    except (TypeError, ValueError) as error:
        raise OptionError(f"lora: {error}") from error
    for settings in made.peft_config.values():
        settings.base_model_name_or_path = name
    if trainer.get("gradient_checkpointing") or trainer.get("activation_checkpointing"):
        made.enable_input_require_grads()
    return made
