"""Vectors by content: computed once, kept in memory and on disk.

On disk a model has a folder of its own, named by its fingerprint, with *shards*: safetensors files of some thousand vectors, the
digests of what they are vectors of, and a checksum. A shard is written in full under another name and renamed, and is never
changed, so that any number of processes may share a folder. A damaged shard is deleted and its vectors are computed again.
"""

from __future__ import annotations

import hashlib
import os
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from tqdm import tqdm

from kshot.data.candidates import Contents
from kshot.data.embeddings import Embedder, Vectors
from kshot.errors import BadImage
from kshot.picture import DrawnPicture, Picture
from kshot.whole_file import whole_file

T = TypeVar("T")

SHARD = 4096
"""Vectors after which a shard is written, so that a run that is stopped has lost little."""


def cache_folder(folder: str | os.PathLike[str] | None = None) -> Path:
    """Where things are cached: the argument, else the environment variable KSHOT_CACHE, else ``kshot`` in the user's cache folder
    (XDG_CACHE_HOME or ``~/.cache``)."""
    named = folder or os.environ.get("KSHOT_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kshot"


class EmbeddingStore:
    """The vectors of one embedder.

    Pictures are kept on disk, but for drawings, which are cheaper to draw again; texts are kept in memory only.

    Args:
        embedder: makes the vectors.
        folder: of all caches, see :func:`cache_folder`.
        contents: gives the digests of pictures.

    Attributes:
        computed: number of vectors that had to be computed.
        bad: names of the pictures that cannot be decoded, with the reason; filled where they are not errors.
    """

    def __init__(
        self,
        embedder: Embedder,
        folder: str | os.PathLike[str] | None = None,
        contents: Contents | None = None,
    ):
        self.embedder, self.contents = embedder, contents or Contents()
        self.folder = cache_folder(folder) / "embeddings" / embedder.fingerprint
        self.computed = 0
        self.bad: dict[str, str] = {}
        self._images: dict[str, Vectors] | None = None
        self._texts: dict[str, Vectors] = {}
        self._unsaved: dict[str, Vectors] = {}

    def images(self, pictures: Sequence[Picture], *, skip_bad: bool = False) -> Vectors:
        """Vectors [n, d] of pictures.

        Args:
            pictures: what to embed.
            skip_bad: enter pictures that cannot be decoded in :attr:`bad`, and give them a zero vector.

        Raises:
            BadImage: one of them cannot be read or decoded; with ``skip_bad``, no picture could be so far.
        """
        if self._images is None:
            self._images = read_shards(self.folder)
        held = self._images
        keys = [self._try(self.contents.digest, picture, skip_bad) or "" for picture in pictures]
        wanted = {key: picture for key, picture in zip(keys, pictures, strict=True) if key and key not in held}
        what = f"embedding pictures ({self.embedder.name})"
        for some in _batches(list(wanted.items()), self.embedder.batch_size, what):
            loaded = [(key, picture, self._try(_load, picture, skip_bad)) for key, picture in some]
            good = [(key, picture, image) for key, picture, image in loaded if image is not None]
            vectors = self.embedder.images([image for _, _, image in good]) if good else ()
            for (key, picture, _), vector in zip(good, vectors, strict=True):
                held[key] = vector
                if not isinstance(picture, DrawnPicture):
                    self._unsaved[key] = vector
            self.computed += len(good)
            if len(self._unsaved) >= SHARD:
                self.flush()
        some_vector = next(iter(held.values()), None)
        if some_vector is None:
            raise BadImage(f"none of {len(pictures)} pictures can be decoded: {next(iter(self.bad.values()), '')}")
        nothing = np.zeros_like(some_vector)
        return np.stack([held.get(key, nothing) for key in keys])

    def _try(self, function: Callable[[Picture], T], picture: Picture, skip_bad: bool) -> T | None:
        try:
            return function(picture)
        except BadImage as error:
            if not skip_bad:
                raise
            self.bad[picture.name] = str(error)
            return None

    def texts(self, texts: Sequence[str]) -> Vectors:
        """Vectors [n, d] of texts."""
        wanted = [text for text in dict.fromkeys(texts) if text not in self._texts]
        for some in _batches(wanted, self.embedder.batch_size, f"embedding texts ({self.embedder.name})"):
            self._texts.update(zip(some, self.embedder.texts(some), strict=True))
            self.computed += len(some)
        return np.stack([self._texts[text] for text in texts])

    def flush(self) -> None:
        """Write what is not yet on disk. A folder that cannot be written to costs a warning, not the run."""
        if not self._unsaved:
            return
        try:
            write_shard(self.folder, self._unsaved)
        except OSError as error:
            warnings.warn(f"embeddings are not kept: {self.folder}: {error} (set KSHOT_CACHE)", stacklevel=2)
        self._unsaved = {}


def write_shard(folder: Path, vectors: dict[str, Vectors]) -> Path:
    """Write vectors by digest as a new shard."""
    tensors: dict[str, np.ndarray] = {
        "digests": np.stack([np.frombuffer(bytes.fromhex(key), np.uint8) for key in vectors]),
        "vectors": np.stack(list(vectors.values())).astype(np.float32),
    }
    path = folder / f"{uuid.uuid4().hex}.safetensors"
    with whole_file(path) as temporary:
        save_file(tensors, temporary, metadata={"checksum": _checksum(tensors)})
    return path


def read_shards(folder: Path) -> dict[str, Vectors]:
    """All vectors of a folder by digest; damaged shards are deleted, with a warning."""
    vectors: dict[str, Vectors] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="numpy") as file:
                tensors = {name: file.get_tensor(name) for name in ("digests", "vectors")}
                if (file.metadata() or {}).get("checksum") != _checksum(tensors):
                    raise ValueError("wrong checksum")
        except (SafetensorError, OSError, ValueError) as error:
            warnings.warn(f"damaged cache file {path} is deleted and computed again: {error}", stacklevel=2)
            path.unlink(missing_ok=True)
            continue
        for digest, vector in zip(tensors["digests"], tensors["vectors"], strict=True):
            vectors[digest.tobytes().hex()] = vector
    return vectors


def _checksum(tensors: dict[str, np.ndarray]) -> str:
    hasher = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        hasher.update(f"{name} {tensors[name].shape}".encode())
        hasher.update(np.ascontiguousarray(tensors[name]).tobytes())
    return hasher.hexdigest()


def _batches(items: Sequence[T], size: int, what: str) -> Iterator[Sequence[T]]:
    silent = len(items) < 10 * size or None
    for start in tqdm(range(0, len(items), size), what, leave=False, disable=silent):
        yield items[start : start + size]


def _load(picture: Picture) -> Image.Image:
    return picture.load()
