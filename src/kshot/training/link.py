"""Link-context episodes: learn to recognise by what was just shown (Link-Context Learning, arXiv 2308.07891).

Each episode shows pictures of a *novel* class under a name that was made up for this episode, and pictures of *known* classes under
their real names, and asks what another picture of one of them shows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal, get_args

import numpy as np

from kshot.data.derived import digest, generator
from kshot.data.link_class import LinkClass
from kshot.data.link_classes import load_link_classes
from kshot.data.naming import checked_names, make_names
from kshot.data.readers import PathLike
from kshot.data.sources import as_template
from kshot.data.task import Task
from kshot.episode import Episode, Example
from kshot.errors import OptionError, listed, one_of
from kshot.metrics.common import fold
from kshot.models.base import PromptStyle
from kshot.prompt import Template
from kshot.training.items import Source, TrainingItem, sources
from kshot.training.link_prompts import (
    PLAIN_QUESTION,
    QUERY_QUESTION,
    QUERY_QUESTIONS,
    SUPPORT_QUESTION,
    TEMPLATES,
)
from kshot.training.link_sides import Negatives, Sides, SideSampler, seen_before
from kshot.training.shot_samplers import make_shots

MadeUp = Literal["letters", "invented"]
"""Made-up names: 1 to 10 random letters, as upstream, or pronounceable inventions."""

TRIED, KEPT = 256, 8
"""To check a model's context with: of so many items with the most demonstrations, the so many longest ones."""


class ClassEpisodes(Source):
    """What the sources of episodes made from classes of pictures share: one episode a class and epoch.

    Args:
        source: where the classes are, see :func:`~kshot.data.link_classes.load_link_classes`.
        root, class_names, options: its arguments ``root``, ``names`` and further ones.
        episodes_per_class: episodes of each class in an epoch.
        style: see :class:`~kshot.training.items.TrainingItem`.
        seed: of everything random.
    """

    kind: str

    def __init__(
        self,
        source: PathLike | Task | Sequence[LinkClass],
        *,
        root: PathLike | None,
        class_names: Mapping[str, str] | PathLike | None,
        options: Mapping[str, Any] | None,
        episodes_per_class: int,
        style: PromptStyle,
        seed: int,
    ):
        one_of("style", style, get_args(PromptStyle))
        if episodes_per_class < 1:
            raise OptionError(f"episodes_per_class={episodes_per_class}: must be 1 or more")
        self.classes = load_link_classes(source, root=root, names=class_names, **(options or {}))
        self.episodes_per_class, self.style, self.seed = episodes_per_class, style, seed

    def __len__(self) -> int:
        return len(self.classes) * self.episodes_per_class

    def class_of(self, index: int) -> LinkClass:
        """The class of an episode; each pass through all classes takes as many episodes as there are classes."""
        if not 0 <= index < len(self):
            raise IndexError(f"episode {index} of {len(self)}")
        return self.classes[index % len(self.classes)]

    def rng(self, epoch: int, index: int) -> np.random.Generator:
        """The only source of randomness of an episode."""
        return generator(self.seed, self.kind, epoch, index)

    def describe(self) -> dict[str, Any]:
        return {
            "source": self.kind,
            "seed": self.seed,
            "episodes_per_class": self.episodes_per_class,
            "style": self.style,
        }


