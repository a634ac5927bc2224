"""What training-free methods measure: activations at the ends of prompts, and log-probabilities of answers.

Prompts are padded on the left, so what belongs to a prompt's last token stands in the last column. Hooks are removed again whatever
happens.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import nn
from tqdm import tqdm

from kshot.episode import Episode
from kshot.methods.reading import CUE
from kshot.models.base import PromptStyle
from kshot.models.batching import BatchRunner
from kshot.models.encoding import EncodedPrompt
from kshot.models.prefix import continue_forward
from kshot.models.visual_prompts import picture_answer
from kshot.models.visual_sentence import VisualSentenceModel
from kshot.models.vlm import VLM
from kshot.prompt import Template

T = TypeVar("T")


def bar(items: Sequence[T], doing: str) -> Iterator[T]:
    """The items, with a progress bar where someone watches."""
    yield from tqdm(items, desc=doing, leave=False, disable=not sys.stderr.isatty())


def output_ends(
    vlm: VLM | VisualSentenceModel, modules: Sequence[nn.Module], prompts: Sequence[EncodedPrompt], batch_size: int
) -> list[torch.Tensor]:
    """Outputs of modules at the last token of prompts: for each module ``[prompts, width]``, float32, on the CPU."""
    return _ends(vlm, modules, prompts, batch_size, inputs=False)


def inputs_ends(
    vlm: VLM | VisualSentenceModel, modules: Sequence[nn.Module], prompts: Sequence[EncodedPrompt], batch_size: int
) -> list[torch.Tensor]:
    """Inputs of modules at the last token of prompts: for each module ``[prompts, width]``, float32, on the CPU."""
    return _ends(vlm, modules, prompts, batch_size, inputs=True)


@torch.no_grad()
def _ends(
    vlm: VLM | VisualSentenceModel,
    modules: Sequence[nn.Module],
    prompts: Sequence[EncodedPrompt],
    batch_size: int,
    inputs: bool,
) -> list[torch.Tensor]:
    caught: list[torch.Tensor] = [torch.empty(0)] * len(modules)

    def keep(number: int, states: Any) -> None:
        hidden = states if isinstance(states, torch.Tensor) else states[0]
        caught[number] = hidden[:, -1].detach().float().cpu()

    def listen(number: int, module: nn.Module) -> Any:
        if inputs:
            return module.register_forward_pre_hook(lambda m, given: keep(number, given))
        return module.register_forward_hook(lambda m, given, output: keep(number, output))

    handles = [listen(number, module) for number, module in enumerate(modules)]
    with tqdm(total=len(prompts), desc="measuring", leave=False, disable=not sys.stderr.isatty()) as progress:

        def work(batch: list[int]) -> list[torch.Tensor]:
            forward(vlm, [prompts[i] for i in batch])
            progress.update(len(batch))
            return list(torch.stack(caught, 1))  # [batch, modules, width]

        try:
            found = BatchRunner(batch_size).run([len(prompt) for prompt in prompts], work, kinds(vlm, prompts))
        finally:
            for handle in handles:
                handle.remove()
    return list(torch.stack(found, 1))


def encoded(
    vlm: VLM | VisualSentenceModel,
    episode: Episode,
    template: Template | None = None,
    style: PromptStyle = "auto",
    *,
    answered: bool = False,
) -> EncodedPrompt:
    """An episode's prompt; with ``answered``, the query's answer stands behind it, a text or a picture.

    Raises:
        DataError: it has no answer of the model's kind.
    """
    if isinstance(vlm, VisualSentenceModel):
        return vlm.encode(episode, answer=picture_answer(episode.query) if answered else None)
    return vlm.encode(episode, template, style, answer=episode.query.text_answer if answered else None)


def forward(vlm: VLM | VisualSentenceModel, batch: Sequence[EncodedPrompt], keep: int = 1) -> torch.Tensor:
    """Logits of the last ``keep`` tokens of prompts that are read from their beginning, ``[batch, keep, vocabulary]``."""
    logits: torch.Tensor = vlm.model(**vlm.reuse.inputs(batch), logits_to_keep=keep, use_cache=False).logits
    return logits[:, -keep:]


def forward_many(vlm: VLM | VisualSentenceModel, prompt: EncodedPrompt, rows: int) -> torch.Tensor:
    """Logits of the last token of ``rows`` copies of a prompt, whose beginning is read once where the model allows it."""
    found = []
    for group in vlm.reuse.groups([prompt] * rows):
        inputs = vlm.reuse.inputs(group.prompts, group.prefix)
        given = (
            inputs | {"use_cache": False} if group.prefix is None else continue_forward(vlm.model, group.prefix, inputs)
        )
        found.append(vlm.model(**given, logits_to_keep=1).logits[:, -1])
    return torch.cat(found)


def kinds(vlm: VLM | VisualSentenceModel, prompts: Sequence[EncodedPrompt]) -> list[int]:
    """Prompts of different kinds must not be in one batch."""
    return [len(prompt.pictures) if vlm.encoder.dialect.equal_counts else 0 for prompt in prompts]


def log_probabilities(
    vlm: VLM | VisualSentenceModel, prompts: Sequence[EncodedPrompt], batch_size: int
) -> torch.Tensor:
    """Log-probabilities ``[prompts]`` of the answers at the ends of prompts, each summed over its tokens."""

    def work(batch: list[int]) -> list[torch.Tensor]:
        return list(answer_log_probabilities(vlm, [prompts[i] for i in batch]))

    return torch.stack(BatchRunner(batch_size).run([len(p) for p in prompts], work, kinds(vlm, prompts)))


def answer_log_probabilities(vlm: VLM | VisualSentenceModel, batch: Sequence[EncodedPrompt]) -> torch.Tensor:
    """As :func:`log_probabilities`, for one batch; gradients flow through it."""
    masks = [encoded.tokens.answer_mask() for encoded in batch]
    keep = max(answer_length(encoded) for encoded in batch)
    logits = forward(vlm, batch, keep + 1)[:, :-1]
    ids = vlm.encoder.pad([encoded.tokens.ids for encoded in batch])[0][:, -keep:].to(logits.device)
    wanted = vlm.encoder.pad([[int(spoken) for spoken in mask] for mask in masks], 0)[0][:, -keep:].to(logits.device)
    chosen = logits.float().log_softmax(-1).gather(-1, ids.unsqueeze(-1)).squeeze(-1)
    return (chosen * wanted).sum(-1)


def answer_length(encoded: EncodedPrompt) -> int:
    """Number of tokens from the first of the answer to the prompt's end."""
    span = encoded.tokens.span("answer")
    return len(encoded) - span[0] if span else 0


