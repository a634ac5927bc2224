"""The summary loss: what makes learning from pictures in context emerge early.

A model that is only graded on answers stays long at guessing among the names it has read. With this loss, a linear probe on the
hidden states behind the first decoder layer must tell, at the tokens before and of each answer, the mean of what the decoder was given
for the picture just before. Each answer then carries its picture, and later layers can look up the answer whose picture is most
alike. The probe is thrown away after training. (Ours; the embedded model is trained with it, see ``tiny_language``.)
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kshot.errors import OptionError
from kshot.models.vlm import VLM

PROBE = "summary_probe"


class Summary:
    """The summary loss of one model.

    The probe becomes a module of the model while it is trained (so that it is saved in checkpoints); :meth:`remove` takes it out.

    Args:
        vlm: the model; it must see pictures as tokens of its sequence.
        weight: of the loss.
        seed: of the probe.

    Raises:
        OptionError: the model sees pictures through cross-attention.
    """

    def __init__(self, vlm: VLM, *, weight: float, seed: int = 0):
        if vlm.reuse.placeholder is None or vlm.anatomy.cross_attention:
            raise OptionError(f"summary: {vlm.name} does not see pictures as tokens; set summary: 0")
        self.vlm, self.weight, self.placeholder = vlm, weight, vlm.reuse.placeholder
        width = vlm.anatomy.hidden_size
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            probe = nn.Linear(width, width)
        vlm.model.add_module(PROBE, probe.to(vlm.model.device, torch.float32))
        self.probe = probe
        self._seen: dict[str, Tensor] = {}
        self._handles: list[Any] = []

    def watch(self, ids: Tensor, answers: Tensor) -> None:
        """Have the next forward pass return the summary loss as its ``loss``.

        It is computed within the model's forward pass (not within that of a layer, which checkpointing repeats), where
        distributed training expects parameters to be used.

        Args:
            ids: token ids [rows, tokens].
            answers: which tokens are part of an answer, graded or not [rows, tokens].
        """
        self.stop()

        def keep(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            self._seen["given"] = (args[0] if args else kwargs["hidden_states"]).detach()
            self._seen["first"] = output[0] if isinstance(output, tuple) else output

        def add(module: nn.Module, args: Any, output: Any) -> Any:
            output["loss"] = self._loss(ids, answers)
            return output

        self._handles = [
            self.vlm.anatomy.layers[0].register_forward_hook(keep, with_kwargs=True),
            # first, for sharded training takes the probe's weights away when the forward pass ends
            self.vlm.model.register_forward_hook(add, prepend=True),
        ]

    def stop(self) -> None:
        """Leave forward passes alone again."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def remove(self) -> None:
        """Take the probe out of the model."""
        self.stop()
        delattr(self.vlm.model, PROBE)

    def _loss(self, ids: Tensor, answers: Tensor) -> Tensor:
        """Mean squared error of the probe."""
        given, first = self._seen.pop("given").float(), self._seen.pop("first").float()
        images = ids == self.placeholder
        starts = images & ~F.pad(images[:, :-1], (1, 0))
        number = starts.long().cumsum(1)  # which picture is the last one before a token; 0: none
        answer = answers.to(ids.device)
        # The token before an answer's first one predicts it, so it must know the picture as well.
        at = (answer | F.pad(answer[:, 1:], (0, 1))) & (number > 0) & ~images
        rows, columns = at.nonzero(as_tuple=True)
        if not len(rows):
            # Of several ranks, each must have a gradient, be it zero, for all that is trained.
            return sum((p.sum() for p in self.probe.parameters()), first.sum()) * 0
        most = int(number.max())
        sums = given.new_zeros(len(ids), most + 1, given.shape[-1])
        counts = given.new_zeros(len(ids), most + 1)
        where_rows, where = images.nonzero(as_tuple=True)
        picture = number[where_rows, where]
        sums.index_put_((where_rows, picture), given[where_rows, where], accumulate=True)
        counts.index_put_((where_rows, picture), torch.ones_like(picture, dtype=counts.dtype), accumulate=True)
        means = sums / counts.clamp_min(1).unsqueeze(-1)
        wanted = means[rows, number[rows, columns]]
        scale = wanted.std().clamp_min(1e-6)
        return F.mse_loss(self.probe(first[rows, columns]), (wanted - wanted.mean(0)) / scale)
