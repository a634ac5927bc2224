"""CIDEr and the two PTB tokenizers."""

from __future__ import annotations

import json
import shutil
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kshot import metrics
from kshot.episode import Example
from kshot.errors import DataError, MissingExtra, OptionError
from kshot.metrics import captions, ptb

pytest.importorskip("pycocoevalcap")
needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="Java is not installed")

PREDICTIONS = ["A man riding a brown horse.", "Two dogs run along the beach!", "a plate of food on a table"]
REFERENCES = [
    ["A man is riding a horse in a field", "a person on a brown horse"],
    ["Two dogs running on the beach", "a pair of dogs run along the sand"],
    ["A plate with meat and vegetables", "food on a white plate"],
]

TOKENS = [
    # caption, words after punctuation is dropped; each confirmed by the Java program (test below)
    ("A man's dog isn't here; he cannot (really) go.", "a man 's dog is n't here he can not -lrb- really -rrb- go"),
    ("two women's u.s. flags", "two women 's u.s. flags"),
    ("1,000 people at 2:30 p.m. paid $5.50", "1,000 people at 2:30 p.m. paid $ 5.50"),
    ('a black-and-white "quoted" sign', "a black-and-white quoted sign"),
    ("they'll say it's theirs, won't they?", "they 'll say it 's theirs wo n't they"),
    ("the dogs' bowls", "the dogs bowls"),
    ("mac & cheese, a b&w photo, AT&T", "mac & cheese a b & w photo at&t"),  # capitals decide
    ("vitamin C. The dog and Dr. B. Jones", "vitamin c the dog and dr. b. jones"),
    ("Mr. Smith on Main St. in St. Louis.", "mr. smith on main st. in st. louis"),
    ("a t-shirt, size 4x4", "a t-shirt size 4x4"),
    ("#1 fan says what?! and wow!!", "# 1 fan says what ?! and wow !!"),
    ("a 1980's car... and the '90s", "a 1980 's car and the '90s"),
    ("5 o'clock, ma'am", "5 o'clock ma'am"),
    ("yes/no and/or w/ cheese", "yes/no and/or w / cheese"),
    ("“curly” ‘quotes’ — it’s", "curly quotes it 's"),
    ("gonna wanna gotta", "gon na wan na got ta"),
    ("half of 1/2 and 50% at 10am", "half of 1/2 and 50 % at 10am"),
    ("café naïve", "café naïve"),
    ("   white \t space \n here ", "white space here"),
    ("", ""),
    ("...", ""),
]


@pytest.mark.parametrize(("caption", "words"), TOKENS)
def test_python_tokenizer(caption, words):
    assert ptb.tokenize([caption], "python") == ([words], "PTB tokenizer: Python")


@needs_java
def test_java_tokenizer_gives_the_same():
    words, note = ptb.tokenize([caption for caption, _ in TOKENS], "java")
    assert words == [expected for _, expected in TOKENS]
    assert "Java" in note


@needs_java
def test_java_tokenizer_looks_into_the_next_caption_and_python_does_not():
    captions_ = ["plan b.", "The dog"]
    assert ptb.tokenize(captions_, "java")[0] == ["plan b", "the dog"]
    assert ptb.tokenize(captions_[:1], "java")[0] == ["plan b."]
    assert ptb.tokenize(captions_, "python")[0] == ["plan b.", "the dog"]


@needs_java
def test_java_tokenizer_is_the_evaluations_own():
    """The same tokens as pycocoevalcap's wrapper of the same program, which needs a writable package folder."""
    ptbtokenizer = pytest.importorskip("pycocoevalcap.tokenizer.ptbtokenizer")
    texts = [caption for caption, _ in TOKENS if caption.isascii() and caption.strip()]
    try:
        theirs = ptbtokenizer.PTBTokenizer().tokenize({n: [{"caption": t}] for n, t in enumerate(texts)})
    except OSError as error:
        pytest.skip(f"pycocoevalcap cannot write its temporary file: {error}")
    assert ptb.tokenize(texts, "java")[0] == [" ".join(theirs[n][0].split()) for n in range(len(texts))]


@needs_java
@pytest.mark.parametrize(
    ("file", "key", "field"),
    [
        ("coco_fakecap_results.json", None, "caption"),
        (
            "vqav2/v2_mscoco_val2014_question_subdata.json",
            "questions",
            "question",
        ),  # harder: apostrophes, names, quotes
    ],
)
def test_tokenizers_agree_on_real_text(shared_data, file, key, field):
    records = json.loads((shared_data / file).read_text())
    texts = [record[field] for record in (records[key] if key else records)]
    java, python = ptb.tokenize(texts, "java")[0], ptb.tokenize(texts, "python")[0]
    share = sum(a == b for a, b in zip(java, python, strict=True)) / len(texts)
    print(f"{file}: {share:.4%} of {len(texts)} token sequences identical")
    assert share >= 0.9995


