"""Answering one step of a cell: episodes in, rows of the prediction file out."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from kshot.data.task import Task
from kshot.episode import Episode
from kshot.errors import BadImage, OptionError
from kshot.evaluation.published import opening_of
from kshot.evaluation.runs import Rows
from kshot.models.base import Model, PictureModel, PromptStyle
from kshot.picture import Picture
from kshot.prompt import Template

T = TypeVar("T")
Scoring = Literal["generate", "likelihood"]
OnBadImage = Literal["error", "skip"]


@dataclass(frozen=True)
class Answering:
    """How a model is asked; the fields are arguments of :func:`kshot.evaluate`."""

    model: Model | PictureModel
    task: Task
    scoring: Scoring = "generate"
    normalize: bool = False
    style: PromptStyle = "auto"
    num_beams: int = 1
    length_penalty: float = 1.0
    max_new_tokens: int = 10
    batch_size: int | None = None
    on_bad_image: OnBadImage = "error"

    def __post_init__(self) -> None:
        """Raises OptionError: the model cannot answer the task."""
        check_answers(self.model, self.task)
        if self.task.answers == "picture" and self.scoring == "likelihood":
            raise OptionError(f"task {self.task.name!r} is answered by pictures: there are no candidates to score")

    def rows(self, episodes: Sequence[Episode], folder: Path) -> Rows:
        """One row an episode, in order.

        Args:
            episodes: the episodes.
            folder: where answers that are pictures are put, as PNG files named in the rows.

        Raises:
            BadImage: an image cannot be decoded and bad images are errors.
        """
        if self.task.answers == "picture":
            ask: Callable[[Sequence[Episode]], list[dict[str, Any]]] = lambda some: self._imagine(some, folder)  # noqa: E731
        else:
            ask = self._generate if self.scoring == "generate" else self._choose
        answers, reasons = _leaving_out_bad_images(ask, episodes, self.on_bad_image)
        return [
            _row(episode, answer, reason) for episode, answer, reason in zip(episodes, answers, reasons, strict=True)
        ]

    @property
    def template(self) -> Template:
        """The task's template."""
        return self.task.template

    @property
    def opening(self) -> str:
        """What the prompts have already said of the answer when the model goes on: some plain templates open a quotation."""
        chat = self.style == "chat" or (self.style == "auto" and getattr(self.model, "no_chat", True) == "")
        return "" if chat or self.scoring == "likelihood" else opening_of(self.template)

    def _imagine(self, episodes: Sequence[Episode], folder: Path) -> list[dict[str, Any]]:
        assert isinstance(self.model, PictureModel)
        pictures = self.model.answer_episodes(episodes, **({"batch_size": self.batch_size} if self.batch_size else {}))
        return [
            {"prediction": save_picture(picture, folder, episode.query.id)}
            for picture, episode in zip(pictures, episodes, strict=True)
        ]

    def _generate(self, episodes: Sequence[Episode]) -> list[dict[str, Any]]:
        assert isinstance(self.model, Model)
        texts = self.model.answer(
            episodes,
            template=self.template,
            style=self.style,
            max_new_tokens=self.max_new_tokens,
            stop=self.task.stop,
            num_beams=self.num_beams,
            length_penalty=self.length_penalty,
            batch_size=self.batch_size,
        )
        return [{"prediction": self.task.parse(text), "raw": text} for text in texts]

    def _choose(self, episodes: Sequence[Episode]) -> list[dict[str, Any]]:
        candidates = [self.task.candidates(episode.query) for episode in episodes]
        for episode, offered in zip(episodes, candidates, strict=True):
            if not offered:
                raise OptionError(
                    f"likelihood scoring: task {self.task.name!r} has neither labels nor, for query {episode.query.id!r}, "
                    "choices (use scoring='generate')"
                )
        same = all(offered == candidates[0] for offered in candidates)
        assert isinstance(self.model, Model)
        scores = self.model.score(
            episodes,
            candidates[0] if same else candidates,
            template=self.template,
            style=self.style,
            batch_size=self.batch_size,
            normalize=self.normalize,
        )
        chosen = [max(range(len(row)), key=row.__getitem__) for row in scores]
        return [
            # No log-probabilities here: their last digits depend on how queries were batched, and files should not.
            {"prediction": offered[best], "raw": offered[best]}
            for offered, best in zip(candidates, chosen, strict=True)
        ]


def check_answers(model: Model | PictureModel, task: Task) -> None:
    """Refuse a model that answers in text where pictures are wanted, or the other way round.

    Raises:
        OptionError: it does.
    """
    pictures = task.answers == "picture"
    if not isinstance(model, PictureModel if pictures else Model):
        raise OptionError(
            f"task {task.name!r} is answered by {task.answers}s, which {model.name!r} does not make: use "
            + ("a model of visual sentences" if pictures else "a vision-language model")
        )


def save_picture(picture: Picture, folder: Path, name: str) -> str:
    """Save an answer as a PNG file; returns the file's name, which derives from ``name`` whatever characters that holds."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name)[:60].strip(".-")
    file = f"{plain}-{hashlib.blake2b(name.encode(), digest_size=4).hexdigest()}.png"
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{file}.{os.getpid()}.part"
    picture.load().save(partial, format="PNG")
    partial.replace(folder / file)
    return file


def candidate_set(task: Task, queries: Sequence[Any]) -> str:
    """What likelihood scoring chooses from, in words."""
    if task.labels:
        return f"all {len(task.labels)} labels of the task"
    sizes = sorted({len(task.candidates(query)) for query in queries})
    number = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
    return f"the {number} choices that each query itself offers"


def _leaving_out_bad_images(
    ask: Callable[[Sequence[Episode]], list[T]], episodes: Sequence[Episode], on_bad_image: OnBadImage
) -> tuple[list[T | None], list[str | None]]:
    """Ask about all episodes; if an image is bad, find those it is in and ask about the others.

    Images are tried one by one only after something went wrong, so that good data are decoded once.
    """
    try:
        return list(ask(episodes)), [None] * len(episodes)
    except BadImage:
        if on_bad_image == "error":
            raise
    reasons = [_bad_image(episode) for episode in episodes]
    good = [episode for episode, reason in zip(episodes, reasons, strict=True) if reason is None]
    if len(good) == len(episodes):
        raise OptionError("the model refused an image that can be decoded; it cannot be skipped")
    answers = iter(ask(good) if good else [])
    return [None if reason else next(answers) for reason in reasons], reasons


def _bad_image(episode: Episode) -> str | None:
    """Why an episode cannot be shown, or ``None``."""
    for example in (*episode.demonstrations, episode.query):
        # The answer of a demonstration is shown, too; the query's is for the metric, which needs it as well.
        for picture in (*example.images, *([example.answer] if isinstance(example.answer, Picture) else [])):
            try:
                picture.load()
            except BadImage as error:
                whose = "" if example is episode.query else f"demonstration {example.id!r}: "
                return f"{whose}{error}"
    return None


def _row(episode: Episode, answer: dict[str, Any] | None, reason: str | None) -> dict[str, Any]:
    row: dict[str, Any] = {"id": episode.query.id}
    row |= {"skipped": reason} if answer is None else answer
    references = [r if isinstance(r, str) else f"picture {r.digest}" for r in episode.query.references]
    return row | {"references": references, "demonstrations": [example.id for example in episode.demonstrations]}
