"""The wordings in which the embedded model meets its episodes.

Training mixes a dozen fixed forms, chat turns and forms made of random words, so that the model looks for pictures and answers and
not for particular words or places. :data:`HELD_OUT` forms and questions are never trained on: they measure how much wording matters.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kshot.data.drawing import invent_name
from kshot.prompt import IMAGE, Template
from kshot.training.tiny_words import COMMON, WORDS

LIVE = Template(
    "<image>Question:{question} Short answer:{answer}.",
    instruction="Provide an answer to the question. Use the image to answer.\n",
)
PLAIN = Template("<image>Question: {question} Answer: {answer}\n", separator="")
CAPTION = Template("<image>Caption:{answer}")
LINK = Template(
    '[BEGIN EXAMPLE] What is in the image <image>? there is "{answer}" in the image. [END EXAMPLE]\n',
    query='Based on the previous examples, what is in the image <image>? there is "',
    separator="",
)
DIALOGUE = Template("User:<image>{question}\nAssistant: {answer}\n", separator="")

TRAINED: tuple[tuple[float, Template], ...] = (
    (3.0, LIVE),
    (3.0, PLAIN),
    (1.5, CAPTION),
    (0.8, LINK),
    (2.5, DIALOGUE),
    (0.6, Template("<image>Question:{question} Short answer:{answer}.")),
    (0.6, Template("<image>{question} {answer}\n", separator="")),
    (0.6, Template("<image>{question}\n{answer}\n\n", separator="")),
    (0.6, Template("{question} <image> Answer: {answer}\n", separator="")),
    (0.6, Template("Question: {question}\n<image>\nAnswer: {answer}\n\n", separator="")),
    (0.6, Template("<image>Output: {answer}\n", separator="")),
    (0.6, Template("<image> {answer}\n", separator="")),
    (0.6, Template("Image: <image> {question} This is {answer}.\n", separator="")),
    (0.6, Template("<image>A picture of {answer}.", separator=" ")),
    (0.6, Template("Input: <image>\nOutput: {answer}\n", separator="")),
)
"""Plain forms and their weights."""

HELD_OUT: tuple[Template, ...] = (
    Template("<image> Label: {answer}\n", separator=""),
    Template("Q: {question} <image> A: {answer}\n", separator=""),
    Template("<image>{question} I would say {answer}.", separator="\n"),
    Template("Photo: <image>\nTask: {question}\nReply: {answer}\n\n", separator=""),
)
"""Plain forms kept for tests."""

QUESTIONS = (
    "What is it?",
    "What is this?",
    "What is this called?",
    "Name it.",
    "What is shown in the image?",
    "Which one is it?",
    "What do you see?",
    "What is in the image?",
    "",
)
HELD_OUT_QUESTIONS = ("What would you call this?", "Please identify it.", "How is it named?")
INSTRUCTIONS = (
    "",
    "Provide an answer to the question. Use the image to answer.\n",
    "Answer the question.\n",
    "Name the image.\n",
    "Follow the examples.\n",
    "Learn from the examples and answer.\n",
)

LETTERS = tuple("BCDEFGHIJKLMNOPRSTUVWXYZ")
"""Names of fields; Q and A are kept for :data:`HELD_OUT`."""


@dataclass(frozen=True)
class Wording:
    """A form with its question filled in, cut at pictures and answers.

    A prompt is ``start``, then for each demonstration ``before``, the picture, ``middle``, the answer, ``after``; the query is
    ``query_before``, the picture, ``query_middle``. Where ``start`` opens the first turn already, ``opened`` is the part of the first
    ``before`` (or, without demonstrations, of ``query_before``) that falls away.
    """

    start: str
    before: str
    middle: str
    after: str
    query_before: str
    query_middle: str
    opened: str = ""


def plain_wording(template: Template, question: str, instruction: str | None = None) -> Wording:
    """A plain form, as :func:`kshot.prompt.render_plain` writes it."""
    start = template.instruction if instruction is None else instruction
    demonstration, after = template.demonstration.replace("{question}", question).split("{answer}")
    before, middle = demonstration.split(IMAGE)
    query_before, query_middle = template.query_text.replace("{question}", question).split(IMAGE)
    return Wording(start, before, middle, after + template.separator, query_before, query_middle)


def chat_wording(question: str, instruction: str = "", *, system: bool = False, image_first: bool = True) -> Wording:
    """The chat form: user turns [image, question], assistant turns with the answer, as the chat template writes them."""
    opening = f"<|system|>{instruction.strip()}<|end|>" if system and instruction else ""
    first = "" if system else instruction
    before, middle = ("", question) if image_first else (question, "")
    before, middle = "<|user|>" + before, middle + "<|end|><|assistant|>"
    if not first:
        return Wording(opening, before, middle, "<|end|>", before, middle)
    return Wording("<|user|>" + first, before, middle, "<|end|>", before, middle, opened="<|user|>")


def random_wording(rng: np.random.Generator, forms: float = 0.12) -> Wording:
    """A wording of the training mixture.

    Args:
        rng: source of randomness.
        forms: share of forms made of random words; three of ten wordings are chats, and the others are of :data:`TRAINED`.
    """
    question = str(rng.choice(QUESTIONS)) if rng.random() < 0.85 else _babble(rng)
    fate = rng.random()
    if fate < 0.3:
        instruction = str(rng.choice(INSTRUCTIONS)) if rng.random() < 0.4 else ""
        return chat_wording(question, instruction, system=rng.random() < 0.5, image_first=rng.random() < 0.85)
    if fate < 0.3 + forms:
        return _random_form(rng, question)
    weights = np.array([w for w, _ in TRAINED])
    template = TRAINED[int(rng.choice(len(TRAINED), p=weights / weights.sum()))][1]
    if rng.random() < 0.7:
        return plain_wording(template, question)
    return plain_wording(template, question, str(rng.choice(INSTRUCTIONS)))


def held_out_wording(rng: np.random.Generator) -> Wording:
    """A wording whose form and question were not trained on."""
    template = HELD_OUT[int(rng.integers(len(HELD_OUT)))]
    return plain_wording(template, str(rng.choice(HELD_OUT_QUESTIONS)))


def short_wording() -> Wording:
    """The shortest form, with which training begins."""
    return Wording("", "", ":", "\n", "", ":")


def _babble(rng: np.random.Generator) -> str:
    """Some words that mean nothing here."""
    words = []
    for _ in range(int(rng.integers(1, 5))):
        fate = rng.random()
        if fate < 0.35:
            words.append(str(rng.choice(COMMON)))
        else:
            words.append(str(rng.choice(WORDS)) if fate < 0.7 else invent_name(rng, seen=True))
    if rng.random() < 0.5:
        words[0] = words[0].capitalize()
    return " ".join(words) + str(rng.choice(["?", ".", ""]))


def _field(rng: np.random.Generator) -> str:
    """The name of a field, as in "Colour: red": a letter, a word or some, with what separates it from its value."""
    name = str(rng.choice(LETTERS)) if rng.random() < 0.35 else _babble(rng).rstrip("?.").capitalize()
    return name + str(rng.choice([": ", ": ", ":", " = ", " - "]))


def _random_form(rng: np.random.Generator, question: str) -> Wording:
    """A form of random words around picture, question and answer; the question stands before or after the picture."""
    lead = str(rng.choice(["", "", "", _babble(rng) + " ", _field(rng)]))
    cue = str(rng.choice(["", ": ", _field(rng), _field(rng), _babble(rng).rstrip("?.") + " ", _babble(rng) + " "]))
    gap = str(rng.choice(["", "", " ", "\n"]))
    asked = (_field(rng) if rng.random() < 0.35 else "") + question if question else ""
    space = str(rng.choice([" ", "\n", "\n", ""]))
    if asked and rng.random() < 0.35:
        before, middle = lead + asked + space, gap + cue
    else:
        before, middle = lead, gap + asked + (space if asked else "") + cue
    end = str(rng.choice([".", "\n", "\n\n", ".\n", ".\n\n", ";", "; ", ",", " |"]))
    # An answer must not run into the word before it.
    middle = middle + " " if middle and middle[-1].isalnum() else middle
    return Wording("", before, middle or ":", end, before, middle or ":")
