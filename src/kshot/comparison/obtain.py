"""Obtaining a method's adapter with a given budget, and putting it into the model for a while."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from inspect import signature
from pathlib import Path
from typing import Any

from peft import PeftModel

from kshot.comparison.cost import peak_memory
from kshot.comparison.table import FEW, ZERO
from kshot.data.task import Task
from kshot.episode import Example
from kshot.errors import OptionError, UnknownName
from kshot.evaluation.cells import FORMAT_ONLY
from kshot.evaluation.options import names_of
from kshot.evaluation.runs import read_json, write_json
from kshot.methods import methods as registry
from kshot.methods.fit import fit_method
from kshot.methods.of_peft import OF_PEFT
from kshot.models.adapters import CONFIG
from kshot.models.base import PromptStyle
from kshot.models.soft_prompts import SoftPrompt, is_soft
from kshot.models.visual_sentence import VisualSentenceModel
from kshot.models.vlm import VLM
from kshot.training.distill import distill
from kshot.training.distill_adapter import remove_adapter
from kshot.training.distill_items import DistillItems


def wanted_methods(methods: str | Sequence[str]) -> tuple[str, ...]:
    """The methods asked for.

    Raises:
        UnknownName: there is no such method.
        OptionError: it is a baseline.
    """
    known = [*registry.names(), *(name for name in OF_PEFT if name not in registry)]
    wanted = names_of(methods, "method")
    if wanted == ("all",):
        return tuple(known)
    for name in wanted:
        if name in (ZERO, FEW, FORMAT_ONLY):
            raise OptionError(f"methods: {name} is a baseline and always there")
        if name not in known:
            raise UnknownName("method", name, known)
    return wanted


def trainable(method: str) -> bool:
    """Whether gradients train it."""
    return method not in registry or registry.get(method).trainable


@dataclass(frozen=True)
class Budget:
    """What every method is given.

    Attributes:
        shots: demonstrations in each prompt it learns from.
        samples: labelled examples in all, demonstrations and those by which choices are made included.
        held: those of them by which the best epoch of trained methods is chosen; ``None``: a quarter, at most 100.
        epochs: passes over the others, for methods that are trained; ``None``: each method's own number of steps.
        style: of the prompts.
        batch_size: prompts that estimated methods read together.
        trainer: arguments of TrainingArguments for methods that are trained.
    """

    shots: int
    samples: int
    epochs: float | None = None
    held: int | None = None
    style: PromptStyle = "auto"
    batch_size: int | None = None
    trainer: Mapping[str, Any] = field(default_factory=dict)

    @property
    def held_out(self) -> int:
        """Those of the samples by which the best epoch is chosen."""
        return min(100, max(1, self.samples // 4)) if self.held is None else self.held

    def examples(self, task: Task, seed: int) -> list[Example]:
        """The labelled examples: for all methods the same."""
        items = DistillItems(
            task, shots=0, samples=self.samples - self.held_out, held_out=self.held_out, pool="samples", seed=seed
        )
        return [*items.examples, *items.unseen]

    def obtain(
        self,
        vlm: VLM | VisualSentenceModel,
        task: Task,
        method: str,
        seed: int,
        place: Path,
        options: Mapping[str, Any],
    ) -> dict[str, Any]:
        """Make ``place / "adapter"``, unless it is there.

        Args:
            vlm: the model, without an adapter; it has none afterwards either.
            options: of the method itself, or of kshot distill.

        Returns:
            What ``place / "fit.json"`` holds: options, seconds, cpu_seconds, peak_mb.

        Raises:
            OptionError: the adapter that is there was made with other options.
        """
        record, adapter, own = place / "fit.json", place / "adapter", plain_json(dict(options))
        if record.exists() and (adapter / CONFIG).exists():
            held: dict[str, Any] = read_json(record)
            if held["options"] != own:
                raise OptionError(
                    f"{place} was made with other options of {method}: {held['options']} (remove it to make it anew)"
                )
            return held
        begin, used = time.perf_counter(), time.process_time()
        with peak_memory(vlm.device) as peak:
            (self._train if trainable(method) else self._estimate)(vlm, task, method, seed, adapter, own)
        held = {
            "options": own,
            "seconds": time.perf_counter() - begin,
            "cpu_seconds": time.process_time() - used,
            "peak_mb": None if math.isnan(peak.megabytes) else peak.megabytes,
        }
        write_json(record, held)
        shutil.rmtree(adapter.with_name("adapter.work"), ignore_errors=True)
        return held

    def _estimate(
        self, vlm: VLM | VisualSentenceModel, task: Task, method: str, seed: int, adapter: Path, own: Mapping[str, Any]
    ) -> None:
        more = {"batch_size": self.batch_size} if self.batch_size is not None else {}
        common: dict[str, Any] = {"shots": self.shots, "samples": self.samples, "seed": seed, "style": self.style}
        common |= {"template": task.template}
        made = fit_method(vlm, method, self.examples(task, seed), **(common | more | dict(own)))
        try:
            made.save_pretrained(str(adapter), save_embedding_layers=False)
        finally:
            remove_adapter(vlm, made)

    def _train(
        self, vlm: VLM | VisualSentenceModel, task: Task, method: str, seed: int, adapter: Path, own: Mapping[str, Any]
    ) -> None:
        known = set(signature(distill).parameters)
        given = {name: value for name, value in own.items() if name in known}
        trainer = {} if self.epochs is None else {"num_train_epochs": self.epochs}
        trainer |= dict(self.trainer) | dict(given.pop("trainer", None) or {})
        common: dict[str, Any] = {
            "shots": self.shots,
            "samples": self.samples - self.held_out,
            "held_out": self.held_out,
            "pool": "samples",
            "seeds": seed,
            "style": self.style,
            "trainer": trainer,
            "method_options": {name: value for name, value in own.items() if name not in known},
        }
        distill(str(adapter), model=vlm, task=task, method=method, **(common | given))


@contextmanager
def adapter_in(vlm: VLM | VisualSentenceModel, folder: Path, name: str) -> Iterator[None]:
    """The model with an adapter in its layers, under a name that the records of runs show."""
    made = PeftModel.from_pretrained(vlm.model, str(folder)).eval()
    if isinstance(vlm, VLM):
        vlm.soft = SoftPrompt(made) if is_soft(made) else None
    before, vlm.adapter = vlm.adapter, name
    try:
        yield
    finally:
        vlm.adapter = before
        remove_adapter(vlm, made)


def plain_json(data: Any) -> Any:
    """As it will be read back."""
    return json.loads(json.dumps(data, default=str))
