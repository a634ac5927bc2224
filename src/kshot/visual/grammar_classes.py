"""Sentences of classes: pictures that have nothing in common but what they show."""

from __future__ import annotations

import heapq
from abc import abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from kshot.errors import DataError, OptionError
from kshot.visual.grammar_stills import Folders, as_folders
from kshot.visual.sentence_types import USUAL_IMAGES, Draw, SentenceType, Slot, regrouped, sentences, whole
from kshot.visual.sources import Found, Record, Tree


@dataclass(frozen=True, kw_only=True)
class ClassSentences(SentenceType):
    """Base of the sentences of pictures from one folder a class.

    Args:
        folder: folder (or folders) of the class folders.
    """

    folder: Folders = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "folder", as_folders(self.folder, "folder"))

    @property
    @abstractmethod
    def per_class(self) -> int:
        """Pictures of a class in a sentence."""

    def find(self) -> Found:
        if not self.folder:
            raise OptionError(f"sentence type {self.name!r} needs folder=: one sub-folder a class is expected there")
        tree = Tree(self.folder)
        depth = 1 if "" in tree.roots else 2
        classes: dict[str, list[Record]] = {}
        skipped = tree.skipped()
        for source in tree.sources():
            parts = source.id.split("/")
            if len(parts) <= depth:
                skipped.append((tree.place(source.id), "in no class folder"))
                continue
            label = "/".join(parts[:depth])
            classes.setdefault(label, []).append(Record(source.id, (source,), group=label))
        if not classes:
            raise DataError(
                "no class folders", file=next(iter(tree.roots.values())), remedy="one sub-folder a class is expected"
            )
        return Found(tuple(record for records in classes.values() for record in records), skipped)

    def usable(self, found: Found) -> Found:
        sizes = Counter(record.group for record in found.records)
        small = [(label, size) for label, size in sizes.items() if size < self.per_class]
        skipped = [
            *found.skipped,
            *((label, f"class too small: {n} pictures of {self.per_class}") for label, n in small),
        ]
        return Found(tuple(r for r in found.records if sizes[r.group] >= self.per_class), skipped)

    def compose(self, records: Sequence[Record], draw: Draw, variant: int) -> Sequence[Slot]:
        return [Slot("image", source.id, source.picture()) for record in records for source in record.parts]


@sentences.register("category")
@dataclass(frozen=True, kw_only=True)
class Category(ClassSentences):
    """Pictures of one class, in any order.

    Args:
        images: how many.
    """

    name: ClassVar[str] = "category"

    images: int = USUAL_IMAGES

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("images", self.images, 1)

    @property
    def per_class(self) -> int:
        return self.images

    def places(self, variant: int = 0) -> tuple[str, ...]:
        return tuple(f"cat.{number}" for number in range(1, self.images + 1))

    def group(self, records: Sequence[Record], epoch: int) -> np.ndarray:
        random = Draw(self.seed, self.name, epoch, 0).of_sentence("groups")
        return regrouped(records, self.images, random, by_group=True)

    def within(self, most: int) -> dict[str, Any] | None:
        return {"images": most}


@sentences.register("category_shots")
@dataclass(frozen=True, kw_only=True)
class CategoryShots(ClassSentences):
    """``cat1 cat1 cat1 cat1 cat2 cat2 ...``: pictures of several classes, class by class.

    As many sentences are made as the sizes of the classes allow: each takes the classes of which most is left.

    Args:
        per_category: pictures of a class.
        categories: classes a sentence, all different; by default as many as 16 pictures hold.
    """

    name: ClassVar[str] = "category_shots"

    per_category: int = 4
    categories: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("per_category", self.per_category, 1)
        if self.categories is None:
            object.__setattr__(self, "categories", max(1, USUAL_IMAGES // self.per_category))
        whole("categories", self.categories, 1)

    @property
    def per_class(self) -> int:
        return self.per_category

    @property
    def images(self) -> int:
        return self.per_category * (self.categories or 1)

    def places(self, variant: int = 0) -> tuple[str, ...]:
        return tuple(
            f"cat{c}.{number}"
            for c in range(1, (self.categories or 1) + 1)
            for number in range(1, self.per_category + 1)
        )

    def group(self, records: Sequence[Record], epoch: int) -> np.ndarray:
        random = Draw(self.seed, self.name, epoch, 0).of_sentence("groups")
        chunks: dict[str, list[np.ndarray]] = {}
        for row in regrouped(records, self.per_category, random, by_group=True):
            chunks.setdefault(records[row[0]].group, []).append(row)
        # The order among equals is drawn, so that classes of the same size meet in other company each time.
        fullest = [(-len(held), random.random(), label) for label, held in chunks.items()]
        heapq.heapify(fullest)
        rows = []
        while len(fullest) >= (self.categories or 1):
            taken = [heapq.heappop(fullest) for _ in range(self.categories or 1)]
            rows.append(np.concatenate([chunks[taken[i][2]].pop() for i in random.permutation(len(taken))]))
            for left, _, label in taken:
                if left < -1:
                    heapq.heappush(fullest, (left + 1, random.random(), label))
        return random.permutation(np.array(rows, np.int64).reshape(-1, self.images))

    def within(self, most: int) -> dict[str, Any] | None:
        if most >= self.per_category:
            return {"categories": most // self.per_category}
        return {"categories": 1, "per_category": most}
