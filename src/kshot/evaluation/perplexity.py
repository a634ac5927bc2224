"""``kshot perplexity``: how well a model of visual sentences foresees given pictures.

The perplexity of an example is exp of the mean negative log-likelihood of its target's tokens, in float32, over the whole vocabulary
(the ids that are no codes included). LVM's programs report the mean of these over examples; exp of the mean over all tokens, which is
what language models report, is never larger. Both are given, with intervals.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tqdm import tqdm

from kshot.errors import DataError
from kshot.evaluation.environment import environment
from kshot.evaluation.options import at_least, numbers_of
from kshot.evaluation.runs import RunFolder, write_json
from kshot.evaluation.visual_examples import Rows, check_examples, drawn_examples, measure
from kshot.evaluation.visual_lines import Line, read_lines
from kshot.evaluation.visual_model import bad_picture, lasting, load_visual_model
from kshot.metrics.stats import bootstrap_interval

if TYPE_CHECKING:
    from rich.table import Table

    from kshot.models.visual_sentence import VisualSentenceModel

CELL = "perplexity"
STEP = 16
"""Examples whose figures are written before the next ones are begun."""
RESAMPLES = 2000


@dataclass(frozen=True)
class Figure:
    """Perplexity behind so many pictures of context.

    Attributes:
        context: pictures shown; ``None`` = all of each example's.
        examples: their number.
        tokens: target tokens in all.
        perplexity: mean of the examples' perplexities, as LVM's programs report it.
        interval: 95 % of it: examples are resampled (percentile bootstrap, 2,000 times).
        exp_mean_nll: exp of the mean negative log-likelihood over all tokens.
        exp_mean_nll_interval: 95 % of it, in the same way.
    """

    context: int | None
    examples: int
    tokens: int
    perplexity: float
    interval: tuple[float, float]
    exp_mean_nll: float
    exp_mean_nll_interval: tuple[float, float]


@dataclass(frozen=True)
class Perplexity:
    """The result of :func:`perplexity`.

    Attributes:
        model: its name.
        figures: one for each length of context.
        rows: each example's: ``{"id", "context", "nll", "tokens", "perplexity"}``, where ``nll`` is the mean over its tokens in nats.
        skipped: examples left out, and why.
        folder: the run folder, if one was kept.
    """

    model: str
    figures: tuple[Figure, ...]
    rows: tuple[dict[str, Any], ...]
    skipped: tuple[str, ...] = ()
    folder: Path | None = None

    @property
    def value(self) -> float:
        """Mean of the examples' perplexities, at the longest context."""
        return self.figures[-1].perplexity

    def to_json(self) -> dict[str, Any]:
        """The content of ``metrics.json``."""
        return {"model": self.model, "figures": [asdict(f) for f in self.figures], "skipped": list(self.skipped)}

    def __rich__(self) -> Table:
        from rich.table import Table

        table = Table(
            "context",
            "examples",
            "perplexity (mean)",
            "95 %",
            "exp of mean NLL",
            "95 %",
            title=f"perplexity of {self.model}",
        )
        for figure in self.figures:
            table.add_row(
                "all" if figure.context is None else str(figure.context),
                str(figure.examples),
                f"{figure.perplexity:.3f}",
                "{:.3f} to {:.3f}".format(*figure.interval),
                f"{figure.exp_mean_nll:.3f}",
                "{:.3f} to {:.3f}".format(*figure.exp_mean_nll_interval),
            )
        if self.skipped:
            table.caption = f"{len(self.skipped)} examples left out; the first: {self.skipped[0]}"
        return table


