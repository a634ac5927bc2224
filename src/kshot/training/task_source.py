"""Any task as training data: its examples one by one, with or without demonstrations."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal, get_args

from tqdm import tqdm

from kshot.data.demonstrations import shares_support
from kshot.data.retrieval import Order, Retriever, check_shots, generator, load_retriever
from kshot.data.task import Task, load_task
from kshot.episode import Episode, Example
from kshot.errors import DataError, OptionError, listed, one_of
from kshot.models.base import PromptStyle
from kshot.training.items import Source, TrainingItem, sources


@sources.register("task")
class TaskSource(Source):
    """The examples of a task, each of them once an epoch.

    With no demonstrations this is training on single images: questions, captions, boxes. With demonstrations an example is the query
    of an episode, and what it is shown is drawn anew in each epoch, never the example itself nor its image.

    Args:
        task: a registered task's name, or a task.
        options: the task's options.
        shots: demonstrations of each example.
        retriever: chooses them; a registered name, or a retriever.
        retriever_options: the retriever's options.
        order: how they are arranged; default: the retriever's own.
        of: which examples are learnt: those of the ``support`` set (a training split, as a rule) or the ``queries`` (of tasks whose
            episodes have a support set of their own, and of validation splits that may be trained on).
        loss: ``query``: the example's answer is learnt; ``all``: those of its demonstrations as well.
        answer: ``own``: the example's answer; ``any``: one of its references (a picture has five captions), drawn anew in each epoch.
        style: plain or chat prompt, see :class:`~kshot.training.items.TrainingItem`.
        seed: of the demonstrations, and of answers that are drawn.

    Attributes:
        skipped: ids of examples that cannot be learnt, because they have no answer in text.

    Raises:
        OptionError: more shots than the support set can give, or an empty support set (the message names the remedy).
        DataError: no example has an answer.
        UnknownName: no such task or retriever.
    """

    def __init__(
        self,
        task: str | Task,
        *,
        options: Mapping[str, Any] | None = None,
        shots: int = 0,
        retriever: str | Retriever = "random",
        retriever_options: Mapping[str, Any] | None = None,
        order: Order | None = None,
        of: Literal["support", "queries"] = "support",
        loss: Literal["query", "all"] = "query",
        answer: Literal["own", "any"] = "own",
        style: PromptStyle = "auto",
        seed: int = 0,
    ):
        given = locals()
        self._given = {name: given[name] for name in inspect.signature(TaskSource).parameters}
        one_of("of", of, ("support", "queries"))
        one_of("loss", loss, ("query", "all"))
        one_of("answer", answer, ("own", "any"))
        one_of("style", style, get_args(PromptStyle))
        if isinstance(task, Task) and options:
            raise OptionError(f"task {task.name!r} is made already; it cannot take the options {', '.join(options)}")
        self.task = load_task(task, **(options or {}))
        if self.task.answers == "picture":
            raise OptionError(
                f"task {self.task.name!r} is answered by pictures, and this trains models that answer in text; a model of visual "
                "sentences learns from its pairs with kshot distill, or with kshot tokenize and kshot pretrain"
            )
        self.shots, self.of, self.loss, self.answer, self.style, self.seed = shots, of, loss, answer, style, seed
        self.retriever = load_retriever(retriever, order, **(retriever_options or {}))
        self._support = self.task.support if of == "support" or (shots and shares_support(self.task)) else None
        if of == "support" and not self._support:
            raise OptionError(
                f"task {self.task.name!r} has no support set that all examples share; of: queries trains on its queries"
            )
        self._examples: Sequence[Example] = self.task.queries if of == "queries" else self._support or ()
        self._places, self.skipped = _answered(self._examples, self.task.name)
        if self._support is not None and shots:
            check_shots(shots, self._support)
        elif shots < 0:
            raise OptionError(f"shots={shots}: must be 0 or more")
        self._prepared = False

    def __len__(self) -> int:
        return len(self._places)

    def __reduce__(self) -> Any:
        # Tasks hold functions, which cannot be sent to another process; there, the source is made anew.
        return partial(TaskSource, **self._given), ()

    def item(self, epoch: int, index: int) -> TrainingItem:
        if not 0 <= index < len(self):
            raise IndexError(f"item {index} of {len(self)}")
        query = self._examples[self._places[index]]
        shown: tuple[Example, ...] = ()
        if self.shots:
            pool = self._support if self._support is not None else self.task.pool(query)
            if self._support is not None and not self._prepared:
                self.retriever.prepare(pool, self._examples, self.shots)
                self._prepared = True
            # Retrievers that show all queries the same do so for an epoch.
            name = "" if self.retriever.same_for_all else query.id
            rng = generator(self.seed, "task", epoch, self.shots, name)
            shown = tuple(pool[place] for place in self.retriever.choose(query, pool, self.shots, rng))
        if self.answer == "any":
            said = [reference for reference in query.references if isinstance(reference, str)]
            rng = generator(self.seed, "answer", epoch, query.id)
            query = query.with_(answer=said[int(rng.integers(len(said)))])
        episode = Episode(shown, query, id=f"{self.task.name}-{epoch}-{query.id}")
        graded = (True,) * self.shots if self.loss == "all" else ()
        return TrainingItem(episode, self.task.template, graded, self.style, self.task.name)

    def describe(self) -> dict[str, Any]:
        shown = self.retriever.describe() if self.shots else {}
        return {
            "source": "task",
            "task": self.task.describe(),
            "of": self.of,
            "examples": len(self),
            "skipped": len(self.skipped),
            "shots": self.shots,
            "loss": self.loss,
            "answer": self.answer,
            "style": self.style,
            "seed": self.seed,
            **shown,
        }


def _answered(examples: Sequence[Example], task: str) -> tuple[list[int], tuple[str, ...]]:
    """Places of the examples that have an answer in text, and the ids of the others."""
    places: list[int] = []
    skipped: list[str] = []
    silent = len(examples) < 20_000 or None
    for place, example in enumerate(tqdm(examples, f"examples of {task}", leave=False, disable=silent)):
        if isinstance(example.answer, str):
            places.append(place)
        else:
            skipped.append(example.id)
    if not places:
        raise DataError(
            f"task {task!r}: none of {len(examples)} examples has an answer in text: {listed(skipped)}",
            remedy="take the split with answers",
        )
    return places, tuple(skipped)
