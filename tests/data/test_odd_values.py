"""Whatever value stands in a field of an annotation file: the task is made, or there is an error that the user can act on."""

from __future__ import annotations

import contextlib
import json
import random

import pytest

from kshot.data.task import load_task
from kshot.errors import KshotError
from tests.data import answer_formats

ODD = (None, 5, -1, 1.5, True, "", "x", [], [1], {}, {"a": 1}, [[]], ["a", [7]])
UPSTREAM = {"style": "upstream"}
CASES = {
    "pope": ("pope", "coco_pope_random.json", {}),
    "gqa": ("gqa", "questions/testdev_balanced_questions.json", {}),
    "gqa program": ("gqa", "questions/testdev_balanced_questions.json", UPSTREAM | {"version": "q-s"}),
    "gqa boxes": ("gqa", "questions/val_balanced_questions.json", UPSTREAM | {"version": "qb-bl", "split": "val"}),
    "gqa scenes": ("gqa", "sceneGraphs/val_sceneGraphs.json", UPSTREAM | {"version": "qb-bs", "split": "val"}),
    "clevr": ("clevr", "CLEVR_v1.0/questions/CLEVR_val_questions.json", {}),
    "clevr points": ("clevr", "CLEVR_v1.0/questions/CLEVR_val_questions.json", UPSTREAM | {"version": "q-bs"}),
    "clevr scenes": ("clevr", "CLEVR_v1.0/scenes/CLEVR_val_scenes.json", UPSTREAM | {"version": "q-bs"}),
    "vcr": ("vcr", "vcr1annots/val.jsonl", {}),
    "vcr boxes": ("vcr", "vcr1images/lsmdc_3015_FILM/3015_FILM_00.23.57.4@0.json", {"references": "boxes"}),
    "vqa_e": ("vqa_e", "VQA-E_val_set.json", {}),
    "vqa_x": ("vqa_x", "Annotations/test_exp_anno.json", {}),
    "conversations": ("conversations", "llava_instruct.json", {}),
}


def places(value, path=()):
    """Paths to all values inside a JSON value; of lists the first two items."""
    inside = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    for key, part in inside:
        yield (*path, key)
        yield from places(part, (*path, key))


@pytest.mark.parametrize("case", CASES)
def test_odd_values_are_errors_to_act_on_or_harmless(case, tmp_path):
    name, file, options = CASES[case]
    made = getattr(answer_formats, name)(tmp_path)
    path = tmp_path / file
    lines = path.read_text().splitlines()
    first = lines[0]  # all of the file, or the first record of JSON Lines
    rng = random.Random(case)
    for place in rng.choices(list(places(json.loads(first))), k=40):
        data = json.loads(first)
        inside = data
        for key in place[:-1]:
            inside = inside[key]
        inside[place[-1]] = rng.choice(ODD)
        path.write_text("\n".join([json.dumps(data), *lines[1:]]))
        with contextlib.suppress(KshotError):
            task = load_task(name, **made, **options)
            assert [query.id for query in task.queries]
