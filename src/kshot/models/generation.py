"""How text is generated: settings that are the same every time, and stop texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from transformers import GenerationConfig, StoppingCriteria


def deterministic_settings(
    model: Any, tokenizer: Any, *, pad_id: int, max_new_tokens: int, num_beams: int, length_penalty: float
) -> GenerationConfig:
    """Greedy or beam search: of the model's own settings, only its special tokens and those it must not say are kept."""
    own = model.generation_config
    eos = own.eos_token_id if own.eos_token_id is not None else tokenizer.eos_token_id
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=num_beams,
        length_penalty=length_penalty if num_beams > 1 else 1.0,  # greedy search has no use for it, and warns
        bos_token_id=own.bos_token_id if own.bos_token_id is not None else tokenizer.bos_token_id,
        eos_token_id=eos,
        pad_token_id=pad_id,
        suppress_tokens=own.suppress_tokens,
    )


class StopTexts(StoppingCriteria):
    """Ends a row of a batch as soon as its new text holds one of the stop texts.

    Args:
        tokenizer: decodes the new tokens.
        texts: the stop texts.
        start: number of tokens of the prompts.
    """

    def __init__(self, tokenizer: Any, texts: Sequence[str], start: int):
        self.tokenizer, self.texts, self.start = tokenizer, tuple(texts), start

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.BoolTensor:
        said = self.tokenizer.batch_decode(input_ids[:, self.start :], skip_special_tokens=True)
        done = [any(text in row for text in self.texts) for row in said]
        return cast("torch.BoolTensor", torch.tensor(done, device=input_ids.device))


@contextmanager
def only_these_settings(model: Any, settings: GenerationConfig) -> Iterator[None]:
    """Let ``generate`` use these settings alone; given as an argument, their gaps would be filled from the model's own."""
    own, model.generation_config = model.generation_config, settings
    try:
        yield
    finally:
        model.generation_config = own
