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
                "question_id": (image - 310) * 6 + place,
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
            "fullAnswer": {"4": f"{key}2", "5:7": f"{key}1,{key}2"},
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


def clevr_scene(index: int, split: str) -> dict[str, Any]:
    solids = [
        ("large", "red", "cube", "rubber", [2, 2, 9.1]),
        ("small", "red", "sphere", "metal", [10, 6, 8.0]),
        ("small", "blue", "sphere", "metal", [6, 4, 7.5]),
    ]
    return {
        "image_index": index,
        "image_filename": f"CLEVR_{split}_{index:06d}.png",
        "split": split,
        "objects": [
            {
                "size": size,
                "color": color,
                "shape": shape,
                "material": material,
                "pixel_coords": place,
                "3d_coords": [0.1, 0.2, 0.7],
                "rotation": 12.5,
            }
            for size, color, shape, material, place in solids
        ],
        "relationships": {
            "right": [[1, 2], [], [1]],
            "left": [[], [0, 2], [0]],
            "front": [[1, 2], [], [1]],
            "behind": [[], [0, 2], [0]],
        },
        "directions": {"right": [0.6, 0.7, 0.0]},
    }


def clevr_program(*steps: str) -> list[dict[str, Any]]:
    """Steps in upstream's notation, ``"filter_color:red[0]"``."""
    program = []
    for step in steps:
        name, _, inputs = step.rstrip("]").partition("[")
        name, _, value = name.partition(":")
        program.append(
            {
                "function": name,
                "inputs": [int(n) for n in inputs.split(",")] if inputs else [],
                "value_inputs": [value] if value else [],
            }
        )
    return program


CLEVR_QUESTIONS = (
    ("Are there any red things?", "yes", ("scene", "filter_color:red[0]", "exist[1]")),
    ("How many spheres are there?", "2", ("scene", "filter_shape:sphere[0]", "count[1]")),
    (
        "What is the material of the thing right of the blue ball?",
        "metal",
        ("scene", "filter_color:blue[0]", "unique[1]", "relate:right[2]", "unique[3]", "query_material[4]"),
    ),
    (
        "Are there more small things than cubes?",
        "yes",
        ("scene", "filter_size:small[0]", "count[1]", "scene", "filter_shape:cube[3]", "count[4]", "greater_than[2,5]"),
    ),
    (
        "Does the cube have the color of the blue ball?",
        "no",
        (
            *("scene", "filter_shape:cube[0]", "unique[1]", "query_color[2]"),
            *("scene", "filter_color:blue[4]", "unique[5]", "query_color[6]", "equal_color[3,7]"),
        ),
    ),
)


@fixture("clevr")
def clevr(folder: Path) -> dict[str, Any]:
    root = folder / "CLEVR_v1.0"
    for split, first in (("train", 0), ("val", 40)):
        questions = []
        for image in range(2):
            name = f"CLEVR_{split}_{image:06d}.png"
            picture(root / "images" / split / name, first + image)
            for family, (question, answer, program) in enumerate(CLEVR_QUESTIONS):
                questions.append(
                    {
                        "image_index": image,
                        "program": clevr_program(*program),
                        "question_index": len(questions),
                        "image_filename": name,
                        "question_family_index": family,
                        "split": split,
                        "answer": answer,
                        "question": question,
                    }
                )
        info = {
            "split": split,
            "license": "Creative Commons Attribution (CC BY 4.0)",
            "version": "1.0",
            "date": "2/14/2017",
        }
        write_json(root / "questions" / f"CLEVR_{split}_questions.json", {"info": info, "questions": questions})
        scenes = [clevr_scene(image, split) for image in range(2)]
        write_json(root / "scenes" / f"CLEVR_{split}_scenes.json", {"info": info, "scenes": scenes})
    return {"root": root}


