"""What evaluation and training need of a model, whatever it is (a vision-language model, a model of visual sentences)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol, runtime_checkable

from kshot.episode import Episode
from kshot.picture import Picture
from kshot.prompt import Template

PromptStyle = Literal["auto", "plain", "chat"]


@runtime_checkable
class Model(Protocol):
    """Answers episodes and scores candidate answers."""

    name: str

    def answer(
        self,
        episodes: Sequence[Episode],
        *,
        template: Template | None = None,
        style: PromptStyle = "auto",
        max_new_tokens: int = 10,
        stop: Sequence[str] = (),
        num_beams: int = 1,
        length_penalty: float = 1.0,
        batch_size: int | None = None,
    ) -> list[str]:
        """The generated text for each episode (deterministic), in order; stop strings and what follows are not cut here."""
        ...

    def score(
        self,
        episodes: Sequence[Episode],
        candidates: Sequence[str] | Sequence[Sequence[str]],
        *,
        template: Template | None = None,
        style: PromptStyle = "auto",
        batch_size: int | None = None,
        normalize: bool = False,
    ) -> list[list[float]]:
        """Log-probability of each candidate as the answer of each episode (mean per token if ``normalize``).

        ``candidates`` is one list for all episodes, or one list per episode.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """What identifies the model in a run folder: name, weight hash, dtype, versions; JSON-serialisable."""
        ...


@runtime_checkable
class PictureModel(Protocol):
    """Answers episodes by pictures: the demonstrations' answers are pictures, too."""

    name: str

    def answer_episodes(self, episodes: Sequence[Episode], **options: Any) -> list[Picture]:
        """The picture that answers each episode (deterministic unless options ask for samples), in order."""
        ...

    def describe(self) -> dict[str, Any]:
        """As in :class:`Model`."""
        ...
