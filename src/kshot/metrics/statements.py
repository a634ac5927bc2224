"""Answers that are stated at the end of a text: "... So the answer is X."

Link-Context Learning and its parent Shikra write all their question answering in this form, with or without a reason before it.
"""

from __future__ import annotations

import re

_STATEMENT = re.compile(r"(?:\b(?:so\s*,?\s+)?the\s+answer\s+is\b\s*:?|\banswer\s*:)", re.IGNORECASE)


def split_statement(text: str) -> tuple[str, str | None]:
    """The reason and the answer of a text: what stands before and behind its last "(So) the answer is" or "Answer:".

    White space is removed around both, and full stops behind the answer. Without such words all of the text is the reason and the
    answer is ``None``. Upstream's reader wants the words exactly once and otherwise finds no answer; here the last ones count.
    """
    statements = list(_STATEMENT.finditer(text))
    if not statements:
        return text.strip(), None
    found = statements[-1]
    return text[: found.start()].strip(), _bare(text[found.end() :])


def final_answer(text: str) -> str:
    """The answer that a text states (see :func:`split_statement`), or else the whole text, without full stops behind it."""
    stated = split_statement(text)[1]
    return _bare(text) if stated is None else stated


def _bare(text: str) -> str:
    return text.strip().rstrip(". \t\n")
