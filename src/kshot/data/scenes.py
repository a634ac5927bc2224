"""Questions with a hidden task: everybody is asked "What is it?", and only the demonstrations show what is meant.

A scene (see ``drawing.scenes``) has eight attributes. In each episode one of them is the task: the demonstrations answer with the
scene's colour, or with its count ..., and so must the answer. Two variants ask for more than telling which of eight known tasks is
meant: values under invented names, and values whose words are permuted, so that a model that names what it sees is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from itertools import product
from typing import Any, Literal

import numpy as np

from kshot.data.concepts import PLAIN, episode_id, episode_of
from kshot.data.derived import LazySequence, generator
from kshot.data.drawing import SCENE_TASKS, Scene, is_held_out
from kshot.data.naming import make_names
from kshot.data.sources import as_template
from kshot.data.task import Task, tasks
from kshot.data.worlds import PIXELS, SPLITS
from kshot.episode import Example
from kshot.errors import OptionError, one_of
from kshot.picture import DrawnPicture
from kshot.prompt import Template

HeldOut = Literal["query", "all", "none"]
Labels = Literal["words", "invented", "permuted"]

QUESTION = "What is it?"

ASKING = {
    "colour": "What colour is the filled shape?",
    "shape": "What shape is filled?",
    "size": "Is the filled shape small or big?",
    "position": "In which corner is the filled shape?",
    "count": "How many shapes are there?",
    "background": "What colour is the background?",
    "outline_colour": "What colour are the outlines?",
    "outline_shape": "What shape are the outlines?",
}
"""Questions that say what is meant, by attribute."""

WORDS: tuple[str, ...] = tuple(sorted({word for words in SCENE_TASKS.values() for word in words}))
"""All words of all tasks."""


@tasks.register("scenes")
class Scenes(Task):
    """Hidden-task questions about generated scenes; query i asks for attribute ``i % len(tasks)``.

    Each query has a support set of its own: fresh scenes, answered in the query's task. With ``labels="words"`` demonstrations
    are random (the right answer need not be among them), the metric is exact match, and candidates are the words of *all*
    tasks. With renamed labels an episode shows ``ways`` values of the attribute in equal numbers, the query's among them, and
    is judged among their names.

    Args:
        tasks: names of attributes, see ``drawing.SCENE_TASKS``; default: all eight.
        episodes: number of queries.
        seed: of everything random.
        ask: ``hidden``: "What is it?", whatever is meant; ``named``: questions that say it, for models that answer without
            demonstrations.
        labels: ``words``; ``invented``: an invented name for each value; ``permuted``: each value bears another value's word.
        ways: values in an episode of renamed labels.
        held_out: where the filled shape is one of the colour-shape pairs that the embedded model never saw: in the ``query``,
            in ``all`` scenes, or in ``none``.
        pool_size: scenes in the support set of a query.
        template: fields that replace those of the template.
    """

    name = "scenes"

    def __init__(
        self,
        tasks: Sequence[str] | str | None = None,
        episodes: int = 800,
        seed: int = 0,
        ask: Literal["hidden", "named"] = "hidden",
        labels: Labels = "words",
        ways: int = 2,
        held_out: HeldOut = "query",
        pool_size: int = 64,
        template: Mapping[str, str] | Template | None = None,
    ):
        self.tasks = tuple(SCENE_TASKS) if tasks is None else (tasks,) if isinstance(tasks, str) else tuple(tasks)
        for task in self.tasks:
            one_of("tasks", task, tuple(SCENE_TASKS))
        one_of("labels", labels, ("words", "invented", "permuted"))
        one_of("ask", ask, ("hidden", "named"))
        one_of("held_out", held_out, ("query", "all", "none"))
        if not self.tasks or len(set(self.tasks)) < len(self.tasks):
            raise OptionError(f"tasks={self.tasks}: name at least one attribute, and each once")
        for option, value, least in (("episodes", episodes, 1), ("ways", ways, 2), ("pool_size", pool_size, 1)):
            if value < least:
                raise OptionError(f"{option}={value}: must be {least} or more")
        self.episodes, self.seed, self.ask, self.kind, self.ways = episodes, seed, ask, labels, ways
        self.held_out, self.pool_size = held_out, pool_size
        self.template = as_template(template, PLAIN)
        self.stop, self.max_new_tokens = ("\n", "."), 16
        self.labels = () if labels == "invented" else WORDS
        self.metric, self.retriever = "exact_match", "random"
        self.shots = (0, 1, 2, 4, 8)
        if labels != "words":
            few = [t for t in self.tasks if len(_possible(t, held_out == "all")) < ways]
            if few:
                known = ", ".join(t for t in SCENE_TASKS if len(_possible(t, held_out == "all")) >= ways)
                remedy = f"name others with tasks=: {known}" if known else "ask for fewer ways"
                raise OptionError(f"ways={ways}: too few values in {', '.join(few)}; {remedy}")
            self.metric, self.retriever = "two_name", "balanced"
            self.shots = (ways, 2 * ways, 4 * ways)

    @property
    def queries(self) -> Sequence[Example]:
        return LazySequence(self.episodes, self._query)

    @property
    def support(self) -> Sequence[Example]:
        """For methods that learn one task from one support set: scenes of ``validation`` seeds, answered in the tasks in turn.

        Empty with renamed labels, whose names mean something within one episode only.
        """
        if self.kind != "words":
            return ()
        return LazySequence(len(self.tasks) * 512, self._shared)

    def pool(self, query: Example) -> Sequence[Example]:
        """The support set of the episode that ``query`` belongs to.

        Raises:
            DataError: the query is not one of this task's.
        """
        index = episode_of(query, self.name, self.episodes)
        task, names = self._task(index), self._names(index)
        values = tuple(names)

        def demonstration(number: int) -> Example:
            # Values in turn, so that a support set of any size holds them in equal numbers.
            fixed = {task: values[number % len(values)]} if values else {}
            rng = generator(self.seed, "support", index, number)
            scene = draw_scene(rng, held_out=self.held_out == "all", fixed=fixed)
            return self._example(scene, task, names, f"{episode_id(index)}#{number}", {"class": getattr(scene, task)})

        return LazySequence(self.pool_size, demonstration)

    def parse(self, text: str) -> str:
        return (
            super().parse(text).rstrip(". ")
        )  # the prompt closes each answer with a full stop, so a good model does so too

    def describe(self) -> dict[str, Any]:
        return {
            "task": self.name,
            "tasks": list(self.tasks),
            "labels": self.kind,
            **{o: getattr(self, o) for o in ("episodes", "seed", "ask", "ways", "held_out", "pool_size")},
        }

    def _task(self, index: int) -> str:
        return self.tasks[index % len(self.tasks)]

    def _query(self, index: int) -> Example:
        task, names = self._task(index), self._names(index)
        held_out = self.held_out != "none"
        rng = generator(self.seed, "query", index)
        shown = [value for value in names if value in _possible(task, held_out)]
        fixed = {task: shown[rng.integers(len(shown))]} if names else {}
        scene = draw_scene(rng, held_out=held_out, fixed=fixed)
        return self._example(scene, task, names, episode_id(index), {"category": task, "episode": index})

    def _names(self, index: int) -> dict[str, str]:
        """Value -> what it is called in this episode, in the order in which the names are offered; empty for words."""
        if self.kind == "words":
            return {}
        task = self._task(index)
        rng = generator(self.seed, "names", index)
        values = _possible(task, self.held_out == "all")
        while True:
            chosen = [values[i] for i in rng.choice(len(values), self.ways, replace=False)]
            if set(chosen) & set(
                _possible(task, self.held_out != "none")
            ):  # the query must be able to show one of them
                break
        if self.kind == "invented":
            return dict(zip(chosen, make_names("invented", self.ways, rng), strict=True))
        while True:
            words = [chosen[i] for i in rng.permutation(self.ways)]
            if all(word != value for word, value in zip(words, chosen, strict=True)):
                return dict(zip(chosen, words, strict=True))

    def _shared(self, number: int) -> Example:
        task = self.tasks[number % len(self.tasks)]
        rng = generator(self.seed, "shared", number)
        scene = draw_scene(rng, held_out=self.held_out == "all", seeds=SPLITS["validation"])
        metadata = {"class": getattr(scene, task), "category": task}
        return self._example(scene, task, {}, f"support-{number:05d}", metadata)

    def _example(self, scene: Scene, task: str, names: Mapping[str, str], id: str, metadata: dict[str, Any]) -> Example:
        value = getattr(scene, task)
        described = f"scene {' '.join(scene.words().values())} {scene.seed}"
        return Example(
            images=(DrawnPicture(lambda: scene.draw(PIXELS), described),),
            question=QUESTION if self.ask == "hidden" else ASKING[task],
            answer=names.get(value, value),
            choices=tuple(names.values()),
            id=id,
            metadata=metadata,
        )


def draw_scene(
    rng: np.random.Generator,
    *,
    held_out: bool,
    fixed: Mapping[str, str] | None = None,
    seeds: range = SPLITS["test"],
) -> Scene:
    """A scene at random: uniform over all that show the fixed words and whose filled shape is (or is not) a held-out pair.

    Args:
        fixed: words of some attributes; there must be a colour-shape pair that agrees with them.
        seeds: what the seed of the scene, which decides its layout, is taken from.
    """
    fixed = fixed or {}
    words = {name: known[rng.integers(len(known))] for name, known in SCENE_TASKS.items()}
    pairs = _pairs(held_out, fixed.get("colour"), fixed.get("shape"))
    words["colour"], words["shape"] = pairs[rng.integers(len(pairs))]
    return Scene(**(words | dict(fixed)), seed=int(rng.integers(seeds.start, seeds.stop)))


@cache
def _pairs(held_out: bool, colour: str | None = None, shape: str | None = None) -> tuple[tuple[str, str], ...]:
    """The pairs of colour and shape that are (or are not) held out, of a given colour or shape if there is one."""
    every = product(SCENE_TASKS["colour"], SCENE_TASKS["shape"])
    return tuple(p for p in every if is_held_out(*p) == held_out and colour in (None, p[0]) and shape in (None, p[1]))


def _possible(task: str, held_out: bool) -> tuple[str, ...]:
    """The values of an attribute that scenes with (or without) a held-out colour-shape pair can show."""
    if task not in ("colour", "shape"):
        return SCENE_TASKS[task]
    shown = {pair[task == "shape"] for pair in _pairs(held_out)}
    return tuple(value for value in SCENE_TASKS[task] if value in shown)
