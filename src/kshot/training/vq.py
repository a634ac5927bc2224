"""Training of a small visual tokenizer: any ``VQModel``, on pictures that are given or made on demand.

A VQ autoencoder (van den Oord et al., arXiv 1711.00937) without the adversarial and perceptual terms of VQGAN, which need other
networks:

    loss = a |x - y| + b (x - y)^2 + |sg(z) - e|^2 + beta |z - sg(e)|^2

x picture, y its reconstruction, z latents, e their nearest codes, sg no gradient; all means. beta weighs the *commitment* of the
encoder, as in the paper. The code of the LVM's tokenizer and of diffusers (``VectorQuantizer(legacy=True)``) has it on the codebook's
term.

At first the latents pass as they are, without codes: a network that is random still gives all pictures nearly the same latents, and
the commitment would pull them together before the decoder has learnt to tell them apart. Then the codebook begins as latents of a
batch. Codes that nothing chooses get no gradient and stay dead; those that are chosen too seldom are put, every ``restart_every``
steps, where latents lie that no code is near.
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

from kshot.data.concepts import generator
from kshot.errors import DataError, OptionError
from kshot.visual.tokenizer import VisualTokenizer
from kshot.visual.vq_files import build, replace, writing

PictureSource = torch.Tensor | Callable[[int], torch.Tensor]
LOG = "vq_training.jsonl"
LATENTS_KEPT = 8192
"""Latents of a batch that are looked at for a restart."""


@dataclass(frozen=True)
class VQSettings:
    """How a tokenizer is trained.

    Attributes:
        steps: optimizer steps.
        seed: of weights, batches and restarts; together with the step it decides all that is random.
        batch_size: pictures of a step, where they are drawn from a tensor.
        learning_rate: highest one; Adam, linear warm-up, then half a cosine to a hundredth of it.
        warmup: steps of the warm-up.
        l1, l2: weights of the two terms of reconstruction.
        beta: weight of the commitment.
        free_until: part of the steps in which latents pass without codes.
        restart_every: steps between restarts of dead codes; 0: none.
        restart_until: part of the steps after which there are none, so that the last codes settle.
        dead_below: a code is dead that was chosen, since the last restart, less often than this part of an equal share.
        clip: largest norm of the gradient.
        log_every: steps between lines of the log.
        save_every: steps between checkpoints in ``out``; 0: only the end is saved.
    """

    steps: int
    seed: int = 0
    batch_size: int = 32
    learning_rate: float = 1e-3
    warmup: int = 50
    l1: float = 1.0
    l2: float = 1.0
    beta: float = 0.25
    free_until: float = 0.2
    restart_every: int = 50
    restart_until: float = 0.8
    dead_below: float = 0.05
    clip: float = 1.0
    log_every: int = 50
    save_every: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "log_every"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name} is {getattr(self, name)}: give at least 1")
        for name in (
            "warmup",
            "l1",
            "l2",
            "beta",
            "free_until",
            "restart_every",
            "restart_until",
            "dead_below",
            "save_every",
        ):
            if not getattr(self, name) >= 0:
                raise OptionError(f"{name} is {getattr(self, name)}: give 0 or more")
        for name in ("learning_rate", "clip"):
            if not getattr(self, name) > 0:
                raise OptionError(f"{name} is {getattr(self, name)}: give a number above 0")
        if self.free_until >= 1:
            raise OptionError(f"free_until is {self.free_until}: with 1 or more no code would be learnt")


@dataclass(frozen=True)
class VQLine:
    """What a step gave.

    Attributes:
        step: counted from 1.
        loss, l1, l2, codebook: the sum and its parts on the step's batch; ``codebook`` (without beta, so also the commitment) is 0 as
            long as latents pass without codes.
        used: part of the codes that was chosen at least once since the line before.
        restarted: codes put elsewhere since the line before.
    """

    step: int
    loss: float
    l1: float
    l2: float
    codebook: float
    used: float
    restarted: int


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
    run = _Run(tokenizer, settings)
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
            replace(place / LOG, lambda path: path.write_text(text, encoding="utf-8"))
    return VQTraining(VisualTokenizer(vq, resize=resize), tuple(log))


class _Run:
    """The network being trained, its optimizer, and how often each code was chosen."""

    def __init__(self, tokenizer: VisualTokenizer, settings: VQSettings):
        self.tokenizer, self.vq, self.settings = tokenizer, tokenizer.vq, settings
        self.freeze(False)
        self.first = int(settings.free_until * settings.steps)
        self.codebook: torch.nn.Parameter = self.vq.quantize.embedding.weight
        self.optimizer = torch.optim.Adam(
            self.vq.parameters(), lr=settings.learning_rate, betas=(0.9, 0.99), fused=True
        )
        zeros = torch.zeros(tokenizer.codes, device=tokenizer.device)
        self.chosen, self.seen = zeros.clone(), zeros.clone().bool()
        self.restarted = 0
        self.losses: dict[str, torch.Tensor] = {}

    def freeze(self, frozen: bool) -> None:
        self.vq.train(not frozen).requires_grad_(not frozen)

    def step(self, step: int, pixels: torch.Tensor) -> None:
        settings = self.settings
        latents = self.vq.quant_conv(self.vq.encoder(pixels)).permute(0, 2, 3, 1)
        flat = latents.reshape(-1, latents.shape[-1])
        if step < self.first:
            passed, ids, errors, codebook = latents, None, None, latents.new_zeros(())
            commitment = codebook
        else:
            if step == self.first:
                self._begin(flat.detach(), step)
            ids, errors = self._nearest(flat.detach())
            codes = self.codebook[ids].reshape(latents.shape)
            codebook = (codes - latents.detach()).square().mean()
            commitment = (latents - codes.detach()).square().mean()
            passed = latents + (codes - latents).detach()
        passed = passed.permute(0, 3, 1, 2).contiguous()
        spatial = passed if self.vq.config.norm_type == "spatial" else None
        difference = self.vq.decoder(self.vq.post_quant_conv(passed), spatial) - pixels
        l1, l2 = difference.abs().mean(), difference.square().mean()
        loss = settings.l1 * l1 + settings.l2 * l2 + codebook + settings.beta * commitment
        for group in self.optimizer.param_groups:
            group["lr"] = settings.learning_rate * _rate(step, settings)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.vq.parameters(), settings.clip)
        self.optimizer.step()
        self.losses = {"loss": loss.detach(), "l1": l1.detach(), "l2": l2.detach(), "codebook": codebook.detach()}
        if ids is None or errors is None:
            return
        self.chosen += torch.bincount(ids, minlength=self.tokenizer.codes)
        self.seen[ids] = True
        due = settings.restart_every and (step + 1) % settings.restart_every == 0
        if due and step + 1 <= settings.restart_until * settings.steps:
            self._restart(step, flat.detach(), errors)

    def line(self, step: int) -> VQLine:
        values = {name: float(value) for name, value in self.losses.items()}
        found = VQLine(step + 1, **values, used=float(self.seen.float().mean()), restarted=self.restarted)
        self.seen.zero_()
        self.restarted = 0
        return found

    @torch.no_grad()
    def _begin(self, latents: torch.Tensor, step: int) -> None:
        """Codes where a batch's latents lie; the uniform ones of diffusers are as small as 1 / codes."""
        random = _random(self.settings.seed, "codebook", step)
        rows = torch.randint(len(latents), (len(self.codebook),), generator=random).to(latents.device)
        self.codebook.copy_(latents[rows] + self._jitter(latents, len(rows), random))

    @torch.no_grad()
    def _nearest(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The nearest code of each latent, and its squared distance."""
        squares = latents.square().sum(1, keepdim=True) + self.codebook.square().sum(1)
        least, ids = torch.addmm(squares, latents, self.codebook.t(), alpha=-2.0).min(1)
        return ids, least.clamp_min(0)

    @torch.no_grad()
    def _restart(self, step: int, latents: torch.Tensor, errors: torch.Tensor) -> None:
        """Put dead codes on latents, those far from their code first of all (as k-means++ chooses its centres)."""
        dead = self.chosen < self.settings.dead_below * self.chosen.mean()
        count = int(dead.sum())
        self.chosen.zero_()
        if not count:
            return
        random = _random(self.settings.seed, "restart", step)
        few = torch.randperm(len(latents), generator=random)[:LATENTS_KEPT].to(latents.device)
        weights = errors[few].double().cpu()
        weights = weights if float(weights.sum()) > 0 else torch.ones_like(weights)
        rows = few[torch.multinomial(weights, count, replacement=True, generator=random).to(few.device)]
        self.codebook[dead] = latents[rows] + self._jitter(latents, count, random)
        for moment in ("exp_avg", "exp_avg_sq"):
            self.optimizer.state[self.codebook][moment][dead] = 0
        self.restarted += count

    def _jitter(self, latents: torch.Tensor, count: int, random: torch.Generator) -> torch.Tensor:
        """A hundredth of the latents' spread: codes at the very same place would never part."""
        noise = torch.randn(count, latents.shape[1], generator=random).to(latents)
        return noise * latents.std(0) * 0.01


def _batches(pictures: PictureSource, settings: VQSettings) -> Callable[[int], torch.Tensor]:
    if not isinstance(pictures, torch.Tensor):
        return pictures
    if pictures.dtype != torch.uint8 or pictures.ndim != 4 or not len(pictures):
        raise DataError(
            f"pictures are {pictures.dtype} of shape {list(pictures.shape)}, not uint8 [pictures, 3, size, size]"
        )

    def batch(step: int) -> torch.Tensor:
        rows = torch.randint(len(pictures), (settings.batch_size,), generator=_random(settings.seed, "batch", step))
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


def _rate(step: int, settings: VQSettings) -> float:
    if step < settings.warmup:
        return (step + 1) / settings.warmup
    done = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done))


def _random(seed: int, purpose: str, step: int) -> torch.Generator:
    return torch.Generator().manual_seed(int(generator(seed, "vq", purpose, step).integers(2**62)))
