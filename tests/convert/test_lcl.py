"""The converter of Link-Context Learning checkpoints, against what upstream computes (tests.convert.upstream)."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers as hf
from safetensors import safe_open

from kshot import Episode, Example, load_model
from kshot.cli import COMMANDS, _of_kind, build_parser, main
from kshot.convert import CONVERSIONS
from kshot.convert.lcl import convert_lcl
from kshot.data.concepts import LINK
from kshot.errors import ContextTooLong, KshotError, ModelError, OptionError
from kshot.models.image_mode import HiddenPicture
from kshot.prompt import Template
from tests.convert import upstream
from tests.convert.upstream import MARKS, PATCHES, build, pixels
from tests.convert.vocabulary import PIECES, slow_ids
from tests.models.tiny import picture

IDS = {mark: len(PIECES) + number for number, mark in enumerate(MARKS)}
TEMPLATE = Template(demonstration="<image>USER: {question} ASSISTANT: {answer}", separator="\n")


def from_pretrained(folder: Path, **options):
    """The model, plainly loaded, with nothing missing and nothing left over."""
    model, report = hf.LlavaForConditionalGeneration.from_pretrained(folder, output_loading_info=True, **options)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    return model.eval()


def prompt_ids(images: int) -> torch.Tensor:
    """A prompt with images between words of many kinds."""
    patch, start, end = IDS.values()
    rows = [1]
    for number in range(images):
        rows += [260 + number, 270, start, *[patch] * PATCHES, end, 280 + number, 2]
    return torch.tensor([rows])


FORMS = {
    "bin": {},
    "bin in shards, safetensors index": {"shards": 3},
    "safetensors": {"form": "safetensors", "words": "fast", "vision_only": True},
    "safetensors in shards": {"form": "safetensors", "shards": 2, "tables": False, "layer": -1},
    "a first layer": {"tables": False, "layer": 1, "words": "fast"},
}


@pytest.mark.parametrize("options", FORMS.values(), ids=FORMS)
def test_logits_are_upstreams(tmp_path, options):
    source = build(tmp_path, **options)
    out = convert_lcl(source.folder, vision=source.clip, out=tmp_path / "out")
    assert out == tmp_path / "out"
    model = from_pretrained(out)
    for images in (1, 3):
        ids, seen = prompt_ids(images), pixels(source.clip, [picture(i) for i in range(images)])
        with torch.no_grad():
            found = model(input_ids=ids, pixel_values=seen).logits
        assert (found - source.logits(ids, seen)).abs().max() <= 1e-6


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return build(tmp_path_factory.mktemp("upstream"))


@pytest.fixture(scope="module")
def converted(source, tmp_path_factory):
    """The converted folder in both image modes."""
    place = tmp_path_factory.mktemp("converted")
    return {
        mode: convert_lcl(source.folder, vision=source.clip, out=place / mode, image_mode=mode)
        for mode in ("all", "last_only")
    }


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_weights_keep_their_type_and_every_bit(tmp_path, dtype):
    source = build(tmp_path, dtype=dtype, shards=2)
    out = convert_lcl(source.folder, vision=source.clip, out=tmp_path / "out", shard_size=5e-5)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 3
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    written = {}
    for file in files:
        with safe_open(out / file, "pt") as held:
            written |= {name: held.get_tensor(name) for name in held.keys()}  # noqa: SIM118
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in written.values())
    for name, tensor in source.state.items():
        if "inv_freq" in name:
            continue
        new = name.replace("model.", "model.language_model.").replace(
            "model.language_model.mm_projector", "model.multi_modal_projector.linear_1"
        )
        assert torch.equal(written[new], tensor), name
        assert written[new].dtype == dtype
    linear_2 = "model.multi_modal_projector.linear_2"
    assert torch.equal(written[f"{linear_2}.weight"], torch.eye(upstream.WIDTH, dtype=dtype))
    assert torch.equal(written[f"{linear_2}.bias"], torch.zeros(upstream.WIDTH, dtype=dtype))
    assert not any("vision_model" in name or "inv_freq" in name for name in written)
    assert from_pretrained(out).dtype == dtype


def test_the_configuration(converted):
    config = json.loads((converted["all"] / "config.json").read_text())
    assert config["architectures"] == ["LlavaForConditionalGeneration"]
    assert config["image_token_index"] == IDS["<im_patch>"]
    assert config["image_seq_length"] == PATCHES
    assert config["vision_feature_layer"] == -2
    assert config["vision_feature_select_strategy"] == "default"
    assert config["projector_hidden_act"] == "linear"
    assert config["multimodal_projector_bias"] is True
    assert config["tie_word_embeddings"] is False
    assert config["kshot_image_mode"] == "all"
    text = config["text_config"]
    assert (text["vocab_size"], text["rms_norm_eps"], text["pad_token_id"]) == (len(PIECES) + 3, 1e-5, 0)
    assert text["max_position_embeddings"] == 64
    assert not any(key.startswith("mm_") for key in text)
    assert config["vision_config"]["image_size"] == upstream.IMAGE


TEXTS = [
    "USER: What is in the image <im_start><im_patch><im_end>? ASSISTANT:",
    " USER: What is in the image <im_start> <im_patch> <im_end> ? ASSISTANT: the stone.</s>",
    "What is it?</s><s> USER: like an airstone </s> a",
    "<im_start><im_patch><im_end>\nß  two   spaces",
    "",
    "an <im_end><im_start> an",
]


@pytest.mark.parametrize("text", TEXTS)
def test_token_ids_are_those_of_the_slow_tokenizer(converted, text):
    tokenizer = hf.AutoTokenizer.from_pretrained(converted["all"])
    assert tokenizer(text)["input_ids"] == [1, *slow_ids(text, IDS)]


def test_a_fast_tokenizer_gives_the_same_ids(tmp_path, converted):
    source = build(tmp_path, words="fast")
    out = convert_lcl(source.folder, vision=source.clip, out=tmp_path / "out")
    first, second = hf.AutoTokenizer.from_pretrained(out), hf.AutoTokenizer.from_pretrained(converted["all"])
    for text in TEXTS:
        assert first(text)["input_ids"] == second(text)["input_ids"]
    assert (first.pad_token, first.bos_token, first.eos_token, first.padding_side) == ("<unk>", "<s>", "</s>", "left")


def test_the_processor_expands_images_and_chats_as_vicuna(converted):
    processor = hf.AutoProcessor.from_pretrained(converted["all"])
    turn = {"role": "user", "content": [{"type": "text", "text": "What is in the image "}, {"type": "image"}]}
    said = {"role": "assistant", "content": [{"type": "text", "text": "a stone."}]}
    text = processor.apply_chat_template([turn, said, turn], add_generation_prompt=True)
    system = (
        "A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions."
    )
    image = "<im_start><im_patch><im_end>"
    assert text == (
        f"{system} USER: What is in the image {image} ASSISTANT: a stone.</s>USER: What is in the image {image} ASSISTANT:"
    )
    own = processor.apply_chat_template([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}])
    assert own == "Be brief. USER: Hi "
    ids = processor(text=f"USER: {image}", images=[picture(0)])["input_ids"][0]
    assert ids[-PATCHES - 2 :] == [IDS["<im_start>"], *[IDS["<im_patch>"]] * PATCHES, IDS["<im_end>"]]


@pytest.mark.parametrize("size", [(28, 28), (60, 33), (31, 90), (300, 20)])
def test_images_become_white_squares(tmp_path, converted, source, size):
    image = picture(3, size)
    vlm = load_model(converted["all"])
    found = vlm.processor.image_processor([image], return_tensors="pt")["pixel_values"]
    assert torch.equal(found, pixels(source.clip, [image]))
    sent = pickle.loads(pickle.dumps(vlm.processor.image_processor))  # as workers of a loader get it
    assert torch.equal(sent([image], return_tensors="pt")["pixel_values"], found)
    vlm.processor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "processor_config.json").read_text())
    assert saved == json.loads((converted["all"] / "processor_config.json").read_text())
    # Without kshot: the same geometry, in another colour.
    plain = hf.AutoImageProcessor.from_pretrained(converted["all"])([image], return_tensors="pt")["pixel_values"]
    assert plain.shape == found.shape
    assert torch.equal(plain, found) == (size[0] == size[1])


UPSTREAM = Template(
    instruction="You should find the causal relationship between the examples I am going to show you. "
    "And use that to answer to the [FINAL QUESTION].",
    demonstration=' USER: [BEGIN EXAMPLE] {question} <image>? ASSISTANT: there is "{answer}" in the image. [END EXAMPLE]',
    query="[FINAL QUESTION]:  USER: {question} <image>? ASSISTANT:",
    separator="<s>",
)
"""Upstream's episodes as docs/how_to/convert_lcl.md gives them: each turn begins with ``<s>``."""


