"""``kshot show``: the prompt of an episode, in the terminal and as a picture."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from kshot.data.demonstrations import choose
from kshot.data.retrieval import Order
from kshot.data.task import Task, load_task
from kshot.episode import Episode, Example
from kshot.errors import OptionError
from kshot.evaluation.answering import check_answers
from kshot.evaluation.controls import controls
from kshot.evaluation.loading import AnyModel, load_any
from kshot.metrics.base import metrics
from kshot.models.base import Model, PromptStyle
from kshot.prompt import Prompt, Segment, TokenizedPrompt, render_plain

if TYPE_CHECKING:
    from rich.console import Group
    from rich.text import Text

STYLES = {"instruction": "dim", "demonstration": "cyan", "query": "yellow", "answer": "bold green"}
"""How each role is shown; demonstrations alternate with :data:`OTHER`."""
OTHER = "bright_blue"
ANSWER = "bold green"
PLACE = "reverse"


@dataclass(frozen=True)
class Shown:
    """An episode as a model is given it.

    Attributes:
        episode: the episode.
        prompt: its prompt.
        tokens: the prompt's tokens with their spans, if a model was given.
        answer: the model's answer, if it was asked.
    """

    episode: Episode
    prompt: Prompt
    tokens: TokenizedPrompt | None = None
    answer: str | None = None

    def __rich__(self) -> Group:
        return to_terminal(self)

    def __str__(self) -> str:
        return self.prompt.text()


def show(
    task: str | Task,
    model: str | AnyModel | None = None,
    *,
    query: int = 0,
    shots: int | None = None,
    retriever: str | None = None,
    order: Order | None = None,
    seed: int = 0,
    control: str | None = None,
    style: PromptStyle = "auto",
    answer: bool = True,
    save: str | os.PathLike[str] | None = None,
    task_options: Mapping[str, Any] | None = None,
    model_options: Mapping[str, Any] | None = None,
    retriever_options: Mapping[str, Any] | None = None,
) -> Shown:
    """Show the prompt of one episode: where images stand, and what belongs to which demonstration.

    Args:
        task: name of a task, or a task.
        model: a model whose prompt style and tokens are shown, and which answers; without one, the plain prompt is shown.
        query: which of the task's queries, from 0.
        shots: number of demonstrations in total. Default: the largest of the task's own.
        retriever: how demonstrations are chosen. Default: the task's own.
        order: how they are arranged. Default: the retriever's own.
        seed: what their choice derives from.
        control: show the episode under a control, e.g. "shuffled-labels".
        style: "plain", "chat", or "auto" (what the model would be given).
        answer: whether the model is asked.
        save: file for a picture of the prompt (PNG) with images, texts and answer.
        task_options: the task's own options. On the command line: --root FILE.
        model_options: arguments of load_model. On the command line: --dtype bfloat16.
        retriever_options: the retriever's own options. On the command line: --NAME VALUE.

    Raises:
        OptionError: there is no such query, or the chat style is asked for without a model.
    """
    the_task = load_task(task, **dict(task_options or {}))
    if not 0 <= query < len(the_task.queries):
        raise OptionError(f"query={query}: task {the_task.name!r} has queries 0 to {len(the_task.queries) - 1}")
    number = max(the_task.shots) if shots is None else shots
    asked = the_task.queries[query]
    choices = choose(
        the_task, retriever or the_task.retriever, number, seed, queries=[asked], order=order, options=retriever_options
    )
    episode = choices.episodes(the_task, [asked])[0]
    if control is not None:
        episode = controls.get(control).change(episode, seed)
    shown = render(the_task, episode, load_any(model, model_options), style, answer)
    if save is not None:
        from kshot.evaluation.picture import save_prompt_picture

        text = None if shown.answer is None else the_task.parse(shown.answer)
        save_prompt_picture(
            shown.episode,
            shown.prompt,
            text,
            Path(save),
            correct=None if text is None else is_right(the_task, text, episode.query),
        )
    return shown


def is_right(task: Task, prediction: str, query: Example) -> bool | None:
    """Whether the task's metric gives a prediction any credit; ``None`` where it judges by degrees (captions)."""
    if not query.references or task.metric == "cider":
        return None
    return metrics.get(task.metric)([prediction], [query]).items[0] > 0


def render(
    task: Task, episode: Episode, model: AnyModel | None = None, style: PromptStyle = "auto", ask: bool = True
) -> Shown:
    """An episode as a model is given it; the plain prompt without a model."""
    if model is None:
        if style == "chat":
            raise OptionError("the chat style is the model's own: give a model")
        return Shown(episode, render_plain(episode, task.template))
    check_answers(model, task)
    if not isinstance(model, Model):
        tokens = cast(Any, model).encode(episode).tokens
        # The answer stands where the model paints it: behind the query.
        answer = model.answer_episodes([episode])[0] if ask else None
        return Shown(episode, render_plain(episode, task.template, answer=answer), tokens)
    prompt = cast(Any, model).prompt(episode, task.template, style)
    tokens = cast(Any, model).encode(episode, task.template, style).tokens
    said = None
    if ask:
        said = model.answer(
            [episode], template=task.template, style=style, max_new_tokens=task.max_new_tokens, stop=task.stop
        )[0]
    return Shown(episode, prompt, tokens, said)


def to_terminal(shown: Shown) -> Group:
    """The prompt in colours: instruction dim, demonstrations in turn cyan and blue, the query yellow, answers green."""
    from rich.console import Group
    from rich.text import Text

    text, image = Text(), 0
    for segment in shown.prompt.segments:
        if segment.picture is not None:
            image += 1
            text.append(f"[image {image}: {segment.picture.name}]", style=f"{_style(segment)} {PLACE}")
        else:
            text.append(segment.text, style=_style(segment))
    if shown.answer is not None:
        text.append(shown.answer, style=f"{ANSWER} underline")
    parts = [text, Text(), _legend(shown)]
    return Group(*parts)


def _style(segment: Segment) -> str:
    if segment.is_answer:
        return ANSWER
    if segment.role == "demonstration" and segment.index % 2:
        return OTHER
    return STYLES[segment.role]


def _legend(shown: Shown) -> Text:
    """What the colours mean, with the token ranges where a model was given."""
    from rich.text import Text

    episode, tokens = shown.episode, shown.tokens
    line = Text(
        f"{shown.prompt.style} prompt, {episode.shots} demonstrations, {len(shown.prompt.pictures)} images", style="dim"
    )
    if tokens is not None:
        line.append(f", {len(tokens)} tokens, of which {tokens.prefix} before the query")
    line.append(f"; query {episode.query.id!r}, expected: {', '.join(map(str, episode.query.references)) or 'unknown'}")
    for span in tokens.spans if tokens is not None else ():
        name = f"{span.role} {span.index + 1}" if span.index >= 0 else span.role
        segment = Segment("", None, span.role, span.index, span.is_answer)
        line.append(f"\n{span.start:>6}..{span.end - 1:<6}", style="dim")
        line.append(f"{name}{', answer' if span.is_answer else ''}", style=_style(segment))
    return line
