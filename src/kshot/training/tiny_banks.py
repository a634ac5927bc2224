"""The pictures that the embedded model is trained on, drawn once and kept as arrays.

Four sources, each an array of classes x drawings: Omniglot characters (turned and mirrored, which makes new characters of them),
pairs of Omniglot characters merged into one, invented characters, and scenes. Every picture passes through :func:`to_pixels`, the very
preprocessing that the exported image processor applies at test time.
"""

from __future__ import annotations

import io
import os
import zipfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from kshot.data.drawing import SCENE_TASKS, Scene, draw_glyph, is_held_out
from kshot.data.drawing.scenes import BACKGROUNDS, COLOURS
from kshot.errors import DataError

Pixels = NDArray[np.uint8]
EDGE = 32
"""Edge in pixels of what the vision tower sees."""
UNNAMED = -100
"""Attribute index of a colour without a name (ignored by the loss)."""


@dataclass(frozen=True)
class Banks:
    """Training pictures.

    Attributes:
        characters: per source an array (classes, drawings, EDGE, EDGE), grey.
        scenes: (n, EDGE, EDGE, 3), in named colours only: for the language model.
        attributes: (n, 8) index of each attribute's word, in the order of :data:`SCENE_TASKS`.
        free_scenes: as ``scenes``, in any colours: for the vision tower.
        free_attributes: as ``attributes``; :data:`UNNAMED` where a colour has no name.
    """

    characters: list[Pixels]
    scenes: Pixels
    attributes: NDArray[np.int64]
    free_scenes: Pixels
    free_attributes: NDArray[np.int64]


def to_pixels(image: Image.Image) -> Pixels:
    """What the exported processor makes of an image before normalising it: (EDGE, EDGE, 3) uint8."""
    return np.asarray(image.convert("RGB").resize((EDGE, EDGE), Image.Resampling.BILINEAR))


def read_omniglot(path: str | os.PathLike[str]) -> dict[str, list[Image.Image]]:
    """Characters of an Omniglot archive: ``alphabet/character`` -> its drawings, in the order of their file names.

    Raises:
        DataError: the archive is missing or holds no drawings.
    """
    classes: dict[str, list[Image.Image]] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for name in sorted(n for n in archive.namelist() if n.endswith(".png") and "__MACOSX" not in n):
                parts = name.split("/")
                drawing = Image.open(io.BytesIO(archive.read(name))).convert("L")
                classes.setdefault("/".join(parts[-3:-1]), []).append(drawing)
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"not a readable archive ({error})", file=path) from None
    if not classes:
        raise DataError(
            "holds no drawings", file=path, remedy="give images_background.zip or one of its small variants"
        )
    return classes


def build_banks(
    folder: str | os.PathLike[str],
    *,
    omniglot: str | os.PathLike[str] | None,
    invented: int,
    drawings: int,
    merged: int,
    scenes: int,
    seed: int,
    workers: int,
) -> Banks:
    """Draw all training pictures, or read them from ``folder`` if they have been drawn before.

    Args:
        folder: where the arrays are kept (``.npy``).
        omniglot: archive of real characters; ``None``: invented characters only.
        invented: number of invented characters.
        drawings: drawings of each of them.
        merged: number of characters merged from two real ones.
        scenes: scenes of each kind (named colours, free colours).
        seed: everything derives from it.
        workers: processes; the result does not depend on their number.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(workers) as pool:

        def bank(name: str, function, jobs: list) -> Pixels:  # type: ignore[no-untyped-def]
            path = folder / f"{name}.npy"
            if not path.exists():
                array = np.concatenate(list(pool.map(function, jobs)))
                with open(path.with_suffix(".tmp"), "wb") as file:
                    np.save(file, array)
                path.with_suffix(".tmp").rename(path)
            return np.load(path)

        characters = []
        if omniglot is not None:
            real = list(read_omniglot(omniglot).values())
            characters.append(bank("omniglot", _turned, [(c, seed, i) for i, c in enumerate(real)]))
            rng = np.random.default_rng([seed, 1])
            pairs = [rng.choice(len(real), 2, replace=False) for _ in range(merged)]
            if pairs:
                jobs = [(real[a], real[b], seed, i) for i, (a, b) in enumerate(pairs)]
                characters.append(bank("merged", _merged, jobs))
        step = min(invented, 50)
        characters.append(bank("invented", _invented, [(i, step, drawings, seed) for i in range(0, invented, step)]))
        step = min(scenes, 500)
        named = bank("scenes", _scenes, [(i, step, False, seed) for i in range(0, scenes, step)])
        free = bank("free_scenes", _scenes, [(i, step, True, seed) for i in range(0, scenes, step)])
    return Banks(characters, *_split(named), *_split(free))


def attribute_indices(scene: Scene) -> list[int]:
    """Index of each attribute's word, in the order of :data:`SCENE_TASKS`."""
    return [words.index(getattr(scene, name)) for name, words in SCENE_TASKS.items()]


def _turned(job: tuple[list[Image.Image], int, int]) -> Pixels:
    """One real character as eight classes, each drawing once as it is and twice deformed."""
    drawings, seed, number = job
    rng = np.random.default_rng([seed, 2, number])
    classes = []
    for turn in range(8):
        views = []
        for drawing in drawings:
            turned = _turn(drawing, turn)
            views += [turned, _warp(turned, rng), _pen(_warp(turned, rng), rng)]
        classes.append(np.stack([to_pixels(v)[..., 0] for v in views]))
    return np.stack(classes)


