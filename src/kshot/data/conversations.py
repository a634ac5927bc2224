"""Conversations about images in the form of LLaVA (arXiv 2304.08485), for training mixtures.

A JSON list (or JSON Lines) of ``{"id", "image", "conversations": [{"from": "human", "value"}, {"from": "gpt", "value"}, ...]}``.

An Example is one question and one answer, so a conversation becomes one Example for each answer: its question is the human's text,
before it the earlier turns as text (:func:`~kshot.data.splits.after_turns`), its image the conversation's. ``turns="first"`` takes
the first answer only, ``turns="last"`` the last one with all turns before it. Where ``<image>`` stands in a text is not kept: as
in LLaVA's own reader the image goes first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

from kshot.data.choice import Benchmark, Support
from kshot.data.readers import PathLike, get
from kshot.data.sources import ImageRoot, LazyExamples, as_template
from kshot.data.splits import (
    CHAT,
    CHAT_STOP,
    Record,
    after_turns,
    files_of,
    join,
    no_collector,
    read_records,
    record_id,
)
from kshot.data.task import tasks
from kshot.episode import Example
from kshot.errors import DataError, one_of
from kshot.prompt import Template

Turns: TypeAlias = Literal["each", "first", "last"]
ROLES = {"human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt", "model": "gpt", "system": "system"}
IMAGE = "<image>"


@tasks.register("conversations")
class Conversations(Benchmark):
    """Conversations about images.

    Args:
        files: the file, or several.
        images: folder (or zip) that image names are relative to. Default: the folder of the first file.
        turns: ``"each"``: an Example for every answer; ``"first"``, ``"last"``: for that one only.
        image_prefix: written before each image name; ``"COCO_train2014_"`` for lists that name COCO images by their numbers.
        text_only: keep conversations without image; else they are left out and counted.
        metric: ``"cider"`` (default) or ``"exact_match"``: conversations are for training, no metric judges them well.
        template: fields that replace those of the template.
        max_new_tokens: room for an answer.
        support: ``None``: the conversations about other images; or a JSON Lines file (:mod:`kshot.data.jsonl`), or a task.
        support_images: image root of that file.
        check_images: look for all image files at once and list those that are missing.

    Ids are those of the file with the number of the answer, ``000000033471#2``; LLaVA's published lists use an id several times,
    and the second conversation of an id is ``000000033471~2#1``.

    Raises:
        DataError: see :mod:`kshot.data.readers`; also a turn out of order, an empty text, or an unknown speaker.
    """

    name = "conversations"
    stop = CHAT_STOP[1:]  # answers may have several lines
    source = "https://huggingface.co/datasets/liuhaotian/LLaVA-Instruct-150K"

    def __init__(
        self,
        files: PathLike | Sequence[PathLike],
        images: PathLike | None = None,
        *,
        turns: Turns = "each",
        image_prefix: str = "",
        text_only: bool = False,
        metric: str = "cider",
        template: Template | Mapping[str, Any] | None = None,
        max_new_tokens: int = 256,
        support: Support = None,
        support_images: PathLike | None = None,
        check_images: bool = False,
    ):
        self._turns: Turns = turns
        one_of("turns", turns, ("each", "first", "last"))
        self.metric = one_of("metric", metric, ("cider", "exact_match"))
        self.template, self.max_new_tokens = as_template(template, CHAT), max_new_tokens
        self._lists, self._images = files_of(files), images
        self._prefix, self._text_only = image_prefix, text_only
        super().__init__(
            support, support_images, check_images, turns=turns, image_prefix=image_prefix or None, text_only=text_only
        )

    def _locate(self) -> dict[str, Path]:
        return super()._locate() | {f"queries {n}" if n else "queries": path for n, path in enumerate(self._lists)}

    def _read_queries(self) -> Sequence[Example]:
        root = ImageRoot(self._images if self._images is not None else self._lists[0].parent)
        used: Counter[str] = Counter()
        parts, shown = [], []
        with no_collector():
            for file in self._lists:
                ids, examples, images = self._read_list(file, root, used)
                parts.append((ids, examples))
                shown += images
        examples = join(parts, self._lists, "id")
        self._leave_one_out(examples, ["conversation"] * len(shown), shown)
        return examples

    def _read_list(self, file: Path, root: ImageRoot, used: Counter[str]) -> tuple[list[str], LazyExamples, list[str]]:
        places: list[tuple[int, int]] = []  # conversation, answer
        ids: list[str] = []
        shown: list[str] = []
        conversations: list[tuple[tuple[str, ...], list[tuple[str, str]], str]] = []
        for number, record in read_records(file):
            names = _images(record, file, number)
            if not names and not self._text_only:
                self.skipped["conversations without image"] = self.skipped.get("conversations without image", 0) + 1
                continue
            system, turns = _turns((number, record), file)
            key = record_id(record, ("id",), file, number)
            used[key] += 1
            key += f"~{used[key]}" if used[key] > 1 else ""
            chosen = {"each": range(len(turns)), "first": range(1), "last": range(len(turns) - 1, len(turns))}
            for answer in chosen[self._turns]:
                places.append((len(conversations), answer))
                ids.append(f"{key}#{answer + 1}")
                shown.append(" ".join(names) or key)
            conversations.append((names, turns, system))

        def make(number: int) -> Example:
            conversation, place = places[number]
            names, turns, system = conversations[conversation]
            question, answer = turns[place]
            asked = after_turns(turns[:place], question)
            return Example(
                tuple(root.picture(self._prefix + name) for name in names),
                f"{system}\n{asked}" if system else asked,
                answer,
                id=ids[number],
                metadata={"category": "conversation", "image_id": shown[number], "turn": place + 1},
            )

        return ids, LazyExamples(make, range(len(places))), shown


def _images(record: Mapping[str, Any], file: Path, number: int) -> tuple[str, ...]:
    """Names of the images: ``image``, one or a list of them; none if the field is absent or null."""
    if record.get("image") is None:
        return ()
    given = get(record, "image", (str, list), file, number)
    names = [given] if isinstance(given, str) else given
    if not all(isinstance(name, str) and name for name in names):
        raise DataError("not a file name", file=file, line=number, field="image")
    return tuple(names)


def _turns(row: Record, file: Path) -> tuple[str, list[tuple[str, str]]]:
    """What the system says, if anything, and the pairs of question and answer."""
    number, record = row
    said: list[tuple[str, str]] = []
    for turn in get(record, "conversations", list, file, number):
        speaker = get(turn, "from", str, file, number)
        if speaker not in ROLES:
            known = ", ".join(ROLES)
            raise DataError(f"unknown speaker {speaker!r} (known: {known})", file=file, line=number, field="from")
        text = get(turn, "value", str, file, number).replace(IMAGE, "").strip()
        said.append((ROLES[speaker], text))
    system = said.pop(0)[1] if said and said[0][0] == "system" else ""
    expected = ("human", "gpt") * (len(said) // 2)
    if not said or tuple(speaker for speaker, _ in said) != expected:
        raise DataError(
            f"turns must be human, gpt, human, gpt ...; they are: {', '.join(speaker for speaker, _ in said) or 'none'}",
            file=file,
            line=number,
            field="conversations",
        )
    if any(not text for speaker, text in said if speaker == "gpt"):
        raise DataError("an answer is empty", file=file, line=number, field="value")
    return system, [(said[n][1], said[n + 1][1]) for n in range(0, len(said), 2)]
