"""Episodes as token batches: ids, where pictures go, what is graded, and where the summary loss applies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from kshot.training.tiny_episodes import TinyEpisode
from kshot.training.tiny_prompts import Wording

IGNORED = -100


@dataclass(frozen=True)
class TokenBatch:
    """Right-padded rows (causal attention never looks at the padding).

    Attributes:
        ids: (rows, length) token ids; the placeholder where a picture is.
        targets: (rows, length) id that the position must predict, :data:`IGNORED` elsewhere.
        image_at: (rows * pictures * tokens, 2) row and position of each image token, in order.
        sources, pictures: (rows * pictures,) bank and index of each picture, in the same order.
        summary_at: (n, 2) row and position of each token that must know the picture before it.
        summary_of: (n,) which picture, as an index into ``pictures``.
        kinds: (rows,) kind of each episode.
        answers: (3,) graded answers of each kind.
        task_at: (m, 2) row and position of each cue by which the hidden attribute can be known.
        task_of: (m,) index of that attribute.
        group_at: (g, 2) row and position of each token of each answer.
        group_of, group_pictures: (p,) pairs of such a token (index into ``group_at``) and a picture shown so far under its label.
        cue_at: (rows, pictures) position of the last token before each answer, which predicts its first.
        classes: (rows, pictures) number of each picture's label among those of its episode.
    """

    ids: Tensor
    targets: Tensor
    image_at: Tensor
    sources: Tensor
    pictures: Tensor
    summary_at: Tensor
    summary_of: Tensor
    kinds: Tensor
    answers: Tensor
    task_at: Tensor
    task_of: Tensor
    group_at: Tensor
    group_of: Tensor
    group_pictures: Tensor
    cue_at: Tensor
    classes: Tensor


class Encoder:
    """Turns episodes in their wordings into token batches, piece by piece (the tokenizer splits where pieces meet)."""

    def __init__(self, tokenizer: Any, image_tokens: int):
        self.tokenizer, self.image_tokens = tokenizer, image_tokens
        self.image, self.bos = tokenizer.convert_tokens_to_ids("<image>"), tokenizer.bos_token_id
        self.space = self.ids(" ")[0]
        self.ids = lru_cache(maxsize=100_000)(self.ids)  # type: ignore[method-assign]

    def ids(self, text: str) -> list[int]:
        """Token ids of a piece of text; not to be changed."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def length(self, wording: Wording) -> int:
        """Tokens of a demonstration with an average answer."""
        return self.image_tokens + 3 + sum(len(self.ids(t)) for t in (wording.before, wording.middle, wording.after))

    def batch(
        self,
        episodes: Sequence[TinyEpisode],
        wordings: Sequence[Wording],
        bos: Sequence[bool],
        *,
        query_only: bool = False,
    ) -> TokenBatch:
        """Encode episodes.

        Args:
            episodes: the episodes.
            wordings: one for each.
            bos: for each, whether it begins with ``<s>``.
            query_only: grade the last answer only, whatever the episode says (testing).
        """
        rows = [self._row(e, w, b, query_only) for e, w, b in zip(episodes, wordings, bos, strict=True)]
        length = max(len(ids) for ids, *_ in rows)
        ids = torch.full((len(rows), length), self.tokenizer.pad_token_id)
        targets = torch.full((len(rows), length), IGNORED)
        image_at: list[tuple[int, int]] = []
        summary_at: list[tuple[int, int]] = []
        summary_of: list[int] = []
        task_at: list[tuple[int, int]] = []
        group_at: list[tuple[int, int]] = []
        groups: list[tuple[int, int]] = []
        cue_at: list[list[int]] = []
        classes: list[list[int]] = []
        count = 0
        for number, (row_ids, row_targets, images, summaries, cues) in enumerate(rows):
            ids[number, : len(row_ids)] = torch.tensor(row_ids)
            targets[number, : len(row_targets)] = torch.tensor(row_targets)
            image_at += [(number, position + i) for position in images for i in range(self.image_tokens)]
            summary_at += [(number, position) for position, _ in summaries]
            summary_of += [count + picture for _, picture in summaries]
            task_at += [(number, cue) for cue in cues]
            labels = episodes[number].labels
            first = {picture: position for position, picture in reversed(summaries)}
            cue_at.append([first[picture] for picture in range(len(labels))])
            numbers = {label: i for i, label in enumerate(dict.fromkeys(labels))}
            classes.append([numbers[label] for label in labels])
            for position, picture in summaries:
                if position == first[picture]:
                    continue  # the cue does not know the label yet
                groups += [(len(group_at), count + i) for i in range(picture + 1) if labels[i] == labels[picture]]
                group_at.append((number, position))
            count += len(images)
        sources = torch.tensor([e.source for e in episodes for _ in e.labels])
        pictures = torch.cat([torch.from_numpy(e.pictures) for e in episodes])
        at = torch.tensor(image_at), torch.tensor(summary_at), torch.tensor(summary_of)
        kinds = torch.tensor([e.kind for e in episodes])
        answers = torch.tensor([sum(int(e.graded.sum()) for e in episodes if e.kind == kind) for kind in range(3)])
        task_where = torch.tensor(task_at, dtype=torch.long).reshape(-1, 2)
        task_of = torch.tensor([e.task for e in episodes])[task_where[:, 0]]
        group_of, group_pictures = torch.tensor(groups).T
        return TokenBatch(
            ids, targets, at[0], sources, pictures, at[1], at[2], kinds, answers,
            task_where, task_of, torch.tensor(group_at), group_of, group_pictures,
            torch.tensor(cue_at), torch.tensor(classes),
        )  # fmt: skip

    def _row(
        self, episode: TinyEpisode, wording: Wording, bos: bool, query_only: bool
    ) -> tuple[list[int], list[int], list[int], list[tuple[int, int]], list[int]]:
        ids = [self.bos] if bos else []
        ids += self.ids(wording.start)
        graded: dict[int, int] = {}  # position -> id to predict there
        images: list[int] = []
        summaries: list[tuple[int, int]] = []
        cues: list[int] = []
        last = len(episode.labels) - 1
        for number, label in enumerate(episode.labels):
            before, middle = wording.before, wording.middle
            if number == last:
                before, middle = wording.query_before, wording.query_middle
            ids += self.ids(before.removeprefix(wording.opened) if number == 0 else before)
            images.append(len(ids))
            ids += [self.image] * self.image_tokens
            ids += self.ids(middle)
            cue = len(ids) - 1
            answer, after = self.ids(label), self.ids(wording.after)
            grade = number == last if query_only else bool(episode.graded[number])
            if grade:
                graded |= {cue + i: token for i, token in enumerate([*answer, after[0]])}
                if ids[-1] == self.space and not query_only:
                    graded[cue - 1] = self.space  # prompts may end before the space, too
            if episode.task >= 0 and number > 0 and episode.graded[number]:
                cues.append(cue)
            summaries += [(cue + i, number) for i in range(len(answer) + 1)]
            ids += answer
            ids += after if number < last else []
        targets = [graded.get(i, IGNORED) for i in range(len(ids))]
        return ids, targets, images, summaries, cues
