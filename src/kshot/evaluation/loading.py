"""Models by name or as they are."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, overload

from kshot.errors import OptionError
from kshot.models.base import Model, PictureModel

AnyModel = Model | PictureModel
"""A model of any kind, as the commands take it."""


@overload
def load_any(model: str | AnyModel, options: Mapping[str, Any] | None = None) -> AnyModel: ...
@overload
def load_any(model: None, options: Mapping[str, Any] | None = None) -> None: ...
@overload
def load_any(model: str | AnyModel | None, options: Mapping[str, Any] | None = None) -> AnyModel | None: ...
def load_any(model: str | AnyModel | None, options: Mapping[str, Any] | None = None) -> AnyModel | None:
    """A model by its name, folder or hub id; a loaded one (or none) is returned as it is.

    Raises:
        OptionError: options were given for a model that is already loaded.
    """
    if isinstance(model, str):
        from transformers.utils import logging

        from kshot.models import load_model

        if not sys.stderr.isatty():
            logging.disable_progress_bar()  # "Loading weights" would fill log files
        loaded: Any = load_model(
            model, **(options or {})
        )  # text or pictures: what is asked of it says which it must be
        return loaded
    if options:
        raise OptionError("model_options apply only to a model that is given by name")
    return model
