"""``kshot imagine``: what a model of visual sentences makes of prompts of pictures."""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tqdm import tqdm

from kshot.errors import DataError, OptionError
from kshot.evaluation.environment import environment
from kshot.evaluation.imagine_step import imagine_step
from kshot.evaluation.options import at_least
from kshot.evaluation.runs import RunFolder, write_json
from kshot.evaluation.sheets import check_output, parse_size
from kshot.evaluation.visual_lines import Line, listed, pair_prompts, read_lines
from kshot.evaluation.visual_model import lasting, load_visual_model
from kshot.picture import FilePicture

if TYPE_CHECKING:
    from rich.table import Table

    from kshot.models.visual_sentence import VisualSentenceModel

CELL = "imagined"
STEP = 8
"""Prompts whose pictures are written before the next ones are begun."""
CHANNELS = 3


@dataclass(frozen=True)
class Imagination:
    """The result of :func:`imagine`; ``results.json`` in its folder holds the same.

    Attributes:
        folder: where everything is.
        rows: one a prompt: its input, output, notices, and errors where there was a target.
        settings: all options.
        skipped: prompts left out, and why; pictures that could not be paired.
    """

    folder: Path
    rows: tuple[dict[str, Any], ...]
    settings: dict[str, Any]
    skipped: tuple[str, ...] = ()

    @property
    def mse(self) -> float | None:
        """Mean squared error against the targets in [0, 1], mean over prompts; ``None`` without targets."""
        errors = [row["mse"] for row in self.rows if row.get("mse") is not None]
        return statistics.fmean(errors) if errors else None

    def to_json(self) -> dict[str, Any]:
        """The content of ``results.json``."""
        mse = self.mse
        figures = {"mse": mse, "mse_summed_over_channels": mse * CHANNELS} if mse is not None else {}
        return {"settings": self.settings, **figures, "skipped": list(self.skipped), "prompts": list(self.rows)}

    def __rich__(self) -> Table:
        from rich.table import Table

        table = Table(
            "prompt", "pictures", "output", "mse", "notices", title=f"{len(self.rows)} prompts, {self.folder}"
        )
        for row in self.rows[:20]:
            error = f"{row['mse']:.4f}" if row.get("mse") is not None else ""
            table.add_row(row["id"], str(len(row["input"])), row["output"], error, "; ".join(row["notices"]))
        if len(self.rows) > 20:
            table.add_row("...", "", f"{len(self.rows) - 20} more in results.json", "", "")
        told = [f"mean squared error {self.mse:.5f} in [0, 1]"] if self.mse is not None else []
        told += [f"{len(self.skipped)} left out, listed in results.json"] if self.skipped else []
        table.caption = "; ".join(told) or None
        return table


