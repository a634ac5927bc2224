"""What methods add to the cost of a model: ratios to the bare model, in fp32 on the CPU.

``attention``: one call of the attention function, batch 4, 8 heads of width 64: causal prefill of 512 tokens, and decoding one token
behind 2,048 keys. ``layer``: one decoder layer of width 512 on the same. ``model``: a random LLaVA of 15 million parameters: prompts
of one picture (``prefill``) or of 256 tokens (``prefill 256``), one token behind a cache of 256 tokens (``decode``), and a prompt of
one picture answered with 32 tokens by ``generate`` (``answer``), batch 4.
``compiled``: the same token of the same model behind a static cache, by ``torch.compile``, the bare model compiled as well.

Ways beside kshot's methods, for contrast:

- ``mimic, second matmul``: MimIC whose normaliser comes from a second product of queries and keys beside the fused attention;
- ``mimic, paper code``: over masked keys, too, as published, which needs that product in any case;
- ``lora``: PEFT's, not merged, rank 16 at query, key, value and output projections;
- ``bias, merged``: a plain checkpoint. It is saved, loaded by transformers alone and must answer bit for bit as what was merged.

The bare model and a way take turns in one process. Where a method only adds to a model, both are the same modules and the same cache,
with the adapter's hooks, or the merged model's biases, taken out for the bare turns: two copies of a model differ by 1 to 4 % for
where they lie in memory. Where it does not (``lora``, what is compiled), both are copies that share their weights. Freed memory stays
with the process (:func:`keep_pages`). Reported is the median over rounds of their ratio, in CPU time, which other jobs on the machine
disturb least, with the quartiles.

    python benchmarks/method_cost.py --out results/method_cost.csv
"""

from __future__ import annotations

import argparse
import copy
import csv
import ctypes
import gc
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoModelForImageTextToText, DynamicCache, StaticCache

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from kshot import Episode, Example  # noqa: E402
from kshot.methods import BiasConfig, HificlConfig, LiveConfig, MimicConfig, attention  # noqa: E402
from kshot.methods.head_layers import HeadShiftLayer  # noqa: E402
from kshot.methods.layers import ShiftLayer  # noqa: E402
from kshot.methods.mimic import MimicLayer  # noqa: E402
from kshot.models.anatomy import examine  # noqa: E402
from kshot.models.vlm import VLM  # noqa: E402
from kshot.version import __version__  # noqa: E402
from tests.models.tiny import build, picture  # noqa: E402

BATCH, HEADS, WIDTH = 4, 8, 64
PREFILL, CACHED, PROMPT, ANSWER = 512, 2048, 256, 32
SECOND = "mimic, second matmul"
WAYS: dict[str, Callable[[], Any]] = {
    "live": LiveConfig,
    "live, mlp": lambda: LiveConfig(placement="mlp"),
    "mimic": MimicConfig,
    "hificl": HificlConfig,
    "bias": BiasConfig,
    "bias, merged": BiasConfig,
    "lora": lambda: LoraConfig(r=16, lora_alpha=32, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"]),
    SECOND: MimicConfig,
    "mimic, paper code": lambda: MimicConfig(paper_code=True),
}
IN_HEADS = ("mimic", "hificl", SECOND, "mimic, paper code")
Step = Callable[[], Any]
Switch = Callable[[], Step]


def second_matmul(query: Tensor, key: Tensor, value: Tensor, *, mask: Any, causal: bool, scale: float, **_: Any) -> Any:
    """What ``attend`` gives, without a kernel that gives the normaliser."""
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    output = torch.nn.functional.scaled_dot_product_attention(query, key, value, mask, 0.0, causal, scale=scale)
    logits = torch.matmul(query, key.transpose(2, 3)) * scale
    if causal:
        mask = torch.ones(logits.shape[-2:], dtype=torch.bool).tril()
    if mask is not None:
        logits = logits.masked_fill(~mask, torch.finfo(logits.dtype).min)
    return output, logits.logsumexp(-1)


@contextmanager
def kernel(way: str) -> Iterator[None]:
    """The attention kernel of a way."""
    before, short = attention.attend, MimicLayer.one_token
    if way == SECOND:
        attention.attend = second_matmul  # type: ignore[assignment]
        MimicLayer.one_token = HeadShiftLayer.one_token  # type: ignore[method-assign]  # which has no kernel of its own
    try:
        yield
    finally:
        attention.attend, MimicLayer.one_token = before, short  # type: ignore[method-assign]


def copied(bare: Any) -> Any:
    """A model that shares the bare one's weights."""
    model = copy.deepcopy(bare)
    for own, shared in zip(model.parameters(), bare.parameters(), strict=True):
        own.data = shared.data
    return model


@torch.no_grad()
def adapted(bare: Any, way: str) -> Any:
    """A model that shares the bare one's weights and has a perturbed adapter."""
    model = get_peft_model(copied(bare), WAYS[way]()).eval()
    random = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=random))
    model.requires_grad_(False)
    return merged(model) if way == "bias, merged" else model.get_base_model()


