"""Which epoch is kept: the one that answers examples best that were held out of the support set. Test queries are never looked at."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from kshot.training.trainer import writing
from kshot.whole_file import whole_file, write_text

FIGURES = "epochs.json"
EXAMINATIONS = 15
"""Of many short epochs, so many are examined: it costs a pass over all that is held out."""


class EpochChoice(TrainerCallback):
    """Examines the adapter after each epoch (of very many: every so often, and after the last), and keeps the best.

    Its files lie beside the checkpoints, so that a resumed run knows of all epochs.

    Args:
        folder: of the run.
        state: gives the adapter's parameters.
        examine: gives figures of the adapter as it is; the greatest ``score`` is the best.
        leads: whether this process writes.
    """

    def __init__(
        self,
        folder: Path,
        state: Callable[[], Mapping[str, torch.Tensor]],
        examine: Callable[[], dict[str, float]],
        *,
        leads: bool,
    ):
        self.folder, self.state, self.examine, self.leads = folder, state, examine, leads
        self.figures: dict[str, dict[str, float]] = {}

    @property
    def best(self) -> str | None:
        """The best epoch so far; of equal ones, the earliest."""
        return max(self.figures, key=lambda epoch: (self.figures[epoch]["score"], -float(epoch)), default=None)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        path = self.folder / FIGURES
        held = json.loads(path.read_text(encoding="utf-8")) if path.exists() and state.global_step else {}
        # Epochs behind the checkpoint that the run goes on from will be seen again.
        self.figures = {epoch: figures for epoch, figures in held.items() if float(epoch) <= (state.epoch or 0.0)}
        if state.global_step and float(state.epoch or 0.0).is_integer() and _due(state):
            self._look(state.epoch)  # killed between the last step of an epoch and its examination

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if _due(state):
            self._look(state.epoch)

    def _look(self, epoch: float) -> None:
        name = f"{epoch:g}"
        if name in self.figures:
            return
        with torch.random.fork_rng():
            self.figures[name] = self.examine()
        if not self.leads:
            return
        with writing(self.folder, "free some space; the same command goes on"):
            if self.best == name:
                held = {key: tensor.detach().cpu().contiguous() for key, tensor in self.state().items()}
                with whole_file(self.path(name)) as temporary:
                    save_file(held, temporary, metadata={"epoch": name})
            write_text(self.folder / FIGURES, json.dumps(self.figures, indent=1))

    def path(self, epoch: str) -> Path:
        """The adapter's parameters after an epoch that was the best of all before."""
        return self.folder / f"epoch-{epoch}.safetensors"

    def best_state(self) -> dict[str, torch.Tensor]:
        """The parameters of the best epoch."""
        assert self.best is not None
        return load_file(self.path(self.best))


def _due(state: Any) -> bool:
    """Whether the epoch that has ended is to be examined."""
    every = max(1, -(-int(state.num_train_epochs) // EXAMINATIONS))
    return state.global_step >= state.max_steps or round(state.epoch or 0.0) % every == 0
