"""The trained visual model as a plain folder, in half precision."""

from __future__ import annotations

import os
from copy import deepcopy
from pathlib import Path

from transformers import GenerationConfig, LlamaForCausalLM

from kshot.visual.processor import FOLDER, VisualSentenceProcessor
from kshot.visual.tokenizer import VisualTokenizer
from kshot.visual.vq_files import write_vq


def export_visual(
    llama: LlamaForCausalLM, tokenizer: VisualTokenizer, out: str | os.PathLike[str], *, vocabulary: int
) -> Path:
    """Write language model, tokenizer and processor; returns the folder. ``llama`` is converted to float16 in place.

    The tokenizer must hold weights that half precision can represent, for its fingerprint is that of the weights on disk.
    """
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    processor = VisualSentenceProcessor(tokenizer, vocab_size=vocabulary, begins=True)
    llama.generation_config = GenerationConfig(
        bos_token_id=processor.bos_token_id, eos_token_id=None, pad_token_id=processor.pad_token_id, do_sample=False
    )
    llama.half().save_pretrained(folder)
    processor.save_pretrained(folder)
    write_vq(deepcopy(tokenizer.vq).half(), folder / FOLDER)  # the same values in half the space
    for weights in folder.rglob("*.safetensors"):
        weights.chmod(0o644)  # they are written readable by their owner only
    return folder
