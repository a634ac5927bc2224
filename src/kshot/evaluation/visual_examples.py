"""Examples whose likelihood is measured: a context of pictures and a target, from lines or drawn from frames."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kshot.errors import DataError, OptionError
from kshot.evaluation.visual_lines import Line, window

if TYPE_CHECKING:
    from kshot.models.visual_sentence import VisualSentenceModel

Rows = list[dict[str, Any]]


def drawn_examples(
    lines: Sequence[Line], data: str, length: int, seed: int, windows: int, max_stride: int
) -> tuple[list[Line], list[str]]:
    """Lines with input and target, and what was left out: lines of frames become windows of ``length`` frames and the next.

    Raises:
        DataError: a line without a target.
        OptionError: a number out of range.
    """
    for name, value in (("windows", windows), ("max_stride", max_stride), ("context_lengths", length)):
        if value < 1:
            raise OptionError(f"{name} is {value}; it must be at least 1")
    examples: list[Line] = []
    skipped: list[str] = []
    for line in lines:
        if line.track is None:
            if not line.target:
                raise DataError(
                    "no target", file=data, line=int(line.id), field="target", remedy="the pictures to be foreseen"
                )
            examples.append(line)
            continue
        found = [window(line, length, seed, number, max_stride) for number in range(windows)]
        if found[0] is None:
            skipped.append(f"line {line.id}: {len(line.track)} frames, fewer than the {length + 1} of a window")
        examples += [example for example in found if example is not None]
    if not examples:
        raise DataError(f"nothing to measure; the first reason: {skipped[0]}", file=data)
    return examples, skipped


def check_examples(
    model: VisualSentenceModel, examples: Sequence[Line], lengths: Sequence[int], bos: bool, data: str
) -> None:
    """Refuse, before anything is computed, what does not fit.

    Raises:
        ContextTooLong: an example is longer than the context.
        OptionError: an example has fewer pictures than the longest context asked for, or a length is 0 without ``bos``.
    """
    if lengths and lengths[0] == 0 and not bos:
        raise OptionError("context_lengths: nothing can be foreseen from no picture, unless bos stands in front")
    for example in examples:
        shown = max(lengths) if lengths else len(example.input)
        if shown > len(example.input):
            raise OptionError(
                f"context_lengths: {shown} pictures wanted, but example {example.id} of {data} has {len(example.input)}"
            )
        model.check_fit(shown, len(example.target), bos, f"example {example.id}")


def measure(
    model: VisualSentenceModel,
    examples: Sequence[Line],
    lengths: Sequence[int],
    bos: bool,
    batch_size: int | None = None,
) -> Rows:
    """One row for each example and length of context."""
    wanted = [(example, length) for example in examples for length in (lengths or (len(example.input),))]
    ids = model.codes_of([[*example.input, *example.target] for example in examples])
    held = dict(zip((example.id for example in examples), ids, strict=True))
    contexts, targets = [], []
    for example, length in wanted:
        end = len(example.input) * model.tokens
        contexts.append(held[example.id][end - length * model.tokens : end])
        targets.append(held[example.id][end:])
    found = model.nll_ids(contexts, targets, bos=bos, batch_size=batch_size)
    rows: Rows = []
    for (example, length), nll in zip(wanted, found, strict=True):
        mean = float(nll.double().mean())
        shown = {"context": length} if lengths else {"context": None, "pictures": length}
        rows.append({"id": example.id, **shown, "nll": mean, "tokens": len(nll), "perplexity": math.exp(mean)})
    return rows
