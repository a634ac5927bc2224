"""A prompt as a picture: every demonstration with its image and text, the query, and the model's answer."""

from __future__ import annotations

import io
import math
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from kshot.episode import Episode
from kshot.evaluation.runs import write_bytes
from kshot.prompt import Prompt

SCALE = 2  # drawn at twice the size, for screens that have the pixels
TILE = 168
GAP = 14
MARGIN = 24
LINE = 18
INK, PALE, PAPER, CARD = "#1d2430", "#6b7686", "#ffffff", "#f6f7f9"
BORDER, QUERY = "#d9dee6", "#1f5fa8"
ANSWER, RIGHT, WRONG, SAID = ("#e7f1e9", "#22683a"), ("#22683a", "#ffffff"), ("#b3372b", "#ffffff"), (QUERY, "#ffffff")
"""Background and ink of an answer that is shown, and of the model's own: right, wrong, not judged."""


@dataclass(frozen=True)
class Piece:
    """Words in one colour; with a background they are set as a label."""

    text: str
    ink: str = INK
    background: str | None = None


@dataclass
class Card:
    """One example: its images and its text."""

    title: str
    images: list[Image.Image]
    pieces: list[Piece]
    is_query: bool = False
    lines: list[list[Piece]] | None = None


def save_prompt_picture(
    episode: Episode,
    prompt: Prompt,
    answer: str | None,
    path: str | Path,
    *,
    correct: bool | None = None,
    title: str = "",
) -> None:
    """Save a prompt as a PNG.

    Args:
        episode: the episode.
        prompt: its prompt, as rendered for the model.
        answer: the model's answer, shown as a label behind the query; ``None`` if it was not asked.
        path: the file.
        correct: whether the answer is right: green or red; ``None``: not judged.
        title: what stands above; default: the number of demonstrations.
    """
    cards = _cards(prompt, answer, correct)
    columns = max(1, min(len(cards), 5 if len(cards) > 8 else 4 if len(cards) != 5 else 5))
    for card in cards:
        card.lines = _wrap(card.pieces, _font(13), TILE)
    instruction = _wrap(_instruction(prompt), _font(13), columns * (TILE + 2 * GAP) + (columns - 1) * GAP)
    rows = [cards[i : i + columns] for i in range(0, len(cards), columns)]
    heights = [max(_height(card) for card in row) for row in rows]
    width = 2 * MARGIN + columns * (TILE + 2 * GAP) + (columns - 1) * GAP
    top = MARGIN + 28 + (len(instruction) * LINE + 10 if instruction else 0)
    legend = 34
    height = top + sum(heights) + GAP * (len(rows) - 1) + legend + MARGIN // 2
    canvas = Image.new("RGB", (width * SCALE, height * SCALE), PAPER)
    draw = ImageDraw.Draw(canvas)
    heading = title or f"{episode.shots} demonstration{'s' * (episode.shots != 1)} and a query ({prompt.style} prompt)"
    _text(draw, MARGIN, MARGIN - 4, heading, _font(17, bold=True), INK)
    for number, line in enumerate(instruction):
        _line(draw, MARGIN, MARGIN + 26 + number * LINE, line)
    y = top
    for row, row_height in zip(rows, heights, strict=True):
        x = MARGIN
        for card in row:
            _draw_card(canvas, draw, card, x, y, row_height)
            x += TILE + 3 * GAP
        y += row_height + GAP
    said = "the model's answer" + ("" if correct is None else ", right" if correct else ", wrong")
    pieces = [Piece("an answer that is shown", ANSWER[1], ANSWER[0])]
    if answer is not None:
        colours = WRONG if correct is False else RIGHT if correct else SAID
        pieces += [Piece("   "), Piece(said, colours[1], colours[0])]
    if correct is False:
        expected = ", ".join(str(r) for r in episode.query.references[:3])
        pieces += [Piece(f"   expected: {expected}", PALE)]
    _line(draw, MARGIN, height - legend, pieces)
    image = io.BytesIO()
    canvas.save(image, format="png", optimize=True)
    write_bytes(Path(path), image.getvalue())


def _cards(prompt: Prompt, answer: str | None, correct: bool | None) -> list[Card]:
    """One card a demonstration and one for the query, from the prompt's own segments."""
    cards: dict[int, Card] = {}
    for segment in prompt.segments:
        if segment.role == "instruction":
            continue
        index = segment.index
        card = cards.get(index)
        if card is None:
            name = "query" if index < 0 else f"demonstration {index + 1}"
            card = cards[index] = Card(name, [], [], index < 0)
        if segment.picture is not None:
            card.images.append(segment.picture.load())
            continue
        background, ink = ANSWER if segment.is_answer else (None, INK)
        for part in re.split(r"(<[^<>\s]{1,40}>)", segment.text):  # a chat template's marks stand back
            card.pieces.append(Piece(part, PALE if part.startswith("<") else ink, background))
    if answer is not None and -1 in cards:
        colours = WRONG if correct is False else RIGHT if correct else SAID
        cards[-1].pieces += [Piece(" "), Piece(answer or "(nothing)", colours[1], colours[0])]
    return list(cards.values())


