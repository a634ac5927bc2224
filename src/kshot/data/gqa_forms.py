"""The forms in which Shikra and Link-Context Learning ask and answer GQA: with reasons, and with boxes behind the words they are
of.

Three slips of upstream's long answers with boxes are not repeated: words were joined without spaces, no space stood before "The
answer is", and behind "Yes," or "No," boxes came one word late.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from kshot.data.boxes import picture_size, text_of, written
from kshot.data.derived import generator
from kshot.data.readers import get
from kshot.data.splits import STATEMENT
from kshot.errors import DataError, one_of
from kshot.picture import Picture

QUESTIONS = ("q", "qb", "qbp")
ANSWERS = ("a", "c", "bc", "s", "bs", "l", "bl")
Version: TypeAlias = tuple[str, str]
"""How a question and its answer are written."""

_REFERENCE = re.compile(
    r"\s\((\d+(?:,\d+)*|-)\)\s?"
)  # the objects of a step in a program: "table (279472) ", "apple (-) "
_SPAN = re.compile(r"\d+(?::\d+)?")
_YES_NO = re.compile(r"^(?:Yes|No),")


def split_version(version: str) -> Version:
    """The two halves of a version such as ``"q-a"``.

    Raises:
        OptionError: there is no such version.
    """
    known = [f"{question}-{answer}" for question in QUESTIONS for answer in ANSWERS]
    question, _, answer = one_of("version", version, known).partition("-")
    return question, answer


def needs_scenes(version: Version) -> bool:
    """Whether a version writes boxes of objects, which stand in the scene graphs."""
    return version[0] != "q" or version[1] in ("bs", "bl")


def writes_boxes(version: Version) -> bool:
    """Whether a version writes boxes at all."""
    return needs_scenes(version) or version[1] == "bc"


def check_fields(record: Mapping[str, Any], scene: Any, version: Version, file: Path, number: int) -> None:
    """Look for everything that a version needs of a question, so that what is missing shows when the task is made.

    Raises:
        DataError: a field is missing, the image has no scene graph or size, or an object is not in it.
    """
    question, answer = version
    if answer in ("s", "bs"):
        get(record, "semanticStr", str, file, number)
    if answer in ("l", "bl"):
        get(record, "fullAnswer", str, file, number)
    if answer in ("c", "bc"):
        reason = get(record, "cot", dict, file, number)
        get(reason, "value", str, file, number)
        if answer == "bc":
            get(reason, "boxes", list, file, number)
            marks, boxes = get(reason, "seq", list, file, number), len(reason["boxes"])
            if len(marks) != reason["value"].count("<ph_ed>") or any(n not in range(boxes) for m in marks for n in m):
                raise DataError("phrases, their boxes and 'seq' do not match", file=file, line=number, field="cot")
    if not needs_scenes(version):
        return
    if scene is None:
        raise DataError(
            f"image {record['imageId']} has no scene graph",
            file=file,
            line=number,
            remedy="are they of the same split?",
        )
    wanted: list[str] = []
    if question != "q" or answer == "bl":
        spans = get(record, "annotations", dict, file, number)
        for part in ("question", "fullAnswer"):
            held = get(spans, part, dict, file, number) if part in spans else {}
            for span, keys in held.items():
                if not _SPAN.fullmatch(span) or not isinstance(keys, str):
                    problem = f"{part!r}: {span!r} with {keys!r} is not words with their objects"
                    raise DataError(problem, file=file, line=number, field="annotations")
                wanted += keys.split(",")
            words = len(str(record.get(part, "")).split())
            if wrong := next((span for span in held if not _last_word(span) < words), None):
                raise DataError(f"{part!r} has no words {wrong}", file=file, line=number, field="annotations")
    if answer == "bs":
        wanted += [key for keys in _REFERENCE.findall(record["semanticStr"]) if keys != "-" for key in keys.split(",")]
    objects = scene.get("objects") if isinstance(scene, dict) else None
    objects = objects if isinstance(objects, dict) else {}
    for key in wanted:
        if key not in objects:
            raise DataError(
                f"object {key} is not in the scene graph of image {record['imageId']}", file=file, line=number
            )
        held = objects[key] if isinstance(objects[key], dict) else {}
        if any(not isinstance(held.get(side), (int, float)) for side in "xywh"):
            raise DataError(
                f"object {key} of image {record['imageId']} lacks x, y, w or h in the scene graph",
                file=file,
                line=number,
            )
    for field in ("width", "height"):
        if not isinstance(scene.get(field), int):
            raise DataError(f"the scene graph of image {record['imageId']} has no {field}", file=file, line=number)


def question_text(record: Mapping[str, Any], scene: Any, form: str, key: str, seed: int) -> str:
    """The question: as it is (``q``), with boxes behind its objects (``qb``), or with boxes for about half of the questions
    (``qbp``).

    Args:
        record: the question.
        scene: the scene graph of its image.
        form: see above.
        key, seed: id of the question and seed of the draw of ``qbp``.
    """
    text = str(record["question"])
    if form == "q" or (form == "qbp" and generator(seed, "qbp", key).uniform() > 0.5):
        return text
    return _with_boxes(text, record["annotations"].get("question", {}), scene)


def answer_text(record: Mapping[str, Any], scene: Any, form: str, picture: Picture) -> str:
    """The answer in one of the forms :data:`ANSWERS`. The picture is looked at only for ``bc``: its boxes come without a size."""
    stated = STATEMENT.format(record["answer"])
    if form in ("s", "bs"):
        boxes = form == "bs"
        program = _REFERENCE.sub(
            lambda m: _objects_text(m[1], scene) if boxes and m[1] != "-" else "", record["semanticStr"]
        )
        return f"{program}. {stated}"
    if form in ("l", "bl"):
        full = str(record["fullAnswer"])
        if form == "bl":  # before "No," goes: the places of the words count it
            full = _with_boxes(full, record["annotations"].get("fullAnswer", {}), scene)
        full = _YES_NO.sub("", full).strip()
        return f"{full} {stated}"
    if form in ("c", "bc"):
        reason = record["cot"]
        text = str(reason["value"]).replace("<ph_st>", "")
        pieces = text.split("<ph_ed>")
        if form == "c":
            return "".join(pieces)
        size = picture_size(picture)
        marks = [text_of(*(written(tuple(reason["boxes"][n]), size) for n in numbers)) for numbers in reason["seq"]]
        return "".join(piece + mark for piece, mark in zip(pieces, [*marks, ""], strict=True))
    return stated


def _with_boxes(text: str, spans: Mapping[str, str], scene: Any) -> str:
    """The words of a text, behind the last word of each span the boxes of its objects; spans are ``"4"`` or ``"4:6"``."""
    words = text.split()
    for span, keys in spans.items():
        words[_last_word(span)] += _objects_text(keys, scene)
    return " ".join(words)


def _last_word(span: str) -> int:
    ends = [int(part) for part in span.split(":")]
    return ends[0] if len(ends) == 1 else ends[1] - 1


def _objects_text(keys: str, scene: Any) -> str:
    objects = [scene["objects"][key] for key in keys.split(",")]
    boxes = [(o["x"], o["y"], o["x"] + o["w"], o["y"] + o["h"]) for o in objects]
    return text_of(*(written(box, (scene["width"], scene["height"])) for box in boxes))
