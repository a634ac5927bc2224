"""A checkpoint of a large vision model, opened: an EasyLM stream, or a folder of transformers; its shape is found from its tensors."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from transformers import LlamaConfig

from kshot.convert.easylm import EasyLMFile, Key
from kshot.convert.lvm_weights import EMBEDDING, HEAD, Pair, pairs, to_easylm, to_llama
from kshot.convert.weights import Weights, read_json
from kshot.errors import ModelError, OptionError
from kshot.models.visual_presets import PRESETS, Preset

PREFIXES = (("params", "params"), ("params",), ())
"""What may stand before the keys: a train state's, Flax's, EasyLM's own."""
LOADERS = ("trainstate_params", "trainstate", "params", "flax_params")
"""What upstream's ``--load_checkpoint`` puts before a path, and ``::``."""
STREAMS = ("streaming_params*", "streaming_train_state*")


@dataclass
class Source:
    """An opened checkpoint of either layout.

    Attributes:
        name: of the file or folder.
        layout: ``easylm`` or ``transformers``.
        shape: of the model.
        kv_heads: heads of keys and values.
        vocabulary: rows of the embedding.
        pairs: its weights.
        held: the opened file or folder.
        prefix: of its keys.
        config: what a folder of transformers says of itself.
        dropped: weights that have no place in the new model.
    """

    name: str
    layout: Literal["easylm", "transformers"]
    shape: Preset
    kv_heads: int
    vocabulary: int
    pairs: Sequence[Pair]
    held: EasyLMFile | Weights
    prefix: Key = ()
    config: LlamaConfig | None = None
    dropped: tuple[str, ...] = ()

    def get(self, pair: Pair) -> torch.Tensor:
        """A weight as the source has it."""
        if isinstance(self.held, EasyLMFile):
            return self.held.get((*self.prefix, *pair.easylm))
        return self.held.get(pair.llama)

    def llama(self, pair: Pair) -> torch.Tensor:
        """A weight as transformers has it."""
        if isinstance(self.held, EasyLMFile):
            return to_llama(self.get(pair), pair.form, self.shape.heads, self.kv_heads)
        return self.get(pair)

    def easylm(self, pair: Pair) -> torch.Tensor:
        """A weight as EasyLM has it."""
        if isinstance(self.held, EasyLMFile):
            return self.get(pair)
        return to_easylm(self.get(pair), pair.form, self.shape.heads, self.kv_heads)

    def describe(self, pair: Pair) -> tuple[torch.dtype, tuple[int, ...]]:
        """Type and shape of a weight as transformers has it."""
        if isinstance(self.held, EasyLMFile):
            key = (*self.prefix, *pair.easylm)
            return self.held.dtype(key), tuple(reversed(self.held.tensors[key].shape)) if pair.form != "plain" else (
                self.held.tensors[key].shape
            )
        tensor = self.held.get(pair.llama)
        return tensor.dtype, tuple(tensor.shape)


def open_source(source: str | os.PathLike[str], stack: ExitStack, *, heads: int | None = None) -> Source:
    """Open a checkpoint, and find out its shape.

    Args:
        source: see :func:`convert_lvm`.
        stack: closes it.
        heads: see :func:`convert_lvm`.

    Raises:
        ModelError, OptionError: see :func:`convert_lvm`.
    """
    path = _place(str(source))
    if path.is_dir() and (path / "config.json").is_file():
        return _open_folder(path, stack, heads)
    return _open_stream(_stream(path), stack, heads)


def _place(source: str) -> Path:
    loader, colons, rest = source.partition("::")
    return Path(rest if colons and loader in LOADERS else source).expanduser()


