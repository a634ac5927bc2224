"""A small source of episodes for tests of training."""

from __future__ import annotations

from kshot.data.concepts import PLAIN
from kshot.data.derived import generator
from kshot.data.task import load_task
from kshot.episode import Episode
from kshot.training.items import Source, TrainingItem


class Glyphs(Source):
    """2-way episodes of generated glyphs; the number of demonstrations varies from item to item."""

    def __init__(
        self, size: int = 12, shots: tuple[int, ...] = (2, 4), seed: int = 0, graded: bool = False, style: str = "auto"
    ):
        self.size, self.shots, self.seed, self.graded, self.style = size, shots, seed, graded, style
        self.task = load_task("glyphs", episodes=size, seed=seed)

    def __len__(self) -> int:
        return self.size

    def item(self, epoch: int, index: int) -> TrainingItem:
        query = self.task.queries[index]
        pool = self.task.pool(query)
        rng = generator(self.seed, "toy", epoch, index)
        shots = int(rng.choice(self.shots))
        chosen = rng.choice(len(pool), shots, replace=False)
        episode = Episode(tuple(pool[int(i)] for i in chosen), query)
        return TrainingItem(episode, PLAIN, (True,) * shots if self.graded else (), self.style, "glyphs")

    def describe(self):
        return {"source": "toy", "size": self.size, "shots": list(self.shots), "seed": self.seed, "graded": self.graded}
