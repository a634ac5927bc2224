"""Optimizer steps of a visual tokenizer: its losses, and the care for codes that nothing chooses.

At first the latents pass as they are, without codes: a network that is random still gives all pictures nearly the same latents, and
the commitment would pull them together before the decoder has learnt to tell them apart. Then the codebook begins as latents of a
batch. Codes that nothing chooses get no gradient and stay dead; those that are chosen too seldom are put, every ``restart_every``
steps, where latents lie that no code is near.
"""

from __future__ import annotations

import math

import torch

from kshot.data.derived import generator
from kshot.training.vq_settings import VQLine, VQSettings
from kshot.visual.tokenizer import VisualTokenizer

LATENTS_KEPT = 8192
"""Latents of a batch that are looked at for a restart."""


class VQSteps:
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
        random = seeded(self.settings.seed, "codebook", step)
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
        random = seeded(self.settings.seed, "restart", step)
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


def _rate(step: int, settings: VQSettings) -> float:
    if step < settings.warmup:
        return (step + 1) / settings.warmup
    done = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done))


def seeded(seed: int, purpose: str, step: int) -> torch.Generator:
    """Randomness of a step that depends on the seed and on what it is for, and on nothing else."""
    return torch.Generator().manual_seed(int(generator(seed, "vq", purpose, step).integers(2**62)))
