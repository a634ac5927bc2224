"""All ways to compute attention with its log-sum-exp against formulas in double precision."""

from __future__ import annotations

import pytest
import torch

from kshot.methods.attend import VARIANTS, attend, trusted
from kshot.methods.attention_reference import Call

SHAPES = {  # batch, heads, key heads, queries, keys, width
    "prefill": (2, 4, 4, 19, 19, 16),
    "grouped heads": (2, 4, 2, 19, 19, 16),
    "one query": (3, 4, 2, 1, 21, 16),
    "a few queries behind a cache": (2, 4, 2, 5, 23, 16),
    "one head": (1, 1, 1, 7, 7, 8),
}
MASKS = ("none", "causal", "boolean", "additive", "window")
TOLERANCE = {torch.float64: 1e-12, torch.float32: 5e-6, torch.bfloat16: 0.1}


def tensors(shape: str, dtype: torch.dtype, seed: int = 0) -> list[torch.Tensor]:
    rows, heads, key_heads, queries, keys, width = SHAPES[shape]
    random = torch.Generator().manual_seed(seed)
    sizes = ((heads, queries), (key_heads, keys), (key_heads, keys))
    return [
        (1.5 * torch.randn(rows, *size, width, generator=random, dtype=torch.float64)).to(dtype).requires_grad_()
        for size in sizes
    ]


def mask_of(kind: str, shape: str, dtype: torch.dtype) -> torch.Tensor | None:
    rows, _, _, queries, keys, _ = SHAPES[shape]
    if kind in ("none", "causal"):
        return None
    places = torch.arange(keys - queries, keys)[:, None] - torch.arange(keys)[None]
    seen = (places >= 0) & (places < (4 if kind == "window" else keys))
    padding = torch.arange(rows)[:, None] <= torch.arange(keys)[None]  # row r begins with r places of padding
    seen = (seen[None] & padding[:, None])[:, None]
    return seen if kind != "additive" else torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, -torch.inf)


def formula(query, key, value, mask, causal, scale, softcap=None):
    """Softmax attention written out, in double precision."""
    groups = query.shape[1] // key.shape[1]
    query, key, value = (
        query.double(),
        key.double().repeat_interleave(groups, 1),
        value.double().repeat_interleave(groups, 1),
    )
    scores = torch.einsum("bhtd,bhsd->bhts", query, key) * scale
    if softcap is not None:
        scores = softcap * (scores / softcap).tanh()
    seen = (
        torch.ones(scores.shape[-2:], dtype=torch.bool).tril() if causal else torch.ones_like(scores, dtype=torch.bool)
    )
    if mask is not None:
        seen = mask if mask.dtype == torch.bool else mask == 0
    powers = scores.exp() * seen
    total = powers.sum(-1, keepdim=True)
    some = total.clamp_min(1e-300)
    normaliser = torch.where(total > 0, some.log(), -torch.inf).squeeze(-1)
    return torch.einsum("bhts,bhsd->bhtd", powers / some, value), normaliser


def with_gradients(function, parts):
    """Output, normaliser and gradients of a loss that needs both."""
    output, normaliser = function()
    random = torch.Generator().manual_seed(1)
    rows = torch.isfinite(normaliser.detach()) & (normaliser.detach() > -1e4)  # fully masked queries mean nothing
    weight = torch.randn(output.shape, generator=random, dtype=torch.float64).to(output.device)
    level = torch.randn(normaliser.shape, generator=random, dtype=torch.float64).to(output.device)
    loss = (output.double() * weight)[rows].sum() + (normaliser.double() * level)[rows].sum()
    return [output.detach()[rows], normaliser.detach()[rows], *torch.autograd.grad(loss, parts)]


def close(found, expected, tolerance):
    for one, other in zip(found, expected, strict=True):
        assert torch.isfinite(one).all()
        assert float((one.double() - other.double()).abs().max()) <= tolerance * max(1.0, float(other.abs().max()))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=["f64", "f32", "bf16"])
@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_is_the_formula(name, shape, kind, dtype):
    device = VARIANTS[name].device or "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("this machine has no CUDA device")
    mask = mask_of(kind, shape, dtype)
    moved = mask.to(device) if mask is not None else None
    parts = [part.detach().to(device).requires_grad_() for part in tensors(shape, dtype)]
    causal = kind == "causal" and parts[0].shape[2] > 1
    why = VARIANTS[name].obstacle(Call(parts[0], parts[1], parts[2], moved, causal, 0.3))
    if why is not None:
        pytest.skip(why)
    found = with_gradients(lambda: attend(*parts, mask=moved, causal=causal, scale=0.3, variant=name), parts)
    expected = with_gradients(lambda: formula(*(part.cpu() for part in parts), mask, causal, 0.3), parts)
    close([part.cpu() for part in found], [part.cpu() for part in expected], TOLERANCE[dtype])
    if device == "cuda":
        assert trusted(name, device, dtype)