def answer_cue(
    vlm: VLM | VisualSentenceModel,
    episodes: Sequence[Episode],
    template: Template | None = None,
    style: PromptStyle = "auto",
) -> list[int]:
    """The ids of the tokens with which all prompts of a task end, before the answer; see :mod:`kshot.methods.reading`.

    Args:
        vlm: the model.
        episodes: a few of the task's; the more their queries differ, the better. Known answers are used: where the tokenizer
            joins the prompt's last character with the answer's first, the cue ends before that token.

    Returns:
        At most :data:`~kshot.methods.reading.CUE` ids; none if the prompts have no common end. For prompts of pictures, the negative
        number of a picture's tokens.
    """
    if isinstance(vlm, VisualSentenceModel):  # a prompt ends with a picture, and which one differs
        return [-vlm.tokens]
    prompts = []
    # Where all ask the same, the question would be taken for a part of the cue.
    others = [replace(e, query=e.query.with_(question=text)) for e in episodes[:1] for text in ("Which one", "2 or 3?")]
    for episode in (*episodes[:16], *others):
        ids = vlm.encode(episode, template, style).tokens.ids
        if isinstance(episode.query.answer, str):
            answered = vlm.encode(episode, template, style, answer=episode.query.text_answer).tokens
            start = answered.span("answer")
            end = start[0] if start else len(ids)
            ids = ids[: next((i for i in range(min(end, len(ids))) if ids[i] != answered.ids[i]), min(end, len(ids)))]
        prompts.append(ids)
    if not prompts:
        return []
    common = 0
    while common < min(CUE, *(len(ids) for ids in prompts)) and len({ids[-1 - common] for ids in prompts}) == 1:
        common += 1
    return list(prompts[0][len(prompts[0]) - common :])


@contextmanager
def hooks(handles: Sequence[Any]) -> Iterator[None]:
    """Remove hooks in the end."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
