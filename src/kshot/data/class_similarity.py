"""How alike classes are, and the neighbours that link-context training draws its hard negatives from (arXiv 2308.07891).

A class is its name, as CLIP reads it, and the mean of what CLIP sees in up to a hundred of its images. Two classes are compared in all
four ways, name with name, name with images, images with name, images with images. The ranking that follows is cut into as many
intervals as neighbours are wanted, and one class is drawn from each, so that neighbours go from near to far.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from tqdm import tqdm

from kshot.data.derived import generator
from kshot.data.readers import PathLike
from kshot.errors import BadImage, DataError, OptionError, listed
from kshot.metrics.common import fold
from kshot.picture import Picture
from kshot.whole_file import whole_file

if TYPE_CHECKING:
    from kshot.data.embedding_store import EmbeddingStore

NAMES_ALIKE, CROSSED, IMAGES_ALIKE = 0.5, 0.8, 0.5
"""Weights of name with name, of name with images (either way), and of images with images, in :func:`class_similarity`."""

IMAGES_PER_CLASS = 100
"""Images of a class whose features are averaged, at most."""

BINS = 36
"""Neighbours of a class in the published list."""

_CHUNK = 512
"""Images between two steps of the progress bar."""


@dataclass(frozen=True)
class ClassFeatures:
    """Features of n classes.

    Attributes:
        text: of their names, [n, d].
        image: means of their images' features, [n, d]; neither is scaled to length 1.
        skipped: images that cannot be decoded, with the reason; they are not in the means.
    """

    text: NDArray[Any]
    image: NDArray[Any]
    skipped: Mapping[str, str]


def class_features(names: Sequence[str], pictures: Sequence[Sequence[Picture]], store: EmbeddingStore) -> ClassFeatures:
    """Features of classes: of each name as it is, and the mean over its pictures.

    Args:
        names: of the classes.
        pictures: of each class; choose them with :func:`chosen_images`.
        store: of an embedder that keeps the lengths of its vectors (``ContrastiveEmbedder(..., unit=False)``). What has been computed
            stays there, so that an interrupted run carries on where it was.

    Raises:
        DataError: a class none of whose pictures can be decoded.
    """
    text = store.texts(list(names)).astype(np.float64)
    owners = np.repeat(np.arange(len(names)), [len(some) for some in pictures])
    flat = [picture for some in pictures for picture in some]
    sums, counts = np.zeros_like(text), np.zeros(len(names), np.int64)
    bar = tqdm(total=len(flat), desc="features of classes", disable=None, unit="image")
    try:
        for start in range(0, len(flat), _CHUNK):
            some = flat[start : start + _CHUNK]
            bar.update(len(some))
            try:
                vectors = store.images(some, skip_bad=True)
            except BadImage:  # none so far; classes without a picture are reported below
                continue
            good = np.array([picture.name not in store.bad for picture in some])
            own = owners[start : start + _CHUNK][good]
            np.add.at(sums, own, vectors[good].astype(np.float64))
            np.add.at(counts, own, 1)
    finally:
        bar.close()
        store.flush()
    if empty := [name for name, count in zip(names, counts, strict=True) if not count]:
        why = next(iter(store.bad.values()), "they have none")
        raise DataError(f"classes without a usable image: {listed(empty)}: {why}")
    skipped = {picture.name: store.bad[picture.name] for picture in flat if picture.name in store.bad}
    return ClassFeatures(text, sums / counts[:, None], skipped)


def chosen_images(images: Sequence[str], key: str, *, most: int = IMAGES_PER_CLASS, seed: int = 0) -> list[str]:
    """Up to ``most`` random images of a class; depends on the seed, the class' key and its images only."""
    return [images[i] for i in generator(seed, "similarity", key).permutation(len(images))[:most]]


def class_similarity(text: NDArray[Any], image: NDArray[Any]) -> NDArray[np.float64]:
    """0.5 T T' + 0.8 (I T' + T I') + 0.5 I I' of features scaled to length 1.

    Args:
        text: [n, d], of the classes' names; of any lengths.
        image: [n, d], of their images.

    Returns:
        [n, n], symmetric; from -2.6 to 2.6.
    """
    t, i = (_unit(np.asarray(features, np.float64)) for features in (text, image))
    crossed = i @ t.T
    return NAMES_ALIKE * (t @ t.T) + CROSSED * (crossed + crossed.T) + IMAGES_ALIKE * (i @ i.T)


def ranked(similarity: NDArray[Any]) -> NDArray[np.int64]:
    """For each class all classes, the most similar first: [n, n].

    A class comes first in its own row. Equal values, to nine decimals, are ranked by number, so that the last bits of a matrix
    product, which differ between machines, decide nothing.
    """
    rounded = np.round(np.asarray(similarity, np.float64), 9)
    np.fill_diagonal(rounded, np.inf)
    return np.argsort(-rounded, axis=1, kind="stable")


