"""POPE (arXiv 2305.10355): yes/no questions about objects in COCO images, in the files its authors publish.

``coco_pope_{random,popular,adversarial}.json`` are JSON Lines despite their names: ``{"question_id", "image", "text", "label"}``
with ``label`` "yes" or "no"; images are those of COCO ``val2014``. Link-Context Learning reads the same files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from kshot.data.choice import Benchmark, Support
from kshot.data.readers import PathLike, find_file, get
from kshot.data.sources import ImageRoot, LazyExamples
from kshot.data.splits import CHAT, CHAT_STOP, Style, files_of, join, parse_stated, read_records, unique_ids
from kshot.data.task import tasks
from kshot.episode import Example
from kshot.errors import DataError, OptionError, one_of
from kshot.prompt import Template
from kshot.whole_file import write_text

PLAIN = Template(
    demonstration="<image>Question:{question} Answer:{answer}",
    user="<image>{question}",
    short_instruction="Answer yes or no.",
)
UPSTREAM_ANSWER = "The answer is {} ."  # with the space, as Link-Context Learning trains it


@tasks.register("pope")
class POPE(Benchmark):
    """POPE: three splits of yes/no questions; accuracy, precision, recall, F1 and yes-ratio of each (metric ``pope``).

    Args:
        root: folder of ``<source>_pope_<split>.json`` (or ``output/coco/`` below it) and of the images.
        split: ``"all"`` (default), or one or several of ``random``, ``popular``, ``adversarial``.
        files: annotation files, where they are not under ``root``: one path, several, or paths by split. A file's split is the one
            its name ends with, else its name.
        images: folder (or zip) of the image files, or of ``val2014`` with them.
        source: what the questions are about: ``"coco"``, or another data set for which such files exist (``gqa``, ``aokvqa``).
        style: ``"plain"`` ("yes") or ``"upstream"`` ("The answer is yes .").
        support: ``None``: the other questions of the split that are not about the query's image; or JSON Lines, or a task.
        support_images: image root of that file.
        check_images: look for all image files at once and list those that are missing.

    Raises:
        DataError: see :mod:`kshot.data.readers`; also a label that is neither yes nor no, or a question id that occurs twice in a
            file.
    """

    name = "pope"
    metric = "pope"
    splits: ClassVar[tuple[str, ...]] = ("random", "popular", "adversarial")
    origin: ClassVar[str] = "https://github.com/AoiDragon/POPE/tree/main/output/coco"

    def __init__(
        self,
        root: PathLike | None = None,
        *,
        split: str | Sequence[str] = "all",
        files: PathLike | Sequence[PathLike] | Mapping[str, PathLike] | None = None,
        images: PathLike | None = None,
        source: str = "coco",
        style: Style = "plain",
        support: Support = None,
        support_images: PathLike | None = None,
        check_images: bool = False,
    ):
        if root is None and (files is None or images is None):
            raise OptionError("task 'pope' needs root= (the folder of its files), or files= and images=")
        wanted = self.splits if split == "all" else (split,) if isinstance(split, str) else tuple(split)
        self._splits = [one_of("split", name, (*self.splits, "all")) for name in wanted]
        self._root, self._files_given, self._images, self._source = root, files, images, source
        self._upstream = one_of("style", style, ("plain", "upstream")) == "upstream"
        self.template, self.stop = (CHAT, CHAT_STOP) if self._upstream else (PLAIN, ("\n",))
        self.max_new_tokens = 10 if self._upstream else 5
        self.labels = (self._written("yes"), self._written("no"))
        options = {"split": list(self._splits), "style": style, "source": source}
        super().__init__(support, support_images, check_images, **options)

    def parse(self, text: str) -> str:
        # A full stop that closes the answer is no part of it; longer answers are left to the metric, which has rules of its own.
        return parse_stated(text, self.stop) if self._upstream else super().parse(text).rstrip(". ")

    def write_results(self, predictions: Mapping[str, str], folder: PathLike) -> None:
        """Write answers (by query id) as POPE's script reads them: one file a split with lines ``{"question", "answer"}``."""
        rows: dict[str, list[str]] = {}
        for query in self._queries:
            if query.id in predictions:
                row = json.dumps({"question": query.question, "answer": predictions[query.id]}, ensure_ascii=False)
                rows.setdefault(str(query.metadata["split"]), []).append(row + "\n")
        for split, lines in rows.items():
            write_text(Path(folder) / f"{self._source}_pope_{split}_answers.json", "".join(lines))

    def _locate(self) -> dict[str, Path]:
        given = self._files_given
        if isinstance(given, Mapping):
            found = {str(split): Path(path) for split, path in given.items()}
        elif given is not None:
            found = {self._split_of(path): path for path in files_of(given)}
        else:
            places = (".", f"output/{self._source}", "annotations")
            found = {
                split: find_file(
                    self._root or ".",
                    [f"{self._source}_pope_{split}{ending}" for ending in (".json", ".jsonl")],
                    places,
                    source=self.origin,
                )
                for split in self._splits
            }
        self._by_split = found
        return super()._locate() | {f"queries {split}": path for split, path in found.items()}

    def _read_queries(self) -> Sequence[Example]:
        root, prefix = self._image_place()
        records = {split: read_records(path) for split, path in self._by_split.items()}
        parts = []
        for split, path in self._by_split.items():
            parts.append(self._read_split(split, path, records[split], root, prefix))
        examples = join(parts, list(self._by_split.values()), "question_id")
        members = [(split, record["image"]) for split, rows in records.items() for _, record in rows]
        self._leave_one_out(examples, [split for split, _ in members], [image for _, image in members])
        return examples

    def _read_split(
        self, split: str, file: Path, records: list[tuple[int, dict[str, object]]], root: ImageRoot, prefix: str
    ) -> tuple[list[str], LazyExamples]:
        ids = [f"{split}/{key}" for key in unique_ids(records, ("question_id",), file)]
        rows = []
        for number, record in records:
            label = str(get(record, "label", str, file, number)).strip().lower()
            if label not in ("yes", "no"):
                raise DataError(f"{label!r} is neither yes nor no", file=file, line=number, field="label")
            rows.append((get(record, "image", str, file, number), get(record, "text", str, file, number), label))

        def make(number: int) -> Example:
            image, question, label = rows[number]
            return Example(
                (root.picture(prefix + image),),
                question,
                self._written(label),
                references=(label,),
                id=ids[number],
                metadata={"category": split, "split": split, "image_id": image},
            )

        return ids, LazyExamples(make, range(len(rows)))

    def _written(self, label: str) -> str:
        return UPSTREAM_ANSWER.format(label) if self._upstream else label

    def _split_of(self, path: Path) -> str:
        return next((split for split in self.splits if path.stem.endswith(split)), path.stem)

    def _image_place(self) -> tuple[ImageRoot, str]:
        root = Path(self._images if self._images is not None else self._root or ".")
        for folder in (root, root / "images"):
            if (folder / "val2014").is_dir() or (folder / "val2014.zip").is_file():
                return ImageRoot(folder), "val2014/"
        return ImageRoot(root), ""
