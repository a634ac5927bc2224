"""Retrievers that show the examples most similar to the query.

The most similar example stands last by default, next to the query, as in RICES (Yang et al. 2022, arXiv 2109.05014; for images
Alayrac et al. 2022, arXiv 2204.14198). Nothing about them is random; of equally similar examples the first in the support set wins.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from kshot.data.embedding_store import EmbeddingStore
from kshot.data.embeddings import Embedder, Vectors, load_embedder, normalized
from kshot.data.retrieval import Candidates, Order, Retriever, retrievers
from kshot.data.similarity import top_k
from kshot.episode import Example
from kshot.errors import BadImage, OptionError

MARGIN = 16
"""Neighbours looked up beyond the shots, since some may be the query's own image."""


@dataclass
class Index:
    """A support set as vectors.

    Examples with the same images and question share a vector, which is compared once: VQA data ask many questions an image.

    Attributes:
        pool: the support set.
        vectors: [m, d], one for each distinct content, in the order of first appearance.
        members: the places in the pool of each content.
    """

    pool: Sequence[Example]
    vectors: torch.Tensor
    members: list[list[int]]


@retrievers.register("nearest")
class Nearest(Retriever):
    """The examples whose images and questions are most similar to the query's: by the weighted sum of the two cosines.

    Args:
        order: see :class:`~kshot.data.retrieval.Retriever`.
        embedder: a CLIP or SigLIP model for both images and questions (folder, repository, or an embedder).
        image_embedder, text_embedder: for either of them instead; default: ``pixels`` and ``words``, which need no model.
        image_weight, text_weight: weights of the two cosines; a weight of 0 leaves that side out.
        cache: folder of the vectors; see :func:`~kshot.data.embedding_store.cache_folder`.
        device: where vectors are compared; default: a GPU if there is one.

    Raises:
        OptionError: a weight is negative or both are 0; the embedder cannot do what it should.
    """

    name = "nearest"
    default_order = "nearest_last"
    ranks = True

    def __init__(
        self,
        *,
        order: Order | None = None,
        embedder: str | Embedder | None = None,
        image_embedder: str | Embedder | None = None,
        text_embedder: str | Embedder | None = None,
        image_weight: float = 1.0,
        text_weight: float = 1.0,
        cache: str | os.PathLike[str] | None = None,
        device: str | None = None,
    ):
        super().__init__(order=order)
        if min(image_weight, text_weight) < 0 or image_weight + text_weight == 0:
            raise OptionError(
                f"image_weight={image_weight}, text_weight={text_weight}: must not be negative, nor both 0"
            )
        self.image_weight, self.text_weight = image_weight, text_weight
        both = load_embedder(embedder) if embedder is not None else None
        self.image_store = self.text_store = None
        if image_weight:
            self.image_store = EmbeddingStore(load_embedder(image_embedder or both or "pixels"), cache, self.contents)
        if text_weight:
            self.text_store = EmbeddingStore(load_embedder(text_embedder or both or "words"), cache, self.contents)
        self._device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._index: Index | None = None
        self._found: dict[str, list[int]] = {}

    def prepare(self, pool: Sequence[Example], queries: Sequence[Example], shots: int) -> None:
        if not len(pool) or not len(queries) or not shots:
            return
        index = self._indexed(pool)
        vectors = self._embed(queries, (self.image_weight, self.text_weight))
        _, rows = top_k(vectors, index.vectors, min(shots + MARGIN, len(index.vectors)), device=self._device)
        self._found = dict(zip((query.id for query in queries), rows.tolist(), strict=True))

    def pick(self, candidates: Candidates, shots: int, rng: np.random.Generator) -> list[int]:
        return list(islice(candidates.among(self._ranking(candidates)), shots))

    def close(self) -> None:
        self._found = {}
        for store in (self.image_store, self.text_store):
            if store is not None:
                store.flush()

    def describe(self) -> dict[str, Any]:
        described: dict[str, Any] = super().describe()
        for side, store, weight in (
            ("image", self.image_store, self.image_weight),
            ("text", self.text_store, self.text_weight),
        ):
            if store is not None:
                described[side] = {
                    "embedder": os.path.basename(store.embedder.name),
                    "hash": store.embedder.fingerprint,
                    "weight": weight,
                }
        return described

    def _ranking(self, candidates: Candidates) -> Iterator[int]:
        """All places of the pool, the nearest first, searched for a few at a time unless they were found beforehand."""
        index = self._indexed(candidates.pool)
        rows = self._found.get(candidates.query.id, [])
        done = 0
        while True:
            for row in rows[done:]:
                yield from index.members[row]
            done = len(rows)
            if done == len(index.members):
                return
            # The search is exact and breaks ties by index, so that a longer result begins with the shorter one.
            vector = self._embed([candidates.query], (self.image_weight, self.text_weight))
            _, found = top_k(vector, index.vectors, min(len(index.members), max(64, 8 * done)), device=self._device)
            rows = found[0].tolist()

    def _indexed(self, pool: Sequence[Example]) -> Index:
        if self._index is None or self._index.pool is not pool:
            groups: dict[tuple[Any, ...], list[int]] = {}
            first: list[Example] = []
            silent = len(pool) < 20_000 or None
            for place, example in enumerate(tqdm(pool, "reading the support set", leave=False, disable=silent)):
                places = groups.setdefault(self._content(example), [])
                if not places:
                    first.append(example)
                places.append(place)
            vectors = self._embed(first, (1.0, 1.0))
            good = [row for row, example in enumerate(first) if not self._is_bad(example)]
            members = list(groups.values())
            self._index = Index(pool, vectors[good], [members[row] for row in good])
            self._found = {}
        if self.image_store is not None:
            self.bad_images |= self.image_store.bad
        return self._index

    def _content(self, example: Example) -> tuple[Any, ...]:
        """Equal for examples that have the same vector."""
        images: tuple[str, ...] = ()
        if self.image_store is not None:
            try:
                images = tuple(self.contents.digest(picture) for picture in example.images)
            except BadImage:
                images = (f"unreadable: {example.id}",)
        return images, example.question if self.text_store is not None else ""

    def _is_bad(self, example: Example) -> bool:
        return self.image_store is not None and any(picture.name in self.image_store.bad for picture in example.images)

    def _embed(self, examples: Sequence[Example], weights: tuple[float, float]) -> torch.Tensor:
        """Vectors [n, d] whose dot products are the weighted sums of cosines, if one side carries the weights."""
        sides: list[Vectors] = []
        if self.image_store is not None:
            sides.append(weights[0] * _image_vectors(examples, self.image_store, self.on_bad_image == "skip"))
        if self.text_store is not None:
            sides.append(weights[1] * self.text_store.texts([_question(example) for example in examples]))
        return torch.from_numpy(np.concatenate(sides, axis=1, dtype=np.float32))


