"""The generated worlds, the embedded model's recipe at the smallest scale, and what it must guarantee."""

import hashlib
import io
import itertools
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration, TrainerCallback

import kshot
from kshot.chat import render_chat
from kshot.data.drawing import SCENE_TASKS, Scene, draw_glyph, invent_name, is_held_out, random_letters
from kshot.episode import Episode, Example
from kshot.picture import as_picture
from kshot.prompt import render_plain
from kshot.training import tiny_prompts as prompts
from kshot.training.tiny import train_tiny
from kshot.training.tiny_banks import EDGE, attribute_indices, build_banks, to_pixels
from kshot.training.tiny_batches import IGNORED, Encoder
from kshot.training.tiny_episodes import (
    character_episode,
    renamed_episode,
    scenes_by_value,
    training_names,
    unseen_names,
)
from kshot.training.tiny_export import build_processor
from kshot.training.tiny_language import (
    Features,
    LanguageObjective,
    Stage,
    TinyLanguage,
    blend,
    fold,
    single_token_namer,
    train_language,
)
from kshot.training.tiny_mixture import Mixture
from kshot.training.tiny_model import ImageEncoder, TinyShape, build_model, deepen, narrow, normalise
from kshot.training.tiny_report import Bench, shuffle_labels, wilson
from kshot.training.tiny_tokenizer import build_tokenizer
from kshot.training.tiny_vision import VisionObjective, train_vision

EMBEDDED = Path(kshot.__file__).parent / "assets" / "tiny"
HASH = """
import hashlib
from kshot.data.drawing import Scene, draw_glyph
data = b"".join([draw_glyph(7, 3).tobytes(), Scene.random(11).draw(48).tobytes()])
print(hashlib.sha256(data).hexdigest())
"""


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(vocabulary=600)


@pytest.fixture(scope="module")
def banks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("banks")
    return build_banks(folder, omniglot=None, invented=30, drawings=5, merged=0, scenes=200, seed=0, workers=1)


@pytest.fixture
def tiny(tokenizer):
    return build_model(TinyShape(vision_width=32, vision_layers=1, width=32, layers=2, head_dim=8), tokenizer, seed=0)


def test_drawings_are_the_same_in_another_process():
    elsewhere = subprocess.run([sys.executable, "-c", HASH], capture_output=True, text=True, check=True).stdout.strip()
    draw_glyph(1, 1), Scene.random(1).draw()  # other drawings before must not matter
    here = hashlib.sha256(draw_glyph(7, 3).tobytes() + Scene.random(11).draw(48).tobytes()).hexdigest()
    assert here == elsewhere


def test_drawings_differ_between_classes_and_samples():
    pictures = {draw_glyph(c, i).tobytes() for c in range(4) for i in range(4)}
    assert len(pictures) == 16
    assert draw_glyph(0, 0, size=40).size == (40, 40)


def test_held_out_pairs_are_drawn_only_when_asked_for():
    seen, held = [Scene.random(i) for i in range(300)], [Scene.random(i, held_out=True) for i in range(300)]
    assert not any(is_held_out(s.colour, s.shape) for s in seen)
    assert all(is_held_out(s.colour, s.shape) for s in held)
    for name, words in SCENE_TASKS.items():
        assert {getattr(s, name) for s in seen} == set(words)


def test_training_scenes_never_show_a_held_out_pair(banks):
    colours, shapes = SCENE_TASKS["colour"], SCENE_TASKS["shape"]
    for attributes in (banks.attributes, banks.free_attributes):
        named = attributes[attributes[:, 0] >= 0]
        assert len(named)
        assert not any(is_held_out(colours[a[0]], shapes[a[1]]) for a in named)


def test_names_of_the_two_families_are_disjoint():
    rng = np.random.default_rng(0)
    seen = {invent_name(rng, seen=True) for _ in range(3000)}
    unseen = {invent_name(rng, seen=False) for _ in range(3000)}
    assert not seen & unseen
    assert all(name.isalpha() and name.islower() for name in seen | unseen)
    assert len(random_letters(rng, 6)) == 6


