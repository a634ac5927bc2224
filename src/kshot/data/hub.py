"""Any data set of the Hugging Face ``datasets`` library, by naming its columns."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kshot.data.jsonl import QUESTION
from kshot.data.readers import PathLike, check_unique, shuffled
from kshot.data.sources import FileTask, ImageRoot, LazyExamples, as_template
from kshot.data.task import tasks
from kshot.episode import Example
from kshot.errors import DataError, KshotError, OptionError
from kshot.picture import BytesPicture, FilePicture, Picture
from kshot.prompt import Template

LABEL = Template(
    demonstration="<image>Answer:{answer}",
    user="<image>What is this?",
    short_instruction="Answer with the name of the class only.",
)
FILE_KINDS = {".parquet": "parquet", ".arrow": "arrow", ".csv": "csv", ".json": "json", ".jsonl": "json"}


@tasks.register("hf")
class HubDataset(FileTask):
    """Examples of a ``datasets`` data set; rows are read, and images decoded, when they are needed.

    Args:
        path: id on the Hub, a folder that ``save_to_disk`` wrote, a folder of data files, or one Parquet, Arrow, CSV or JSON file.
        config: name of the data set's configuration, where it has several.
        split: split of the queries.
        support_split: split of the support set. Without it, ``support_size`` rows of ``split`` are set aside.
        support_size: how many.
        image: column, or columns, of the images: ``Image`` features, lists of them, or file names relative to ``images``.
        question: column of the questions; ``None``: there are none.
        answer: column of the answers: text, a class label (its name is the answer), or the number of a choice. ``None``: the first
            reference is the answer.
        references: column of all accepted answers: texts, or objects with a field ``answer``.
        choices: column of the choices.
        id: column of unique ids. Default: split and row number.
        metadata: columns to keep for the metric and the report.
        images: image root, where the image column holds file names.
        metric, template, stop, max_new_tokens: as in :class:`~kshot.data.task.Task`; a template may be given by some of its fields.
        seed: chooses the rows that are set aside.
        revision, cache_dir: passed on to ``datasets.load_dataset``.

    Raises:
        OptionError: no such column or split.
        DataError: the data set cannot be loaded, ids are not unique, or a row lacks its answer.
    """

    name = "hf"
    template = QUESTION

    def __init__(
        self,
        path: PathLike,
        *,
        split: str = "test",
        support_split: str | None = "train",
        support_size: int | None = None,
        config: str | None = None,
        image: str | Sequence[str] | None = "image",
        question: str | None = None,
        answer: str | None = None,
        references: str | None = None,
        choices: str | None = None,
        id: str | None = None,
        metadata: Sequence[str] = (),
        images: PathLike | None = None,
        metric: str = "exact_match",
        template: Template | Mapping[str, Any] | None = None,
        stop: Sequence[str] = ("\n",),
        max_new_tokens: int = 10,
        seed: int = 0,
        revision: str | None = None,
        cache_dir: PathLike | None = None,
    ):
        if answer is None and references is None:
            raise OptionError("task 'hf' needs answer= or references= (the columns of the answers)")
        image_columns = () if image is None else (image,) if isinstance(image, str) else tuple(image)
        self._columns = {"question": question, "answer": answer, "references": references, "choices": choices, "id": id}
        self._image_columns, self._metadata = image_columns, tuple(metadata)
        self._path, self._config, self._revision, self._cache = str(path), config, revision, cache_dir
        self._root = ImageRoot(images) if images is not None else None
        self._split, self._support_size, self._seed = split, support_size, seed
        self._support_split = None if support_size is not None else support_split
        if self._support_split is None and support_size is None:
            raise OptionError("task 'hf' needs support_split=, or support_size= to set rows of the split aside")
        self.template = as_template(template, LABEL if question is None else QUESTION)
        self.metric, self.stop, self.max_new_tokens = metric, tuple(stop), max_new_tokens
        self._loaded: dict[str, Any] = {}
        self._fingerprints: dict[str, str] = {}
        super().__init__(
            config=config,
            split=split,
            support_split=self._support_split,
            support_size=support_size,
            seed=seed if support_size is not None else None,
            columns={k: v for k, v in self._columns.items() if v} | {"image": list(image_columns)},
            revision=revision,
        )

    def describe(self) -> dict[str, Any]:
        """As for every task, with the data set's name and the fingerprints that ``datasets`` gives its splits."""
        path = Path(self._path)
        return super().describe() | {
            "dataset": path.name if path.exists() else self._path,
            "fingerprints": dict(sorted(self._fingerprints.items())),
        }

    def _locate(self) -> dict[str, Path]:
        path = Path(self._path)
        return {"data": path} if path.is_file() else {}

    def _read_queries(self) -> Sequence[Example]:
        rows = self._rows(self._split)
        if self._support_size is None:
            self._rows(str(self._support_split))  # loaded now, so that a wrong name shows at once; rows are not read
            return self._examples(self._split, range(len(rows)))
        if not 0 < self._support_size < len(rows):
            raise OptionError(f"support_size must be between 1 and {len(rows) - 1}; the split has {len(rows)} rows")
        order = shuffled(map(str, range(len(rows))), "hf", self._seed)
        aside = sorted(int(key) for key in order[: self._support_size])
        self._aside = self._examples(self._split, aside)
        return self._examples(self._split, sorted(set(range(len(rows))).difference(aside)))

    def _read_support(self) -> Sequence[Example]:
        if self._support_split is None:
            return self._aside
        return self._examples(self._support_split, range(len(self._rows(self._support_split))))

    def _rows(self, split: str) -> Any:
        """A split as a ``datasets.Dataset`` whose images stay encoded."""
        if split not in self._loaded:
            rows = self._keep_encoded(self._load(split))
            self._fingerprints[split] = str(rows._fingerprint)
            self._loaded[split] = rows
        return self._loaded[split]

    def _load(self, split: str) -> Any:
        import datasets

        cache = os.fspath(self._cache) if self._cache is not None else None
        path = Path(self._path)
        try:
            if path.is_file():
                kind = FILE_KINDS.get(path.suffix.lower())
                if kind is None:
                    raise DataError(f"a file of kind {', '.join(FILE_KINDS)} is expected", file=path)
                return datasets.load_dataset(kind, data_files={split: str(path)}, split=split, cache_dir=cache)
            if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
                found = datasets.load_from_disk(str(path))
                if isinstance(found, datasets.Dataset):
                    return found
                if split not in found:
                    raise OptionError(
                        f"data set {path.name!r} has no split {split!r}; its splits are: {', '.join(found)}"
                    )
                return found[split]
            return datasets.load_dataset(
                self._path, self._config, split=split, revision=self._revision, cache_dir=cache
            )
        except KshotError:
            raise
        except ValueError as error:  # an unknown split or configuration; the message lists those there are
            raise OptionError(f"data set {self._path!r}: {_first_line(error)}") from error
        except (OSError, RuntimeError, ImportError, datasets.exceptions.DatasetsError) as error:
            raise DataError(
                f"data set cannot be loaded: {_first_line(error)}",
                file=self._path,
                remedy="give an id on the Hub, a folder, or a Parquet file",
            ) from error

    def _keep_encoded(self, rows: Any) -> Any:
        import datasets

        for column in (*filter(None, self._columns.values()), *self._image_columns, *self._metadata):
            if column not in rows.column_names:
                names = ", ".join(rows.column_names)
                raise OptionError(f"data set {self._path!r} has no column {column!r}; its columns are: {names}")
        encoded = datasets.Image(decode=False)
        for column in self._image_columns:
            feature = rows.features[column]
            if isinstance(feature, datasets.Image):
                rows = rows.cast_column(column, encoded)
            elif isinstance(getattr(feature, "feature", None), datasets.Image):
                rows = rows.cast_column(column, datasets.List(encoded))
        label = rows.features.get(self._columns["answer"] or "")
        if isinstance(label, datasets.ClassLabel):
            self.labels = tuple(label.names)
        return rows

    def _examples(self, split: str, numbers: Sequence[int]) -> LazyExamples:
        rows = self._rows(split)
        if column := self._columns["id"]:
            ids = rows.select_columns([column])[:][column]  # one column at once, without images
            check_unique([str(ids[n]) for n in numbers], self._path, column, [n + 1 for n in numbers])

        def make(number: int) -> Example:
            row = rows[number]
            choices = tuple(map(str, self._value(row, "choices", ())))
            answer, references = self._answers(row, choices, number)
            key = self._value(row, "id", None)
            return Example(
                images=tuple(p for c in self._image_columns for p in self._pictures(row[c], f"{split}[{number}].{c}")),
                question=str(self._value(row, "question", "")),
                answer=answer,
                references=references,
                choices=choices,
                id=str(key) if key is not None else f"{split}-{number}",
                metadata={column: row[column] for column in self._metadata},
            )

        return LazyExamples(make, numbers)

    def _value(self, row: Mapping[str, Any], role: str, missing: Any) -> Any:
        column = self._columns[role]
        value = row[column] if column else None
        return missing if value is None else value

    def _answers(
        self, row: Mapping[str, Any], choices: Sequence[str], number: int
    ) -> tuple[str | None, tuple[str, ...]]:
        given = self._value(row, "references", ())
        if isinstance(given, Mapping):  # a sequence of objects comes as an object of sequences
            given = given.get("answer", ())
        references = tuple(str(r["answer"] if isinstance(r, Mapping) else r) for r in given if r is not None)
        answer = self._value(row, "answer", None)
        if isinstance(answer, int) and not isinstance(answer, bool):
            names = self.labels or choices
            if not names:
                answer = str(answer)
            elif 0 <= answer < len(names):
                answer = names[answer]
            elif answer == -1:  # what data sets write where the answer is kept secret
                answer = None
            else:
                raise DataError(
                    f"the answer {answer} is the number of none of the {len(names)} choices",
                    file=self._path,
                    line=number + 1,
                    field=self._columns["answer"],
                )
        if answer is None:
            answer = references[0] if references else None
        return (None if answer is None else str(answer)), references

    def _pictures(self, value: Any, name: str) -> list[Picture]:
        if value is None:
            return []
        if isinstance(value, list):
            return [p for i, item in enumerate(value) for p in self._pictures(item, f"{name}[{i}]")]
        if isinstance(value, str):
            return [self._root.picture(value) if self._root else FilePicture(value)]
        if isinstance(value, Mapping) and value.get("bytes") is not None:
            return [BytesPicture(value["bytes"], f"{Path(self._path).name}/{name}")]
        if isinstance(value, Mapping) and value.get("path"):
            return [FilePicture(value["path"])]
        raise DataError(f"not an image: {type(value).__name__}", file=self._path, field=name)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
