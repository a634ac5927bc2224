"""``kshot build-episodes``: the lists of classes and queries that link-context training and evaluation read, made from folders."""

from __future__ import annotations

import inspect
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from kshot.data.folder import class_folders, class_names
from kshot.data.imagenet_folder import find_images, image_base
from kshot.data.imagenet_lists import draw_test100, held_out_classes, write_test100
from kshot.data.imagenet_train import find_class_map, listed_classes, read_class_map, shipped_names, write_train900
from kshot.data.isekai import isekai_from_folders, isekai_pairs, write_isekai
from kshot.data.training_lists import Drawn, Draws, draw_training
from kshot.errors import DataError, OptionError, listed, one_of
from kshot.metrics.common import fold

if TYPE_CHECKING:
    from rich.text import Text

_DRAWN = ("clip", "neighbours", "seed", "samples", "bins", "images_per_class", "device", "cache")

OPTIONS = {
    "imagenet": (*_DRAWN, "context", "class_map", "val_labels"),
    "folders": (*_DRAWN, "names"),
    "isekai": ("pairs", "queries", "labels"),
}
"""What can be made, and which options each takes beside ``root`` and ``out``."""

SIMILARITY = "class_similarity.safetensors"


@dataclass(frozen=True)
class Built:
    """What was made.

    Attributes:
        kind: ``imagenet``, ``folders`` or ``isekai``.
        files: the files, by what they hold.
        counts: how many of what are in them.
        notices: everything that is not as in the published lists.
        skipped: images that could not be used, with the reason.
        root: the folder that the paths in the lists are relative to.
    """

    kind: str
    files: Mapping[str, Path]
    counts: Mapping[str, int]
    notices: tuple[str, ...]
    skipped: Mapping[str, str]
    root: Path

    def __str__(self) -> str:
        lines = [f"{what}: {path}" for what, path in self.files.items()]
        lines += [f"image root: {self.root}"]
        lines += [f"{count:>8,}  {what}" for what, count in self.counts.items()]
        lines += [f"note: {notice}" for notice in self.notices]
        lines += [f"{len(self.skipped):>8,}  images skipped"]
        lines += [f"          {path}: {reason}" for path, reason in self.skipped.items()]
        return "\n".join(lines)

    def __rich__(self) -> Text:
        from rich.text import Text

        return Text(str(self))


def build_episodes(
    kind: str,
    *,
    root: str,
    out: str,
    clip: str | None = None,
    neighbours: Literal["similar", "random"] | None = None,
    seed: int = 0,
    samples: int = 36,
    bins: int = 36,
    images_per_class: int = 100,
    context: int = 32,
    class_map: str | None = None,
    val_labels: str | None = None,
    names: str | dict[str, str] | None = None,
    pairs: bool = False,
    queries: Literal["both", "positive", "negative"] = "both",
    labels: dict[str, list[str]] | None = None,
    device: str | None = None,
    cache: str | None = None,
) -> Built:
    """Make the lists that link-context training and evaluation read: from ImageNet, from ISEKAI folders, or from folders of your own.

    ``imagenet`` writes ``train900_pairs.jsonl`` and ``test100_pairs.jsonl`` into the folder ``out``, ``folders`` (one sub-folder a
    class) a list like the former into the file ``out``, ``isekai`` an annotation file like ``ISEKAI-10.json`` into the file ``out``.
    The same inputs and seed give the same bytes.

    Args:
        kind: imagenet, folders or isekai.
        root: the folder of the images.
        out: the folder (imagenet) or file to write.
        clip: CLIP or SigLIP model, a folder or repository, by which classes are compared. The published list was made with
            openai/clip-vit-base-patch16.
        neighbours: similar (by --clip) or random. Default: similar where a model is given.
        seed: of everything that is drawn.
        samples: images of a training class.
        bins: neighbours of a training class.
        images_per_class: images that the similarity of a class is computed from, at most.
        context: imagenet: images of a test class that are for demonstrations.
        class_map: imagenet: map_clsloc.txt, if it is not in the development kit under root. Without one, kshot's own list.
        val_labels: imagenet: ground-truth file of the validation images, if it is not found by itself.
        names: folders: the names of classes where they are not those of the folders, or a JSON file with them.
        pairs: isekai: every invented concept against every other, as in ISEKAI-pair, instead of concept against known relative.
        queries: isekai: the classes whose pictures are queries.
        labels: isekai: positive and negative name of a group where the folders do not tell them.
        device: where the CLIP model runs.
        cache: folder of the features that have been computed. Default: KSHOT_CACHE, or the user's cache folder.

    Raises:
        DataError: images or classes that are missing, classes with too few images, malformed files.
        OptionError: options that do not go together.
    """
    one_of("kind", kind, tuple(OPTIONS))
    given = {name: value for name, value in locals().items() if name not in ("kind", "root", "out")}
    defaults = inspect.signature(build_episodes).parameters
    for name, value in given.items():
        if name not in OPTIONS[kind] and value != defaults[name].default:
            raise OptionError(
                f"--{name.replace('_', '-')} is no option of {kind}; it takes {listed(OPTIONS[kind], 20)}"
            )
    if neighbours == "similar" and clip is None:
        raise OptionError("neighbours='similar' needs --clip, a CLIP model by which classes are compared")
    for name, least in (("samples", 1), ("bins", 1), ("images_per_class", 1), ("context", 1)):
        if given[name] < least:
            raise OptionError(f"--{name.replace('_', '-')} {given[name]}: must be {least} or more")
    if kind == "isekai":
        return _isekai(Path(root), Path(out), pairs, queries, labels)
    draws = Draws(seed, samples, bins, images_per_class, clip if neighbours != "random" else None, device, cache)
    if kind == "folders":
        return _folders(Path(root), Path(out), names, draws)
    return _imagenet(Path(root), Path(out), class_map, val_labels, context, draws)


