"""What a run folder says about itself: what determines the results, and where they were computed."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from kshot.data.derived import digest
from kshot.episode import Example
from kshot.evaluation.answering import Answering
from kshot.evaluation.cells import Cell
from kshot.models.base import Model, PictureModel

PACKAGES = (
    "kshot", "torch", "transformers", "accelerate", "peft", "bitsandbytes", "tokenizers", "numpy", "pillow", "pycocoevalcap", "nltk",
)  # fmt: skip

CIRCUMSTANCES = ("versions", "device", "source")
"""What a model says of itself that belongs to the environment: it may differ between processes and machines."""


def configuration(
    answering: Answering,
    cells: Sequence[Cell],
    retriever: Mapping[str, Any],
    queries: Sequence[Example],
    step: int,
) -> dict[str, Any]:
    """All that determines the results of a run, as JSON. Two runs of the same configuration give the same files."""
    task = answering.task
    model = {k: v for k, v in answering.model.describe().items() if k not in CIRCUMSTANCES}
    ids = "\n".join(query.id for query in queries)
    return {
        "model": model,
        "task": task.describe(),
        "queries": {"number": len(queries), "ids": digest(ids)},
        "cells": [cell.name for cell in cells],
        "retriever": dict(retriever),
        "prompt": {
            "style": answering.style,
            "template": asdict(task.template),
            "template_digest": digest(json.dumps(asdict(task.template), sort_keys=True)),
            "stop": list(task.stop),
            "max_new_tokens": answering.max_new_tokens,
        },
        "scoring": answering.scoring,
        "normalize": answering.normalize,
        "num_beams": answering.num_beams,
        "length_penalty": answering.length_penalty,
        "metric": task.metric,
        "batch_size": answering.batch_size,
        "step": step,
        "on_bad_image": answering.on_bad_image,
        **({"further_metrics": list(task.further_metrics)} if task.further_metrics else {}),
        **({"zero_shot_task": task.zero_shot_task.describe()} if task.zero_shot_task is not None else {}),
    }


def environment(model: Model | PictureModel) -> dict[str, Any]:
    """Versions and platform; nothing that changes from one run to the next on the same machine."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.machine(),
        "accelerator": _accelerator(),
        "model": {k: v for k, v in model.describe().items() if k in CIRCUMSTANCES and k != "versions"},
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _accelerator() -> str | None:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None
