"""Prompts of a batch one behind the other in a single row, in place of padding.

Each prompt's positions start anew, which is how transformers tells where one ends (``create_causal_mask``): no prompt sees another.
Not every architecture keeps that promise, so :func:`check_packing` compares before training begins.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from kshot.episode import Episode, Example
from kshot.errors import ModelError
from kshot.models.encoding import EncodedPrompt, Encoder
from kshot.models.vlm import VLM
from kshot.picture import DrawnPicture


def pack(
    encoder: Encoder, prompts: Sequence[EncodedPrompt], targets: Sequence[Sequence[int]], *, pixels: bool = True
) -> dict[str, Any]:
    """A batch of one row.

    Args:
        encoder: of the model.
        prompts: what to put into it.
        targets: for each prompt, the ids to learn (-100 elsewhere).
        pixels: whether to decode the pictures; without, the prompts are handed on, for their features.

    Returns:
        ``targets`` [1, tokens], and ``inputs`` (with pixels) or ``text`` and ``prompts`` (without).
    """
    ids = torch.tensor([[token for prompt in prompts for token in prompt.tokens.ids]])
    first = encoder.first_position or 0
    positions = torch.cat([torch.arange(len(prompt)) + first for prompt in prompts])[None]
    pictures = [picture for prompt in prompts for picture in prompt.pictures]
    inputs: dict[str, Any] = {"input_ids": ids, "position_ids": positions}
    values = encoder.pixels([pictures]) if pixels and pictures else {}
    inputs |= values | encoder.dialect.masks(ids, [len(pictures)], values)
    inputs = {name: value for name, value in inputs.items() if name in encoder.accepted}
    row = torch.tensor([[token for target in targets for token in target]])
    return {"targets": row, "inputs": inputs} if pixels else {"targets": row, "text": inputs, "prompts": list(prompts)}


@torch.no_grad()
def check_packing(vlm: VLM) -> None:
    """Compare the logits of two packed prompts with those of each alone.

    Raises:
        ModelError: they differ, or the model has no plain positions.
    """
    if vlm.encoder.first_position is None or vlm.encoder.dialect.equal_counts:
        raise ModelError(
            f"{vlm.name} cannot be packed: its positions are more than a number a token; set packed: false"
        )
    pictures = [_probe(0), _probe(180)]
    episodes = [
        Episode((Example((pictures[0],), "what", "this"),), Example((pictures[1],), "and", "that"), id="probe-0"),
        Episode((), Example((pictures[1],), "what now", "other"), id="probe-1"),
    ]
    prompts = [vlm.encoder.encode(vlm.prompt(e, answer=e.query.text_answer)) for e in episodes]
    empty = [[-100] * len(prompt) for prompt in prompts]
    training = vlm.model.training
    vlm.model.eval()

    def logits(inputs: dict[str, Any]) -> torch.Tensor:
        device, dtype = vlm.model.device, vlm.model.dtype
        moved = {k: v.to(device, dtype) if v.is_floating_point() else v.to(device) for k, v in inputs.items()}
        found: torch.Tensor = vlm.model(**moved, use_cache=False).logits[0].float()
        return found

    try:
        together = logits(pack(vlm.encoder, prompts, empty)["inputs"])
        alone = torch.cat([logits(vlm.encoder.collate([prompt])) for prompt in prompts])
        difference = float((together - alone).abs().max() / alone.std().clamp_min(1e-6))
    except (RuntimeError, ValueError, TypeError) as error:
        raise ModelError(f"{vlm.name} cannot be packed ({error}); set packed: false") from error
    finally:
        vlm.model.train(training)
    if difference > (1e-3 if vlm.model.dtype in (torch.float32, torch.float64) else 0.25):
        raise ModelError(
            f"{vlm.name} cannot be packed: prompts in one row see each other (logits differ by {difference:.1g} standard "
            "deviations); set packed: false"
        )


def _probe(shade: int) -> DrawnPicture:
    return DrawnPicture(lambda: Image.new("RGB", (48, 48), (shade, 90, 200 - shade)), f"packing probe {shade}")
