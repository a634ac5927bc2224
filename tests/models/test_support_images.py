"""Every support image reaches the answer: what a link-context result rests on, and what the published code did not do.

All families of :mod:`tests.models.tiny` take part, PaliGemma too, which was trained on single images but takes several in one prompt.
"""

from __future__ import annotations

import pytest
import torch

from kshot.data.concepts import LINK
from kshot.episode import Episode, Example
from kshot.models.vlm import VLM
from tests.models import tiny
from tests.models.reference import vlm

SHOTS = 4
NAMES = ("dax", "wug")
LEAST = 1e-4
"""Logits must change by more than this; a hundred times what rounding does to them."""


def support(changed: int | None = None) -> tuple[Example, ...]:
    """Two demonstrations of each name; one of the pictures may be another."""
    return tuple(
        Example(tiny.picture(i if i != changed else 100 + i), "What is in the image", NAMES[i % 2])
        for i in range(SHOTS)
    )


def episode(changed: int | None = None) -> Episode:
    query = Example(tiny.picture(50), "Based on the previous examples, what is in the image", choices=NAMES)
    return Episode(support(changed), query)


@torch.no_grad()
def answer_logits(family: str, asked: Episode, style: str) -> torch.Tensor:
    """The logits from which the answer's tokens are predicted."""
    model = vlm(family)
    encoded = model.encode(asked, LINK, style, answer="dax")  # type: ignore[arg-type]
    logits = model.model(**model.inputs([encoded])).logits[0]
    mask = encoded.tokens.answer_mask()
    return logits[[place - 1 for place, spoken in enumerate(mask) if spoken]]


@pytest.mark.parametrize("style", ["plain", "chat"])
@pytest.mark.parametrize("family", sorted(tiny.FAMILIES))
def test_each_support_image_changes_the_logits_of_the_answer(family, style):
    intact = answer_logits(family, episode(), style)
    noise = float((answer_logits(family, episode(), style) - intact).abs().max())
    assert noise < LEAST / 100
    for i in range(SHOTS):
        changed = answer_logits(family, episode(i), style)
        assert changed.shape == intact.shape
        assert (changed - intact).abs().amax(-1).min() > LEAST, f"support image {i + 1} of {SHOTS} does not matter"


def test_where_only_the_last_image_is_inserted_no_support_image_matters():
    """What the published code did, and the proof that the tests here can fail."""
    model = VLM(*tiny.build("llava_llama"), image_mode="last_only")
    query = episode().query.with_(images=(tiny.picture(51),))
    asked = [episode(), *(episode(i) for i in range(SHOTS)), Episode(support(), query)]
    scores = torch.tensor(model.score(asked, NAMES, template=LINK, style="plain", batch_size=1))
    assert (scores[1:-1] == scores[0]).all()
    assert (scores[-1] - scores[0]).abs().max() > 1e-5


@pytest.mark.parametrize("family", sorted(tiny.FAMILIES))
def test_each_support_image_changes_the_scores_of_the_names_through_the_caches(family):
    model = vlm(family)  # its caches hold the intact prompt's features and prefix when the changed ones come
    episodes = [episode(), episode(), *(episode(i) for i in range(SHOTS))]
    scores = torch.tensor(model.score(episodes, NAMES, template=LINK, style="plain"))
    assert (scores[1] - scores[0]).abs().max() < 1e-5
    differences = (scores[2:] - scores[0]).abs().amax(-1)
    assert differences.min() > 1e-5, differences
