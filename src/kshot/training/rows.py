"""Learning rows of tokens: the next token of visual sentences."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kshot.training.objective import Objective
from kshot.training.token_schedule import TokenSchedule

IGNORED = -100
NO_DECAY = re.compile(r"(^|\.)(\w*norm|\w*layernorm|embed_tokens)\.|\.bias$")
"""Norms and the embedding (not the head, which is a matrix of its own)."""


class Rows(Protocol):
    """Rows of equal length; see :mod:`kshot.visual.loader`. Row ``i`` depends on ``i`` only."""

    def __getitem__(self, number: int, /) -> Any: ...


class RowObjective(Objective):
    """Cross-entropy of the next token, over all graded tokens of an optimiser step alike.

    The logits are those of all ids of the vocabulary, as upstream's; sums are made in float32.

    Args:
        model: ``LlamaForCausalLM``, or a PEFT model around one.
        rows: ``input_ids``, ``position_ids`` and ``shift_labels`` (what each position must predict, or -100) [tokens].
        count: rows of the whole run.
        schedule: the learning rate by tokens.
        decay_all: let norms and the embedding decay as well, as upstream does.
    """

    def __init__(self, model: nn.Module, rows: Rows, count: int, schedule: TokenSchedule, *, decay_all: bool = False):
        self.model, self.rows, self.count, self.schedule, self.decay_all = model, rows, count, schedule, decay_all
        # Kernels of flash attention find borders of documents in one row only; the others, in each row of a batch.
        self.flat = "flash" in str(getattr(getattr(model, "config", None), "_attn_implementation", ""))

    def __len__(self) -> int:
        return self.count

    def item(self, epoch: int, index: int) -> Mapping[str, Tensor]:
        return self.rows[index]

    def collate(self, items: Sequence[Mapping[str, Tensor]]) -> dict[str, Any]:
        names = {"input_ids": "input_ids", "position_ids": "position_ids", "shift_labels": "targets"}
        batch = {new: torch.stack([item[name] for item in items]) for name, new in names.items()}
        return {name: tensor.reshape(1, -1) for name, tensor in batch.items()} if self.flat else batch

    def loss(self, model: nn.Module, batch: Mapping[str, Any]) -> tuple[Tensor, Mapping[str, Tensor]]:
        # No mask: that positions begin anew is what keeps sentences from seeing each other.
        made = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False)
        targets = batch["targets"].reshape(-1)
        logits = made.logits.reshape(len(targets), -1)
        total = F.cross_entropy(logits.float(), targets, ignore_index=IGNORED, reduction="sum")
        right = (logits.detach().argmax(-1) == targets).sum()  # never where nothing is graded
        return total, {"accuracy": right / (targets != IGNORED).sum().clamp_min(1)}

    def amount(self, batch: Mapping[str, Any]) -> float:
        return float((batch["targets"] != IGNORED).sum())

    def blank(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {**batch, "targets": torch.full_like(batch["targets"], IGNORED)}

    def rate_factor(self) -> Callable[[int], float]:
        return self.schedule.factor

    def decayed(self, model: nn.Module) -> list[str]:
        return [name for name, _ in model.named_parameters() if self.decay_all or not NO_DECAY.search(name)]

    def progress(self, step: int) -> Mapping[str, float]:
        return {"tokens": round(self.schedule.tokens(step))}
