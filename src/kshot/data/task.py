"""What a task is: examples, the way they are written, and how answers are judged.

A task is one class with a few attributes (see ``docs/how-to`` for adding one). It gives a *support set*, from which
demonstrations are chosen, and *queries*. Most tasks have one support set for all queries; episodic tasks (n-way recognition of
novel concepts) give each query its own through :meth:`Task.pool`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

from kshot.episode import Episode, Example
from kshot.prompt import Template
from kshot.registry import Registry


class Task(ABC):
    """Base of all tasks.

    Class attributes (an instance may override them):
        answers: whether examples are answered by text or by a picture.
        template: how an example is written.
        metric: name of the main metric in the registry (of :mod:`kshot.metrics.pictures` where answers are pictures).
        stop: strings at which a generated answer ends (they are cut off with all that follows).
        max_new_tokens: room for an answer.
        retriever: the retriever used unless the user names another.
        shots: numbers of demonstrations evaluated by default.
        labels: all labels of the task where they form a closed set: candidates of likelihood scoring. Candidates are always *all*
            labels, never those of one query's category, so that their choice cannot give the task away.
        controls: names of controls (or of sets of them) that are evaluated with every score unless the user says otherwise.
        further_metrics: names of metrics that are reported beside the main one.
        zero_shot_task: the task that is asked in place of this one where no demonstrations are shown, if that is asked in another way
            (another question, another metric). Its queries bear the same ids.
    """

    name: ClassVar[str]
    answers: Literal["text", "picture"] = "text"
    template: Template
    metric: str = "exact_match"
    stop: tuple[str, ...] = ("\n",)
    max_new_tokens: int = 10
    retriever: str = "random"
    shots: tuple[int, ...] = (0, 1, 4, 8)
    labels: tuple[str, ...] = ()
    controls: tuple[str, ...] = ()
    further_metrics: tuple[str, ...] = ()
    zero_shot_task: Task | None = None

    @property
    @abstractmethod
    def queries(self) -> Sequence[Example]:
        """The examples to answer. Ids are unique. Images are decoded lazily."""

    @property
    @abstractmethod
    def support(self) -> Sequence[Example]:
        """The labelled examples that demonstrations are chosen from."""

    def pool(self, query: Example) -> Sequence[Example]:
        """The support set of one query. Default: the same for all queries."""
        return self.support

    def without_demonstrations(self, query: Example) -> Episode:
        """The episode of a query that is shown no demonstrations."""
        return Episode((), query)

    def parse(self, text: str) -> str:
        """The prediction in a generated text: what stands before the first stop string, without white space around it."""
        for stop in self.stop:
            text = text.split(stop, 1)[0]
        return text.strip()

    def candidates(self, query: Example) -> tuple[str, ...]:
        """Candidates for likelihood scoring: the task's closed label set, or else the choices that the query itself prints."""
        return self.labels or query.choices

    def describe(self) -> dict[str, Any]:
        """What identifies the task in a run folder: name, sources, options; JSON-serialisable, without machine paths where
        a hash or a name will do."""
        return {"task": self.name}


tasks: Registry[Callable[..., Task]] = Registry(
    "task",
    "kshot.tasks",
    (
        "kshot.data.vqa",
        "kshot.data.captions",
        "kshot.data.choice",
        "kshot.data.pope",
        "kshot.data.gqa",
        "kshot.data.clevr",
        "kshot.data.vcr",
        "kshot.data.explanations",
        "kshot.data.conversations",
        "kshot.data.omniglot",
        "kshot.data.imagenet",
        "kshot.data.isekai",
        "kshot.data.jsonl",
        "kshot.data.folder",
        "kshot.data.hub",
        "kshot.data.worlds",
        "kshot.data.concept_pair",
        "kshot.data.scenes",
        "kshot.data.functions",
        "kshot.data.referring",
        "kshot.data.point_qa",
        "kshot.data.visual7w",
        "kshot.data.entities",
        "kshot.visual.tasks.pairs",
        "kshot.visual.tasks.pascal",
        "kshot.visual.tasks.colorization",
        "kshot.visual.tasks.depth",
        "kshot.visual.tasks.keypoints",
    ),
)


def load_task(name: str | Task, **options: Any) -> Task:
    """A task by its registered name, e.g. ``load_task("omniglot", root="images_background_small2.zip", ways=5)``.

    Args:
        name: registered name; a :class:`Task` is returned as it is.
        options: the task's own arguments.

    Raises:
        UnknownName: no such task.
        OptionError: the task has no such option, or lacks one that it needs; the message names the options it takes.
        DataError: its files are missing or damaged.
    """
    if isinstance(name, Task):
        return name
    return build("task", tasks, name, options)


def build(kind: str, registry: Registry[Callable[..., Any]], name: str, options: dict[str, Any]) -> Any:
    """Call a registered part with options, turning a wrong or missing option into a readable error."""
    import inspect

    from kshot.errors import OptionError

    maker = registry.get(name)
    signature = inspect.signature(maker)
    try:
        signature.bind(**options)
    except TypeError as error:
        known = ", ".join(signature.parameters)
        raise OptionError(f"{kind} {name!r}: {error}; its options are: {known or 'none'}") from None
    return maker(**options)
