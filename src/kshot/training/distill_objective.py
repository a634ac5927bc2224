"""Distillation as an objective of the one Trainer: the student answers without what the teacher is shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from kshot.episode import Episode, Example
from kshot.errors import ContextTooLong, ModelError, OptionError
from kshot.models.base import PromptStyle
from kshot.models.encoding import EncodedPrompt
from kshot.models.reuse import on_device
from kshot.models.visual_prompts import picture_answer
from kshot.models.visual_sentence import VisualSentenceModel
from kshot.models.vlm import VLM
from kshot.training.alignment import Row, Watch, common_span
from kshot.training.answers import ended
from kshot.training.distill_items import DistillItem, DistillItems
from kshot.training.distill_losses import Losses, distance, divergence
from kshot.training.objective import Objective
from kshot.training.recall import Recall
from kshot.training.teacher import Teacher, answer_logits, wanted
from kshot.training.teacher_cache import Signals, TeacherCache, prompt_digest


class DistillObjective(Objective):
    """Teaches an adapter to answer without demonstrations as the frozen model answers with them.

    The loss is the sum of up to three parts (:class:`~kshot.training.distill_losses.Losses`): divergence from the teacher and
    cross-entropy, means over the answer's tokens (its end included), and the distance of hidden states, a mean over queries.

    Args:
        vlm: the model, with the adapter in its layers.
        items: queries and demonstrations.
        losses: what is learnt from whom.
        model: the model of PEFT around it, which the Trainer gets. Without, the student is the plain model.
        align_layers: numbers of the layers whose states are compared; default: all.
        top: number of the teacher's log-probabilities that are compared for each token; ``None``: all.
        cache: what the teacher said before.
        style: plain or chat prompts.
        features: encode each picture once, for the prompts of both. Default: if the model can.
        seed: of the order of the queries.

    Attributes:
        step: optimiser steps done, for messages.

    Raises:
        ContextTooLong: a prompt of the teacher does not fit into the model's context.
        ModelError: prompts cannot be aligned.
        OptionError: wrong or contradictory options.
    """

    def __init__(
        self,
        vlm: VLM | VisualSentenceModel,
        items: DistillItems,
        losses: Losses,
        *,
        model: nn.Module | None = None,
        align_layers: Sequence[int] | None = None,
        top: int | None = None,
        cache: TeacherCache | None = None,
        style: PromptStyle = "auto",
        features: bool | None = None,
        seed: int = 0,
    ):
        self.vlm, self.items, self.losses, self.style, self.seed = vlm, items, losses, style, seed
        self.cache, self.step = cache, 0
        self.model = model if model is not None else vlm.model
        can = vlm.reuse.no_features is None and vlm.reuse.feature_cache is not False
        if features and not can:
            raise OptionError(f"features: {vlm.reuse.no_features or 'the feature cache is switched off'}")
        self.features = can if features is None else features
        # With fixed demonstrations, what is read and what the teacher says are the same in all epochs.
        self.recall = Recall(said=items.demonstrations == "fixed" and cache is None)
        self.watch = Watch(vlm.anatomy, losses.align_to, align_layers) if losses.align else None
        self.teacher = Teacher(vlm, model, losses, self.watch, top=top)
        self._check()

    def __len__(self) -> int:
        return len(self.items)

    def item(self, epoch: int, index: int) -> DistillItem:
        return self.items.item(epoch, index)

    def order(self, epoch: int) -> Sequence[int]:
        generator = torch.Generator().manual_seed((self.seed << 20) + epoch)
        order: list[int] = torch.randperm(len(self), generator=generator).tolist()
        return order

    def row(self, episode: Episode) -> Row:
        """The prompt of an episode with its query's answer.

        Raises:
            ContextTooLong: it does not fit into the model's context.
        """
        if isinstance(self.vlm, VisualSentenceModel):
            return Row.of(self.vlm.encode(episode, answer=picture_answer(episode.query)))
        prompt = self.vlm.prompt(episode, self.items.task.template, self.style, answer=episode.query.text_answer)
        encoded = self.vlm.encoder.encode(prompt, known=self.vlm.reuse.expansion if self.features else None)
        if prompt.style == "plain":
            encoded = ended(encoded, self.vlm.tokenizer.eos_token_id)
        most = self.vlm.anatomy.max_context
        if most is not None and len(encoded) > most:
            raise ContextTooLong(
                f"the prompt of {episode.id!r} with {episode.shots} demonstrations has {len(encoded):,} tokens, but {self.vlm.name} "
                f"takes {most:,}: use fewer shots, or smaller images"
            )
        return Row.of(encoded)

    def collate(self, items: Sequence[DistillItem]) -> dict[str, Any]:
        rows, taught, signals, keys = [], [], [], []
        for item in items:
            student = self.recall.row(item.asked, self.row)
            key: str | int | None = None
            held = teacher = None
            if self.losses.teacher:
                if self.cache is not None:
                    key = prompt_digest(item.taught, self.items.task.template, self.style)
                    held = self.cache.get(key)
                else:
                    key = item.number
                    held = self.recall.signals(key)
                if held is None:
                    teacher = student if item.taught is item.asked else self.row(item.taught)
                    span = common_span(student.prompt.tokens, teacher.prompt.tokens, repr(item.asked.query.id))
                    # What is kept serves students with and without demonstrations.
                    span = min(span, self._own_span(item, student))
                    teacher, student = replace(teacher, span=span), replace(student, span=span)
                elif held.states is not None:
                    student = replace(student, span=held.states.shape[1])
            rows.append(student)
            taught.append(teacher)
            signals.append(held)
            keys.append(key)
        batch = {"rows": rows, "taught": taught, "signals": signals, "keys": keys, "counts": True}
        if not self.features:
            batch["inputs"] = self._collated([row.prompt for row in rows])
            asked = [row.prompt for row in taught if row is not None]
            batch["teacher_inputs"] = self._collated(asked) if asked else {}
        return batch

    def blank(self, batch: dict[str, Any]) -> dict[str, Any]:
        return batch | {"counts": False}

    def amount(self, batch: Mapping[str, Any]) -> list[float]:
        if not batch["counts"]:
            return [0.0, 0.0]
        return [float(sum(len(row.targets) for row in batch["rows"])), float(len(batch["rows"]))]

    def loss(self, model: nn.Module, batch: Mapping[str, Any]) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Sums over the answers' tokens (divergence and cross-entropy) and over queries (distance), each with its weight.

        Raises:
            ModelError: the loss is not a number.
        """
        rows: list[Row] = batch["rows"]
        signals = self._signals(batch)
        keep = max(len(row.answer) for row in rows)
        recording: AbstractContextManager[list[Tensor]] = nullcontext([])
        if self.watch is not None:
            recording = self.watch.record(max(row.span for row in rows))
        with recording as states:
            logits = answer_logits(self.vlm, model, self._inputs(batch, "inputs", rows), keep)
        said = torch.cat([logits[number][wanted(row, keep)] for number, row in enumerate(rows)]).float()
        targets = torch.tensor([token for row in rows for token in row.targets], device=said.device)
        tokens, queries = self.amount({**batch, "counts": True})
        answer = F.cross_entropy(said, targets, reduction="sum")
        sums = [self.losses.ce * answer, torch.zeros_like(answer)]
        parts = {"answer_loss": answer / tokens}
        if self.losses.kl:
            log_probs = torch.cat([_there(s.log_probs, said) for s in signals])
            indices = None if signals[0].indices is None else torch.cat([_there(s.indices, said) for s in signals])
            kl = divergence(log_probs, said, self.losses.temperature, indices)
            sums[0] = sums[0] + self.losses.kl * kl
            parts["kl_loss"] = kl / tokens
        if self.watch is not None:
            own = [torch.stack([layer[n, -row.span :] for layer in states]) for n, row in enumerate(rows)]
            align = distance(own, [_there(s.states, said) for s in signals], self.losses.align_by)
            sums[1] = self.losses.align * align
            parts["align_loss"] = align / queries
        total = torch.stack(sums)
        if not torch.isfinite(total).all():
            loss = float(total.detach().sum())
            raise ModelError(
                f"the loss is {loss} at step {self.step + 1}: training stops, and the last good state is kept; lower "
                "the learning rate, or train in bfloat16 or float32 (the same command goes on from the last checkpoint)"
            )
        return total if batch["counts"] else total * 0, parts

    @torch.no_grad()
    def answer_loss(self, examples: Sequence[Example], batch_size: int) -> float:
        """Mean cross-entropy of the answers' tokens of some queries without demonstrations, with the adapter as it is."""
        total, count = 0.0, 0
        for start in range(0, len(examples), batch_size):
            rows = [self.recall.row(Episode((), query), self.row) for query in examples[start : start + batch_size]]
            keep = max(len(row.answer) for row in rows)
            logits = answer_logits(self.vlm, self.model, self.vlm.reuse.inputs([row.prompt for row in rows]), keep)
            said = torch.cat([logits[number][wanted(row, keep)] for number, row in enumerate(rows)]).float()
            targets = torch.tensor([token for row in rows for token in row.targets], device=said.device)
            total += float(F.cross_entropy(said, targets, reduction="sum"))
            count += len(targets)
        return total / count

    def cache_size(self, epochs: int) -> tuple[int, int]:
        """Bytes and number of the entries that a run may write into the teacher cache."""
        silent = len(self) < 500 or None
        queries = tqdm(range(len(self)), "size of the teacher cache", leave=False, disable=silent)
        total = sum(self.teacher.size(self.row(Episode((), self.items.examples[index]))) for index in queries)
        times = 1 if self.items.demonstrations == "fixed" else epochs
        return total * times, len(self) * times

    def _own_span(self, item: DistillItem, student: Row) -> int:
        """Tokens of query and answer as the query alone is written."""
        if item.taught is not item.asked:
            return student.span
        return self.recall.row(Episode((), item.asked.query), self.row).span

    def _signals(self, batch: Mapping[str, Any]) -> list[Signals]:
        """What the teacher says of each row: what is known, and the rest asked now."""
        signals: list[Signals | None] = list(batch["signals"])
        rows: list[Row] = [row for row in batch["taught"] if row is not None]
        if not rows:
            return [held if held is not None else Signals() for held in signals]
        self.teacher.inputs = lambda prompts: self._inputs(batch, "teacher_inputs", rows)
        said = iter(self.teacher.signals(rows))
        for number, row in enumerate(batch["taught"]):
            if row is None:
                continue
            found, key = next(said), batch["keys"][number]
            if self.cache is not None:
                found = found.rounded()
                self.cache.put(key, found.cpu())
            else:
                self.recall.keep(key, found)
            signals[number] = found
        return [held if held is not None else Signals() for held in signals]

    def _inputs(self, batch: Mapping[str, Any], name: str, rows: Sequence[Row]) -> dict[str, Any]:
        """What the model takes; pictures as features, or as pixels that loader workers have prepared."""
        if self.features:
            return self.vlm.reuse.inputs([row.prompt for row in rows])
        return on_device(self.vlm.model, batch[name])

    def _collated(self, prompts: Sequence[EncodedPrompt]) -> dict[str, Tensor]:
        if self.vlm.encoder.dialect.equal_counts and len({len(prompt.pictures) for prompt in prompts}) > 1:
            raise OptionError(
                f"{self.vlm.name}: the prompts of a batch must have equally many images: set trainer.per_device_train_batch_size to 1"
            )
        return self.vlm.encoder.collate(prompts)

    def _check(self) -> None:
        """Encode some items: better an error now than at step 700."""
        for index in range(min(len(self), 8)):
            item = self.item(0, index)
            student, teacher = self.row(item.asked), self.row(item.taught)
            if self.losses.teacher:
                common_span(student.prompt.tokens, teacher.prompt.tokens, repr(item.asked.query.id))


def _there(tensor: Tensor | None, like: Tensor) -> Tensor:
    assert tensor is not None
    return tensor.to(like.device)
