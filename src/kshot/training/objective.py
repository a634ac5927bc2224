"""What is trained, on which data, with which loss: all that the one Trainer does not know by itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn


class Objective(ABC):
    """One kind of training.

    The data are items that depend on (epoch, index) and on nothing else. The loss of an optimiser step is the sum of
    :meth:`loss` over all its batches, on all ranks, divided by the sum of their :meth:`amount`: it does not depend on how the
    items of a step are divided into batches and ranks. Losses that are means over different things (tokens, queries) are given as
    a vector of sums, with a vector of amounts; their quotients are added up.

    Attributes:
        model: the module whose parameters are trained.
    """

    model: nn.Module

    @abstractmethod
    def __len__(self) -> int:
        """Items in an epoch."""

    @abstractmethod
    def item(self, epoch: int, index: int) -> Any:
        """Item ``index`` of an epoch: always the same one for the same arguments. Called in loader workers."""

    @abstractmethod
    def collate(self, items: Sequence[Any]) -> dict[str, Any]:
        """A batch of items, on the CPU. Called in loader workers."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Mapping[str, Any]) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The loss of a batch, *summed* over what :meth:`amount` counts, and parts of it to be logged (their means).

        A scalar, or a vector of as many sums as :meth:`amount` has entries.

        Args:
            model: :attr:`model`, perhaps wrapped (distributed training).
            batch: what :meth:`collate` made, on the model's device.
        """

    def amount(self, batch: Mapping[str, Any]) -> float | Sequence[float]:
        """What the loss of a batch is summed over (graded tokens, say). Default: 1, for losses that are means."""
        return 1.0

    def blank(self, batch: dict[str, Any]) -> dict[str, Any]:
        """A batch like this one with nothing to learn, whose :meth:`amount` is 0: for a rank for which no items are left.

        Default: the batch itself, so that its items count once more.
        """
        return batch

    def order(self, epoch: int) -> Sequence[int]:
        """The indices of an epoch in the order in which they are used. Default: as they come."""
        return range(len(self))

    def rate_factor(self) -> Callable[[int], float] | None:
        """What learning rates are multiplied by in each optimiser step (from 0). Default: the Trainer's own schedule."""
        return None

    def decayed(self, model: nn.Module) -> list[str] | None:
        """The names of parameters that decay. Default: as in transformers, all but biases and norms."""
        return None

    def progress(self, step: int) -> Mapping[str, float]:
        """What the log says beside the loss after so many optimiser steps. Default: nothing."""
        return {}
