"""Training of a small visual tokenizer: it learns, its codes live, and the same seed gives the same weights."""

from __future__ import annotations

import json

import pytest
import torch

from kshot.errors import DataError, OptionError
from kshot.training.vq import train_vq, vq_config
from kshot.training.vq_settings import VQSettings
from kshot.training.vq_steps import VQSteps
from kshot.visual.tokenizer import VisualTokenizer
from kshot.visual.vq_files import build

CONFIG = vq_config(4, 2, 32, width=8, latent=4)


def colours(step, count=16):
    """Four squares of random colours in each picture."""
    random = torch.Generator().manual_seed(step)
    return torch.rand(count, 3, 2, 2, generator=random).repeat_interleave(2, 2).repeat_interleave(2, 3)


def test_configuration():
    assert vq_config(64, 4, 256)["block_out_channels"] == [32, 64, 128, 128, 128]
    with torch.device("meta"):
        tokenizer = VisualTokenizer(build(vq_config(64, 4, 256)))
    assert (tokenizer.size, tokenizer.tokens, tokenizer.codes) == (64, 16, 256)
    for size, grid in [(48, 5), (16, 32), (16, 0)]:
        with pytest.raises(OptionError, match="cannot be halved"):
            vq_config(size, grid, 8)


def test_it_learns():
    settings = VQSettings(
        160, warmup=10, log_every=20, learning_rate=2e-3, batch_size=16, restart_every=10, free_until=0.4
    )
    trained = train_vq(colours, vq_config(4, 2, 32, width=16, latent=4), settings)
    log = trained.log
    assert [line.step for line in log] == list(range(20, 161, 20))
    assert [line.codebook == 0 and line.used == 0 for line in log] == [True] * 3 + [False] * 5
    assert sum(line.loss for line in log[-3:]) < 0.9 * sum(line.loss for line in log[:3])
    codes = trained.tokenizer.encode(torch.cat([colours(1000 + number) for number in range(8)]))
    assert len(codes.unique()) / 32 > 0.9


PALETTE = torch.rand(8, 3, generator=torch.Generator().manual_seed(0))


def few_colours(step, count=16):
    """Four squares in each picture, of eight colours in all."""
    chosen = torch.randint(8, (count, 2, 2), generator=torch.Generator().manual_seed(step))
    return PALETTE[chosen].permute(0, 3, 1, 2).repeat_interleave(2, 2).repeat_interleave(2, 3)


def test_dead_codes_come_to_life():
    alive = {}
    for every in (8, 0):
        settings = VQSettings(80, warmup=5, log_every=20, learning_rate=4e-3, restart_every=every)
        trained = train_vq(few_colours, vq_config(4, 2, 32, width=16, latent=4), settings)
        codes = trained.tokenizer.encode(torch.cat([few_colours(1000 + number) for number in range(20)]))
        alive[every] = len(codes.unique()) / 32
        assert (sum(line.restarted for line in trained.log) > 0) is (every > 0)
    assert alive[8] > 0.9
    assert alive[0] < 0.8


def test_same_seed_same_weights(tmp_path):
    levels = (torch.cat([colours(n) for n in range(4)]) * 255).to(torch.uint8)
    settings = VQSettings(steps=4, batch_size=8, restart_every=2, log_every=2, save_every=2, seed=3)
    state = torch.random.get_rng_state()
    lines = []
    first = train_vq(levels, CONFIG, settings, out=tmp_path, report=lines.append)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.rand(7)
    second = train_vq(levels, CONFIG, settings)
    assert first.tokenizer.fingerprint == second.tokenizer.fingerprint
    other = train_vq(levels, CONFIG, VQSettings(**vars(settings) | {"seed": 4}))
    assert other.tokenizer.fingerprint != first.tokenizer.fingerprint
    assert VisualTokenizer.from_pretrained(tmp_path).fingerprint == first.tokenizer.fingerprint
    assert VisualTokenizer.from_pretrained(tmp_path / "step-4").fingerprint == first.tokenizer.fingerprint
    assert VisualTokenizer.from_pretrained(tmp_path / "step-2").fingerprint != first.tokenizer.fingerprint
    written = [json.loads(line) for line in (tmp_path / "vq_training.jsonl").read_text().splitlines()]
    assert written == [vars(line) for line in first.log] == [vars(line) for line in lines]


def test_beta_weighs_the_encoder_not_the_codebook():
    """With no weight on reconstruction and none on commitment, the codes move and the encoder stands still."""
    for beta, moves in ((0.0, False), (1.0, True)):
        run = VQSteps(
            VisualTokenizer(build(CONFIG)), VQSettings(steps=2, l1=0, l2=0, beta=beta, free_until=0, restart_every=0)
        )
        run.step(0, colours(0))
        encoder, codebook = run.vq.encoder.conv_in.weight.clone(), run.codebook.clone()
        run.step(1, colours(1))
        assert torch.equal(run.vq.encoder.conv_in.weight, encoder) is not moves
        assert not torch.equal(run.codebook, codebook)


def test_gradient_passes_straight_through():
    run = VQSteps(VisualTokenizer(build(CONFIG)), VQSettings(steps=2, beta=0, free_until=0, restart_every=0))
    run.step(0, colours(0))
    before = run.vq.encoder.conv_in.weight.clone()
    run.step(1, colours(1))
    assert not torch.equal(run.vq.encoder.conv_in.weight, before)


@pytest.mark.parametrize(
    ("pictures", "message"),
    [
        (torch.zeros(2, 3, 4, 4), "not uint8"),
        (torch.zeros(0, 3, 4, 4, dtype=torch.uint8), "not uint8"),
        (torch.zeros(2, 3, 2, 4, dtype=torch.uint8), r"step 0 has the shape \[32, 3, 2, 4\]"),
        (lambda step: torch.full((2, 3, 4, 4), 2.0), "neither uint8 nor float in"),
    ],
)
def test_wrong_pictures(pictures, message):
    with pytest.raises(DataError, match=message):
        train_vq(pictures, CONFIG, VQSettings(steps=1))


def test_wrong_settings():
    with pytest.raises(OptionError, match="steps is 0"):
        VQSettings(steps=0)
    with pytest.raises(OptionError, match="beta is -1"):
        VQSettings(steps=1, beta=-1)
    with pytest.raises(OptionError, match="no code would be learnt"):
        VQSettings(steps=1, free_until=1)
    with pytest.raises(OptionError, match="learning_rate is nan"):
        VQSettings(steps=1, learning_rate=float("nan"))