def test_episodes_as_upstream_wrote_and_tokenized_them(converted):
    shown = tuple(
        Example(picture(i), "What is in the image", name) for i, name in enumerate(["stone", "red", "airstone"])
    )
    query = Example(picture(9), "Based on the previous examples, what is in the image")
    encoded = load_model(converted["all"]).encode(Episode(shown, query), UPSTREAM, "plain")
    image = "<im_start>" + "<im_patch>" * PATCHES + "<im_end>"
    turns = [
        f' USER: [BEGIN EXAMPLE] What is in the image {image}? ASSISTANT: there is "{name}" in the image. [END EXAMPLE]'
        for name in ("stone", "red", "airstone")
    ]
    turns[0] = UPSTREAM.instruction + turns[0]
    turns += [f"[FINAL QUESTION]:  USER: Based on the previous examples, what is in the image {image}? ASSISTANT:"]
    assert list(encoded.tokens.ids) == [token for turn in turns for token in [1, *slow_ids(turn, IDS)]]


@pytest.mark.parametrize("style", ["plain", "chat"])
def test_link_episodes_are_the_processors_own_prompts(converted, style):
    vlm = load_model(converted["all"])
    shown = tuple(Example(picture(i), "What is in the image", name) for i, name in enumerate(["stone", "red"]))
    one = Episode(shown, Example(picture(9), "What is in the image"))
    prompt = vlm.prompt(one, LINK, style)
    text = prompt.text("<im_patch>")
    assert text.count("What is in the image <im_start><im_patch><im_end>?") == 3
    if style == "chat":
        assert text.count("</s>USER: ") == 2
        assert text.endswith(" ASSISTANT:")
    own = vlm.processor(text=text, images=[p.load() for p in prompt.pictures])["input_ids"][0]
    assert list(vlm.encode(one, LINK, style).tokens.ids) == own


