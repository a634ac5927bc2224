"""Accuracy of open-ended visual question answering: VQAv2 and OK-VQA.

Written from the rules at https://visualqa.org/evaluation.html and checked against the behaviour of the evaluation script that the
VQA authors publish (GT-Vision-Lab/VQA, ``vqaEval.py``). Where the two differ, the script is followed, because published figures
come from it:

* **Unanimous annotators.** The script normalises the prediction and the answers only when the annotators' answers are not all the
  same. If they are, the prediction counts only if it equals the answer as it stands: "Yes." against ten times "yes" scores 0.
  ``vqa_accuracy(..., always_normalise=True)`` is the rule of the web page, and the metric reports both figures.
* **Punctuation.** ``; / [ ] " { } ( ) = + \\ _ - > < @ ` , ? !`` become a space, but vanish without one where the same character
  stands beside a space somewhere in the text, and all of them vanish where a comma stands between two digits somewhere
  ("1,000" -> "1000"). Apostrophes and colons stay ("girl's", "2:50").
* **Full stops** go unless a digit follows ("3.5" and ".5" stay; "5." loses it).
* **Number words** none, zero ... ten become digits, the words a, an, the go, contractions without their apostrophe get it
  (``dont`` -> ``don't``) if they are on the script's list; that list lacks some, such as ``lets`` and ``shes``.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence

from kshot.episode import Example
from kshot.errors import DataError, MissingExtra
from kshot.metrics.base import MetricResult, metrics
from kshot.metrics.common import by_category, check, mean, text_references

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")
_MOST_FULL_STOPS = 32  # the script passes re.UNICODE (= 32) where ``sub`` takes the greatest number of replacements
_ARTICLES = frozenset({"a", "an", "the"})
_NUMBERS = {
    "none": "0",
    "zero": "0",
    "one": "1",
    "two": "2",
    "three": "3",
    "four": "4",
    "five": "5",
    "six": "6",
    "seven": "7",
}
_NUMBERS |= {"eight": "8", "nine": "9", "ten": "10"}
_CONTRACTIONS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
    how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't needn't not've o'clock
    oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
    someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's
    they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's where'd
    where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'd've
    y'all'll you'd you'd've you'll you're you've
"""
# A contraction is recognised when exactly one of its apostrophes is missing. The last entry is an oddity of the script's list.
_WITH_APOSTROPHE = {
    word[:place] + word[place + 1 :]: word
    for word in _CONTRACTIONS.split()
    for place, character in enumerate(word)
    if character == "'"
} | {"somebody'd": "somebodyd"}


@functools.lru_cache(maxsize=1 << 16)  # annotators repeat themselves
def normalise_answer(text: str) -> str:
    """An answer as the VQA evaluation compares it (see the module). Idempotent for texts of at most 32 full stops."""
    text = _clean(text)
    number_with_comma = _COMMA_IN_NUMBER.search(text) is not None
    plain = text
    for mark in _PUNCTUATION:
        vanishes = number_with_comma or f"{mark} " in text or f" {mark}" in text
        plain = plain.replace(mark, "" if vanishes else " ")
    plain = _FULL_STOP.sub("", plain, count=_MOST_FULL_STOPS)
    words = (_NUMBERS.get(word, word) for word in plain.lower().split())
    return " ".join(_WITH_APOSTROPHE.get(word, word) for word in words if word not in _ARTICLES)


def vqa_accuracy(prediction: str, answers: Sequence[str], *, always_normalise: bool = False) -> float:
    """Official VQA accuracy of one answer, 0..1.

    For each annotator in turn, the prediction scores ``min(matches among the other annotators / 3, 1)``; the accuracy is
    the mean over all annotators. With ten annotators 0, 1, 2, 3, 4+ matches give 0, 0.3, 0.6, 0.9, 1.

    Fewer than ten answers are scored by the same formula; with fewer than four, where three others cannot agree, the divisor
    is the number of others, so that matching every annotator always gives 1. A single answer must be matched.

    Args:
        prediction: the model's answer.
        answers: every annotator's answer, repetitions included.
        always_normalise: also normalise where all annotators agree; the official script does not (see the module).

    Raises:
        DataError: there are no answers.
    """
    answers = [answers] if isinstance(answers, str) else answers  # a string is a sequence of letters, never meant so
    if not answers:
        raise DataError("VQA accuracy needs at least one annotator's answer")
    prediction, answers = _clean(prediction), [_clean(answer) for answer in answers]
    if always_normalise or len(set(answers)) > 1:
        prediction, answers = normalise_answer(prediction), [normalise_answer(answer) for answer in answers]
    return consensus(answers.count(prediction), len(answers))


