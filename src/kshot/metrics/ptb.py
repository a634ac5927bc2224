"""Penn Treebank tokens of captions, as the COCO caption evaluation makes them.

The evaluation runs Stanford's ``PTBTokenizer`` (CoreNLP 3.4.1, a Java program that comes with pycocoevalcap) with
``-preserveLines -lowerCase`` and drops the tokens of :data:`PUNCTUATION`. ``"java"`` runs this very program, quietly and
without temporary files, on UTF-8.
``"python"`` is written from the Penn Treebank rules for English as that program applies them, for machines without Java.

Of 10,000 questions of VQAv2 and 1,000 captions of COCO, 9,999 and 1,000 come out identical (``tests/metrics/test_captions.py``). One
difference is meant: the Java program looks past the end of a caption, so that "plan b." loses its full stop if the next
caption begins with "The"; the Python tokenizer reads every caption by itself.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import unicodedata
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
    return [line.split() for line in tokenized]


def _jar() -> Path:
    try:
        from pycocoevalcap.tokenizer import ptbtokenizer
    except ImportError as error:
        raise MissingExtra("pycocoevalcap", "captions", "the Java PTB tokenizer") from error
    return Path(ptbtokenizer.__file__).with_name(ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR)


# --- Python -----------------------------------------------------------------------------------------------------------

_TYPOGRAPHY = str.maketrans(
    {"’": "'", "‘": "`", "‹": "`", "›": "'", "“": '"', "”": '"', "«": '"', "»": '"', "–": "--", "—": "--", "…": "..."}
    | {"½": " 1/2 ", "¼": " 1/4 ", "¾": " 3/4 ", "€": "$", "£": " #", "¢": " cents ", "\u00ad": ""}
)
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_ENTITIES = {"&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": '"', "&apos;": "'"}
_TWO_WORDS = {
    "cannot": "can not", "gonna": "gon na", "gotta": "got ta", "wanna": "wan na", "gimme": "gim me", "lemme": "lem me",
    "'tis": "'t is", "'twas": "'t was",
}  # fmt: skip
# Words that keep their full stop; the program's list, found by asking it about some 200 candidates.
_ABBREVIATIONS = r"""
    mr mrs ms messrs mme mlle dr drs prof jr sr esq gen lt col cmdr capt sgt cpl pvt adm maj brig rev hon gov sen rep pres
    supt insp det st ste mt ft ave blvd rd sq ct bldg dept univ co cos inc ltd corp bros assn assoc intl natl plc pty mfg adj
    ph\.d etc vs v est cf al tel ext p ph md wm jos alex jan feb mar apr jun jul aug sep sept oct nov dec mon tue tues wed thu thurs
    fri ala ariz calif colo conn fla ga ind kan kans ky mich minn mo mont neb nev okla penn tenn va vt wis wisc wyo
"""
_CAPITAL_ABBREVIATIONS = (
    "Miss|Ill|Wash|Mass|Del|Ark|Ore|Pa|Tex|La|Dak"  # with a small letter they are words of their own
)
_SENTENCE_STARTS = "A|An|At|But|He|In|It|She|So|That|The|There|They|This|We|You"
_TOKEN = re.compile(
    rf"""
      (?P<url> https?://[^\s"<>()]*[^\s"<>().,!?;:'-] | www\.[^\s"<>()]*[^\s"<>().,!?;:'-] )
    | (?P<mail> [\w.+-]*\w@\w[\w-]*(?:\.[\w-]+)* )
    | (?P<tag> </?[a-z!][^<>]*> )
    | (?P<smiley> (?<!\w)[:;=]-?(?:[()]|[dp](?!\w)) )
    | (?P<handle> (?<!\w)@[a-z]\w* | \#[a-z]\w* )
    | (?P<abbreviation> (?<![\w'])(?:{"|".join(sorted(_ABBREVIATIONS.split(), key=len, reverse=True))})\.(?!\w)
        | (?-i: (?<![\w'])(?:{_CAPITAL_ABBREVIATIONS})\. ) )
    | (?P<company> (?-i: [A-Z]+(?:&[A-Z]+)+ ) )
    | (?P<ends_sentence> (?-i: (?<![\w'.])[A-Z](?=\.\ (?:{_SENTENCE_STARTS})\b) ) )
    | (?P<acronym> (?<![\w'])[a-z](?:\.[a-z])*\.(?!\w) | (?<=\d)[ap]\.m\. )
    | (?P<number_before> (?<!\w)no\.(?=\s?\d) | (?<!\w)fig\.(?=\s?\d) )
    | (?P<decade> '\d\ds?(?![\w"]) )
    | (?P<two> (?<![\w'])(?:cannot|gonna|gotta|wanna|gimme|lemme|'tis|'twas)(?![\w-]) )
    | (?P<apostrophe> 'n' | (?<!\w)(?: '(?:em|till?|cause)(?!\w) | (?:ol|y)'(?=[a-z\s]) | ma'am | c'mon | s'mores | hallowe'en
        | ne'er | e'er | o'er | [dlo]'(?!(?:re|ve|ll)(?!\w))[a-z][a-z]+ | (?-i:[A-HJ-XZ])'[a-z][a-z]+ ) )
    | (?P<clitic> '(?:s|m|d|n|re|ve|ll)(?!\w) | n't(?!\w) )
    | (?P<negated> [^\W\d_]+?(?=n't(?!\w)) )
    | (?P<programming> (?<!\w)(?:c\+\+|[cf]\#) )
    | (?P<signed> (?<!\S)[-+](?=\.?\d)\d*(?:[.,]\d+)* | (?<!\w)\.\d+ )
    | (?P<time> \d+:\d\d(?=[ap]\.?m) )
    | (?P<mixed> (?<=\d\ )\d+/\d+(?=-) )
    | (?P<number> \d+(?:[.,:/]\d+)*(?:[a-z]\w*)?(?:-\w+)* )
    | (?P<word> [^\W\d_](?:\w|[./!?-](?=\w))* )
    | (?P<underscores> _+ )
    | (?P<run> [?!]{{2,}} | \*{{2,}} | >{{2,}} | \#{{2,}} )
    | (?P<dropped> ["`'.?!,:;-] )
    | (?P<other> \S )
    """,
    re.VERBOSE | re.IGNORECASE,  # small letters, save where a rule goes by capitals
)


def python_tokens(line: str) -> list[str]:
    """Lower-case Penn Treebank tokens of one line, with most tokens of :data:`PUNCTUATION` already left out.

    Differs from the Java program in rare cases only, such as telephone numbers, internet addresses without a scheme, unusual smileys
    and scripts without spaces.
    """
    text = line.translate(_TYPOGRAPHY)
    for entity, character in _ENTITIES.items():
        text = text.replace(entity, character)
    tokens: list[str] = []
    for match in _TOKEN.finditer(text):
        kind, token = match.lastgroup, match[0].lower()
        if kind == "dropped" or (kind == "other" and (token > "\uffff" or unicodedata.category(token) in ("Cf", "Mn"))):
            continue  # emoji and marks that the program cannot read are left out
        if kind == "two":
            tokens += _TWO_WORDS[token].split()
        elif kind in ("other", "smiley"):
            tokens.append("".join(_BRACKETS.get(character, character) for character in token))
        else:
            tokens.append(token)
    return tokens