def merged(model: Any) -> Any:
    """The merged model as transformers alone loads it.

    Raises:
        AssertionError: it does not answer bit for bit as what was merged, or not as the adapter beside the model did.
    """
    ids = torch.arange(64, 96)[None]
    beside = model(input_ids=ids).logits
    plain = model.merge_and_unload()
    inside = plain(input_ids=ids).logits
    assert torch.allclose(inside, beside, atol=1e-4), float((inside - beside).abs().max())
    loaded = reloaded(plain)
    assert type(loaded) is type(plain)
    assert not any(type(part).__module__.startswith(("kshot", "peft")) for part in loaded.modules())
    assert torch.equal(loaded(input_ids=ids).logits, inside)
    return loaded


def reloaded(model: Any) -> Any:
    """The model as transformers alone loads it."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return AutoModelForImageTextToText.from_pretrained(folder).eval().requires_grad_(False)


def llava() -> VLM:
    """A random LLaVA of 15 million parameters with 64 tokens an image."""
    tower = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 8, "num_attention_heads": 8}
    model, processor = build("llava_llama", vision=tower | {"image_size": 112}, **tower, num_key_value_heads=4)
    return VLM(model.requires_grad_(False), processor, name="llava-15m-random")


def one_layer() -> Any:
    """A decoder with one layer, of which the layer and its attention are measured."""
    width = HEADS * WIDTH
    config = transformers.LlamaConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=1,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        vocab_size=64,
        attn_implementation="sdpa",
    )
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(config).eval().requires_grad_(False)


def states(tokens: int, seed: int = 0) -> Tensor:
    return torch.randn(BATCH, HEADS, tokens, WIDTH, generator=torch.Generator().manual_seed(seed))


def attention_steps(model: Any) -> dict[str, Step]:
    """One call of the attention function that the model would use."""
    module = examine(model).attention[0]

    def attend(three: tuple[Tensor, ...]) -> None:
        function = attention.ALL_ATTENTION_FUNCTIONS[module.config._attn_implementation]
        function(module, *three, None, dropout=0.0, scaling=module.scaling)

    sizes = {"prefill": (PREFILL, PREFILL), "decode": (1, CACHED)}
    # Queries lie in memory as projections make them, keys and values as a cache holds them.
    given = {
        phase: (states(queries).transpose(1, 2).contiguous().transpose(1, 2), states(keys, 1), states(keys, 2))
        for phase, (queries, keys) in sizes.items()
    }
    return {phase: partial(attend, three) for phase, three in given.items()}


def layer_steps(model: Any) -> dict[str, Step]:
    """One decoder layer."""
    layer, rotary = examine(model).layers[0], examine(model).decoder.rotary_emb
    whole = torch.randn(BATCH, PREFILL, HEADS * WIDTH, generator=torch.Generator().manual_seed(0))
    one = whole[:, :1].contiguous()
    places = [rotary(whole, torch.arange(start, end)[None]) for start, end in ((0, PREFILL), (CACHED - 1, CACHED))]
    cache = DynamicCache()
    cache.update(states(CACHED - 1, 1), states(CACHED - 1, 2), 0)

    def decode() -> None:
        layer(one, position_embeddings=places[1], past_key_values=cache)
        cache.crop(-1)  # removes one token

    return {"prefill": lambda: layer(whole, position_embeddings=places[0]), "decode": decode}


def model_steps(vlm: VLM, model: Any) -> dict[str, Step]:
    """A prompt with one picture, a long one, one token behind that, and an answer to the first."""
    prompts = [
        vlm.encode(Episode((), Example(picture(i, (112, 112)), "what is it?", id=f"query {i}")), style="plain")
        for i in range(BATCH)
    ]
    short = vlm.inputs(prompts)
    random = torch.Generator().manual_seed(0)
    long = torch.randint(64, 128, (BATCH, PROMPT), generator=random)
    cache = DynamicCache()
    model(input_ids=long, past_key_values=cache, use_cache=True, logits_to_keep=1)
    one = long[:, :1]

    def decode() -> None:
        model(input_ids=one, past_key_values=cache, use_cache=True)
        cache.crop(-1)  # removes one token

    return {
        "prefill": lambda: model(**short, use_cache=True, logits_to_keep=1),
        f"prefill {PROMPT}": lambda: model(input_ids=long, use_cache=True, logits_to_keep=1),
        "decode": decode,
        "answer": lambda: model.generate(
            **short, min_new_tokens=ANSWER, max_new_tokens=ANSWER, do_sample=False, pad_token_id=0
        ),
    }


def compiled_steps(model: Any) -> dict[str, Step]:
    """One token behind a static cache of as many, compiled."""
    long = torch.randint(64, 128, (BATCH, PROMPT), generator=torch.Generator().manual_seed(0))
    room = PROMPT + 8
    cache = StaticCache(config=model.config.get_text_config(), max_cache_len=room)
    model(input_ids=long, past_key_values=cache, use_cache=True, logits_to_keep=1)
    seen = torch.ones(BATCH, room, dtype=torch.long)
    seen[:, PROMPT + 1 :] = 0
    given = {"input_ids": long[:, :1], "position_ids": torch.full((BATCH, 1), PROMPT), "attention_mask": seen}
    run = torch.compile(model.forward, dynamic=False)

    def decode(run: Any = run) -> Tensor:
        for layer in cache.layers:
            layer.cumulative_length.fill_(PROMPT)  # the same place again
        return run(**given, past_key_values=cache, use_cache=True).logits

    error = float((decode() - decode(model)).abs().max())
    assert error < 1e-4, f"compiled code answers otherwise: {error}"
    return {"decode": decode}


def switched(bare: Any, model: Any, step: Step) -> tuple[Switch, Switch]:
    """What takes out of a model the adapters' hooks, and biases that the bare one does not have, and what puts them back."""
    known = dict(bare.named_parameters())
    biases = [
        (model.get_submodule(name.removesuffix(".bias")), bias)
        for name, bias in model.named_parameters()
        if name.endswith(".bias") and name not in known
    ]
    places = [
        (module, layer) for module in model.modules() for layer in module.children() if isinstance(layer, ShiftLayer)
    ]

    def off() -> Step:
        for _, layer in places:
            layer.detach()
        for module, _ in biases:
            module.bias = None
        return step

    def on() -> Step:
        for module, bias in biases:
            module.bias = bias
        for module, layer in places:
            layer.attach(module)
        return step

    return off, on


