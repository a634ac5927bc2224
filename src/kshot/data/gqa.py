"""GQA (arXiv 1902.09506), in the files of gqadataset.org and in the JSON Lines of Shikra and Link-Context Learning.

Official: ``{split}_balanced_questions.json`` and ``{split}_all_questions.json``, objects of questions by id ``{"question",
"answer", "fullAnswer", "imageId", "isBalanced", "types", "groups", "entailed", "semantic", "semanticStr", "annotations"}`` (the
training split's "all" is a folder of chunks); ``{split}_sceneGraphs.json``, ``{split}_choices.json``; images
``images/<imageId>.jpg``. The JSON Lines have one such question a line, some with ``cot`` (a reason with phrases and boxes).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from kshot.data.boxes import SquarePicture
from kshot.data.gqa_forms import answer_text, check_fields, needs_scenes, question_text, split_version, writes_boxes
from kshot.data.readers import PathLike, get, read_json, read_json_lines
from kshot.data.sources import ImageRoot, LazyExamples
from kshot.data.splits import CHAT, CHAT_STOP, SplitTask, Style, parse_stated, read_records, unique_ids
from kshot.data.task import tasks
from kshot.episode import Example
from kshot.errors import DataError, KshotError, OptionError, one_of
from kshot.picture import Picture
from kshot.prompt import Template
from kshot.whole_file import write_text

PLAIN = Template(
    demonstration="<image>Question:{question} Short answer:{answer}.",
    user="<image>{question}",
    short_instruction="Answer the question using a single word or phrase.",
)
WITH_REASONS = "gqa_question_balanced_with_cot.jsonl"
SCENES, SCENE_INDEX = "gqa_scene_graph_data.jsonl", "gqa_scene_graph_index.json"
IDS = ("question_id", "questionId", "id", "qid")


@tasks.register("gqa")
class GQA(SplitTask):
    """GQA: compositional questions with short answers; support from the training split. Metric ``gqa``.

    Args:
        root: folder of the question files (or ``questions/``, ``questions1.2/`` in it), of ``images/`` and, where needed, of the
            scene graphs (or ``sceneGraphs/``).
        split: ``testdev`` (the usual one), ``val``, ``train``; ``test``, ``challenge`` and ``submission`` have no answers.
        balanced: read the balanced questions; ``False``: all of them, as consistency needs.
        style: ``"plain"``: the short answer; ``"upstream"``: "The answer is X."
        version: with ``"upstream"``, what is asked and answered: ``q`` (the question), ``qb`` (with the boxes of its objects) or
            ``qbp`` (with boxes for every second one), a hyphen, and ``a`` (answer), ``s`` (the program, then the answer), ``l``
            (the long answer first), ``c`` (the ``cot`` of the JSON Lines), or ``bs``, ``bl``, ``bc`` (these with boxes). All but
            q-a, q-s, q-l, q-c and q-bc need scene graphs. Where boxes are written, pictures are padded to squares, to which they
            refer.
        questions, images, support_questions, support_images, check_images: see :class:`~kshot.data.splits.SplitTask`.
        scene_graphs, support_scene_graphs: scene graphs, where they are not under ``root``: the official object by image id, or
            JSON Lines with ``scene_index`` (or ``imageId`` in each line).
        scene_index: object of line numbers (from 0) by image id, for scene graphs in JSON Lines.
        choices: ``{split}_choices.json``, for validity and plausibility.
        seed: of the version ``qbp``.
    """

    name = "gqa"
    metric = "gqa"
    source = "https://cs.stanford.edu/people/dorarad/gqa/download.html"
    splits = ("testdev", "val", "train", "test", "challenge", "submission")
    folders: ClassVar[tuple[str, ...]] = (".", "questions", "questions1.2", "annotations")

    def __init__(
        self,
        root: PathLike | None = None,
        *,
        split: str | None = None,
        balanced: bool = True,
        style: Style = "plain",
        version: str = "q-a",
        questions: PathLike | Sequence[PathLike] | None = None,
        images: PathLike | None = None,
        support_questions: PathLike | Sequence[PathLike] | None = None,
        support_images: PathLike | None = None,
        scene_graphs: PathLike | None = None,
        support_scene_graphs: PathLike | None = None,
        scene_index: PathLike | None = None,
        choices: PathLike | None = None,
        seed: int = 0,
        check_images: bool = False,
    ):
        self._upstream = one_of("style", style, ("plain", "upstream")) == "upstream"
        self._version = split_version(version)
        if not self._upstream and version != "q-a":
            raise OptionError(
                f"task 'gqa': version={version!r} is one of upstream's forms; give style='upstream' with it"
            )
        self._balanced, self._seed, self._choices = balanced, seed, choices
        self._scene_files = {"queries": scene_graphs, "support": support_scene_graphs}
        self._scene_index = scene_index
        self.template, self.stop = (CHAT, CHAT_STOP) if self._upstream else (PLAIN, ("\n", "Question:"))
        self.max_new_tokens = 10 if not self._upstream else 16 if self._version[1] == "a" else 256
        super().__init__(
            root,
            split=split,
            questions=questions,
            images=images,
            support_questions=support_questions,
            support_images=support_images,
            check_images=check_images,
            balanced=balanced,
            style=style,
            version=version if self._upstream else None,
            seed=seed if self._version[0] == "qbp" else None,
        )

    def names(self, split: str) -> Sequence[str]:
        kind = "balanced" if self._balanced else "all"
        first = f"{split}_{kind}_questions"
        kinds = (first,) if split in ("train", "val", "testdev") else (first, f"{split}_all_questions")
        others = {"train_all_questions": ["train_all_questions"], "train_balanced_questions": [WITH_REASONS]}
        return [*(f"{n}.json" for n in kinds), *others.get(first, []), *(f"gqa_{n}.jsonl" for n in kinds)]

    def more_files(self, role: str) -> dict[str, Path]:
        files: dict[str, Path] = {}
        if self._choices is not None and role == "queries":
            files["choices"] = Path(self._choices)
        if self._upstream and needs_scenes(self._version):
            given = self._scene_files[role]
            scenes = Path(given) if given is not None else self._find_scenes(self.split_of(role))
            index = Path(self._scene_index) if self._scene_index is not None else scenes.with_name(SCENE_INDEX)
            files["scene graphs"] = scenes
            if scenes.suffix == ".jsonl" and (self._scene_index is not None or index.exists()):
                files["scene index"] = index
        return files

    def parse(self, text: str) -> str:
        return parse_stated(text, self.stop) if self._upstream else super().parse(text).rstrip(". ")

    def write_results(self, predictions: Mapping[str, str], path: PathLike) -> None:
        """Write answers (by query id) as GQA's script and its server want them: ``[{"questionId", "prediction"}]``."""
        known = {query.id for query in self._queries}
        if unknown := set(predictions) - known:
            raise DataError(f"prediction for a question that is not in this split: {sorted(unknown)[0]!r}")
        rows = [{"questionId": key, "prediction": answer} for key, answer in predictions.items()]
        write_text(path, json.dumps(rows, ensure_ascii=False))

    def read_file(self, file: Path, role: str, images: ImageRoot) -> tuple[Sequence[str], LazyExamples]:
        records = read_records(file, id_field="question_id")
        ids = unique_ids(records, IDS, file)
        scenes, choices = self._read_scenes(role), self._read_choices(role)
        for number, record in records:
            get(record, "question", str, file, number)
            image = str(get(record, "imageId", (str, int), file, number))
            if record.get("answer") is not None:
                get(record, "answer", str, file, number)
                if self._upstream:
                    check_fields(record, scenes.get(image), self._version, file, number)
            elif role == "support":
                raise DataError("a demonstration needs an answer", file=file, line=number, field="answer")

        def make(place: int) -> Example:
            record, key = records[place][1], ids[place]
            picture: Picture = images.picture(f"{record['imageId']}.jpg")
            answer = shown = record.get("answer")
            question = record["question"]
            if self._upstream and answer is not None:
                scene = scenes.get(str(record["imageId"]))
                question = question_text(record, scene, self._version[0], key, self._seed)
                shown = answer_text(record, scene, self._version[1], picture)
            metadata = _metadata(record, choices.get(key))
            if self._upstream and writes_boxes(self._version):
                picture = SquarePicture(picture)
            return Example((picture,), question, shown, () if answer is None else (answer,), id=key, metadata=metadata)

        return ids, LazyExamples(make, range(len(records)))

    def _find_scenes(self, split: str) -> Path:
        name = f"{split}_sceneGraphs.json"
        try:
            return self.find([name, f"sceneGraphs/{name}", *([SCENES] if split == "train" else [])])
        except KshotError as error:
            raise OptionError(f"version {'-'.join(self._version)!r} needs scene graphs: {error}") from None

    def _read_scenes(self, role: str) -> dict[str, Any]:
        file = self._files.get(f"{role} scene graphs")
        if file is None:
            return {}
        if file.suffix != ".jsonl":
            scenes = read_json(file)
            if not isinstance(scenes, dict):
                raise DataError("an object of scene graphs by image id is expected", file=file)
            return scenes
        lines = read_json_lines(file)
        index = self._files.get(f"{role} scene index")
        if index is not None:
            return {str(key): lines[line][1] for key, line in read_json(index).items() if 0 <= line < len(lines)}
        return {str(get(scene, "imageId", (str, int), file, number)): scene for number, scene in lines}

    def _read_choices(self, role: str) -> dict[str, Any]:
        file = self._files.get(f"{role} choices")
        return {} if file is None else dict(read_json(file))

    def expand(self, file: Path) -> list[Path]:
        """Of a folder, its chunks ``<name>_0.json`` ... in the order of their numbers."""
        if not file.is_dir():
            return [file]
        chunks = sorted(file.glob(f"{file.name}_*.json"), key=lambda path: (len(path.name), path.name))
        if not chunks:
            raise DataError(f"there is no {file.name}_0.json in this folder", file=file)
        return chunks


