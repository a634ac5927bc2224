"""Learning answers from episodes: link-context training, and ordinary training on single questions (an episode of no shots).

The loss is the cross-entropy of answer tokens, known by construction: always the query's, and those demonstrations' that the
source says are to be learnt. Any model of :class:`~kshot.models.vlm.VLM` can be trained, through its plain or its chat prompts;
prompts of a batch may hold different numbers of images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kshot.errors import ContextTooLong, OptionError
from kshot.models.encoding import EncodedPrompt
from kshot.models.features import encoder_outputs
from kshot.models.reuse import on_device
from kshot.models.vlm import VLM
from kshot.prompt import Span, TokenizedPrompt
from kshot.training.items import Source, TrainingItem
from kshot.training.objective import Objective
from kshot.training.packing import check_packing, pack
from kshot.training.summary import Summary

IGNORED = -100


class AnswerObjective(Objective):
    """Cross-entropy of the answers of a source's episodes.

    Args:
        vlm: the model. Its own module is trained unless ``model`` is given.
        source: the episodes.
        model: the module that the Trainer gets: ``vlm.model``, or a PEFT model around it.
        packed: put the prompts of a batch into one row, each of which sees itself only, instead of padding them to one length.
        features: encode each picture once and keep what the decoder sees of it. Only for a frozen vision tower and projector.
        summary: weight of the summary loss, see :class:`~kshot.training.summary.Summary`; 0: none.
        seed: of the order of items, and of the summary loss' probe.

    Raises:
        OptionError: see the arguments.
        ModelError: the model cannot be packed.
        ContextTooLong: the source's longest item does not fit into the model's context.
    """

    def __init__(
        self,
        vlm: VLM,
        source: Source,
        *,
        model: nn.Module | None = None,
        packed: bool = False,
        features: bool = False,
        summary: float = 0.0,
        seed: int = 0,
    ):
        self.vlm, self.source, self.packed, self.features, self.seed = vlm, source, packed, features, seed
        self.model = model if model is not None else vlm.model
        if features and vlm.reuse.no_features:
            raise OptionError(f"features: {vlm.reuse.no_features}; train without them")
        if packed:
            check_packing(vlm)
        self._check_context()
        self.summary = Summary(vlm, weight=summary, seed=seed) if summary else None

    def __len__(self) -> int:
        return len(self.source)

    def item(self, epoch: int, index: int) -> TrainingItem:
        return self.source.item(epoch, index)

    def order(self, epoch: int) -> Sequence[int]:
        generator = torch.Generator().manual_seed((self.seed << 20) + epoch)
        order: list[int] = torch.randperm(len(self), generator=generator).tolist()
        return order

    def encode(self, item: TrainingItem) -> tuple[EncodedPrompt, list[int]]:
        """An item's prompt, and for each of its tokens its id if it is to be learnt, or else -100.

        Raises:
            OptionError: a demonstration's answer is to be learnt by a model that reads it together with what follows.
            ContextTooLong: the prompt does not fit into the model's context.
        """
        episode = item.episode
        prompt = self.vlm.prompt(episode, item.template, item.style, answer=episode.query.text_answer)
        encoder = self.vlm.encoder
        encoded = encoder.encode(prompt, known=self.vlm.reuse.expansion if self.features else None)
        if prompt.style == "plain":
            encoded = ended(encoded, self.vlm.tokenizer.eos_token_id)
        most = self.vlm.anatomy.max_context
        if most is not None and len(encoded) > most:
            raise ContextTooLong(
                f"{item.source or 'training'}: episode {episode.id!r} has {len(encoded):,} tokens, but {self.vlm.name} takes "
                f"{most:,}: use fewer than its {episode.shots} shots, or smaller images"
            )
        if any(item.graded) and self.vlm.anatomy.prefix_lm:
            raise OptionError(
                f"{self.vlm.name} reads a prompt in both directions, so demonstrations' answers cannot be learnt: use loss: query"
            )
        targets = [IGNORED] * len(encoded)
        for span in encoded.tokens.spans:
            if span.is_answer and (span.role == "answer" or (item.graded and item.graded[span.index])):
                targets[span.start : span.end] = encoded.tokens.ids[span.start : span.end]
        return encoded, targets

    def collate(self, items: Sequence[TrainingItem]) -> dict[str, Any]:
        rows = [self.encode(item) for item in items]
        encoded, targets = [row for row, _ in rows], [target for _, target in rows]
        if self.vlm.encoder.dialect.equal_counts and len({len(row.pictures) for row in encoded}) > 1:
            raise OptionError(
                f"{self.vlm.name}: the prompts of a batch must have equally many images: set "
                "trainer.per_device_train_batch_size to 1 (and trainer.gradient_accumulation_steps as you like)"
            )
        spoken = [list(map(int, row.tokens.answer_mask(demonstrations=True))) for row in encoded]
        if self.packed:
            answers = torch.tensor([[token for row in spoken for token in row]])
            return pack(self.vlm.encoder, encoded, targets, pixels=not self.features) | {"answers": answers.bool()}
        batch: dict[str, Any] = {
            "targets": self.vlm.encoder.pad(targets, IGNORED)[0],
            "answers": self.vlm.encoder.pad(spoken, 0)[0].bool(),
        }
        if self.features:
            return batch | {"prompts": encoded}
        return batch | {"inputs": self.vlm.encoder.collate(encoded)}

    def blank(self, batch: dict[str, Any]) -> dict[str, Any]:
        return batch | {"targets": torch.full_like(batch["targets"], IGNORED)}

    def amount(self, batch: Mapping[str, Any]) -> float:
        return float((batch["targets"][:, 1:] != IGNORED).sum())

    def loss(self, model: nn.Module, batch: Mapping[str, Any]) -> tuple[Tensor, Mapping[str, Tensor]]:
        inputs = self._inputs(batch)
        targets = batch["targets"][:, 1:]
        wanted = targets != IGNORED
        options: dict[str, Any] = {"use_cache": False}  # with a cache, transformers would not see that a row is packed
        columns = torch.nonzero(wanted.any(0)).flatten()
        if "logits_to_keep" in self.vlm.encoder.accepted:
            options["logits_to_keep"] = columns  # the head is applied where something is to be learnt
        if self.summary is not None:
            self.summary.watch(inputs["input_ids"], batch["answers"])
        output = model(**inputs, **options)
        logits = output.logits
        if "logits_to_keep" not in options:
            logits = logits[:, columns]
        chosen = wanted[:, columns]
        answers = F.cross_entropy(logits[chosen].float(), targets[:, columns][chosen], reduction="sum")
        parts = {"answer_loss": answers / max(1.0, self.amount(batch))}
        if self.summary is None:
            return answers, parts
        self.summary.stop()
        summary = output.loss
        # The loss is a sum over graded tokens, and the summary loss a mean: it counts as often as there are tokens.
        return answers + self.summary.weight * summary * self.amount(batch), parts | {"summary_loss": summary}

    def _inputs(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """What the model takes."""
        if "inputs" in batch:
            return on_device(self.vlm.model, batch["inputs"])
        if not self.packed:
            return self.vlm.reuse.inputs(batch["prompts"])
        shown = self.vlm.reuse.shown([picture for prompt in batch["prompts"] for picture in prompt.pictures])
        return dict(batch["text"]) | {"mm_encoder_outputs": encoder_outputs(shown)}

    def _check_context(self) -> None:
        """Encode the longest items: better an error now than at step 700."""
        for item in self.source.longest():
            self.encode(item)


def frozen_vision(model: Any) -> bool:
    """Whether no parameter outside the text decoder is trained, so that vision features stay what they are."""
    from kshot.models.features import vision_modules

    return not any(p.requires_grad for module in vision_modules(model) for p in module.parameters())


def ended(encoded: EncodedPrompt, end: int | None) -> EncodedPrompt:
    """A plain prompt with the end of sequence behind its answer, to be learnt like it. (Chat templates close their turns.)"""
    tokens = encoded.tokens
    if end is None or not tokens.ids or tokens.ids[-1] == end:
        return encoded
    last = len(tokens)
    spans = [*tokens.spans, Span(last, last + 1, "answer", -1, True)]
    return replace(encoded, tokens=TokenizedPrompt((*tokens.ids, end), tuple(spans), tokens.prefix))


__all__ = ["AnswerObjective", "ended", "frozen_vision"]
