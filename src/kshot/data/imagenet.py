"""ImageNet-100, the 2-way test of Link-Context Learning (arXiv 2308.07891): is it the class or its pair?"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from kshot.data.concepts import Concept, ConceptTask, Draw, Style
from kshot.data.derived import LazySequence, digest, generator
from kshot.data.imagenet_folder import image_base
from kshot.data.imagenet_lists import HeldOutClass, build_test100, read_test100
from kshot.data.naming import Names
from kshot.data.readers import PathLike
from kshot.data.sources import ImageRoot
from kshot.data.task import Task, tasks
from kshot.episode import Example
from kshot.errors import DataError, OptionError, listed, one_of
from kshot.prompt import Template

ZeroShot = Literal["query", "names"]

NAMES = Template(
    demonstration="USER: {question} <image> belongs to? ASSISTANT: {answer}",
    query="USER: {question} <image> belongs to? ASSISTANT:",
    user="{question} <image> belongs to?",
    separator="\n",
)
"""The zero-shot form of the paper; the question lists the names."""


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
        zero_shot: how queries are asked without demonstrations: ``query`` (in the same words; nothing tells the names) or ``names``
            (the paper's zero-shot form: all class names are listed, and one of them is asked for; chance is 1 / number of classes).
    """

    name = "imagenet100"
    retriever = "first"

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
        zero_shot: ZeroShot = "query",
    ):
        one_of("zero_shot", zero_shot, get_args(ZeroShot))
        self._images = ImageRoot(image_base(root))
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
        if zero_shot == "names":
            self.zero_shot_task = ClassNames(self, self._class_names(file or root))

    def draw(self, index: int) -> Draw:
        row, number = divmod(index, self.episodes_per_class)
        first = row - row % 2
        turned = int(generator(self.seed, "order", index).integers(2))
        pair = self.classes[first : first + 2]
        concepts = tuple(self._concept(pair[place ^ turned], pair) for place in (0, 1))
        query = self._images.picture(self.classes[row].test_samples[number])
        return Draw(concepts, (row - first) ^ turned, query, None, f"{first}", shared=True)

    def describe(self) -> dict[str, Any]:
        shown = [[c.class_id, c.context_samples, c.test_samples[: self.episodes_per_class]] for c in self.classes]
        return {
            **super().describe(),
            "episodes_per_class": self.episodes_per_class,
            "zero_shot": "query" if self.zero_shot_task is None else "names",
            "classes": len(self.classes),
            "images_digest": digest(json.dumps(shown)),
        }

    def _class_names(self, source: PathLike) -> list[str]:
        """The names of all classes, as they are listed in the zero-shot form."""
        if self.names != "classes":
            raise OptionError(
                f"zero_shot='names' lists the classes' real names; it cannot go with names={self.names!r}"
            )
        listed_names = [row.class_name.lower() for row in self.classes]
        twice = sorted({name for name in listed_names if listed_names.count(name) > 1})
        if twice:
            problem = f"names that several classes bear: {listed(twice)}"
            raise DataError(problem, file=source, field="class_name", remedy="rename one, or use zero_shot='query'")
        return listed_names

    def _concept(self, row: HeldOutClass, pair: Sequence[HeldOutClass]) -> Concept:
        samples = row.context_samples
        pictures = LazySequence(len(samples), lambda i: self._images.picture(samples[i]))
        group = "/".join(one.class_name.lower() for one in pair)
        return Concept(f"{row.class_id} {row.class_name.lower()}", row.class_name.lower(), pictures, group=group)


class ClassNames(Task):
    """The paper's zero-shot form of a task of named classes: all names are listed, and the answer is one of them alone.

    Args:
        task: the task whose queries are asked in this form.
        names: all names, in the order in which they are listed.
    """

    name = "class_names"
    metric = "class_names"
    template = NAMES
    max_new_tokens = 16

    def __init__(self, task: ConceptTask, names: Sequence[str]):
        self._task, self.labels = task, tuple(names)
        self._question = f"Here are {len(names)} class names: {', '.join(names)}. Please answer which class this image"

    @property
    def queries(self) -> Sequence[Example]:
        return LazySequence(len(self._task.queries), self._query)

    @property
    def support(self) -> Sequence[Example]:
        """Empty: nothing is demonstrated."""
        return ()

    def describe(self) -> dict[str, Any]:
        return {"task": self.name, "of": self._task.name, "labels_digest": digest("\n".join(self.labels))}

    def _query(self, index: int) -> Example:
        query = self._task.queries[index]
        return query.with_(question=self._question, choices=self.labels)
