"""HiFICL (arXiv 2603.12760): a few learnt key-value pairs that each attention head sees beside its own.

With n virtual keys K' and values V' (low rank: K' = A B), joined to the model's own without a position,

    out = softmax(q [K; K']^T) [V; V'] = SA + mu (SA' - SA),      mu = Z' / (Z + Z')

where SA and SA' are attention over the own and over the virtual pairs and Z, Z' their normalisers. The second form is what is
computed: both go through the fused kernel, which gives log Z, and the cache of keys and values is not touched.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from kshot.errors import OptionError
from kshot.methods.attend import attend
from kshot.methods.attention import Heads
from kshot.methods.attention_kernels import one_token
from kshot.methods.configuration import ShiftConfig
from kshot.methods.head_layers import HeadShiftLayer, HeadShiftModel, Query
from kshot.methods.registration import register_method


@dataclass
class HificlConfig(ShiftConfig):
    """HiFICL: virtual key-value pairs for each attention head.

    Args:
        pairs: virtual pairs n of each query head.
        rank: of keys and of values; ``None``: matrices of full rank.
        query: whether virtual keys meet the query as attention sees it (``"post_rope"``; its logit then depends on the absolute
            position) or before its position rotates it (``"pre_rope"``).
        std: standard deviation of what is random at the beginning. Values begin at zero, whatever the rank.
    """

    pairs: int = 8
    rank: int | None = 8
    query: Query = "post_rope"
    std: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pairs < 1 or (self.rank is not None and self.rank < 1):
            raise OptionError(f"pairs={self.pairs}, rank={self.rank}: both must be 1 or more")
        if self.query not in ("post_rope", "pre_rope"):
            raise OptionError(f"unknown query {self.query!r}: use 'post_rope' or 'pre_rope'")


class HificlLayer(HeadShiftLayer):
    """Factors ``[heads, pairs, rank]`` and ``[heads, rank, head width]`` of keys and of values; without a rank, whole matrices."""

    adapter_layer_names = (
        "hificl_key",
        "hificl_value",
        "hificl_key_left",
        "hificl_key_right",
        "hificl_value_left",
        "hificl_value_right",
    )
    hificl_key: nn.ParameterDict
    hificl_value: nn.ParameterDict
    hificl_key_left: nn.ParameterDict
    hificl_key_right: nn.ParameterDict
    hificl_value_left: nn.ParameterDict
    hificl_value_right: nn.ParameterDict

    def initial(self, config: HificlConfig, random: torch.Generator) -> Mapping[str, torch.Tensor]:
        heads, pairs, width, rank = self.heads, config.pairs, self.head_width, config.rank

        def drawn(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=random) * config.std

        if rank is None:
            return {"hificl_key": drawn(heads, pairs, width), "hificl_value": torch.zeros(heads, pairs, width)}
        return {
            # The product's deviation is std too: the right factor's is 1 / sqrt(rank).
            "hificl_key_left": drawn(heads, pairs, rank),
            "hificl_key_right": torch.randn(heads, rank, width, generator=random) / rank**0.5,
            "hificl_value_left": torch.randn(heads, pairs, rank, generator=random) / rank**0.5,
            "hificl_value_right": torch.zeros(heads, rank, width),
        }

    def pairs(self, adapter: str) -> tuple[torch.Tensor, torch.Tensor]:
        """The virtual keys and values of an adapter, ``[heads, pairs, head width]`` each."""
        if self.configs[adapter].rank is None:
            return self.parameter("hificl_key", adapter), self.parameter("hificl_value", adapter)
        left_key, right_key, left_value, right_value = (
            self.parameter(f"hificl_{name}", adapter) for name in ("key_left", "key_right", "value_left", "value_right")
        )
        return torch.bmm(left_key, right_key), torch.bmm(left_value, right_value)

    def shift_heads(self, adapter: str, heads: Heads) -> torch.Tensor:
        output, (key, value) = heads.output, self.pairs(adapter)
        key, value = (states.to(output.dtype).expand(len(output), -1, -1, -1) for states in (key, value))
        virtual, normaliser = attend(heads.query, key, value, scale=heads.scale, softcap=heads.softcap)
        share = torch.sigmoid(normaliser - heads.normaliser).to(output.dtype).unsqueeze(-1)
        return torch.lerp(output, virtual, share) if torch.is_grad_enabled() else output.lerp_(virtual, share)

    def one_token(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        scale: float | None,
    ) -> torch.Tensor | None:
        adapter = self.sole()
        if adapter is None or self.configs[adapter].query != "post_rope":
            return None
        attended = one_token(query, key, value, mask, scale)
        if attended is None:
            return None
        own_key, own_value = (states.to(query.dtype).expand(len(query), -1, -1, -1) for states in self.pairs(adapter))
        virtual = one_token(query, own_key, own_value, None, scale)
        if virtual is None:
            return None
        return attended[0].lerp_(virtual[0], (virtual[1] - attended[1]).sigmoid_())


class HificlModel(HeadShiftModel):
    """Puts HiFICL into a model."""

    tuner_layer_cls = HificlLayer


register_method(
    "hificl",
    config=HificlConfig,
    tuner=HificlModel,
    summary="learnt key-value pairs of low rank that each attention head sees beside its own (arXiv 2603.12760)",
)
