"""The embedded visual model is small, a plain folder, and finds out functions of pictures from examples.

Floors stand well below the figures of its card, because a test asks few questions; ``benchmarks/embedded_visual.py`` measures.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import VQModel
from safetensors import safe_open
from transformers import LlamaForCausalLM

import kshot
from kshot.data.drawing.functions import BASIC, SEQUENCES, random_boards
from kshot.data.drawing.tiles import board_pixels
from kshot.data.functions import Functions
from kshot.episode import Episode

FOLDER = Path(kshot.__file__).parent / "assets" / "tiny-visual"
EACH = 4


@pytest.fixture(scope="module")
def model():
    return kshot.load_model("tiny-visual")


def test_the_folder_is_small_and_holds_half_precision():
    files = [file for file in FOLDER.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 8_000_000
    assert not [file.name for file in files if file.suffix in {".bin", ".pt", ".pth", ".pkl"}]
    for path in FOLDER.rglob("*.safetensors"):
        with safe_open(path, "pt") as weights:
            assert {weights.get_tensor(key).dtype for key in weights.keys()} == {torch.float16}  # noqa: SIM118


def test_transformers_and_diffusers_alone_load_and_run_it(model, tmp_path):
    llama = LlamaForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)
    vq = VQModel.from_pretrained(FOLDER / "vq", torch_dtype=torch.float32)
    query = Functions(functions="recolour_red", episodes=1).queries[0]
    pixels = model.processor.tokenizer.pixels([query.images[0]])
    with torch.no_grad():
        ids = vq.quantize(vq.encode(pixels).latents)[2][2].view(1, -1)
        assert torch.equal(ids, model.processor.tokenizer.encode(pixels))
        given = ids.repeat(1, 3)
        made = llama.generate(given, attention_mask=torch.ones_like(given), max_new_tokens=16, do_sample=False)
    assert made.shape == (1, 64)
    assert int(made.max()) < 256


def test_a_square_has_the_same_token_whatever_lies_around_it(model):
    boards = random_boards(np.random.default_rng(5), 24, split="test", held_out=True)
    pixels = torch.from_numpy(board_pixels(boards)).movedim(-1, 1).float() / 255
    assert np.array_equal(model.processor.tokenizer.encode(pixels).numpy(), boards)
    drawn = model.processor.tokenizer.decode(torch.from_numpy(boards))
    assert float((drawn - pixels).abs().mean()) < 0.02


def exact(model, episodes: list[Episode]) -> float:
    """The share of answers all of whose tokens are right."""
    answers = model.imagine(episodes, temperature=0)
    wanted = model.processor.tokenizer.encode([episode.query.answer for episode in episodes])
    return float(np.mean([torch.equal(a.ids[0, 0], w) for a, w in zip(answers, wanted, strict=True)]))


@pytest.fixture(scope="module")
def episodes() -> list[Episode]:
    task = Functions(episodes=EACH * len(BASIC), seed=7, pool_size=2)
    return [Episode(tuple(task.pool(query)), query) for query in task.queries]


def test_two_examples_show_it_what_to_do(model, episodes):
    assert exact(model, episodes) >= 0.7


def test_examples_of_another_function_do_not(model, episodes):
    others = episodes[7:] + episodes[:7]  # functions take turns
    mixed = [Episode(o.demonstrations, e.query) for e, o in zip(episodes, others, strict=True)]
    assert exact(model, mixed) <= 0.1


def test_it_goes_on_with_sequences(model):
    right = []
    for step in SEQUENCES:
        frames = [random_boards(np.random.default_rng(9), 3, split="test")]
        while len(frames) < 4:
            frames.append(step(frames[-1]))
        ids = torch.from_numpy(np.stack(frames, 1))
        found = model.imagine_ids(list(ids[:, :3].flatten(1)))
        right += [float((f.ids[0, 0] == w).double().mean()) for f, w in zip(found, ids[:, 3], strict=True)]
    assert np.mean(right) >= 0.85


def test_it_is_the_same_from_any_folder(model, episodes, tmp_path):
    copied = shutil.copytree(FOLDER, tmp_path / "copied")
    again = kshot.load_model(copied)
    first, second = (m.imagine(episodes[:2], temperature=0) for m in (model, again))
    assert all(torch.equal(a.ids, b.ids) for a, b in zip(first, second, strict=True))
