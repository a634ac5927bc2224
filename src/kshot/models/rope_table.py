"""The table of rotary angles, in float32 or as upstream's bfloat16 training rounded it.

Upstream (LVM's EasyLM) makes the table in the type it computes in. Trained with ``--dtype=bf16``, as its README does, exponents,
angles, cosines and sines are bfloat16 numbers: at position 4,095 the angles are wrong by up to 5.9 rad, and many neighbouring
positions share one. Whether the released weights were trained so is not known; ``rope_table_dtype`` in config.json says which
table a model is run with, and :func:`use_rope_table` puts it in place. The rotation itself is transformers'.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from kshot.errors import ModelError, OptionError

RopeTable = Literal["float32", "bfloat16"]
ROPE_TABLE = "rope_table_dtype"
"""The field of config.json."""


class RoundedRotary(nn.Module):
    """Rotary angles of upstream's bfloat16 table; takes the place of ``LlamaRotaryEmbedding``.

    ``exponent = bf16(2i / d)``, ``frequency = fp32(theta ** -exponent)``, ``angle = bf16(position * frequency)``, and cosine and
    sine are bfloat16 numbers.
    """

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.config = config
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        rotary: Any = config.rope_parameters
        theta = float(rotary["rope_theta"])
        exponents = (torch.arange(0, head, 2).bfloat16() / head).float()
        # NumPy's power, as upstream's: torch's may differ in the last bit. Made on the CPU whatever the default device is.
        table = np.float32(1.0) / np.float32(theta) ** exponents.cpu().numpy()
        # No buffer: ``model.to(torch.bfloat16)`` must not round it once more.
        self.frequencies = torch.from_numpy(table.astype(np.float32))
        self._held: dict[torch.device, Tensor] = {}

    @torch.no_grad()
    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines.

        Args:
            x: for its type and device.
            position_ids: [rows, tokens].

        Returns:
            two tensors [rows, tokens, head], each half a copy of the other, in the type of ``x``.
        """
        # float32 products of whole numbers below 2**24 are rounded once, as upstream's from float64.
        if x.device not in self._held:
            self._held[x.device] = self.frequencies.to(x.device)
        frequencies = self._held[x.device]
        angles = (position_ids[:, :, None].float() * frequencies).bfloat16().float()
        angles = torch.cat([angles, angles], dim=-1)
        return angles.cos().bfloat16().to(x.dtype), angles.sin().bfloat16().to(x.dtype)


def check_rope_table(table: str) -> None:
    """Refuse what is no table.

    Raises:
        OptionError: see above.
    """
    if table not in get_args(RopeTable):
        raise OptionError(f"rope_table_dtype={table!r}: must be float32 or bfloat16")


def rope_table_of(model: Any) -> RopeTable:
    """The table that a model is run with just now."""
    rounded = any(isinstance(module, RoundedRotary) for module in model.modules())
    return "bfloat16" if rounded else "float32"


def use_rope_table(model: Any, table: RopeTable | None = None) -> None:
    """Run a LLaMA with a table of rotary angles, and say so in its configuration, with which it is saved.

    Args:
        model: ``LlamaForCausalLM``, ``LlamaModel``, or a PEFT model around one.
        table: ``float32`` (transformers' own) or ``bfloat16``; default: what the configuration says, or else float32.

    Raises:
        OptionError: an unknown table.
        ModelError: the model has no rotary embedding, or one that is scaled.
    """
    wanted = table if table is not None else getattr(model.config, ROPE_TABLE, None) or "float32"
    check_rope_table(wanted)
    holders = [module for module in model.modules() if isinstance(getattr(module, "rotary_emb", None), nn.Module)]
    if not holders or not all(isinstance(h.rotary_emb, LlamaRotaryEmbedding | RoundedRotary) for h in holders):
        raise ModelError(f"rope_table_dtype: {type(model).__name__} has no rotary embedding of LLaMA's kind")
    for holder in holders:
        if isinstance(holder.rotary_emb, RoundedRotary) == (wanted == "bfloat16"):
            continue
        config = holder.rotary_emb.config
        kind = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
        if kind != "default":
            raise ModelError(
                f"rope_table_dtype: the model's rotary angles are scaled ({kind}), which upstream's never are"
            )
        device = next(holder.parameters()).device
        made = RoundedRotary(config) if wanted == "bfloat16" else LlamaRotaryEmbedding(config=config)
        holder.rotary_emb = made.to(device)
    setattr(model.config, ROPE_TABLE, wanted)


__all__ = ["ROPE_TABLE", "RopeTable", "RoundedRotary", "check_rope_table", "rope_table_of", "use_rope_table"]