def _imagenet(
    root: Path, out: Path, class_map: str | None, val_labels: str | None, context: int, draws: Draws
) -> Built:
    base = image_base(root)
    notices: list[str] = []
    file = Path(class_map) if class_map is not None else find_class_map(root)
    named = read_class_map(file) if file is not None else shipped_names()
    if file is None:
        notices.append("no map_clsloc.txt found: class ids and names are those of ILSVRC2015, from the list in kshot")
    held_out = {wnid: class_id for class_id, wnid, _ in held_out_classes()}
    if other := [wnid for wnid, class_id in held_out.items() if wnid in named and named[wnid][0] != class_id]:
        notices.append(
            f"class ids are those of {file}, not the published ones: {other[0]} is {held_out[other[0]]} there"
        )
    folders = {p.name for p in (base / "train").iterdir() if p.is_dir()} if (base / "train").is_dir() else set()
    present = sorted(set(named) & folders) or sorted(named)
    for problem, wnids in (
        ("classes have no folder in train/", sorted(set(named) - set(present))),
        ("folders in train/ are none of the known classes", sorted(folders - set(named))),
    ):
        if wnids:
            notices.append(f"{len(wnids)} {problem}: {listed(wnids)}")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = find_images(base, {wnid: int(named[wnid][0]) for wnid in present}, val_labels)
    notices += [str(warning.message) for warning in told]
    classes = listed_classes({wnid: paths for wnid, paths in found.items() if wnid not in held_out}, named)
    tests = draw_test100(
        {wnid: paths for wnid, paths in found.items() if wnid in held_out},
        seed=draws.seed,
        context=context,
        named=named,
        source=root,
    )
    if len(tests) < len(held_out):
        notices.append(
            f"{len(held_out) - len(tests)} of {len(held_out)} test classes are left out, they or their pairs are missing"
        )
    files: dict[str, Path] = {}
    counts: dict[str, int] = {}
    skipped: dict[str, str] = {}
    if classes:
        drawn = draw_training(classes, base, out / SIMILARITY, draws)
        files |= _write(drawn, out / "train900_pairs.jsonl", out / SIMILARITY, draws)
        counts |= _counts(drawn)
        notices += drawn.notices
        skipped |= drawn.skipped
    else:
        notices.append("all classes are held out: there is no list of training classes")
    if tests:
        files["test classes"] = out / "test100_pairs.jsonl"
        write_test100(tests, files["test classes"])
        counts |= {
            "test classes": len(tests),
            "images for demonstrations": sum(len(row.context_samples) for row in tests),
            "test images": sum(len(row.test_samples) for row in tests),
        }
    return Built("imagenet", files, counts, tuple(notices), skipped, base)


def _folders(root: Path, out: Path, names: str | Mapping[str, str] | None, draws: Draws) -> Built:
    found, other = class_folders(root)
    told = class_names(names)
    if unknown := sorted(set(told) - set(found)):
        raise DataError(f"names= holds no folders of the root: {listed(unknown)}", file=root)
    named = {folder: (str(number), told.get(folder, folder)) for number, folder in enumerate(found, 1)}
    counted = Counter(fold(name) for _, name in named.values())
    if twice := [name for _, name in named.values() if counted[fold(name)] > 1]:
        raise DataError(f"two classes of one name: {listed(twice)}", file=root, remedy="rename one of them")
    notices = [f"{other} files are no images"] if other else []
    images = {folder: [f"{folder}/{name}" for name in paths] for folder, paths in found.items()}
    similarity = out.with_name(f"{out.stem}.{SIMILARITY}")
    drawn = draw_training(listed_classes(images, named), root, similarity, draws)
    files = _write(drawn, out, similarity, draws)
    return Built("folders", files, _counts(drawn), (*notices, *drawn.notices), drawn.skipped, root)


def _isekai(root: Path, out: Path, pairs: bool, queries: str, labels: Mapping[str, list[str]] | None) -> Built:
    records = isekai_pairs(root, labels) if pairs else isekai_from_folders(root, labels)
    if queries != "both":
        records = tuple(r for r in records if (r.label == r.positive_name) == (queries == "positive"))
    if not records:
        raise DataError(f"no {queries} queries: flat folders hold queries of the positive class only", file=root)
    write_isekai(records, out)
    positive = sum(record.label == record.positive_name for record in records)
    notices = []
    if queries == "both" and positive == len(records):
        notices.append("flat folders hold queries of the positive class only")
    if len(records) % 2:
        notices.append("an odd number of lines, which the published evaluation program refuses")
    counts = {
        "pairs of classes": len({record.group for record in records}),
        "queries of the positive class": positive,
        "queries of the negative class": len(records) - positive,
    }
    return Built("isekai", {"queries": out}, counts, tuple(notices), {}, root)


def _write(drawn: Drawn, file: Path, similarity: Path, draws: Draws) -> dict[str, Path]:
    write_train900(drawn.rows, file)
    return {"training classes": file} | ({"similarity of classes": similarity} if draws.clip is not None else {})


def _counts(drawn: Drawn) -> dict[str, int]:
    return {
        "training classes": len(drawn.rows),
        "training images": sum(len(row.samples) for row in drawn.rows),
        "neighbours": sum(len(row.neighbors) for row in drawn.rows),
    }
