"""Answers with reasons (VQA-E, VQA-X): accuracy of the answer, and how near the reason comes to the annotators'."""

from __future__ import annotations

from collections.abc import Sequence

from kshot.episode import Example
from kshot.errors import DataError
from kshot.metrics.base import MetricResult, metrics
from kshot.metrics.captions import cider_metric
from kshot.metrics.common import check
from kshot.metrics.statements import split_statement
from kshot.metrics.vqa import vqa_accuracy_metric


@metrics.register("vqa_explanation")
def vqa_explanation(predictions: Sequence[str], queries: Sequence[Example]) -> MetricResult:
    """VQA accuracy of what a text states at its end ("<reason> So the answer is X."), by the official script.

    The details hold the scores of the reasons before it against the metadata ``explanations``: ``cider``, ``bleu_4``, ``rouge_l``
    over all queries, and ``cider_right`` over those whose answer got any credit, as explanations are often scored (CIDEr takes its
    word frequencies from the set it is given, so the two cannot be subtracted); ``unstated``, the share of predictions that state
    no answer: all of their text is then taken for the answer and for the reason. Categories as in ``vqa_accuracy``.

    Raises:
        DataError: a query without accepted answers or without explanations.
        MissingExtra: pycocoevalcap is not installed.
    """
    check("vqa_explanation", predictions, queries)
    split = [split_statement(prediction) for prediction in predictions]
    answers = vqa_accuracy_metric([reason if said is None else said for reason, said in split], queries)
    for query in queries:
        if not query.metadata.get("explanations"):
            raise DataError(
                f"vqa_explanation: query {query.id!r} has no explanations",
                remedy="put the annotators' reasons under metadata 'explanations', or score by vqa_accuracy",
            )
    told = [query.with_(references=tuple(query.metadata["explanations"])) for query in queries]
    reasons = [reason for reason, _ in split]
    scored = cider_metric(reasons, told)
    details = dict(answers.details) | {"cider": scored.value, **scored.details}
    right = [number for number, score in enumerate(answers.items) if score > 0]
    if len(right) > 1:  # for one text alone all word frequencies, and with them CIDEr, are 0
        details["cider_right"] = cider_metric([reasons[n] for n in right], [told[n] for n in right]).value
    details["unstated"] = sum(said is None for _, said in split) / len(split)
    note = f"explanations: {scored.note}" if scored.note else ""
    return MetricResult("accuracy", answers.value, answers.items, answers.units, details, answers.categories, note)
