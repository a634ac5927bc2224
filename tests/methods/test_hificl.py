"""HiFICL against its formula: attention over the model's own pairs and the virtual ones, joined."""

from __future__ import annotations

import pytest
import torch
from peft import get_peft_model

from kshot.errors import OptionError
from kshot.methods.attend import attend
from kshot.methods.attention import Heads
from kshot.methods.hificl import HificlConfig, HificlLayer
from kshot.methods.layers import Place
from tests.methods.common import base, fresh, logits

ROWS, HEADS, KEY_HEADS, TOKENS, WIDTH = 2, 4, 2, 7, 16


def layer(config: HificlConfig) -> HificlLayer:
    made = HificlLayer(Place(0, torch.nn.Linear(1, 1), HificlLayer, HEADS * WIDTH, HEADS, WIDTH))
    made.add_adapter("a", config, torch.device("cpu"), torch.float32)
    random = torch.Generator().manual_seed(3)
    for parameter in made.parameters():
        parameter.data.normal_(0.0, 0.7, generator=random)
    return made


def joined(query, key, value, allowed, virtual_key, virtual_value, scale, softcap):
    """Softmax over the keys [K; K'] in one piece, written from the paper's formula."""
    key, value = (states.repeat_interleave(HEADS // KEY_HEADS, 1) for states in (key, value))
    key = torch.cat([key, virtual_key.expand(ROWS, -1, -1, -1)], 2)
    value = torch.cat([value, virtual_value.expand(ROWS, -1, -1, -1)], 2)
    scores = query @ key.transpose(2, 3) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    allowed = torch.cat([allowed, torch.ones(*allowed.shape[:3], virtual_key.shape[1], dtype=torch.bool)], -1)
    return scores.masked_fill(~allowed, -torch.inf).softmax(-1) @ value


@pytest.mark.parametrize("rank", [3, None])
@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("padded", [False, True])
def test_it_is_attention_over_own_and_virtual_pairs_together(rank, softcap, padded):
    random = torch.Generator().manual_seed(0)
    query = torch.randn(ROWS, HEADS, TOKENS, WIDTH, generator=random)
    key, value = torch.randn(2, ROWS, KEY_HEADS, TOKENS, WIDTH, generator=random)
    allowed = torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril().expand(ROWS, 1, -1, -1).clone()
    if padded:
        allowed[1, :, :, :3] = False
    output, normaliser = attend(query, key, value, mask=allowed, scale=0.3, softcap=softcap)
    made = layer(HificlConfig(pairs=5, rank=rank))
    virtual_key, virtual_value = made.pairs("a")
    assert virtual_key.shape == (HEADS, 5, WIDTH)
    assert torch.linalg.matrix_rank(virtual_key[0].detach()) == (rank or 5)
    found = made.shift_heads("a", Heads(query, output, normaliser, query, key, value, 0.3, softcap))
    expected = joined(query, key, value, allowed, virtual_key, virtual_value, 0.3, softcap)
    seen = allowed.any(-1).squeeze(1)  # a padded query sees nothing, and its output means nothing
    for row in range(ROWS):
        torch.testing.assert_close(found[row][:, seen[row]], expected[row][:, seen[row]], rtol=0, atol=2e-6)
    assert float((found - output).detach().abs().max()) > 0.1


@pytest.mark.parametrize("rank", [3, None])
@pytest.mark.parametrize("masked", [True, False])
def test_the_short_way_of_decoding_is_the_formula(rank, masked):
    random = torch.Generator().manual_seed(0)
    query = torch.randn(ROWS, HEADS, 1, WIDTH, generator=random)
    key, value = torch.randn(2, ROWS, KEY_HEADS, TOKENS, WIDTH, generator=random)
    allowed = torch.ones(ROWS, 1, 1, TOKENS, dtype=torch.bool)
    if masked:
        allowed[1, :, :, :3] = False
    made = layer(HificlConfig(pairs=5, rank=rank))
    expected = joined(query, key, value, allowed, *made.pairs("a"), 0.3, None)
    with torch.no_grad():
        made.set_adapter("a")
        found = made.one_token(query, key, value, allowed if masked else None, 0.3)
        torch.testing.assert_close(found.transpose(1, 2), expected, rtol=0, atol=2e-6)
        assert made.one_token(query.double(), key.double(), value.double(), None, 0.3) is None
        assert made.one_token(query.expand(-1, -1, 2, -1), key, value, None, 0.3) is None
        made.enable_adapters(False)
        assert made.one_token(query, key, value, None, 0.3) is None
        other = layer(HificlConfig(query="pre_rope"))
        other.set_adapter("a")
        assert other.one_token(query, key, value, None, 0.3) is None


def test_gradients_are_those_of_the_joined_softmax():
    random = torch.Generator().manual_seed(1)
    query = torch.randn(ROWS, HEADS, TOKENS, WIDTH, generator=random)
    key, value = torch.randn(2, ROWS, KEY_HEADS, TOKENS, WIDTH, generator=random)
    allowed = torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril().expand(ROWS, 1, -1, -1)
    weight = torch.randn(ROWS, HEADS, TOKENS, WIDTH, generator=random)
    gradients = []
    for way in ("ours", "joined"):
        own = [states.clone().requires_grad_() for states in (query, key, value)]
        made = layer(HificlConfig(pairs=2, rank=2))
        if way == "ours":
            output, normaliser = attend(*own, mask=allowed, scale=0.25)
            found = made.shift_heads("a", Heads(own[0], output, normaliser, *own, 0.25, None))
        else:
            found = joined(*own, allowed, *made.pairs("a"), 0.25, None)
        gradients.append(torch.autograd.grad((found * weight).sum(), [*own, *made.parameters()]))
    for ours, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=2e-5)


def test_the_query_before_rotation_makes_it_independent_of_absolute_positions():
    found = {}
    for query in ("pre_rope", "post_rope"):
        _, _, alone = base("llava")
        model = get_peft_model(fresh("llava"), HificlConfig(query=query)).eval()
        random = torch.Generator().manual_seed(0)
        for name, parameter in model.named_parameters():
            if ".shift_" in name:
                parameter.data.normal_(0.0, 1.0, generator=random)
        inner = model.get_base_model()
        later = alone | {"position_ids": alone["position_ids"] + 11}
        found[query] = float((logits(inner, alone) - logits(inner, later)).abs().max())
    assert found["pre_rope"] < 1e-5
    assert found["post_rope"] > 1e-3


def test_values_begin_at_zero_and_receive_gradients():
    model = get_peft_model(fresh("llava"), HificlConfig()).train()
    _, inputs, _ = base("llava")
    model.get_base_model()(**inputs).logits.square().mean().backward()
    held = dict(model.named_parameters())
    right = [p for name, p in held.items() if "hificl_value_right" in name]
    assert right
    assert all(not p.any() and p.grad.abs().max() > 0 for p in right)


def test_impossible_options_are_refused():
    for options in ({"pairs": 0}, {"rank": 0}, {"query": "rope"}):
        with pytest.raises(OptionError):
            HificlConfig(**options)
