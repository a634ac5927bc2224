"""Caption metrics as the COCO caption evaluation computes them: CIDEr (the value), BLEU-4 and ROUGE-L.

Scores come from the package pycocoevalcap (optional extra ``captions``). Captions are tokenized first, which changes the scores: see
:mod:`kshot.metrics.ptb` for the two tokenizers and when each is used; the result's ``note`` names the one that was.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from kshot.episode import Example
from kshot.errors import DataError, MissingExtra
from kshot.metrics.base import MetricResult, metrics
from kshot.metrics.common import check, text_references
from kshot.metrics.ptb import tokenize

TOKENIZER_VARIABLE = "KSHOT_CAPTION_TOKENIZER"
"""Environment variable with the tokenizer of the metric ``cider``: ``auto`` (default), ``java`` or ``python``."""


def cider(predictions: Sequence[str], references: Sequence[Sequence[str]], *, tokenizer: str = "auto") -> float:
    """CIDEr-D of a set of captions, scaled as pycocoevalcap's ``Cider.compute_score`` gives it (0..10; papers print it x 100).

    Document frequencies come from these references, so the figure belongs to the whole set: it is 0 for a single image, and figures
    of subsets cannot be averaged.

    Args:
        predictions: one caption per image.
        references: the reference captions of each image (a string is one reference).
        tokenizer: ``"auto"``, ``"java"`` or ``"python"`` (see :func:`kshot.metrics.ptb.tokenize`).

    Raises:
        DataError: lengths differ, there is nothing to score, or an image has no reference.
        MissingExtra: pycocoevalcap is not installed.
        OptionError: unknown tokenizer, or no working Java where Java was asked for.
    """
    queries = [
        Example(id=f"#{number}", references=(texts,) if isinstance(texts, str) else tuple(texts))
        for number, texts in enumerate(references)
    ]
    check("cider", predictions, queries)
    scored = _Captions(predictions, [text_references("cider", query) for query in queries], tokenizer)
    return scored.cider()[0]


@metrics.register("cider")
def cider_metric(predictions: Sequence[str], queries: Sequence[Example]) -> MetricResult:
    """CIDEr-D (see :func:`cider`) with its score per image in ``items``; ``bleu_4`` and ``rouge_l`` (both 0..1) in the details.

    The tokenizer can be decided by the environment variable :data:`TOKENIZER_VARIABLE`.
    """
    check("cider", predictions, queries)
    references = [text_references("cider", query) for query in queries]
    scored = _Captions(predictions, references, os.environ.get(TOKENIZER_VARIABLE, "auto"))
    value, items = scored.cider()
    return MetricResult("CIDEr", value, tuple(items), tuple(range(len(items))), scored.others(), note=scored.note)


class _Captions:
    """Tokenized captions in the form that pycocoevalcap takes: dictionaries from the image's number to a list of captions."""

    def __init__(self, predictions: Sequence[str], references: Sequence[Sequence[str]], tokenizer: str):
        lengths = [len(texts) for texts in references]
        tokenized, self.note = tokenize([*predictions, *(text for texts in references for text in texts)], tokenizer)
        self.candidates = {number: [text] for number, text in enumerate(tokenized[: len(predictions)])}
        rest = iter(tokenized[len(predictions) :])
        self.references = {number: [next(rest) for _ in range(length)] for number, length in enumerate(lengths)}
        if not any(text for texts in self.references.values() for text in texts):
            raise DataError(
                "cider: the references hold no words", remedy="check the caption field of the annotation file"
            )

    def cider(self) -> tuple[float, list[float]]:
        try:
            from pycocoevalcap.cider.cider import Cider
        except ImportError as error:
            raise MissingExtra("pycocoevalcap", "captions", "CIDEr") from error
        value, items = Cider().compute_score(self.references, self.candidates)
        return float(value), [float(item) for item in items]

    def others(self) -> dict[str, float]:
        from pycocoevalcap.bleu.bleu import Bleu
        from pycocoevalcap.rouge.rouge import Rouge

        bleu, _ = Bleu(4).compute_score(self.references, self.candidates, verbose=0)
        rouge, _ = Rouge().compute_score(self.references, self.candidates)
        return {"bleu_4": float(bleu[3]), "rouge_l": float(rouge)}