@settings(max_examples=60, deadline=None)
@given(st.text())
def test_tokenizer_gives_back_any_text(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    specials = [t for t in tokenizer.all_special_tokens if t in text]
    if not specials:
        assert tokenizer.decode(ids) == text


def test_labels_have_the_same_tokens_wherever_they_stand(tokenizer):
    encoder = Encoder(tokenizer, 4)
    rng = np.random.default_rng(0)
    for number in range(200):
        wording = prompts.random_wording(rng) if number % 4 else prompts.held_out_wording(rng)
        label = training_names(rng, 1)[0]
        text = wording.middle + label + wording.after
        pieces = encoder.ids(wording.middle) + encoder.ids(label) + encoder.ids(wording.after)
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == pieces, text


@pytest.mark.parametrize("template", [prompts.LIVE, prompts.PLAIN, prompts.CAPTION, prompts.LINK, prompts.DIALOGUE])
def test_wordings_are_what_evaluation_writes(tokenizer, template):
    episode = _written_episode()
    wording = prompts.plain_wording(template, "What is it?")
    assert render_plain(episode, template).text() == _written(wording, ["blon", "kip"])


@pytest.mark.parametrize("instruction", ["", "Name the image.\n"])
def test_chat_wording_is_what_the_chat_template_writes(tokenizer, instruction):
    processor = build_processor(tokenizer, 16)
    episode = _written_episode(instruction)
    prompt = render_chat(episode, prompts.PLAIN, processor.apply_chat_template, "<image>")
    assert prompt.text() == _written(prompts.chat_wording("What is it?", instruction), ["blon", "kip"])


def test_a_batch_grades_exactly_the_answers_and_their_ends(tokenizer):
    encoder = Encoder(tokenizer, 4)
    rng = np.random.default_rng(0)
    episode = character_episode(rng, 0, 9, 9, pictures=6, ways=2, names=unseen_names, balanced=False)
    wording = prompts.plain_wording(prompts.LIVE, "What is it?")
    batch = encoder.batch([episode], [wording], [True])
    expected = [
        t
        for n, g in zip(episode.labels, episode.graded, strict=True)
        if g
        for t in [*encoder.ids(n), encoder.ids(".")[0]]
    ]
    assert batch.targets[batch.targets != IGNORED].tolist() == expected
    following = batch.ids[0, 1:]
    graded = (batch.targets[0, :-1] != IGNORED) & (
        torch.arange(len(following)) < len(following) - len(encoder.ids(episode.labels[-1]))
    )
    assert torch.equal(following[graded], batch.targets[0, :-1][graded])
    placeholders = (batch.ids[0] == encoder.image).nonzero().flatten().tolist()
    assert placeholders == [p for _, p in batch.image_at.tolist()]
    assert len(placeholders) == 6 * 4


def test_renamed_labels_follow_the_attribute_and_nothing_else():
    scenes = [Scene.random(i) for i in range(400)]
    attributes = np.array([attribute_indices(s) for s in scenes])
    rng = np.random.default_rng(0)
    for task in range(len(SCENE_TASKS)):
        episode = renamed_episode(
            rng, 0, scenes_by_value(attributes), pictures=9, ways=2, names=unseen_names, task=task, balanced=True
        )
        values = attributes[episode.pictures, task]
        assert len({(v, n) for v, n in zip(values, episode.labels, strict=True)}) == 2
        assert episode.graded[-1]


def test_training_sees_what_the_processor_makes_of_an_image(tokenizer):
    image = draw_glyph(3, 1, size=105)
    theirs = build_processor(tokenizer, 16).image_processor([image], return_tensors="pt")["pixel_values"]
    assert theirs.shape == (1, 3, EDGE, EDGE)
    torch.testing.assert_close(theirs, normalise(torch.from_numpy(to_pixels(image).copy())[None]), atol=1e-6, rtol=0)


def test_folding_leaves_a_plain_llava_with_the_same_logits(tiny, tokenizer, banks):
    features = Features(ImageEncoder(tiny.eval()), banks)
    language = TinyLanguage(tiny, 0)
    rng = np.random.default_rng(1)
    episode = character_episode(rng, 0, *features.shapes[0], pictures=3, ways=2, names=unseen_names)
    batch = Encoder(tokenizer, 4).batch([episode], [prompts.chat_wording("What is it?")], [True])
    with torch.no_grad():
        ours = language.head(language.states(language.embed(batch, features.look_up(batch)))[0])
        fold(tiny, language, features)
        pixels = normalise(torch.from_numpy(banks.characters[0].reshape(-1, EDGE, EDGE)[episode.pictures]))
        theirs = tiny(input_ids=batch.ids, pixel_values=pixels).logits
    assert (ours - theirs).abs().max() < 0.05 * ours.abs().max()  # features are kept in half precision


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = control.should_save = state.global_step == self.step


def test_an_interrupted_run_ends_with_the_same_weights(tokenizer, banks, tmp_path, monkeypatch):
    """The vision tower, and a language model whose stages change on the way, stopped in the middle of a stage."""
    from kshot.training import run as module

    shape = TinyShape(vision_width=32, vision_layers=1, width=32, layers=3, head_dim=8)
    weights = dict.fromkeys(("prototype", "hint", "agreement", "values", "match", "attention", "closed"), 0.5)
    everything = Mixture(tokens=300, balanced=True, **weights)
    original = module.KshotTrainer

    def train(name, *, stop_vision=None, stop_language=None):
        stops = iter((stop_vision, stop_language))

        class Stopping(original):
            def __init__(self, *args, callbacks=(), **options):
                stop = next(stops)
                super().__init__(*args, callbacks=[*callbacks, *([StopAt(stop)] if stop else [])], **options)

        monkeypatch.setattr(module, "KshotTrainer", Stopping)
        model = build_model(shape, tokenizer, seed=0)
        objective = VisionObjective(model, banks, steps=4, classes=4, scenes=8)
        train_vision(objective, tmp_path / name / "vision", snapshots=(2,))
        if stop_vision:
            return None
        assert (tmp_path / name / "vision" / "vision-2.safetensors").exists()
        language = LanguageObjective(
            model,
            tokenizer,
            lambda early: Features(ImageEncoder(model), banks),
            [
                Stage(3, Mixture(tokens=300)),
                Stage(4, everything),
            ],
            single_steps=1,
            short_steps=1,
        )
        train_language(language, tmp_path / name / "language", lambda step: 1e-3)
        return {k: v.clone() for k, v in model.state_dict().items()}

    once = train("once")
    train("twice", stop_vision=2)
    train("twice", stop_language=2)
    twice = train("twice")
    assert all(torch.equal(once[key], twice[key]) for key in once)


def test_new_layers_change_nothing_until_they_are_trained(tokenizer):
    model = build_model(TinyShape(vision_width=32, vision_layers=1, width=32, layers=3, head_dim=8), tokenizer, seed=0)
    ids = torch.arange(10)[None]
    before = model(input_ids=ids).logits
    deepen(model, at=2, count=2)
    torch.testing.assert_close(model(input_ids=ids).logits, before)
    assert model.config.text_config.num_hidden_layers == 5
    assert [layer.self_attn.layer_idx for layer in model.model.language_model.layers] == [0, 1, 2, 3, 4]
    narrow(model, 60)
    after = model(input_ids=ids).logits
    assert not torch.equal(after, before)
    assert model.generate(input_ids=ids, max_new_tokens=3, do_sample=False).shape[1] > 10


def test_blending_moves_each_weight_once_although_the_head_is_tied(tokenizer):
    shape = TinyShape(vision_width=32, vision_layers=1, width=32, layers=2, head_dim=8)
    language = TinyLanguage(build_model(shape, tokenizer, seed=0), seed=0)
    before = {name: weight.detach().clone() for name, weight in language.named_parameters()}
    with torch.no_grad():
        for weight in language.parameters():
            weight.add_(1)
    blend(language, before, share=0.25)
    assert language.head.weight is language.decoder.embed_tokens.weight
    for name, weight in language.named_parameters():
        torch.testing.assert_close(weight, before[name] + 0.25)


def test_random_forms_ask_before_and_behind_the_picture_and_leave_the_held_out_forms_alone():
    rng = np.random.default_rng(0)
    forms = [prompts.random_wording(rng, forms=0.7) for _ in range(2000)]
    asked = [(question in f.before, question in f.middle) for f in forms for question in prompts.QUESTIONS if question]
    assert sum(before for before, _ in asked) > 100
    assert sum(behind for _, behind in asked) > 100
    held_out = [prompts.plain_wording(t, q) for t in prompts.HELD_OUT for q in (*prompts.QUESTIONS, "")]
    assert not {(f.before, f.middle) for f in forms} & {(f.before, f.middle) for f in held_out}


def test_single_token_names_are_single_tokens(tokenizer):
    names = single_token_namer(tokenizer)(np.random.default_rng(0), 20)
    assert len(set(names)) == 20
    assert all(len(tokenizer(n, add_special_tokens=False)["input_ids"]) == 1 for n in names)


def test_the_whole_recipe_writes_a_folder_that_loads_and_answers(tmp_path):
    folder = train_tiny(str(tmp_path / "tiny"), quick=True)
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(folder)
    assert processor.tokenizer.padding_side == "left"
    ends = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    assert set(ends) == {processor.tokenizer.eos_token_id, processor.tokenizer.convert_tokens_to_ids("<|end|>")}
    assert sum(f.stat().st_size for f in Path(folder).iterdir()) < 6_000_000
    images = [draw_glyph(1, 0), Image.new("L", (9, 5)), draw_glyph(1, 1)]
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "blon"}]},
    ]
    text = processor.apply_chat_template([*messages, *messages, messages[0]], add_generation_prompt=True)
    inputs = processor(images=images, text=text, return_tensors="pt")
    assert (inputs["input_ids"][0] == processor.tokenizer.bos_token_id).sum() == 1
    out = model.generate(**inputs, max_new_tokens=3)
    assert out.shape[1] > inputs["input_ids"].shape[1]


