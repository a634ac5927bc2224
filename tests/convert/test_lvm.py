"""Large vision models from EasyLM's streams: against EasyLM's maths and the msgpack library, and back without a bit changed."""

from __future__ import annotations

import contextlib
import json

import ml_dtypes
import msgpack
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from kshot import load_model
from kshot.cli import main
from kshot.convert import easylm
from kshot.convert.easylm import EasyLMFile, write_easylm
from kshot.convert.lvm import convert_easylm, convert_lvm
from kshot.convert.lvm_weights import halves_from_pairs, pairs_from_halves
from kshot.errors import KshotError, ModelError, OptionError
from kshot.models.rope_table import rope_table_of, use_rope_table

LAYERS, HIDDEN, INNER, HEADS, CODES, SPARE = 2, 32, 48, 4, 16, 5


def weights(kv_heads=HEADS, seed=0, scale=0.3):
    """A model in EasyLM's names and shapes."""
    random = np.random.default_rng(seed)
    narrow = HIDDEN // HEADS * kv_heads

    def drawn(*shape):
        return (random.standard_normal(shape) * scale).astype(np.float32)

    held = {("transformer", "wte", "embedding"): drawn(CODES + SPARE, HIDDEN)}
    for layer in range(LAYERS):
        at = ("transformer", "h", str(layer))
        held |= {
            (*at, "attention", "wq", "kernel"): drawn(HIDDEN, HIDDEN),
            (*at, "attention", "wk", "kernel"): drawn(HIDDEN, narrow),
            (*at, "attention", "wv", "kernel"): drawn(HIDDEN, narrow),
            (*at, "attention", "wo", "kernel"): drawn(HIDDEN, HIDDEN),
            (*at, "feed_forward", "w1", "kernel"): drawn(HIDDEN, INNER),
            (*at, "feed_forward", "w2", "kernel"): drawn(INNER, HIDDEN),
            (*at, "feed_forward", "w3", "kernel"): drawn(HIDDEN, INNER),
            (*at, "attention_norm", "kernel"): 1 + drawn(HIDDEN),
            (*at, "ffn_norm", "kernel"): 1 + drawn(HIDDEN),
        }
    return held | {
        ("transformer", "ln_f", "kernel"): 1 + drawn(HIDDEN),
        ("lm_head", "kernel"): drawn(HIDDEN, CODES + SPARE),
    }


