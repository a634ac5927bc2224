"""MimIC (arXiv 2504.08851): each head adds what the demonstrations would have added to its attention.

Self-attention over demonstrations D and the query's own tokens q splits exactly::

    SA(D and q) = SA(q) + mu (SA(D) - SA(q)),   mu = Z1 / (Z1 + Z2)

with Z1 and Z2 the sums of exp(logit) over the keys of D and of q. Per layer and head, a shift s stands for SA(D) - SA(q), and
log Z1 = w . x + b for the head's query x; log Z2 is the log-sum-exp of the attention's own masked logits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from kshot.errors import OptionError
from kshot.methods.attention import Heads
from kshot.methods.attention_kernels import one_token
from kshot.methods.configuration import ShiftConfig
from kshot.methods.head_layers import HeadShiftLayer, HeadShiftModel, Query
from kshot.methods.layers import Place, ResidualShiftLayer
from kshot.methods.live import rescaled
from kshot.methods.places import mlp_of
from kshot.methods.registration import register_method
from kshot.models.anatomy import Anatomy


@dataclass
class MimicConfig(ShiftConfig):
    """MimIC: a shift for each attention head, scaled by how much the query would look at demonstrations.

    Args:
        shared_heads: one shift, w and b for all heads of a layer.
        scale: ``"learned"``; ``"joint"``: one share for all heads, w being applied to the queries of all at once and log Z2 being
            the mean over heads (upstream without ``MULTI_HEAD``); or ``"fixed"``: the whole shift is added (mu = 1), without w and b.
        ffn: also add a learnt vector to the output of each MLP.
        ffn_rescaled: the output of each MLP then keeps its length, as in LIVE (upstream's ``ffn_strategy``).
        query: whether w is applied to the query as attention sees it (``"post_rope"``, as the paper; log Z1 then depends on the
            absolute position) or before its position rotates it (``"pre_rope"``).
        paper_code: take log Z2 over all keys, masked ones included, as the published code does. Results then depend on padding,
            and differ between reading a prompt at once and token by token; for comparisons only.
        std: standard deviation of the initial shifts.
        scale_std: standard deviation of the initial w.
    """

    shared_heads: bool = False
    scale: Literal["learned", "joint", "fixed"] = "learned"
    ffn: bool = False
    ffn_rescaled: bool = False
    query: Query = "post_rope"
    paper_code: bool = False
    std: float = 0.001
    scale_std: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, known in {"scale": ("learned", "joint", "fixed"), "query": ("post_rope", "pre_rope")}.items():
            if getattr(self, name) not in known:
                raise OptionError(f"unknown {name} {getattr(self, name)!r}: use {' or '.join(map(repr, known))}")
        if self.shared_heads and self.scale == "joint":
            raise OptionError(
                "shared_heads and scale='joint': a joint scale has a w for each head; leave one of them out"
            )
        if self.ffn_rescaled and not self.ffn:
            raise OptionError("ffn_rescaled without ffn: there is nothing to rescale")


class MimicLayer(HeadShiftLayer):
    """Shifts and w ``[heads, head width]`` and b ``[heads]``; with ``shared_heads``, one row and one number.

    With a joint scale, b is one number.
    """

    adapter_layer_names = ("mimic_shift", "mimic_weight", "mimic_bias")
    mimic_shift: nn.ParameterDict
    mimic_weight: nn.ParameterDict
    mimic_bias: nn.ParameterDict

    def initial(self, config: MimicConfig, random: torch.Generator) -> Mapping[str, torch.Tensor]:
        rows = 1 if config.shared_heads else self.heads
        values = {"mimic_shift": torch.randn(rows, self.head_width, generator=random) * config.std}
        if config.scale != "fixed":
            values["mimic_weight"] = torch.randn(rows, self.head_width, generator=random) * config.scale_std
            values["mimic_bias"] = torch.zeros(1 if config.scale == "joint" else rows)
        return values

    def one_token(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        scale: float | None,
    ) -> torch.Tensor | None:
        adapter = self.sole()
        if adapter is None:
            return None
        config, held = self.configs[adapter], self._held
        if config.scale != "learned" or config.query != "post_rope" or config.paper_code:
            return None
        shift, weight = held["mimic_shift"].get(adapter), held["mimic_weight"].get(adapter)
        bias = held["mimic_bias"].get(adapter)
        if shift is None or weight is None or bias is None or weight.dtype is not torch.float32:
            return None  # FSDP may keep them elsewhere
        attended = one_token(query, key, value, mask, scale)
        if attended is None:
            return None
        output, normaliser = attended
        share = (query.transpose(1, 2) * weight).sum(-1, True).add_(bias.unsqueeze(1)).sub_(normaliser)
        return output.addcmul_(share.sigmoid_(), shift)

    def shift_heads(self, adapter: str, heads: Heads) -> torch.Tensor:
        config, output, shift = self.configs[adapter], heads.output, self.parameter("mimic_shift", adapter)
        shift = shift.to(output.dtype)
        if config.scale == "fixed":
            return output + shift.unsqueeze(1)
        share = self.share(adapter, heads).to(output.dtype).unsqueeze(-1)
        if torch.is_grad_enabled():
            return torch.addcmul(output, share, shift.unsqueeze(1))
        return output.addcmul_(share, shift.unsqueeze(1))  # in place: a new tensor costs three times as much as the sum

    def share(self, adapter: str, heads: Heads) -> torch.Tensor:
        """The share mu of each query that belongs to the demonstrations, ``[batch, heads or 1, queries]``."""
        config, normaliser = self.configs[adapter], heads.normaliser
        query, weight, bias = (
            part.to(normaliser.dtype)
            for part in (heads.query, self.parameter("mimic_weight", adapter), self.parameter("mimic_bias", adapter))
        )
        log_demonstrations = torch.einsum("bhtd,hd->bht", query, weight.expand(query.shape[1], -1))
        if config.paper_code:
            normaliser = unmasked(heads)
        if config.scale == "joint":
            log_demonstrations, normaliser = log_demonstrations.sum(1, keepdim=True), normaliser.mean(1, keepdim=True)
        if torch.is_grad_enabled():
            return torch.sigmoid(log_demonstrations + bias.unsqueeze(1) - normaliser)
        return log_demonstrations.add_(bias.unsqueeze(1)).sub_(normaliser).sigmoid_()


def unmasked(heads: Heads) -> torch.Tensor:
    """Log-sum-exp of the logits over all keys, whether or not a query may attend to them (``paper_code``)."""
    groups = heads.rotated.shape[1] // heads.key.shape[1]
    logits = torch.matmul(heads.rotated, heads.key.repeat_interleave(groups, 1).transpose(2, 3)) * heads.scale
    if heads.softcap is not None:
        logits = heads.softcap * torch.tanh(logits / heads.softcap)
    return logits.to(heads.normaliser.dtype).logsumexp(-1)


class MimicFeedForwardLayer(ResidualShiftLayer):
    """A vector ``[width]`` that is added to the output of an MLP."""

    adapter_layer_names = ("mimic_ffn",)
    mimic_ffn: nn.ParameterDict

    def initial(self, config: MimicConfig, random: torch.Generator) -> Mapping[str, torch.Tensor]:
        return {"mimic_ffn": torch.randn(self.width, generator=random) * config.std}

    def shift(self, adapter: str, hidden: torch.Tensor) -> torch.Tensor:
        vector = self.parameter("mimic_ffn", adapter)
        return rescaled(hidden, vector) if self.configs[adapter].ffn_rescaled else hidden + vector.to(hidden.dtype)


class MimicModel(HeadShiftModel):
    """Puts MimIC into a model."""

    tuner_layer_cls = (MimicLayer, MimicFeedForwardLayer)  # type: ignore[assignment]  # PEFT passes it to isinstance

    def places(self, config: MimicConfig, anatomy: Anatomy, model: nn.Module) -> list[Place]:
        found = self.attention_places(config, anatomy, MimicLayer)
        if config.ffn:
            found += [
                Place(number, mlp_of(anatomy, number), MimicFeedForwardLayer, anatomy.hidden_size)
                for number in config.chosen(anatomy)
            ]
        return found


register_method(
    "mimic",
    config=MimicConfig,
    tuner=MimicModel,
    summary="a learnt shift for each attention head, scaled by the query (arXiv 2504.08851)",
)
