"""Penn Treebank tokens of captions, as the COCO caption evaluation makes them.

The evaluation runs Stanford's ``PTBTokenizer`` (CoreNLP 3.4.1, a Java program that comes with pycocoevalcap) with
``-preserveLines -lowerCase`` and drops the tokens of :data:`PUNCTUATION`. ``"java"`` runs this very program, quietly and
without temporary files, on UTF-8.
``"python"`` is written from the Penn Treebank rules for English as that program applies them, for machines without Java.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from kshot.errors import MissingExtra, OptionError

PUNCTUATION = frozenset(("''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", *".?!,:;-", "--", "..."))
"""Tokens that the evaluation drops. It writes the brackets in capitals while the tokens are lower-case: ``-lrb-`` stays a word."""

_LONGEST_RUN_S = 600


def tokenize(captions: Sequence[str], tokenizer: str = "auto") -> tuple[list[str], str]:
    """Captions as space-separated tokens without punctuation, and a note that says which tokenizer made them.

    Args:
        captions: texts; any white space counts as one space.
        tokenizer: ``"java"``, ``"python"``, or ``"auto"``: Java where it is there and works, else Python.

    Raises:
        OptionError: another name, or Java was asked for and does not work; the message says why.
        MissingExtra: pycocoevalcap (which brings the Java program) is not installed and ``"java"`` was asked for.
    """
    if tokenizer not in ("auto", "java", "python"):
        raise OptionError(f"unknown caption tokenizer {tokenizer!r}: choose auto, java or python")
    lines = [" ".join(caption.split()) for caption in captions]
    note = "PTB tokenizer: Python"
    if tokenizer != "python":
        try:
            return _drop_punctuation(_java(lines)), "PTB tokenizer: Java (Stanford CoreNLP 3.4.1)"
        except (OptionError, MissingExtra) as error:
            if tokenizer == "java":
                raise
            note += f" ({error})"
    return _drop_punctuation([python_tokens(line) for line in lines]), note


def _drop_punctuation(tokenized: Sequence[Sequence[str]]) -> list[str]:
    return [" ".join(token for token in tokens if token not in PUNCTUATION) for tokens in tokenized]


def _java(lines: Sequence[str]) -> list[list[str]]:
    java = shutil.which("java")
    if java is None:
        raise OptionError("no java on the PATH")
    command = [java, "-Dfile.encoding=UTF-8", "-cp", str(_jar()), "edu.stanford.nlp.process.PTBTokenizer"]
    try:
        ran = subprocess.run(
            [*command, "-preserveLines", "-lowerCase"],
            input="\n".join(lines) + "\n",
            capture_output=True,
            encoding="utf-8",
            timeout=_LONGEST_RUN_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError, UnicodeError) as error:
        said = (getattr(error, "stderr", None) or "").strip().splitlines()
        raise OptionError(f"java does not work: {said[-1] if said else error}") from error
    tokenized = ran.stdout.removesuffix("\n").split("\n")
    if len(tokenized) != len(lines):
        raise OptionError(f"java gave {len(tokenized)} lines for {len(lines)} captions")
    return [line.split(" ") for line in tokenized]


def _jar() -> Path:
    try:
        from pycocoevalcap.tokenizer import ptbtokenizer
    except ImportError as error:
        raise MissingExtra("pycocoevalcap", "captions", "the Java PTB tokenizer") from error
    return Path(ptbtokenizer.__file__).with_name(ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR)


# --- Python -----------------------------------------------------------------------------------------------------------

_TYPOGRAPHY = str.maketrans({"’": "'", "‘": "`", "“": "``", "”": "''", "–": "--", "—": "--", "…": "..."})
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_SPLIT_WORDS = {
    "cannot": ("can", "not"), "gonna": ("gon", "na"), "gotta": ("got", "ta"), "wanna": ("wan", "na"),
    "gimme": ("gim", "me"), "lemme": ("lem", "me"), "'tis": ("'t", "is"), "'twas": ("'t", "was"),
}  # fmt: skip
_ABBREVIATION = (
    r"(?:mr|mrs|ms|messrs|dr|drs|prof|st|ste|mt|ft|jr|sr|gen|lt|col|cmdr|capt|sgt|adm|maj|rev|hon|gov|sen|rep|pres|supt|insp|"
    r"co|inc|ltd|corp|bros|assn|ave|blvd|bldg|dept|univ|etc|vs|est|ca|cf|al|approx|"
    r"jan|feb|mar|apr|jun|jul|aug|sep|sept|oct|nov|dec|mon|tue|tues|wed|thu|thur|thurs|fri|sat|sun)\."
)
_WORD = r"[^\W\d_][\w&]*"
_TOKEN = re.compile(
    r"(?P<url>https?://[^\s\"<>|()]+[^\s\"<>|().,!?;:'-]|www\.[^\s\"<>|().,]+\.[^\s\"<>|()]*[^\s\"<>|().,!?;:'-])"
    r"|(?P<mail>[\w.+-]+@[\w-]+(?:\.[\w-]+)+)"
    r"|(?P<tag></?[a-z!][^<>\n]*>)"
    r"|(?P<acronym>(?<![\w.])[a-z](?:\.[a-z])+\.)(?!\w)"
    rf"|(?P<abbreviation>(?<!\w){_ABBREVIATION})"
    r"|(?P<decade>'\d\ds?(?!\w))"
    r"|(?P<assimilated>(?<!\w)'(?:tis|twas)(?!\w))"
    r"|(?P<elided>(?<!\w)'(?:em|til|n'?)(?!\w))"
    r"|(?P<ellipsis>\.{2,})"
    r"|(?P<dash>-{2,})"
    r"|(?P<clitic>(?<=\w)(?:n't|'(?:s|m|d|re|ve|ll))(?!\w))"
    rf"|(?P<word>(?:\d[\w]*(?:[.,:/]\d+)*|{_WORD})(?:-[\w]+)*)"
    r"|(?P<quotes>``|''|\")"
    r"|(?P<other>\S)"
)


def python_tokens(line: str) -> list[str]:
    """Lower-case Penn Treebank tokens of one line, punctuation included."""
    tokens: list[str] = []
    for match in _TOKEN.finditer(line.translate(_TYPOGRAPHY).lower()):
        tokens.append(match[0])
    return tokens
