"""ImageNet-100, the 2-way test of Link-Context Learning (arXiv 2308.07891): is it the class or its pair?"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from kshot.data.concepts import Concept, ConceptTask, Draw, LazySequence, Names, Style, digest, generator, listed
from kshot.data.imagenet_lists import HeldOutClass, build_test100, read_test100
from kshot.data.readers import PathLike
from kshot.data.sources import ImageRoot
from kshot.data.task import tasks
from kshot.errors import DataError
from kshot.prompt import Template


@tasks.register("imagenet100")
class ImageNet100(ConceptTask):
    """100 held-out classes in 50 pairs, 50 test images each: 5,000 episodes.

    The query shows either class of a pair equally often. Class and order of queries are those of the list.

    Args:
        root: the ImageNet folder: ILSVRC (with ``Data/CLS-LOC``), or a folder with ``train/<wnid>/`` and ``val/`` (flat, with the
            ground-truth file in the development kit or beside it, or ``val/<wnid>/``).
        file: a list of images in the format of ``test100_pairs.jsonl``; default: drawn from ``root``, see
            :func:`~kshot.data.imagenet_lists.build_test100`; ``write_test100(task.classes, file)`` keeps it.
        episodes_per_class: queries of each class: its first test images.
        seed: of the drawn list, of invented names, and of the order in which the two names are offered.
        names: ``classes`` (real names in lower case, as published), or ``invented``, ``letters``, ``unseen``.
        shots_per_class: demonstrations of each class evaluated by default (``shots`` is their total).
        style: ``link`` (as published) or ``plain``.
        template: fields that replace those of the style's template.
        val_labels: ground-truth file of the validation images, if it is not found by itself.
    """

    name = "imagenet100"

    def __init__(
        self,
        root: PathLike,
        file: PathLike | None = None,
        episodes_per_class: int = 50,
        seed: int = 0,
        names: Names = "classes",
        shots_per_class: int = 1,
        style: Style = "link",
        template: Mapping[str, str] | Template | None = None,
        val_labels: PathLike | None = None,
    ):
        self._images = ImageRoot(root)
        self.classes: tuple[HeldOutClass, ...] = (
            read_test100(file) if file is not None else build_test100(root, seed=seed, val_labels=val_labels)
        )
        self.episodes_per_class = episodes_per_class
        super().__init__(
            episodes=len(self.classes) * episodes_per_class,
            ways=2,
            seed=seed,
            names=names,
            shots_per_class=shots_per_class,
            style=style,
            template=template,
        )
        for option, need, field in (
            ("episodes_per_class", episodes_per_class, "test_samples"),
            ("shots_per_class", shots_per_class, "context_samples"),
        ):
            poor = [f"{c.class_name} ({n})" for c in self.classes if (n := len(getattr(c, field))) < need]
            if poor:
                problem = f"classes with fewer images than {option}={need}: {listed(poor)}"
                raise DataError(problem, file=file or root, field=field, remedy=f"lower {option}")

    def draw(self, index: int) -> Draw:
        row, number = divmod(index, self.episodes_per_class)
        first = row - row % 2
        turned = int(generator(self.seed, "order", index).integers(2))
        concepts = tuple(self._concept(self.classes[first + (place ^ turned)]) for place in (0, 1))
        query = self._images.picture(self.classes[row].test_samples[number])
        # All queries of a pair bear the same invented names, so that they can share their demonstrations.
        return Draw(concepts, (row - first) ^ turned, query, None, f"{first}/{turned}")

    def describe(self) -> dict[str, Any]:
        shown = [[c.class_id, c.context_samples, c.test_samples[: self.episodes_per_class]] for c in self.classes]
        return {
            **super().describe(),
            "episodes_per_class": self.episodes_per_class,
            "classes": len(self.classes),
            "images_digest": digest(json.dumps(shown)),
        }

    def _concept(self, row: HeldOutClass) -> Concept:
        samples = row.context_samples
        pictures = LazySequence(len(samples), lambda i: self._images.picture(samples[i]))
        return Concept(f"{row.class_id} {row.class_name.lower()}", row.class_name.lower(), pictures)
