"""Prompt tuning and prefix tuning: learnt tokens, or learnt keys and values, that stand before every prompt.

PEFT keeps them outside the model and puts them in front within its own ``forward`` and ``generate``. Here they are a
:class:`~kshot.models.prefix.Prefix` like any other, which the decoder has read already: answers cost what they cost behind cached
demonstrations, and padding stands behind the learnt tokens, where the positions of the prompt do not depend on it.
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch

from kshot.errors import ModelError
from kshot.models.prefix import Prefix, progress, unsupported
from kshot.models.shared_cache import checked_cache


def is_soft(model: Any) -> bool:
    """Whether this is a model of PEFT whose active adapter stands before the prompts."""
    return bool(getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False))


class SoftPrompt:
    """What an adapter of PEFT puts before every prompt of a model.

    Args:
        outer: the model of PEFT, whose active adapter is prompt tuning or prefix tuning.

    Raises:
        ModelError: the model cannot go on from something read before, or takes no tokens that are no words.
    """

    def __init__(self, outer: Any):
        from peft import PeftType

        self.outer, self.model = outer, outer.get_base_model()
        config = outer.active_peft_config
        self.is_cache = config.peft_type in (PeftType.PREFIX_TUNING, PeftType.CARTRIDGE)
        if not self.is_cache and config.peft_type not in (PeftType.PROMPT_TUNING, PeftType.P_TUNING):
            raise ModelError(
                f"adapters of the kind {config.peft_type.value} cannot be used: kshot knows no way to answer with them"
            )
        why = unsupported(self.model)
        if why is None and hasattr(self.model.base_model, "get_rope_index"):
            why = "its positions have several axes, and PEFT numbers them as if they had one"
        if why is not None:
            raise ModelError(f"{type(self.model).__name__} cannot be used with {config.peft_type.value.lower()}: {why}")

    @property
    def length(self) -> int:
        """Number of learnt tokens."""
        return int(self.outer.active_peft_config.num_virtual_tokens)

    @torch.no_grad()
    def prefix(self) -> Prefix:
        """What the decoder remembers of it, as the parameters are now.

        Raises:
            ModelError: the decoder keeps something else than keys and values.
        """
        soft = self.outer.get_prompt(batch_size=1)
        device = self.model.device
        positions = torch.arange(self.length, device=device)[None]
        if self.is_cache:
            cache = soft
        else:
            progress.unfinished = True
            try:
                cache = self.model(
                    inputs_embeds=soft.to(device, self.model.dtype),
                    attention_mask=torch.ones_like(positions),
                    position_ids=positions,
                    use_cache=True,
                    logits_to_keep=1,
                ).past_key_values
            finally:
                progress.unfinished = False
        try:
            # The ids are never looked up: generate() wants some for all that was read.
            return Prefix(torch.zeros_like(positions), checked_cache(cache), self.length, positions)
        except ValueError as error:
            raise ModelError(f"{type(self.model).__name__} cannot be used with a soft prompt: {error}") from error

    @property
    def fingerprint(self) -> str:
        """Hash of what is learnt, for the record of runs."""
        hasher = hashlib.blake2b(digest_size=16)
        for tensor in self.outer.prompt_encoder[self.outer.active_adapter].state_dict().values():
            hasher.update(tensor.detach().float().cpu().numpy().tobytes())
        return hasher.hexdigest()
