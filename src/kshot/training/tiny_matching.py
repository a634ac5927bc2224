"""How the embedded model is taught to find the earlier answers of the query's class, whatever makes a class.

Left alone, it copies an answer in its second layer, from the picture that is most alike. For characters that is right. For renamed
scenes it is not: only one attribute counts there, which one can be seen from all pictures of a label together, later layers know it
and have nothing left to decide. Each loss here teaches one step of the way by the last layer, and :func:`detour` closes the other:

1. *agreement*: each token of an answer knows which values all pictures shown so far under its label have.
2. *values*: the cue of an answer knows the values of its own picture.
3. *match*: from both, a bilinear form tells earlier answers of the cue's class from others.
4. *attention*: two heads of the last layer attend from the cue to the earlier answers of its class.

1 to 3 are asked behind the third layer from the end, of states brought to one length; their probes are thrown away afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kshot.data.drawing import SCENE_TASKS
from kshot.training.tiny_batches import TokenBatch

if TYPE_CHECKING:
    from kshot.training.tiny_language import Features, TinyLanguage

RENAMED = 2
"""The kind of episodes of renamed scenes, see :class:`~kshot.training.tiny_episodes.TinyEpisode`."""

VALUES = tuple(len(words) for words in SCENE_TASKS.values())
"""Values of each attribute of a scene."""

SUPERVISED_HEADS = 2
OTHER_EPISODES = 0.3
"""Weight of episodes other than renamed scenes in the attention loss."""


class MatchingProbes(nn.Module):
    """What the losses read states with.

    Args:
        width: of the states.
        key_width: of both sides of the bilinear form.
    """

    def __init__(self, width: int, key_width: int = 64):
        super().__init__()
        self.agreement = nn.Linear(width, sum(VALUES))
        self.values = nn.Linear(width, sum(VALUES))
        self.query = nn.Linear(width, key_width)
        self.key = nn.Linear(width, key_width)


def detour(batch: TokenBatch) -> Tensor:
    """Where attention may look in all layers but the last, ``[rows, 1, length, length]``: from no cue of renamed scenes to an answer.

    An answer can then be found by the last layer only.
    """
    rows, length = batch.ids.shape
    cue, answer = torch.zeros(2, rows, length, dtype=torch.bool)
    cue.scatter_(1, batch.cue_at, True)
    answer[tuple(batch.group_at.T)] = True
    closed = cue[:, :, None] & answer[:, None, :] & (batch.kinds == RENAMED)[:, None, None]
    return (torch.ones(length, length, dtype=torch.bool).tril() & ~closed)[:, None]


def agreement_loss(probes: MatchingProbes, states: Tensor, batch: TokenBatch, features: Features) -> Tensor:
    """Mean squared error over values: do all pictures so far under a label have it? From two pictures on, renamed scenes only."""
    shown = _values(batch, features)[batch.group_pictures]
    count = torch.bincount(batch.group_of, minlength=len(batch.group_at))
    common = shown.new_zeros(len(count), shown.shape[1]).index_add(0, batch.group_of, shown) == count[:, None]
    asked = (count > 1) & (batch.kinds[batch.group_at[:, 0]] == RENAMED)
    told = probes.agreement(_levelled(states[tuple(batch.group_at[asked].T)]))
    return F.mse_loss(told, common[asked].float()) if len(told) else told.sum()


def values_loss(probes: MatchingProbes, states: Tensor, batch: TokenBatch, features: Features) -> Tensor:
    """Mean squared error over values: does the picture before a cue have it? Scenes only, renamed or not."""
    asked = batch.sources.view_as(batch.cue_at) == len(features.shapes)
    told = probes.values(_levelled(_at(states, batch.cue_at)[asked]))
    return F.mse_loss(told, _values(batch, features)[asked.flatten()]) if len(told) else told.sum()


def match_loss(probes: MatchingProbes, states: Tensor, batch: TokenBatch) -> Tensor:
    """Cross-entropy: from a cue, which earlier answers are of its class? Answers are met at their first token; renamed scenes only."""
    renamed = batch.kinds == RENAMED
    cues, answers = (
        probe(_levelled(_at(states, batch.cue_at + after)[renamed]))
        for probe, after in ((probes.query, 0), (probes.key, 1))
    )
    same, earlier = (one[renamed] for one in _earlier(batch))
    logits = (cues @ answers.transpose(1, 2) / cues.shape[-1] ** 0.5).masked_fill(~earlier, -torch.inf)
    asked = same.any(-1)
    found = _surprise(logits[asked], same[asked])
    return found.mean() if len(found) else found.sum()


def attention_loss(language: TinyLanguage, behind: Sequence[Tensor], batch: TokenBatch) -> Tensor:
    """Cross-entropy: how much of the attention of two heads of the last layer, at a cue, is on earlier answers of its class?

    Args:
        language: the model.
        behind: hidden states behind each layer, of two layers or more.
        batch: the episodes; those of renamed scenes count most.
    """
    layer, states = language.decoder.layers[-1], behind[-2]
    length, width = states.shape[1], layer.self_attn.head_dim
    places = torch.arange(length)[None]
    cos, sin = language.decoder.rotary_emb(states, places)

    def heads(projection: nn.Module, states: Tensor, positions: Tensor) -> Tensor:
        split = projection(layer.input_layernorm(states)).unflatten(-1, (-1, width))
        turned = torch.cat([-split[..., width // 2 :], split[..., : width // 2]], -1)
        return (split * cos[0, positions][:, :, None] + turned * sin[0, positions][:, :, None]).transpose(1, 2)

    queries = heads(layer.self_attn.q_proj, _at(states, batch.cue_at), batch.cue_at)
    keys = heads(layer.self_attn.k_proj, states, places)
    keys = keys.repeat_interleave(queries.shape[1] // keys.shape[1], 1)
    logits = (queries @ keys.transpose(2, 3) * width**-0.5)[:, :SUPERVISED_HEADS]
    logits = logits.masked_fill((places > batch.cue_at[..., None])[:, None], -torch.inf)
    same, _ = _earlier(batch)
    first = (batch.cue_at + 1)[:, None].expand_as(same)
    wanted = torch.zeros(*batch.cue_at.shape, length, dtype=torch.bool).scatter(2, first, same)
    asked = same.any(-1)
    found = _surprise(logits.transpose(1, 2)[asked], wanted[asked][:, None]).mean(1)
    weight = torch.where(batch.kinds == RENAMED, 1.0, OTHER_EPISODES)[:, None].expand_as(asked)[asked]
    return (found * weight).sum() / weight.sum().clamp(min=1)


def _surprise(logits: Tensor, right: Tensor) -> Tensor:
    """-log of the share of exp(logits) that is where it should be, over the last dimension."""
    return logits.logsumexp(-1) - logits.masked_fill(~right, -torch.inf).logsumexp(-1)


def _earlier(batch: TokenBatch) -> tuple[Tensor, Tensor]:
    """For each cue, which answers are earlier ones of its class, and which are earlier at all: ``[rows, cues, answers]``."""
    count = batch.classes.shape[1]
    before = torch.ones(count, count, dtype=torch.bool).tril(-1).expand(len(batch.classes), -1, -1)
    return (batch.classes[:, :, None] == batch.classes[:, None, :]) & before, before


def _at(states: Tensor, positions: Tensor) -> Tensor:
    """States ``[rows, n, width]`` at positions ``[rows, n]``."""
    return torch.take_along_dim(states, positions[..., None], 1)


def _values(batch: TokenBatch, features: Features) -> Tensor:
    """Which values each picture has, ``[pictures, values]``; of no meaning for pictures that are no scenes."""
    scenes = torch.where(batch.sources == len(features.shapes), batch.pictures, 0)
    found = torch.from_numpy(features.attributes)[scenes]
    return torch.cat([F.one_hot(found[:, i].clamp(min=0), n) for i, n in enumerate(VALUES)], 1).float()


def _levelled(states: Tensor) -> Tensor:
    return F.rms_norm(states, states.shape[-1:])
