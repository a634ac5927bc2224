"""What a teacher said, kept on disk: then a further epoch over the same prompts costs a pass without demonstrations.

A folder belongs to one model (weights, precision, the way it is given pictures). An entry is one safetensors file, found by a hash of
the whole prompt and of what is kept of it, whichever method asks: LIVE and LoRA may share it. Log-probabilities are kept in float32,
hidden states in float16 (in bfloat16 where they are too large for it).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from kshot.episode import Episode
from kshot.errors import CannotWrite, ModelError
from kshot.picture import Picture
from kshot.prompt import Template
from kshot.whole_file import whole_file, write_text

logger = logging.getLogger(__name__)

RECORD = "teacher.json"
FORMAT = "kshot teacher cache, version 1"
OVERHEAD = 512
"""Bytes of a file beside its tensors."""


@dataclass(frozen=True)
class Signals:
    """What a teacher says of one query; ``None`` where it was not asked.

    Attributes:
        log_probs: for each token of the answer, ``[tokens, vocabulary]`` or ``[tokens, k + 1]``, see
            :func:`~kshot.training.distill_losses.most_probable`.
        indices: ids of the k tokens, ``[tokens, k]``; ``None``: all of the vocabulary.
        states: hidden states over query and answer, ``[layers, positions, width]``.
    """

    log_probs: Tensor | None = None
    indices: Tensor | None = None
    states: Tensor | None = None

    def rounded(self) -> Signals:
        """As it comes back from a cache, so that a run that finds an entry and one that makes it learn the same."""
        if self.states is None or self.states.dtype in (torch.float16, torch.bfloat16):
            return self
        small = self.states.abs().amax() <= torch.finfo(torch.float16).max
        return Signals(self.log_probs, self.indices, self.states.to(torch.float16 if small else torch.bfloat16))

    def cpu(self) -> Signals:
        """On the CPU."""
        return Signals(*(None if tensor is None else tensor.cpu() for tensor in self.tensors().values()))

    def tensors(self) -> dict[str, Tensor | None]:
        """By name."""
        return {"log_probs": self.log_probs, "indices": self.indices, "states": self.states}


class TeacherCache:
    """A folder of signals of one model.

    Args:
        folder: made if it is not there.
        model: what identifies the model and how it is shown pictures; JSON-serialisable.
        kept: what is kept of each prompt (temperature, number of tokens, which states); JSON-serialisable.

    Attributes:
        hits, misses: lookups so far.

    Raises:
        ModelError: the folder holds what another model said.
        CannotWrite: the folder.
    """

    def __init__(self, folder: str | os.PathLike[str], model: Mapping[str, Any], kept: Mapping[str, Any] | None = None):
        self.folder, self.hits, self.misses = Path(folder), 0, 0
        self.keep(kept or {})
        record = {"format": FORMAT, "model": json.loads(json.dumps(model))}
        path = self.folder / RECORD
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            held = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
            if held is None:
                write_text(path, json.dumps(record, indent=1))
        except ValueError:
            raise ModelError(f"{path} is damaged: remove the folder, or name another teacher cache") from None
        except OSError as error:
            raise CannotWrite(path, error.strerror or str(error), "name another teacher cache") from error
        if held is not None and held != record:
            own = record["model"]
            theirs = held.get("model") or {} if isinstance(held, dict) else {}
            differing = [name for name in {**own, **theirs} if own.get(name) != theirs.get(name)]
            told = "; ".join(f"{name} {theirs.get(name)!r} there, {own.get(name)!r} here" for name in differing[:3])
            raise ModelError(f"{self.folder} holds what another model said ({told}): name another teacher cache")

    def keep(self, kept: Mapping[str, Any]) -> None:
        """Say what is kept of each prompt; entries of which something else was kept are others."""
        self._kept = json.dumps(kept, sort_keys=True)

    def path(self, key: str) -> Path:
        """The file of an entry (whether or not it exists); ``key`` is :func:`prompt_digest`."""
        name = hashlib.blake2b(f"{key}{self._kept}".encode(), digest_size=16).hexdigest()
        return self.folder / name[:2] / f"{name}.safetensors"

    def get(self, key: str) -> Signals | None:
        """What was said to a prompt; ``None`` if it is not known (or its file is damaged, and will be written anew)."""
        path = self.path(key)
        if not path.exists():
            self.misses += 1
            return None
        try:
            with safe_open(path, framework="pt") as file:
                held = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
        except (SafetensorError, OSError) as error:
            logger.warning("what the teacher said in %s is damaged (%s); asking again", path, error)
            self.misses += 1
            return None
        self.hits += 1
        return Signals(**{name: held.get(name) for name in ("log_probs", "indices", "states")})

    def put(self, key: str, signals: Signals) -> None:
        """Keep what was said to a prompt.

        Raises:
            CannotWrite: its file.
        """
        path = self.path(key)
        held = {name: tensor.contiguous() for name, tensor in signals.tensors().items() if tensor is not None}
        try:
            with whole_file(path) as temporary:
                save_file(held, temporary)
        except (OSError, SafetensorError) as error:
            raise CannotWrite(path, str(error), "free some space, or go on without teacher_cache") from error

    def announce(self, needed: int, entries: int) -> None:
        """Say how much will be written, before it is.

        Args:
            needed: bytes of all entries of the run.
            entries: their number.

        Raises:
            CannotWrite: there is no room for it.
        """
        there = sum(path.stat().st_size for path in self.folder.glob("*/*.safetensors"))
        free = shutil.disk_usage(self.folder).free
        if os.environ.get("RANK", "0") == "0":
            known = f"{_size(there)} there already, {_size(free)} free"
            print(f"teacher cache {self.folder}: up to {_size(needed)} in {entries:,} files ({known})", file=sys.stderr)
        if needed - there > free:
            raise CannotWrite(
                self.folder,
                f"what the teacher says needs {_size(needed)}, and {_size(free)} are free",
                "name another folder, keep fewer log-probabilities with teacher_top, show fixed demonstrations, align fewer layers, "
                "or leave teacher_cache out",
            )


def prompt_digest(episode: Episode, template: Template, style: str) -> str:
    """A hash of all that decides a prompt with its answer, for one model: texts, pictures, the way they are written.

    It decides the token ids, and needs neither a tokenizer nor a chat template nor decoded pictures.
    """
    hasher = hashlib.blake2b(digest_size=16)
    for part in (repr(template), style, repr(episode.instruction)):
        hasher.update(part.encode() + b"\0")
    for example in (*episode.demonstrations, episode.query):
        answer = example.answer.digest if isinstance(example.answer, Picture) else example.answer
        written = (example.question, answer, example.choices, [picture.digest for picture in example.images])
        hasher.update(repr(written).encode() + b"\0")
    return hasher.hexdigest()


def _size(count: int) -> str:
    value = float(count)
    for unit in ("bytes", "KB", "MB", "GB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:,.3g} TB"