def test_a_clip_of_an_older_kind(tmp_path, converted):
    """Pickled, with tables of positions, and without, or with other, settings of its preprocessor."""
    source = build(tmp_path)
    with safe_open(source.clip / "model.safetensors", "pt") as held:
        state = {name: held.get_tensor(name) for name in held.keys()}  # noqa: SIM118
    state["vision_model.embeddings.position_ids"] = torch.arange(PATCHES + 1)[None]
    torch.save(state, source.clip / "pytorch_model.bin")
    (source.clip / "model.safetensors").unlink()
    old = {"crop_size": 56, "size": 56, "resample": 3, "feature_extractor_type": "CLIPFeatureExtractor"}
    (source.clip / "preprocessor_config.json").write_text(json.dumps(old))
    out = convert_lcl(source.folder, vision=source.clip, out=tmp_path / "out")
    notes = json.loads((out / "kshot_conversion.json").read_text())["notes"]
    assert any("crop_size is [56], but the vision tower takes 28" in note for note in notes)
    (source.clip / "preprocessor_config.json").unlink()
    other = convert_lcl(source.folder, vision=source.clip, out=tmp_path / "other")
    settings = [(folder / "processor_config.json").read_text() for folder in (converted["all"], out, other)]
    assert settings[0] == settings[1] == settings[2]
    for name in ("model.safetensors", "config.json"):
        assert (other / name).read_bytes() == (converted["all"] / name).read_bytes()