def always(step: Step) -> Switch:
    """For a model that is as it is."""
    return lambda: step


def clock(step: Step, repeats: int) -> float:
    """Milliseconds of CPU time a call."""
    begin = time.process_time()
    for _ in range(repeats):
        step()
    return (time.process_time() - begin) / repeats * 1e3


def compare(bare: Switch, way: Switch, *, rounds: int, seconds: float) -> dict[str, Any]:
    """Medians of both, and of their ratio.

    Whoever comes second finds other caches than whoever comes first, so a round is bare, way, way, bare, and its ratio that of sums.
    """
    way()(), bare()()
    repeats = max(1, round(seconds * 1e3 / max(clock(bare(), 2), 1e-3)))
    found = []
    gc.collect()
    gc.disable()
    for _ in range(rounds):
        first, *both, last = (clock(switch(), repeats) for switch in (bare, way, way, bare))
        found.append(((first + last) / 2, sum(both) / 2))
    gc.enable()
    ratios = [own / base for base, own in found]
    quarters = statistics.quantiles(ratios, n=4)
    return {
        "bare_ms": f"{statistics.median(base for base, _ in found):.3f}",
        "ms": f"{statistics.median(own for _, own in found):.3f}",
        "ratio": f"{statistics.median(ratios):.3f}",
        "ratio_low": f"{quarters[0]:.3f}",
        "ratio_high": f"{quarters[2]:.3f}",
        "rounds": rounds,
        "calls_a_turn": repeats,
    }