def imagine(
    model: str | VisualSentenceModel,
    *,
    out: str,
    prompt: str | Sequence[str] = (),
    data: str | None = None,
    pairs: str | Sequence[str] = (),
    query: str | Sequence[str] = (),
    shots: int = 3,
    root: str | None = None,
    frames: int = 1,
    candidates: int = 1,
    top_k: int = 50,
    top_p: float = 1.0,
    temperature: float = 1.0,
    seed: int = 0,
    allowed_codes: str | None = None,
    bos: bool | None = None,
    overflow: Literal["error", "drop"] = "error",
    slide: int = 1,
    group: int | None = None,
    resize_output: str | None = None,
    include_input: bool = False,
    separate: bool = False,
    average: bool = False,
    max_examples: int = 0,
    on_bad_image: Literal["error", "skip"] = "error",
    batch_size: int | None = None,
    model_options: dict[str, Any] | None = None,
) -> Imagination:
    """Show prompts of pictures to a model of visual sentences and keep what it imagines next.

    Args:
        model: name, folder or Hub id of the model, or a loaded one.
        out: folder for the pictures and results.json; a stopped run with the same options carries on.
        prompt: paths with commas, x1,y1,x2,y2,query or the frames of a film; a folder stands for its pictures in order.
        data: instead of a prompt, JSON lines {"input": [paths], "output": path, "target": [paths]}, as LVM's programs read them.
        pairs: instead of a prompt, two folders INPUTS,ANSWERS, whose pictures of equal names are pairs; see query and shots.
        query: with pairs, the pictures to answer: paths with commas, or a folder.
        shots: with pairs, how many of them are shown before each query; drawn by seed.
        root: what relative paths in data are relative to; default: the current folder, or else that of the file.
        frames: new pictures in a row.
        candidates: different continuations of each prompt.
        top_k: only so many of the likeliest codes are drawn from; 0 = all. 50 is what LVM's own programs use, unnamed.
        top_p: only the likeliest codes that have so much probability together.
        temperature: 0 = the likeliest code each time.
        seed: of everything random; candidate j of a prompt is the same whatever else is asked for.
        allowed_codes: "demonstrations" lets only codes come that the answers in an analogy prompt show (masks, colour maps).
        bos: begin with the token for the beginning of a sentence; kshot calibrate tells whether a model wants it. Default: as the
            model's folder says.
        overflow: prompts that are too long by themselves are an error, or their oldest pictures are dropped, with a notice.
        slide: pictures dropped at a time when frames run past the context.
        group: pictures that are dropped together, 2 in analogy prompts, so that pairs stay pairs; default: 2 with pairs, or else 1.
        resize_output: size of each picture: "original" (that of the last of the prompt) or "w,h"; default: the model's own.
        include_input: put the prompt's pictures in front of each row.
        separate: write each picture also as a file of its own.
        average: write also the mean over candidates of each frame, OUTPUT_average.png; for masks and maps.
        max_examples: only the first so many lines of data; 0 = all.
        on_bad_image: pictures that cannot be decoded are an error, or their prompts are skipped and listed.
        batch_size: rows (prompts x candidates) continued together.
        model_options: further arguments of load_model (dtype, device_map, adapter, rope_table_dtype ...).

    Returns:
        What was imagined; sheets have a row for each candidate and a column for each frame.

    Raises:
        ModelError, DataError, BadImage, ContextTooLong, OptionError: see the message.
    """
    from kshot.models.code_sampling import Sampling

    at_least(
        1, frames=frames, candidates=candidates, shots=shots, slide=slide, group=group, batch_size=batch_size
    )  # before the model is loaded, and before there is a folder
    at_least(0, max_examples=max_examples)
    Sampling(top_k, top_p, temperature, seed)
    size = parse_size(resize_output)
    lines, skipped = _lines(prompt, data, pairs, query, shots, seed, root, max_examples)
    outputs = _outputs(lines, data or "the prompt", single=data is None and not pairs)
    together = (2 if pairs else 1) if group is None else group
    settings = {
        "frames": frames, "candidates": candidates, "top_k": top_k, "top_p": top_p, "temperature": temperature, "seed": seed,
        "allowed_codes": allowed_codes, "bos": bos, "overflow": overflow, "slide": slide,
        "group": together,
    }  # fmt: skip
    drawn = {"resize_output": resize_output, "include_input": include_input, "separate": separate, "average": average}
    loaded = load_visual_model(model, model_options)
    bos = settings["bos"] = loaded.begun(bos)
    for line in lines:
        loaded.plan(
            len(line.input), frames, bos, overflow, slide, together, f"prompt {line.id}"
        )  # before hours of work, not after
        if line.target and len(line.target) != frames:
            raise DataError(
                f"prompt {line.id} has {len(line.target)} targets for {frames} frames", file=data, field="target"
            )
    described = [line.sources() | {"output": output} for line, output in zip(lines, outputs, strict=True)]
    config = {
        "command": "imagine", "model": lasting(loaded), **settings, **drawn, "on_bad_image": on_bad_image,
        "prompts": {"number": len(lines), "digest": _digest(described)},
    }  # fmt: skip
    run = RunFolder(out)
    run.start(config, environment(loaded))
    done = run.steps(CELL) if not run.finished(CELL) else {}
    steps = [range(first, min(first + STEP, len(lines))) for first in range(0, len(lines), STEP)]
    if not run.finished(CELL):
        for step, numbers in enumerate(tqdm(steps, desc="imagining", unit="step", disable=None, leave=False)):
            if step in done:
                continue
            rows = imagine_step(
                loaded, [lines[n] for n in numbers], [outputs[n] for n in numbers], run.path, settings, size, drawn, on_bad_image,
                batch_size,
            )  # fmt: skip
            run.append(CELL, step, rows, 0)
            done[step] = rows
        run.finish(CELL, [row for step in sorted(done) for row in done[step]])
    rows = run.rows(CELL)
    skipped += [f"prompt {row['id']}: {row['skipped']}" for row in rows if "skipped" in row]
    kept = tuple(row for row in rows if "skipped" not in row)
    if not kept:
        raise DataError(f"no prompt could be shown; the first reason: {skipped[0]}", file=data)
    found = Imagination(run.path, kept, settings | drawn, tuple(skipped))
    write_json(run.path / "results.json", {"model": loaded.describe(), **found.to_json()})
    return found


def _lines(
    prompt: str | Sequence[str],
    data: str | None,
    pairs: str | Sequence[str],
    query: str | Sequence[str],
    shots: int,
    seed: int,
    root: str | None,
    most: int,
) -> tuple[list[Line], list[str]]:
    if sum(map(bool, (prompt, data, pairs))) != 1:
        raise OptionError("give one of prompt (pictures), data (JSON lines) and pairs (two folders)")
    if bool(pairs) != bool(query):
        raise OptionError("pairs and query belong together: the examples, and the pictures to answer")
    if data is not None:
        lines = read_lines(data, root, most)
        film = next((line for line in lines if line.track is not None), None)
        if film is not None:
            raise DataError("frames are for kshot perplexity", file=data, line=int(film.id), remedy='give "input"')
        return lines, []
    if pairs:
        return pair_prompts(pairs, listed(query), shots, seed)
    return [Line("1", tuple(FilePicture(name) for name in listed(prompt)))], []


def _outputs(lines: Sequence[Line], place: str, *, single: bool) -> list[str]:
    """The file for each line's sheet.

    Raises:
        DataError: two lines name the same, or one that cannot be written.
    """
    found: dict[str, str] = {}
    for line in lines:
        name = "sheet.png" if single else line.output or f"{Path(line.id).stem}.png"
        check_output(name, f"{place}:{line.id}")
        if name in found:
            raise DataError(
                f"lines {found[name]} and {line.id} would both be written to {name}",
                file=place,
                field="output",
                remedy="name them apart",
            )
        found[name] = line.id
    return list(found)


def _digest(described: Sequence[dict[str, Any]]) -> str:
    return hashlib.blake2b(json.dumps(described, sort_keys=True).encode(), digest_size=8).hexdigest()