# ------------------------------------------------------------------------------------------------ image modes


def episode(shots: int, *, query: int = 9) -> Episode:
    shown = tuple(
        Example(picture(i, (40, 25 + i)), "What is it?", f"a {('stone', 'red')[i % 2]}") for i in range(shots)
    )
    return Episode(shown, Example(picture(query), "What is it?"))


@torch.no_grad()
def by_hand(source, vlm, shown: Episode, mode: str, answer: str | None = None) -> torch.Tensor:
    """Upstream's logits of an episode's prompt."""
    encoded = vlm.encode(shown, TEMPLATE, "plain", answer=answer)
    images = [p.source.load() if isinstance(p, HiddenPicture) else p.load() for p in encoded.pictures]
    return source.logits(torch.tensor([encoded.tokens.ids]), pixels(source.clip, images), shown=mode)


@pytest.mark.parametrize("mode", ["all", "last_only"])
@pytest.mark.parametrize("caches", [{}, {"feature_cache": False}, {"prefix_cache": False}, {"prefix_cache": True}])
def test_scores_are_upstreams_in_both_image_modes(source, converted, mode, caches):
    vlm = load_model(converted[mode], **caches)
    assert vlm.image_mode == mode
    episodes = [episode(3, query=9), episode(3, query=10), episode(0), episode(1)]
    names = ["a stone", "an airstone"]
    found = vlm.score(episodes, names, template=TEMPLATE, style="plain")
    again = vlm.score(episodes, names, template=TEMPLATE, style="plain")
    assert torch.tensor(found).allclose(torch.tensor(again), rtol=0, atol=1e-5)
    for row, shown in zip(found, episodes, strict=True):
        for score, name in zip(row, names, strict=True):
            encoded = vlm.encode(shown, TEMPLATE, "plain", answer=name)
            logits = by_hand(source, vlm, shown, mode, name)[0].log_softmax(-1)
            mask = encoded.tokens.answer_mask()
            wanted = sum(float(logits[i - 1, encoded.tokens.ids[i]]) for i in range(len(mask)) if mask[i])
            assert score == pytest.approx(wanted, abs=2e-5)


@pytest.mark.parametrize("mode", ["all", "last_only"])
def test_logits_of_a_prompt_are_upstreams(source, converted, mode):
    vlm = load_model(converted[mode])
    shown = episode(3)
    with torch.no_grad():
        found = vlm.model(**vlm.inputs([vlm.encode(shown, TEMPLATE, "plain")])).logits
    assert (found - by_hand(source, vlm, shown, mode)).abs().max() <= 1e-6
    other = by_hand(source, vlm, shown, "last_only" if mode == "all" else "all")
    assert (found - other).abs().max() > 1e-2


@pytest.mark.parametrize("prefix_cache", [True, False])
@pytest.mark.parametrize("num_beams", [1, 2])
def test_answers_are_upstreams(source, converted, prefix_cache, num_beams):
    vlm = load_model(converted["last_only"], prefix_cache=prefix_cache)
    episodes = [episode(3, query=9), episode(3, query=10), episode(3, query=11)]
    said = vlm.answer(episodes, template=TEMPLATE, style="plain", max_new_tokens=4, num_beams=num_beams)
    for text, shown in zip(said, episodes, strict=True):
        embedded = embeddings(source, vlm, shown)
        ids = source.llama.generate(
            inputs_embeds=embedded,
            max_new_tokens=4,
            do_sample=False,
            num_beams=num_beams,
            pad_token_id=0,
            eos_token_id=2,
        )
        assert text == vlm.tokenizer.decode(ids[0], skip_special_tokens=True)
    assert bool(vlm.reuse.statistics()["prefixes"]["misses"]) is prefix_cache


