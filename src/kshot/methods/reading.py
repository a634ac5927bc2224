"""Which token of a forward pass is the last one of the prompt, for methods that act there and nowhere else.

A layer sees hidden states and not what they stand for. :class:`Reading` listens where the model is given its inputs and tells
the layers. The last prompt token is recognised by the *cue*, the tokens with which all prompts of a task end (those of
``Short answer:``, or of the turn in which the model has to speak): it is the last token of the last cue. So the place is the same
when a prompt is read at once or behind demonstrations that were read before, with padding on either side, in beams, when a
known answer follows in the same pass (training, scoring), and when ``generate`` runs without a cache.

Prompts of pictures end with a picture, and each with another: there the cue is a single negative number, ``[-256]`` for pictures of
256 tokens. Questions and answers take turns, so the end of the prompt is that of the last odd picture, ``x1 y1 ... [xq]`` and
``x1 y1 ... [xq] yq``.

Where no cue is known or none is found, it is the last token that is no padding, of whatever is read into an empty cache; then a
prompt must not be followed by its answer. Tokens generated one by one with a cache are never taken for a prompt's end.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from kshot.methods.layers import HookedLayer, Place, ResidualShiftLayer, ShiftLayer
from kshot.methods.tuner import ShiftModel
from kshot.models.anatomy import examine
from kshot.models.prefix import progress

CUE = 8
"""Longest cue that is kept: enough to tell the end of a prompt from its middle."""


class Reading:
    """What the model is reading, noted at each forward pass; one for all methods in a model.

    Args:
        model: a model of transformers.
    """

    def __init__(self, model: Any):
        # The decoder is given no ids, but what calls it is. (Adapters of PEFT call the outer model's forward and pass its
        # hooks by, hence not the outer model.) Where the decoder is called alone, it is all there is.
        decoder = examine(model).decoder
        self.readers: list[nn.Module] = [decoder] if model.base_model is decoder else [model.base_model, decoder]
        self.names = {module: tuple(inspect.signature(module.forward).parameters) for module in self.readers}
        self.users = 0
        self._handles: list[Any] = []
        self._told = False
        self._begin(None, None, False)

    def take(self) -> None:
        """One more layer listens."""
        if not self.users:
            self._handles = [m.register_forward_pre_hook(self._before, with_kwargs=True) for m in self.readers]
        self.users += 1

    def release(self) -> None:
        """One layer less; without any, the model is left alone."""
        self.users -= 1
        if not self.users:
            while self._handles:
                self._handles.pop().remove()
            self._begin(None, None, False)

    def prompt_end(self, hidden: torch.Tensor, cue: Sequence[int] | None) -> torch.Tensor | None:
        """True at the last prompt token of each row, ``[batch, tokens]``; ``None`` if there is none in this pass.

        Args:
            hidden: states ``[batch, tokens, ...]`` of this pass.
            cue: ids of the tokens with which prompts end, or the negative number of tokens of a picture.
        """
        if progress.unfinished or (self.continues and hidden.shape[1] == 1):
            return None
        key = ("end", tuple(cue or ()), hidden.shape[:2], hidden.device)
        if key not in self._known:
            places = torch.arange(hidden.shape[1], device=hidden.device)
            ends = self._cue_ends(hidden, cue)
            index = torch.where(ends, places, -1).amax(1, keepdim=True)
            if not (cue and self.continues):
                attended = self._attended(hidden)
                last = torch.where(attended, places, -1).amax(1, keepdim=True)
                index = torch.where(index < 0, last, index)
            self._known[key] = places == index
        return self._known[key]

    def cues(self, hidden: torch.Tensor, cue: Sequence[int] | None) -> torch.Tensor:
        """True at the tokens of all cues and at the last prompt token, ``[batch, tokens]``."""
        key = ("cues", tuple(cue or ()), hidden.shape[:2], hidden.device)
        if key not in self._known:
            found = ends = self._cue_ends(hidden, cue)
            for _ in range(len(cue or ()) - 1):
                ends = torch.nn.functional.pad(ends[:, 1:], (0, 1))
                found = found | ends
            last = self.prompt_end(hidden, cue)
            self._known[key] = found if last is None else found | last
        return self._known[key]

    def _cue_ends(self, hidden: torch.Tensor, cue: Sequence[int] | None) -> torch.Tensor:
        rows, tokens = hidden.shape[:2]
        none = torch.zeros(rows, tokens, dtype=torch.bool, device=hidden.device)
        ids = self.ids
        if cue and cue[0] < 0:
            return self._question_ends(hidden, -cue[0])
        if not cue or ids is None or ids.shape != (rows, tokens) or tokens < len(cue):
            return none
        wanted = torch.tensor(tuple(cue), device=ids.device)
        same = (ids.unfold(1, len(cue), 1) == wanted).all(-1)
        return torch.cat([none[:, : len(cue) - 1], same.to(hidden.device)], dim=1)

    def _question_ends(self, hidden: torch.Tensor, tokens: int) -> torch.Tensor:
        """True at the last token of every odd picture that was read whole, counted from the first token that is no padding."""
        attended = self._attended(hidden)
        if self.continues:  # where pictures begin is known only from the beginning
            return torch.zeros_like(attended)
        number = attended.cumsum(1)
        return attended & (number % (2 * tokens) == tokens)

    def _attended(self, hidden: torch.Tensor) -> torch.Tensor:
        tokens = hidden.shape[1]
        mask = self.mask
        if isinstance(mask, torch.Tensor) and mask.ndim == 2 and len(mask) == len(hidden) and mask.shape[1] >= tokens:
            # A mask covers what was read before, too; that of a static cache the room behind.
            read = mask[:, -tokens:] if self.continues else mask[:, :tokens]
            return read.to(hidden.device) != 0
        return torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)

    def _before(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self._told and module is self.readers[-1]:
            self._told = False
            return
        given = dict(zip(self.names[module], args, strict=False)) | kwargs
        cache = given.get("past_key_values")
        length = cache.get_seq_length() if hasattr(cache, "get_seq_length") else 0
        self._begin(given.get("input_ids"), given.get("attention_mask"), bool(length > 0))
        self._told = module is not self.readers[-1]

    def _begin(self, ids: Any, mask: Any, continues: bool) -> None:
        self.ids: torch.Tensor | None = ids
        self.mask, self.continues = mask, continues
        self._known: dict[Any, torch.Tensor] = {}


class ReadingLayer(HookedLayer):
    """A layer that asks its :class:`Reading` where it has to act. The configuration has the cue as ``cue``."""

    def __init__(self, place: Place):
        super().__init__(place)
        self.reading: list[Reading] = []  # exactly one; in a list, because it belongs to the model and not to the layer
        self._listens = False

    def attach(self, module: nn.Module) -> None:
        super().attach(module)
        if not self._listens:
            self.reading[0].take()
            self._listens = True

    def detach(self) -> None:
        super().detach()
        if self._listens:
            self.reading[0].release()
            self._listens = False

    def prompt_end(self, adapter: str, hidden: torch.Tensor) -> torch.Tensor | None:
        """See :meth:`Reading.prompt_end`; with one dimension more, for use against ``hidden``."""
        found = self.reading[0].prompt_end(hidden, self.configs[adapter].cue)
        return None if found is None else found.unsqueeze(-1)


class PromptEndLayer(ReadingLayer, ResidualShiftLayer):
    """Shifts the output of a module at the last prompt token."""

    def shift(self, adapter: str, hidden: torch.Tensor) -> torch.Tensor:
        end = self.prompt_end(adapter, hidden)
        return hidden if end is None else torch.where(end, self.shift_end(adapter, hidden), hidden)

    def shift_end(self, adapter: str, hidden: torch.Tensor) -> torch.Tensor:
        """What an adapter makes of hidden states, were it to act on all."""
        raise NotImplementedError


class ReadingModel(ShiftModel):
    """Puts adapters into a model whose layers must know what is read."""

    def _prepare_model(self, peft_config: Any, model: nn.Module) -> None:
        super()._prepare_model(peft_config, model)
        held = (layer.reading[0] for layer in model.modules() if isinstance(layer, ReadingLayer) and layer.reading)
        self._reading = next(held, None) or Reading(model)

    def _new_layer(self, place: Place) -> ShiftLayer:
        layer = super()._new_layer(place)
        if isinstance(layer, ReadingLayer):
            layer.reading.append(self._reading)
        return layer


def cue_list(cue: Any) -> list[int] | None:
    """A configuration's cue as it is kept: a list of token ids, or ``None``."""
    return [int(token) for token in cue] if cue else None