def test_the_embedded_model_learns_from_its_context(tmp_path):
    archive = tmp_path / "characters.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for c, i in itertools.product(range(24), range(6)):
            data = io.BytesIO()
            draw_glyph(c, i, size=105).save(data, "PNG")
            file.writestr(f"images/invented/character{c:02d}/{i:02d}.png", data.getvalue())
    bench = Bench(EMBEDDED, archive, scenes=40)
    rng = np.random.default_rng(0)
    episodes = [bench.characters(rng, 9, 2) for _ in range(60)]
    shuffled = [shuffle_labels(rng, e) for e in episodes]
    wording = prompts.chat_wording("What is it?")
    right, control = bench.answers(episodes, wording), bench.answers(shuffled, wording)
    assert np.mean(right) >= 0.9
    assert np.mean(control) <= 0.7
    mixed = [*episodes[:8], *shuffled[:8]]
    assert bench.generated(mixed, wording) == [*right[:8], *control[:8]]


def test_interval_contains_the_share_and_narrows():
    low, high = wilson(45, 50)
    assert 0 < low < 0.9 < high < 1
    assert np.subtract(*wilson(900, 1000)[::-1]) < high - low


def _written_episode(instruction: str | None = None) -> Episode:
    picture = as_picture(Image.new("RGB", (8, 8)))
    examples = [
        Example(id=str(i), images=(picture,), question="What is it?", answer=a)
        for i, a in enumerate(("blon", "kip", "blon"))
    ]
    return Episode(demonstrations=tuple(examples[:2]), query=examples[2], instruction=instruction)


def _written(wording: prompts.Wording, labels: list[str]) -> str:
    shown = "".join(f"{wording.before}<image>{wording.middle}{label}{wording.after}" for label in labels)
    return wording.start + shown.removeprefix(wording.opened) + f"{wording.query_before}<image>{wording.query_middle}"