def perplexity(
    model: str | VisualSentenceModel,
    *,
    data: str,
    out: str | None = None,
    context_lengths: int | str | Sequence[int] | None = None,
    windows: int = 1,
    max_stride: int = 8,
    seed: int = 0,
    bos: bool | None = None,
    root: str | None = None,
    max_examples: int = 0,
    on_bad_image: Literal["error", "skip"] = "error",
    batch_size: int | None = None,
    model_options: dict[str, Any] | None = None,
) -> Perplexity:
    """How well a model of visual sentences foresees given pictures, whatever the context: lower is better.

    Args:
        model: name, folder or Hub id of the model, or a loaded one.
        data: JSON lines {"input": [paths], "target": [paths]}, as in LVM; or {"frames": [paths], a folder or a video},
            from which windows are drawn: as many frames as the longest context, and the next one as the target.
        out: run folder; a stopped run with the same options carries on.
        context_lengths: show only the last so many pictures of each input, 1,2,4,8,15; the target stays the same. Default: all
            (frames: as many as fit).
        windows: with frames, how many are drawn from each line, by (seed, line).
        max_stride: with frames, the largest distance between those of a window; it is drawn from 1 to this.
        seed: of the windows.
        bos: begin with the token for the beginning of a sentence; default: as the model's folder says.
        root: what relative paths in data are relative to; default: the current folder, or else that of the file.
        max_examples: only the first so many lines; 0 = all.
        on_bad_image: pictures that cannot be decoded are an error, or their examples are skipped and listed.
        batch_size: sentences read together.
        model_options: further arguments of load_model (dtype, device_map, adapter, rope_table_dtype ...).

    Raises:
        ModelError, DataError, BadImage, ContextTooLong, OptionError: see the message.
    """
    at_least(1, windows=windows, max_stride=max_stride, batch_size=batch_size)
    at_least(0, max_examples=max_examples)
    lengths = numbers_of(context_lengths, "context_lengths") if context_lengths is not None else ()
    lines = read_lines(data, root, max_examples)
    loaded = load_visual_model(model, model_options)
    bos = loaded.begun(bos)
    examples, skipped = drawn_examples(
        lines, data, max(lengths, default=loaded.capacity(bos=bos) - 1), seed, windows, max_stride
    )
    check_examples(loaded, examples, lengths, bos, data)
    described = json.dumps([example.sources() for example in examples], sort_keys=True)
    config = {
        "command": "perplexity", "model": lasting(loaded), "context_lengths": list(lengths), "windows": windows,
        "max_stride": max_stride, "seed": seed, "bos": bos, "on_bad_image": on_bad_image,
        "examples": {"number": len(examples), "digest": hashlib.blake2b(described.encode(), digest_size=8).hexdigest()},
    }  # fmt: skip
    run = RunFolder(out) if out is not None else None
    if run is not None:
        run.start(config, environment(loaded))
    rows = _rows(loaded, examples, lengths, bos, on_bad_image, batch_size, run)
    skipped += [f"example {row['id']}: {row['skipped']}" for row in rows if "skipped" in row]
    kept = [row for row in rows if "skipped" not in row]
    if not kept:
        raise DataError(f"no example could be shown; the first reason: {skipped[0]}", file=data)
    found = Perplexity(
        loaded.name, figures_of(kept), tuple(kept), tuple(skipped), run.path if run is not None else None
    )
    if run is not None:
        write_json(run.path / "metrics.json", found.to_json())
    return found


def figures_of(rows: Sequence[dict[str, Any]]) -> tuple[Figure, ...]:
    """The figures of each length of context, the shortest first."""
    contexts = sorted({row["context"] for row in rows}, key=lambda length: -1 if length is None else length)
    return tuple(_figure(context, [row for row in rows if row["context"] == context]) for context in contexts)


def _figure(context: int | None, rows: Sequence[dict[str, Any]]) -> Figure:
    tokens = sum(row["tokens"] for row in rows)
    # Each example's share in the mean over all tokens: where targets are equally long these are the plain means.
    shares = [row["nll"] * row["tokens"] * len(rows) / tokens for row in rows]
    each = [row["perplexity"] for row in rows]
    low, high = bootstrap_interval(shares, resamples=RESAMPLES)
    return Figure(
        context,
        len(rows),
        tokens,
        math.fsum(each) / len(each),
        bootstrap_interval(each, resamples=RESAMPLES),
        math.exp(math.fsum(shares) / len(shares)),
        (math.exp(low), math.exp(high)),
    )


def _rows(
    model: VisualSentenceModel,
    examples: Sequence[Line],
    lengths: Sequence[int],
    bos: bool,
    on_bad_image: str,
    batch_size: int | None,
    run: RunFolder | None,
) -> Rows:
    """All rows, in order; with a run folder each step is written when it is done, and none is done twice."""
    if run is not None and run.finished(CELL):
        return run.rows(CELL)
    done = run.steps(CELL) if run is not None else {}
    starts = range(0, len(examples), STEP)
    for step, first in enumerate(tqdm(starts, desc="perplexity", unit="step", disable=None, leave=False)):
        if step in done:
            continue
        part = examples[first : first + STEP]
        reasons = [bad_picture([*e.input, *e.target]) if on_bad_image == "skip" else None for e in part]
        bad = [{"id": e.id, "skipped": reason} for e, reason in zip(part, reasons, strict=True) if reason is not None]
        good = [e for e, reason in zip(part, reasons, strict=True) if reason is None]
        done[step] = [*measure(model, good, lengths, bos, batch_size), *bad]
        if run is not None:
            run.append(CELL, step, done[step], 0)
    rows = [row for step in sorted(done) for row in done[step]]
    if run is not None:
        run.finish(CELL, rows)
    return rows
