"""Loading models, and what is done with them.

Names are imported when they are first used: ``kshot.models.base`` must not bring in torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kshot.models.anatomy import Anatomy
    from kshot.models.base import Model
    from kshot.models.loading import load_model
    from kshot.models.vlm import VLM

_PLACES = {"Anatomy": "anatomy", "Model": "base", "VLM": "vlm", "load_model": "loading"}

__all__ = ["VLM", "Anatomy", "Model", "load_model"]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'kshot.models' has no attribute {name!r}")
    return getattr(importlib.import_module(f"kshot.models.{_PLACES[name]}"), name)