@torch.no_grad()
def embeddings(source, vlm, shown: Episode) -> torch.Tensor:
    """What upstream's decoder is given when only the last image is inserted, by hand."""
    encoded = vlm.encode(shown, TEMPLATE, "plain")
    ids = torch.tensor([encoded.tokens.ids])
    seen = pixels(source.clip, [encoded.pictures[-1].load()])
    states = source.vision(seen, output_hidden_states=True).hidden_states[-2][0, 1:]
    embedded = source.llama.get_input_embeddings()(ids).clone()
    last = torch.nonzero(ids[0] == source.patch).flatten()[-PATCHES:]
    embedded[0, last] = states @ source.state["model.mm_projector.weight"].T + source.state["model.mm_projector.bias"]
    return embedded


def test_support_images_are_not_seen_in_the_last_only_mode(converted):
    def scores(vlm, *shown: Episode):
        return vlm.score(shown, ["a stone"], template=TEMPLATE, style="plain")

    first = episode(2)
    other = Episode((first.demonstrations[0].with_(images=(picture(77),)), first.demonstrations[1]), first.query)
    for mode, seen in (("all", True), ("last_only", False)):
        a, b = scores(load_model(converted[mode]), first, other)
        assert (abs(a[0] - b[0]) > 1e-4) is seen


def test_the_last_image_may_be_a_demonstrations(source, converted):
    """A query without an image: the last image of the prompt is then in the part that queries share."""
    vlm = load_model(converted["last_only"], prefix_cache=True)
    shown = [Episode(episode(2).demonstrations, Example((), f"What is it {word}?")) for word in ("in", "like")]
    found = vlm.score(shown, ["a stone"], template=TEMPLATE, style="plain")
    for (score,), one in zip(found, shown, strict=True):
        encoded = vlm.encode(one, TEMPLATE, "plain", answer="a stone")
        logits = by_hand(source, vlm, one, "last_only", "a stone")[0].log_softmax(-1)
        mask = encoded.tokens.answer_mask()
        wanted = sum(float(logits[i - 1, encoded.tokens.ids[i]]) for i in range(len(mask)) if mask[i])
        assert score == pytest.approx(wanted, abs=2e-5)


def test_the_image_mode_can_be_chosen_when_loading(converted):
    shown = [episode(2)]
    kept = load_model(converted["last_only"]).score(shown, ["a stone"], style="chat")
    chosen = load_model(converted["all"], image_mode="last_only")
    assert chosen.score(shown, ["a stone"], style="chat") == kept
    assert chosen.describe()["image_mode"] == "last_only"
    with pytest.raises(OptionError, match="image mode"):
        load_model(converted["all"], image_mode="first")


def test_episodes_may_be_longer_than_the_configuration_says(converted):
    """Upstream trained 16 shots of 258 tokens an image on a LLaMA of 2,048 positions."""
    vlm = load_model(converted["all"])
    assert len(vlm.encode(episode(8), TEMPLATE, "plain")) > vlm.model.config.text_config.max_position_embeddings
    with pytest.raises(ContextTooLong):
        vlm.encode(episode(90), TEMPLATE, "plain")


# ------------------------------------------------------------------------------------------------ the command


