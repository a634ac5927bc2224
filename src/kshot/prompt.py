"""From an episode to a prompt, and from a prompt to tokens that know what they are.

A :class:`Template` says how one example is written; :func:`render_plain` and :func:`kshot.chat.render_chat` turn an
:class:`~kshot.episode.Episode` into a :class:`Prompt`: a list of :class:`Segment` (text or image) each of which knows whether it
belongs to the instruction, to demonstration *i*, to the query or to its answer. :func:`tokenize` carries that knowledge over to
token ids, so that an answer mask is known by construction and never found by searching for strings.

No model is needed here; a tokenizer is duck-typed (any fast Hugging Face tokenizer).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from kshot.episode import Episode, Example
from kshot.errors import DataError, OptionError
from kshot.picture import Picture

Role = Literal["instruction", "demonstration", "query", "answer"]
"""What a piece of the prompt is. ``answer`` is the query's answer; a demonstration's answer is a demonstration piece with
``is_answer`` set."""

IMAGE = "<image>"
"""How a template writes the place of an example's images."""


@dataclass(frozen=True)
class Template:
    """How a task writes its examples.

    Plain (interleaved) prompts are ``instruction``, the demonstrations and the query, joined by ``separator``; the query is
    the demonstration cut off where the answer begins. In chat prompts a demonstration is a user turn (``user``) and an
    assistant turn (``assistant``).

    The fields ``{question}``, ``{answer}``, ``{choices}`` and ``<image>`` (all images of the example) may stand in ``demonstration``,
    ``query``, ``user`` and ``query_user``.

    Args:
        demonstration: one example with its answer, e.g. ``"<image>Question:{question} Short answer:{answer}."``.
        query: the query up to the answer, where it differs from the demonstration (default: cut at ``{answer}``).
        instruction: default text before everything.
        separator: between demonstrations.
        user: the user turn in chat prompts.
        query_user: the query's user turn, where it differs from the demonstrations'.
        assistant: the assistant turn; must contain ``{answer}``.
        short_instruction: what ``format_only`` tells a model instead of showing demonstrations.
    """

    demonstration: str
    query: str | None = None
    instruction: str = ""
    separator: str = "\n\n"
    user: str = IMAGE + "{question}"
    assistant: str = "{answer}"
    short_instruction: str = ""
    query_user: str | None = None

    def __post_init__(self) -> None:
        for name, text in (("demonstration", self.demonstration), ("assistant", self.assistant)):
            if text.count("{answer}") != 1:
                raise OptionError(f"template {name} must contain {{answer}} exactly once: {text!r}")

    @property
    def query_text(self) -> str:
        """The query's form: everything before the answer."""
        return self.query if self.query is not None else self.demonstration.split("{answer}")[0]


@dataclass(frozen=True)
class Segment:
    """A piece of a prompt: some text, or one image.

    Attributes:
        text: the text; for an image, ``""``.
        picture: the image, or ``None`` for text.
        role: what it belongs to.
        index: number of the demonstration it belongs to, from 0; -1 otherwise.
        is_answer: whether it is (part of) an answer.
    """

    text: str
    picture: Picture | None = None
    role: Role = "instruction"
    index: int = -1
    is_answer: bool = False


@dataclass(frozen=True)
class Prompt:
    """A rendered episode.

    Attributes:
        segments: the pieces in order.
        style: ``"plain"`` or ``"chat"``.
        prefix_segments: how many leading segments belong to instruction and demonstrations, i.e. do not depend on the query.
    """

    segments: tuple[Segment, ...]
    style: Literal["plain", "chat"]
    prefix_segments: int

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """The images in order."""
        return tuple(s.picture for s in self.segments if s.picture is not None)

    def text(self, image: str = IMAGE) -> str:
        """The prompt as one string, with ``image`` in the place of each image."""
        return "".join(image if s.picture is not None else s.text for s in self.segments)


def render_plain(
    episode: Episode, template: Template, *, answer: str | Picture | None = None, reserved: Sequence[str] = ()
) -> Prompt:
    """Interleaved text and images, as the Idefics, LIVE and MimIC papers write them.

    Answers that are pictures stand as images in their places.

    Args:
        episode: the episode; its own instruction, if any, replaces the template's.
        template: how an example is written.
        answer: the query's answer, to be put at the end (training and likelihood scoring). ``None``: the prompt ends where the
            model has to continue.
        reserved: strings that mean something to the model's tokenizer (``<image>``, ``</s>`` ...); where data contain them they are
            broken up, so that a question cannot smuggle in an image.

    Raises:
        DataError: a demonstration has no answer.
    """
    before, after = template.demonstration.split("{answer}")
    segments = [Segment(instruction_of(episode, template))]
    for index, example in enumerate(episode.demonstrations):
        segments += fill(before, example, "demonstration", index, reserved)
        shown = example.answer if isinstance(example.answer, Picture) else example.text_answer
        segments.append(_answer(shown, "demonstration", index, reserved))
        segments += fill(after + template.separator, example, "demonstration", index, reserved)
    segments = [s for s in segments if s.text or s.picture]
    prefix = len(segments)
    segments += fill(template.query_text, episode.query, "query", -1, reserved)
    if answer is not None:
        segments.append(_answer(answer, "answer", -1, reserved))
        segments += fill(after, episode.query, "answer", -1, reserved, is_answer=True)
    return Prompt(tuple(s for s in segments if s.text or s.picture), "plain", prefix)


@dataclass(frozen=True)
class Span:
    """A run of tokens ``[start, end)`` with one meaning; see :class:`Segment` for the fields."""

    start: int
    end: int
    role: Role
    index: int = -1
    is_answer: bool = False


