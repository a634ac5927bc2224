"""Pictures as discrete tokens and back: a ``diffusers.VQModel`` with the conventions of the LVM (arXiv 2312.00785).

A picture becomes ``grid x grid`` numbers below ``codes``, row by row from the top left. The LVM's tokenizer, which is that of aMUSEd
(arXiv 2401.01808) and of open-muse, has 256 pixels a side, 16 x 16 tokens and 8,192 codes. Pixels are in [0, 1] on both sides of
the network: no mean, no deviation, and not the [-1, 1] that diffusers' own image processor gives by default.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

from kshot.errors import ModelError, OptionError
from kshot.picture import PictureLike, as_picture
from kshot.visual.precision import checked_precision, computing_in
from kshot.visual.resize import ResizeRule, checked_rule, scaled, squared
from kshot.visual.tokenizer_input import check_pixels, checked_ids
from kshot.visual.vq_files import read_config, read_vq, write_vq, writing
from kshot.whole_file import write_text

SETTINGS = "visual_tokenizer.json"
LVM_WIDTHS, LVM_SIZE, DEFAULT_SAMPLE = (128, 256, 256, 512, 768), 256, 32
BATCH = 16


class VisualTokenizer:
    """Pictures to tokens and tokens to pictures.

    Args:
        vq: any ``diffusers.VQModel`` of three channels. It is used as it is (not copied), put into evaluation mode and frozen.
        size: pixels a side. ``None``: the model's ``sample_size``; 256 for the LVM's network where that holds diffusers' default.
        resize: how pictures of other shapes become squares; see :mod:`kshot.visual.resize`.
        precision: "float32" (true float32, also on GPUs that would use TF32), "tf32" (what upstream's programs do on such GPUs) or
            "bfloat16" (convolutions in bfloat16, the codebook searched in float32). Tokens differ between them in some codes.
        device: where it computes; ``None``: where ``vq`` is.

    Attributes:
        grid: tokens a side.
        tokens: tokens of a picture, ``grid ** 2``.
        codes: size of the codebook; tokens are below it.

    Raises:
        OptionError: an unknown rule or precision, a size that the network cannot halve often enough, or a device that is not there.
        ModelError: the network is not one from pictures of three channels to such pictures.
    """

    def __init__(
        self,
        vq: Any,
        *,
        size: int | None = None,
        resize: str = "squash",
        precision: str = "float32",
        device: str | torch.device | None = None,
    ):
        config = vq.config
        if (config.in_channels, config.out_channels) != (3, 3):
            raise ModelError(
                f"a visual tokenizer takes and gives 3 channels; this VQModel has {config.in_channels} and {config.out_channels}"
            )
        self.vq = vq.eval().requires_grad_(False)
        if device is not None:
            _move(self.vq, device)
        self.size = _size(config) if size is None else size
        self.resize: ResizeRule = checked_rule(resize)
        self.precision = checked_precision(precision)
        factor = 2 ** (len(config.block_out_channels) - 1)
        if self.size < factor or self.size % factor:
            raise OptionError(f"size is {self.size}: this network halves pictures to 1/{factor}, give a multiple of it")
        self.grid = self.size // factor
        self.tokens = self.grid**2
        self.codes = int(config.num_vq_embeddings)
        self._fingerprint: str | None = None
        self._half: torch.nn.ModuleDict | None = None

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        *,
        precision: str = "float32",
        device: str | torch.device | None = None,
        size: int | None = None,
        resize: str | None = None,
    ) -> VisualTokenizer:
        """The tokenizer in a folder: a ``VQModel`` as diffusers, :meth:`save_pretrained` or ``kshot convert lvm-tokenizer`` writes it.

        ``size`` and ``resize`` are those of :meth:`save_pretrained` where it wrote the folder and no others are given.

        Raises:
            ModelError: a file is missing or damaged, or the weights do not fit the configuration.
            MissingExtra: diffusers is not installed.
        """
        folder = Path(path).expanduser()
        settings = _read_settings(folder / SETTINGS)
        return cls(
            read_vq(folder),
            size=settings.get("size") if size is None else size,
            resize=settings.get("resize", "squash") if resize is None else resize,
            precision=precision,
            device=device,
        )

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write weights and configuration as diffusers does, and size and resize rule into ``visual_tokenizer.json`` beside them.

        Raises:
            CannotWrite: no space, no permission, or a file is there.
        """
        place = Path(folder).expanduser()
        write_vq(self.vq, place)
        text = json.dumps({"size": self.size, "resize": self.resize}, indent=2) + "\n"
        with writing(place):
            write_text(place / SETTINGS, text)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        found: torch.device = self.vq.quantize.embedding.weight.device
        return found

    @property
    def fingerprint(self) -> str:
        """Hash of weights, configuration, size and resize rule: equal tokenizers give equal tokens in the same precision."""
        if self._fingerprint is None:
            hasher = hashlib.blake2b(digest_size=16)
            hasher.update(json.dumps([self._config(), self.size, self.resize], sort_keys=True).encode())
            for name, tensor in sorted(self.vq.state_dict().items()):
                values = tensor.detach().cpu().float().contiguous()
                hasher.update(f"{name}{list(values.shape)}".encode())
                hasher.update(memoryview(values.numpy()))
            self._fingerprint = hasher.hexdigest()
        return self._fingerprint

    def describe(self) -> dict[str, Any]:
        """What a record of tokens has to say about their tokenizer."""
        return {
            "fingerprint": self.fingerprint,
            "size": self.size,
            "grid": self.grid,
            "tokens": self.tokens,
            "codes": self.codes,
            "resize": self.resize,
            "precision": self.precision,
            "device": self.device.type,
        }

    def pixels(self, pictures: Sequence[PictureLike]) -> torch.Tensor:
        """Pictures as float32 ``(b, 3, size, size)`` in [0, 1], on the CPU.

        Raises:
            BadImage: a picture that cannot be decoded.
        """
        found = torch.empty(len(pictures), 3, self.size, self.size)
        for row, picture in enumerate(pictures):
            values = scaled(squared(as_picture(picture), self.size, self.resize))
            found[row] = torch.from_numpy(values).permute(2, 0, 1)
        return found

    @torch.no_grad()
    def encode(self, pictures: Sequence[PictureLike] | torch.Tensor, batch_size: int = BATCH) -> torch.Tensor:
        """Tokens of pictures.

        Args:
            pictures: pictures, or what :meth:`pixels` makes of them.
            batch_size: pictures that are in the network (and, if given as pictures, decoded) at a time.

        Returns:
            int64 ``(b, tokens)`` on the CPU, row by row from the top left.

        Raises:
            DataError: a tensor that is not ``(b, 3, size, size)`` in [0, 1].
            BadImage: a picture that cannot be decoded.
        """
        if isinstance(pictures, torch.Tensor):
            check_pixels(pictures, self.size)
        found = torch.empty(len(pictures), self.tokens, dtype=torch.int64)
        for first, last in _batches(len(pictures), batch_size, "encoding"):
            part = pictures[first:last]
            pixels = part if isinstance(part, torch.Tensor) else self.pixels(part)
            with self._computing():
                found[first:last] = self._search(self._latents(pixels)).cpu()
        return found

    @torch.no_grad()
    def decode(self, ids: torch.Tensor, batch_size: int = BATCH) -> torch.Tensor:
        """Pictures of tokens.

        Args:
            ids: integers ``(b, tokens)``, or ``(b, grid, grid)``.
            batch_size: pictures that are in the network at a time.

        Returns:
            float32 ``(b, 3, size, size)`` in [0, 1] on the CPU; what the network puts outside is clamped, as upstream does.

        Raises:
            DataError: not so many tokens, a grid that is no such square, or tokens that the codebook does not have.
        """
        flat = checked_ids(ids, self.grid, self.codes)
        found = torch.empty(len(flat), 3, self.size, self.size)
        for first, last in _batches(len(flat), batch_size, "decoding"):
            with self._computing():
                found[first:last] = self._decoded(flat[first:last].to(self.device)).float().clamp(0, 1).cpu()
        return found

    def to_images(self, ids: torch.Tensor, batch_size: int = BATCH, *, truncate: bool = False) -> list[Image.Image]:
        """Pictures of tokens as RGB images.

        Args:
            ids: as for :meth:`decode`.
            batch_size: as for :meth:`decode`.
            truncate: cut 8-bit values off, as upstream's programs do, which darkens by half a step on average; otherwise they are
                rounded.

        Raises:
            DataError: as :meth:`decode`.
        """
        values = self.decode(ids, batch_size) * 255
        levels = (values if truncate else values.round()).to(torch.uint8).permute(0, 2, 3, 1).numpy()
        return [Image.fromarray(image) for image in levels]

    @contextmanager
    def _computing(self) -> Iterator[None]:
        with computing_in(self.precision), torch.autocast(self.device.type, enabled=False):
            yield

    def _part(self, name: str) -> Any:
        """A part of the network, of bfloat16 copies where those are to be used: what is saved and hashed stays float32."""
        if self.precision != "bfloat16":
            return getattr(self.vq, name)
        if self._half is None or next(self._half.parameters()).device != self.device:
            parts = ("encoder", "quant_conv", "post_quant_conv", "decoder")
            copies = {part: deepcopy(getattr(self.vq, part)).to(torch.bfloat16) for part in parts}
            self._half = torch.nn.ModuleDict(copies)
        return self._half[name]

    def _latents(self, pixels: torch.Tensor) -> torch.Tensor:
        """Float32 ``(b, width, grid, grid)``: what the codebook is searched for."""
        kind = torch.bfloat16 if self.precision == "bfloat16" else self.vq.dtype
        states = pixels.to(self.device)
        states = states.float() / 255.0 if states.dtype == torch.uint8 else states
        found: torch.Tensor = self._part("quant_conv")(self._part("encoder")(states.to(kind)))
        return found.float()

    def _search(self, latents: torch.Tensor) -> torch.Tensor:
        """The nearest code of each place, ``(b, tokens)``.

        In upstream's terms: ``|z|^2 + |e|^2 - 2 z.e`` by one ``addmm``. diffusers' ``cdist`` takes the root of it, whose rounding
        makes ties of near neighbours: with an untrained codebook of 8,192 vectors it gives another code in 0.6 % of places.
        """
        flat = latents.permute(0, 2, 3, 1).reshape(-1, latents.shape[1])
        codebook = self.vq.quantize.embedding.weight.float().t()
        squares = flat.pow(2.0).sum(dim=1, keepdim=True) + codebook.pow(2.0).sum(dim=0, keepdim=True)
        found: torch.Tensor = torch.addmm(squares, flat, codebook, alpha=-2.0).argmin(dim=1).reshape(-1, self.tokens)
        return found

    def _decoded(self, ids: torch.Tensor) -> torch.Tensor:
        vectors = self.vq.quantize.embedding(ids).reshape(-1, self.grid, self.grid, self.vq.quantize.vq_embed_dim)
        kind = torch.bfloat16 if self.precision == "bfloat16" else self.vq.dtype
        latents = vectors.permute(0, 3, 1, 2).contiguous().to(kind)
        spatial = latents if self.vq.config.norm_type == "spatial" else None
        found: torch.Tensor = self._part("decoder")(self._part("post_quant_conv")(latents), spatial)
        return found

    def _config(self) -> dict[str, Any]:
        return {name: value for name, value in dict(self.vq.config).items() if not name.startswith("_")}

    def __repr__(self) -> str:
        return (
            f"VisualTokenizer({self.size} x {self.size} pixels, {self.grid} x {self.grid} tokens, {self.codes} codes, "
            f"{self.resize}, {self.precision})"
        )


def tokenizer_config(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The configuration of the ``VQModel`` in a folder, without its weights.

    Raises:
        ModelError: there is none.
    """
    return read_config(Path(folder).expanduser())


def _move(vq: Any, device: str | torch.device) -> None:
    try:
        vq.to(device)
    except (RuntimeError, AssertionError) as error:  # a PyTorch without CUDA asserts that it has it
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise OptionError(f"device {str(device)!r} cannot be used: {str(error).splitlines()[0]}") from None


def _size(config: Any) -> int:
    """Pixels a side; aMUSEd's configuration leaves diffusers' default in place, which is no size it was trained at."""
    if tuple(config.block_out_channels) == LVM_WIDTHS and config.sample_size == DEFAULT_SAMPLE:
        return LVM_SIZE
    return int(config.sample_size)


def _read_settings(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        return {"size": int(held["size"]), "resize": str(held["resize"])}
    except (ValueError, KeyError, TypeError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise ModelError(f"{path} is damaged ({error!r}): it says size and resize of the tokenizer") from error


def _batches(count: int, size: int, verb: str) -> Iterator[tuple[int, int]]:
    if size < 1:
        raise OptionError(f"batch_size is {size}: give at least 1")
    starts = range(0, count, size)
    for first in tqdm(starts, desc=verb, unit="batch", disable=None if len(starts) > 1 else True, leave=False):
        yield first, min(first + size, count)
