"""One step of ``kshot imagine``: a few prompts are shown, and what comes of them is written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kshot.evaluation.sheets import save_picture, sheet
from kshot.evaluation.visual_lines import Line
from kshot.evaluation.visual_model import bad_picture

if TYPE_CHECKING:
    import torch

    from kshot.models.imagined import Imagined
    from kshot.models.visual_sentence import VisualSentenceModel


def imagine_step(
    model: VisualSentenceModel,
    lines: Sequence[Line],
    outputs: Sequence[str],
    folder: Path,
    settings: dict[str, Any],
    size: tuple[int, int] | str | None,
    drawn: dict[str, Any],
    on_bad_image: str,
    batch_size: int | None,
) -> list[dict[str, Any]]:
    """Imagine a few prompts and write their pictures.

    Args:
        model: a model of visual sentences.
        lines: the prompts.
        outputs: the file for each, relative to ``folder``.
        folder: of the results.
        settings: arguments of the model's ``imagine``.
        size: of each picture: width and height, ``"original"``, or the model's own.
        drawn: what is drawn: ``include_input``, ``separate``, ``average``.
        on_bad_image: ``"error"`` or ``"skip"``.
        batch_size: rows continued together.

    Returns:
        A row for each prompt.

    Raises:
        BadImage: a picture cannot be decoded, and that is an error.
        CannotWrite: a file cannot be written.
    """
    reasons = [bad_picture([*line.input, *line.target]) if on_bad_image == "skip" else None for line in lines]
    good = [line for line, reason in zip(lines, reasons, strict=True) if reason is None]
    names = [f"prompt {line.id}" for line in good]
    found = iter(model.imagine([line.input for line in good], **settings, names=names, batch_size=batch_size))
    rows: list[dict[str, Any]] = []
    for line, output, reason in zip(lines, outputs, reasons, strict=True):
        row = line.sources() | {"output": output}
        if reason is not None:
            rows.append(row | {"skipped": reason})
            continue
        imagined = next(found)
        write_pictures(model, line, imagined, folder / output, size, drawn)
        rows.append(
            row
            | {"key": imagined.key, "candidates": list(range(imagined.candidates)), "notices": list(imagined.notices)}
            | (errors_of(imagined.pixels, model.tokenizer.pixels(line.target)) if line.target else {})
        )
    return rows


def write_pictures(
    model: VisualSentenceModel,
    line: Line,
    imagined: Imagined,
    path: Path,
    size: tuple[int, int] | str | None,
    drawn: dict[str, Any],
) -> None:
    """Write a prompt's sheet, and its pictures one by one and their means if that is asked for."""
    from kshot.models.imagined import to_image

    cell = line.input[-1].load().size if isinstance(size, str) else size
    rows = imagined.images
    if drawn["separate"]:
        for number, row in enumerate(rows, 1):
            for place, image in enumerate(row, 1):
                alone = path.with_name(f"{path.stem}_candidate-{number}_frame-{place}{path.suffix}")
                save_picture(sheet([[image]], cell), alone)
    if drawn["average"]:
        means = [imagined.average(frame) for frame in range(imagined.frames)]
        save_picture(sheet([means], cell), path.with_name(f"{path.stem}_average{path.suffix}"))
    if drawn["include_input"]:
        shown = [to_image(pixels) for pixels in model.tokenizer.pixels(line.input)]
        rows = [[*shown, *row] for row in rows]
    save_picture(sheet(rows, cell), path)


def errors_of(pixels: torch.Tensor, target: torch.Tensor) -> dict[str, Any]:
    """Squared errors in [0, 1]: the mean, each candidate's, and that of the mean over candidates.

    LVM's program prints the mean summed over channels, which is three times as much.
    """
    each = (pixels - target.unsqueeze(0)).square().flatten(1).mean(1)
    average = (pixels.mean(0) - target).square().mean()
    return {"mse": float(each.mean()), "candidate_mse": [float(value) for value in each], "average_mse": float(average)}
