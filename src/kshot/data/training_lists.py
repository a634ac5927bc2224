"""Drawing training classes and their neighbours from images that have been found: what all lists of training classes share."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kshot.data.class_similarity import (
    binned_neighbours,
    chosen_images,
    class_features,
    class_similarity,
    random_neighbours,
    read_similarity,
    write_similarity,
)
from kshot.data.derived import digest
from kshot.data.imagenet_lists import TrainClass
from kshot.data.imagenet_train import ListedClass, build_train
from kshot.data.sources import ImageRoot
from kshot.errors import DataError, listed


@dataclass(frozen=True)
class Draws:
    """How training classes are drawn; the options of :func:`~kshot.data.build_episodes.build_episodes`."""

    seed: int
    samples: int
    bins: int
    images_per_class: int
    clip: str | None
    device: str | None
    cache: str | None


@dataclass(frozen=True)
class Drawn:
    """Training classes, and how they came about.

    Attributes:
        rows: the classes.
        skipped: images that cannot be decoded, with the reason.
        notices: everything that is not as in the published list.
    """

    rows: tuple[TrainClass, ...]
    skipped: Mapping[str, str]
    notices: tuple[str, ...]


def draw_training(classes: Sequence[ListedClass], root: Path, similarity: Path, draws: Draws) -> Drawn:
    """Draw neighbours and images of training classes.

    Args:
        classes: the classes, two or more, with all their images.
        root: what the paths of the images are relative to.
        similarity: file in which the similarity of the classes is kept, so that the next time is quick.
        draws: how.

    Raises:
        DataError: fewer than two classes, or one without a usable image.
    """
    if empty := [f"{one.folder} ({one.name})" for one in classes if not one.images]:
        raise DataError(f"classes without images: {listed(empty)}", file=root)
    if len(classes) < 2:
        raise DataError(f"{len(classes)} training classes: there must be two or more", file=root)
    keys, names = [one.folder for one in classes], [one.name for one in classes]
    skipped: Mapping[str, str] = {}
    notices = []
    if draws.clip is not None:
        values, skipped = _similarity(classes, root, similarity, draws)
        near = binned_neighbours(values, bins=draws.bins, seed=draws.seed, keys=keys, names=names)
    else:
        near = random_neighbours(len(classes), count=draws.bins, seed=draws.seed, keys=keys, names=names)
        notices.append("neighbours are random, not similar: they are no harder negatives than any other class")
    if (least := min(map(len, near))) < draws.bins:
        notices.append(f"{len(classes)} classes are too few for {draws.bins} neighbours each: some have {least}")
    rows = build_train(classes, near, samples=draws.samples, seed=draws.seed, unusable=skipped)
    if poor := [f"{row.class_name} ({len(row.samples)})" for row in rows if len(row.samples) < draws.samples]:
        notices.append(f"{len(poor)} classes have fewer than {draws.samples} images: {listed(poor)}")
    return Drawn(rows, skipped, tuple(notices))


def _similarity(classes: Sequence[ListedClass], root: Path, file: Path, draws: Draws) -> tuple[Any, Mapping[str, str]]:
    """The similarity matrix, from the file if that was made of the same things, and the images that cannot be decoded."""
    from kshot.data.embedding_store import EmbeddingStore
    from kshot.data.embeddings import ContrastiveEmbedder

    assert draws.clip is not None
    embedder = ContrastiveEmbedder(draws.clip, device=draws.device, unit=False)
    chosen = [chosen_images(c.images, c.folder, most=draws.images_per_class, seed=draws.seed) for c in classes]
    parts = [embedder.fingerprint, [[c.folder, c.name, paths] for c, paths in zip(classes, chosen, strict=True)]]
    made_from = digest(json.dumps(parts))
    if (kept := read_similarity(file, made_from=made_from)) is not None:
        return kept.similarity, kept.skipped
    place = ImageRoot(root)
    paths = {place.picture(path).name: path for some in chosen for path in some}
    pictures = [[place.picture(path) for path in some] for some in chosen]
    features = class_features([c.name for c in classes], pictures, EmbeddingStore(embedder, draws.cache))
    features = replace(features, skipped={paths[name]: reason for name, reason in features.skipped.items()})
    similarity = class_similarity(features.text, features.image)
    write_similarity(file, features, similarity, keys=[c.folder for c in classes], made_from=made_from)
    return similarity, features.skipped
