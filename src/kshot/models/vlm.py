"""Vision-language models: answering episodes and scoring candidate answers."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar, cast

import torch
from tqdm import tqdm

from kshot.episode import Episode
from kshot.errors import ContextTooLong, ModelError, OptionError
from kshot.models.anatomy import Anatomy, examine
from kshot.models.base import PromptStyle
from kshot.models.batching import BatchRunner
from kshot.models.beginnings import Beginnings
from kshot.models.continuation import Continuation
from kshot.models.encoding import EncodedPrompt, Encoder
from kshot.models.generation import deterministic_settings
from kshot.models.identity import identity
from kshot.models.image_mode import hide, hides, image_mode_of, obstacle
from kshot.models.prompting import PromptWriter
from kshot.models.reuse import Reuse, Switch, on_device
from kshot.models.soft_prompts import SoftPrompt, is_soft
from kshot.prompt import Prompt, Template

BATCH_SIZE = 8
WINDOW = 16
"""Prompts are encoded and sorted by length this many batches at a time, so that few decoded images are held."""

T = TypeVar("T")


class VLM:
    """A vision-language model of transformers with its processor; a :class:`~kshot.models.base.Model`.

    Args:
        model: any model of ``AutoModelForImageTextToText``; used as it is, on its device and in its dtype. Or PEFT's model around one,
            with prompt tuning or prefix tuning, which stand outside the layers.
        processor: its processor.
        name: for reports; default: the model's class.
        source: where it came from.
        prefix_cache, feature_cache, feature_folder: what is computed once and used again; see
            :class:`~kshot.models.reuse.Reuse`. Results do not depend on it.
        image_mode: ``"all"`` images of a prompt are inserted, or ``"last_only"``; see :mod:`kshot.models.image_mode`. Default: what
            the model's configuration says, or else all.
        adapter: where the adapter came from that is in the model, for the record of runs.

    Attributes:
        model, processor, tokenizer: the plain transformers objects.
        no_chat: why there are no chat prompts; empty if there are.
        anatomy: what the model is made of and can take.
        encoder: from prompts to inputs.
        reuse: caches of vision features and of fixed demonstrations.
        soft: what an adapter puts before every prompt, or ``None``.

    Raises:
        ModelError: the model has no text decoder, its processor writes prompts in an unknown way, or images cannot be left out.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        *,
        name: str | None = None,
        source: str | None = None,
        prefix_cache: Switch = "auto",
        feature_cache: Switch = "auto",
        feature_folder: str | None = None,
        image_mode: str | None = None,
        adapter: str | None = None,
    ):
        self.soft: SoftPrompt | None = None
        if is_soft(model):
            self.soft = SoftPrompt(model.eval())
            model = self.soft.model
        self.model, self.processor, self.tokenizer = model.eval(), processor, processor.tokenizer
        self.name = name or type(model).__name__
        self.source, self.adapter = source, adapter
        self.anatomy: Anatomy = examine(model)
        self.encoder = Encoder(model, processor)
        self.encoder.check()
        self.reuse = Reuse(
            model, self.encoder, prefix_cache=prefix_cache, feature_cache=feature_cache, feature_folder=feature_folder
        )
        if self.encoder.company_matters:
            # What follows a prefix, or a picture by itself, would be taken for a prompt with a single image.
            self.reuse.no_prefix = self.reuse.no_features = (
                "a prompt's only image is processed otherwise than one of several"
            )
        self.image_mode = image_mode_of(model, image_mode)
        why = obstacle(model, self.encoder, self.reuse.no_features) if self.image_mode != "all" else None
        if why is not None:
            raise ModelError(f"{self.name} cannot be shown the last image only: {why}")
        self._beginnings = Beginnings(self.encoder, self.reuse.expansion)
        self._writer = PromptWriter(self.encoder, self.name)
        self.no_chat = self._writer.no_chat

    @property
    def device(self) -> torch.device:
        """Where inputs have to be."""
        return torch.device(self.model.device)

    def prompt(
        self,
        episode: Episode,
        template: Template | None = None,
        style: PromptStyle = "auto",
        *,
        answer: str | None = None,
    ) -> Prompt:
        """An episode as this model is shown it.

        Args:
            episode: demonstrations and query.
            template: how examples are written (default: :data:`~kshot.models.prompting.DEFAULT_TEMPLATE`).
            style: ``"plain"``: text and images interleaved; ``"chat"``: turns of the model's chat template; ``"auto"``: chat if the
                processor has a chat template that can be used.
            answer: the query's answer, to be put at the end.

        Raises:
            OptionError: chat was asked for and the model has no usable chat template.
            DataError: a demonstration has no text answer.
        """
        return self._writer.prompt(episode, template, style, answer)

    def encode(
        self,
        episode: Episode,
        template: Template | None = None,
        style: PromptStyle = "auto",
        *,
        answer: str | None = None,
        new_tokens: int = 0,
    ) -> EncodedPrompt:
        """Token ids and spans of an episode's prompt (see :meth:`prompt`).

        Raises:
            ContextTooLong: prompt and ``new_tokens`` do not fit into the model's context.
            BadImage: an image cannot be decoded.
        """

        def render(shown: Episode) -> Prompt:
            return self.prompt(shown, template, style, answer=answer)

        if self.reuse.prefix_cache is False:
            encoded = self.encoder.encode(render(episode), known=self.reuse.expansion)
        else:
            encoded = self._beginnings.encode(episode, render, (template, style, answer is None))
        most = self.anatomy.max_context
        if most is not None and self.soft is not None:
            most -= self.soft.length
        if most is not None and len(encoded) + new_tokens > most:
            more = f" and {new_tokens} more to generate" if new_tokens else ""
            raise ContextTooLong(
                f"the prompt of episode {episode.id!r} has {len(encoded):,} tokens{more}, but {self.name} takes {most:,}: "
                f"use fewer than its {episode.shots} shots" + ("" if episode.shots else ", or a smaller image")
            )
        return hide(encoded, self.image_mode)

    def inputs(self, batch: Sequence[EncodedPrompt]) -> dict[str, Any]:
        """What ``model.forward`` takes for a batch, on the model's device and in its dtype."""
        if hides([picture for encoded in batch for picture in encoded.pictures]):
            return self.reuse.inputs(batch)
        return on_device(self.model, self.encoder.collate(batch))

    @torch.inference_mode()
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
        """The generated text for each episode, in order; see :meth:`kshot.models.base.Model.answer`.

        Greedy, or beam search for ``num_beams`` > 1; never sampled, and without the repetition penalties that some models carry in
        their generation settings (they would forbid labels that the demonstrations show). A text ends with the model's end
        token, after ``max_new_tokens``, or (greedy) once it holds one of ``stop``.

        Raises:
            ContextTooLong: a prompt does not fit into the model's context.
            BadImage: an image cannot be decoded.
        """
        settings = deterministic_settings(
            self.model,
            self.tokenizer,
            pad_id=self.encoder.pad_id,
            max_new_tokens=max_new_tokens,
            num_beams=num_beams,
            length_penalty=length_penalty,
        )
        runner = BatchRunner(BATCH_SIZE if batch_size is None else batch_size)
        answers: list[str] = []
        self.reuse.refresh()
        continuation = Continuation(self.model, self.encoder, self.reuse, self.soft)
        for window in _windows(episodes, WINDOW * runner.size, "answering"):
            prompts = [self.encode(episode, template, style, new_tokens=max_new_tokens) for episode in window]
            answers += continuation.texts(prompts, runner, settings, stop)
        return answers

    @torch.inference_mode()
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
        """Log-probabilities of candidate answers; see :meth:`kshot.models.base.Model.score`.

        Summed over the tokens of the answer and of what the template writes behind it (the end of the answer counts).

        Raises:
            ContextTooLong, BadImage: as for :meth:`answer`.
            OptionError: the numbers of episodes and candidate lists differ.
        """
        offered = _per_episode(candidates, len(episodes))
        runner = BatchRunner(BATCH_SIZE if batch_size is None else batch_size)
        most = max((len(texts) for texts in offered), default=1)
        scores: list[list[float]] = []
        self.reuse.refresh()
        continuation = Continuation(self.model, self.encoder, self.reuse, self.soft)
        for window in _windows(
            list(zip(episodes, offered, strict=True)), WINDOW * runner.size // max(most, 1), "scoring"
        ):
            prompts = [
                self.encode(episode, template, style, answer=text) for episode, texts in window for text in texts
            ]
            values = iter(continuation.log_probabilities(prompts, runner, normalize))
            scores += [[next(values) for _ in texts] for _, texts in window]
        return scores

    def describe(self) -> dict[str, Any]:
        """What identifies the model in a run folder; see :func:`kshot.models.identity.identity`."""
        shown: dict[str, Any] = {"image_mode": self.image_mode} if self.image_mode != "all" else {}
        shown |= {"adapter": self.adapter} if self.adapter is not None else {}
        shown |= {"soft_prompt": self.soft.fingerprint} if self.soft is not None else {}
        return {"name": self.name, "source": self.source} | identity(self.model, self.processor) | shown

    def __repr__(self) -> str:
        return f"VLM({self.name!r}, {self.anatomy.architecture}, {self.anatomy.parameters:,} parameters, {self.device})"


def _windows(items: Sequence[T], size: int, doing: str) -> Iterator[Sequence[T]]:
    """Consecutive parts of the items, with a progress bar where someone watches."""
    size = max(1, size)
    with tqdm(
        total=len(items), desc=doing, unit="episode", disable=not sys.stderr.isatty() or len(items) <= size
    ) as bar:
        for start in range(0, len(items), size):
            part = items[start : start + size]
            yield part
            bar.update(len(part))


def _per_episode(candidates: Sequence[str] | Sequence[Sequence[str]], episodes: int) -> list[list[str]]:
    """One list of candidates an episode."""
    if isinstance(candidates, str):
        raise OptionError("candidates must be a list of texts, or one such list per episode")
    if all(isinstance(candidate, str) for candidate in candidates):
        return [list(cast("Sequence[str]", candidates))] * episodes
    lists = [list(texts) for texts in candidates]
    if len(lists) != episodes:
        raise OptionError(f"{len(lists)} lists of candidates for {episodes} episodes")
    return lists
