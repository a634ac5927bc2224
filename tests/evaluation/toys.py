"""A small real task and a model that follows a rule, so that every figure is known beforehand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from PIL import Image

from kshot.data.task import Task
from kshot.episode import Episode, Example
from kshot.picture import Picture, as_picture
from kshot.prompt import Template

COLOURS = {"red": (200, 0, 0), "green": (0, 160, 0), "blue": (0, 0, 220), "grey": (128, 128, 128)}
NAMES = {"red": "dax", "green": "wug", "blue": "fep"}


def swatch(colour: str, number: int) -> Image.Image:
    """A plain picture; the number makes it unlike all others of its colour."""
    image = Image.new("RGB", (8, 8), COLOURS[colour])
    image.putpixel((0, 0), (number % 256, number // 256 % 256, 1))
    return image


def colour_of(picture: Picture) -> str:
    pixel = picture.load().getpixel((7, 7))
    return next(name for name, value in COLOURS.items() if value == pixel)


class Swatches(Task):
    """Name the colour by names that only the demonstrations tell."""

    name = "swatches"
    metric = "exact_match"
    retriever = "balanced"
    shots = (0, 3)
    labels = tuple(NAMES.values())
    template = Template("<image>{question} {answer}", separator="\n", short_instruction="Answer with one word.")

    def __init__(self, queries: int = 150, bad: Sequence[int] = (), bad_demonstration: bool = False):
        colours = list(NAMES)
        self._queries = [self._example(f"q{i}", colours[i % 3], i) for i in range(queries)]
        for i in bad:
            self._queries[i] = self._queries[i].with_(images=(as_picture(b"no image", f"broken{i}.png"),))
        self._support = [self._example(f"s{i}", colours[i % 3], 1000 + i) for i in range(12)]
        if bad_demonstration:
            self._support[0] = self._support[0].with_(images=(as_picture(b"", "empty.png"),))

    @staticmethod
    def _example(name: str, colour: str, number: int) -> Example:
        return Example(swatch(colour, number), "what?", NAMES[colour], id=name, metadata={"category": colour})

    @property
    def queries(self):
        return self._queries

    @property
    def support(self):
        return self._support


class Lookup:
    """Answers with the most frequent label among the demonstrations of the query's colour: a perfect learner.

    Without such a demonstration it says "?"; without a query image it repeats the last label.
    """

    name = "lookup"

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def _one(self, episode: Episode) -> str:
        if not episode.query.images:
            return episode.demonstrations[-1].text_answer if episode.demonstrations else "nothing"
        seen = colour_of(episode.query.images[0])
        said = Counter(d.text_answer for d in episode.demonstrations if colour_of(d.images[0]) == seen)
        return said.most_common(1)[0][0] if said else "?"

    def answer(self, episodes, *, template=None, stop=(), **options):
        self.calls.append([episode.query.id for episode in episodes])
        told = [bool(e.instruction and template.short_instruction in e.instruction) for e in episodes]
        return [f" {self._one(e)}{' told' * t}\nand so on" for e, t in zip(episodes, told, strict=True)]

    def score(self, episodes, candidates, **options):
        self.calls.append([episode.query.id for episode in episodes])
        shared = isinstance(candidates[0], str)
        return [
            [0.0 if c == self._one(e) else -5.0 for c in (candidates if shared else candidates[i])]
            for i, e in enumerate(episodes)
        ]

    def describe(self):
        return {"name": self.name, "weights": "none", "versions": {"toy": "1"}}
