"""Prompts with the same demonstrations are rendered and tokenized from where they differ.

Reading fixed demonstrations once (:mod:`kshot.models.prefix`) is worth little if each prompt is still written and tokenized from its
beginning: with a small model that alone takes longer than the query. :class:`Beginnings` keeps the tokens of the demonstrations and
encodes only what follows them.

That is exact where the query begins with a special token (an image, a turn of a chat): tokenizers split texts there first, so the
tokens on both sides do not depend on each other. Whether a model's chat template and processor, too, write a query alike
after one and after many demonstrations is tried for each set of demonstrations; if not, whole prompts are encoded as ever.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace

from kshot.episode import Episode, Example
from kshot.models.encoding import EncodedPrompt, Encoder, Known
from kshot.prompt import Prompt, TokenizedPrompt

KEPT = 64
"""Sets of demonstrations that are remembered."""

Render = Callable[[Episode], Prompt]


@dataclass(frozen=True)
class Beginning:
    """What all prompts with the same demonstrations begin with.

    Attributes:
        encoded: the tokens and pictures before the anchor.
        lead: the text of the query's part before the anchor, mostly none; already in ``encoded``.
        anchor: the special token at which queries can be told from their beginning.
        context: how many demonstrations a query must follow to be written as it is behind all of them (a chat template may
            treat the first turn in a way of its own).
    """

    encoded: EncodedPrompt
    lead: str
    anchor: str
    context: int


class Beginnings:
    """Encodes prompts, each set of demonstrations once.

    Args:
        encoder: the encoder of a model's prompts.
        known: see :meth:`kshot.models.encoding.Encoder.encode`.
    """

    def __init__(self, encoder: Encoder, known: Known | None = None):
        self.encoder, self.known = encoder, known
        # Demonstrations are told apart by identity, which is cheap, and kept, so that their identities stay theirs. The value is None
        # at first sight (most sets are never seen again), then the beginning, or False if whole prompts must be encoded.
        self._seen: OrderedDict[Hashable, tuple[tuple[Example, ...], Beginning | bool | None]] = OrderedDict()
        added = self.encoder.tokenizer.added_tokens_decoder.values()
        self._anchors = [
            mark for mark in encoder.reserved if any(t.content == mark and not t.normalized for t in added)
        ]

    def encode(self, episode: Episode, render: Render, form: Hashable) -> EncodedPrompt:
        """The encoded prompt of an episode.

        Args:
            episode: the episode.
            render: makes a prompt of an episode.
            form: all else that the prompt depends on, the query aside (template, style ...).
        """
        shown = episode.demonstrations
        if len(shown) < 2:
            return self._whole(episode, render)
        # Queries with other numbers of images are kept apart: a chat template may number the images.
        key = (tuple(map(id, shown)), episode.instruction, len(episode.query.images), form)
        if key not in self._seen:
            self._remember(key, shown, None)
            return self._whole(episode, render)
        beginning = self._seen[key][1]
        self._seen.move_to_end(key)
        if beginning is False:
            return self._whole(episode, render)
        if isinstance(beginning, Beginning):
            return self._follow(beginning, episode, render) or self._whole(episode, render)
        whole = self._whole(episode, render)
        self._remember(key, shown, self._learn(whole, episode, render) or False)
        return whole

    def _remember(self, key: Hashable, shown: tuple[Example, ...], beginning: Beginning | bool | None) -> None:
        self._seen[key] = (shown, beginning)
        if len(self._seen) > KEPT:
            self._seen.popitem(last=False)

    def _whole(self, episode: Episode, render: Render) -> EncodedPrompt:
        return self.encoder.encode(render(episode), known=self.known)

    def _learn(self, whole: EncodedPrompt, episode: Episode, render: Render) -> Beginning | None:
        """The beginning of a prompt, if what follows can be encoded apart from it."""
        for context in (0, 1):
            beginning = self._beginning(whole, self._tail(context, episode, render), context)
            if beginning is not None and self._follow(beginning, episode, render) == whole:
                return beginning
        return None

    def _beginning(self, whole: EncodedPrompt, tail: Prompt, context: int) -> Beginning | None:
        """The prompt up to the first special token of its tail; ``None`` if there is none."""
        opening = self.encoder.opening(tail, known=self.known)
        found = min(((place, mark) for mark in self._anchors if (place := opening.find(mark)) >= 0), default=None)
        if found is None:
            return None
        place, anchor = found
        start = self.encoder.tokenizer.convert_tokens_to_ids(anchor)
        end = next((i for i in range(whole.tokens.prefix, len(whole)) if whole.tokens.ids[i] == start), None)
        if end is None:
            return None
        spans = tuple(replace(s, end=min(s.end, end)) for s in whole.tokens.spans if s.start < end)
        head = TokenizedPrompt(whole.tokens.ids[:end], spans, whole.tokens.prefix)
        encoded = EncodedPrompt(head, whole.pictures[: whole.prefix_pictures], whole.prefix_pictures)
        return Beginning(encoded, opening[:place], anchor, context)

    def _tail(self, context: int, episode: Episode, render: Render) -> Prompt:
        """The query's part of the prompt, rendered behind the last ``context`` demonstrations alone."""
        shown = episode.demonstrations[len(episode.demonstrations) - context :]
        short = render(replace(episode, demonstrations=shown))
        return Prompt(short.segments[short.prefix_segments :], short.style, 0)

    def _follow(self, beginning: Beginning, episode: Episode, render: Render) -> EncodedPrompt | None:
        """The prompt of another query after the same demonstrations; ``None`` if it does not reach the anchor alike."""
        prompt = self._tail(beginning.context, episode, render)
        opening = self.encoder.opening(prompt, known=self.known)
        if not opening.startswith(beginning.lead + beginning.anchor):
            return None
        tail = self.encoder.encode(prompt, known=self.known, after=beginning.lead)
        head, start = beginning.encoded, len(beginning.encoded)
        spans = list(head.tokens.spans)
        for span in tail.tokens.spans:
            last = spans[-1]
            if (last.role, last.index, last.is_answer) == (span.role, span.index, span.is_answer):
                spans[-1] = replace(last, end=span.end + start)
            else:
                spans.append(replace(span, start=span.start + start, end=span.end + start))
        tokens = TokenizedPrompt(head.tokens.ids + tail.tokens.ids, tuple(spans), head.tokens.prefix)
        return EncodedPrompt(tokens, head.pictures + tail.pictures, head.prefix_pictures)