@needs_java
def test_both_tokenizers_give_the_same_cider():
    assert metrics.cider(PREDICTIONS, REFERENCES, tokenizer="java") == metrics.cider(
        PREDICTIONS, REFERENCES, tokenizer="python"
    )


@given(st.lists(st.text(max_size=40), min_size=1, max_size=5))
def test_python_tokens_of_any_text(texts):
    words, _ = ptb.tokenize(texts, "python")
    assert len(words) == len(texts)
    assert all(token not in ptb.PUNCTUATION for line in words for token in line.split())
    assert words == [ptb.tokenize([f"  {text}\n"], "python")[0][0] for text in texts]


def test_auto_falls_back_and_says_so(monkeypatch):
    monkeypatch.setattr(ptb.shutil, "which", lambda name: None)
    words, note = ptb.tokenize(["A dog."], "auto")
    assert words == ["a dog"]
    assert note == "PTB tokenizer: Python (no java on the PATH)"
    with pytest.raises(OptionError, match="no java"):
        ptb.tokenize(["A dog."], "java")


def test_a_java_that_does_not_work(monkeypatch, tmp_path):
    broken = tmp_path / "java"
    broken.write_text("#!/bin/sh\necho no runtime present >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(ptb.shutil, "which", lambda name: str(broken))
    assert ptb.tokenize(["A dog."], "auto")[1] == "PTB tokenizer: Python (java does not work: no runtime present)"
    with pytest.raises(OptionError, match="no runtime present"):
        ptb.tokenize(["A dog."], "java")


def test_unknown_tokenizer():
    with pytest.raises(OptionError, match="choose auto, java or python"):
        ptb.tokenize(["a"], "spacy")


def test_environment_decides_for_the_metric(monkeypatch):
    queries = [Example(references=tuple(texts), id=str(n)) for n, texts in enumerate(REFERENCES)]
    monkeypatch.setenv(captions.TOKENIZER_VARIABLE, "python")
    assert captions.cider_metric(PREDICTIONS, queries).note == "PTB tokenizer: Python"
    monkeypatch.setenv(captions.TOKENIZER_VARIABLE, "nltk")
    with pytest.raises(OptionError):
        captions.cider_metric(PREDICTIONS, queries)


def test_cider_equals_pycocoevalcap_on_tokenized_text():
    from pycocoevalcap.cider.cider import Cider

    def tokens(text: str) -> str:
        return text.lower().rstrip(".!")  # all that these captions need

    expected, items = Cider().compute_score(
        {n: [tokens(t) for t in texts] for n, texts in enumerate(REFERENCES)},
        {n: [tokens(t)] for n, t in enumerate(PREDICTIONS)},
    )
    assert metrics.cider(PREDICTIONS, REFERENCES, tokenizer="python") == pytest.approx(expected)
    queries = [Example(references=tuple(texts), id=str(n)) for n, texts in enumerate(REFERENCES)]
    result = metrics.metrics.get("cider")(PREDICTIONS, queries)
    assert result.items == pytest.approx(tuple(items))
    assert 0 < result.details["bleu_4"] < result.details["rouge_l"] < 1


def test_cider_by_hand():
    """Two images, one reference each, perfect captions without common words: every cosine is 1, so 10 each."""
    texts = ["one two three four", "five six seven eight"]
    assert metrics.cider(texts, [[text] for text in texts], tokenizer="python") == pytest.approx(10)
    assert metrics.cider(texts, texts, tokenizer="python") == pytest.approx(10)  # a string is one reference
    # The second caption shares nothing: (10 + 0) / 2.
    assert metrics.cider([texts[0], "x y z w"], [[text] for text in texts], tokenizer="python") == pytest.approx(5)


@given(st.permutations(range(3)))
def test_cider_ignores_the_order_of_images(order):
    value = metrics.cider(PREDICTIONS, REFERENCES, tokenizer="python")
    shuffled = metrics.cider([PREDICTIONS[i] for i in order], [REFERENCES[i] for i in order], tokenizer="python")
    assert shuffled == pytest.approx(value)


@pytest.mark.parametrize(
    ("predictions", "references", "problem"),
    [
        (["a"], [], "1 predictions for 0 queries"),
        ([], [], "nothing to score"),
        (["a"], [[]], "no reference"),
        (["a"], [["..."]], "no words"),
    ],
)
def test_bad_input(predictions, references, problem):
    with pytest.raises(DataError, match=problem):
        metrics.cider(predictions, references, tokenizer="python")


def test_without_pycocoevalcap_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocoevalcap.cider.cider", None)
    with pytest.raises(MissingExtra, match=r"kshot\[captions\]"):
        metrics.cider(PREDICTIONS, REFERENCES, tokenizer="python")