@pytest.mark.parametrize("kind", ["causal", "boolean"])
def test_soft_caps(kind):
    query, key, value = tensors("grouped heads", torch.float64)
    mask = mask_of(kind, "grouped heads", torch.float64)
    found = with_gradients(
        lambda: attend(query, key, value, mask=mask, causal=kind == "causal", scale=0.3, softcap=2.0),
        [query, key, value],
    )
    expected = with_gradients(lambda: formula(query, key, value, mask, kind == "causal", 0.3, 2.0), [query, key, value])
    close(found, expected, 1e-12)
    with pytest.raises(ValueError, match="no soft caps"):
        attend(query, key, value, softcap=2.0, variant="cpu_flash")


@pytest.mark.parametrize("name", ["eager", "cpu_flash"])
def test_gradients_are_those_of_finite_differences(name):
    query, key, value = tensors("grouped heads", torch.float64)
    mask = mask_of("boolean", "grouped heads", torch.float64)
    small = [part[1:, :, -3:, :4].detach().contiguous().requires_grad_() for part in (query, key, value)]
    seen = mask[1:, :, -3:, -3:]
    assert torch.autograd.gradcheck(lambda q, k, v: attend(q, k, v, mask=seen, scale=0.3, variant=name), small)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["eager", "cpu_flash"])
@pytest.mark.parametrize("form", ["boolean", "additive"])
def test_queries_that_see_nothing_stay_finite(name, dtype, form):
    query, key, value = tensors("grouped heads", dtype)
    mask = torch.zeros(2, 1, 19, 19, dtype=torch.bool)
    mask[0] = True
    given = mask if form == "boolean" else torch.zeros(mask.shape, dtype=dtype).masked_fill(~mask, -torch.inf)
    output, normaliser = attend(query, key, value, mask=given, variant=name)
    (output.float().sum() + normaliser.sigmoid().sum()).backward()
    for part in (output, normaliser, query.grad, key.grad, value.grad):
        assert torch.isfinite(part).all()


def test_half_precision_is_near():
    for name in ("eager", "cpu_flash"):
        for shape in SHAPES:
            query, key, value = (part.detach() for part in tensors(shape, torch.bfloat16))
            found = attend(query, key, value, variant=name)
            expected = formula(query, key, value, None, False, SHAPES[shape][-1] ** -0.5)
            assert float((found[0] - expected[0]).abs().max()) < 0.05
            assert float((found[1] - expected[1]).abs().max()) < 0.05
            assert (found[0].dtype, found[1].dtype) == (torch.bfloat16, torch.float32)


def test_dropout_leaves_the_normaliser_alone():
    query, key, value = (part.detach() for part in tensors("prefill", torch.float32))
    torch.manual_seed(0)
    dropped = attend(query, key, value, causal=True, dropout=0.5)
    kept = attend(query, key, value, causal=True)
    assert float((dropped[0] - kept[0]).abs().max()) > 0.1
    torch.testing.assert_close(dropped[1], kept[1], rtol=0, atol=5e-6)
    many = torch.stack([attend(query, key, value, causal=True, dropout=0.5)[0] for _ in range(400)]).mean(0)
    assert float((many - kept[0]).abs().mean()) < 0.15


def test_a_kernel_that_is_wrong_is_not_trusted(monkeypatch, caplog):
    from dataclasses import replace

    right = VARIANTS["cpu_flash"]
    wrong = replace(right, run=lambda call: (right.run(call)[0], right.run(call)[1] + 0.1))
    missing = replace(right, run=lambda call: torch.ops.aten.no_such_kernel(call.query))
    for name, variant in {"right": right, "wrong": wrong, "missing": missing}.items():
        monkeypatch.setitem(VARIANTS, name, variant)
    assert trusted("right", "cpu", torch.float32)
    assert not trusted("wrong", "cpu", torch.float32)
    assert not trusted("missing", "cpu", torch.float32)
    assert "differs from the reference" in caplog.text
    assert "no_such_kernel" in caplog.text
