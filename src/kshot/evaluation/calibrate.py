"""``kshot calibrate``: which of two things that LVM's release leaves open a model was trained with, by what it foresees best.

Whether sentences begin with a token for it (the paper says so, released programs never write it), and whether the table of rotary
angles was float32 or bfloat16 (as LVM trains; see :mod:`kshot.models.rope_table`). All four combinations are measured
on the same examples; the lowest perplexity tells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from tqdm import tqdm

from kshot.evaluation.environment import environment
from kshot.evaluation.options import at_least, numbers_of
from kshot.evaluation.perplexity import RESAMPLES, Figure, figures_of
from kshot.evaluation.runs import write_json
from kshot.evaluation.visual_examples import check_examples, drawn_examples, measure
from kshot.evaluation.visual_lines import read_lines
from kshot.evaluation.visual_model import lasting, load_visual_model
from kshot.metrics.stats import bootstrap_interval

if TYPE_CHECKING:
    from rich.table import Table

    from kshot.models.visual_sentence import VisualSentenceModel


@dataclass(frozen=True)
class Combination:
    """One of the four.

    Attributes:
        bos: whether sentences begin with the token for it.
        rope_table_dtype: of the rotary angles.
        figure: its perplexity.
        behind: how much larger its negative log-likelihood is than the best combination's, in nats a token (mean over examples).
        behind_interval: 95 % of that, by resampling examples; above 0 where the best one is better beyond chance.
    """

    bos: bool
    rope_table_dtype: str
    figure: Figure
    behind: float
    behind_interval: tuple[float, float]


@dataclass(frozen=True)
class Calibration:
    """The result of :func:`calibrate`, the best combination first."""

    model: str
    combinations: tuple[Combination, ...]
    skipped: tuple[str, ...] = ()

    @property
    def best(self) -> Combination:
        """The combination of the lowest exp of mean negative log-likelihood."""
        return self.combinations[0]

    def to_json(self) -> dict[str, Any]:
        """JSON-serialisable."""
        return asdict(self)

    def __rich__(self) -> Table:
        from rich.table import Table

        table = Table(
            "BOS", "RoPE table", "perplexity (mean)", "exp of mean NLL", "behind the best (nats a token, 95 %)",
            title=f"calibration of {self.model}",
        )  # fmt: skip
        for found in self.combinations:
            low, high = found.behind_interval
            table.add_row(
                "yes" if found.bos else "no",
                found.rope_table_dtype,
                f"{found.figure.perplexity:.3f}",
                f"{found.figure.exp_mean_nll:.3f}",
                "best" if found is self.best else f"{found.behind:.4f} ({low:.4f} to {high:.4f})",
            )
        told = f"use bos={str(self.best.bos).lower()}, rope_table_dtype={self.best.rope_table_dtype}"
        sure = all(found.behind_interval[0] > 0 for found in self.combinations[1:])
        table.caption = f"{self.best.figure.examples} examples: {told}" + (
            "" if sure else "; not every difference is beyond chance: more examples would tell"
        )
        return table


def calibrate(
    model: str | VisualSentenceModel,
    *,
    data: str,
    out: str | None = None,
    context_length: int | None = None,
    windows: int = 1,
    max_stride: int = 8,
    seed: int = 0,
    root: str | None = None,
    max_examples: int = 0,
    batch_size: int | None = None,
    model_options: dict[str, Any] | None = None,
) -> Calibration:
    """Perplexity of a model of visual sentences with and without BOS, with float32 and bfloat16 rotary angles.

    Args:
        model: name, folder or Hub id of the model, or a loaded one; it is left as it was.
        data: JSON lines as for kshot perplexity.
        out: JSON file for the result.
        context_length: show only the last so many pictures; default: all.
        windows: with frames, how many windows are drawn from each line.
        max_stride: with frames, the largest distance between those of a window.
        seed: of the windows.
        root: what relative paths in data are relative to; default: the current folder, or else that of the file.
        max_examples: only the first so many lines; 0 = all.
        batch_size: sentences read together.
        model_options: further arguments of load_model (dtype, device_map, adapter ...).

    Raises:
        ModelError: no model of visual sentences, or one whose rotary angles are of another kind than LLaMA's.
        DataError, BadImage, ContextTooLong, OptionError: see the message.
    """
    from kshot.models.rope_table import RopeTable, rope_table_of, use_rope_table

    at_least(1, windows=windows, max_stride=max_stride, batch_size=batch_size)
    at_least(0, max_examples=max_examples)
    lengths = numbers_of(context_length, "context_length") if context_length is not None else ()
    lines = read_lines(data, root, max_examples)
    loaded = load_visual_model(model, model_options)
    examples, skipped = drawn_examples(
        lines, data, max(lengths, default=loaded.capacity(bos=True) - 1), seed, windows, max_stride
    )
    check_examples(loaded, examples, lengths, True, data)
    measured: dict[tuple[bool, str], list[dict[str, Any]]] = {}
    before = rope_table_of(loaded.model)
    try:
        with tqdm(total=4, desc="calibrating", unit="combination", disable=None, leave=False) as progress:
            for table in get_args(RopeTable):
                use_rope_table(loaded.model, table)
                for bos in (False, True):
                    measured[bos, table] = measure(loaded, examples, lengths, bos, batch_size)
                    progress.update()
    finally:
        use_rope_table(loaded.model, before)
    found = Calibration(loaded.name, _ranked(measured), tuple(skipped))
    if out is not None:
        record = {"model": lasting(loaded), "environment": environment(loaded), "options": {
            "context_length": context_length, "windows": windows, "max_stride": max_stride, "seed": seed, "examples": len(examples),
        }}  # fmt: skip
        write_json(Path(out), found.to_json() | record)
    return found


def _ranked(measured: dict[tuple[bool, str], list[dict[str, Any]]]) -> tuple[Combination, ...]:
    figures = {key: figures_of(rows)[0] for key, rows in measured.items()}
    order = sorted(figures, key=lambda key: figures[key].exp_mean_nll)
    best = measured[order[0]]
    combinations = []
    for bos, table in order:
        behind = _differences(measured[bos, table], best)
        interval = bootstrap_interval(behind, resamples=RESAMPLES)
        combinations.append(Combination(bos, table, figures[bos, table], sum(behind) / len(behind), interval))
    return tuple(combinations)


def _differences(rows: Sequence[dict[str, Any]], best: Sequence[dict[str, Any]]) -> list[float]:
    return [row["nll"] - least["nll"] for row, least in zip(rows, best, strict=True)]
