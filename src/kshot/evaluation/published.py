"""Predictions in the form of the published code of Link-Context Learning: one ``{"pred": ..., "target": ...}`` a line.

The published code writes ``multitest_NAME_extra_prediction.jsonl`` with the generated text and the whole last turn of the prompt,
decoded, and its scoring cuts the turn behind ``ASSISTANT:``. Files of this form can be scored by it, and by what was written for it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from kshot.episode import Episode, Example
from kshot.prompt import Template, render_plain

ASSISTANT = "ASSISTANT:"


def opening_of(template: Template) -> str:
    """What a plain prompt has already said of the answer: the end of the query's text, behind ``ASSISTANT:``."""
    _, mark, said = template.query_text.rpartition(ASSISTANT)
    return said.lstrip() if mark else ""


def target_of(query: Example, template: Template) -> str:
    """The last turn with its answer: ``[FINAL QUESTION]: USER: ... ASSISTANT: there is "NAME" in the image.``

    Images leave nothing behind, as in decoded text. Templates that do not write ``ASSISTANT:`` get the turns of their chat form.
    """
    shown = query.with_(images=())
    text = render_plain(Episode((), shown, instruction=""), template, answer=query.text_answer).text()
    if ASSISTANT not in text:
        asked = template.user.replace("<image>", "").replace("{choices}", ", ".join(query.choices))
        said = template.assistant.replace("{answer}", query.text_answer)
        text = f"USER: {asked.replace('{question}', query.question).strip()} {ASSISTANT} {said}"
    return re.sub(r" +(?=[?.])", "", text).strip()


def lines_of(
    rows: Sequence[Mapping[str, Any]], queries: Mapping[str, Example], template: Template, opening: str
) -> str:
    """The file's content, one line a query, in the order of the rows.

    Args:
        rows: a cell's prediction rows; of a query that was skipped the prediction is empty.
        queries: the queries by id.
        template: how they were asked.
        opening: what the prompt had already said of the answer.
    """
    lines = []
    for row in rows:
        said = f"{opening}{row['raw'].strip()}" if "raw" in row else ""
        lines.append(json.dumps({"pred": said, "target": target_of(queries[row["id"]], template)}) + "\n")
    return "".join(lines)
