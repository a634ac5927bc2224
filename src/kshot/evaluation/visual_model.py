"""Models of visual sentences by name or as they are, for the commands that need one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from kshot.errors import BadImage, ModelError
from kshot.evaluation.environment import CIRCUMSTANCES
from kshot.evaluation.loading import load_any
from kshot.picture import Picture

if TYPE_CHECKING:
    from kshot.models.visual_sentence import VisualSentenceModel


def load_visual_model(model: Any, options: Mapping[str, Any] | None = None) -> VisualSentenceModel:
    """A model of visual sentences; a loaded one is returned as it is.

    Raises:
        ModelError: it is another kind of model.
    """
    from kshot.models.visual_sentence import VisualSentenceModel

    found: Any = load_any(model, options)
    if not isinstance(found, VisualSentenceModel):
        raise ModelError(
            f"{getattr(found, 'name', found)} is no model of visual sentences (no visual_processor.json beside its weights): it "
            "gives no pictures"
        )
    return found


def lasting(model: VisualSentenceModel) -> dict[str, Any]:
    """What identifies the model wherever it is run."""
    return {key: value for key, value in model.describe().items() if key not in CIRCUMSTANCES}


def bad_picture(pictures: Iterable[Picture]) -> str | None:
    """Why some of the pictures cannot be shown; ``None`` if all can."""
    for picture in pictures:
        try:
            picture.load()
        except BadImage as error:
            return str(error)
    return None
