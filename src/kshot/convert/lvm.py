"""Checkpoints of the large vision model (LVM, arXiv 2312.00785) as a plain ``LlamaForCausalLM``, and back.

The source is what upstream's training writes (an EasyLM stream of tensors, bfloat16 as it is) or the folder that upstream has
published, whose configuration calls ordinary codes begin and end, so that ``generate`` stops amid a picture. Weights are copied
one by one, so that memory for the largest of them suffices, and compared with their source when all is written.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from tqdm import tqdm
from transformers import LlamaConfig

from kshot.convert.easylm import EasyLMFile, Key, write_easylm
from kshot.convert.folder import GIGABYTE, check_free, check_space, new_folder
from kshot.convert.lvm_record import LVMTest, write_record
from kshot.convert.lvm_source import Source, open_source
from kshot.convert.lvm_weights import Pair, to_easylm, to_llama
from kshot.convert.shards import Entry, octets, write_sharded
from kshot.convert.weights import Weights
from kshot.errors import ModelError, OptionError
from kshot.models.rope_table import ROPE_TABLE, RopeTable, check_rope_table
from kshot.models.visual_presets import CODES, CONTEXT, SPARE, SPECIAL, shaped_config, special_ids, visual_generation
from kshot.visual.processor import PROCESSOR, VisualSentenceProcessor
from kshot.visual.tokenizer import VisualTokenizer

Dtype = Literal["keep", "float32", "float16", "bfloat16"]


def convert_lvm(
    source: str | os.PathLike[str],
    *,
    out: str | os.PathLike[str],
    tokenizer: str | os.PathLike[str] | None = None,
    codes: int | None = None,
    heads: int | None = None,
    context: int | None = None,
    dtype: Dtype = "keep",
    rope_table_dtype: RopeTable = "float32",
    shard_size: float = 5.0,
) -> Path:
    """Convert a checkpoint of the large vision model into a folder of ``LlamaForCausalLM``.

    Args:
        source: a file of EasyLM (``streaming_params``, ``streaming_train_state``; upstream's ``params::FILE`` is understood), a folder
            with one, or the folder of the published weights (config.json and safetensors).
        out: the new folder; must not exist, or be empty.
        tokenizer: folder of the visual tokenizer (``kshot convert lvm-tokenizer``); it is put beside the weights, so that
            ``load_model`` needs nothing else.
        codes: entries of the codebook; default: the tokenizer's, or upstream's 8,192.
        heads: attention heads; default: those of upstream's model of this shape.
        context: longest sequence; default: 4,096, or what the source says if that is more.
        dtype: type of the new weights; ``keep``: as they are.
        rope_table_dtype: the table of rotary angles that the model is run with, float32 or bfloat16 (see ``kshot calibrate``).
        shard_size: most gigabytes in a file.

    Returns:
        ``out``.

    Raises:
        ModelError: the source is not there, truncated, or of another architecture or vocabulary.
        OptionError: an option does not fit the source, or ``out`` is not empty.
    """
    target = Path(out).expanduser()
    check_free(target)
    check_rope_table(rope_table_dtype)
    kind = _kind(dtype)
    if not 0 < shard_size < math.inf:
        raise OptionError(f"shard_size is {shard_size}: give a number of gigabytes above 0")
    for name, number in (("codes", codes), ("context", context)):
        if number is not None and number < 1:
            raise OptionError(f"--{name} {number}: must be 1 or more")
    visual = None if tokenizer is None else _tokenizer(Path(tokenizer).expanduser())
    with ExitStack() as stack:
        held = open_source(source, stack, heads=heads)
        known = _codes(codes, visual, held)
        config, notes = _config(held, known, context, rope_table_dtype)
        entries = [_entry(pair, held, kind) for pair in held.pairs]
        config.dtype = entries[0].dtype
        check_space(target, sum(entry.size for entry in entries))
        with new_folder(target) as place:
            config.save_pretrained(place)
            visual_generation(config, known).save_pretrained(place)
            with tqdm(total=len(entries), desc="converting", unit="weight", disable=None, leave=False) as bar:
                write_sharded(place, entries, limit=int(shard_size * GIGABYTE), written=bar.update)
            if visual is not None:
                VisualSentenceProcessor(visual, config.vocab_size).save_pretrained(place)
            test = _test(place, entries, held, kind)
            write_record(
                place, source=held.name, layout=held.layout, config=config, codes=known, entries=entries,
                tokenizer=None if visual is None else visual.fingerprint, notes=notes, test=test,
            )  # fmt: skip
            if not test.passed:
                raise AssertionError(f"the converted weights differ from their source, which must not be: {test}")
    return target


def convert_easylm(
    source: str | os.PathLike[str],
    *,
    out: str | os.PathLike[str],
    layout: Literal["params", "train_state"] = "params",
    heads: int | None = None,
    dtype: Dtype = "keep",
) -> Path:
    """Write a large vision model as EasyLM streams it, for upstream's training and evaluation.

    Args:
        source: a folder of ``LlamaForCausalLM`` (or a stream, to give it another type or layout).
        out: the new file; must not exist.
        layout: ``params``: keys as in ``streaming_params`` (load it with ``params::FILE``); ``train_state``: those of
            ``streaming_train_state``, without its optimiser (``trainstate_params::FILE``).
        heads: see :func:`convert_lvm`.
        dtype: type of the weights; ``keep``: as they are.

    Returns:
        ``out``.

    Raises:
        ModelError: the source is not there, or of another architecture.
        OptionError: an option is wrong, or ``out`` exists.
    """
    target = Path(out).expanduser()
    if target.exists():
        raise OptionError(f"{target} exists: choose another --out, or remove it")
    if layout not in ("params", "train_state"):
        raise OptionError(f"layout={layout!r}: must be params or train_state")
    kind = _kind(dtype)
    prefix: Key = ("params", "params") if layout == "train_state" else ()
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".{target.name}.unfinished")
    with ExitStack() as stack:
        held = open_source(source, stack, heads=heads)
        check_space(target, sum(_entry(pair, held, kind).size for pair in held.pairs))
        stack.callback(unfinished.unlink, missing_ok=True)
        with tqdm(total=len(held.pairs), desc="converting", unit="weight", disable=None, leave=False) as bar:
            write_easylm(
                unfinished,
                [((*prefix, *pair.easylm), partial(_turned, held, pair, kind)) for pair in held.pairs],
                written=bar.update,
            )
        with EasyLMFile(unfinished) as written:
            different = list(_different(written, held, prefix, kind))
        if different:
            raise AssertionError(f"the converted weights differ from their source, which must not be: {different[:3]}")
        unfinished.replace(target)
    return target


def _turned(source: Source, pair: Pair, kind: torch.dtype | None) -> torch.Tensor:
    return cast(source.easylm(pair), kind, pair.llama)


def describe_easylm(path: Path) -> str:
    """What a stream holds, in a line."""
    with EasyLMFile(path) as held:
        numbers = sum(torch.Size(stored.shape).numel() for stored in held.tensors.values())
        kinds = sorted({stored.dtype for stored in held.tensors.values()})
    return f"{path}: {len(held.tensors)} tensors, {numbers:,} parameters ({', '.join(kinds)}), equal to the source byte by byte"


def _different(written: EasyLMFile, source: Source, prefix: Key, kind: torch.dtype | None) -> Iterator[str]:
    """The names of weights that are not what they should be, turned back to what the source holds."""
    for pair in tqdm(source.pairs, desc="checking", unit="weight", disable=None, leave=False):
        found = written.get((*prefix, *pair.easylm))
        if source.layout == "transformers":
            found = to_llama(found, pair.form, source.shape.heads, source.kv_heads)
        if not torch.equal(octets(found), octets(cast(source.get(pair), kind, pair.llama))):
            yield pair.llama


def _tokenizer(folder: Path) -> VisualTokenizer:
    """The tokenizer in a folder of its own, or in that of a model."""
    if (folder / PROCESSOR).is_file():
        return VisualSentenceProcessor.from_pretrained(folder).tokenizer
    return VisualTokenizer.from_pretrained(folder)


def _codes(codes: int | None, visual: VisualTokenizer | None, source: Source) -> int:
    """Entries of the codebook.

    Raises:
        OptionError: --codes and the tokenizer differ.
        ModelError: the vocabulary has not room for them, it is the large vision model's and the tokenizer is not, or nobody says how
            many there are.
    """
    if visual is not None and codes is not None and codes != visual.codes:
        raise OptionError(f"--codes {codes:,}: the tokenizer has {visual.codes:,}")
    if visual is not None and codes is None and source.vocabulary == CODES + SPARE and visual.codes != CODES:
        raise ModelError(
            f"{source.name} has the large vision model's vocabulary of {source.vocabulary:,}, {CODES:,} codes, but the tokenizer "
            f"has {visual.codes:,}: it is another one's (if the model was really trained on it, give --codes {visual.codes})"
        )
    known = codes if codes is not None else (visual.codes if visual is not None else None)
    if known is None and source.vocabulary != CODES + SPARE:
        raise ModelError(
            f"{source.name} has a vocabulary of {source.vocabulary:,}, not the large vision model's {CODES + SPARE:,}: if it is a "
            "model of visual sentences, say how many codes its tokenizer has with --codes"
        )
    known = CODES if known is None else known
    if known < 1 or source.vocabulary < known + len(SPECIAL):
        raise ModelError(
            f"{source.name} has a vocabulary of {source.vocabulary:,}, in which {known:,} codes and the ids of begin, end and padding "
            "have no room: it was trained on another tokenizer"
        )
    return known


def _config(source: Source, codes: int, context: int | None, table: RopeTable) -> tuple[LlamaConfig, tuple[str, ...]]:
    """The new configuration, and what was put right in it."""
    if source.config is None:
        made = shaped_config(
            source.shape, codes, vocabulary=source.vocabulary, context=CONTEXT if context is None else context, rope_table_dtype=table,
            num_key_value_heads=source.kv_heads, architectures=["LlamaForCausalLM"],
        )  # fmt: skip
        return made, ()
    config, notes = source.config, []
    ids = special_ids(codes)
    before = {name: getattr(config, name, None) for name in SPECIAL}
    if before != ids:
        notes.append(
            "ids of begin, end and padding: " + ", ".join(f"{before[name]} is now {ids[name]}" for name in SPECIAL)
        )
    for name, number in ids.items():
        setattr(config, name, number)
    positions = max(CONTEXT, config.max_position_embeddings) if context is None else context
    if positions != config.max_position_embeddings:
        notes.append(f"longest sequence: {config.max_position_embeddings:,} is now {positions:,}")
        config.max_position_embeddings = positions
    if source.dropped:
        notes.append(f"{len(source.dropped)} rotary tables were left out: they are computed")
    setattr(config, ROPE_TABLE, table)
    config.architectures = ["LlamaForCausalLM"]
    return config, tuple(notes)


def _entry(pair: Pair, source: Source, kind: torch.dtype | None) -> Entry:
    dtype, shape = source.describe(pair)
    origin = "/".join(pair.easylm) if source.layout == "easylm" else pair.llama
    return Entry(pair.llama, kind or dtype, shape, lambda: cast(source.llama(pair), kind, origin), origin)


def cast(tensor: torch.Tensor, kind: torch.dtype | None, name: str) -> torch.Tensor:
    """A weight in another type, or as it is.

    Raises:
        OptionError: a number is too large for the type.
    """
    if kind is None or tensor.dtype == kind:
        return tensor
    made = tensor.to(kind)
    if not bool(torch.isfinite(made).all()) and bool(torch.isfinite(tensor).all()):
        raise OptionError(f"--dtype {str(kind).removeprefix('torch.')}: {name} holds numbers that are too large for it")
    return made


def _test(folder: Path, entries: Sequence[Entry], source: Source, kind: torch.dtype | None) -> LVMTest:
    """Turn what was written back into what the source holds, and compare."""
    different = []
    with Weights(folder) as written:
        both = zip(source.pairs, entries, strict=True)
        for pair, entry in tqdm(both, desc="checking", unit="weight", total=len(entries), disable=None, leave=False):
            found = written.get(pair.llama)
            if source.layout == "easylm":
                found = to_easylm(found, pair.form, source.shape.heads, source.kv_heads)
            wanted = cast(source.get(pair), kind, entry.origin)
            if found.dtype != wanted.dtype or not torch.equal(octets(found), octets(wanted)):
                different.append(entry.name)
    return LVMTest(len(entries), tuple(different))


def _kind(dtype: str) -> torch.dtype | None:
    kinds = {"keep": None, "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    if dtype not in kinds:
        raise OptionError(f"unknown dtype {dtype!r}: use {', '.join(kinds)}")
    return kinds[dtype]