def test_the_command(source, tmp_path, capsys):
    words = ["convert", "lcl", str(source.folder), "--vision", str(source.clip), "--out", str(tmp_path / "new" / "out")]
    assert main([*words, "--image-mode", "last_only"]) == 0
    said = capsys.readouterr().out
    assert "self-test passed" in said
    record = json.loads((tmp_path / "new" / "out" / "kshot_conversion.json").read_text())
    assert record["image_mode"] == "last_only"
    assert record["tokens"] == IDS
    assert record["self_test"]["passed"] is True
    assert record["self_test"]["projector"] == 0.0
    assert record["self_test"]["logits"] <= 1e-5
    assert main(words) == 2
    assert "not empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["lcm", "a"], "or 'lcl'"),
        ([], "needs a kind: lcl"),
        (["--vision", "x"], "needs a kind"),
        (["lcl", "nowhere", "--vision", "x", "--out", "y"], "no folder 'nowhere'"),
        (["lcl", "nowhere", "--vision", "x", "--out", "y", "--image-mode", "some"], "image mode 'some'"),
        (["lcl", "nowhere", "--vision", "x"], "out"),
    ],
)
def test_a_wrong_command_is_explained(capsys, monkeypatch, tmp_path, words, said):
    monkeypatch.chdir(tmp_path)
    assert main(["convert", *words]) == 2
    assert said in capsys.readouterr().err


def test_help(capsys):
    assert main(["convert", "--help"]) == 0
    assert "Link-Context Learning" in capsys.readouterr().out
    with pytest.raises(SystemExit) as left:
        main(["convert", "lcl", "--help"])
    assert left.value.code == 0
    assert "--image_mode" in capsys.readouterr().out


@pytest.mark.parametrize("kind", CONVERSIONS)
def test_every_option_of_a_conversion_is_explained(kind):
    command = _of_kind(COMMANDS["convert"], kind)
    parser = build_parser(f"convert {kind}", command, command.function())
    for action in parser._actions:
        assert action.help, f"kshot convert {kind}: {action.option_strings or action.dest} has no help text"


# ------------------------------------------------------------------------------------------------ bad input


def refused(checkpoint, out: Path, **options) -> str:
    """The message with which a conversion is refused; nothing is left behind."""
    before = sorted(out.parent.iterdir())
    with pytest.raises(KshotError) as caught:
        convert_lcl(**{"source": checkpoint.folder, "vision": checkpoint.clip, "out": out} | options)
    assert sorted(out.parent.iterdir()) == before
    assert caught.value.exit_code == 2
    return str(caught.value)


class Evil:
    def __reduce__(self):
        return os.system, ("touch evil",)


def test_pickled_code_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = build(tmp_path)
    torch.save(source.state | {"model.norm.weight": Evil()}, source.folder / "pytorch_model.bin")
    assert "pickled files can run code" in refused(source, tmp_path / "out")
    (source.folder / "pytorch_model.bin").write_bytes(pickle.dumps(Evil()))
    refused(source, tmp_path / "out")
    assert not Path("evil").exists()


def test_weights_in_the_format_of_an_old_torch(tmp_path):
    """They cannot be mapped, and would have to fit into memory."""
    source = build(tmp_path)
    torch.save(source.state, source.folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert "zip format" in refused(source, tmp_path / "out")


@pytest.mark.parametrize("form", ["bin", "safetensors"])
def test_truncated_weights(tmp_path, form):
    source = build(tmp_path, form=form)
    (path,) = source.folder.glob(f"*.{form}")
    path.write_bytes(path.read_bytes()[:-1000])
    message = refused(source, tmp_path / "out")
    assert path.name in message
    assert "truncated" in message or "damaged" in message


def test_missing_shards_are_named(tmp_path):
    source = build(tmp_path, shards=3)
    (source.folder / "pytorch_model-00002-of-00003.bin").unlink()
    assert "pytorch_model-00002-of-00003.bin" in refused(source, tmp_path / "out")
    (source.folder / "pytorch_model.bin.index.json").unlink()
    assert "index" in refused(source, tmp_path / "out")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "llama"}, "'llama'"),
        ({"model_type": "mpt", "architectures": ["MPTForCausalLM"]}, "MPTForCausalLM"),
        ({"text_config": {}, "architectures": ["LlavaForConditionalGeneration"]}, "of transformers already"),
        ({"mm_vision_select_layer": -9}, "mm_vision_select_layer is -9"),
        ({"num_hidden_layers": 3}, "missing (model.language_model.layers.2"),
        ({"intermediate_size": 50}, "where config.json makes it"),
    ],
)
def test_other_architectures(tmp_path, config, said):
    assert said in refused(build(tmp_path, **config), tmp_path / "out")


