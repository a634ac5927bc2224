"""Models of visual sentences (LVM, arXiv 2312.00785): a language model whose words are the codes of pictures.

The task is given by the context alone: a sequential prompt ``f1 ... fk`` is continued by the next frame, an analogy prompt
``x1 y1 ... xk yk xq`` by the query's answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from kshot.data.derived import digest
from kshot.episode import Episode, Example
from kshot.errors import DataError, ModelError, OptionError
from kshot.models.anatomy import Anatomy, examine
from kshot.models.base import PromptStyle
from kshot.models.code_sampling import Sampling
from kshot.models.encoding import EncodedPrompt
from kshot.models.identity import identity
from kshot.models.imagined import Imagined
from kshot.models.imagining import Imaginer, Row
from kshot.models.visual_encoding import CodesOnly, VisualEncoder
from kshot.models.visual_likelihood import BATCH_SIZE, Likelihood
from kshot.models.visual_prompts import AllowedCodes, allowed_ids, as_prompt, prompt_of
from kshot.models.visual_window import Overflow
from kshot.picture import Picture, PictureLike
from kshot.prompt import Template

if TYPE_CHECKING:
    from kshot.visual.processor import VisualSentenceProcessor


class VisualSentenceModel(Likelihood):
    """A causal language model over the codes of pictures, with its processor.

    Args:
        model: a causal language model of transformers whose vocabulary begins with the tokenizer's codes.
        processor: from pictures to ids and back.
        name: for reports; default: the model's class.
        source: where it came from.
        adapter: where the adapter came from that is in the model.
        context_pictures: pictures that the model is shown at most, new ones included; default: as many as fit into its positions.

    Attributes:
        model, processor, tokenizer: the parts.
        tokens: tokens of a picture.
        codes: number of codes.
        max_context: most tokens that the model reads.

    Raises:
        ModelError: the vocabulary does not hold the codes, or not a single picture fits.
    """

    def __init__(
        self,
        model: Any,
        processor: VisualSentenceProcessor,
        *,
        name: str | None = None,
        source: str | None = None,
        adapter: str | None = None,
        context_pictures: int | None = None,
    ):
        self.model, self.processor, self.tokenizer = model.eval(), processor, processor.tokenizer
        self.name = name or type(model).__name__
        self.source, self.adapter = source, adapter
        self.tokens, self.codes = int(self.tokenizer.tokens), int(self.tokenizer.codes)
        vocabulary = model.get_input_embeddings().num_embeddings
        if vocabulary < self.codes:
            raise ModelError(
                f"{self.name} has a vocabulary of {vocabulary:,}, but the tokenizer has {self.codes:,} codes: they do not belong "
                "together"
            )
        most = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self.max_context: int = int(most) if most else 2**31
        if context_pictures is not None and context_pictures < 2:
            raise OptionError(f"context_pictures is {context_pictures}; at least 2 are needed: one shown and one new")
        self._context_pictures = context_pictures
        if self.capacity() < 2:
            raise ModelError(
                f"{self.name} takes {self.max_context:,} tokens, and a picture has {self.tokens:,}: not even two pictures fit"
            )

    @cached_property
    def anatomy(self) -> Anatomy:
        """What the language model is made of and can take."""
        return examine(self.model)

    @cached_property
    def encoder(self) -> VisualEncoder:
        """From episodes with answers to inputs, for training."""
        return VisualEncoder(
            self.model,
            tokens=self.tokens,
            encode=self.tokenizer.encode,
            fingerprint=self.tokenizer.fingerprint,
            pad_id=self.processor.pad_token_id,
            begin_id=self.processor.bos_token_id if self.processor.begins else None,
            max_context=self.max_context,
            name=self.name,
        )

    @cached_property
    def reuse(self) -> CodesOnly:
        """What stands where a vision-language model has its caches."""
        return CodesOnly(self.encoder, lambda: self.device)

    def encode(
        self,
        episode: Episode,
        template: Template | None = None,
        style: PromptStyle = "auto",
        *,
        answer: Picture | None = None,
        new_tokens: int = 0,
    ) -> EncodedPrompt:
        """Ids and spans of an episode's prompt, as :meth:`kshot.models.vlm.VLM.encode` gives them.

        Template and style say nothing here: there is no text.

        Raises:
            ContextTooLong, DataError: see :meth:`kshot.models.visual_encoding.VisualEncoder.encode`.
        """
        return self.encoder.encode(episode, answer, new_tokens=new_tokens)

    def inputs(self, batch: Sequence[EncodedPrompt]) -> dict[str, Any]:
        """What ``model.forward`` takes for a batch, on the model's device."""
        return self.reuse.inputs(batch)

    def imagine(
        self,
        prompts: Sequence[Sequence[PictureLike] | Episode | Example],
        frames: int = 1,
        candidates: int = 1,
        *,
        top_k: int = 50,
        top_p: float = 1.0,
        temperature: float = 1.0,
        seed: int = 0,
        allowed_codes: AllowedCodes = None,
        bos: bool | None = None,
        overflow: Overflow = "error",
        slide: int = 1,
        group: int = 1,
        keys: Sequence[str] | None = None,
        names: Sequence[str] | None = None,
        batch_size: int | None = None,
    ) -> list[Imagined]:
        """Imagine what comes behind each prompt.

        Args:
            prompts: lists of pictures, ``x1 y1 ... xq`` or ``f1 ... fk``; or episodes whose demonstrations are answered by pictures.
            frames: new pictures in a row.
            candidates: different continuations of each prompt; they share one reading of it.
            top_k: only so many of the likeliest codes are drawn from; 0 = all. 50 is what LVM's own programs use, unnamed.
            top_p: only the likeliest codes that have so much probability together.
            temperature: 0 = the likeliest code each time.
            seed: candidate j of a prompt derives from (seed, key, j), whatever else is imagined with it.
            allowed_codes: "demonstrations" lets only codes come that the answers of an analogy prompt show; or the codes.
            bos: begin with the token for the beginning of a sentence; ``None``: as the model was trained.
            overflow, slide: see :func:`kshot.models.visual_window.plan`.
            group: pictures that belong together and are dropped together, 2 in an analogy prompt; episodes know it themselves.
            keys: of the prompts, for their random numbers; default: derived from their ids, so that equal prompts have equal
                candidates.
            names: of the prompts, for messages; default: their numbers.
            batch_size: rows (prompts x candidates) that are continued together; halved if memory runs out.

        Returns:
            One :class:`Imagined` for each prompt.

        Raises:
            ContextTooLong: a prompt does not fit; the message says how many pictures do.
            BadImage: a picture cannot be decoded.
            OptionError: an option out of range.
        """
        if names is not None and len(names) != len(prompts):
            raise OptionError(f"{len(names)} names for {len(prompts)} prompts")
        shown = [
            prompt_of(given)
            if isinstance(given, Episode | Example)
            else as_prompt(given, names[number - 1] if names is not None else f"prompt {number}", group)
            for number, given in enumerate(prompts, 1)
        ]
        sampling = Sampling(top_k, top_p, temperature, seed)
        for prompt in shown:  # before anything is encoded, which takes seconds a picture without an accelerator
            self.plan(len(prompt.pictures), frames, bos, overflow, slide, prompt.group, prompt.name)
        ids = self.codes_of([prompt.pictures for prompt in shown])
        return self.imagine_ids(
            ids,
            frames,
            candidates,
            sampling=sampling,
            allowed=allowed_ids(shown, ids, self.tokens, self.codes, allowed_codes),
            bos=bos,
            overflow=overflow,
            slide=slide,
            groups=[prompt.group for prompt in shown],
            names=[prompt.name for prompt in shown],
            keys=keys,
            batch_size=batch_size,
        )

    def imagine_episodes(
        self, episodes: Sequence[Episode | Example], frames: int = 1, candidates: int = 1, **options: Any
    ) -> list[Imagined]:
        """Imagine the answers of episodes (see :func:`~kshot.models.visual_prompts.prompt_of`); options as in :meth:`imagine`."""
        return self.imagine(episodes, frames, candidates, **options)

    def answer_episodes(self, episodes: Sequence[Episode | Example], **options: Any) -> list[Picture]:
        """The answer of each episode, by default the likeliest codes (``temperature=0``); options as in :meth:`imagine_episodes`."""
        options = {"temperature": 0.0} | options
        return [found.picture() for found in self.imagine_episodes(episodes, **options)]

    def imagine_ids(
        self,
        prompts: Sequence[torch.Tensor],
        frames: int = 1,
        candidates: int = 1,
        *,
        sampling: Sampling | None = None,
        allowed: Sequence[torch.Tensor | None] | None = None,
        bos: bool | None = None,
        overflow: Overflow = "error",
        slide: int = 1,
        groups: Sequence[int] | None = None,
        names: Sequence[str] | None = None,
        keys: Sequence[str] | None = None,
        batch_size: int | None = None,
    ) -> list[Imagined]:
        """:meth:`imagine` for prompts that are ids already, one-dimensional tensors of whole pictures.

        Args:
            prompts: ids, without a token for the beginning.
            frames, candidates, bos, overflow, slide, keys, batch_size: as in :meth:`imagine`.
            sampling: how codes are drawn.
            allowed: the codes that may come behind each prompt.
            groups: pictures that belong together in each prompt.
            names: of the prompts, for messages.

        Raises:
            DataError: ids that are no codes, or no whole pictures.
        """
        if candidates < 1:
            raise OptionError(f"candidates is {candidates}; it must be at least 1")
        for name, given in (("keys", keys), ("allowed", allowed), ("groups", groups), ("names", names)):
            if given is not None and len(given) != len(prompts):
                raise OptionError(f"{len(given)} {name} for {len(prompts)} prompts")
        sampling, bos = sampling or Sampling(), self.begun(bos)
        held = [self.checked(ids, f"prompt {number}") for number, ids in enumerate(prompts, 1)]
        if any(not len(ids) for ids in held) and not bos:
            raise DataError("a prompt without pictures", remedy="give pictures, or bos=True to begin from nothing")
        labels = list(keys) if keys is not None else [digest(str(ids.tolist())) for ids in held]
        plans = [
            self.plan(
                len(ids) // self.tokens,
                frames,
                bos,
                overflow,
                slide,
                groups[number] if groups is not None else 1,
                names[number] if names is not None else f"prompt {number + 1}",
            )
            for number, ids in enumerate(held)
        ]
        rows = [
            Row(number, ids, labels[number], candidate, allowed[number] if allowed is not None else None)
            for number, ids in enumerate(held)
            for candidate in range(candidates)
        ]
        imaginer = Imaginer(self.model, self.codes, self.tokens, self.processor.bos_token_id if bos else None)
        together = max(BATCH_SIZE, candidates) if batch_size is None else batch_size
        found = imaginer.run_all(rows, plans, sampling, together)
        return [
            Imagined(
                torch.stack(found[number * candidates : (number + 1) * candidates]),
                plans[number].notices,
                labels[number],
                self.tokenizer,
            )
            for number in range(len(held))
        ]

    def describe(self) -> dict[str, Any]:
        """What identifies the model in a run folder; see :func:`kshot.models.identity.identity`."""
        shown: dict[str, Any] = {"adapter": self.adapter} if self.adapter is not None else {}
        if self._context_pictures is not None:
            shown["context_pictures"] = self._context_pictures
        return (
            {"name": self.name, "source": self.source}
            | identity(self.model, self.processor)
            | {"visual_tokenizer": self.tokenizer.describe()}
            | shown
        )

    def __repr__(self) -> str:
        return (
            f"VisualSentenceModel({self.name!r}, {type(self.model).__name__}, {self.capacity()} pictures of {self.tokens} tokens, "
            f"{self.device})"
        )