def consensus(matches: int, annotators: int) -> float:
    """Mean over annotators of min(matches among the others / 3, 1), when ``matches`` of the annotators gave the answer."""
    if annotators == 1:
        return float(matches)
    enough = min(3, annotators - 1)
    left_out_matched = min((matches - 1) / enough, 1.0) if matches else 0.0
    left_out_unmatched = min(matches / enough, 1.0)
    return (matches * left_out_matched + (annotators - matches) * left_out_unmatched) / annotators


@metrics.register("vqa_accuracy")
def vqa_accuracy_metric(predictions: Sequence[str], queries: Sequence[Example]) -> MetricResult:
    """VQA accuracy by the official script, per ``question_type`` and ``answer_type`` of the metadata.

    ``details["always_normalised"]`` is the figure by the rules of the web page (see :func:`vqa_accuracy`).
    """
    check("vqa_accuracy", predictions, queries)
    answers = [text_references("vqa_accuracy", query) for query in queries]
    scores = [vqa_accuracy(p, a) for p, a in zip(predictions, answers, strict=True)]
    lenient = mean(vqa_accuracy(p, a, always_normalise=True) for p, a in zip(predictions, answers, strict=True))
    return _result(scores, queries, {"always_normalised": lenient}, "")


@metrics.register("okvqa_accuracy")
def okvqa_accuracy_metric(predictions: Sequence[str], queries: Sequence[Example]) -> MetricResult:
    """OK-VQA accuracy: the VQA formula on stemmed answers.

    OK-VQA has five annotators whose stemmed answers are entered twice in its files, so that the VQA formula for ten applies
    (one annotator's answer scores 0.6, two annotators' 1); a query with exactly five references is doubled in the same way.

    What is done here: prediction and answers are normalised by the VQA rules (always, also if all agree) and each of their words
    is stemmed by Porter's algorithm (NLTK's ``PorterStemmer`` in its default mode). Either field of the official files, ``answer``
    or ``raw_answer``, can be the references. Published code (open_flamingo) stems the prediction alone, with WordNet, a part-of-speech
    tagger and a table of exceptions tuned to the files, none of which comes without downloads; against it, stemming both
    sides by one rule can accept a few pairs more ("train" and "trains", "run" and "running" match in both).

    Raises:
        MissingExtra: NLTK is not installed.
    """
    check("okvqa_accuracy", predictions, queries)
    stem = _stemmer()
    scores = []
    for prediction, query in zip(predictions, queries, strict=True):
        answers = [stem(answer) for answer in text_references("okvqa_accuracy", query)]
        if len(answers) == 5:
            answers *= 2
        scores.append(consensus(answers.count(stem(prediction)), len(answers)))
    return _result(scores, queries, {}, "answers stemmed by Porter's algorithm (NLTK)")


def _result(scores: list[float], queries: Sequence[Example], details: dict[str, float], note: str) -> MetricResult:
    categories: dict[str, tuple[float, int]] = {}
    for kind in ("answer_type", "question_type"):
        categories |= by_category(scores, [query.metadata.get(kind) for query in queries], prefix=f"{kind}: ")
    return MetricResult("accuracy", mean(scores), tuple(scores), tuple(range(len(scores))), details, categories, note)


def _clean(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


@functools.cache
def _stemmer() -> Callable[[str], str]:
    try:
        from nltk.stem.porter import PorterStemmer
    except ImportError as error:
        raise MissingExtra("nltk", "text", "OK-VQA accuracy") from error
    stem_word = PorterStemmer().stem

    @functools.lru_cache(maxsize=1 << 16)
    def stem(text: str) -> str:
        return " ".join(stem_word(word) for word in normalise_answer(text).split())

    return stem
