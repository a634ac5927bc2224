"""Recognising novel concepts: n-way episodes, and the two ways in which they are written.

Query ``i`` of such a task defines an episode of its own: its classes, the names under which they are offered, and the picture to
recognise. :meth:`Task.pool` is that episode's support set, from which a retriever picks the demonstrations. All of it derives
from (task seed, i), so an episode is the same in every process and in whatever order episodes are asked for.

This module holds what these tasks have in common; the tasks are in ``omniglot``, ``imagenet``, ``isekai`` and ``worlds``.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from kshot.data.derived import LazySequence, generator
from kshot.data.naming import KINDS_OF_NAMES, Names, checked_names, make_names
from kshot.data.sources import as_template
from kshot.data.task import Task
from kshot.episode import Episode, Example
from kshot.errors import DataError, OptionError, one_of
from kshot.picture import Picture
from kshot.prompt import Template

Style = Literal["plain", "link"]
"""How an episode is written: :data:`PLAIN` or :data:`LINK`."""

PLAIN = Template(
    demonstration="<image>Question:{question} Short answer:{answer}.",
    short_instruction="Answer with the name of what is in the image, and nothing else.",
)
"""Plain classification, in the form in which the VQA tasks ask their questions."""

LINK = Template(
    demonstration='USER: [BEGIN EXAMPLE] {question} <image>? ASSISTANT: there is "{answer}" in the image.',
    query='[FINAL QUESTION]: USER: {question} <image>? ASSISTANT: there is "',
    instruction="You should find the causal relationship between the examples I am going to show you. "
    "And use that to answer to the [FINAL QUESTION]. ",
    separator=" [END EXAMPLE] ",
    user="{question} <image>?",
    assistant='there is "{answer}" in the image.',
    short_instruction='Answer in this form: there is "NAME" in the image.',
)
"""The wording of Link-Context Learning (arXiv 2308.07891). In plain prompts the query ends behind the opening quotation mark."""

_THERE_IS = re.compile(r'(?:there\s+is\b\s*"?|")([^"]*)', re.IGNORECASE)

_QUESTIONS = {
    "plain": ("What is it?", "What is it?"),
    "link": ("What is in the image", "Based on the previous examples, what is in the image"),
}
"""Question of a demonstration and of the query, by style."""


@dataclass(frozen=True)
class Concept:
    """A class of pictures.

    Attributes:
        key: unique in its task; never shown to a model.
        name: its real name.
        pictures: what demonstrations are made of; also the query, unless there are ``queries``.
        queries: pictures that serve as queries only.
        group: a larger class it belongs to (an alphabet), for episodes within a group and for per-category tables.
    """

    key: str
    name: str
    pictures: Sequence[Picture]
    queries: Sequence[Picture] = ()
    group: str = ""


@dataclass(frozen=True)
class Draw:
    """What was drawn for one episode.

    Attributes:
        concepts: its classes, in the order in which their names are offered.
        target: which of them the query shows.
        query: the picture to recognise.
        held: the query's place in the pictures of its class (it is left out of the support set), ``None`` if it is not in there.
        naming: what the names derive from, beside the task's seed.
        shared: whether other episodes of the same ``naming`` are about the same classes. Then each class keeps its name in all of
            them, in whatever order the names are offered, and they can share their demonstrations.
    """

    concepts: tuple[Concept, ...]
    target: int
    query: Picture
    held: int | None
    naming: str
    shared: bool = False


class ConceptTask(Task):
    """Base of the n-way tasks; a subclass says how an episode is drawn.

    Args:
        episodes: number of queries.
        ways: classes an episode.
        seed: of everything random.
        names: how classes are called, see :data:`Names`.
        shots_per_class: demonstrations of each class that are evaluated by default; ``shots`` is always their total.
        style: how episodes are written, see :data:`Style`.
        template: a template, or fields that replace those of the style's.
    """

    metric = "two_name"
    retriever = "balanced"

    def __init__(
        self,
        *,
        episodes: int,
        ways: int,
        seed: int,
        names: Names,
        shots_per_class: int,
        style: Style,
        template: Mapping[str, str] | Template | None = None,
    ):
        names = checked_names(names, KINDS_OF_NAMES)
        one_of("style", style, tuple(_QUESTIONS))
        for option, value, least in (
            ("episodes", episodes, 1),
            ("shots_per_class", shots_per_class, 1),
            ("ways", ways, 2),
        ):
            if value < least:
                raise OptionError(f"{option}={value}: must be {least} or more")
        self.episodes, self.ways, self.seed, self.names = episodes, ways, seed, names
        self.shots_per_class, self.style = shots_per_class, style
        self.shots = (ways * shots_per_class,)
        self.template = as_template(template, LINK if style == "link" else PLAIN)
        if style == "link":
            self.controls = ("link",)
            self.further_metrics = ("two_name_upstream",) if ways == 2 else ()
        # The plain form closes an answer with a full stop; real class names may hold one ("st. bernard").
        ends = ("\n",) if names == "classes" else ("\n", ".")
        self.stop = ("\n", " in the image") if style == "link" else ends
        self.max_new_tokens = 24 if style == "link" else 16

    @abstractmethod
    def draw(self, index: int) -> Draw:
        """The classes and the query of episode ``index``."""

    @property
    def queries(self) -> Sequence[Example]:
        return LazySequence(self.episodes, self._query)

    @property
    def support(self) -> Sequence[Example]:
        """Empty: episodes share no support set, and names mean something within one episode only. See :meth:`pool`."""
        return ()

    def pool(self, query: Example) -> Sequence[Example]:
        """The support set of the episode that ``query`` belongs to: all pictures of its classes but the query itself.

        Raises:
            DataError: the query is not one of this task's.
        """
        drawn = self.draw(episode_of(query, self.name, self.episodes))
        names = self._names(drawn)
        places = [
            (way, number)
            for way, concept in enumerate(drawn.concepts)
            for number in range(len(concept.pictures))
            if not (way == drawn.target and number == drawn.held)
        ]
        return LazySequence(len(places), lambda i: self._demonstration(drawn, names, *places[i]))

    def without_demonstrations(self, query: Example) -> Episode:
        """In the link style the query's turn alone, as published: the instruction speaks of demonstrations."""
        return Episode((), query, instruction="" if self.style == "link" else None)

    def parse(self, text: str) -> str:
        """The name in a generated text; of the link style's ``there is "NAME" in the image`` what stands in quotation marks.

        In plain prompts of the link style the prompt itself opens the quotation, and the text begins with the name. An answer in
        another form ("this looks like a "stone"") is left to the metric.
        """
        text = super().parse(text)
        if self.style != "link":
            return text.rstrip(". ")  # the prompt closes each answer with a full stop, so a good model does so too
        if (quoted := _THERE_IS.match(text)) is not None:
            return quoted[1].strip()
        before, mark, _ = text.partition('"')
        return before.strip() if mark and not before[-1:].isspace() else text

    def describe(self) -> dict[str, Any]:
        options = ("ways", "episodes", "seed", "names", "shots_per_class", "style")
        chosen = {option: getattr(self, option) for option in options}
        return {"task": self.name, **chosen, "template": asdict(self.template)}

    def _query(self, index: int) -> Example:
        drawn = self.draw(index)
        names = self._names(drawn)
        target = drawn.concepts[drawn.target]
        return Example(
            images=(drawn.query,),
            question=_QUESTIONS[self.style][1],
            answer=names[drawn.target],
            choices=names,
            id=episode_id(index),
            metadata={"class": target.key, "category": target.group or target.name, "episode": index} | _shared(drawn),
        )

    def _demonstration(self, drawn: Draw, names: tuple[str, ...], way: int, number: int) -> Example:
        concept = drawn.concepts[way]
        return Example(
            images=(concept.pictures[number],),
            question=_QUESTIONS[self.style][0],
            answer=names[way],
            choices=names,
            id=f"{concept.key}#{number}",
            metadata={"class": concept.key},
        )

    def _names(self, drawn: Draw) -> tuple[str, ...]:
        if self.names == "classes":
            return tuple(concept.name for concept in drawn.concepts)
        made = make_names(self.names, len(drawn.concepts), generator(self.seed, "names", drawn.naming))
        if not drawn.shared:
            return made
        by_key = dict(zip(sorted(concept.key for concept in drawn.concepts), made, strict=True))
        return tuple(by_key[concept.key] for concept in drawn.concepts)


def _shared(drawn: Draw) -> dict[str, Any]:
    """What queries that can share their demonstrations have in common."""
    groups = {concept.group for concept in drawn.concepts if concept.group}
    return {"support": drawn.naming, "group": ", ".join(sorted(groups))} if drawn.shared else {}


def episode_id(index: int) -> str:
    """Id of the query of episode ``index``."""
    return f"episode-{index:05d}"


def episode_of(query: Example, task: str, episodes: int) -> int:
    """The number of the episode that a query of a task with so many episodes belongs to.

    Raises:
        DataError: the query is not one of this task's.
    """
    index = query.metadata.get("episode")
    if not isinstance(index, int) or not 0 <= index < episodes or query.id != episode_id(index):
        raise DataError(f"{query.id!r} is no query of the task {task!r}", remedy="take it from task.queries")
    return index
