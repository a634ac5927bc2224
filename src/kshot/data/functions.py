"""Picture functions: the answer is a picture, and only the demonstrations show how it comes from the question.

In each episode one function is meant: recolouring, turning, shifting, outlining ... The demonstrations are pairs of a picture and what
the function makes of it, and so must the query's answer be. The pictures are boards of coloured pieces
(:mod:`kshot.data.drawing.tiles`), on which every function is exact, so that an answer can be compared to the last token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from kshot.data.concepts import episode_id, episode_of
from kshot.data.derived import LazySequence, generator
from kshot.data.drawing.functions import (
    BASIC,
    FUNCTIONS,
    random_boards,
    shows_held_out,
    telling,
)
from kshot.data.drawing.tiles import Board, draw_board
from kshot.data.sources import as_template
from kshot.data.task import Task, tasks
from kshot.episode import Example
from kshot.errors import OptionError, UnknownName
from kshot.picture import DrawnPicture
from kshot.prompt import Template

PICTURE_PAIR = Template(demonstration="<image>{answer}", separator="")
"""Question and answer side by side; there is nothing to be said."""


@tasks.register("functions")
class Functions(Task):
    """What does the function of the demonstrations make of this picture? Query i asks for function ``i % len(functions)``.

    Each query has a support set of its own: fresh pictures and what the same function makes of them. Every picture shown tells what
    the function is (``drawing.functions.telling``), so that even one demonstration suffices in principle.

    Args:
        functions: names, see ``drawing.functions.FUNCTIONS``; default: the 25 basic ones.
        episodes: number of queries.
        seed: of everything random.
        held_out: whether the query shows a piece of one of the four pairs of colour and shape that the language model of
            ``tiny-visual`` never saw.
        pool_size: demonstrations in the support set of a query.
        split: which boards: ``test``, ``validation`` or ``train``; ``tiny-visual`` is trained on the last and no others.
        template: fields that replace those of the template.
    """

    name = "functions"
    answers = "picture"
    metric, retriever, shots = "pixel_l1", "random", (1, 2, 3, 4)

    def __init__(
        self,
        functions: Sequence[str] | str | None = None,
        episodes: int = 750,
        seed: int = 0,
        held_out: bool = False,
        pool_size: int = 32,
        split: str = "test",
        template: Mapping[str, str] | Template | None = None,
    ):
        if functions is None:
            functions = [function.name for function in BASIC]
        self.functions = (functions,) if isinstance(functions, str) else tuple(functions)
        for name in self.functions:
            if name not in FUNCTIONS:
                raise UnknownName("picture function", name, FUNCTIONS)
        if not self.functions or len(set(self.functions)) < len(self.functions):
            raise OptionError(f"functions={self.functions}: name at least one, and each once")
        if split not in ("train", "validation", "test"):
            raise OptionError(f"split={split!r}: must be 'train', 'validation' or 'test'")
        for option, value in (("episodes", episodes), ("pool_size", pool_size)):
            if value < 1:
                raise OptionError(f"{option}={value}: must be 1 or more")
        self.episodes, self.seed, self.held_out = episodes, seed, held_out
        self.pool_size, self.split = pool_size, split
        self.template = as_template(template, PICTURE_PAIR)

    @property
    def queries(self) -> Sequence[Example]:
        return LazySequence(self.episodes, self._query)

    @property
    def support(self) -> Sequence[Example]:
        """For methods that learn one function from one support set: 512 pairs of each function in turn, of validation boards."""
        return LazySequence(512 * len(self.functions), self._shared)

    def pool(self, query: Example) -> Sequence[Example]:
        """The support set of the episode that ``query`` belongs to.

        Raises:
            DataError: the query is not one of this task's.
        """
        index = episode_of(query, self.name, self.episodes)

        def demonstration(number: int) -> Example:
            place = (self.seed, "demonstration", index, number)
            return self._example(place, index, f"{episode_id(index)}#{number}", self.split, held_out=False)

        return LazySequence(self.pool_size, demonstration)

    def describe(self) -> dict[str, Any]:
        options = ("episodes", "seed", "held_out", "pool_size", "split")
        return {"task": self.name, "functions": list(self.functions), **{o: getattr(self, o) for o in options}}

    def _query(self, index: int) -> Example:
        place = (self.seed, "query", index)
        return self._example(place, index, episode_id(index), self.split, held_out=self.held_out, episode=index)

    def _shared(self, number: int) -> Example:
        place = (self.seed, "shared", number)
        return self._example(place, number, f"support-{number:05d}", "validation", held_out=False)

    def _example(
        self, place: tuple[int | str, ...], number: int, id: str, split: str, *, held_out: bool, **metadata: int
    ) -> Example:
        name = self.functions[number % len(self.functions)]

        def question() -> Board:
            return telling_board(name, place, split, held_out)

        described = f"board {'/'.join(map(str, place))}"
        return Example(
            images=(DrawnPicture(lambda: draw_board(question()), described),),
            answer=DrawnPicture(lambda: draw_board(FUNCTIONS[name](question())), f"{name} of {described}"),
            id=id,
            metadata={"category": name, "class": name, **metadata},
        )


@lru_cache(maxsize=4096)
def telling_board(function: str, place: tuple[int | str, ...], split: str, held_out: bool) -> Board:
    """The board at a place of the random world: one that shows what the function is.

    Args:
        function: its name.
        place: a seed and whatever else tells the boards of a task apart.
        split: which boards.
        held_out: whether a pair of colour and shape that is held out is to be seen; otherwise neither the board nor its
            answer shows one.
    """
    wanted = FUNCTIONS[function]
    rng = generator(int(place[0]), *place[1:])
    while True:
        boards = random_boards(rng, 4, split=split, held_out=held_out)
        good = telling(boards, (wanted,))[:, 0]
        if not held_out:
            good &= ~shows_held_out(wanted(boards))
        if good.any():
            board: Board = boards[good][0]
            return board