def _instruction(prompt: Prompt) -> list[Piece]:
    return [Piece(s.text, PALE) for s in prompt.segments if s.role == "instruction" and s.text.strip()]


def _height(card: Card) -> int:
    return 30 + TILE + 10 + len(card.lines or ()) * LINE + GAP


def _draw_card(canvas: Image.Image, draw: ImageDraw.ImageDraw, card: Card, x: int, y: int, height: int) -> None:
    width = TILE + 2 * GAP
    box = tuple(v * SCALE for v in (x, y, x + width, y + height))
    line = QUERY if card.is_query else BORDER
    draw.rounded_rectangle(box, 8 * SCALE, fill=CARD, outline=line, width=SCALE * (2 if card.is_query else 1))
    _text(draw, x + GAP, y + 8, card.title, _font(12, bold=True), QUERY if card.is_query else PALE)
    _draw_images(canvas, draw, card.images, x + GAP, y + 30)
    for number, pieces in enumerate(card.lines or ()):
        _line(draw, x + GAP, y + 30 + TILE + 10 + number * LINE, pieces)


def _draw_images(canvas: Image.Image, draw: ImageDraw.ImageDraw, images: list[Image.Image], x: int, y: int) -> None:
    """The images of one example in a square: alone, or as a grid."""
    if not images:
        box = tuple(v * SCALE for v in (x, y, x + TILE, y + TILE))
        draw.rounded_rectangle(box, 4 * SCALE, outline=BORDER, width=SCALE)
        _text(draw, x + 44, y + TILE // 2 - 8, "no image", _font(13), PALE)
        return
    side = math.ceil(math.sqrt(len(images)))
    cell = TILE // side
    for number, image in enumerate(images):
        fitted = _fit(image, (cell - 4 * (side > 1)) * SCALE)
        left = x * SCALE + (number % side) * cell * SCALE + (cell * SCALE - fitted.width) // 2
        upper = y * SCALE + (number // side) * cell * SCALE + (cell * SCALE - fitted.height) // 2
        canvas.paste(fitted, (left, upper))
        draw.rectangle((left - 1, upper - 1, left + fitted.width, upper + fitted.height), outline=BORDER)


def _fit(image: Image.Image, edge: int) -> Image.Image:
    """Scale to fit a square. Small pictures are enlarged pixel by pixel: so they look the way the model got them."""
    factor = edge / max(image.size)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return image.resize(size, Image.Resampling.NEAREST if factor >= 2 else Image.Resampling.LANCZOS)


def _wrap(pieces: list[Piece], font: Any, width: int) -> list[list[Piece]]:
    """Break pieces into lines of at most ``width``; line breaks in the text are kept, empty lines at the ends dropped."""
    lines: list[list[Piece]] = [[]]
    used = 0.0
    for piece in pieces:
        text = "".join(letter if letter.isprintable() or letter.isspace() else "\ufffd" for letter in piece.text)
        for word in re.findall(r"\n|[^\S\n]+|[^\s]+", text):
            if word == "\n":
                lines.append([])
                used = 0.0
                continue
            for part in _broken(word, font, width):
                size = font.getlength(part) / SCALE
                if used + size > width and used:
                    lines.append([])
                    used = 0.0
                    if part.isspace():
                        continue
                lines[-1].append(Piece(part, piece.ink, piece.background))
                used += size
    while lines and not "".join(p.text for p in lines[-1]).strip():
        lines.pop()
    while lines and not "".join(p.text for p in lines[0]).strip():
        lines.pop(0)
    return lines


def _broken(word: str, font: Any, width: int) -> list[str]:
    """A word in parts none of which is wider than a line."""
    parts = [""]
    for letter in word:
        if parts[-1] and font.getlength(parts[-1] + letter) / SCALE > width:
            parts.append("")
        parts[-1] += letter
    return parts


def _line(draw: ImageDraw.ImageDraw, x: float, y: float, pieces: list[Piece]) -> None:
    font = _font(13)
    position = x * SCALE
    for number, piece in enumerate(pieces):
        size = font.getlength(piece.text)
        if piece.background:
            first = not number or pieces[number - 1].background != piece.background
            last = number == len(pieces) - 1 or pieces[number + 1].background != piece.background
            left, right = position - 4 * first, position + size + 4 * last
            draw.rounded_rectangle(
                (left, (y - 1) * SCALE, right, (y + LINE - 2) * SCALE),
                4,
                fill=piece.background,
                corners=(first, last, last, first),
            )
        draw.text((position, y * SCALE), piece.text, font=font, fill=piece.ink)
        position += size


def _text(draw: ImageDraw.ImageDraw, x: float, y: float, text: str, font: Any, ink: str) -> None:
    draw.text((x * SCALE, y * SCALE), text, font=font, fill=ink)


@lru_cache(maxsize=8)
def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """Matplotlib's own font: the same on every machine."""
    from matplotlib import get_data_path

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    path = Path(get_data_path()) / "fonts" / "ttf" / name
    # The basic layout: the one of libraqm is not everywhere, and fails on odd text, which is what untrained models say.
    return ImageFont.truetype(str(path), size * SCALE, layout_engine=ImageFont.Layout.BASIC)