@retrievers.register("nearest_image")
class NearestImage(Nearest):
    """The examples whose images are most similar to the query's (RICES).

    Args:
        order: see :class:`~kshot.data.retrieval.Retriever`.
        embedder: a CLIP or SigLIP model (folder, repository, or an embedder); default: ``pixels``, which needs no model.
        cache, device: see :class:`Nearest`.
    """

    name = "nearest_image"

    def __init__(
        self,
        *,
        order: Order | None = None,
        embedder: str | Embedder | None = None,
        cache: str | os.PathLike[str] | None = None,
        device: str | None = None,
    ):
        super().__init__(order=order, image_embedder=embedder, text_weight=0, cache=cache, device=device)


@retrievers.register("nearest_text")
class NearestText(Nearest):
    """The examples whose questions are most similar to the query's.

    Args:
        order: see :class:`~kshot.data.retrieval.Retriever`.
        embedder: a CLIP or SigLIP model (folder, repository, or an embedder); default: ``words``, which needs no model.
        cache, device: see :class:`Nearest`.
    """

    name = "nearest_text"

    def __init__(
        self,
        *,
        order: Order | None = None,
        embedder: str | Embedder | None = None,
        cache: str | os.PathLike[str] | None = None,
        device: str | None = None,
    ):
        super().__init__(order=order, text_embedder=embedder, image_weight=0, cache=cache, device=device)


def _image_vectors(examples: Sequence[Example], store: EmbeddingStore, skip_bad: bool) -> Vectors:
    """One vector an example: the mean direction of its images."""
    for example in examples:
        if not example.images:
            raise OptionError(f"example {example.id!r} has no image to compare (use nearest_text, or image_weight=0)")
    vectors = store.images([picture for example in examples for picture in example.images], skip_bad=skip_bad)
    starts = np.cumsum([0] + [len(example.images) for example in examples[:-1]])
    return normalized(np.add.reduceat(vectors, starts, axis=0))


def _question(example: Example) -> str:
    if not example.question:
        raise OptionError(f"example {example.id!r} has no question to compare (use nearest_image, or text_weight=0)")
    return example.question
