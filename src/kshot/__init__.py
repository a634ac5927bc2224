"""kshot: visual in-context learning. Make vision models learn from a handful of examples.

Everything named here is imported when it is first used, so that ``import kshot`` takes milliseconds.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from kshot import peft_hook
from kshot.version import __version__

if TYPE_CHECKING:
    from kshot import metrics
    from kshot.data.retrieval import retrievers
    from kshot.data.task import Task, load_task, tasks
    from kshot.episode import Episode, Example
    from kshot.errors import KshotError
    from kshot.evaluation.compare import compare
    from kshot.evaluation.evaluate import evaluate
    from kshot.evaluation.results import Evaluation
    from kshot.evaluation.show import show
    from kshot.models import load_model
    from kshot.prompt import Template

_PLACES = {
    "Episode": "kshot.episode",
    "Evaluation": "kshot.evaluation.results",
    "Example": "kshot.episode",
    "KshotError": "kshot.errors",
    "Task": "kshot.data.task",
    "Template": "kshot.prompt",
    "compare": "kshot.evaluation.compare",
    "evaluate": "kshot.evaluation.evaluate",
    "load_model": "kshot.models",
    "load_task": "kshot.data.task",
    "metrics": "kshot.metrics",
    "retrievers": "kshot.data.retrieval",
    "show": "kshot.evaluation.show",
    "tasks": "kshot.data.task",
}

__all__ = [
    "Episode",
    "Evaluation",
    "Example",
    "KshotError",
    "Task",
    "Template",
    "__version__",
    "compare",
    "evaluate",
    "load_model",
    "load_task",
    "metrics",
    "retrievers",
    "show",
    "tasks",
]


def __getattr__(name: str) -> Any:
    place = _PLACES.get(name)
    if place is None:
        raise AttributeError(f"module 'kshot' has no attribute {name!r}")
    module = importlib.import_module(place)
    found = module if place == f"kshot.{name}" else getattr(module, name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


peft_hook.install()