def neighbour_bins(classes: int, bins: int = BINS) -> list[range]:
    """The ranks from which neighbours are drawn, one from each bin.

    A bin is ceil(classes / bins) ranks wide; rank 0 is the class itself and in none. With few classes some bins are empty; they are
    left out.
    """
    width = -(-classes // bins)
    cuts = [range(max(1, start), min(start + width, classes)) for start in range(0, classes, width)]
    return [cut for cut in cuts if cut]


def binned_neighbours(
    similarity: NDArray[Any],
    *,
    bins: int = BINS,
    seed: int = 0,
    keys: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
) -> list[list[int]]:
    """Neighbours of each class, from most to least similar: one drawn from each bin of its ranking.

    Args:
        similarity: [n, n].
        bins: neighbours wanted; there are fewer where there are not enough classes, see :func:`neighbour_bins`.
        seed: of the draws.
        keys: what the draws of a class derive from, beside the seed (default: its number).
        names: of the classes; classes of one name are no neighbours of each other, for nothing could tell them apart.

    Raises:
        DataError: fewer than two classes.
        OptionError: no bins.
    """
    count = _checked(len(similarity), bins)
    keys = keys if keys is not None else [str(number) for number in range(count)]
    same = _namesakes(names, count)
    cuts, order = neighbour_bins(count, bins), ranked(similarity)
    found = []
    for number, row in enumerate(order):
        rng = generator(seed, "neighbours", keys[number])
        own = []
        for cut in cuts:
            bin_ = [int(other) for other in row[cut.start : cut.stop] if other not in same[number]]
            if bin_:
                own.append(bin_[int(rng.integers(len(bin_)))])
        found.append(own)
    return found


def random_neighbours(
    classes: int,
    *,
    count: int = BINS,
    seed: int = 0,
    keys: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
) -> list[list[int]]:
    """As :func:`binned_neighbours`, but drawn from all other classes without regard to similarity."""
    _checked(classes, count)
    keys = keys if keys is not None else [str(number) for number in range(classes)]
    same = _namesakes(names, classes)
    found = []
    for number in range(classes):
        others = [other for other in range(classes) if other != number and other not in same[number]]
        order = generator(seed, "random neighbours", keys[number]).permutation(len(others))[:count]
        found.append([others[i] for i in order])
    return found


@dataclass(frozen=True)
class StoredSimilarity:
    """A similarity matrix and the images that were left out of it, with the reason."""

    similarity: NDArray[np.float64]
    skipped: Mapping[str, str]


def write_similarity(
    file: PathLike, features: ClassFeatures, similarity: NDArray[Any], *, keys: Sequence[str], made_from: str
) -> None:
    """Keep a similarity matrix, with the features it was made of, as safetensors.

    Args:
        file: where.
        keys: of the classes, in the order of the rows.
        made_from: a digest of everything that the matrix depends on; see :func:`read_similarity`.
    """
    tensors = {"similarity": similarity, "text": features.text, "image": features.image}
    told = {
        "made_from": made_from,
        "classes": json.dumps(list(keys)),
        "skipped": json.dumps(dict(features.skipped)),
    }
    with whole_file(file) as temporary:
        save_file({k: np.ascontiguousarray(v, np.float64) for k, v in tensors.items()}, temporary, metadata=told)


def read_similarity(file: PathLike, *, made_from: str) -> StoredSimilarity | None:
    """A kept matrix; ``None`` if there is none, if it is damaged, or if it was made from anything else."""
    if not Path(file).is_file():
        return None
    try:
        with safe_open(file, framework="numpy") as held:
            told = held.metadata() or {}
            if told.get("made_from") != made_from:
                return None
            return StoredSimilarity(held.get_tensor("similarity"), json.loads(told["skipped"]))
    except (SafetensorError, OSError, KeyError, ValueError):
        return None


def _unit(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)


def _checked(classes: int, neighbours: int) -> int:
    if classes < 2:
        raise DataError(f"{classes} classes: a class needs at least one other to be told from")
    if neighbours < 1:
        raise OptionError(f"{neighbours} neighbours: must be 1 or more")
    return classes


def _namesakes(names: Sequence[str] | None, count: int) -> list[frozenset[int]]:
    """For each class the numbers of those that bear its name."""
    if names is None:
        return [frozenset()] * count
    folded = [fold(name) for name in names]
    places: dict[str, list[int]] = {}
    for number, name in enumerate(folded):
        places.setdefault(name, []).append(number)
    return [frozenset(places[name]) for name in folded]
