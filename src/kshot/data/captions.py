"""Captions: COCO 2014 (Karpathy's split), COCO 2017 and Flickr30k, in the files they are published in.

- Karpathy's ``dataset_coco.json`` and ``dataset_flickr30k.json``: ``{"images": [{"filename", "filepath", "split", "sentences":
  [{"raw"}], "cocoid" or "imgid"}]}``.
- COCO 2017 ``captions_{train,val}2017.json``: ``{"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}``.
- Flickr30k ``results_20130124.token``: lines ``1000092795.jpg#0<TAB>caption``, with lists of image ids ``train.txt``, ``val.txt``,
  ``test.txt`` (those of Flickr30k Entities) beside it.

One query is one image; all its sentences are references, the first is the caption shown in demonstrations.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from kshot.data.readers import PathLike, check_unique, find_file, get, index_by, read_json, read_text
from kshot.data.sources import FileTask, ImageRoot, LazyExamples
from kshot.data.task import tasks
from kshot.episode import Example
from kshot.errors import DataError, OptionError
from kshot.prompt import Template
from kshot.whole_file import write_text

TEMPLATE = Template(
    demonstration="<image>Caption:{answer}",
    separator="\n\n",
    user="<image>Write a caption for this image.",
    short_instruction="Describe the image in one short sentence.",
)
KARPATHY = "https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip"

Record = tuple[str, str, tuple[str, ...], dict[str, Any]]
"""One image: its id, its file name below the image root, its captions, metadata."""


class CaptionTask(FileTask):
    """Base of the caption tasks; a subclass says how a split is read.

    Args:
        root: folder of the annotation files and the images.
        split: split of the queries, ``"test"`` or ``"val"``.
        captions: the annotation file of the queries, where it is not under ``root``.
        images: folder (or zip) of the images, where they are not under ``root``.
        support_captions, support_images: the same for the support set, where it has files of its own.
        check_images: look for all image files at once and list those that are missing.

    Raises:
        OptionError: neither ``root`` nor the files are given, or there is no such split.
        DataError: see :mod:`kshot.data.readers`; also an image without captions, or a caption without image.
    """

    template = TEMPLATE
    metric = "cider"
    stop = ("\n", "Caption:")
    max_new_tokens = 20
    source: ClassVar[str]
    splits: ClassVar[tuple[str, ...]] = ("test", "val")
    support_splits: ClassVar[tuple[str, ...]] = ("train",)
    image_folders: ClassVar[tuple[str, ...]] = ()
    support_file: ClassVar[bool] = False  # whether the support set has an annotation file of its own

    def __init__(
        self,
        root: PathLike | None = None,
        *,
        split: str | None = None,
        captions: PathLike | None = None,
        images: PathLike | None = None,
        support_captions: PathLike | None = None,
        support_images: PathLike | None = None,
        check_images: bool = False,
    ):
        self._split = self.splits[0] if split is None else split
        if self._split not in self.splits:
            raise OptionError(f"task {self.name!r} has no split {split!r}; its splits are: {', '.join(self.splits)}")
        if root is None and (captions is None or images is None):
            raise OptionError(f"task {self.name!r} needs root= (the folder of its files), or captions= and images=")
        self._root, self._captions, self._images = root, captions, images
        self._support_captions = support_captions if support_captions is not None or self.support_file else captions
        self._support_images = support_images if support_images is not None else images
        super().__init__(check_images=check_images, split=self._split)

    @abstractmethod
    def read_split(self, file: Path, splits: tuple[str, ...]) -> list[Record]:
        """The images of some splits."""

    @abstractmethod
    def find_captions(self, root: PathLike, splits: tuple[str, ...]) -> Path:
        """The annotation file of some splits under a root."""

    def write_results(self, predictions: Mapping[str, str], path: PathLike) -> None:
        """Write captions (by query id) as COCO's evaluation server wants them: ``[{"image_id", "caption"}]``."""
        known = {query_id: metadata.get("image_id", query_id) for query_id, _, _, metadata in self._query_records}
        if unknown := set(predictions) - set(known):
            raise DataError(f"prediction for an image that is not in this split: {sorted(unknown)[0]!r}")
        rows = [{"image_id": known[key], "caption": caption} for key, caption in predictions.items()]
        write_text(path, json.dumps(rows, ensure_ascii=False))

    def _locate(self) -> dict[str, Path]:
        files: dict[str, Path] = {}
        for role, given, splits in (
            ("queries", self._captions, (self._split,)),
            ("support", self._support_captions, self.support_splits),
        ):
            try:
                files[role] = Path(given) if given is not None else self.find_captions(self._root or ".", splits)
            except DataError:
                if role == "queries":
                    raise  # a missing support file is reported when the support set is asked for
        return files

    def _read_queries(self) -> Sequence[Example]:
        self._query_records, examples = self._read("queries", (self._split,), self._images)
        return examples

    def _read_support(self) -> Sequence[Example]:
        if "support" not in self._files:
            self.find_captions(self._root or ".", self.support_splits)  # raises: says what was looked for
        return self._read("support", self.support_splits, self._support_images)[1]

    def _read(self, role: str, splits: tuple[str, ...], images: PathLike | None) -> tuple[list[Record], LazyExamples]:
        file = self._files[role]
        records = self.read_split(file, splits)
        if not records:
            raise DataError(f"no images of the split {' or '.join(splits)}", file=file)
        check_unique([record[0] for record in records], file, "image id")
        place = ImageRoot(images if images is not None else self._image_root())

        def make(number: int) -> Example:
            key, name, sentences, metadata = records[number]
            return Example((place.picture(name),), "", sentences[0], sentences, id=key, metadata=metadata)

        return records, LazyExamples(make, range(len(records)))

    def _image_root(self) -> Path:
        root = Path(self._root or ".")
        return next((root / name for name in self.image_folders if (root / name).exists()), root)


