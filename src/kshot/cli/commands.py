"""The table of commands: public functions whose signatures are the options."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Command:
    """A command.

    Attributes:
        target: ``module:function``, imported when the command is used.
        summary: one line for ``kshot --help``.
        positional: parameter that takes the arguments without a name: all of them if it is a sequence, or one.
        report: ``module:function`` that puts the result into words, where it does not speak for itself.
        kinds: ``module:table`` if the command's first word chooses one of several functions; then ``target`` looks a word up.
    """

    target: str
    summary: str
    positional: str | None = None
    report: str | None = None
    kinds: str | None = None

    def function(self) -> Callable[..., Any]:
        """Import the function."""
        found: Callable[..., Any] = imported(self.target)
        return found


def imported(place: str) -> Any:
    """The thing at ``module:name``."""
    module, name = place.split(":")
    return getattr(importlib.import_module(module), name)


COMMANDS = {
    "quickstart": Command(
        "kshot.quickstart:quickstart", "see a small model learn from its context, offline, in a minute"
    ),
    "evaluate": Command(
        "kshot.evaluation.evaluate:evaluate", "a model on a task with k demonstrations, controls and intervals"
    ),
    "compare": Command("kshot.evaluation.compare:compare", "several runs in one table and one picture", "runs"),
    "show": Command("kshot.evaluation.show:show", "the prompt of an episode, in the terminal or as a picture"),
    "tasks": Command(
        "kshot.evaluation.listing:describe_parts", "the tasks, metrics, retrievers and controls there are", "names"
    ),
    "methods": Command(
        "kshot.evaluation.listing:describe_methods", "the methods that put demonstrations into an adapter", "names"
    ),
    "build-episodes": Command(
        "kshot.data.build_episodes:build_episodes", "lists for link-context learning, made from image folders", "kind"
    ),
    "train": Command(
        "kshot.training.train:train", "train a model from a recipe: link-context learning, mixtures, LoRA"
    ),
    "distill": Command(
        "kshot.training.distill:distill",
        "put demonstrations into an adapter of a few kilobytes: LIVE, MimIC and rivals",
    ),
    "tokenize": Command("kshot.visual.tokenize:tokenize", "folders of pictures as visual sentences, in a token store"),
    "tokens": Command(
        "kshot.visual.store_report:describe_store", "what a token store holds; --verify checks it", "store"
    ),
    "compare-methods": Command(
        "kshot.comparison:compare_methods", "methods side by side on one task: what each gains and what it costs"
    ),
    "pretrain": Command(
        "kshot.training.pretrain:pretrain", "train a model of visual sentences on token stores, or go on training one"
    ),
    "imagine": Command(
        "kshot.evaluation.imagine:imagine", "what a model of visual sentences makes of prompts of pictures"
    ),
    "perplexity": Command(
        "kshot.evaluation.perplexity:perplexity", "how well a model of visual sentences foresees given pictures"
    ),
    "calibrate": Command(
        "kshot.evaluation.calibrate:calibrate", "whether a model of visual sentences wants BOS, and which rotary angles"
    ),
    "convert": Command(
        "kshot.convert:conversion",
        "a checkpoint of another program as a model of transformers",
        kinds="kshot.convert:CONVERSIONS",
    ),
}
