"""Chat prompts: demonstrations as turns of a conversation, through a model's own chat template.

A chat template is a program of other people that writes one string. To know what each part of that string is without searching for
it, the template is run on messages whose texts are unique marks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from kshot.episode import Episode
from kshot.errors import OptionError
from kshot.picture import Picture
from kshot.prompt import Prompt, Role, Segment, Template, fill, instruction_of, plain_text


def render_chat(
    episode: Episode,
    template: Template,
    apply_chat_template: Callable[..., str],
    image_token: str,
    *,
    answer: str | None = None,
    reserved: Sequence[str] = (),
) -> Prompt:
    """Demonstrations as user and assistant turns, through a model's own chat template.

    The chat template is run on messages whose texts are unique marks, so that the place of every text in the result is known; a
    second run on the real texts must give the same string.

    Args:
        apply_chat_template: ``processor.apply_chat_template``.
        image_token: what the chat template writes for an image (the processor's placeholder).
        answer, reserved: as in :func:`render_plain`.

    Raises:
        OptionError: the chat template rewrites its messages, so that texts cannot be located; use plain prompts.
        DataError: a demonstration has no text answer.
    """

    def run(messages: list[dict[str, Any]], generate: bool) -> str:
        return str(apply_chat_template(messages, tokenize=False, add_generation_prompt=generate))

    for strip in (False, True):  # many chat templates trim their texts; then so do we, and know where everything is
        texts: list[Segment] = []
        messages = _messages(episode, template, answer, reserved, texts, strip)
        prompt = _chat_prompt(run, messages, texts, episode.pictures, image_token, answer is not None)
        if prompt.text(image_token) == run(messages, answer is None):
            return prompt
    raise OptionError("the model's chat template rewrites the texts of its messages; use plain prompts")


def _chat_prompt(
    run: Callable[[list[dict[str, Any]], bool], str],
    messages: list[dict[str, Any]],
    texts: list[Segment],
    images: Sequence[Picture],
    image_token: str,
    answered: bool,
) -> Prompt:
    """The prompt that a chat template makes of messages whose texts, in order, are ``texts``."""
    pictures = iter(images)
    pieces = _literal_pieces(run, messages, len(texts), generate=not answered)
    # What closes an assistant's turn: the markup behind the last assistant's text when nothing follows it.
    close = ""
    if any(t.is_answer for t in texts):
        finished = messages if answered else messages[:-1]
        count = max(i for i, t in enumerate(texts) if t.is_answer) + 1
        close = _literal_pieces(run, finished, count, generate=False)[-1]

    segments: list[Segment] = []
    prefix = None
    for i, piece in enumerate(pieces):
        before = texts[i - 1] if i else None
        if before is not None and before.is_answer:
            size = _common_prefix(piece, close)
            segments.append(replace(before, text=piece[:size]))
            piece = piece[size:]
        # The markup between two texts belongs to the turn it opens.
        owner = texts[i] if i < len(texts) else Segment("", None, "answer" if answered else "query")
        owner = (
            replace(owner, role="query", is_answer=False) if owner.role == "answer" else replace(owner, is_answer=False)
        )
        for number, part in enumerate(piece.split(image_token)):
            if number:
                picture = next(pictures, None)
                if picture is None:
                    raise OptionError(f"the chat template writes {image_token!r} more often than there are images")
                prefix = len(segments) if prefix is None and owner.role == "query" else prefix
                segments.append(replace(owner, text="", picture=picture))
            segments.append(replace(owner, text=part))
        if i < len(texts):
            prefix = len(segments) if prefix is None and texts[i].role == "query" else prefix
            segments.append(texts[i])
    if next(pictures, None) is not None:
        raise OptionError(f"the chat template does not write {image_token!r} for each image; use plain prompts")
    kept = [s for s in segments if s.text or s.picture]
    before_query = segments[: len(segments) if prefix is None else prefix]
    return Prompt(tuple(kept), "chat", sum(1 for s in before_query if s.text or s.picture))


def _messages(
    episode: Episode,
    template: Template,
    answer: str | None,
    reserved: Sequence[str],
    texts: list[Segment],
    strip: bool,
) -> list[dict[str, Any]]:
    """The episode as chat messages; every text in them is also appended to ``texts``, in order."""

    def text_part(text: str, role: Role, index: int, is_answer: bool = False) -> dict[str, str]:
        text = text.strip() if strip else text
        texts.append(Segment(text, None, role, index, is_answer))
        return {"type": "text", "text": text}

    messages: list[dict[str, Any]] = []
    instruction = instruction_of(episode, template).strip()
    for index, example in enumerate((*episode.demonstrations, episode.query)):
        is_query = index == len(episode.demonstrations)
        role: Role = "query" if is_query else "demonstration"
        number = -1 if is_query else index
        content: list[dict[str, Any]] = []
        if index == 0 and instruction:
            content.append(text_part(instruction + "\n", "instruction", -1))
        asked = template.query_user if is_query and template.query_user is not None else template.user
        for piece in fill(asked, example, role, number, reserved):
            content.append({"type": "image"} if piece.picture is not None else text_part(piece.text, role, number))
        messages.append({"role": "user", "content": content})
        if is_query and answer is None:
            continue
        said = plain_text(example.text_answer if not is_query else str(answer), reserved)
        turn = text_part(template.assistant.replace("{answer}", said), "answer" if is_query else role, number, True)
        messages.append({"role": "assistant", "content": [turn]})
    return messages


def _literal_pieces(
    run: Callable[[list[dict[str, Any]], bool], str], messages: list[dict[str, Any]], texts: int, *, generate: bool
) -> list[str]:
    """The markup that a chat template writes before, between and behind the texts of the messages."""
    number = iter(range(texts))
    # Private-use characters do not occur in data, and templates that trim or change case leave them alone.
    marked = [
        {
            "role": m["role"],
            "content": [
                c if c["type"] == "image" else c | {"text": f"\ue000{next(number)}\ue001"} for c in m["content"]
            ],
        }
        for m in messages
    ]
    rest = run(marked, generate)
    pieces: list[str] = []
    for i in range(texts):
        piece, mark, rest = rest.partition(f"\ue000{i}\ue001")
        if not mark:
            raise OptionError("the model's chat template drops or reorders messages; use plain prompts")
        pieces.append(piece)
    return [*pieces, rest]


def _common_prefix(a: str, b: str) -> int:
    """Length of the common beginning of two strings."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
