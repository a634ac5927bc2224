"""Fixtures of the tasks whose answers are words (POPE, GQA, CLEVR, VCR, VQA-E, VQA-X, conversations), in their published
formats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.data.formats import coco_images, fixture, picture, write_json, write_lines


@fixture("pope")
def pope(folder: Path) -> dict[str, Any]:
    objects = ("snowboard", "dining table", "person", "zebra", "cake", "tv")
    for number, split in enumerate(("random", "popular", "adversarial")):
        rows = [
            {
                "question_id": image * 6 + place,
                "image": f"COCO_val2014_{image:012d}.jpg",
                "image_id": image,
                "text": f"Is there a {name}{'' if number else ' really'} in the image?",
                "label": "yes" if place < 3 else "no",
            }
            for image in range(310, 313)
            for place, name in enumerate(objects)
        ]
        write_lines(folder / f"coco_pope_{split}.json", rows)
    coco_images(folder, "val2014", 310, 3)
    return {"root": folder}


def gqa_question(key: int, image: str, **changes: Any) -> dict[str, Any]:
    """One question in the official form; the program is that of "Is there a red apple on the table?"."""
    return {
        "semantic": [
            {"operation": "select", "dependencies": [], "argument": f"table ({key}1)"},
            {"operation": "relate", "dependencies": [0], "argument": f"on,subject,apple ({key}2)"},
            {"operation": "filter color", "dependencies": [1], "argument": "red"},
            {"operation": "exist", "dependencies": [2], "argument": "?"},
        ],
        "entailed": [],
        "equivalent": [str(key)],
        "question": "Is there a red apple on the table?",
        "imageId": image,
        "isBalanced": True,
        "groups": {"global": None, "local": "10-apple_red"},
        "answer": "no",
        "semanticStr": f"select: table ({key}1)->relate: on,subject,apple ({key}2) [0]->filter color: red [1]->exist: ? [2]",
        "annotations": {
            "answer": {},
            "question": {"4": f"{key}2", "6:8": f"{key}1"},
            "fullAnswer": {"4": f"{key}2", "6": f"{key}1,{key}2"},
        },
        "types": {"detailed": "existAttrRel", "semantic": "rel", "structural": "verify"},
        "fullAnswer": "No, there is an apple on tables but it is green.",
    } | changes


def gqa_scene(key: int, **changes: Any) -> dict[str, Any]:
    objects = {
        f"{key}1": {"name": "table", "x": 0, "y": 4, "w": 12, "h": 4, "attributes": [], "relations": []},
        f"{key}2": {"name": "apple", "x": 3, "y": 2, "w": 3, "h": 3, "attributes": ["red"], "relations": []},
    }
    return {"width": 12, "height": 8, "objects": objects} | changes


@fixture("gqa")
def gqa(folder: Path) -> dict[str, Any]:
    for split, first in (("train", 10), ("val", 20), ("testdev", 30)):
        questions, scenes = {}, {}
        for image in range(first, first + 3):
            name = f"n{image}"
            questions[f"0{image}"] = gqa_question(image, name)
            questions[f"1{image}"] = gqa_question(
                image,
                name,
                question="Which color is the apple, red or green?",
                answer="red" if image % 2 else "light blue",
                fullAnswer="The apple is red.",
                semantic=[
                    {"operation": "select", "dependencies": [], "argument": f"apple ({image}2)"},
                    {"operation": "query", "dependencies": [0], "argument": "color"},
                ],
                semanticStr=f"select: apple ({image}2)->query: color [0]",
                annotations={"answer": {}, "question": {"4": f"{image}2"}, "fullAnswer": {"1": f"{image}2"}},
                types={"detailed": "directOf", "semantic": "attr", "structural": "query"},
                groups={"global": "color", "local": "06-apple_color"},
            )
            scenes[name] = gqa_scene(image)
            picture(folder / "images" / f"{name}.jpg", image)
        write_json(folder / "questions" / f"{split}_balanced_questions.json", questions)
        write_json(folder / "questions" / f"{split}_all_questions.json", questions)
        if split != "testdev":
            write_json(folder / "sceneGraphs" / f"{split}_sceneGraphs.json", scenes)
    return {"root": folder}
