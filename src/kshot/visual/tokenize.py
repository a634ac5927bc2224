"""``kshot tokenize``: pictures in folders to a token store of visual sentences.

Three steps, each of which carries on where a stopped run left it:

1. *digests*: each picture's content is hashed, so that a picture that the sentences show again (in another epoch, under another name)
   is tokenized once;
2. *tokens* of every distinct picture, in this process, in several, or on a Ray cluster;
3. *shards*: the sentences in their order, put together by this process.

What a shard holds depends on the sentences and the tokenizer alone, so one process, many and a cluster write the same bytes.
Pictures that cannot be read are listed in ``skipped.jsonl``, and nothing is put in their place: the sentences are laid out anew
without the records that they belong to. The same command again looks at them once more, and makes the store anew if some were put
right.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kshot.errors import ContextTooLong, OptionError
from kshot.visual.grammar import Sentence, sentences_of
from kshot.visual.store import TokenizerRecord, TokenStore
from kshot.visual.store_writer import SHARD_SENTENCES, StoreWriter
from kshot.visual.tokenize_again import put_right
from kshot.visual.tokenize_plans import Joined
from kshot.visual.tokenize_run import Run, Tokenized
from kshot.visual.tokenize_units import Bench, load_tokenizer
from kshot.visual.tokenize_workers import usual_threads

if TYPE_CHECKING:
    from kshot.visual.tokenizer import VisualTokenizer


def tokenize(
    sentences: str | None = None,
    *,
    tokenizer: str,
    out: str,
    sentences_options: dict[str, Any] | None = None,
    mix: list[dict[str, Any]] | None = None,
    precision: str = "float32",
    device: str | None = None,
    context: int | None = None,
    batch_size: int = 32,
    workers: int = 1,
    threads: int | None = None,
    ray: str | None = None,
    cache: str | None = None,
    shard_sentences: int = SHARD_SENTENCES,
) -> Tokenized:
    """Tokenize folders of pictures as visual sentences.

    ``kshot tokenize --sentences pairs --x photos --y masks --tokenizer vq --out store``. The same command again carries on where it
    was stopped.

    Args:
        sentences: type of the sentences: pairs, images, colorization, inpainting, frames ...; its options are given like any other.
        tokenizer: folder of the visual tokenizer, or of a visual model.
        out: folder of the token store.
        sentences_options: options of the sentences: folders, shots, epochs, seed ...
        mix: in place of the type, several descriptions of sentences (with --config), which are written one after the other.
        precision: float32, tf32 or bfloat16 (convolutions in bfloat16); kept in the store.
        device: where to compute. Default: GPUs if there are any.
        context: tokens that a sentence may have; longer ones are an error here and not in training.
        batch_size: pictures in the network at a time.
        workers: processes; on a Ray cluster, actors.
        threads: that decode pictures, in each worker. Default: as the machine has.
        ray: work on a Ray cluster: auto for that of this machine, local for a new one, or an address.
        cache: folder that keeps the tokens of pictures for other runs with the same tokenizer. Default: kept only until the store is
            finished.
        shard_sentences: sentences a file.

    Raises:
        DataError: folders without pictures, names that do not match, no picture that can be used.
        OptionError: options that do not go together; a folder that holds something else.
        ModelError: no such tokenizer.
    """
    if (sentences is None) == (not mix):
        raise OptionError(
            "give either --sentences, a type of sentences, or mix: several descriptions in a --config file"
        )
    if mix and sentences_options:
        raise OptionError(f"--{next(iter(sentences_options))}: with mix, options stand in each description")
    described = mix if mix else [{"type": sentences, **(sentences_options or {})}]
    plans = [sentences_of(description) for description in described]
    return tokenize_sentences(
        plans,
        tokenizer,
        out,
        precision=precision,
        device=device,
        context=context,
        batch_size=batch_size,
        workers=workers,
        threads=threads,
        ray=ray,
        cache=cache,
        shard_sentences=shard_sentences,
    )


def tokenize_sentences(
    plans: Sequence[Sequence[Sentence]],
    tokenizer: VisualTokenizer | str | Path,
    out: str | Path,
    *,
    precision: str = "float32",
    device: str | None = None,
    context: int | None = None,
    batch_size: int = 32,
    workers: int = 1,
    threads: int | None = None,
    ray: str | None = None,
    cache: str | None = None,
    shard_sentences: int = SHARD_SENTENCES,
) -> Tokenized:
    """As :func:`tokenize`, of sentences in Python.

    Args:
        plans: sequences of sentences: those of :mod:`kshot.visual.grammar`, or any other that gives the same ones each time it is
            asked. What determines them is taken from their ``describe()``, if they have it.
        tokenizer: the tokenizer or its folder.
        out, precision, device, context, batch_size, workers, threads, ray, cache, shard_sentences: see :func:`tokenize`; precision and
            device are the tokenizer's own if it is given itself.
    """
    if workers < 1 or batch_size < 1 or (threads is not None and threads < 1):
        raise OptionError(f"workers={workers}, batch_size={batch_size}, threads={threads}: each is at least 1")
    plan = Joined(plans)
    opened = tokenizer
    if isinstance(opened, (str, Path)):
        opened = load_tokenizer(opened, precision=precision, device=_device(device))
    record = TokenizerRecord.of(opened)
    for one in plans:
        _check(one, record, context)
    with StoreWriter(out, record, plan.describe(), shard_sentences=shard_sentences) as writer:
        if writer.complete and put_right(plan, writer.folder):
            writer.begin_again()
        if writer.complete:
            return Tokenized.before(TokenStore(writer.folder))
        alone = workers == 1 and ray is None
        if alone:
            placed: VisualTokenizer | str = opened
        elif isinstance(tokenizer, (str, Path)):
            placed = str(Path(tokenizer).expanduser().absolute())
        else:
            placed = str((writer.unfinished / "tokenizer").absolute())
            opened.save_pretrained(placed)
        bench = Bench(
            plan,
            placed,
            opened.precision,
            opened.device.type,
            batch_size,
            usual_threads(workers) if threads is None else threads,
        )
        return Run(plan, writer, bench, workers, ray, _parts_folder(writer, cache)).run(opened.device.type)


def _parts_folder(writer: StoreWriter, cache: str | None) -> Path:
    """Each tokenizer has its own, so that no other plan or precision finds what is not meant for it."""
    record = writer.tokenizer
    place = writer.unfinished if cache is None else Path(cache).expanduser()
    return place / "tokens" / f"{record.fingerprint}-{record.precision}"


def _check(plan: Sequence[Sentence], record: TokenizerRecord, context: int | None) -> None:
    """Find out before hours of work what would be an error at its end."""
    if not len(plan):
        return
    first = plan[0]
    for role in first.roles:
        if role.split() != [role]:
            raise OptionError(f"role {role!r} of {first.type!r} sentences has blanks in it: name it otherwise")
    if context is None:
        return
    fits = getattr(plan, "fits", None)
    if fits is not None:
        fits(context, record.tokens_per_image)
    elif (size := len(first.pictures) * record.tokens_per_image) > context:
        raise ContextTooLong(f"sentence {first.id!r} has {size} tokens, more than the context of {context}")


def _device(device: str | None) -> str:
    if device is not None:
        return device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