@sources.register("link")
class LinkEpisodes(ClassEpisodes):
    """Link-context episodes, each class being the novel one once an epoch.

    Args:
        source: a file in the format of ``train900_pairs.jsonl``, a folder with one sub-folder a class, an Omniglot archive, or the
            name of a task with classes (``omniglot``, ``glyphs``, ``digits``).
        root: what the paths in the file are relative to, such as the ImageNet folder; of a task: its ``root``.
        class_names: of folders: a class' name where it is not the folder's, or a JSON file with that.
        options: further options of the task.
        ways: classes an episode: one novel, the others known.
        sampler: ``fixed``, ``uniform`` or ``exponential``, see :mod:`kshot.training.shot_samplers`.
        shots_per_side: most demonstrations of a class; or give
        total_shots: most demonstrations in total.
        min_shots_per_side: fewest demonstrations of a class.
        base: of ``exponential``: a number, ``paper`` (e) or ``release``.
        negatives: ``neighbours`` (similar classes, the most similar ones most often) or ``random``.
        stored_pictures: whether the first picture of a neighbour is the one stored in the file, as published.
        repeat_pictures: allow classes with fewer pictures than demonstrations.
        names: made-up names: ``letters`` or ``invented``, or a list of names to draw from.
        novel: ``one``: known classes bear their real names in lower case; ``all``: theirs are made up, too.
        rename: probability that a known class bears a made-up name, each for itself; ``novel: all`` means 1.
        questions: ``varied``: a wording of the query's question drawn for each episode; ``fixed``: that of the evaluation.
        loss: ``query``: the query's answer is learnt, as published; ``shown``: also that of each demonstration whose class was
            shown before.
        template: ``link`` (the paper's), ``plain``, or fields that replace those of ``link``.
        style: ``plain``, ``chat``, or ``auto``: chat where the model has a chat template.
        episodes_per_class: episodes of each class in an epoch.
        seed: of everything random.

    Raises:
        DataError: a source that is missing or malformed, or classes with too few pictures or neighbours (they are listed).
        OptionError: an option out of range, or two that contradict each other.
        UnknownName: no such sampler or task.
    """

    kind = "link"

    def __init__(
        self,
        source: PathLike | Task | Sequence[LinkClass],
        *,
        root: PathLike | None = None,
        class_names: Mapping[str, str] | PathLike | None = None,
        options: Mapping[str, Any] | None = None,
        ways: int = 2,
        sampler: str = "fixed",
        shots_per_side: int | None = None,
        total_shots: int | None = None,
        min_shots_per_side: int = 1,
        base: float | str = "paper",
        negatives: Negatives = "neighbours",
        stored_pictures: bool = True,
        repeat_pictures: bool = False,
        names: MadeUp | Sequence[str] = "letters",
        novel: Literal["one", "all"] = "one",
        rename: float = 0.0,
        questions: Literal["varied", "fixed"] = "varied",
        loss: Literal["query", "shown"] = "query",
        template: Literal["link", "plain"] | Template | Mapping[str, str] = "link",
        style: PromptStyle = "auto",
        episodes_per_class: int = 1,
        seed: int = 0,
    ):
        names = checked_names(names, get_args(MadeUp))
        one_of("novel", novel, ("one", "all"))
        one_of("questions", questions, ("varied", "fixed"))
        one_of("loss", loss, ("query", "shown"))
        if isinstance(template, str):
            one_of("template", template, tuple(TEMPLATES))
        if not 0 <= rename <= 1:
            raise OptionError(f"rename={rename}: a probability, so 0 to 1")
        shots = make_shots(
            sampler,
            ways=ways,
            shots_per_side=shots_per_side,
            total_shots=total_shots,
            min_shots_per_side=min_shots_per_side,
            base=base,
        )
        super().__init__(
            source,
            root=root,
            class_names=class_names,
            options=options,
            episodes_per_class=episodes_per_class,
            style=style,
            seed=seed,
        )
        self.sides = SideSampler(
            self.classes,
            shots,
            negatives=negatives,
            stored_pictures=stored_pictures,
            repeat_pictures=repeat_pictures,
        )
        self.names, self.novel, self.rename, self.loss = names, novel, 1.0 if novel == "all" else rename, loss
        self.template = TEMPLATES[template] if isinstance(template, str) else as_template(template, TEMPLATES["link"])
        self.questions = questions
        plain = template == "plain"
        self._question = PLAIN_QUESTION if plain else SUPPORT_QUESTION
        fixed = PLAIN_QUESTION if plain else QUERY_QUESTION
        self._query_questions = QUERY_QUESTIONS if questions == "varied" and not plain else (fixed,)

    def item(self, epoch: int, index: int) -> TrainingItem:
        return self._item(epoch, index)

    def longest(self) -> list[TrainingItem]:
        return longest_of(self, lambda index: self._item(0, index, self.sides.shots.most))

    def describe(self) -> dict[str, Any]:
        return {
            **super().describe(),
            **self.sides.describe(),
            "names": self.names,
            "rename": self.rename,
            "questions": self.questions,
            "wordings": digest("\n".join(self._query_questions)),
            "loss": self.loss,
            "template": asdict(self.template),
        }

    def _item(self, epoch: int, index: int, per_side: int | None = None) -> TrainingItem:
        rng = self.rng(epoch, index)
        drawn = self.sides.draw(self.class_of(index), rng, per_side=per_side)
        names = self._names(drawn, rng)
        asked = self._query_questions[int(rng.integers(len(self._query_questions)))]
        demonstrations = tuple(_example(drawn, names, place, self._question) for place in range(len(drawn.support)))
        graded = seen_before([shown.side for shown in drawn.support]) if self.loss == "shown" else ()
        episode = Episode(demonstrations, _example(drawn, names, None, asked), id=f"{self.kind}-{epoch}-{index}")
        return TrainingItem(episode, self.template, graded, self.style, self.kind)

    def _names(self, drawn: Sides, rng: np.random.Generator) -> tuple[str, ...]:
        """The sides' names, no two of them the same.

        Raises:
            OptionError: the names to draw from are real names of the known sides.
        """
        made_up = [side == 0 or rng.random() < self.rename for side in range(len(drawn.classes))]
        real = {fold(one.name) for one, made in zip(drawn.classes, made_up, strict=True) if not made}
        for _ in range(1000):
            invented = make_names(self.names, sum(made_up), rng)
            if not any(fold(name) in real for name in invented):
                names = iter(invented)
                return tuple(
                    next(names) if made else one.name.lower() for one, made in zip(drawn.classes, made_up, strict=True)
                )
        raise OptionError(f"names: none could be drawn that is not the name of a known class, {listed(sorted(real))}")


def _example(drawn: Sides, names: tuple[str, ...], place: int | None, question: str) -> Example:
    """Demonstration ``place``, or the query (``None``)."""
    shown = drawn.query if place is None else drawn.support[place]
    return Example(
        images=(shown.picture,),
        question=question,
        answer=names[shown.side],
        choices=names,
        id=shown.id,
        metadata={"class": drawn.classes[shown.side].key, "side": "known" if shown.side else "novel"},
    )


def longest_of(source: Source, make: Callable[[int], TrainingItem]) -> list[TrainingItem]:
    """The longest items, in characters, of a few hundred that ``make`` gives, from all over the source."""
    count = min(TRIED, len(source))
    made = [make(round(i * (len(source) - 1) / max(1, count - 1))) for i in range(count)]
    return sorted(made, key=_length, reverse=True)[:KEPT]


def _length(item: TrainingItem) -> int:
    """Characters of an item's questions and answers."""
    examples = (*item.episode.demonstrations, item.episode.query)
    return sum(len(example.question) + len(example.text_answer) for example in examples)
