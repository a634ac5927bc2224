"""Small data sets in the official file formats: for each task a function that writes one and gives the options to load it.

A new task registers its own here, or in any module ``tests/data/*_formats.py``, and is then under ``test_all_tasks.py``::

    @fixture("my_task")
    def my_task(folder: Path) -> dict[str, Any]:
        ...
        return {"root": folder}
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

FIXTURES: dict[str, Callable[[Path], dict[str, Any]]] = {}


def fixture(name: str):
    def enter(write: Callable[[Path], dict[str, Any]]):
        FIXTURES[name] = write
        return write

    return enter


def all_fixtures() -> dict[str, Callable[[Path], dict[str, Any]]]:
    """The fixtures of this module and of all ``*_formats.py`` beside it."""
    for path in sorted(Path(__file__).parent.glob("*_formats.py")):
        importlib.import_module(f"tests.data.{path.stem}")
    return dict(FIXTURES)


def picture(path: Path, number: int) -> Path:
    """Writes a small image; other numbers, other content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", (12, 8), ((number * 53) % 256, (number * 101) % 256, (number * 197) % 256))
    image.putpixel((number % 12, number // 12 % 8), (255 - number % 256, 7, 9))
    image.save(path, **({"quality": 95} if path.suffix == ".jpg" else {}))
    return path


def write_json(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def write_lines(path: Path, values: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values), encoding="utf-8")
    return path


# visualqa.org and okvqa.allenai.org ------------------------------------------------------------------------------------------


def vqa_questions(subtype: str, first_image: int, count: int = 4) -> dict[str, Any]:
    """A question file: two questions an image."""
    texts = ["What is the man doing in the street?", "How many dogs are there?"]
    return {
        "info": {"description": "This is v2.0 of the VQA dataset.", "version": "2.0", "year": 2017},
        "task_type": "Open-Ended",
        "data_type": "mscoco",
        "license": {"name": "Creative Commons Attribution 4.0 International License"},
        "data_subtype": subtype,
        "questions": [
            {"image_id": image, "question": text, "question_id": image * 1000 + number}
            for image in range(first_image, first_image + count)
            for number, text in enumerate(texts)
        ],
    }


def vqa_annotations(questions: dict[str, Any], *, best: bool = True, raw: bool = False) -> dict[str, Any]:
    """The annotation file of a question file. ``best``: with multiple_choice_answer (VQAv2); ``raw``: with raw answers (OK-VQA)."""
    annotations = []
    for number, question in enumerate(questions["questions"]):
        said = ["walking"] * 6 + ["crossing street"] * 3 + ["jaywalking"] if number % 2 == 0 else ["2"] * 9 + ["3"]
        answers = [
            {"answer": text, "answer_confidence": "yes", "answer_id": i} | ({"raw_answer": text} if raw else {})
            for i, text in enumerate(said, start=1)
        ]
        record = {
            "question_type": "what is" if number % 2 == 0 else "how many",
            "answers": answers,
            "image_id": question["image_id"],
            "answer_type": "other" if number % 2 == 0 else "number",
            "question_id": question["question_id"],
        }
        annotations.append(record | ({"multiple_choice_answer": said[0]} if best else {}))
    return {"info": questions["info"], "data_subtype": questions["data_subtype"], "annotations": annotations}


def coco_images(folder: Path, subtype: str, first: int, count: int = 4) -> None:
    for image in range(first, first + count):
        picture(folder / subtype / f"COCO_{subtype}_{image:012d}.jpg", image)


@fixture("vqav2")
def vqav2(folder: Path) -> dict[str, Any]:
    for subtype, first in (("train2014", 30), ("val2014", 42)):
        questions = vqa_questions(subtype, first)
        write_json(folder / f"v2_OpenEnded_mscoco_{subtype}_questions.json", questions)
        write_json(folder / f"v2_mscoco_{subtype}_annotations.json", vqa_annotations(questions))
        coco_images(folder, subtype, first)
    write_json(folder / "v2_OpenEnded_mscoco_test-dev2015_questions.json", vqa_questions("test-dev2015", 60, 2))
    coco_images(folder, "test2015", 60, 2)
    return {"root": folder}


@fixture("okvqa")
def okvqa(folder: Path) -> dict[str, Any]:
    for subtype, first in (("train2014", 30), ("val2014", 42)):
        questions = vqa_questions(subtype, first)
        write_json(folder / f"OpenEnded_mscoco_{subtype}_questions.json", questions)
        write_json(folder / f"mscoco_{subtype}_annotations.json", vqa_annotations(questions, best=False, raw=True))
        coco_images(folder, subtype, first)
    return {"root": folder}


# Captions ---------------------------------------------------------------------------------------------------------------------


def sentences(image: int, first_id: int) -> list[dict[str, Any]]:
    raw = [f"A man riding wave number {image}\non a surfboard.  ", "A surfer in the sea.", "Someone surfs."]
    raw += ["A person on top of a surf board.", "A wave, and a man on it."]
    return [
        {"tokens": text.lower().split(), "raw": text, "imgid": image, "sentid": first_id + number}
        for number, text in enumerate(raw)
    ]


@fixture("coco2014")
def coco2014(folder: Path) -> dict[str, Any]:
    images = []
    for number, split in enumerate(("train", "restval", "val", "test", "test", "train")):
        subtype = "train2014" if split == "train" else "val2014"
        coco_images(folder, subtype, 100 + number, 1)
        images.append(
            {
                "filepath": subtype,
                "sentids": [s["sentid"] for s in sentences(number, number * 5)],
                "filename": f"COCO_{subtype}_{100 + number:012d}.jpg",
                "imgid": number,
                "split": split,
                "sentences": sentences(number, number * 5),
                "cocoid": 100 + number,
            }
        )
    write_json(folder / "dataset_coco.json", {"images": images, "dataset": "coco"})
    return {"root": folder}


@fixture("flickr30k")
def flickr30k(folder: Path) -> dict[str, Any]:
    images = []
    for number, split in enumerate(("train", "train", "val", "test", "test")):
        name = f"10000{number}795.jpg"
        picture(folder / "flickr30k-images" / name, number)
        images.append(
            {
                "sentids": [s["sentid"] for s in sentences(number, number * 5)],
                "imgid": number,
                "sentences": sentences(number, number * 5),
                "split": split,
                "filename": name,
            }
        )
    write_json(folder / "dataset_flickr30k.json", {"images": images, "dataset": "flickr30k"})
    return {"root": folder}


def flickr30k_tokens(folder: Path) -> dict[str, Any]:
    """The other layout of Flickr30k: the .token file and the split lists of Flickr30k Entities."""
    lines = []
    for number, split in enumerate(("train", "train", "val", "test", "test")):
        key = f"10000{number}795"
        picture(folder / "flickr30k-images" / f"{key}.jpg", number)
        lines += [f"{key}.jpg#{i}\t{' '.join(s['raw'].split())} ." for i, s in enumerate(sentences(number, 0))]
        with (folder / f"{split}.txt").open("a") as listed:
            listed.write(f"{key}\n")
    (folder / "results_20130124.token").write_text("\n".join(lines) + "\n")
    return {"root": folder}


@fixture("coco2017")
def coco2017(folder: Path) -> dict[str, Any]:
    for split, first in (("train", 200), ("val", 210)):
        images, annotations = [], []
        for image in range(first, first + 3):
            name = f"{image:012d}.jpg"
            picture(folder / f"{split}2017" / name, image)
            images.append({"license": 4, "file_name": name, "height": 8, "width": 12, "id": image})
            annotations += [
                {"image_id": image, "id": s["sentid"], "caption": s["raw"] + "\n"} for s in sentences(image, image * 5)
            ]
        annotations.sort(key=lambda annotation: annotation["id"] % 5)  # the release does not group them by image
        info = {"description": "COCO 2017 Dataset", "year": 2017}
        data = {"info": info, "licenses": [], "images": images, "annotations": annotations}
        write_json(folder / "annotations" / f"captions_{split}2017.json", data)
    return {"root": folder}


# MME and SEED-Bench -----------------------------------------------------------------------------------------------------------


@fixture("mme")
def mme(folder: Path) -> dict[str, Any]:
    root = folder / "MME_Benchmark_release_version"
    (root / "eval_tool").mkdir(parents=True)
    for number in range(3):
        stem = f"000{number}"
        text = (
            f'Is the word in the logo "angie{number}\'s"? Please answer yes or no.\tYes\n'
            f'Is the word in the logo "angle{number}\'s"? Please answer yes or no.\tNo\n'
        )
        picture(root / "OCR" / f"{stem}.jpg", number)
        (root / "OCR" / f"{stem}.txt").write_text(text)
        picture(root / "artwork" / "images" / f"1{stem}.png", 10 + number)
        questions = root / "artwork" / "questions_answers_YN"
        questions.mkdir(exist_ok=True)
        (questions / f"1{stem}.txt").write_text(
            "Does this artwork exist in the form of painting? Please answer yes or no.\tYes\n"
            "Does this artwork exist in the form of glassware? Please answer yes or no.\tNo"
        )
    return {"root": root}


@fixture("seedbench")
def seedbench(folder: Path) -> dict[str, Any]:
    types = {"Scene Understanding": 1, "Instances Counting": 5, "Action Recognition": 10}
    questions = []
    for number in range(6):
        data_id = (
            f"14544{number // 2}_25911119{number // 2}"  # two questions an image; the release's images have no ending
        )
        path = picture(folder / "SEED-Bench-image" / f"{data_id}.jpg", number // 2)
        path.rename(path.with_suffix(""))
        questions.append(
            {
                "answer": "ABCD"[number % 4],
                "choice_a": "One",
                "choice_b": "Two",
                "choice_c": "Three",
                "choice_d": "Four",
                "data_id": data_id,
                "data_type": "image",
                "question": "How many towels are in the image?",
                "question_id": f"10166{number}",
                "question_type_id": 1 if number == 5 else 5,
            }
        )
    questions[4]["question_type_id"] = 1
    questions.append(
        questions[0]
        | {"data_id": "v.mp4", "data_type": "video", "question_id": "9", "question_type_id": 10, "segment": [0.0, 2.4]}
    )
    extra = [q | {"data_id": f"{q['data_id']}9", "question_id": f"{q['question_id']}9"} for q in questions[:6]]
    for number, q in enumerate(extra):
        picture(folder / "SEED-Bench-image" / f"{q['data_id']}.jpg", 50 + number // 2).rename(
            folder / "SEED-Bench-image" / q["data_id"]
        )
    write_json(folder / "SEED-Bench.json", {"questions": questions + extra, "question_type": types})
    return {"root": folder}


# Your own data ----------------------------------------------------------------------------------------------------------------


@fixture("jsonl")
def jsonl(folder: Path) -> dict[str, Any]:
    for name, first, count in (("support", 0, 4), ("queries", 10, 3)):
        rows = []
        for number in range(first, first + count):
            picture(folder / "images" / f"{number}.png", number)
            answers = ["rot", "röt"] if number % 2 else ["blau"]
            rows.append(
                {
                    "id": f"item-{number}",
                    "images": [f"{number}.png"],
                    "question": "Welche Farbe?",
                    "answer": answers[0],
                    "references": answers,
                    "metadata": {"category": "colour"},
                }
            )
        write_lines(folder / f"{name}.jsonl", rows)
    files = {"queries": folder / "queries.jsonl", "support": folder / "support.jsonl"}
    return files | {"images": folder / "images"}


@fixture("image_folder")
def image_folder(folder: Path) -> dict[str, Any]:
    for kind, label in enumerate(("hedgehog", "cacti hog", "octopus")):
        for number in range(4):
            picture(folder / "photos" / label / f"{number}.png", kind * 20 + number)
    (folder / "photos" / "octopus" / "readme.txt").write_text("octopuses")
    return {"root": folder / "photos", "support_per_class": 2}


@fixture("hf")
def hf(folder: Path) -> dict[str, Any]:
    import datasets

    names = ["cat", "dog"]
    features = datasets.Features(
        {"picture": datasets.Image(), "label": datasets.ClassLabel(names=names), "key": datasets.Value("string")}
    )
    splits = {}
    for split, first in (("train", 0), ("test", 10)):
        paths = [str(picture(folder / "made" / f"{n}.png", n)) for n in range(first, first + 4)]
        rows = {"picture": paths, "label": [0, 1, 0, 1], "key": [f"{split}{n}" for n in range(4)]}
        splits[split] = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict(splits).save_to_disk(str(folder / "saved"))
    return {"path": folder / "saved", "image": "picture", "answer": "label", "id": "key"}
