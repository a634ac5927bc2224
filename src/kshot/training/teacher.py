"""The teacher: the frozen model, its adapter switched off, with demonstrations in the prompt.

Only what is compared is kept of its pass: the distributions of the answer's tokens (the head is applied nowhere else) and the hidden
states of query and answer. Memory therefore grows with these, not with the length of the demonstrations times the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from kshot.models.encoding import EncodedPrompt
from kshot.models.soft_prompts import is_soft
from kshot.models.visual_sentence import VisualSentenceModel
from kshot.models.vlm import VLM
from kshot.training.alignment import Row, Watch
from kshot.training.distill_losses import Losses, most_probable
from kshot.training.teacher_cache import OVERHEAD, Signals


class Teacher:
    """Says what the student is to learn.

    Args:
        vlm: the model.
        model: the model of PEFT around it, or ``None`` if it has no adapter.
        losses: what is asked for.
        watch: reads hidden states; needed for ``losses.align``.
        top: number of log-probabilities that are kept of each token; ``None``: all.
        inputs: what the model takes for prompts.
    """

    def __init__(
        self,
        vlm: VLM | VisualSentenceModel,
        model: Any,
        losses: Losses,
        watch: Watch | None,
        *,
        top: int | None = None,
        inputs: Callable[[Sequence[EncodedPrompt]], dict[str, Any]] | None = None,
    ):
        self.vlm, self.model, self.losses, self.watch, self.top = vlm, model, losses, watch, top
        self.inputs = inputs or vlm.reuse.inputs

    @torch.no_grad()
    def signals(self, rows: Sequence[Row]) -> list[Signals]:
        """What the teacher says of each of some prompts, read together."""
        keep = max(len(row.answer) for row in rows)
        span = max(row.span for row in rows)
        recording: AbstractContextManager[list[Tensor]] = nullcontext([])
        if self.losses.align and self.watch is not None:
            recording = self.watch.record(span, detach=True)
        with self._frozen(), recording as states:
            logits = answer_logits(self.vlm, self.vlm.model, self.inputs([row.prompt for row in rows]), keep)
        found: list[Signals] = []
        for number, row in enumerate(rows):
            log_probs = indices = held = None
            if self.losses.kl:
                log_probs, indices = most_probable(logits[number][wanted(row, keep)], self.losses.temperature, self.top)
            if states:
                held = torch.stack([layer[number, -row.span :] for layer in states])
            found.append(Signals(log_probs, indices, held))
        return found

    def size(self, row: Row) -> int:
        """Bytes that are kept of a prompt in a cache."""
        total = OVERHEAD
        if self.losses.kl:
            vocabulary = int(self.vlm.model.get_output_embeddings().weight.shape[0])
            each = 4 * vocabulary if self.top is None or self.top >= vocabulary else 12 * self.top + 4
            total += each * len(row.targets)
        if self.losses.align and self.watch is not None:
            total += 2 * len(self.watch.modules) * row.span * self.watch.width
        return total

    def describe(self) -> dict[str, Any]:
        """What is kept of each prompt; equal for all methods that ask for the same."""
        held: dict[str, Any] = {}
        if self.losses.kl:
            held |= {"temperature": self.losses.temperature, "top": self.top}
        if self.losses.align and self.watch is not None:
            names = {id(module): name for name, module in self.vlm.model.named_modules()}
            held |= {"states": [names[id(module)] for module in self.watch.modules]}
        return held

    def _frozen(self) -> AbstractContextManager[Any]:
        """The base model as it answers: adapter off, no dropout."""
        return _Frozen(self.vlm.model, self.model)


class _Frozen:
    """Switches adapter and training mode off, and on again."""

    def __init__(self, base: nn.Module, outer: Any):
        self.base, self.outer = base, outer

    def __enter__(self) -> None:
        self.training = {id(module) for module in self.base.modules() if module.training}
        self.base.eval()
        # Soft prompts stand outside the base model, which is called directly.
        inside = self.outer is not None and not is_soft(self.outer)
        self.off = self.outer.disable_adapter() if inside else nullcontext()
        self.off.__enter__()

    def __exit__(self, *reason: Any) -> None:
        self.off.__exit__(*reason)
        for module in self.base.modules():
            module.training = id(module) in self.training


def answer_logits(vlm: VLM | VisualSentenceModel, model: Any, inputs: dict[str, Any], keep: int) -> Tensor:
    """Logits that tell each of the last ``keep`` tokens, ``[batch, keep, vocabulary]``; the head is applied nowhere else."""
    options: dict[str, Any] = {"use_cache": False}
    if "logits_to_keep" in vlm.encoder.accepted:
        options["logits_to_keep"] = keep + 1
    logits: Tensor = model(**inputs, **options).logits
    return logits[:, -keep - 1 : -1]


def wanted(row: Row, keep: int) -> list[int]:
    """Which of the last ``keep`` positions tell the tokens of a row's answer."""
    first = keep - len(row.answer)
    return [first + place for place, spoken in enumerate(row.answer) if spoken]