def test_a_checkpoint_without_projector(tmp_path):
    source = build(tmp_path, form="safetensors")
    state = {name: tensor for name, tensor in source.state.items() if "mm_projector" not in name}
    upstream._save(source.folder, state, "safetensors", 1)
    assert "no model.mm_projector.weight" in refused(source, tmp_path / "out")


def test_a_vision_model_of_another_width(tmp_path, monkeypatch):
    source = build(tmp_path)
    monkeypatch.setattr(upstream, "SEEN", 32)
    upstream._clip(tmp_path / "wider", True)
    message = refused(source, tmp_path / "out", vision=tmp_path / "wider")
    assert "width 32" in message
    assert "takes 24" in message
    assert "no vision model" in refused(source, tmp_path / "out", vision=tmp_path / "nowhere")
    assert "no CLIP" in refused(source, tmp_path / "out", vision=source.folder)


def test_tokens_of_an_image(tmp_path):
    """Those that only the tokenizer lacks are added at upstream's ids; without room in the embeddings they are missed by name."""
    source = build(tmp_path / "a", marks=(), words="fast")
    out = convert_lcl(source.folder, vision=source.clip, out=tmp_path / "out")
    tokenizer = hf.AutoTokenizer.from_pretrained(out)
    assert {mark: tokenizer.convert_tokens_to_ids(mark) for mark in MARKS} == IDS
    record = json.loads((out / "kshot_conversion.json").read_text())
    assert any("<im_start>" in note for note in record["notes"])
    narrow = build(tmp_path / "b", marks=("<im_patch>",), rows=len(PIECES) + 1)
    assert "lacks <im_start>, <im_end>" in refused(narrow, tmp_path / "out2")


def test_tokens_named_in_the_tokenizers_configuration(tmp_path, converted):
    """Where newer versions of transformers keep them."""
    source = build(tmp_path)
    (source.folder / "added_tokens.json").unlink()
    path = source.folder / "tokenizer_config.json"
    listed = {str(number): {"content": mark, "lstrip": False, "special": True} for mark, number in IDS.items()}
    listed |= {"1": {"content": "<s>", "special": True}}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"added_tokens_decoder": listed}))
    out = convert_lcl(source.folder, vision=source.clip, out=tmp_path / "out")
    assert (out / "tokenizer.json").read_text() == (converted["all"] / "tokenizer.json").read_text()


def test_a_tokenizer_of_another_checkpoint(tmp_path):
    source = build(tmp_path)
    (source.folder / "added_tokens.json").write_text(json.dumps({mark: 5000 + i for i, mark in enumerate(MARKS)}))
    assert "5000" in refused(source, tmp_path / "out")
    (source.folder / "tokenizer.model").unlink()
    assert "no tokenizer" in refused(source, tmp_path / "out")


def test_a_full_disk_is_noticed_before_anything_is_written(source, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda place: SimpleNamespace(free=1000))
    assert "GB free" in refused(source, tmp_path / "out")


def test_out_and_mode_are_looked_at_first(source, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").write_text("kept")
    assert "not empty" in refused(source, tmp_path / "out")
    assert "image mode" in refused(source, tmp_path / "new", image_mode="none")
    assert "no folder" in refused(source, tmp_path / "new", source=tmp_path / "nowhere")
    assert (tmp_path / "out" / "file").read_text() == "kept"


def test_a_model_that_cannot_leave_out_images():
    from kshot.models import VLM
    from tests.models.tiny import build as build_tiny

    with pytest.raises(ModelError, match="cannot be shown the last image only"):
        VLM(*build_tiny("qwen2_vl"), image_mode="last_only")
