"""What a training run leaves behind: a model or adapter folder with the record of its training, written whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from kshot.errors import OptionError
from kshot.models.loading import quiet_unless_watched
from kshot.training.show import plot_log
from kshot.training.trainer import writing

RECORD = "training"
"""Folder of the record within the folder written: ``config.json``, ``log.jsonl`` and ``loss.png``."""


def finished(out: Path, request: Mapping[str, Any]) -> bool:
    """Whether the folder holds the result of this very request, so that nothing is left to do; says so if it does.

    Nothing that is there is ever removed.

    Raises:
        OptionError: something else is there.
        CannotWrite: the folder could not be written at the end.
    """
    if not out.exists():
        with writing(out, "choose another folder with out"):
            out.parent.mkdir(parents=True, exist_ok=True)
        return False
    if out.is_dir() and not any(out.iterdir()):
        return False
    try:
        held = json.loads((out / RECORD / "config.json").read_text(encoding="utf-8"))["request"]
    except (OSError, ValueError, LookupError, TypeError):
        raise OptionError(f"{out} exists and is not the result of a training run: choose another folder") from None
    wanted = json.loads(json.dumps(request, default=str))
    if held != wanted:
        differing = [name for name in wanted if held.get(name) != wanted[name]] or sorted(set(held) - set(wanted))
        raise OptionError(
            f"{out} holds the result of a run with other options ({', '.join(differing)}): choose another folder, or remove this one"
        )
    if os.environ.get("RANK", "0") == "0":
        print(
            f"{out} is there already: this run was finished before; to train anew, choose another folder",
            file=sys.stderr,
        )
    return True


def export(
    trained: Any,
    processor: Any,
    out: Path,
    work: Path,
    request: Mapping[str, Any],
    state: Mapping[str, Tensor] | None = None,
) -> None:
    """Write the model (or the adapter), its processor and the record of its training; all of it or nothing.

    Args:
        trained: a model of transformers, or of PEFT, of which the adapter is written.
        processor: of the model; ``None`` writes none.
        out: the folder to write; it must not exist, or be empty.
        work: folder of the run, with its log.
        request: the options of the run.
        state: the parameters, if the model itself holds only parts of them.
    """
    unfinished = out.with_name(f".{out.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    options: dict[str, Any] = {} if state is None else {"state_dict": dict(state)}
    if hasattr(trained, "peft_config"):
        # The vocabulary never grows, and PEFT would look for the base model, on the Hub if need be, to find that out.
        options["save_embedding_layers"] = False
    with quiet_unless_watched():
        trained.save_pretrained(unfinished, **options)
    if processor is not None:
        processor.save_pretrained(unfinished)
    record = unfinished / RECORD
    record.mkdir()
    held = json.loads((work / "config.json").read_text(encoding="utf-8"))
    text = json.dumps({"request": request, **held}, indent=1, default=str)
    (record / "config.json").write_text(text, encoding="utf-8")
    shutil.copy(work / "log.jsonl", record / "log.jsonl")
    plot_log(record / "log.jsonl", record / "loss.png")
    for weights in unfinished.glob("*.safetensors"):
        weights.chmod(0o644)  # written readable by its owner only
    unfinished.replace(out)
