"""Rows of tokens for training, from one token store or a mixture of several.

Interface::

    rows = TokenRows(stores, weights=None, length=4096, seed=0, packing="isolated", bos=None, eos=None, loss="all")
    rows[i] -> {"input_ids", "position_ids", "labels", "shift_labels"}     # LongTensors (length,)
    rows.rows_per_epoch: int          # the same for every epoch
    rows.tokens_per_epoch: int        # tokens of sentences, with BOS and EOS, without padding
    rows.describe() -> dict           # for the record of a run (JSON); rows.tokenizer: what made the tokens (TokenizerRecord)

``stores``: folders or :class:`~kshot.visual.store.TokenStore` objects, one or several; ``weights``: shares of sentences (default: by
size, so that an epoch holds every sentence once). Row ``i`` of the endless sequence of rows is a pure function of the arguments and
``i``: process ``r`` of ``n`` takes its part of every global batch, a run is resumed by its count of rows, and the order is the same for
any number of processes. ``rows.epoch(i)`` is ``i // rows_per_epoch``.

``packing``:

- ``isolated``: whole sentences only, several in a row where they fit; ``position_ids`` begin at 0 with each of them, which is how
  transformers keeps them from seeing each other; the end of the row is padding (id ``pad``), also with positions from 0 and label -100.
- ``stream``: as upstream: sentences one behind the other without end, cut every ``length`` tokens, positions 0 to length - 1,
  attention and loss run across the borders of sentences.

``labels`` are those of transformers (``labels[t]`` is the token at ``t`` or -100, the model shifts them); ``shift_labels[t]`` is what
position ``t`` must predict, which in a stream has one target more: the first token of the next row. Give a model both, or ``labels``
alone. ``loss="answers"`` grades only the tokens of pictures in the role ``y`` (all of a sentence's where none has it: sequences of
frames); EOS is graded with ``loss="all"`` only; the first token of an isolated sentence never.
"""
