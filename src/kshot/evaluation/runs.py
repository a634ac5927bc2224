"""The run folder: everything that a run was and said, and enough to carry on after it was stopped.

::

    config.json              all that determines the results; a folder of another configuration is refused
    environment.json         versions and platform; one more entry for each environment in which the run was carried on
    choices/SHOTS_SEED.json  which demonstrations each query was given
    prompts/CELL.txt         the first prompt, as the model was given it
    predictions/CELL.jsonl   one line a query, in the task's order
    pictures/CELL/*.png      answers that are pictures, named in these lines
    metrics.json  results.md  results.csv  categories.csv  accuracy.png
    unfinished/              journals of cells that are not finished yet

A cell's queries are answered in *steps* of fixed size. When a step is done its rows are appended to a journal as one line, so a
killed run leaves at most one torn line, which is ignored, and answers no step twice. Steps do not depend on the number of
processes; a process takes every n-th one and writes a journal of its own. When all steps are there the journals become the
prediction file. All files but the journals are written under a temporary name and renamed.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from kshot.errors import DataError, OptionError
from kshot.whole_file import whole_file

Rows = list[dict[str, Any]]


class RunFolder:
    """One run's folder.

    Args:
        path: made if absent.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)

    def start(self, config: Mapping[str, Any], environment: Mapping[str, Any]) -> None:
        """Enter a new run, or carry on one with the same configuration. One that failed before it had any result, as with an option
        that cannot be used, is begun anew with any configuration.

        Raises:
            OptionError: the folder holds a run of another configuration, or files that are no run.
        """
        self._refuse_strangers()
        if (self.path / "config.json").exists() and not self._fruitless():
            self.check(config)
        else:
            self.path.mkdir(parents=True, exist_ok=True)
            write_json(self.path / "config.json", config)
        known = read_json(self.path / "environment.json") if (self.path / "environment.json").exists() else []
        if _plain(environment) not in known:
            write_json(self.path / "environment.json", [*known, environment])

    def _fruitless(self) -> bool:
        return {path.name for path in self.path.iterdir()} <= {"config.json", "environment.json"}

    def check(self, config: Mapping[str, Any]) -> None:
        """Compare a configuration with the folder's.

        Raises:
            OptionError: they differ; the message lists the fields that do.
        """
        held = read_json(self.path / "config.json")
        changes = list(differences(held, _plain(config)))
        if changes:
            raise OptionError(
                f"{self.path} holds a run of another configuration: {'; '.join(changes)} "
                "(choose another folder, or remove this one)"
            )

    def finished(self, cell: str) -> bool:
        """Whether the cell's prediction file is complete."""
        return self.predictions(cell).exists()

    def predictions(self, cell: str) -> Path:
        """The cell's prediction file."""
        return self.path / "predictions" / f"{cell}.jsonl"

    def pictures(self, cell: str) -> Path:
        """The folder of a cell's answers that are pictures."""
        return self.path / "pictures" / cell

    def choices(self, shots: int, seed: int) -> Path:
        """The file of choices of demonstrations."""
        return self.path / "choices" / f"shots-{shots}_seed-{seed}.json"

    def append(self, cell: str, step: int, rows: Rows, worker: int) -> None:
        """Add a finished step to the journal of this process."""
        path = self.path / "unfinished" / f"{cell}.{worker}.jsonl"
        line = json.dumps({"step": step, "rows": rows}, ensure_ascii=False)
        with _open_journal(path) as file:
            # The line break comes first: whatever a killed process left at the end stays a line of its own.
            file.write(b"\n" + encode(line) + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def steps(self, cell: str) -> dict[int, Rows]:
        """The finished steps in all processes' journals. A torn line is as if it had never been written."""
        found: dict[int, Rows] = {}
        for path in self._journals(cell):
            try:
                content = path.read_bytes()
            except FileNotFoundError:
                continue  # the leading process has merged and removed it since it was listed
            for line in content.split(b"\n"):
                try:
                    entry = json.loads(line)
                    found.setdefault(int(entry["step"]), entry["rows"])
                except (ValueError, KeyError, TypeError):
                    continue
        return found

    def finish(self, cell: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write the prediction file and drop the journals."""
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_text(self.predictions(cell), "".join(lines))
        for path in self._journals(cell):
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # it holds journals of other cells, or never was
            (self.path / "unfinished").rmdir()

    def rows(self, cell: str) -> Rows:
        """The cell's predictions, in the task's order.

        Raises:
            DataError: the file is missing or damaged.
        """
        return read_jsonl(self.predictions(cell))

    def journals(self) -> list[Path]:
        """The journals of all processes and cells that there are at this moment; other processes may remove them."""
        try:
            return sorted(p for p in (self.path / "unfinished").iterdir() if p.suffix == ".jsonl")
        except FileNotFoundError:
            return []

    def _journals(self, cell: str) -> list[Path]:
        return [path for path in self.journals() if path.name.rsplit(".", 2)[0] == cell]

    def _refuse_strangers(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise OptionError(f"{self.path} is a file; the run folder must be a folder")
        if self.path.is_dir() and not (self.path / "config.json").exists() and any(self.path.iterdir()):
            raise OptionError(f"{self.path} is neither empty nor a run folder (choose another one)")


def differences(old: Any, new: Any, name: str = "") -> Iterator[str]:
    """What changed between two JSON values, field by field: ``"shots: [0, 4] -> [0, 8]"``."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            yield from differences(old.get(key), new.get(key), f"{name}.{key}" if name else str(key))
    elif old != new:
        yield f"{name}: {json.dumps(old, ensure_ascii=False)} -> {json.dumps(new, ensure_ascii=False)}"


def write_text(path: Path, text: str) -> None:
    """Write a file so that it is there in full or not at all."""
    write_bytes(path, encode(text))


def encode(text: str) -> bytes:
    """UTF-8; a lone surrogate, which JSON can smuggle in and a model can say, becomes the escape that JSON reads back."""
    return text.encode("utf-8", "backslashreplace")


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file so that it is there in full or not at all."""
    with whole_file(path) as temporary, temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_json(path: Path, data: Any) -> None:
    """Write JSON, indented, in full or not at all."""
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        DataError: the file is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError("file not found", file=path, remedy="is this a run folder?") from None
    except ValueError as error:
        raise DataError(f"not valid JSON ({error})", file=path) from None


def _open_journal(path: Path) -> BinaryIO:
    """Open for appending; the folder may vanish meanwhile, because the leading process removes it when it is empty."""
    for _ in range(100):
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            return path.open("ab")
    raise DataError("folder cannot be kept open for writing", file=path.parent)


def read_jsonl(path: Path) -> Rows:
    """Read JSON lines.

    Raises:
        DataError: the file is missing, or a line is damaged.
    """
    rows: Rows = []
    try:
        # Not splitlines(): it would also break at the separators that a JSON string may hold (U+2028).
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except FileNotFoundError:
        raise DataError("file not found", file=path) from None
    for number, line in enumerate(lines if lines != [""] else [], 1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise DataError(f"not valid JSON ({error})", file=path, line=number) from None
    return rows


def _plain(data: Any) -> Any:
    """As it will be read back (tuples become lists, keys become strings)."""
    return json.loads(json.dumps(data))
