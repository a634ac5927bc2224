"""``kshot train``: one command for all that is trained from a recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kshot.data.task import build
from kshot.registry import Registry

objectives: Registry[Callable[..., Path]] = Registry(
    "objective",
    "kshot.objectives",
    ("kshot.training.train_answers", "kshot.training.tiny", "kshot.training.tiny_visual"),
)
"""What can be trained: functions of ``out``, ``seed``, ``trainer``, ``work`` and options of their own, which return the folder
written."""


def train(
    out: str,
    *,
    objective: str = "answers",
    objective_options: dict[str, Any] | None = None,
    trainer: dict[str, Any] | None = None,
    seed: int = 0,
    work: str | None = None,
) -> Path:
    """Train a model from a recipe; a run that was interrupted goes on where it was.

    Args:
        out: the folder to write: a model, or an adapter.
        objective: what is learnt: ``answers`` (of episodes: link-context training, ordinary questions, and mixtures of them) or
            ``embedded`` (the model that comes with kshot, from nothing).
        objective_options: the objective's own options; on the command line they are given like any other.
        trainer: arguments of transformers' TrainingArguments (``--trainer.learning_rate 1e-4``).
        seed: everything random derives from it.
        work: folder of checkpoints, from which an interrupted run resumes (default: ``<out>.work``).

    Returns:
        The folder written.

    Raises:
        UnknownName: no such objective, data source or argument of the trainer.
        OptionError: wrong or contradictory options; a run that was begun with other options.
    """
    options: Mapping[str, Any] = objective_options or {}
    given = {"out": out, "trainer": dict(trainer or {}), "seed": seed, "work": work, **options}
    folder: Path = build("objective", objectives, objective, given)
    return folder