@torch.no_grad()
def measure(levels: list[str], ways: list[str], rounds: int, seconds: float) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for level in levels:
        vlm = llava() if level in ("model", "compiled") else None
        bare: Any = vlm.model if vlm is not None else one_layer()

        def steps(model: Any, level: str = level, vlm: Any = vlm) -> dict[str, Step]:
            if level == "model":
                return model_steps(vlm, model)
            if level == "compiled":
                return compiled_steps(model)
            return (attention_steps if level == "attention" else layer_steps)(model)

        for way in ways:
            if (level == "attention" and way not in IN_HEADS) or (level == "layer" and way == "bias, merged"):
                continue
            if level == "compiled" and way in (SECOND, "mimic, paper code"):
                continue
            model = adapted(bare, way)
            own, beside = steps(model), {}
            if level == "compiled" or way == "lora":
                beside = steps((reloaded if way == "bias, merged" else copied)(bare))
            for phase, step in own.items():
                switches = (always(beside[phase]), always(step)) if beside else switched(bare, model, step)
                with kernel(way):
                    found = compare(*switches, rounds=rounds, seconds=seconds)
                rows.append({"level": level, "phase": phase, "way": way} | found)
                print(" ".join(f"{key}={value}" for key, value in rows[-1].items()), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--levels", default="attention,model,compiled", help="also: layer")
    parser.add_argument("--ways", help="separated by ;", default=";".join(WAYS))
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--seconds", type=float, default=0.02, help="of each turn")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_pages()
    rows = measure(options.levels.split(","), options.ways.split(";"), options.rounds, options.seconds)
    if options.out:
        versions = {
            "kshot": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
            "machine": f"{platform.machine()}, {options.threads} thread{'s' if options.threads > 1 else ''}",
        }
        write(options.out, [row | versions for row in rows])


def keep_pages() -> None:
    """Let glibc keep freed memory for the process.

    By default it returns the top of the heap to the system once there is enough of it, and whether a model's tensors lie there is a
    matter of chance: prompts of 256 tokens took 1,600 page faults of the bare model in one process and 10,000 in another, and an
    adapter's one tensor more adds some, or saves some. Ratios of the same two were between 1.00 and 1.09 for nothing else.
    """
    if platform.libc_ver()[0] == "glibc":
        mmap_threshold, trim_threshold = -3, -1  # numbers of mallopt, from malloc.h
        library = ctypes.CDLL(None)
        assert library.mallopt(mmap_threshold, 2**25)
        assert library.mallopt(trim_threshold, 2**30)


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    os.replace(temporary, path)


if __name__ == "__main__":
    main()
