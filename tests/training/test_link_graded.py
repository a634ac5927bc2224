"""Which tokens are learnt: through real tokenizers, image placeholders and chat templates."""

from __future__ import annotations

import pytest

from kshot.models.vlm import VLM
from kshot.training.answers import AnswerObjective
from kshot.training.jigsaw import JigsawEpisodes
from kshot.training.link import LinkEpisodes
from kshot.training.reference import ReferenceEpisodes
from tests.models.tiny import build
from tests.training.link_toys import classes

SOURCES = {
    "link": (LinkEpisodes, {"shots_per_side": 2}, 'there is "{}" in the image.'),
    "reference": (ReferenceEpisodes, {"shots_per_side": 2}, "{}"),
    "jigsaw": (JigsawEpisodes, {"pieces": [4]}, "{}"),
}


@pytest.fixture(scope="module", params=["llava", "qwen2_5_vl"])
def vlm(request) -> VLM:
    return VLM(*build(request.param), name=request.param)


def learnt(vlm: VLM, source, index: int) -> str:
    encoded, targets = AnswerObjective(vlm, source).encode(source.item(0, index))
    return vlm.tokenizer.decode([i for i, t in zip(encoded.tokens.ids, targets, strict=True) if t != -100])


@pytest.mark.parametrize("kind", SOURCES)
def test_the_querys_answer_and_its_end_are_learnt(vlm, kind):
    make, options, form = SOURCES[kind]
    for index in range(3):
        chat, plain = (make(classes(), style=style, **options) for style in ("chat", "plain"))
        answer = chat.item(0, index).episode.query.text_answer
        assert learnt(vlm, chat, index) == form.format(answer) + "<|im_end|>\n"
        # The plain link prompt opens the quotation mark itself.
        assert learnt(vlm, plain, index) == form.format(answer).removeprefix('there is "') + "</s>"


def test_answers_of_classes_shown_before_are_learnt_on_request(vlm):
    source = LinkEpisodes(classes(), shots_per_side=2, loss="shown", style="plain")
    episode = source.item(0, 1).episode
    keys = [d.metadata["class"] for d in episode.demonstrations]
    later = [d.answer for place, d in enumerate(episode.demonstrations) if keys[place] in keys[:place]]
    assert len(later) == 2
    assert learnt(vlm, source, 1).replace(" ", "") == "".join(
        [*later, f'{episode.query.answer}" in the image.</s>']
    ).replace(" ", "")
