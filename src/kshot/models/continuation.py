"""What a vision-language model makes of encoded prompts: the text that follows, or how likely the answers in them are.

Prompts that share their demonstrations are run together, behind a prefix that is read once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from transformers import GenerationConfig, StoppingCriteriaList

from kshot.models.batching import BatchRunner
from kshot.models.encoding import EncodedPrompt, Encoder
from kshot.models.generation import StopTexts, only_these_settings
from kshot.models.prefix import Prefix, continue_forward, continue_generate
from kshot.models.reuse import Group, Reuse
from kshot.models.soft_prompts import SoftPrompt

T = TypeVar("T")


@dataclass(frozen=True)
class Continuation:
    """Runs encoded prompts.

    Attributes:
        model: the plain model of transformers.
        encoder: of its prompts.
        reuse: its caches.
        soft: what stands before every prompt, or ``None``.
    """

    model: Any
    encoder: Encoder
    reuse: Reuse
    soft: SoftPrompt | None

    def texts(
        self,
        prompts: Sequence[EncodedPrompt],
        runner: BatchRunner,
        settings: GenerationConfig,
        stop: Sequence[str],
    ) -> list[str]:
        """The new text behind each prompt, in order.

        Args:
            prompts: without answers.
            runner: of batches.
            settings: complete settings of generation.
            stop: texts at which greedy generation ends.
        """

        def work(batch: list[EncodedPrompt], after: Prefix | None) -> list[str]:
            return self._generate(batch, after, settings, stop)

        return self._run(prompts, runner, cast("int", settings.max_new_tokens), work)

    def log_probabilities(
        self, prompts: Sequence[EncodedPrompt], runner: BatchRunner, normalize: bool = False
    ) -> list[float]:
        """Log-probability of the answer of each prompt (which must have one) given what stands before it, in order.

        Args:
            prompts: with answers.
            runner: of batches.
            normalize: divide by the number of tokens.
        """

        def work(batch: list[EncodedPrompt], after: Prefix | None) -> list[float]:
            return self._log_probabilities(batch, after, normalize)

        return self._run(prompts, runner, 0, work)

    def _run(
        self,
        prompts: Sequence[EncodedPrompt],
        runner: BatchRunner,
        new_tokens: int,
        work: Callable[[list[EncodedPrompt], Prefix | None], list[T]],
    ) -> list[T]:
        """Results for prompts, in order, where prompts with common demonstrations are run together."""
        results: dict[int, T] = {}
        groups = self.reuse.groups(prompts, new_tokens)
        if self.soft is not None:  # it stands before the demonstrations, which have to be read behind it
            groups = iter([Group(list(range(len(prompts))), list(prompts), self.soft.prefix())])
        for group in groups:

            def run_batch(batch: list[int], group: Group = group) -> list[T]:
                return work([group.prompts[i] for i in batch], group.prefix)

            found = runner.run([len(prompt) for prompt in group.prompts], run_batch, self._kinds(group.prompts))
            results.update(zip(group.numbers, found, strict=True))
        return [results[number] for number in range(len(prompts))]

    def _kinds(self, prompts: Sequence[EncodedPrompt]) -> list[int]:
        """Prompts of different kinds must not be in one batch."""
        return [len(prompt.pictures) if self.encoder.dialect.equal_counts else 0 for prompt in prompts]

    def _generate(
        self, batch: Sequence[EncodedPrompt], after: Prefix | None, settings: GenerationConfig, stop: Sequence[str]
    ) -> list[str]:
        """New text behind each prompt, or behind ``after`` and each prompt."""
        inputs = self.reuse.inputs(batch, after)
        if after is None:
            inputs.pop("position_ids", None)  # generate makes the same ones, and goes on from them
        else:
            inputs = continue_generate(
                self.model,
                after,
                inputs,
                new_tokens=settings.max_new_tokens,
                num_beams=settings.num_beams,
                placeholder=self.reuse.placeholder,
            )
        length = inputs["input_ids"].shape[1]
        tokenizer = self.encoder.tokenizer
        criteria = StoppingCriteriaList()
        if stop and settings.num_beams == 1:
            criteria.append(StopTexts(tokenizer, stop, length))
        with only_these_settings(self.model, settings):
            sequences = self.model.generate(**inputs, stopping_criteria=criteria)
        return cast("list[str]", tokenizer.batch_decode(sequences[:, length:], skip_special_tokens=True))

    def _log_probabilities(self, batch: Sequence[EncodedPrompt], after: Prefix | None, normalize: bool) -> list[float]:
        masks = [encoded.tokens.answer_mask() for encoded in batch]
        # Rows end together, so the last positions hold all answers; other logits need not be computed.
        keep = max(len(mask) - mask.index(True) if any(mask) else 0 for mask in masks)
        inputs = self.reuse.inputs(batch, after)
        inputs = inputs | {"use_cache": False} if after is None else continue_forward(self.model, after, inputs)
        logits = self.model(**inputs, logits_to_keep=keep + 1).logits[:, -keep - 1 : -1]
        targets = inputs["input_ids"][:, -keep:]
        chosen = logits.float().log_softmax(-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)
        wanted = self.encoder.pad([[int(spoken) for spoken in mask] for mask in masks], 0)[0][:, -keep:].to(
            chosen.device
        )
        sums = (chosen * wanted).sum(-1)
        if normalize:
            sums = sums / wanted.sum(-1).clamp_min(1)
        return [float(value) for value in sums]
