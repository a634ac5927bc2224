"""Rows of tokens for training, from one token store or a mixture of several.

Interface::

    rows = TokenRows(stores, weights=None, length=4096, seed=0, packing="isolated", bos=None, eos=None, loss="all")
    rows[i] -> {"input_ids", "position_ids", "labels", "shift_labels"}     # LongTensors (length,)
    rows.rows_per_epoch: int          # the same for every epoch
    rows.tokens_per_epoch: int        # tokens of sentences, with BOS and EOS, without padding
    rows.describe() -> dict           # for the record of a run (JSON); rows.tokenizer: what made the tokens (TokenizerRecord)

``stores``: folders or :class:`~kshot.visual.store.TokenStore` objects, one or several; ``weights``: shares of sentences (default:
by size, so that an epoch holds every sentence once). Row ``i`` of the endless sequence of rows is a pure function of the arguments
and ``i``: process ``r`` of ``n`` takes its part of every global batch, a run is resumed by its count of rows, and the order is the
same for any number of processes. ``rows.epoch(i)`` is the epoch in which a row lies.

``packing``:

- ``isolated``: whole sentences only, several in a row where they fit; ``position_ids`` begin at 0 with each of them, which is how
  transformers keeps them from seeing each other; the end of the row is padding (id ``pad``), its positions from 0, its labels -100.
- ``stream``: as upstream: sentences one behind the other without end, cut every ``length`` tokens, positions 0 to length - 1,
  attention and loss run across the borders of sentences.

``labels`` are those of transformers (``labels[t]`` is the token at ``t`` or -100, the model shifts them); ``shift_labels[t]`` is what
position ``t`` must predict, which in a stream has one target more: the first token of the next row. Give a model both, or ``labels``
alone. ``loss="answers"`` grades only the tokens of pictures in the role ``y`` (all of a sentence's where none has it: sequences of
frames); EOS is graded with ``loss="all"`` only; the first token of an isolated sentence never.

:class:`~kshot.visual.row_loader.RowLoader` makes batches of rows for one of several processes and knows how far they were read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, TypedDict, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from kshot.errors import ContextTooLong, OptionError
from kshot.visual.mixture import MixtureOrder, Shares, shuffled
from kshot.visual.row_pattern import RowPattern
from kshot.visual.store import StoredSentence, TokenStore, check_same_tokenizer, open_stores

Packing = Literal["isolated", "stream"]
Loss = Literal["all", "answers"]
Stores = TokenStore | str | Path | Iterable[TokenStore | str | Path]

IGNORED = -100
ANSWER = "y"


class Row(TypedDict):
    """A row: (length,) each; see the module."""

    input_ids: Tensor
    position_ids: Tensor
    labels: Tensor
    shift_labels: Tensor


class Sentences:
    """The sentences of a mixture one by one: ``sentences[d]`` is the ``d``-th of the endless sequence of all epochs.

    Args:
        stores: folders or stores, one or several.
        weights, seed, shares: see :class:`~kshot.visual.mixture.MixtureOrder`.

    Raises:
        DataError: a store that cannot be read, or stores of different tokenizers.
        OptionError: weights that cannot be used.
    """

    def __init__(
        self,
        stores: Stores,
        weights: Sequence[float] | None = None,
        seed: int = 0,
        shares: Shares = "sentences",
    ):
        self.stores = open_stores(stores)
        self.tokenizer = check_same_tokenizer(self.stores)
        self.order = MixtureOrder([store.lengths for store in self.stores], weights, seed, shares)

    @property
    def per_epoch(self) -> int:
        """Sentences an epoch."""
        return self.order.sentences_per_epoch

    def __getitem__(self, number: int) -> StoredSentence:
        store, sentence = self.order.place(number)
        found: StoredSentence = self.stores[store][sentence]
        return found

    def describe(self) -> dict[str, Any]:
        """What identifies the sentences and their order; JSON."""
        return {"stores": [store.describe() for store in self.stores], "order": self.order.describe()}


class TokenRows(Dataset[Row]):
    """Rows of tokens; see the module.

    Args:
        stores: folders or stores, one or several, all of one tokenizer.
        weights: each store's share (default: by size).
        length: tokens a row.
        seed: of the order of sentences and rows.
        packing: ``isolated`` or ``stream``.
        bos, eos: ids put before and behind each sentence; ``None``: nothing. (By convention ``tokenizer.special_ids``.)
        loss: which tokens are graded: ``all``, or ``answers`` (pictures in the role ``y``).
        pad: id at the end of isolated rows, never graded. Default: ``tokenizer.special_ids["pad"]``.
        shares: what the weights are shares of: ``sentences`` or ``tokens``.

    Attributes:
        tokenizer: record of what made the tokens.
        rows_per_epoch: rows of an epoch. (A stream does not stop at the end of an epoch; there it is the number of rows that its
            tokens fill, rounded up.)
        padding: share of an epoch's positions that is padding.

    Raises:
        ContextTooLong: isolated rows are asked for, and a sentence is longer than a row.
        DataError, OptionError: see :class:`Sentences`.
    """

    def __init__(
        self,
        stores: Stores,
        weights: Sequence[float] | None = None,
        length: int = 4096,
        seed: int = 0,
        packing: Packing = "isolated",
        *,
        bos: int | None = None,
        eos: int | None = None,
        loss: Loss = "all",
        pad: int | None = None,
        shares: Shares = "sentences",
    ):
        for name, value, known in (("packing", packing, get_args(Packing)), ("loss", loss, get_args(Loss))):
            if value not in known:
                raise OptionError(f"{name}={value!r}: must be {' or '.join(known)}")
        if length < 1:
            raise OptionError(f"length={length}: a row has at least one token")
        self.sentences = Sentences(stores, weights, seed, shares)
        self.tokenizer = self.sentences.tokenizer
        self.length, self.seed, self.packing, self.loss = length, seed, packing, loss
        self.bos, self.eos = self._special("bos", bos), self._special("eos", eos)
        self.pad = self.tokenizer.special_ids["pad"] if pad is None else pad
        self._extra = (bos is not None) + (eos is not None)
        order = self.sentences.order
        self.tokens_per_epoch = order.tokens_per_epoch + self._extra * order.sentences_per_epoch
        if packing == "isolated":
            self._check_lengths()
            self._pattern: RowPattern | None = RowPattern(order.lengths, length, self._extra)
            self.rows_per_epoch = self._pattern.rows
            self.padding = 1 - self.tokens_per_epoch / (self.rows_per_epoch * length)
        else:
            self._pattern = None
            self.rows_per_epoch = -(-self.tokens_per_epoch // length)
            self.padding = 0.0
        self._kept: dict[int, NDArray[np.int64]] = {}

    def __getitem__(self, number: int) -> Row:
        if number < 0:
            raise IndexError(f"row {number}")
        return self._isolated(number) if self._pattern is not None else self._cut(number)

    def epoch(self, number: int) -> int:
        """The epoch in which a row lies (a stream's row: in which it begins)."""
        if self._pattern is not None:
            return number // self.rows_per_epoch
        return number * self.length // self.tokens_per_epoch

    def sentences_of(self, number: int) -> list[tuple[int, int]]:
        """Store and sentence of each sentence in a row, in order; a stream's row may hold only parts of the first and the last."""
        places = self._members(number) if self._pattern is not None else [p for p, *_ in self._pieces(number, 0)]
        return [self.sentences.order.place(int(place)) for place in places]

    def describe(self) -> dict[str, Any]:
        """All that the rows depend on; JSON. Rows of equal descriptions are equal."""
        return {
            **self.sentences.describe(),
            "length": self.length,
            "packing": self.packing,
            "bos": self.bos,
            "eos": self.eos,
            "pad": self.pad,
            "loss": self.loss,
            "tokenizer": asdict(self.tokenizer),
            "rows_an_epoch": self.rows_per_epoch,
            "tokens_an_epoch": self.tokens_per_epoch,
        }

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_kept": {}}

    def _special(self, name: str, value: int | None) -> int | None:
        if value is not None and value < self.tokenizer.codes:
            raise OptionError(f"{name}={value} is an ordinary code: ids from {self.tokenizer.codes} on are free")
        return value

    def _check_lengths(self) -> None:
        longest = max(self.sentences.order.lengths)
        if longest + self._extra <= self.length:
            return
        for store in self.sentences.stores:
            long = np.flatnonzero(store.lengths + self._extra > self.length)
            if len(long):
                special = f" (and {self._extra} for BOS and EOS)" if self._extra else ""
                raise ContextTooLong(
                    f"{store.folder}: {len(long)} sentences are longer than a row of {self.length} tokens, the first is "
                    f"{store[int(long[0])].id!r} with {store.lengths[long[0]]}{special}: make rows longer or sentences shorter, "
                    "or take packing='stream', which cuts them"
                )

    def _isolated(self, number: int) -> Row:
        ids = np.full(self.length, self.pad, np.int64)
        positions = np.zeros(self.length, np.int64)
        labels = np.full(self.length, IGNORED, np.int64)
        at = 0
        for place in self._members(number):
            tokens, graded = self._sentence(int(place))
            graded[0] = False  # nothing comes before it
            end = at + len(tokens)
            ids[at:end] = tokens
            positions[at:end] = np.arange(len(tokens))
            labels[at:end][graded] = tokens[graded]
            at = end
        positions[at:] = np.arange(self.length - at)
        return _row(ids, positions, labels, np.append(labels[1:], IGNORED))

    def _cut(self, number: int) -> Row:
        parts, marks = [], []
        for place, begin, end in self._pieces(number, 1):
            tokens, graded = self._sentence(place)
            parts.append(tokens[begin:end])
            marks.append(graded[begin:end])
        ids = np.concatenate(parts)
        labels = np.where(np.concatenate(marks), ids, IGNORED)
        return _row(ids[:-1], np.arange(self.length), labels[:-1], labels[1:].copy())

    def _sentence(self, place: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Tokens with BOS and EOS, and which of them are graded, of a sentence by its place in the endless sequence."""
        store, sentence = self.sentences.order.place(place)
        codes = self.sentences.stores[store].tokens(sentence)
        begin = 0 if self.bos is None else 1
        tokens = np.empty(len(codes) + self._extra, np.int64)
        tokens[begin : begin + len(codes)] = codes
        if self.bos is not None:
            tokens[0] = self.bos
        if self.eos is not None:
            tokens[-1] = self.eos
        graded = np.ones(len(tokens), bool)
        if self.loss == "answers":
            roles = self.sentences.stores[store].roles(sentence)
            if ANSWER in roles:
                answers = np.array([role == ANSWER for role in roles])
                graded[begin : begin + len(codes)] = np.repeat(answers, self.tokenizer.tokens_per_image)
            if self.bos is not None:
                graded[0] = False
            if self.eos is not None:
                graded[-1] = False
        return tokens, graded

    def _members(self, number: int) -> NDArray[np.int64]:
        """Places of a row's sentences in the endless sequence."""
        assert self._pattern is not None
        epoch, row = divmod(number, self.rows_per_epoch)
        kept = self._keep(epoch, self._filled)
        rows, slots = kept[: self.rows_per_epoch], kept[self.rows_per_epoch :]
        begin, end = self._pattern.begins[rows[row] : rows[row] + 2]
        return slots[begin:end] + epoch * self.sentences.per_epoch

    def _filled(self, epoch: int) -> NDArray[np.int64]:
        """The order of an epoch's rows, and behind it which sentence of the epoch is in which slot of the pattern."""
        assert self._pattern is not None
        longest_first = np.argsort(-self.sentences.order.epoch(epoch).length, kind="stable")
        rows = shuffled(self.rows_per_epoch, self.seed, "rows", epoch)
        return np.concatenate([rows, longest_first[self._pattern.slots]])

    def _pieces(self, number: int, further: int) -> Iterator[tuple[int, int, int]]:
        """Place, begin and end of the parts of sentences that make a row of a stream, and ``further`` tokens behind it."""
        epoch, at = divmod(number * self.length, self.tokens_per_epoch)
        missing = self.length + further
        ends = self._keep(epoch, self._ends)
        place = int(np.searchsorted(ends, at, side="right"))
        begin = at - (int(ends[place - 1]) if place else 0)
        while missing:
            size = int(ends[place]) - (int(ends[place - 1]) if place else 0)
            end = min(size, begin + missing)
            yield epoch * self.sentences.per_epoch + place, begin, end
            missing -= end - begin
            begin, place = 0, place + 1
            if place == len(ends):
                epoch, place = epoch + 1, 0
                ends = self._keep(epoch, self._ends) if missing else ends

    def _ends(self, epoch: int) -> NDArray[np.int64]:
        return np.cumsum(self.sentences.order.epoch(epoch).length + self._extra)

    def _keep(self, epoch: int, make: Any) -> NDArray[np.int64]:
        found = self._kept.get(epoch)
        if found is None:
            self._kept = {number: held for number, held in self._kept.items() if abs(number - epoch) == 1}
            found = self._kept[epoch] = make(epoch)
        return found


def _row(
    ids: NDArray[np.int64], positions: NDArray[np.int64], labels: NDArray[np.int64], following: NDArray[np.int64]
) -> Row:
    return {
        "input_ids": torch.from_numpy(ids),
        "position_ids": torch.from_numpy(positions),
        "labels": torch.from_numpy(labels),
        "shift_labels": torch.from_numpy(following),
    }
