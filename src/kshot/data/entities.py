"""Flickr30k Entities: captions in which the boxes of each thing stand behind the words for it.

Forms of the files: :mod:`kshot.data.entities_files`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kshot.data.box_task import BoxTask, Pictures
from kshot.data.entities_files import Caption, Captioned, read_caption_lines, read_release
from kshot.data.readers import PathLike
from kshot.data.splits import CHAT, CHAT_STOP, Style
from kshot.data.task import tasks
from kshot.episode import Example
from kshot.errors import DataError
from kshot.prompt import Template

_NAMES = {"val": "eval"}  # what the published JSON Lines call it


@tasks.register("flickr30k_entities")
class Flickr30kEntities(BoxTask[Captioned]):
    """Flickr30k Entities: ``A little girl[0.1,0.2,0.5,0.9] climbs ...``; all captions of a picture are references of one query.

    Args:
        root: folder of ``Sentences/``, ``Annotations/`` and the lists ``<split>.txt``, or of ``CWB_flickr30k_<split>.jsonl``;
            and of the images.
        split: ``test``, ``val`` or ``train``.
        questions: JSON Lines of the queries, or a list of images with ``Sentences/`` and ``Annotations/`` beside it.
        boxes: write boxes into the captions; without, this is captioning with the same pictures and references.
        style: ``"plain"`` or ``"upstream"`` (a conversation).
        images, support_questions, support_images, square, template, check_images: see :class:`BoxTask`.
    """

    name = "flickr30k_entities"
    metric = "grounded_caption"
    splits = ("test", "val", "train")
    image_folders = ("flickr30k-images", "flickr30k_images", "images")
    source = "https://github.com/BryanPlummer/flickr30k_entities"
    max_new_tokens = 200  # a box has 25 characters, and a digit may be a token
    plain = Template(
        demonstration="<image>Caption:{answer}",
        user="<image>Write a caption for this image.",
        short_instruction="Describe the image in one short sentence, with the box [x0,y0,x1,y1] of each thing behind its name.",
    )
    upstream = Template(
        demonstration="USER: <image> Describe the image, with the box of each thing behind its name. ASSISTANT: {answer}",
        instruction=CHAT.instruction,
        separator=CHAT.separator,
        user="<image>Describe the image, with the box of each thing behind its name.",
    )

    def __init__(
        self,
        root: PathLike | None = None,
        *,
        split: str | None = None,
        questions: PathLike | Sequence[PathLike] | None = None,
        images: PathLike | None = None,
        support_questions: PathLike | Sequence[PathLike] | None = None,
        support_images: PathLike | None = None,
        boxes: bool = True,
        square: bool = True,
        style: Style = "plain",
        template: Template | Mapping[str, Any] | None = None,
        check_images: bool = False,
    ):
        self._boxes = boxes
        self.stop = CHAT_STOP if style == "upstream" else ("\n", "Caption:")
        super().__init__(
            root,
            square,
            style,
            template,
            boxes=None if boxes else False,
            split=split,
            questions=questions,
            images=images,
            support_questions=support_questions,
            support_images=support_images,
            check_images=check_images,
        )

    def names(self, split: str) -> Sequence[str]:
        return [f"{split}.txt", f"CWB_flickr30k_{_NAMES.get(split, split)}.jsonl"]

    def read_items(self, file: Path, role: str) -> list[Captioned]:
        if file.suffix != ".txt":
            return read_caption_lines(file)
        for folder in ("Sentences", "Annotations"):
            if not (file.parent / folder).is_dir():
                raise DataError(
                    f"there is no folder {folder} beside this list", file=file, remedy="unpack annotations.zip"
                )
        return read_release(file.parent, file)

    def example(self, item: Captioned, pictures: Pictures) -> Example:
        captions = tuple(self._written(caption, item, pictures) for caption in item.captions)
        return Example(
            (pictures.picture(item.image),),
            "",
            captions[0],
            captions,
            id=item.id,
            metadata={"image_id": item.image, "size": pictures.size(item)},
        )

    def _written(self, caption: Caption, item: Captioned, pictures: Pictures) -> str:
        if not self._boxes:
            return caption.text
        written = (
            text + (pictures.text(item, *boxes, field="boxes") if boxes else "") for text, boxes in caption.pieces
        )
        return "".join(written)
