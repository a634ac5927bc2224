"""The embedded model is small, a plain Hugging Face folder, and learns from its context.

Floors stand well below the figures of its card, because a test asks few questions; ``benchmarks/embedded_model.py`` measures.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from transformers import AutoProcessor, LlavaForConditionalGeneration

import kshot

FOLDER = Path(kshot.__file__).parent / "assets" / "tiny"
EPISODES = 120


@pytest.fixture(scope="module")
def tiny():
    return kshot.load_model("tiny")


def figures(tiny, task: str, shots: int, **options) -> tuple[float, float]:
    """Exact accuracy with demonstrations, and with shuffled labels."""
    result = kshot.evaluate(
        tiny, kshot.load_task(task, episodes=EPISODES, seed=7, **options), shots=shots, controls="shuffled-labels"
    )
    found = [result.row(shots, kind) for kind in (result.rows[0].kind, "shuffled-labels")]
    return tuple(row.seeds[0].details.get("exact", row.value) for row in found)  # type: ignore[return-value]


def test_the_folder_is_small_and_holds_half_precision():
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) <= 6_000_000
    assert not [file.name for file in FOLDER.iterdir() if file.suffix in {".bin", ".pt", ".pth", ".pkl"}]
    with safe_open(FOLDER / "model.safetensors", "pt") as weights:
        assert {weights.get_tensor(key).dtype for key in weights.keys()} == {torch.float16}  # noqa: SIM118


def test_transformers_alone_loads_and_runs_it():
    model = LlavaForConditionalGeneration.from_pretrained(FOLDER, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(FOLDER)
    red, blue = (Image.new("RGB", (64, 64), colour) for colour in ("red", "blue"))
    turns = []
    for answer in ("dax", "wug", None):
        turns.append({"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]})
        if answer:
            turns.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    text = processor.apply_chat_template(turns, add_generation_prompt=True)
    inputs = processor(text=text, images=[red, blue, red], return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=8)
    assert processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def test_it_learns_names_of_real_digits_it_never_saw(tiny):
    learnt, shuffled = figures(tiny, "digits", 8, names="unseen")
    assert learnt >= 0.8
    assert shuffled <= 0.65


def test_it_learns_new_characters(tiny):
    learnt, shuffled = figures(tiny, "glyphs", 8, ways=2, names="unseen")
    assert learnt >= 0.85
    assert shuffled <= 0.65


def test_it_finds_out_what_is_asked(tiny):
    task = kshot.load_task("scenes", episodes=EPISODES, seed=7, held_out="all")
    result = kshot.evaluate(tiny, task, shots=(0, 8))
    assert result.value(0) <= 0.3
    assert result.value(8) >= 0.75


@pytest.mark.parametrize("text", ["naïve café", "日本語", "<image>", "a\tb\nc", "🙂", "don't"])
def test_no_text_is_unknown_to_its_tokenizer(tiny, text):
    ids = tiny.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert tiny.tokenizer.decode(ids) == text
