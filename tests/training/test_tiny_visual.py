"""The visual model's recipe at the smallest scale, and what its parts must guarantee."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from transformers import LlamaForCausalLM

import kshot
from kshot.data.derived import generator
from kshot.data.drawing.functions import BASIC, SEQUENCES, random_boards, shows_held_out, split_of
from kshot.data.drawing.tiles import TILES
from kshot.errors import OptionError
from kshot.training.tiny_visual import train_tiny_visual
from kshot.training.tiny_visual_decoder import spread_codes, tell_places
from kshot.training.tiny_visual_language import (
    FRAMES,
    PAIRS,
    SQUARES,
    BoardBank,
    LanguageShape,
    SentenceMixture,
    SentenceObjective,
    fold,
)
from kshot.training.tiny_visual_tokenizer import CODES, build_vq, make_codebook, plain_colours, stable
from kshot.visual.processor import VisualSentenceProcessor
from kshot.visual.tokenizer import VisualTokenizer

SMALL = LanguageShape(width=32, layers=3, units=48)


@pytest.fixture(scope="module")
def vq():
    made = build_vq(0)
    make_codebook(made, generator(0, "codebook"), 400)
    return made


@pytest.fixture(scope="module")
def bank():
    return BoardBank(400, 0)


@pytest.fixture
def objective(bank, vq):
    torch.manual_seed(0)
    llama = LlamaForCausalLM(SMALL.config(CODES))
    mixture = SentenceMixture(rows=8, sequences=0.25)
    return SentenceObjective(llama, vq.quantize.embedding.weight.detach(), bank, steps=9, mixture=mixture)


def test_tokens_are_tiles(vq):
    tokenizer = VisualTokenizer(vq, size=64)
    assert stable(tokenizer, random_boards(generator(0, "y"), 24, split="test", held_out=True)) == 1.0
    assert len(np.unique(plain_colours(), axis=0)) == CODES - len(TILES)


def test_the_bank_is_of_training_boards_without_held_out_pairs(bank):
    assert set(split_of(bank.boards)) == {"train"}
    assert not shows_held_out(bank.boards).any()
    for number, known in enumerate(bank.of_function):
        assert len(known)
        assert not shows_held_out(bank.functions[number](bank.boards[known])).any()


def test_sentences_are_pairs_and_sequences_of_one_function(objective):
    batch = objective.item(0, 3)
    assert batch["ids"].shape == (8, FRAMES * SQUARES)
    for ids, kind, weights, origins in zip(*(batch[k] for k in ("ids", "kind", "weights", "origins")), strict=True):
        pictures = ids.view(FRAMES, SQUARES).numpy()
        if kind >= len(objective.bank.functions):
            step = SEQUENCES[int(kind) - len(objective.bank.functions)]
            assert np.array_equal(step(pictures[:-1]), pictures[1:])
            assert int((weights == 1).sum()) == (FRAMES - 2) * SQUARES
        else:
            step = objective.bank.functions[int(kind)]
            assert np.array_equal(step(pictures[::2]), pictures[1::2])
            assert int((weights == 1).sum()) == (PAIRS - 1) * SQUARES
        table = np.array(step.table)
        graded = (weights == 1).numpy()
        assert np.array_equal(table[origins.numpy()[graded]], ids.numpy()[graded])


def test_items_derive_from_seed_and_step_alone(objective):
    first, second = objective.item(0, 5), objective.item(0, 5)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["ids"], objective.item(0, 6)["ids"])


def test_the_folded_llama_gives_the_trained_logits(objective):
    ids = objective.item(0, 0)["ids"]
    fold(objective)
    with torch.no_grad():
        inputs, outputs = objective.model.tables()
        states, _ = objective.model.states(torch.nn.functional.embedding(ids, inputs))
        logits = objective.llama(input_ids=ids).logits
    assert torch.allclose(states @ outputs.T, logits, atol=1e-4)


def test_the_loss_falls(objective):
    optimizer = torch.optim.AdamW(objective.model.parameters(), lr=3e-3)
    losses = []
    for index in range(12):
        loss, parts = objective.loss(objective.model, objective.item(0, index))
        assert set(parts) == {"answer_loss", "place_loss", "kind_loss", "origin_loss", "right"}
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.5


def test_the_recipe_runs_from_nothing_to_a_model_that_imagines(tmp_path):
    folder = train_tiny_visual(str(tmp_path / "model"), quick=True)
    model = kshot.load_model(folder)
    processor = VisualSentenceProcessor.from_pretrained(folder)
    assert (processor.tokenizer.codes, processor.tokenizer.tokens, processor.vocab_size) == (256, 16, 356)
    query = kshot.load_task("functions", episodes=1).queries[0]
    found = model.imagine([[query.images[0], query.answer, query.images[0]]], temperature=0)[0]
    assert found.images[0][0].size == (64, 64)
    again = train_tiny_visual(str(tmp_path / "again"), quick=True)
    for name in ("model.safetensors", "vq/diffusion_pytorch_model.safetensors"):
        assert (folder / name).read_bytes() == (again / name).read_bytes()


def test_the_committed_recipe_is_the_functions_own_defaults():
    recipe = yaml.safe_load((Path(kshot.__file__).parent / "recipes" / "tiny-visual.yaml").read_text(encoding="utf-8"))
    defaults = train_tiny_visual.__kwdefaults__
    given = {key: value for key, value in recipe.items() if key not in ("objective", "out")}
    assert given == {key: defaults[key] for key in given}
    assert recipe["objective"] == "embedded-visual"


@pytest.mark.parametrize(
    "options", [{"language_steps": 0}, {"rows": 0}, {"chains": 1.5}, {"sequences": -0.1}, {"decoder_steps": 0}]
)
def test_bad_budgets_are_named(tmp_path, options):
    with pytest.raises(OptionError, match=next(iter(options))):
        train_tiny_visual(str(tmp_path / "x"), **options)


def test_there_are_at_least_fourteen_functions():
    assert len({(f.source, f.table) for f in BASIC}) >= 14


def test_the_decoder_is_told_where_it_is(vq):
    made = deepcopy(vq).requires_grad_(True)
    spread_codes(made)
    assert tell_places(made, steps=200) < 0.01
    codes = made.quantize.embedding.weight[torch.from_numpy(random_boards(generator(0, "z"), 2, split="test"))]
    with torch.no_grad():
        hidden = made.post_quant_conv(codes.view(2, 4, 4, -1).permute(0, 3, 1, 2).contiguous())
        assert torch.equal(hidden[:, 0], torch.ones(2, 4, 4))
        hidden = made.decoder.mid_block(made.decoder.conv_in(hidden))
        for level in range(2):
            hidden = made.decoder.up_blocks[level](hidden)
            edge = hidden.shape[-1]
            ramp = torch.arange(1, edge + 1) * 4 / edge
            assert torch.allclose(hidden[:, 0], ramp.expand(2, edge, edge), atol=0.2)
            assert torch.allclose(hidden[:, 1], ramp[:, None].expand(2, edge, edge), atol=0.2)
            halves = torch.tensor([1.0, -1.0]).repeat(edge // 2)
            assert torch.equal(hidden[:, 2].sign(), halves.expand(2, edge, edge))
            assert torch.equal(hidden[:, 3].sign(), halves[:, None].expand(2, edge, edge))
