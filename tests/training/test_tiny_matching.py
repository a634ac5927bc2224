"""What teaches the embedded model to find the query's class: each loss is low when what it asks for is there, and only then."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from kshot.training import tiny_prompts as prompts
from kshot.training.tiny_batches import Encoder
from kshot.training.tiny_episodes import TinyEpisode
from kshot.training.tiny_language import TinyLanguage
from kshot.training.tiny_matching import (
    RENAMED,
    VALUES,
    MatchingProbes,
    agreement_loss,
    attention_loss,
    detour,
    match_loss,
    values_loss,
)
from kshot.training.tiny_model import TinyShape, build_model
from kshot.training.tiny_tokenizer import build_tokenizer

SCENES = 1  # the bank of scenes, behind one of characters
LABELS = ["blon", "kip", "blon", "kip", "blon"]


@pytest.fixture(scope="module")
def features():
    rng = np.random.default_rng(0)
    attributes = np.stack([rng.integers(n, size=40) for n in VALUES], 1)
    attributes[:, 0] = np.arange(40) % 2  # the label, and nothing else, can be told from it
    return SimpleNamespace(attributes=attributes, shapes=[(3, 5)])


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(vocabulary=600)


@pytest.fixture(scope="module")
def batch(tokenizer):
    def episode(source, kind, start):
        pictures = np.array([start, start + 1, start + 2, start + 3, start + 4])
        return TinyEpisode(source, pictures, LABELS, np.ones(5, bool), kind=kind, task=0 if kind else -1)

    episodes = [episode(SCENES, RENAMED, 0), episode(SCENES, 1, 10), episode(0, 0, 0), episode(SCENES, RENAMED, 20)]
    wording = prompts.plain_wording(prompts.LIVE, "What is it?")
    return Encoder(tokenizer, 2).batch(episodes, [wording] * 4, [True] * 4)


@pytest.fixture
def language(tokenizer):
    return TinyLanguage(build_model(TinyShape(vision_width=32, vision_layers=1, width=32, layers=3), tokenizer, 0), 0)


def test_cues_are_where_the_first_token_of_an_answer_is_predicted(batch, tokenizer):
    first = {label: tokenizer(label, add_special_tokens=False)["input_ids"][0] for label in LABELS}
    for row, cues in enumerate(batch.cue_at.tolist()):
        assert [int(batch.ids[row, cue + 1]) for cue in cues] == [first[label] for label in LABELS]
    assert batch.classes.tolist() == [[0, 1, 0, 1, 0]] * 4
    assert not set(map(tuple, batch.group_at.tolist())) & {
        (row, cue) for row, cues in enumerate(batch.cue_at.tolist()) for cue in cues
    }


def test_a_detour_closes_the_way_from_cues_of_renamed_scenes_to_answers_and_no_other(batch):
    mask = detour(batch)[:, 0]
    open_ = torch.ones_like(mask).tril()
    for row, kind in enumerate(batch.kinds.tolist()):
        closed = (open_[row] & ~mask[row]).nonzero().tolist()
        answers = {int(place) for of, place in batch.group_at if of == row}
        expected = {(int(c), a) for c in batch.cue_at[row] for a in answers if a < c} if kind == RENAMED else set()
        assert set(map(tuple, closed)) == expected
    assert not (mask & ~open_).any()


def test_behind_a_detour_only_the_last_layer_knows_earlier_answers(batch, language):
    """Renaming an earlier answer changes nothing at the cue before the last layer, but for what other tokens have read of it."""
    other = batch.ids.clone()
    places = batch.group_at[batch.group_at[:, 0] == 0][:, 1]
    cue = int(batch.cue_at[0, 1])
    for place in places[places < cue]:
        other[0, place] = (other[0, place] + 7) % 500
    with torch.no_grad():
        embed = language.decoder.embed_tokens
        runs = [[language.states(embed(ids), *mask) for ids in (batch.ids, other)] for mask in ((), (detour(batch),))]
    (free, free_other), (closed, closed_other) = ([behind for _, behind in run] for run in runs)
    assert not torch.allclose(free[0][0, cue], free_other[0][0, cue])
    assert torch.equal(closed[0][0, cue], closed_other[0][0, cue])  # later ones hear of it from tokens in between
    assert not torch.allclose(closed[-1][0, cue], closed_other[-1][0, cue])


def test_agreement_is_what_all_pictures_of_a_label_have(batch, features):
    """States that say what is asked for, written out by hand, and an identity for a probe."""
    width = sum(VALUES)
    states = torch.zeros(*batch.ids.shape, width)
    count = {}
    for at, (row, place) in enumerate(batch.group_at.tolist()):
        mine = batch.group_pictures[batch.group_of == at]
        seen = batch.pictures[mine].tolist()
        count[row, place] = len(seen)
        states[row, place] = torch.cat(
            [
                F.one_hot(torch.tensor(v), n) * (len({int(features.attributes[p, i]) for p in seen}) == 1)
                for i, (v, n) in enumerate(zip(features.attributes[seen[0]], VALUES, strict=True))
            ]
        )
    assert {1, 2, 3} <= set(count.values())
    found = agreement_loss(_reading(states), states, batch, features)
    assert found < 1e-9
    wrong = states.roll(1, -1)
    assert agreement_loss(_reading(states), wrong, batch, features) > 0.01


def test_values_are_those_of_the_picture_before_the_cue(batch, features):
    states = torch.zeros(*batch.ids.shape, sum(VALUES))
    for row, cues in enumerate(batch.cue_at.tolist()):
        for number, cue in enumerate(cues):
            picture = int(batch.pictures[row * len(LABELS) + number])
            parts = zip(features.attributes[picture % 40], VALUES, strict=True)
            states[row, cue] = torch.cat([F.one_hot(torch.tensor(value), n) for value, n in parts])
    assert values_loss(_reading(states), states, batch, features) < 1e-9
    states[2] = 3.0  # characters have no values
    assert values_loss(_reading(states), states, batch, features) < 1e-9
    states[3] = states[3].roll(1, -1)
    assert values_loss(_reading(states), states, batch, features) > 0.01


def test_match_and_attention_are_low_where_the_class_is_found(batch, language):
    width = language.decoder.config.hidden_size
    random = torch.Generator().manual_seed(0)
    states = 0.1 * torch.randn(*batch.ids.shape, width, generator=random)
    for row, cues in enumerate(batch.cue_at.tolist()):
        for number, cue in enumerate(cues):
            states[row, [cue, cue + 1], int(batch.classes[row, number])] = 4.0
    probes = MatchingProbes(width)
    torch.nn.init.zeros_(probes.query.bias), torch.nn.init.zeros_(probes.key.bias)
    for probe in (probes.query, probes.key):
        probe.weight.data = 5 * torch.eye(64, width)
    assert match_loss(probes, states, batch) < 0.01
    shuffled = states.clone()
    shuffled[:, :, [0, 1]] = states[:, :, [1, 0]]
    mixed = torch.where(torch.arange(states.shape[1])[None, :, None] < batch.cue_at[0, 3], states, shuffled)
    assert match_loss(probes, mixed, batch) > 1.0

    before = float(attention_loss(language, [states, states, states], batch).detach())
    optimizer = torch.optim.Adam(language.decoder.layers[-1].parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        loss = attention_loss(language, [states, states, states], batch)
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.2 < before


def test_supervised_attention_is_that_of_the_layer(batch, language):
    """Against weights that transformers' own eager attention reports."""
    language.decoder.config._attn_implementation = "eager"
    states = torch.randn(
        *batch.ids.shape, language.decoder.config.hidden_size, generator=torch.Generator().manual_seed(1)
    )
    layer, length = language.decoder.layers[-1], states.shape[1]
    rotary = language.decoder.rotary_emb(states, torch.arange(length)[None])
    causal = torch.full((length, length), -torch.inf).triu(1)[None, None]
    with torch.no_grad():
        _, weights = layer.self_attn(layer.input_layernorm(states), position_embeddings=rotary, attention_mask=causal)
        found = float(attention_loss(language, [states, states], batch))
    total, weight = 0.0, 0.0
    for row, kind in enumerate(batch.kinds.tolist()):
        for number, cue in enumerate(batch.cue_at[row].tolist()):
            same = [int(batch.cue_at[row, i]) + 1 for i in range(number) if LABELS[i] == LABELS[number]]
            if same:
                share = 1.0 if kind == RENAMED else 0.3
                total += share * float(-weights[row, :2, cue, same].sum(-1).log().mean())
                weight += share
    assert found == pytest.approx(total / weight, rel=1e-4)


def test_without_anything_to_ask_losses_are_zero_and_have_gradients(language, features, tokenizer):
    episode = TinyEpisode(0, np.array([0, 6]), ["blon", "kip"], np.ones(2, bool))
    wording = prompts.plain_wording(prompts.LIVE, "What is it?")
    batch = Encoder(tokenizer, 2).batch([episode], [wording], [True])
    states = torch.randn(*batch.ids.shape, 32, requires_grad=True)
    probes = language.matching
    found = [
        agreement_loss(probes, states, batch, features),
        values_loss(probes, states, batch, features),
        match_loss(probes, states, batch),
        attention_loss(language, [states, states], batch),
    ]
    assert [float(one.detach()) for one in found] == [0, 0, 0, 0]
    sum(found).backward()
    assert torch.isfinite(states.grad).all()


def _reading(states: torch.Tensor) -> MatchingProbes:
    """Probes that read off states of zeros and ones, whose length the losses level."""
    probes = MatchingProbes(states.shape[-1])

    class Exact(torch.nn.Module):
        def forward(self, levelled):
            return (levelled > 0.1).float()

    probes.agreement = probes.values = Exact()
    return probes
