"""The distillation of one seed: training, the best epoch, and what is known of it afterwards."""

from __future__ import annotations

import inspect
import json
import math
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from peft import get_peft_model_state_dict, set_peft_model_state_dict
from transformers import TrainerCallback

from kshot.episode import Episode
from kshot.methods.activations import answer_cue
from kshot.metrics.base import metrics, picture_metrics, wants_raw
from kshot.models.base import PromptStyle
from kshot.models.visual_sentence import VisualSentenceModel
from kshot.models.vlm import VLM
from kshot.training.distill_adapter import (
    add_adapter,
    config_of,
    parameter_groups,
    remove_adapter,
    save_adapter,
    trained_parameters,
)
from kshot.training.distill_items import DistillItems
from kshot.training.distill_losses import Losses
from kshot.training.distill_objective import DistillObjective
from kshot.training.held_out import EpochChoice
from kshot.training.run import run, training_arguments
from kshot.training.teacher_cache import TeacherCache
from kshot.training.trainer import writing
from kshot.whole_file import write_text


class SeedRun:
    """The distillation of one seed."""

    def __init__(
        self,
        vlm: VLM | VisualSentenceModel,
        items: DistillItems,
        method: str,
        options: Mapping[str, Any],
        losses: Losses,
        request: Mapping[str, Any],
        used: Mapping[str, Any],
        base: Mapping[str, Any],
        settings: Mapping[str, Any],
        seed: int,
        keep: int,
    ):
        self.vlm, self.items, self.method, self.options, self.losses = vlm, items, method, options, losses
        self.request, self.used, self.base, self.settings = request, used, base, dict(settings)
        self.seed, self.keep = seed, keep

    def result(
        self,
        folder: Path,
        cache_folder: str | None,
        top: int | None,
        align_layers: Sequence[int] | None,
        style: PromptStyle,
        features: bool | None,
    ) -> dict[str, Any]:
        """Train, unless it was done before, and save the adapter of the best epoch in ``folder / "adapter"``."""
        record = folder / "result.json"
        config: dict[str, Any] = {"model": self.base, "data": self.items.describe(), "request": dict(self.request)}
        config |= {"used": dict(self.used), "seed": self.seed}
        held = _read(record)
        if held is not None and held.get("config") == json.loads(json.dumps(config, default=str)):
            return dict(held["figures"])
        made = add_adapter(self.vlm, self.method, self._options(style), self.seed)
        try:
            cache = TeacherCache(cache_folder, self.base, {}) if cache_folder and self.losses.teacher else None
            objective = DistillObjective(
                self.vlm, self.items, self.losses, model=made, align_layers=align_layers, top=top, cache=cache, style=style,
                features=features, seed=self.seed,
            )  # fmt: skip
            if cache is not None:
                cache.keep(objective.teacher.describe())
                cache.announce(*objective.cache_size(_epochs(self.settings, len(objective))))
            figures = self._train(made, objective, folder, config)
            if int(os.environ.get("RANK", "0")) == 0:
                with writing(folder, "free some space; the same command goes on"):
                    save_adapter(made, folder / "adapter", self.vlm.source or self.vlm.name)
                    write_text(record, json.dumps({"config": config, "figures": figures}, indent=1, default=str))
            return figures
        finally:
            remove_adapter(self.vlm, made)

    def _options(self, style: PromptStyle) -> dict[str, Any]:
        """The method's options; methods that know an answer is asked for by the end of the prompt are told that end."""
        options = dict(self.options)
        asks = "cue" in inspect.signature(config_of(self.method)).parameters and "cue" not in options
        if asks:
            asked = [Episode((), query) for query in self.items.examples[:16]]
            options["cue"] = answer_cue(self.vlm, asked, self.items.task.template, style) or None
        return options

    def _train(self, made: Any, objective: DistillObjective, folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
        settings = self.settings
        arguments = training_arguments(folder, settings, self.seed)
        groups = parameter_groups(
            made, arguments.learning_rate, self.used["rates"], arguments.weight_decay, asked=self.request["rates"]
        )
        kind, given = _optimizer(arguments, made)
        choice = EpochChoice(
            folder,
            partial(get_peft_model_state_dict, made, save_embedding_layers=False),
            partial(self._examine, made, objective, arguments.per_device_eval_batch_size),
            leads=arguments.should_save,
        )
        callbacks: list[TrainerCallback] = [_Count(objective)]
        if len(self.items.unseen):
            callbacks.append(choice)
        trained = run(
            objective,
            folder,
            config=config,
            trainer=settings,
            seed=self.seed,
            keep=self.keep,
            optimizers=(kind(groups, **given), None),
            callbacks=callbacks,
        )
        figures: dict[str, Any] = {"parameters": trained_parameters(made), "steps": trained.state.global_step}
        seconds = [entry["train_runtime"] for entry in trained.state.log_history if "train_runtime" in entry]
        figures["seconds"] = round(seconds[-1], 1) if seconds else None
        trained.accelerator.wait_for_everyone()
        if choice.figures:
            set_peft_model_state_dict(made, choice.best_state())
            figures |= {"epoch": float(choice.best or 0), "epochs": choice.figures}
            figures |= {"held_out_loss": -choice.figures[str(choice.best)]["score"], "metric": self.items.task.metric}
            figures["held_out_metric"] = self._metric(made)
        figures["score"] = -figures["held_out_loss"] if choice.figures else 0.0
        return figures

    def _examine(self, made: Any, objective: DistillObjective, batch_size: int) -> dict[str, float]:
        training = made.training
        made.eval()
        loss = objective.answer_loss(self.items.unseen, batch_size)
        made.train(training)
        return {"score": -loss}

    def _metric(self, made: Any) -> float:
        """The task's metric of the answers to what was held out."""
        made.eval()
        task, unseen = self.items.task, list(self.items.unseen)
        if isinstance(self.vlm, VisualSentenceModel):
            pictures = self.vlm.answer_episodes([Episode((), query) for query in unseen])
            return float(picture_metrics.get(task.metric)(pictures, unseen).value)
        texts = self.vlm.answer(
            [Episode((), query) for query in unseen],
            template=task.template,
            style=self.request["style"],
            max_new_tokens=task.max_new_tokens,
            stop=task.stop,
        )
        metric = metrics.get(task.metric)
        said = texts if wants_raw(metric) else [task.parse(text) for text in texts]
        return float(metric(said, unseen).value)


class _Count(TrainerCallback):
    """Tells the objective how many steps are done."""

    def __init__(self, objective: DistillObjective):
        self.objective = objective

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.objective.step = state.global_step


def _optimizer(arguments: Any, model: Any) -> tuple[Any, dict[str, Any]]:
    """The optimiser that the Trainer's arguments name, and its options."""
    from transformers import Trainer

    kind, given = Trainer.get_optimizer_cls_and_kwargs(arguments, model)
    return kind, {name: value for name, value in given.items() if name not in ("lr", "params", "model")}


def _epochs(settings: Mapping[str, Any], queries: int) -> int:
    """Number of epochs that are begun."""
    if int(settings.get("max_steps") or -1) < 1:
        return max(1, math.ceil(float(settings["num_train_epochs"])))
    each = int(settings["per_device_train_batch_size"]) * int(settings["gradient_accumulation_steps"])
    return math.ceil(int(settings["max_steps"]) * each * int(os.environ.get("WORLD_SIZE", "1")) / queries)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return held if isinstance(held, dict) else None