class KarpathyTask(CaptionTask):
    """Captions in the format of Karpathy's split files."""

    file_name: ClassVar[str]
    source = KARPATHY

    def find_captions(self, root: PathLike, splits: tuple[str, ...]) -> Path:
        return find_file(root, [self.file_name], (".", "karpathy", "annotations"), source=self.source)

    def read_split(self, file: Path, splits: tuple[str, ...]) -> list[Record]:
        records: list[Record] = []
        images = get(read_json(file), "images", list, file)
        for number, image in enumerate(images, start=1):
            if get(image, "split", str, file, number) not in splits:
                continue
            key = image.get("cocoid", image.get("imgid"))
            if not isinstance(key, int):
                raise DataError("field is missing or no whole number", file=file, line=number, field="cocoid or imgid")
            name = get(image, "filename", str, file, number)
            folder = image.get("filepath", "")
            sentences = tuple(
                _one_line(get(s, "raw", str, file, number)) for s in get(image, "sentences", list, file, number)
            )
            if not sentences:
                raise DataError("the image has no captions", file=file, line=number, field="sentences")
            records.append((str(key), f"{folder}/{name}" if folder else name, sentences, {"image_id": key}))
        return records


@tasks.register("coco2014")
class COCO2014(KarpathyTask):
    """COCO captions, Karpathy's split: 5,000 test images; support from train + restval (113,287). See :class:`CaptionTask`."""

    name = "coco2014"
    file_name = "dataset_coco.json"
    support_splits = ("train", "restval")
    image_folders = ("images",)


@tasks.register("flickr30k")
class Flickr30k(KarpathyTask):
    """Flickr30k: 1,000 test images, support from train, by Karpathy's file or the ``.token`` file. See :class:`CaptionTask`."""

    name = "flickr30k"
    file_name = "dataset_flickr30k.json"
    token_file = "results_20130124.token"
    image_folders = ("flickr30k-images", "flickr30k_images", "images")

    def find_captions(self, root: PathLike, splits: tuple[str, ...]) -> Path:
        return find_file(root, [self.file_name, self.token_file], (".", "karpathy", "annotations"), source=self.source)

    def read_split(self, file: Path, splits: tuple[str, ...]) -> list[Record]:
        if file.suffix != ".token":
            return super().read_split(file, splits)
        wanted: list[str] = []
        for split in splits:
            listed = file.with_name(f"{split}.txt")
            wanted += read_text(
                listed, remedy="the .token file has no splits: get the lists of Flickr30k Entities"
            ).split()
        captions = _read_token_file(file)
        for key in wanted:
            if key not in captions:
                raise DataError(f"image {key} of {'/'.join(splits)}.txt has no captions", file=file)
        return [(key, f"{key}.jpg", tuple(captions[key]), {"image_id": key}) for key in wanted]


@tasks.register("coco2017")
class COCO2017(CaptionTask):
    """COCO captions 2017: 5,000 validation images as queries, support from train. See :class:`CaptionTask`."""

    name = "coco2017"
    source = "http://images.cocodataset.org/annotations/annotations_trainval2017.zip"
    splits = ("val",)
    support_file = True

    def find_captions(self, root: PathLike, splits: tuple[str, ...]) -> Path:
        return find_file(root, [f"captions_{splits[0]}2017.json"], (".", "annotations"), source=self.source)

    def read_split(self, file: Path, splits: tuple[str, ...]) -> list[Record]:
        data = read_json(file)
        images = index_by(get(data, "images", list, file), "id", file, int)
        captions: dict[int, list[str]] = {}
        for number, annotation in enumerate(get(data, "annotations", list, file), start=1):
            key = get(annotation, "image_id", int, file, number)
            if key not in images:
                raise DataError(f"caption of image {key}, which is not under 'images'", file=file, line=number)
            captions.setdefault(key, []).append(_one_line(get(annotation, "caption", str, file, number)))
        folder = f"{splits[0]}2017"
        given = self._images if splits == (self._split,) else self._support_images
        below = Path(given if given is not None else self._image_root())
        prefix = f"{folder}/" if (below / folder).is_dir() or (below / f"{folder}.zip").is_file() else ""
        records: list[Record] = []
        for number, (key, image) in enumerate(images.items(), start=1):
            if key not in captions:
                raise DataError(f"image {key} has no captions", file=file, line=number)
            name = prefix + get(image, "file_name", str, file, number)
            records.append((str(key), name, tuple(captions[key]), {"image_id": key}))
        return records

    def _image_root(self) -> Path:
        root = Path(self._root or ".")
        return root / "images" if (root / "images").is_dir() else root


def _one_line(caption: str) -> str:
    """A caption without the line breaks that some have inside or behind: in a prompt a line break ends an answer."""
    return " ".join(caption.split())


def _read_token_file(file: Path) -> dict[str, list[str]]:
    """Captions by image id of a file with lines ``<id>.jpg#<number><TAB><caption>``."""
    captions: dict[str, list[str]] = {}
    for number, line in enumerate(read_text(file).split("\n"), start=1):
        if not line.strip():
            continue
        place, tab, caption = line.partition("\t")
        name, mark, _ = place.partition("#")
        if not tab or not mark:
            raise DataError("not of the form image.jpg#0<TAB>caption", file=file, line=number)
        captions.setdefault(name.removesuffix(".jpg"), []).append(_one_line(caption))
    return captions