@dataclass(frozen=True)
class TokenizedPrompt:
    """Token ids of a prompt, and what each token is.

    Attributes:
        ids: token ids, image placeholders expanded as the model expects them.
        spans: what each token belongs to: contiguous, in order, covering all tokens.
        prefix: number of leading tokens that belong to instruction and demonstrations.
    """

    ids: tuple[int, ...]
    spans: tuple[Span, ...]
    prefix: int

    def __len__(self) -> int:
        return len(self.ids)

    def span(self, role: Role, index: int = -1, *, is_answer: bool | None = None) -> tuple[int, int] | None:
        """First and last+1 token of a role (of demonstration ``index``), or ``None`` if there is none."""
        found = [s for s in self.spans if s.role == role and s.index == index and is_answer in (None, s.is_answer)]
        return (found[0].start, found[-1].end) if found else None

    def answer_mask(self, *, demonstrations: bool = False) -> list[bool]:
        """True at the tokens of the query's answer (and, if asked, of the demonstrations' answers)."""
        mask = [False] * len(self.ids)
        for s in self.spans:
            if s.is_answer and (s.role == "answer" or demonstrations):
                mask[s.start : s.end] = [True] * (s.end - s.start)
        return mask

    def labels(self, *, demonstrations: bool = False) -> list[int]:
        """The ids where :meth:`answer_mask` is true, -100 elsewhere: ``labels`` of a causal language model."""
        mask = self.answer_mask(demonstrations=demonstrations)
        return [token if keep else -100 for token, keep in zip(self.ids, mask, strict=True)]


def tokenize(
    prompt: Prompt,
    tokenizer: Any,
    expansions: Sequence[str],
    *,
    add_special_tokens: bool = True,
) -> TokenizedPrompt:
    """Token ids of a prompt as one string, and the span of each piece.

    The whole text is tokenized at once (pieces tokenized alone would give other tokens at their edges); each token is then
    assigned to the piece in which its first character other than white space lies, through the tokenizer's offsets.

    Args:
        prompt: the prompt.
        tokenizer: a fast Hugging Face tokenizer (``return_offsets_mapping``).
        expansions: for each image, the text that stands for it (placeholder tokens repeated as often as it has features).
        add_special_tokens: whether the tokenizer adds its own (``<s>``); off for chat prompts that already begin with it.

    Raises:
        DataError: the tokenizer gives no offsets.
    """
    images = iter(expansions)
    pieces = [next(images) if s.picture is not None else s.text for s in prompt.segments]
    if not getattr(tokenizer, "is_fast", False):
        raise DataError("the model's tokenizer gives no character offsets (it is no fast tokenizer)")
    text = "".join(pieces)
    out = tokenizer(text, add_special_tokens=add_special_tokens, return_offsets_mapping=True)
    ids, offsets = list(out["input_ids"]), list(out["offset_mapping"])
    ends: list[int] = []
    for piece in pieces:
        ends.append((ends[-1] if ends else 0) + len(piece))
    owners: list[int] = []
    current = 0
    for start, end in offsets:
        # Tokens without characters (added <s>) stay with the piece before them. A token that begins with white space and
        # reaches into the next piece (" red" across "Answer: " | "red") is that piece's: an answer's own first token is not lost.
        if end > start:
            blank = len(text[start:end]) - len(text[start:end].lstrip())
            start += blank if blank < end - start else 0
            while current < len(ends) - 1 and start >= ends[current]:
                current += 1
        owners.append(current)
    spans: list[Span] = []
    prefix = 0
    for position, owner in enumerate(owners):
        s = prompt.segments[owner]
        if owner < prompt.prefix_segments:
            prefix = position + 1
        last = spans[-1] if spans else None
        if last and (last.role, last.index, last.is_answer) == (s.role, s.index, s.is_answer):
            spans[-1] = Span(last.start, position + 1, s.role, s.index, s.is_answer)
        else:
            spans.append(Span(position, position + 1, s.role, s.index, s.is_answer))
    return TokenizedPrompt(tuple(ids), tuple(spans), prefix)


def instruction_of(episode: Episode, template: Template) -> str:
    """What is written before everything: the episode's own instruction, or else the template's."""
    return template.instruction if episode.instruction is None else episode.instruction


def fill(
    text: str, example: Example, role: Role, index: int, reserved: Sequence[str], is_answer: bool = False
) -> list[Segment]:
    """Segments of a template text for one example: fields filled in, images in their places."""
    fields = {
        "{question}": plain_text(example.question, reserved),
        "{choices}": plain_text(", ".join(example.choices), reserved),
    }
    segments: list[Segment] = []
    for number, piece in enumerate(text.split(IMAGE)):
        if number:
            segments += [Segment("", picture, role, index) for picture in example.images]
        filled = re.sub(r"\{question\}|\{choices\}", lambda m: fields[m.group()], piece)
        if filled:
            segments.append(Segment(filled, None, role, index, is_answer))
    return segments


def _answer(answer: str | Picture, role: Role, index: int, reserved: Sequence[str]) -> Segment:
    if isinstance(answer, Picture):
        return Segment("", answer, role, index, True)
    return Segment(plain_text(answer, reserved), None, role, index, True)


def plain_text(text: str, reserved: Sequence[str]) -> str:
    """Text of a data set without power over the tokenizer: reserved strings in it are broken up by a space."""
    for token in reserved:
        if len(token) > 1 and token in text:
            text = text.replace(token, f"{token[0]} {token[1:]}")
    return text
