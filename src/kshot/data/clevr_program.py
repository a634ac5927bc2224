"""CLEVR's functional programs: carrying them out in a scene, and writing them as the reason of an answer.

A program is a list of steps ``{"function", "inputs", "value_inputs"}``; inputs are numbers of earlier steps. A scene has
``objects`` with size, color, material, shape and ``pixel_coords``, and ``relationships``: by direction, for each object the
objects that are there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from kshot.data.boxes import Size, text_of, written
from kshot.errors import DataError

Value: TypeAlias = "list[int] | int | str | bool"
"""What a step gives: object numbers, a number, an attribute, yes or no. A single object is a list of one."""

ATTRIBUTES = ("size", "color", "material", "shape")
ANSWERS = (
    *("yes", "no", *map(str, range(11))),
    *("gray", "red", "blue", "green", "brown", "purple", "cyan", "yellow"),
    *("cube", "sphere", "cylinder", "small", "large", "rubber", "metal"),
)
"""All 28 answers of CLEVR."""

# Steps behind which their objects are pointed out; those of the second line only if the answer depends on them directly.
_POINTING = ("unique", "union", "intersect", "relate", *(f"same_{name}" for name in ATTRIBUTES))
_POINTING_AT_END = ("scene", *(f"filter_{name}" for name in ATTRIBUTES))


def function_of(step: Mapping[str, Any]) -> str:
    """Name of a step's function (``type`` in some copies of the files)."""
    return str(step["function"] if "function" in step else step["type"])


def question_type(program: Sequence[Mapping[str, Any]]) -> str:
    """The kind of question in CLEVR's own table: exist, count, compare integer, query, compare attribute."""
    last = function_of(program[-1])
    if last in ("exist", "count"):
        return last
    if last in ("equal_integer", "less_than", "greater_than"):
        return "compare integer"
    return "query" if last.startswith("query_") else "compare attribute"


def run_program(program: Sequence[Mapping[str, Any]], scene: Mapping[str, Any]) -> list[Value]:
    """What each step gives in a scene; the last one gives the answer (see :func:`answer_of`).

    Raises:
        DataError: a step that is not known, that refers to a later one, or a "unique" of several objects.
    """
    values: list[Value] = []
    for number, step in enumerate(program):
        if any(not 0 <= n < number for n in step["inputs"]):
            raise DataError(f"step {number} of the program has inputs {step['inputs']}, which are not before it")
        inputs = [values[n] for n in step["inputs"]]
        try:
            values.append(_apply(function_of(step), inputs, step.get("value_inputs") or [], scene))
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise DataError(
                f"step {number} of the program cannot be carried out: {function_of(step)} ({error})"
            ) from None
    return values


def answer_of(value: Value) -> str:
    """The last step's value as CLEVR writes answers."""
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def program_text(program: Sequence[Mapping[str, Any]]) -> str:
    """A program as upstream writes it: ``scene -> filter_color:red[0] -> unique[1] -> query_shape[2]``."""
    return " -> ".join(map(_step_text, program))


def pointed_program_text(
    program: Sequence[Mapping[str, Any]], objects: Sequence[Sequence[int] | None], scene: Mapping[str, Any], size: Size
) -> str:
    """The same with the centres of the objects behind steps that select some, ``unique[1][0.312,0.508]``, or `` Found no object.``

    Args:
        program: the program.
        objects: for each step the numbers of its objects; ``None`` where it gives none.
        scene: has their ``pixel_coords``.
        size: width and height of the image.
    """
    steps = []
    for number, step in enumerate(program):
        text = _step_text(step)
        following = function_of(program[number + 1]) if number + 1 < len(program) else ""
        name = function_of(step)
        if name in _POINTING or (name in _POINTING_AT_END and following in ("exist", "count")):
            found = objects[number] or []
            try:
                places = [scene["objects"][n]["pixel_coords"] for n in found]
                points = [(float(place[0]), float(place[1])) for place in places]
            except (KeyError, IndexError, TypeError, ValueError) as error:
                raise DataError(f"the scene has no 'pixel_coords' of the objects {found} ({error!r})") from None
            text += text_of(*(written(point, size) for point in points)) if points else " Found no object."
        steps.append(text)
    return " -> ".join(steps)


def _step_text(step: Mapping[str, Any]) -> str:
    value = f":{step['value_inputs'][0]}" if step.get("value_inputs") else ""
    inputs = f"[{','.join(map(str, step['inputs']))}]" if step["inputs"] else ""
    return f"{function_of(step)}{value}{inputs}"


def _apply(name: str, inputs: list[Any], values: Sequence[str], scene: Mapping[str, Any]) -> Value:
    objects = scene["objects"]
    kind, _, attribute = name.partition("_")
    if name == "scene":
        return list(range(len(objects)))
    if name == "unique":
        if len(inputs[0]) != 1:
            raise ValueError(f"{len(inputs[0])} objects")
        return list(inputs[0])
    if name == "relate":
        return list(scene["relationships"][values[0]][inputs[0][0]])
    if name == "union":
        return sorted({*inputs[0], *inputs[1]})
    if name == "intersect":
        return sorted({*inputs[0]} & {*inputs[1]})
    if name == "count":
        return len(inputs[0])
    if name == "exist":
        return bool(inputs[0])
    if name in ("less_than", "greater_than"):
        return bool(inputs[0] < inputs[1] if name == "less_than" else inputs[0] > inputs[1])
    if name == "equal_integer" or (kind == "equal" and attribute in ATTRIBUTES):
        return bool(inputs[0] == inputs[1])
    if attribute not in ATTRIBUTES:
        raise ValueError("there is no such function")
    if kind == "filter":
        return [n for n in inputs[0] if objects[n][attribute] == values[0]]
    if kind == "query":
        return str(objects[inputs[0][0]][attribute])
    if kind == "same":
        own = inputs[0][0]
        return [n for n, o in enumerate(objects) if n != own and o[attribute] == objects[own][attribute]]
    raise ValueError("there is no such function")
