"""Visual sentences as token ids: the tokenizer and the special ids, saved beside the language model's weights.

A sentence is the tokens of its pictures, one after the other, without offset or separator (LVM, arXiv 2312.00785): sixteen pictures
of 256 tokens are the 4,096 of its context. Ids from ``codes`` on are not pictures: the first three are beginning, end and padding,
the others are spare. The LVM's 8,292 = 8,192 codes + 100.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from kshot.errors import DataError, ModelError, OptionError
from kshot.picture import PictureLike
from kshot.version import __version__
from kshot.visual.tokenizer import BATCH, VisualTokenizer
from kshot.visual.vq_files import CONFIG, writing
from kshot.whole_file import write_text

PROCESSOR, FOLDER = "visual_processor.json", "vq"
FORMAT = 1
SPECIAL, SPARE = 3, 100
"""Ids with a meaning beyond the codebook, and how many the LVM keeps free there in all."""


class VisualSentenceProcessor:
    """Pictures to the ids that the language model reads, and the ids that it writes to pictures.

    Args:
        tokenizer: pictures to tokens and back.
        vocab_size: rows of the language model's embedding; ``None``: the codebook and 100 more, as the LVM has.
        begins: whether the language model was trained on sentences that begin with :attr:`bos_token_id`. What is known of the LVM says
            no; it is the default of every ``bos`` option.

    Attributes:
        bos_token_id: beginning of a sentence, the first id beyond the codebook (LVM: 8192).
        eos_token_id: its end, the second (8193).
        pad_token_id: padding, the third (8194).

    Raises:
        OptionError: a vocabulary without room for the codes and the three special ids.
    """

    def __init__(self, tokenizer: VisualTokenizer, vocab_size: int | None = None, *, begins: bool = False):
        self.tokenizer, self.begins = tokenizer, begins
        self.vocab_size = tokenizer.codes + SPARE if vocab_size is None else int(vocab_size)
        if self.vocab_size < tokenizer.codes + SPECIAL:
            raise OptionError(
                f"a vocabulary of {self.vocab_size} ids has no room for {tokenizer.codes} codes and {SPECIAL} special ids"
            )
        self.bos_token_id, self.eos_token_id, self.pad_token_id = (tokenizer.codes + n for n in range(SPECIAL))

    @classmethod
    def from_pretrained(
        cls,
        folder: str | os.PathLike[str],
        *,
        precision: str = "float32",
        device: str | torch.device | None = None,
    ) -> VisualSentenceProcessor:
        """The processor in a model's folder.

        Raises:
            ModelError: ``visual_processor.json`` or the tokenizer in ``vq/`` is missing or damaged, the tokenizer is not the one that
                the processor was saved with, or the language model in the same folder has another vocabulary.
            MissingExtra: diffusers is not installed.
        """
        place = Path(folder).expanduser()
        record = _read(place / PROCESSOR)
        if not (place / FOLDER).is_dir():
            raise ModelError(
                f"{place} has {PROCESSOR}, but not the tokenizer's folder {FOLDER}/: copy it along with the weights"
            )
        tokenizer = VisualTokenizer.from_pretrained(
            place / FOLDER, precision=precision, device=device, size=record["size"], resize=record["resize"]
        )
        if tokenizer.codes != record["codes"]:
            raise ModelError(
                f"{place / FOLDER} has a codebook of {tokenizer.codes}, but {PROCESSOR} was saved with one of {record['codes']}"
            )
        if tokenizer.fingerprint != record["fingerprint"]:
            raise ModelError(
                f"{place / FOLDER} is not the tokenizer that {PROCESSOR} was saved with (fingerprint {tokenizer.fingerprint}, not "
                f"{record['fingerprint']}): a language model reads only the tokens it was trained on"
            )
        processor = cls(tokenizer, record["vocab_size"], begins=record["begins"])
        processor._check_folder(place)
        return processor

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write the tokenizer into ``folder/vq`` and the rest into ``folder/visual_processor.json``, which is written last.

        Raises:
            ModelError: the folder holds a language model with another vocabulary.
            CannotWrite: no space, no permission, or a file is there.
        """
        place = Path(folder).expanduser()
        self._check_folder(place)
        self.tokenizer.save_pretrained(place / FOLDER)
        record = {
            "processor_class": type(self).__name__,
            "format": FORMAT,
            "vocab_size": self.vocab_size,
            "codes": self.tokenizer.codes,
            "tokens_per_picture": self.tokenizer.tokens,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": self.eos_token_id,
            "pad_token_id": self.pad_token_id,
            "begins": self.begins,
            "size": self.tokenizer.size,
            "resize": self.tokenizer.resize,
            "fingerprint": self.tokenizer.fingerprint,
            "kshot_version": __version__,
        }
        text = json.dumps(record, indent=2) + "\n"
        with writing(place):
            write_text(place / PROCESSOR, text)

    def __call__(
        self,
        sentences: Sequence[Sequence[PictureLike]],
        bos: bool | None = None,
        *,
        eos: bool = False,
        padding_side: str = "right",
        batch_size: int = BATCH,
    ) -> dict[str, torch.Tensor]:
        """Ids of sentences.

        Args:
            sentences: pictures of each; they may differ in number.
            bos: begin each sentence with :attr:`bos_token_id`; ``None``: as the model was trained, :attr:`begins`.
            eos: end each with :attr:`eos_token_id`.
            padding_side: where the padding of shorter sentences goes: "right", or "left" for generation.
            batch_size: pictures in the tokenizer at a time.

        Returns:
            ``input_ids`` and ``attention_mask``, int64 ``(sentences, ids of the longest)``, on the CPU.

        Raises:
            OptionError: an unknown side.
            DataError: a sentence is a single picture instead of a list of them.
            BadImage: a picture that cannot be decoded.
        """
        if padding_side not in ("left", "right"):
            raise OptionError(f"padding_side is {padding_side!r}: use 'left' or 'right'")
        for number, sentence in enumerate(sentences):
            if not isinstance(sentence, Sequence) or isinstance(sentence, str | bytes):
                raise DataError(f"sentence {number} is a {type(sentence).__name__}", remedy="give a list of pictures")
        tokens = self.tokenizer.encode([picture for sentence in sentences for picture in sentence], batch_size)
        begun = self.begins if bos is None else bos
        before, after = ([self.bos_token_id] if begun else []), ([self.eos_token_id] if eos else [])
        rows, first = [], 0
        for sentence in sentences:
            own = tokens[first : first + len(sentence)].flatten()
            rows.append(
                torch.cat([torch.tensor(before, dtype=torch.int64), own, torch.tensor(after, dtype=torch.int64)])
            )
            first += len(sentence)
        longest = max(map(len, rows), default=0)
        ids = torch.full((len(rows), longest), self.pad_token_id)
        mask = torch.zeros_like(ids)
        for number, row in enumerate(rows):
            place = slice(longest - len(row), longest) if padding_side == "left" else slice(len(row))
            ids[number, place], mask[number, place] = row, 1
        return {"input_ids": ids, "attention_mask": mask}

    def decode(self, ids: torch.Tensor | Sequence[int], batch_size: int = BATCH) -> list[Image.Image]:
        """The pictures of one sentence.

        Beginning, end and padding are left out wherever they stand.

        Args:
            ids: of one sentence.
            batch_size: pictures in the tokenizer at a time.

        Raises:
            DataError: an id that is neither a code nor one of the three, or codes that are no whole number of pictures.
        """
        codes = self.codes_of(ids)
        return self.tokenizer.to_images(codes.reshape(-1, self.tokenizer.tokens), batch_size) if len(codes) else []

    def codes_of(self, ids: torch.Tensor | Sequence[int]) -> torch.Tensor:
        """The ids of one sentence without beginning, end and padding: int64, a multiple of the tokens of a picture.

        Raises:
            DataError: as :meth:`decode`.
        """
        found = torch.as_tensor(ids, device="cpu")
        if found.ndim != 1:
            raise DataError(f"ids of shape {list(found.shape)}", remedy="give the ids of one sentence")
        if found.numel() and (found.is_floating_point() or found.dtype == torch.bool):
            raise DataError(f"ids of type {found.dtype}, not integers")
        found = found.to(torch.int64)
        special = self.tokenizer.codes + SPECIAL
        outside = ((found < 0) | (found >= special)).nonzero()
        if len(outside):
            place = int(outside[0])
            raise DataError(
                f"id {int(found[place])} at place {place} is no code (0 to {self.tokenizer.codes - 1}) and none of the special ids "
                f"{self.bos_token_id} to {self.pad_token_id}"
            )
        codes = found[found < self.tokenizer.codes]
        if len(codes) % self.tokenizer.tokens:
            raise DataError(
                f"{len(codes)} codes are no whole number of pictures: each is {self.tokenizer.tokens}, and "
                f"{len(codes) % self.tokenizer.tokens} are left over"
            )
        return codes

    def check_vocabulary(self, vocab_size: int, model: str | os.PathLike[str]) -> None:
        """Refuse a language model with another vocabulary.

        Args:
            vocab_size: of the language model.
            model: its name, for the message.

        Raises:
            ModelError: they differ.
        """
        if vocab_size != self.vocab_size:
            raise ModelError(
                f"{model} has a vocabulary of {vocab_size} ids, but its visual processor one of {self.vocab_size} "
                f"({self.tokenizer.codes} codes and {self.vocab_size - self.tokenizer.codes} more): they do not belong together"
            )

    def _check_folder(self, folder: Path) -> None:
        """The language model whose configuration stands in the same folder, if one does."""
        path = folder / CONFIG
        if not path.is_file():
            return
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
            vocab_size = config.get("vocab_size")
        except (ValueError, AttributeError) as error:
            raise ModelError(f"{path} is damaged: {error}") from error
        if isinstance(vocab_size, int):
            self.check_vocabulary(vocab_size, folder)

    def __repr__(self) -> str:
        return f"VisualSentenceProcessor({self.tokenizer!r}, vocabulary of {self.vocab_size})"


def _read(path: Path) -> dict[str, Any]:
    """The processor's file.

    Raises:
        ModelError: it is missing, damaged, of a later format, or its special ids are others than its codes make them.
    """
    if not path.is_file():
        raise ModelError(
            f"{path.parent} has no {path.name}: save the visual processor beside the model (save_pretrained)"
        )
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(held, dict):
            raise TypeError("no JSON object")
        numbers = ("format", "vocab_size", "codes", "bos_token_id", "eos_token_id", "pad_token_id", "size")
        record: dict[str, Any] = {name: int(held[name]) for name in numbers}
        record |= {name: str(held[name]) for name in ("resize", "fingerprint")}
        record["begins"] = bool(held.get("begins", False))  # folders of before have no such line
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path} is damaged: {error!r}") from error
    if record["format"] != FORMAT:
        raise ModelError(f"{path} is of format {record['format']}, this kshot reads format {FORMAT}: update kshot")
    expected = [record["codes"] + n for n in range(SPECIAL)]
    if [record[f"{name}_token_id"] for name in ("bos", "eos", "pad")] != expected:
        raise ModelError(f"{path} names other special ids than {expected}, which follow {record['codes']} codes")
    return record