def _stream(path: Path) -> Path:
    """The one stream in a folder, or the file itself.

    Raises:
        ModelError: none, or several.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise ModelError(f"no file or folder {str(path)!r}: give a file of EasyLM or the folder of a model")
    found = sorted(file for pattern in STREAMS for file in path.glob(pattern) if file.is_file())
    if len(found) == 1:
        return found[0]
    if not found:
        raise ModelError(
            f"{path} is no checkpoint: it has neither config.json nor streaming_params or streaming_train_state"
        )
    raise ModelError(f"{path} holds several checkpoints: give one of {', '.join(file.name for file in found)}")


def _open_stream(path: Path, stack: ExitStack, heads: int | None) -> Source:
    file = stack.enter_context(EasyLMFile(path))
    prefix = next((p for p in PREFIXES if (*p, *EMBEDDING) in file.tensors), None)
    if prefix is None:
        shown = ", ".join("/".join(key) for key in list(file.tensors)[:3]) or "nothing"
        raise ModelError(f"{path} is no LLaMA of EasyLM: it has no {'/'.join(EMBEDDING)}, but {shown}")
    own = {key[len(prefix) :]: stored.shape for key, stored in file.tensors.items() if key[: len(prefix)] == prefix}
    if not prefix:  # a train state's other parts stand beside the weights
        own = {key: shape for key, shape in own.items() if key[0] in (EMBEDDING[0], HEAD[0])}
    layers = 1 + max((int(key[2]) for key in own if key[1:2] == ("h",) and key[2].isdigit()), default=-1)
    listed = pairs(layers)
    missing = [pair.easylm for pair in listed if pair.easylm not in own]
    if not layers or missing:
        raise ModelError(
            f"{path} is not complete, or no LLaMA of EasyLM: it has no {_listed(missing or [('transformer', 'h')])}"
        )
    unknown = sorted(set(own) - {pair.easylm for pair in listed})
    if unknown:
        raise ModelError(f"{path} is of another architecture than LLaMA: it has {_listed(unknown)}")
    hidden, inner = own[EMBEDDING][1], own["transformer", "h", "0", "feed_forward", "w1", "kernel"][1]
    heads = heads if heads is not None else _heads(path, hidden, inner, layers)
    wide, narrow = (own["transformer", "h", "0", "attention", name, "kernel"][1] for name in ("wq", "wk"))
    if heads < 1:
        raise OptionError(f"--heads {heads}: must be 1 or more")
    if wide % heads or (wide // heads) % 2 or narrow % (wide // heads) or heads % (narrow // (wide // heads)):
        raise OptionError(f"--heads {heads}: queries of width {wide} and keys of width {narrow} cannot be divided so")
    if wide != hidden:
        raise ModelError(f"{path}: queries of width {wide} in a model of width {hidden} are of another architecture")
    kv_heads = narrow // (wide // heads)
    source = Source(
        path.name, "easylm", Preset(hidden, inner, layers, heads), kv_heads, own[EMBEDDING][0], listed, file, prefix
    )
    _check_shapes(source, path)
    return source


def _open_folder(path: Path, stack: ExitStack, heads: int | None) -> Source:
    raw = read_json(path / "config.json")
    if raw.get("model_type") != "llama" or "text_config" in raw:
        raise ModelError(
            f"{path} is no large vision model: its model type is {raw.get('model_type')!r}, not 'llama' "
            f"({', '.join(raw.get('architectures') or ['no architecture named'])})"
        )
    config = LlamaConfig.from_dict(raw)
    if heads is not None and heads != config.num_attention_heads:
        raise OptionError(f"--heads {heads}: config.json of {path} says {config.num_attention_heads}")
    if config.attention_bias or config.mlp_bias or config.tie_word_embeddings:
        raise ModelError(f"{path} is of another architecture: it has biases, or the embedding is also its head")
    weights = stack.enter_context(Weights(path))
    listed = pairs(config.num_hidden_layers)
    wanted = {pair.llama for pair in listed}
    missing = sorted(wanted - set(weights.files))
    if missing:
        raise ModelError(f"the weights of {path} are not complete: it has no {_listed([(name,) for name in missing])}")
    rotary = re.compile(r"rotary_emb\.inv_freq$")
    unknown = [name for name in weights.files if name not in wanted and not rotary.search(name)]
    if unknown:
        raise ModelError(
            f"{path} is of another architecture than LLaMA: it has {_listed([(name,) for name in unknown])}"
        )
    shape = Preset(config.hidden_size, config.intermediate_size, config.num_hidden_layers, config.num_attention_heads)
    dropped = tuple(sorted(set(weights.files) - wanted))
    source = Source(
        path.resolve().name, "transformers", shape, config.num_key_value_heads or shape.heads, config.vocab_size, listed, weights,
        config=config, dropped=dropped,
    )  # fmt: skip
    _check_shapes(source, path)
    return source


def _check_shapes(source: Source, path: Path) -> None:
    """Each weight must have the shape that the others call for.

    Raises:
        ModelError: one has not.
    """
    shape = source.shape
    keys = shape.hidden // shape.heads * source.kv_heads
    sizes = {
        "embed_tokens": (source.vocabulary, shape.hidden),
        "lm_head": (source.vocabulary, shape.hidden),
        "q_proj": (shape.hidden, shape.hidden),
        "o_proj": (shape.hidden, shape.hidden),
        "k_proj": (keys, shape.hidden),
        "v_proj": (keys, shape.hidden),
        "gate_proj": (shape.inner, shape.hidden),
        "up_proj": (shape.inner, shape.hidden),
        "down_proj": (shape.hidden, shape.inner),
    }
    for pair in source.pairs:
        wanted = sizes.get(pair.llama.split(".")[-2], (shape.hidden,))
        found = source.describe(pair)[1]
        if found != wanted:
            name = "/".join(pair.easylm) if source.layout == "easylm" else pair.llama
            raise ModelError(f"{path}: {name} gives a weight {list(found)}, where {list(wanted)} fits the others")


def _heads(path: Path, hidden: int, inner: int, layers: int) -> int:
    """Heads of upstream's model of this shape: a stream does not say how many there are.

    Raises:
        OptionError: upstream has none.
    """
    found = {
        preset.heads
        for preset in PRESETS.values()
        if (preset.hidden, preset.inner, preset.layers) == (hidden, inner, layers)
    }
    if len(found) != 1:
        raise OptionError(
            f"{path} has {layers} layers of width {hidden:,} and {inner:,}, which is no model of upstream's: say how many attention "
            "heads it has with --heads"
        )
    return found.pop()


def _listed(keys: Sequence[Key]) -> str:
    shown = ", ".join("/".join(key) for key in keys[:3])
    return f"{shown} and {len(keys) - 3} more" if len(keys) > 3 else shown
