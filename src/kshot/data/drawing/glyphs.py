"""Invented characters: each class is a handful of strokes, each sample a hand that draws them a little differently.

Strokes are lines, curves, polylines, loops, ovals and dots; they start anew, where the last one ended, or on an earlier stroke, and
may be doubled or mirrored, as in real scripts. A sample moves the control points, tilts and scales the whole, and chooses a pen.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

Points = NDArray[np.float64]
Style = Literal["pen", "any"]

_CLASS, _SAMPLE = 0x61F5, 0x5A3B  # tell the two random streams of a glyph apart
_OVERSAMPLING = 2  # lines are drawn without antialiasing, so they are drawn larger and scaled down


def draw_glyph(class_seed: int, sample: int, *, size: int = 64, style: Style = "pen") -> Image.Image:
    """One drawing of an invented character: ``size`` x ``size`` pixels, RGB, dark on white.

    Args:
        class_seed: which character; any integer >= 0.
        sample: which drawing of it; any integer >= 0.
        size: edge in pixels.
        style: ``"pen"``: a thin pen. ``"any"``: per drawing also thick, blurred, pale, low-resolution or white-on-black ones.
    """
    rng = np.random.default_rng([_SAMPLE, class_seed, sample])
    strokes = _deform(class_strokes(class_seed), rng)
    thick = style == "any" and rng.random() < 0.45
    width = rng.choice([6.0, 8.0, 11.0, 14.0]) if thick else rng.choice([2.5, 3.0, 3.5, 4.0, 5.0])
    image = _ink(strokes, float(width) / 100, size)
    if thick:
        image = _degrade(image, rng)
    return image.convert("RGB")


def class_strokes(class_seed: int) -> list[Points]:
    """The strokes of a character, each an array (n, 2) of points in the unit square (x to the right, y down)."""
    rng = np.random.default_rng([_CLASS, class_seed])
    strokes: list[Points] = []
    for _ in range(int(rng.choice([1, 2, 2, 3, 3, 4, 5]))):
        strokes.append(_stroke(rng, strokes))
        if rng.random() < 0.12:
            strokes.append(_copy(rng, strokes[-1]))
    if len(strokes) == 1 and np.ptp(strokes[0], axis=0).max() < 0.3:
        strokes.append(_stroke(rng, strokes))  # a lone dot or dash would be no character
    return _fit(strokes)


def _stroke(rng: np.random.Generator, earlier: list[Points]) -> Points:
    start = rng.uniform(0.05, 0.95, 2)
    if earlier and (choice := rng.random()) < 0.65:
        stroke = earlier[-1] if choice < 0.3 else earlier[int(rng.integers(len(earlier)))]
        start = stroke[-1] if choice < 0.3 else stroke[int(rng.integers(len(stroke)))]
    kinds: list[tuple[float, Callable[[np.random.Generator, Points], Points]]] = [
        (0.27, _line),
        (0.22, lambda r, s: _bezier(np.stack([s, *r.uniform(0, 1, (2, 2))]))),
        (0.13, lambda r, s: _bezier(np.stack([s, *r.uniform(-0.1, 1.1, (3, 2))]))),
        (0.16, _polyline),
        (0.10, lambda r, s: _bezier(np.stack([s, *r.uniform(-0.2, 1.2, (4, 2))]))),
        (0.09, _oval),
        (0.03, lambda r, s: s + np.array([[0, 0], [0.015, 0.015]])),
    ]
    weights = np.array([w for w, _ in kinds])
    return kinds[int(rng.choice(len(kinds), p=weights / weights.sum()))][1](rng, start)


def _line(rng: np.random.Generator, start: Points) -> Points:
    """Straight; often upright or level, as strokes of scripts are."""
    end = rng.uniform(0.05, 0.95, 2)
    if rng.random() < 0.5:
        axis = int(rng.integers(2))
        end[axis] = start[axis]
    steps = np.linspace(0, 1, 8)[:, None]
    return start * (1 - steps) + end * steps


def _polyline(rng: np.random.Generator, start: Points) -> Points:
    points = [start]
    for _ in range(int(rng.integers(2, 5))):
        points.append(_line(rng, points[-1])[-1])
    return np.stack(points)


def _oval(rng: np.random.Generator, start: Points) -> Points:
    """An ellipse or an open arc of one, beginning near ``start``."""
    radius = rng.uniform(0.06, 0.3) * rng.uniform(0.6, 1.4, 2)
    begin, extent = rng.uniform(0, 2 * np.pi), 2 * np.pi * (1 if rng.random() < 0.5 else rng.uniform(0.4, 0.9))
    angles = begin + np.linspace(0, extent, 24)
    circle = np.stack([np.cos(angles), np.sin(angles)], 1)
    return start + (circle - circle[0]) * radius


def _bezier(control: Points) -> Points:
    """24 points of the Bezier curve with these control points (de Casteljau)."""
    steps = np.linspace(0, 1, 24)[:, None]
    curves = [p[None] for p in control]
    while len(curves) > 1:
        curves = [a * (1 - steps) + b * steps for a, b in pairwise(curves)]
    return curves[0]


def _copy(rng: np.random.Generator, stroke: Points) -> Points:
    """The stroke once more, moved or mirrored."""
    if rng.random() < 0.5:
        return stroke + rng.choice([-1, 1]) * rng.permutation([rng.uniform(0.12, 0.35), 0.0])
    mirror = np.array([-1.0, 1.0]) if rng.random() < 0.7 else np.array([1.0, -1.0])
    pivot = stroke[int(rng.integers(len(stroke)))]
    return pivot + (stroke - pivot) * mirror


def _fit(strokes: list[Points]) -> list[Points]:
    """Centre the character and scale its longer edge to 0.72 of the square, its shorter one a little less than in proportion."""
    every = np.concatenate(strokes)
    low, high = every.min(0), every.max(0)
    extent = np.maximum(high - low, 1e-3)
    scale = 0.72 / np.maximum(extent, 0.6 * extent.max())
    return [(s - (low + high) / 2) * scale + 0.5 for s in strokes]


def _deform(strokes: list[Points], rng: np.random.Generator) -> list[Points]:
    """What another hand makes of the strokes: bent and shifted one by one, then tilted, sheared and scaled as a whole."""
    amount = rng.choice([0.015, 0.025, 0.035])
    angle, shear = rng.uniform(-0.21, 0.21), rng.uniform(-0.18, 0.18)
    cos, sin = np.cos(angle), np.sin(angle)
    scale = np.diag(rng.uniform(0.82, 1.15) * rng.uniform(0.92, 1.08, 2))
    matrix = np.array([[cos, -sin], [sin, cos]]) @ np.array([[1, shear], [0, 1]]) @ scale
    offset = rng.uniform(-0.06, 0.06, 2) + 0.5
    drawn = []
    for stroke in strokes:
        # A straight ramp and one arch along the stroke: ends move independently, the middle bulges.
        t = np.linspace(0, 1, len(stroke))[:, None]
        moved = stroke + amount * (
            rng.normal(size=2) * (1 - t) + rng.normal(size=2) * t + rng.normal(size=2) * np.sin(np.pi * t)
        )
        drawn.append((moved - 0.5) @ matrix.T + offset)
    return drawn


def _ink(strokes: list[Points], width: float, size: int) -> Image.Image:
    """Strokes of the given width (a fraction of the square) in black on white, mode L."""
    large = size * _OVERSAMPLING
    image = Image.new("L", (large, large), 255)
    draw = ImageDraw.Draw(image)
    pen = max(1, round(width * large))
    for stroke in strokes:
        points = [(float(x), float(y)) for x, y in stroke * large]
        draw.line(points, fill=0, width=pen, joint="curve")
        for x, y in (points[0], points[-1]):  # round ends
            draw.ellipse((x - pen / 2, y - pen / 2, x + pen / 2, y + pen / 2), fill=0)
    return image.resize((size, size), Image.Resampling.BOX)


def _degrade(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Low resolution, blur, pale ink, inverted: what scans and old digit collections look like."""
    size = image.size
    fate = rng.random()
    if fate < 0.5:
        n = int(rng.choice([8, 8, 9, 10, 12, 16]))
        back = Image.Resampling.BICUBIC if rng.random() < 0.5 else Image.Resampling.BILINEAR
        image = image.resize((n, n), Image.Resampling.BOX).resize(size, back)
    elif fate < 0.75:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.008, 0.035) * size[0]))
    if rng.random() < 0.5:
        ink = rng.uniform(0.6, 1.0)
        image = image.point([round(255 - (255 - v) * ink) for v in range(256)])
    if rng.random() < 0.12:
        image = image.point([255 - v for v in range(256)])
    return image
