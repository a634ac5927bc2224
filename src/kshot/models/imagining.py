"""The loop that imagines pictures: from token ids to exactly so many new ones.

What rows have in common is read once. All candidates of a prompt share one reading of it; prompts that begin with the same pictures
(fixed demonstrations) share the reading of these; and when the context slides, what the candidates still have in common is again read
once. Every row then has keys and values of its own, and all rows go on together, one token each at a time.

There is no end token, nothing but codes can come, and their number is asserted; the model's generation settings play no part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import Cache

from kshot.models.batching import BatchRunner
from kshot.models.code_sampling import CodeSampler, Sampling, random_numbers
from kshot.models.reserved_cache import make_cache, select_rows
from kshot.models.visual_window import Plan


@dataclass(frozen=True)
class Row:
    """One candidate of one prompt.

    Attributes:
        prompt: number of the prompt; rows of the same number have the same ids.
        ids: the prompt's ids, without the token at the beginning of sentences.
        key: what the random numbers of this prompt derive from.
        candidate: its number, from 0.
        allowed: the codes that may come; ``None`` = all.
    """

    prompt: int
    ids: torch.Tensor
    key: str
    candidate: int
    allowed: torch.Tensor | None = None


class Imaginer:
    """Continues rows of equal length.

    Args:
        model: a causal language model whose first ``codes`` ids are codes.
        codes: number of codes.
        tokens: tokens of a picture.
        bos: put before everything else, or ``None``.
    """

    def __init__(self, model: Any, codes: int, tokens: int, bos: int | None = None):
        self.model, self.codes, self.tokens, self.bos = model, codes, tokens, bos

    def run_all(
        self, rows: Sequence[Row], plans: Sequence[Plan], sampling: Sampling, batch_size: int
    ) -> list[torch.Tensor]:
        """New ids for rows of any lengths, each of shape ``(frames, tokens)``; those of equal length and plan go on together.

        Args:
            rows: in any number; those of one prompt stand together.
            plans: of the prompts, by their numbers.
            sampling: how codes are chosen.
            batch_size: most rows at a time; halved if memory runs out.
        """
        alike = [(len(row.ids), plans[row.prompt]) for row in rows]
        kinds = {found: kind for kind, found in enumerate(dict.fromkeys(alike))}

        def work(batch: list[int]) -> list[torch.Tensor]:
            together = [rows[number] for number in batch]
            return list(self.run(together, plans[together[0].prompt], sampling))

        return BatchRunner(batch_size).run([len(row.ids) for row in rows], work, [kinds[found] for found in alike])

    @torch.inference_mode()
    def run(self, rows: Sequence[Row], plan: Plan, sampling: Sampling) -> torch.Tensor:
        """New ids for each row, of shape ``(rows, frames, tokens)``, on the CPU.

        Args:
            rows: prompts of equal length; those of one prompt stand together.
            plan: what is seen and how much is new, the same for all rows.
            sampling: how codes are chosen.
        """
        device = self.model.device
        frames = sum(stretch.frames for stretch in plan.stretches)
        ids = torch.stack([row.ids for row in rows]).to(device)
        given = ids.shape[1]
        sampler = CodeSampler(sampling, self.codes, [row.allowed for row in rows])
        numbers = None
        if not sampling.greedy:
            drawn = [random_numbers(sampling.seed, row.key, row.candidate, frames * self.tokens) for row in rows]
            numbers = torch.stack(drawn, dim=1).to(device)
        parts = torch.tensor([row.prompt for row in rows], device=device)
        for stretch in plan.stretches:
            start = (ids.shape[1] - given, stretch.frames * self.tokens)
            window = ids[:, stretch.first * self.tokens :]
            shares = None if numbers is None else numbers[start[0] : sum(start)]
            ids = torch.cat([ids, self._continue(window, parts, sampler, shares, start[1])], dim=1)
        new = ids[:, given:]
        if new.shape[1] != frames * self.tokens:
            raise AssertionError(f"{new.shape[1]} new ids instead of {frames} x {self.tokens}")
        if not bool(((new >= 0) & (new < self.codes)).all()):
            raise AssertionError("an id that is no code was imagined")
        return new.reshape(len(rows), frames, self.tokens).cpu()

    def _continue(
        self,
        window: torch.Tensor,
        parts: torch.Tensor,
        sampler: CodeSampler,
        numbers: torch.Tensor | None,
        count: int,
    ) -> torch.Tensor:
        """``count`` new ids behind each row of a window, of shape ``(rows, count)``."""
        if self.bos is not None:
            window = torch.cat([window.new_full((len(window), 1), self.bos), window], dim=1)
        cache = make_cache(self.model.config, window.shape[1] + count - 1)
        logits = self._read(window, parts, cache)
        new = window.new_empty(len(window), count)
        for place in range(count):
            chosen = sampler.choose(logits, None if numbers is None else numbers[place])
            new[:, place] = chosen
            if place + 1 < count:  # the last id is read only if something follows it
                logits = self._forward(chosen.unsqueeze(1), cache)
        return new

    def _read(self, window: torch.Tensor, parts: torch.Tensor, cache: Cache) -> torch.Tensor:
        """Read each row's context into the cache, common beginnings once; gives the logits behind it, ``(rows, vocabulary)``.

        In up to three steps: what all rows begin with, by a single row; what the rows of each prompt begin with, by one row for each
        prompt; the rest, by all rows.
        """
        length = window.shape[1]
        everyone = torch.arange(len(window), device=window.device)
        leaders, inverse = _first_of_each(parts)
        alike = self._common(window, torch.zeros_like(parts))
        within = max(alike, self._common(window, inverse))
        # How far each step reads, the rows that do it, and which of these read for each row.
        steps = [
            (alike, everyone[:1], torch.zeros_like(everyone)),
            (within, leaders, inverse),
            (length, everyone, everyone),
        ]
        done, logits, where = 0, window, everyone
        for end, readers, read_by in steps:
            if end > done:
                if done:
                    select_rows(cache, where[readers])
                logits = self._forward(window[readers, done:end], cache)
                done, where = end, read_by
        if where is not everyone:
            select_rows(cache, where)
            logits = logits[where]
        return logits

    def _common(self, window: torch.Tensor, part: torch.Tensor) -> int:
        """How many ids all rows of each part begin with together: everything, or a whole number of pictures."""
        first = _first_of_each(part)[0][part]
        equal = (window == window[first]).all(0).long().cumprod(0).sum().item()
        length, before = window.shape[1], 0 if self.bos is None else 1
        pictures = max(0, int(equal) - before) // self.tokens
        return length if equal == length else (before + pictures * self.tokens if pictures else 0)

    def _forward(self, ids: torch.Tensor, cache: Cache) -> torch.Tensor:
        """Read ids into the cache; gives the logits behind the last of each row."""
        found: torch.Tensor = self.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[
            :, -1
        ]
        return found


def _first_of_each(parts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The first row of each part, and the number of each row's part, counted from 0."""
    values, inverse = torch.unique(parts, return_inverse=True)
    rows = torch.arange(len(parts), device=parts.device)
    first = torch.full_like(values, len(parts)).scatter_reduce(0, inverse, rows, "amin")
    return first, inverse