def _metadata(record: Mapping[str, Any], choices: Mapping[str, Any] | None) -> dict[str, Any]:
    """What the metric needs, as far as the record has it."""
    types, groups = _object(record, "types"), _object(record, "groups")
    semantic = record.get("semantic")
    found: dict[str, Any] = {"image_id": str(record["imageId"])}
    found |= {name: types[name] for name in ("structural", "semantic", "detailed") if types.get(name) is not None}
    if isinstance(semantic, list):
        found["steps"] = _steps(semantic)
    if types or semantic:
        found["words"] = len(record["question"].split())
    if isinstance(group := groups.get("global"), str):
        found["group"] = group
    if isinstance(record.get("isBalanced"), bool):
        found["balanced"] = record["isBalanced"]
    if isinstance(record.get("entailed"), list) and record["entailed"]:
        found["entailed"] = [str(key) for key in record["entailed"]]
    if choices is not None:
        found |= {name: list(choices[name]) for name in ("valid", "plausible") if name in choices}
    return found


def _object(record: Mapping[str, Any], field: str) -> Mapping[str, Any]:
    value = record.get(field)
    return value if isinstance(value, dict) else {}


def _steps(semantic: Sequence[Mapping[str, Any]]) -> int:
    """Number of reasoning steps as GQA's script counts them: the final asking is none."""
    steps = [f"{step.get('operation')}: {step.get('argument')}" for step in semantic if isinstance(step, dict)]
    return sum(not any(last in step for last in ("exist", "query: name", "choose name")) for step in steps)
