"""Two novel concepts under invented names, with one support set for all queries: for methods that learn a task from examples.

Episodic tasks name their classes anew in each episode, so that an adapter could learn nothing from them that lasts. Here the
concepts and their names are drawn once, from the seed: what demonstrations of them say can be learnt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from kshot.data.concepts import PLAIN
from kshot.data.derived import LazySequence, digest, generator
from kshot.data.drawing import draw_glyph
from kshot.data.naming import make_names
from kshot.data.sources import as_template
from kshot.data.task import Task, tasks
from kshot.data.worlds import PIXELS, SPLITS, Split, digit_classes
from kshot.episode import Example
from kshot.errors import OptionError, one_of
from kshot.picture import DrawnPicture, Picture
from kshot.prompt import Template

World = Literal["glyphs", "digits"]
QUESTION = "What is it?"


@tasks.register("concept_pair")
class ConceptPair(Task):
    """Which of two novel concepts is it?

    Support set and queries hold the two in equal numbers and have no picture in common.

    Args:
        world: ``glyphs``: generated characters; ``digits``: two of scikit-learn's handwritten digits.
        pair: number of the pair; another number, other concepts and names.
        seed: of concepts, names and queries.
        queries: number of queries.
        support: number of labelled examples.
        split: which characters, see :data:`~kshot.data.worlds.SPLITS`.
        template: fields that replace those of the template.
    """

    name = "concept_pair"

    def __init__(
        self,
        world: World = "glyphs",
        pair: int = 0,
        seed: int = 0,
        queries: int = 500,
        support: int = 256,
        split: Split = "test",
        template: Mapping[str, str] | Template | None = None,
    ):
        one_of("world", world, ("glyphs", "digits"))
        one_of("split", split, tuple(SPLITS))
        for option, value, least in (("pair", pair, 0), ("queries", queries, 1), ("support", support, 2)):
            if value < least:
                raise OptionError(f"{option}={value}: must be {least} or more")
        self.world, self.pair, self.seed, self.split = world, pair, seed, split
        self.template = as_template(template, PLAIN)
        self.stop, self.max_new_tokens = ("\n", "."), 16
        self.metric, self.retriever, self.shots = "two_name", "balanced", (0, 2, 4, 8)
        self._names = make_names("invented", 2, generator(seed, "pair names", pair))
        self.labels = self._names
        self._keys, self._pictures = (self._digits if world == "digits" else self._glyphs)(queries, support)
        self._queries = LazySequence(queries, lambda number: self._example("query", number))
        self._support = LazySequence(support, lambda number: self._example("support", number))

    @property
    def queries(self) -> Sequence[Example]:
        return self._queries

    @property
    def support(self) -> Sequence[Example]:
        return self._support

    def parse(self, text: str) -> str:
        return super().parse(text).rstrip(". ")  # the prompt closes each answer with a full stop

    def describe(self) -> dict[str, Any]:
        return {
            "task": self.name,
            **{option: getattr(self, option) for option in ("world", "pair", "seed", "split")},
            "names": list(self._names),
            "concepts": digest(" ".join(self._keys)),
            "queries": len(self._queries),
            "support": len(self._support),
        }

    def _glyphs(self, queries: int, support: int) -> tuple[list[str], dict[str, tuple[Sequence[Picture], ...]]]:
        drawn = generator(self.seed, "pair glyphs", self.pair).choice(1000, 2, replace=False)
        seeds = [SPLITS[self.split][int(number)] for number in drawn]

        def pictures(seed: int, first: int, count: int) -> Sequence[Picture]:
            def picture(number: int) -> Picture:
                sample = first + number
                return DrawnPicture(lambda: draw_glyph(seed, sample, size=PIXELS), f"glyph {seed}, drawing {sample}")

            return LazySequence(count, picture)

        many = (support + 1) // 2
        return [f"glyph{seed}" for seed in seeds], {
            "support": tuple(pictures(seed, 0, many) for seed in seeds),
            "query": tuple(pictures(seed, many, (queries + 1) // 2) for seed in seeds),
        }

    def _digits(self, queries: int, support: int) -> tuple[list[str], dict[str, tuple[Sequence[Picture], ...]]]:
        known = digit_classes()
        chosen = [known[int(n)] for n in generator(self.seed, "pair digits", self.pair).choice(10, 2, replace=False)]
        for option, count, held in (
            ("support", support, min(len(concept.pictures) for concept in chosen)),
            ("queries", queries, min(len(concept.queries) for concept in chosen)),
        ):
            if (count + 1) // 2 > held:
                raise OptionError(
                    f"{option}={count}: there are {held} images of each of the digits; take {2 * held} at most"
                )
        return [concept.key for concept in chosen], {
            "support": tuple(concept.pictures for concept in chosen),
            "query": tuple(concept.queries for concept in chosen),
        }

    def _example(self, kind: str, number: int) -> Example:
        which = number % 2
        return Example(
            images=(self._pictures[kind][which][number // 2],),
            question=QUESTION,
            answer=self._names[which],
            choices=self._names,
            id=f"{kind}-{number:05d}",
            metadata={"class": self._keys[which], "category": self._names[which]},
        )
