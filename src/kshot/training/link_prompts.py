"""Wordings of link-context training: questions, and how the episodes of each kind are written.

The support turns, the question of the evaluation and the forms of the ``reference`` and ``jigsaw`` turns are those of Link-Context
Learning (arXiv 2308.07891), since models that were trained by its code know no others. The paraphrases of the query's question
are our own.
"""

from __future__ import annotations

from kshot.data.concepts import LINK, PLAIN
from kshot.prompt import Template

SUPPORT_QUESTION = "What is in the image"
"""Question of a demonstration in the link form; the template puts the image and a question mark behind it."""

QUERY_QUESTION = "Based on the previous examples, what is in the image"
"""The query's question in evaluation."""

PLAIN_QUESTION = "What is it?"
"""Question of demonstrations and query in the plain form."""

QUERY_QUESTIONS = (
    QUERY_QUESTION,
    "Going by the examples above, what do you see in the image",
    "With the examples in mind, what is in this image",
    "Which of the things you were just shown is in the image",
    "Compare this with the examples: what is in the image",
    "You have seen some examples. What, then, is in the image",
    "Judging from the examples, what does this image show",
    "What would you call the thing in the image",
    "What is the name of the thing in this image",
    "By which of the names above does the thing in this image go",
    "If the examples are right, what is in the image",
    "Use what the examples taught you: what is in the image",
    "Here is a new picture. What is in the image",
    "Now it is your turn. What is in the image",
    "One more picture: what is shown in the image",
    "Look back at the examples and say: what is in the image",
    "Relying on nothing but the examples, what is in the image",
    "What do the examples tell you about what is in the image",
    "Which name fits what is in the image",
    "Tell me, following the examples, what is in the image",
    "To which of the examples does this one belong: what is in the image",
    "Can you name, as in the examples, what is in the image",
    "In the words of the examples, what is in the image",
    "Please recognise it from the examples: what is in the image",
    "From what you have just learnt, what is in the image",
    "What can be seen in the image",
    "Which kind of thing is shown in the image",
    "Having looked at the examples, how would you name what is in the image",
    "The same names are used once more. What is in the image",
    "Finally, what is in the image",
    "Think of the earlier pictures. What is in the image",
)
"""Questions of the query in training; the template puts the image and a question mark behind each."""

TEMPLATES = {"link": LINK, "plain": PLAIN}
"""How link episodes may be written."""

REFERENCE_QUESTION = "Tell me something about this image"
REFERENCE_QUERY = "Which images in the previous example are in the same category as this image"

_REFERENCE_QUERY = "{question} <image>? (Provide the answer in order as list)"

REFERENCE = Template(
    demonstration="USER: [BEGIN EXAMPLE] {question} <image>. ASSISTANT: {answer}",
    query=f"[FINAL QUESTION]: USER: {_REFERENCE_QUERY} ASSISTANT: ",
    instruction=LINK.instruction,
    separator=" [END EXAMPLE] ",
    user="{question} <image>.",
    query_user=_REFERENCE_QUERY,
    short_instruction="Answer with a list of names.",
)
"""Demonstrations introduce pictures under names of their own; the query asks which of them show what it shows."""


def reference_answer(name: str) -> str:
    """What is said of a picture that is introduced under a name."""
    return f'The reference name of this image is "{name}".'


_JIGSAW_QUERY = (
    "Using the puzzle pieces provided above to piece together this image <image>, "
    "and provide the coordinates of each piece on the image coordinate system in order."
)

JIGSAW = Template(
    demonstration="USER: [BEGIN EXAMPLE] This image <image> is a puzzle piece. ASSISTANT:{answer}",
    query=f"[FINAL QUESTION]: USER: {_JIGSAW_QUERY} ASSISTANT: ",
    instruction=LINK.instruction,
    separator=" [END EXAMPLE] ",
    user="This image <image> is a puzzle piece.",
    query_user=_JIGSAW_QUERY,
    short_instruction="Answer in this form: The order is: [[row, column], ...].",
)
"""Demonstrations are pieces of a picture, nothing being said of them; the query shows the picture."""


def jigsaw_answer(places: list[tuple[int, int]]) -> str:
    """The places, row and column from 0, of the pieces in the order in which they were shown."""
    return f"The order is: {[list(place) for place in places]}."
