"""Training of a small visual tokenizer: any ``VQModel``, on pictures that are given or made on demand.

A VQ autoencoder (van den Oord et al., arXiv 1711.00937) without the adversarial and perceptual terms of VQGAN, which need other
networks:

    loss = a |x - y| + b (x - y)^2 + |sg(z) - e|^2 + beta |z - sg(e)|^2

x picture, y its reconstruction, z latents, e their nearest codes, sg no gradient; all means. beta weighs the *commitment* of the
encoder, as in the paper. The code of the LVM's tokenizer and of diffusers (``VectorQuantizer(legacy=True)``) has it on the codebook's
term.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from kshot.data.derived import generator
from kshot.errors import DataError, OptionError
from kshot.training.vq_settings import VQLine, VQSettings
from kshot.training.vq_steps import VQSteps, seeded
from kshot.visual.tokenizer import VisualTokenizer
from kshot.visual.vq_files import build, writing
from kshot.whole_file import write_text

PictureSource = torch.Tensor | Callable[[int], torch.Tensor]
LOG = "vq_training.jsonl"


@dataclass(frozen=True)
class VQTraining:
    """A trained tokenizer and how it came about."""

    tokenizer: VisualTokenizer
    log: tuple[VQLine, ...]


def vq_config(
    size: int, grid: int, codes: int, *, width: int = 32, latent: int = 16, blocks: int = 1
) -> dict[str, Any]:
    """The configuration of a small ``VQModel`` without attention.

    Args:
        size: pixels a side.
        grid: tokens a side; ``size`` must be ``grid`` times a power of two.
        codes: size of the codebook.
        width: channels of the finest level; doubled from level to level up to four times as many. A group of its norms has 8 of them:
            with one channel to a group, which 32 groups would be for 32 channels, norms take the mean colour out of a picture.
        latent: width of the codes.
        blocks: residual blocks of a level.

    Raises:
        OptionError: sizes that no such network has.
    """
    halvings = int(math.log2(size // grid)) if grid > 0 and size >= grid else -1
    if halvings < 0 or grid * 2**halvings != size:
        raise OptionError(f"{size} pixels cannot be halved to {grid} tokens a side")
    if width % 8:
        raise OptionError(f"width is {width}: give a multiple of 8")
    widths = [width * min(2**level, 4) for level in range(halvings + 1)]
    return {
        "block_out_channels": widths,
        "down_block_types": ["DownEncoderBlock2D"] * len(widths),
        "up_block_types": ["UpDecoderBlock2D"] * len(widths),
        "layers_per_block": blocks,
        "latent_channels": latent,
        "num_vq_embeddings": codes,
        "norm_num_groups": width // 8,
        "sample_size": size,
        "mid_block_add_attention": False,
        "lookup_from_codebook": True,
        "force_upcast": True,
    }


def train_vq(
    pictures: PictureSource,
    config: Mapping[str, Any],
    settings: VQSettings,
    *,
    out: str | os.PathLike[str] | None = None,
    device: str | torch.device = "cpu",
    resize: str = "squash",
    report: Callable[[VQLine], object] = lambda line: None,
) -> VQTraining:
    """Train a tokenizer from random weights; equal arguments give equal weights on the same machine.

    Args:
        pictures: uint8 ``(n, 3, size, size)``, of which each step draws ``batch_size``; or a function from the step (from 0) to
            its batch, uint8 or float in [0, 1].
        config: parameters of ``diffusers.VQModel``, with ``sample_size`` the pixels a side; see :func:`vq_config`.
        settings: how it is trained.
        out: folder for the trained tokenizer, the log (``vq_training.jsonl``) and checkpoints (``step-N``).
        device: where it is trained; the result stays there.
        resize: the rule that the tokenizer has for pictures of other shapes.
        report: is given each line of the log.

    Raises:
        DataError: a batch of another shape or type.
        OptionError: a size that the network cannot halve often enough.
        ModelError: a configuration that makes no network.
        CannotWrite: ``out`` cannot be written.
        MissingExtra: diffusers is not installed.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(generator(settings.seed, "vq weights").integers(2**62)))
        vq = build(config)
    tokenizer = VisualTokenizer(vq, resize=resize, device=device)
    run = VQSteps(tokenizer, settings)
    batches = _batches(pictures, settings)
    place = Path(out).expanduser() if out is not None else None
    log: list[VQLine] = []
    for step in tqdm(range(settings.steps), desc="training the tokenizer", unit="step", disable=None, leave=False):
        run.step(step, _checked(batches(step), tokenizer.size, step).to(device))
        if (step + 1) % settings.log_every == 0 or step + 1 == settings.steps:
            log.append(run.line(step))
            report(log[-1])
        if place is not None and settings.save_every and (step + 1) % settings.save_every == 0:
            run.freeze(True)
            tokenizer.save_pretrained(place / f"step-{step + 1}")
            run.freeze(False)
    run.freeze(True)
    if place is not None:
        tokenizer.save_pretrained(place)
        text = "".join(json.dumps(asdict(line)) + "\n" for line in log)
        with writing(place):
            write_text(place / LOG, text)
    return VQTraining(VisualTokenizer(vq, resize=resize), tuple(log))


def _batches(pictures: PictureSource, settings: VQSettings) -> Callable[[int], torch.Tensor]:
    if not isinstance(pictures, torch.Tensor):
        return pictures
    if pictures.dtype != torch.uint8 or pictures.ndim != 4 or not len(pictures):
        raise DataError(
            f"pictures are {pictures.dtype} of shape {list(pictures.shape)}, not uint8 [pictures, 3, size, size]"
        )

    def batch(step: int) -> torch.Tensor:
        rows = torch.randint(len(pictures), (settings.batch_size,), generator=seeded(settings.seed, "batch", step))
        return pictures[rows]

    return batch


def _checked(batch: torch.Tensor, size: int, step: int) -> torch.Tensor:
    """A batch as float in [0, 1]."""
    if batch.ndim != 4 or tuple(batch.shape[1:]) != (3, size, size) or not len(batch):
        raise DataError(
            f"the batch of step {step} has the shape {list(batch.shape)}, not [pictures, 3, {size}, {size}]"
        )
    if batch.dtype == torch.uint8:
        return batch.float() / 255.0
    if not batch.is_floating_point() or not (float(batch.amin()) >= 0 and float(batch.amax()) <= 1):
        raise DataError(f"the batch of step {step} is neither uint8 nor float in [0, 1]")
    return batch.float()