def flax_bytes(value, limit=2**30):
    """What Flax's to_bytes writes: an extension of msgpack; arrays above a limit in pieces."""

    def extension(array):
        packed = msgpack.packb((array.shape, array.dtype.name, array.tobytes("C")), use_bin_type=True)
        return msgpack.ExtType(1 if array.ndim else 3, packed)

    def pieces(array):
        flat, step = array.reshape(-1), max(1, limit // array.dtype.itemsize)
        parts = [flat[start : start + step] for start in range(0, flat.size, step)]
        return {
            "__msgpack_chunked_array__": True,
            "shape": {str(n): size for n, size in enumerate(array.shape)},
            "chunks": {str(n): extension(part) for n, part in enumerate(parts)},
        }

    def walk(value):
        if isinstance(value, dict):
            return {key: walk(inner) for key, inner in value.items()}
        if isinstance(value, np.ndarray):
            return pieces(value) if value.nbytes > limit else extension(value)
        return value

    return msgpack.packb(walk(value), strict_types=True)


def write_stream(path, held, prefix=(), others=(), limit=2**30):
    """As EasyLM's StreamingCheckpointer: pairs of a key and Flax's bytes."""
    packer = msgpack.Packer()
    with path.open("wb") as file:
        for key, value in [*others, *(((*prefix, *key), value) for key, value in held.items())]:
            file.write(packer.pack((key, flax_bytes(value, limit))))
    return path


def reference(held, ids, kv_heads=HEADS):
    """EasyLM's LLaMA in float32: neighbouring channels of a head are one complex number, which its position turns."""
    t = {key: torch.from_numpy(np.asarray(value, dtype=np.float32)) for key, value in held.items()}
    size = HIDDEN // HEADS
    angles = torch.outer(torch.arange(len(ids)).float(), 10000.0 ** -(torch.arange(0, size, 2).float() / size))
    turn = torch.polar(torch.ones_like(angles), angles)[:, None]

    def norm(x, weight):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * weight

    def turned(x):
        return torch.view_as_real(torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2)) * turn).flatten(-2)

    x = t["transformer", "wte", "embedding"][ids]
    for layer in range(LAYERS):
        own = {key[3:-1]: value for key, value in t.items() if key[1:3] == ("h", str(layer))}
        h = norm(x, own["attention_norm",])
        q = turned((h @ own["attention", "wq"]).view(-1, HEADS, size))
        k = turned((h @ own["attention", "wk"]).view(-1, kv_heads, size)).repeat_interleave(HEADS // kv_heads, 1)
        v = (h @ own["attention", "wv"]).view(-1, kv_heads, size).repeat_interleave(HEADS // kv_heads, 1)
        scores = torch.einsum("qhd,khd->hqk", q, k) / size**0.5
        scores = scores.masked_fill(torch.ones(len(ids), len(ids)).triu(1).bool(), -torch.inf).softmax(-1)
        x = x + torch.einsum("hqk,khd->qhd", scores, v).flatten(1) @ own["attention", "wo"]
        h = norm(x, own["ffn_norm",])
        x = x + (F.silu(h @ own["feed_forward", "w1"]) * (h @ own["feed_forward", "w3"])) @ own["feed_forward", "w2"]
    return norm(x, t["transformer", "ln_f", "kernel"]) @ t["lm_head", "kernel"]


def converted(tmp_path, source, **options):
    return convert_lvm(source, out=tmp_path / "out", **{"codes": CODES, "heads": HEADS} | options)


@pytest.mark.parametrize("kv_heads", [HEADS, 2, 1])
def test_logits_are_those_of_easylm(kv_heads, tmp_path):
    held = weights(kv_heads)
    folder = converted(tmp_path, write_stream(tmp_path / "streaming_params", held))
    model = LlamaForCausalLM.from_pretrained(folder).eval()
    ids = torch.randint(0, CODES + SPARE, (40,), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = model(ids[None]).logits[0]
    expected = reference(held, ids, kv_heads)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert model.config.num_key_value_heads == kv_heads


def test_without_the_permutation_logits_would_differ(tmp_path):
    held = weights()
    folder = converted(tmp_path, write_stream(tmp_path / "streaming_params", held))
    model = LlamaForCausalLM.from_pretrained(folder).eval()
    ids = torch.arange(CODES)
    for layer, block in enumerate(model.model.layers):
        block.self_attn.q_proj.weight.data = torch.from_numpy(
            held["transformer", "h", str(layer), "attention", "wq", "kernel"].T
        )
    with torch.no_grad():
        assert (model(ids[None]).logits[0] - reference(held, ids)).abs().max() > 0.1


@pytest.mark.parametrize(
    ("prefix", "layout"), [((), "params"), (("params", "params"), "train_state"), (("params",), None)]
)
def test_a_round_trip_changes_no_bit(prefix, layout, tmp_path):
    held = {key: value.astype(ml_dtypes.bfloat16) for key, value in weights().items()}
    others = []
    if layout == "train_state":  # its optimiser and counters stand in the same file
        others = [(("step",), np.asarray(7, np.int32)), (("opt_state", "0", "count"), np.asarray(3))]
        others += [(("opt_state", "0", "mu", "params", *key), value * 0) for key, value in held.items()] + [
            (("a",), None)
        ]
    source = write_stream(tmp_path / "source", held, prefix, others)
    folder = converted(tmp_path, source)
    assert {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()} == {torch.bfloat16}
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    back = convert_easylm(folder, out=tmp_path / "back", layout=layout or "params")
    with back.open("rb") as file:  # read by the msgpack library, not by our own reader
        found = {tuple(key): msgpack.unpackb(value) for key, value in msgpack.Unpacker(file, max_buffer_size=0)}
    prefix = prefix if layout else ()
    assert {key[len(prefix) :] for key in found} == set(held)
    for key, wanted in held.items():
        code, data = found[*prefix, *key]
        shape, name, values = msgpack.unpackb(data)
        assert (code, tuple(shape), name, values) == (1, wanted.shape, "bfloat16", wanted.tobytes())


def test_a_nested_map_as_flax_saves_it(tmp_path):
    held = weights()
    tree: dict = {}
    for key, value in held.items():
        place = tree
        for part in ("params", *key[:-1]):
            place = place.setdefault(part, {})
        place[key[-1]] = value
    (tmp_path / "flax").write_bytes(flax_bytes(tree, limit=2000))  # most in pieces
    nested = converted(tmp_path, f"flax_params::{tmp_path / 'flax'}")
    stream = write_stream(tmp_path / "streaming_params", held)
    plain = convert_lvm(f"params::{stream}", out=tmp_path / "plain", codes=CODES, heads=HEADS)
    assert (nested / "model.safetensors").read_bytes() == (plain / "model.safetensors").read_bytes()


def test_ids_end_no_picture(tmp_path):
    folder = converted(tmp_path, write_stream(tmp_path / "streaming_params_100", weights()))
    config, generation = LlamaConfig.from_pretrained(folder), GenerationConfig.from_pretrained(folder)
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (CODES, CODES + 1, CODES + 2)
    assert (generation.bos_token_id, generation.eos_token_id, generation.pad_token_id) == (CODES, None, CODES + 2)
    model = LlamaForCausalLM.from_pretrained(folder)
    for code in range(CODES):
        model.lm_head.weight.data[code] = model.lm_head.weight.data[0]
    made = model.generate(torch.zeros(4, 3, dtype=torch.long), max_new_tokens=24, do_sample=True, top_k=0)
    assert made.shape == (4, 27)
    assert int(made.max()) < CODES


def test_the_published_folder_is_put_right(tmp_path):
    """Ordinary codes as begin and end, no padding, the default context, float16."""
    plain = converted(tmp_path, write_stream(tmp_path / "streaming_params", weights()), dtype="float16")
    source = tmp_path / "published"
    LlamaForCausalLM.from_pretrained(plain).save_pretrained(source, max_shard_size="20KB")
    config = json.loads((source / "config.json").read_text())
    config |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None, "max_position_embeddings": 2048}
    (source / "config.json").write_text(json.dumps(config))
    (source / "generation_config.json").write_text(json.dumps({"bos_token_id": 1, "eos_token_id": 2}))
    folder = convert_lvm(source, out=tmp_path / "right", codes=CODES)
    made = LlamaConfig.from_pretrained(folder)
    assert (made.bos_token_id, made.eos_token_id, made.pad_token_id) == (CODES, CODES + 1, CODES + 2)
    assert made.max_position_embeddings == 4096
    assert GenerationConfig.from_pretrained(folder).eos_token_id is None
    before, after = load_file(plain / "model.safetensors"), load_file(folder / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    notes = json.loads((folder / "kshot_conversion.json").read_text())["notes"]
    assert any("1 is now 16, 2 is now 17, None is now 18" in note for note in notes)
    assert any("2,048 is now 4,096" in note for note in notes)


def test_the_tokenizer_lies_beside_the_weights(tmp_path):
    from kshot.visual.tokenizer import VisualTokenizer
    from tests.visual.tiny import tiny_vq

    tokenizer = VisualTokenizer(tiny_vq(codes=CODES))
    tokenizer.save_pretrained(tmp_path / "vq")
    source = write_stream(tmp_path / "s", weights())
    folder = convert_lvm(source, out=tmp_path / "out", tokenizer=tmp_path / "vq", heads=HEADS)  # codes: the tokenizer's
    model = load_model(folder)
    assert model.processor.tokenizer.fingerprint == tokenizer.fingerprint
    assert model.processor.vocab_size == model.model.config.vocab_size == CODES + SPARE
    assert json.loads((folder / "kshot_conversion.json").read_text())["tokenizer"] == tokenizer.fingerprint
    with pytest.raises(OptionError, match="the tokenizer has 16"):
        convert_lvm(source, out=tmp_path / "no", tokenizer=tmp_path / "vq", heads=HEADS, codes=12)
    VisualTokenizer(tiny_vq(codes=64)).save_pretrained(tmp_path / "large")
    with pytest.raises(ModelError, match="trained on another tokenizer"):
        convert_lvm(source, out=tmp_path / "no", tokenizer=tmp_path / "large", heads=HEADS)
    released = weights()
    for key, shape in ((("transformer", "wte", "embedding"), (8292, HIDDEN)), (("lm_head", "kernel"), (HIDDEN, 8292))):
        assert key in released
        released[key] = np.zeros(shape, dtype=released[key].dtype)
    lvm = write_stream(tmp_path / "lvm", released)
    with pytest.raises(ModelError, match=r"vocabulary of 8,292, .* but the tokenizer has 16"):
        convert_lvm(lvm, out=tmp_path / "no", tokenizer=tmp_path / "vq", heads=HEADS)
    assert not (tmp_path / "no").exists()
    # a model's folder is a tokenizer's as well
    again = convert_lvm(folder, out=tmp_path / "again", tokenizer=folder)
    assert (again / "vq" / "config.json").exists()


def test_the_table_of_angles_is_kept(tmp_path):
    folder = converted(tmp_path, write_stream(tmp_path / "s", weights()), rope_table_dtype="bfloat16")
    model = LlamaForCausalLM.from_pretrained(folder)
    use_rope_table(model)
    assert rope_table_of(model) == "bfloat16"


def test_other_types_and_shards(tmp_path):
    source = write_stream(tmp_path / "s", weights())
    folder = converted(tmp_path, source, dtype="bfloat16", shard_size=1e-5)
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    model = LlamaForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    embedding = weights()["transformer", "wte", "embedding"]
    assert torch.equal(model.model.embed_tokens.weight, torch.from_numpy(embedding).bfloat16())
    huge = weights() | {("lm_head", "kernel"): np.full((HIDDEN, CODES + SPARE), 1e6, np.float32)}
    with pytest.raises(OptionError, match="too large"):
        convert_lvm(write_stream(tmp_path / "h", huge), out=tmp_path / "x", codes=CODES, heads=HEADS, dtype="float16")
    assert not (tmp_path / "x").exists()


def test_upstreams_shapes_need_no_heads(tmp_path):
    from kshot.models.visual_presets import PRESETS

    preset = PRESETS["debug"]
    wide = {"hidden": preset.hidden, "inner": preset.inner}
    held = {("transformer", "wte", "embedding"): np.zeros((8292, wide["hidden"]), ml_dtypes.bfloat16)}
    for layer in range(preset.layers):
        for key, value in weights().items():
            if key[1:3] == ("h", "0"):
                shape = [{HIDDEN: wide["hidden"], INNER: wide["inner"]}[size] for size in value.shape]
                held["transformer", "h", str(layer), *key[3:]] = np.zeros(shape, ml_dtypes.bfloat16)
    held |= {
        ("transformer", "ln_f", "kernel"): np.ones(wide["hidden"], ml_dtypes.bfloat16),
        ("lm_head", "kernel"): np.zeros((wide["hidden"], 8292), ml_dtypes.bfloat16),
    }
    config = LlamaConfig.from_pretrained(convert_lvm(write_stream(tmp_path / "s", held), out=tmp_path / "o"))
    assert (config.num_attention_heads, config.vocab_size, config.eos_token_id) == (4, 8292, 8193)


def test_what_is_wrong_is_named(tmp_path):
    source = write_stream(tmp_path / "streaming_params", weights())
    good = source.read_bytes()

    def refused(error, says, place=source, **options):
        with pytest.raises(error, match=says):
            convert_lvm(place, out=tmp_path / "no", **{"codes": CODES, "heads": HEADS} | options)
        assert not (tmp_path / "no").exists()

    def stream(name, held):
        return write_stream(tmp_path / name, held)

    refused(OptionError, "--heads", heads=None)
    refused(OptionError, "cannot be divided", heads=5)
    refused(OptionError, "--heads 0", heads=0)
    refused(OptionError, "--context 0", context=0)
    refused(OptionError, "--codes 0", codes=0)
    refused(OptionError, "shard_size is inf", shard_size=float("inf"))
    refused(ModelError, "vocabulary of 21", codes=None)
    refused(ModelError, "no room", codes=CODES + 3)
    refused(OptionError, "unknown dtype", dtype="int8")
    refused(ModelError, "no file or folder", tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    refused(ModelError, "neither config.json", tmp_path / "empty")
    (tmp_path / "several").mkdir()
    for name in ("streaming_params_1", "streaming_train_state"):
        (tmp_path / "several" / name).write_bytes(good)
    refused(ModelError, "streaming_params_1, streaming_train_state", tmp_path / "several")
    held = weights()
    less = {key: value for key, value in held.items() if key[-2] != "w2"}
    refused(ModelError, "transformer/h/0/feed_forward/w2/kernel", stream("less", less))
    gptj = {(*key[:-1], "bias"): value for key, value in held.items() if key[-2] == "wq"}
    refused(ModelError, "another architecture.*wq/bias", stream("more", held | gptj))
    refused(ModelError, "no transformer/wte/embedding, but model/x", stream("other", {("model", "x"): np.zeros(3)}))
    odd = held | {("transformer", "h", "1", "feed_forward", "w2", "kernel"): np.zeros((INNER + 1, HIDDEN), np.float32)}
    refused(ModelError, r"h/1/feed_forward/w2/kernel gives a weight \[32, 49\], where \[32, 48\]", stream("odd", odd))
    whole = held | {("lm_head", "kernel"): np.zeros((HIDDEN, CODES + SPARE), np.int32)}
    refused(ModelError, "int32, which is no type", stream("whole", whole))
    (tmp_path / "text").write_text('{"tokens": "none"}')
    refused(ModelError, "no checkpoint of EasyLM", tmp_path / "text")
    (tmp_path / "nothing").touch()
    refused(ModelError, "cannot be read", tmp_path / "nothing")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(OptionError, match="not empty"):
        convert_lvm(source, out=tmp_path / "out", codes=CODES, heads=HEADS)


def test_other_folders_are_refused(tmp_path):
    folder = tmp_path / "gpt2"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}')
    with pytest.raises(ModelError, match=r"'gpt2', not 'llama' \(GPT2LMHeadModel"):
        convert_lvm(folder, out=tmp_path / "out")
    good = converted(tmp_path, write_stream(tmp_path / "s", weights()))
    held = load_file(good / "model.safetensors")
    save_file({name: held[name] for name in held if "layers.1.mlp" not in name}, good / "model.safetensors")
    with pytest.raises(ModelError, match=r"not complete.*layers\.1\.mlp\.down_proj"):
        convert_lvm(good, out=tmp_path / "other", codes=CODES)


def test_a_truncated_stream_names_the_key(tmp_path):
    whole = write_stream(tmp_path / "s", weights()).read_bytes()
    key = b"".join(msgpack.packb(part) for part in ("transformer", "h", "1", "attention", "wq", "kernel"))
    (tmp_path / "cut").write_bytes(whole[: whole.index(key) + len(key) + 100])
    with pytest.raises(ModelError, match="truncated: it ends within transformer/h/1/attention/wq/kernel"):
        converted(tmp_path, tmp_path / "cut")


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_damaged_file_is_more_than_an_error(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("damaged") / "s"
    small = {("a", str(n)): np.arange(n, dtype=np.float32) for n in range(4)}
    whole = bytearray(write_stream(path, small, limit=8).read_bytes())
    if data.draw(st.booleans()):
        whole = whole[: data.draw(st.integers(0, len(whole) - 1))]
    else:
        for _ in range(data.draw(st.integers(1, 4))):
            whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(whole)
    with contextlib.suppress(KshotError), EasyLMFile(path) as file:
        for key in file.tensors:
            assert file.get(key).shape == file.tensors[key].shape


@settings(max_examples=40, deadline=None)
@given(
    items=st.lists(
        st.tuples(
            st.lists(st.text(max_size=40), min_size=1, max_size=6).map(tuple),
            st.lists(st.integers(0, 5), max_size=3).map(tuple),
            st.sampled_from(["float32", "float16", "bfloat16", "float64"]),
        ),
        max_size=5,
        unique_by=lambda item: item[0],
    )
)
def test_what_is_written_is_what_msgpack_reads(items, tmp_path_factory):
    path = tmp_path_factory.mktemp("written") / "s"
    tensors = {key: torch.randn(shape).to(getattr(torch, kind)) for key, shape, kind in items}
    write_easylm(path, [(key, lambda held=held: held) for key, held in tensors.items()])
    with path.open("rb") as file:
        found = {tuple(key): msgpack.unpackb(value) for key, value in msgpack.Unpacker(file)}
    assert list(found) == list(tensors)
    for (key, (_, data)), (_, _, kind) in zip(found.items(), items, strict=True):
        shape, name, values = msgpack.unpackb(data)
        assert (tuple(shape), name) == (tuple(tensors[key].shape), kind)
        assert values == tensors[key].contiguous().view(-1).view(torch.uint8).numpy().tobytes() if values else True
    if tensors:
        with EasyLMFile(path) as file:
            assert all(torch.equal(file.get(key), held) for key, held in tensors.items())


def test_large_tensors_are_written_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(easylm, "MAX_CHUNK", 1000)
    held = torch.arange(1001, dtype=torch.float32).reshape(7, 143)
    write_easylm(tmp_path / "s", [(("x",), lambda: held)])
    with (tmp_path / "s").open("rb") as file:
        _, packed = next(msgpack.Unpacker(file))
    found = msgpack.unpackb(packed)
    assert found["__msgpack_chunked_array__"] is True
    assert found["shape"] == {"0": 7, "1": 143}
    chunks = [msgpack.unpackb(found["chunks"][str(n)].data)[2] for n in range(len(found["chunks"]))]
    assert [len(chunk) for chunk in chunks] == [1000, 1000, 1000, 1000, 4]
    assert b"".join(chunks) == held.numpy().tobytes()
    with EasyLMFile(tmp_path / "s") as file:
        assert torch.equal(file.get(("x",)), held)


@given(st.integers(1, 6), st.integers(1, 8), st.integers(1, 5))
def test_the_permutation_and_its_inverse(heads, half, width):
    weight = torch.arange(heads * half * 2 * width).reshape(-1, width)
    halves = halves_from_pairs(weight, heads)
    assert torch.equal(pairs_from_halves(halves, heads), weight)
    for head in range(heads):
        rows = weight[head * 2 * half : (head + 1) * 2 * half]
        assert torch.equal(halves[head * 2 * half : (head + 1) * 2 * half], torch.cat([rows[0::2], rows[1::2]]))


def test_the_commands(tmp_path, capsys):
    source = write_stream(tmp_path / "streaming_params", weights())
    words = ["convert", "lvm", str(source), "--out", str(tmp_path / "m"), "--codes", "16", "--heads", "4"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "turned back, are equal to the source" in said
    assert "2 layers of width 32, 4 heads, 16 codes" in said
    assert main(["convert", "easylm", str(tmp_path / "m"), "--out", str(tmp_path / "back")]) == 0
    assert "21 tensors" in capsys.readouterr().out
    assert main(["convert", "lvm", str(source), "--out", str(tmp_path / "n"), "--heads", "4"]) == 2
    assert "--codes" in capsys.readouterr().err
