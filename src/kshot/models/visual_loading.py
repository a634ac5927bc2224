"""Loading a model of visual sentences: a language model's folder with ``visual_processor.json`` and ``vq/`` in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import cached_file

from kshot.errors import ModelError
from kshot.models.adapters import adapted
from kshot.models.rope_table import ROPE_TABLE, RopeTable, use_rope_table
from kshot.models.soft_prompts import is_soft
from kshot.models.visual_sentence import VisualSentenceModel
from kshot.visual.processor import VisualSentenceProcessor

PROCESSOR = "visual_processor.json"
FILES = (PROCESSOR, "vq/config.json", "vq/diffusion_pytorch_model.safetensors")
TEXT = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")


def visual_folder(source: str, folder: Path, config: dict[str, Any], revision: str | None) -> Path | None:
    """Where a model's visual processor is; ``None`` if the model is none of visual sentences.

    Args:
        source: folder or Hub id as the user gave it.
        folder: the folder, if it is one.
        config: the model's config.json.
        revision: of a Hub repository.

    Raises:
        ModelError: the weights are those of a language model without any tokenizer, as LVM's are published.
    """
    if config.get("model_type") not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return None
    if folder.is_dir():
        if (folder / PROCESSOR).is_file():
            return folder
        if not any((folder / name).is_file() for name in TEXT):
            raise ModelError(
                f"{source} holds a language model ({_architecture(config)}) and neither a text tokenizer nor {PROCESSOR}; if these "
                "are the weights of a model of visual sentences (LVM), put its visual tokenizer beside them: kshot convert lvm "
                f"{source} --tokenizer VQ_FOLDER --out FOLDER"
            )
        return None
    try:
        found = [cached_file(source, name, revision=revision) for name in FILES]
    except OSError:  # a model of text only, about which the caller has more to say
        return None
    return Path(str(found[0])).parent


def load_visual(
    place: str,
    folder: Path,
    config: PretrainedConfig,
    *,
    weights: Any,
    rope_table_dtype: RopeTable | None,
    name: str,
    source: str,
    adapter: str | None,
    context_pictures: int | None,
) -> VisualSentenceModel:
    """The model and its processor.

    Args:
        place: folder or Hub id of the weights.
        folder: where the visual processor is.
        config: of the language model.
        weights: loads them: called with the class that does it.
        rope_table_dtype: of rotary angles; default: what config.json says.
        name, source, adapter, context_pictures: see :class:`~kshot.models.visual_sentence.VisualSentenceModel`.

    Raises:
        ModelError: weights, processor and adapter do not belong together, or files are missing or damaged.
    """
    processor = VisualSentenceProcessor.from_pretrained(folder)
    processor.check_vocabulary(config.get_text_config().vocab_size, place)
    model = weights(AutoModelForCausalLM)
    if rope_table_dtype is not None or getattr(config, ROPE_TABLE, None):
        use_rope_table(model, rope_table_dtype)
    processor.tokenizer.vq.to(model.device)
    if adapter is not None:
        model = adapted(model, adapter)
        if is_soft(model):
            raise ModelError(
                f"the adapter {adapter} stands before the prompt, where models of visual sentences read nothing"
            )
    return VisualSentenceModel(
        model, processor, name=name, source=source, adapter=adapter, context_pictures=context_pictures
    )


def _architecture(config: dict[str, Any]) -> str:
    return ", ".join(config.get("architectures") or []) or str(config.get("model_type"))
