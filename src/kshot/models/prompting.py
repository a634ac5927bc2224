"""How a vision-language model is shown an episode: as plain text and images, or as turns of its chat template."""

from __future__ import annotations

from PIL import Image

from kshot.chat import render_chat
from kshot.episode import Episode, Example
from kshot.errors import OptionError
from kshot.models.base import PromptStyle
from kshot.models.encoding import Encoder
from kshot.picture import DrawnPicture
from kshot.prompt import IMAGE, Prompt, Template, render_plain

DEFAULT_TEMPLATE = Template("<image>Question: {question} Answer:{answer}\n", separator="")
"""How examples are written if no template is given: one line an example, the answer at its end."""


class PromptWriter:
    """Writes episodes as prompts of one model.

    Args:
        encoder: of the model; it knows how its processor represents images.
        name: the model's, for messages.

    Attributes:
        no_chat: why the processor's chat template cannot be used; empty if it can.
    """

    def __init__(self, encoder: Encoder, name: str):
        self.encoder, self.name = encoder, name
        self.no_chat = self._why_no_chat()

    def prompt(self, episode: Episode, template: Template | None, style: PromptStyle, answer: str | None) -> Prompt:
        """An episode as the model is shown it; see :meth:`kshot.models.vlm.VLM.prompt`.

        Raises:
            OptionError: no such style, or chat was asked for and the model has no usable chat template.
            DataError: a demonstration has no text answer.
        """
        template = template or DEFAULT_TEMPLATE
        if style not in ("auto", "plain", "chat"):
            raise OptionError(f"unknown prompt style {style!r}: use 'auto', 'plain' or 'chat'")
        if style == "plain" or (style == "auto" and self.no_chat):
            plain = render_plain(episode, template, answer=answer, reserved=self.encoder.reserved)
            return self.encoder.dialect.enclose(plain)
        if self.no_chat:
            raise OptionError(f"{self.name}: no chat prompts: {self.no_chat}; use style 'plain'")
        return self._chat(episode, template, answer)

    def _chat(self, episode: Episode, template: Template, answer: str | None) -> Prompt:
        return render_chat(
            episode,
            template,
            self.encoder.processor.apply_chat_template,
            self.encoder.image_token,
            answer=answer,
            reserved=self.encoder.reserved,
        )

    def _why_no_chat(self) -> str:
        if not getattr(self.encoder.processor, "chat_template", None):
            return "the processor has no chat template"
        probe = Example((DrawnPicture(lambda: Image.new("RGB", (8, 8)), "probe"),), "what", "this")
        try:
            self._chat(Episode((probe,), probe), Template(IMAGE + "{question}{answer}"), None)
        except Exception as error:  # templates are programs of other people: any exception may come out of them
            return str(error) or type(error).__name__
        return ""