def _merged(job: tuple[list[Image.Image], list[Image.Image], int, int]) -> Pixels:
    """Two real characters in one: a class with the variation of real hands. Drawings are paired by their drawer."""
    first, second, seed, number = job
    rng = np.random.default_rng([seed, 3, number])
    turns, layout = rng.integers(8, size=2), rng.integers(4)
    views = []
    for a, b in zip(first, second, strict=True):
        canvas = np.full((105, 105), 255, np.uint8)
        for image, turn, part in ((a, turns[0], 0), (b, turns[1], 1)):
            box = _LAYOUTS[layout][part]
            shape = (box[2] - box[0], box[3] - box[1])
            small = np.asarray(_warp(_turn(image, int(turn)), rng, 0.6).resize(shape, Image.Resampling.BICUBIC))
            # Thin lines pale when they are scaled down; real pens do not.
            small = (255 - np.clip((255.0 - small) * 1.5, 0, 255)).astype(np.uint8)
            region = canvas[box[1] : box[3], box[0] : box[2]]
            np.minimum(region, small, out=region)
        views.append(to_pixels(_pen(Image.fromarray(canvas), rng))[..., 0])
    return np.stack(views)[None]


_LAYOUTS = (
    ((0, 15, 60, 90), (45, 15, 105, 90)),  # side by side
    ((15, 0, 90, 60), (15, 45, 90, 105)),  # one above the other
    ((5, 5, 100, 100), (5, 5, 100, 100)),  # on top of each other
    ((0, 0, 90, 90), (55, 55, 105, 105)),  # one in the corner of the other
)


def _invented(job: tuple[int, int, int, int]) -> Pixels:
    first, count, drawings, seed = job
    # Classes of the training are odd multiples beyond any seed a task would use.
    return np.stack(
        [
            np.stack([to_pixels(draw_glyph(_class_seed(seed, c), i, style="any"))[..., 0] for i in range(drawings)])
            for c in range(first, first + count)
        ]
    )


def _class_seed(seed: int, number: int) -> int:
    """Class seeds of training characters: from 2**40 on, which leaves all smaller ones unseen."""
    return (1 << 40) + (seed << 24) + number


def _scenes(job: tuple[int, int, bool, int]) -> Pixels:
    """Scenes with their attributes in an additional last row of pixels, so that one array holds both."""
    first, count, free, seed = job
    rows = np.zeros((count, EDGE + 1, EDGE, 3), np.uint8)
    for row, number in zip(rows, range(first, first + count), strict=True):
        scene = Scene.random(_class_seed(seed, number))
        labels = attribute_indices(scene)
        filled, outline = COLOURS[scene.colour], COLOURS[scene.outline_colour]
        if free:
            rng = np.random.default_rng([seed, 4, number])
            filled, labels[0] = _free_colour(rng, scene, filled, labels[0], scene.shape)
            outline, labels[6] = _free_colour(rng, scene, outline, labels[6], None)
        row[:EDGE] = to_pixels(scene.paint(filled, outline))
        row[EDGE, : len(labels), 0] = [label % 256 for label in labels]
    return rows


def _split(rows: Pixels) -> tuple[Pixels, NDArray[np.int64]]:
    attributes = rows[:, EDGE, : len(SCENE_TASKS), 0].astype(np.int64)
    return np.ascontiguousarray(rows[:, :EDGE]), np.where(attributes == UNNAMED % 256, UNNAMED, attributes)


def _free_colour(
    rng: np.random.Generator, scene: Scene, named: tuple[int, int, int], label: int, shape: str | None
) -> tuple[tuple[int, int, int], int]:
    """A shade of the named colour, or (in two of three scenes) any colour that stands out from the background.

    A filled ``shape`` is never painted in a colour nearest to one it is held out with, so held-out pairs stay unseen.
    """
    background = np.array(BACKGROUNDS[scene.background])
    palette = np.array(list(COLOURS.values()))
    if rng.random() < 1 / 3:
        shade = np.clip(np.array(named) + rng.normal(0, 10, 3), 0, 255).astype(int)
        return (int(shade[0]), int(shade[1]), int(shade[2])), label
    while True:
        rgb = rng.integers(0, 256, 3)
        nearest = list(COLOURS)[int(np.abs(palette - rgb).sum(1).argmin())]
        if np.abs(rgb - background).sum() > 150 and not (shape is not None and is_held_out(nearest, shape)):
            return (int(rgb[0]), int(rgb[1]), int(rgb[2])), UNNAMED


def _turn(image: Image.Image, turn: int) -> Image.Image:
    """One of the eight symmetries of the square."""
    if turn >= 4:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return image.rotate(90 * (turn % 4)) if turn % 4 else image


def _warp(image: Image.Image, rng: np.random.Generator, strength: float = 1.0) -> Image.Image:
    """Tilt, shear, scale and shift a grey drawing on white a little."""
    width, height = image.size
    angle, shear = rng.uniform(-0.21, 0.21) * strength, rng.uniform(-0.15, 0.15) * strength
    scale = (1 + strength * rng.uniform(-0.15, 0.15)) * (1 + strength * rng.uniform(-0.08, 0.08, 2))
    cos, sin = np.cos(angle), np.sin(angle)
    matrix = np.array([[cos, -sin], [sin, cos]]) @ np.array([[1, shear], [0, 1]]) @ np.diag(1 / scale)
    centre = np.array([width / 2, height / 2])
    offset = centre - matrix @ (centre + strength * rng.uniform(-0.07, 0.07, 2) * centre * 2)
    data = (*matrix[0], offset[0], *matrix[1], offset[1])
    return image.transform(image.size, Image.Transform.AFFINE, data, Image.Resampling.BILINEAR, fillcolor=255)


def _pen(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Now and then a broader or softer pen."""
    fate = rng.random()
    if fate < 0.25:
        return image.filter(ImageFilter.MinFilter(3))
    if fate < 0.35:
        return image.filter(ImageFilter.MinFilter(5))
    if fate < 0.45:
        return image.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 2)))
    return image