def vcr_item(split: str, number: int, **changes: Any) -> dict[str, Any]:
    image = f"lsmdc_3015_FILM/3015_FILM_00.23.57.{number // 2}"
    return {
        "movie": "3015_FILM",
        "objects": ["person", "person", "person", "car"],
        "interesting_scores": [0],
        "img_fn": f"{image}@0.jpg",
        "metadata_fn": f"{image}@0.json",
        "question_orig": "Does 3 feel comfortable?",
        "question": ["Does", [2], "feel", "comfortable", "?"],
        "answer_choices": [
            ["Yes", "because", [0, 1], "sit", "next", "to", "her", "."],
            ["No", "she", "isn", "'", "t", "."],
            ["Yes", ",", [2], "is", "near", [3], "."],
            ["Yes", ",", "she", "is", "cold", "."],
        ],
        "answer_label": number % 4,
        "rationale_choices": [
            ["There", "is", "snow", "on", "the", "ground", "."],
            [[2], "stands", "with", "her", "arms", "crossed", "."],
            ["She", "sits", "very", "rigidly", "."],
            [[2], "is", "lying", "in", "bed", "."],
        ],
        "rationale_label": (number + 1) % 4,
        "img_id": f"{split}-{number // 2}",
        "question_number": number % 2,
        "annot_id": f"{split}-{number}",
        "match_fold": f"{split}-0",
        "match_index": number,
    } | changes


@fixture("vcr")
def vcr(folder: Path) -> dict[str, Any]:
    for split, first in (("train", 0), ("val", 8)):
        items = [vcr_item(split, number) for number in range(first, first + 6)]
        write_lines(folder / "vcr1annots" / f"{split}.jsonl", items)
        for number, item in enumerate(items):
            picture(folder / "vcr1images" / item["img_fn"], 70 + (first + number) // 2)
            boxes = [[0, 0, 6, 8, 0.99], [6.0, 0.0, 12.0, 8.0, 0.98], [3, 2, 6, 5, 0.9], [0, 4, 12, 8, 0.7]]
            about = {"boxes": boxes, "segms": [[]] * 4, "names": item["objects"], "width": 12, "height": 8}
            write_json(folder / "vcr1images" / item["metadata_fn"], about)
    return {"root": folder}


def explained(number: int, image: int) -> dict[str, Any]:
    answers = ["yes"] * 7 + ["no"] * 3 if number % 2 else ["skiing"] * 10
    return {
        "question": "Is it cold?" if number % 2 else "What is the man doing?",
        "answers": answers,
        "answer_type": "yes/no" if number % 2 else "other",
        "question_type": "is it" if number % 2 else "what is the",
        "explanation": [f"A man in a coat goes down slope {image}.", 0.91],
        "img_id": image,
    }


@fixture("vqa_e")
def vqa_e(folder: Path) -> dict[str, Any]:
    for split, first in (("train", 400), ("val", 410)):
        rows = [explained(number, first + number // 2) for number in range(6)]
        write_json(folder / f"VQA-E_{split}_set.json", rows)
        coco_images(folder, f"{split}2014", first, 3)
    return {"root": folder}


@fixture("vqa_x")
def vqa_x(folder: Path) -> dict[str, Any]:
    from tests.data.formats import vqa_annotations, vqa_questions

    for split, first in (("train2014", 430), ("val2014", 442)):
        questions = vqa_questions(split, first)
        write_json(folder / "Questions" / f"v2_OpenEnded_mscoco_{split}_questions.json", questions)
        write_json(folder / "Annotations" / f"v2_mscoco_{split}_annotations.json", vqa_annotations(questions))
        coco_images(folder, split, first)
        keys = [question["question_id"] for question in questions["questions"]]
        reasons = {str(key): [f"he is on the road near sign {key}", "his feet move"] for key in keys}
        parts = {"train": keys} if split == "train2014" else {"val": keys[:4], "test": keys[4:]}
        for part, own in parts.items():
            write_json(folder / "Annotations" / f"{part}_exp_anno.json", {str(key): reasons[str(key)] for key in own})
    return {"root": folder}


def conversation(number: int, **changes: Any) -> dict[str, Any]:
    texts = (
        ("What is in picture {n}?\n<image>", "A bus with an advertisement on side {n}."),
        ("What colour is it?", "It is red, and\nits roof {n} is white."),
    )
    turns = [
        {"from": speaker, "value": text.format(n=number)}
        for pair in texts
        for speaker, text in zip(("human", "gpt"), pair, strict=True)
    ]
    return {"id": f"0000{number}", "image": f"0000{number}.jpg", "conversations": turns} | changes


@fixture("conversations")
def conversations(folder: Path) -> dict[str, Any]:
    for number in range(4):
        picture(folder / "train2017" / f"0000{number}.jpg", 80 + number)
    write_json(folder / "llava_instruct.json", [conversation(number) for number in range(4)])
    return {"files": folder / "llava_instruct.json", "images": folder / "train2017"}
