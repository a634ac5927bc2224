"""CLEVR (arXiv 1612.06890), in its published files and in the JSON Lines of Shikra and Link-Context Learning.

``questions/CLEVR_{split}_questions.json``: ``{"info", "questions": [{"image_filename", "image_index", "question", "question_index",
"question_family_index", "answer", "program"}]}``; ``scenes/CLEVR_{split}_scenes.json``: ``{"scenes": [{"image_index", "objects",
"relationships"}]}``; images ``images/{split}/CLEVR_{split}_000000.png``. The test split has neither answers nor programs. The JSON
Lines have one question (or scene) a line; some give what each step of the program yields as ``ans``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kshot.data.boxes import SquarePicture, picture_size
from kshot.data.clevr_program import (
    ANSWERS,
    answer_of,
    function_of,
    pointed_program_text,
    program_text,
    question_type,
    run_program,
)
from kshot.data.readers import PathLike, get
from kshot.data.sources import ImageRoot, LazyExamples
from kshot.data.splits import CHAT, CHAT_STOP, STATEMENT, SplitTask, Style, parse_stated, read_records, unique_ids
from kshot.data.task import tasks
from kshot.episode import Example
from kshot.errors import DataError, OptionError, one_of
from kshot.picture import Picture
from kshot.prompt import Template
from kshot.whole_file import write_text

PLAIN = Template(
    demonstration="<image>Question:{question} Short answer:{answer}.",
    user="<image>{question}",
    short_instruction="Answer the question using a single word or number.",
)
VERSIONS = ("q-a", "q-s", "q-bs")


@tasks.register("clevr")
class CLEVR(SplitTask):
    """CLEVR: questions about rendered solids; support from the training split. Metric ``clevr``; 28 answers in all.

    Args:
        root: the folder ``CLEVR_v1.0`` with ``questions/``, ``images/`` and ``scenes/``.
        split: ``val``, ``train`` or ``test`` (no answers); of CLEVR-CoGenT ``valA``, ``valB``, ``trainA``, ``testA``, ``testB``.
        style: ``"plain"``: the answer; ``"upstream"``: "The answer is X."
        version: with ``"upstream"``: ``q-a``; ``q-s``: the program, then the answer; ``q-bs``: the program with the centres of the
            objects that its steps select, which needs scenes; pictures are then padded to squares, to which the centres refer.
        scenes, support_scenes: scenes, where they are not under ``root`` (JSON, or JSON Lines with one scene a line).
        questions, images, support_questions, support_images, check_images: see :class:`~kshot.data.splits.SplitTask`.

    Raises:
        DataError: see :mod:`kshot.data.readers`; with ``q-bs`` also a program that cannot be carried out in its scene, or that
            gives another answer than the file's.
    """

    name = "clevr"
    metric = "clevr"
    source = "https://cs.stanford.edu/people/jcjohns/clevr/"
    splits = ("val", "train", "test", "valA", "valB", "trainA", "testA", "testB")
    id_field = "question_index"

    def __init__(
        self,
        root: PathLike | None = None,
        *,
        split: str | None = None,
        style: Style = "plain",
        version: str = "q-a",
        questions: PathLike | Sequence[PathLike] | None = None,
        images: PathLike | None = None,
        scenes: PathLike | None = None,
        support_questions: PathLike | Sequence[PathLike] | None = None,
        support_images: PathLike | None = None,
        support_scenes: PathLike | None = None,
        check_images: bool = False,
    ):
        self._upstream = one_of("style", style, ("plain", "upstream")) == "upstream"
        self._version = one_of("version", version, VERSIONS)
        if not self._upstream and version != "q-a":
            raise OptionError(
                f"task 'clevr': version={version!r} is one of upstream's forms; give style='upstream' with it"
            )
        self._scene_files = {"queries": scenes, "support": support_scenes}
        self.template, self.stop = (CHAT, CHAT_STOP) if self._upstream else (PLAIN, ("\n", "Question:"))
        self.max_new_tokens = 10 if not self._upstream else 16 if version == "q-a" else 400
        # With a reason before it an answer is no candidate: there is one such text for every scene.
        forms = {"q-a": STATEMENT if self._upstream else "{}"}
        self.labels = tuple(forms[version].format(answer) for answer in ANSWERS) if version in forms else ()
        super().__init__(
            root,
            split=split,
            questions=questions,
            images=images,
            support_questions=support_questions,
            support_images=support_images,
            check_images=check_images,
            style=style,
            version=version if self._upstream else None,
        )

    def names(self, split: str) -> Sequence[str]:
        stem = f"CLEVR_{split}_questions"
        return [f"{stem}.json", f"{stem}_with_ans.jsonl", f"{stem}.jsonl"]

    def split_of(self, role: str) -> str:
        cogent = self._split[-1] in "AB"
        return self._split if role == "queries" else "trainA" if cogent else "train"

    def image_root(self, role: str) -> ImageRoot:
        found, split = super().image_root(role), self.split_of(role)
        for place in (found.path / split, found.path / f"{split}.zip"):
            if found.path.is_dir() and place.exists():
                return ImageRoot(place)
        return found

    def more_files(self, role: str) -> dict[str, Path]:
        if self._version != "q-bs":
            return {}
        given, name = self._scene_files[role], f"CLEVR_{self.split_of(role)}_scenes.json"
        return {"scenes": Path(given) if given is not None else self.find([name, f"scenes/{name}", f"{name}l"])}

    def parse(self, text: str) -> str:
        return parse_stated(text, self.stop) if self._upstream else super().parse(text).rstrip(". ")

    def write_results(self, predictions: Mapping[str, str], path: PathLike) -> None:
        """Write answers (by query id) as CLEVR's authors ask for them: one answer a line, in the order of the questions.

        Raises:
            DataError: a question has no answer.
        """
        missing = [query.id for query in self._queries if query.id not in predictions]
        if missing:
            raise DataError(f"{len(missing)} questions have no prediction, the first is {missing[0]!r}")
        write_text(path, "".join(f"{predictions[query.id]}\n" for query in self._queries))

    def read_file(self, file: Path, role: str, images: ImageRoot) -> tuple[Sequence[str], LazyExamples]:
        records = read_records(file, "questions", object_hook=_Steps().share)
        # Numbers begin anew in each split.
        split = self.split_of(role)
        ids = [f"{split}/{key}" for key in unique_ids(records, ("question_index", "question_id", "id"), file)]
        scenes = self._read_scenes(role)
        for number, record in records:
            get(record, "question", str, file, number)
            get(record, "image_filename", str, file, number)
            answered = record.get("answer") is not None
            if answered:
                record["answer"] = answer_of(get(record, "answer", (str, int, bool), file, number))
            elif role == "support":
                raise DataError("a demonstration needs an answer", file=file, line=number, field="answer")
            if "program" in record or (answered and self._version != "q-a"):
                _check_program(record, file, number)
            if answered and self._version == "q-bs":
                get(record, "image_index", int, file, number)
                if record["image_index"] not in scenes:
                    raise DataError(
                        f"there is no scene of image {record['image_index']}",
                        file=file,
                        line=number,
                        remedy="are questions and scenes of the same split?",
                    )

        def make(place: int) -> Example:
            number, record = records[place]
            picture: Picture = images.picture(record["image_filename"])
            answer = shown = record.get("answer")
            if self._upstream and answer is not None:
                reason = ""
                if self._version == "q-s":
                    reason = program_text(record["program"]) + " "
                elif self._version == "q-bs":
                    scene = scenes[record["image_index"]]
                    objects = _objects(record, scene, file, number)
                    reason = pointed_program_text(record["program"], objects, scene, picture_size(picture)) + " "
                    picture = SquarePicture(picture)
                shown = reason + STATEMENT.format(answer)
            return Example(
                (picture,),
                record["question"],
                shown,
                () if answer is None else (answer,),
                id=ids[place],
                metadata=_metadata(record),
            )

        return ids, LazyExamples(make, range(len(records)))

    def _read_scenes(self, role: str) -> dict[int, Mapping[str, Any]]:
        file = self._files.get(f"{role} scenes")
        if file is None:
            return {}
        scenes: dict[int, Mapping[str, Any]] = {}
        for place, (number, scene) in enumerate(read_records(file, "scenes")):
            get(scene, "objects", list, file, number)
            index = get(scene, "image_index", int, file, number) if "image_index" in scene else place
            scenes[index] = scene
        return scenes


class _Steps:
    """Keeps one dictionary of equal steps: the training split has seven million, few of which differ."""

    def __init__(self) -> None:
        self._held: dict[tuple[Any, ...], dict[str, Any]] = {}

    def share(self, value: dict[str, Any]) -> dict[str, Any]:
        """The step that was read first of those equal to this one; any other object as it is."""
        inputs, values = value.get("inputs"), value.get("value_inputs")
        if len(value) != 3 or type(inputs) is not list or type(values) is not list:
            return value  # no step, or one that also says what it yields
        name = value.get("function", value.get("type"))
        try:
            return self._held.setdefault((name, *inputs, *values), value)
        except TypeError:  # lists in lists; what is wrong with it is said when it is checked
            return value


def _check_program(record: Mapping[str, Any], file: Path, number: int) -> None:
    steps = get(record, "program", list, file, number)
    for step in steps:
        if not isinstance(step, dict) or not ({"function", "type"} & set(step)) or not _whole(step.get("inputs")):
            raise DataError("a step needs 'function' and 'inputs'", file=file, line=number, field="program")
        if not isinstance(step.get("value_inputs", []), list):
            raise DataError("'value_inputs' of a step is no list", file=file, line=number, field="program")
    if not steps:
        raise DataError("the program has no steps", file=file, line=number, field="program")


def _whole(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int for value in values)


def _objects(record: Mapping[str, Any], scene: Mapping[str, Any], file: Path, number: int) -> list[list[int] | None]:
    """The objects of each step, as the file gives them (``ans``), or else by carrying out the program."""
    program = record["program"]
    if all("ans" in step for step in program):
        values = [step["ans"] for step in program]
    else:
        try:
            values = list(run_program(program, scene))
        except DataError as error:
            raise DataError(error.problem, file=file, line=number, field="program") from None
        if answer_of(values[-1]) != record["answer"]:
            raise DataError(
                f"the program gives {answer_of(values[-1])!r} in its scene, the answer is {record['answer']!r}",
                file=file,
                line=number,
                field="program",
                remedy="are questions and scenes of the same split?",
            )
    single = ("unique",)  # some files give the one object's number, not a list of it
    return [
        value
        if isinstance(value, list)
        else [value]
        if function_of(step) in single and isinstance(value, int)
        else None
        for step, value in zip(program, values, strict=True)
    ]


def _metadata(record: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"image_id": record["image_filename"]}
    if record.get("program"):
        found |= {"type": question_type(record["program"]), "function": function_of(record["program"][-1])}
    if "question_family_index" in record:
        found["family"] = record["question_family_index"]
    return found
