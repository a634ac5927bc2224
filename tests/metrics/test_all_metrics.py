"""What every registered metric does, whoever wrote it.

A new metric needs one entry in ``CASES``: queries and the predictions that answer them perfectly.
"""

from __future__ import annotations

import importlib
import math
import subprocess
import sys

import pytest

from kshot.episode import Example
from kshot.errors import DataError
from kshot.metrics import MetricResult, bootstrap_interval, metrics

OPTIONAL = {
    "cider": "pycocoevalcap",
    "vqa_explanation": "pycocoevalcap",
    "grounded_caption": "pycocoevalcap",
    "okvqa_accuracy": "nltk",
}


def _texts(kind: str) -> list[Example]:
    words = ["red", "blue", "green", "dog", "horse", "ball"]
    return [
        Example(question=f"{n}?", answer=w, choices=tuple(words), metadata={kind: w[:1]}) for n, w in enumerate(words)
    ]


def _pairs() -> list[Example]:
    words = ["red", "blue", "green", "dog", "horse", "ball"]
    return [
        Example(question=f"{n}?", answer=w, choices=(w, "none"), metadata={"class": w}) for n, w in enumerate(words)
    ]


def _choices() -> list[Example]:
    options = ("a dog", "a cat", "a horse", "the sea")
    dimensions = ("Scene", "Scene", "Text", "Text")
    return [
        Example(
            question=f"{n}?",
            answer="ABCD"[n],
            choices=options,
            metadata={"dimension": d, "category": d, "letter": "ABCD"[n]},
        )
        for n, d in enumerate(dimensions)
    ]


def _mme() -> list[Example]:
    return [
        Example(question=f"{n} {answer}?", answer=answer, metadata={"category": category, "image_id": n})
        for n, category in enumerate(["existence", "existence", "count"])
        for answer in ("Yes", "No")
    ]


def _captions() -> list[Example]:
    texts = ["a man rides a brown horse", "two dogs run along some sand", "food lies on one white plate"]
    return [Example(answer=text, references=(text,)) for text in texts]


def _answers() -> list[Example]:
    annotators = [["red"] * 6 + ["blue"] * 4, ["2"] * 10, ["two dogs"] * 4 + ["dogs"] * 6]
    types = ("other", "number", "other")
    return [
        Example(
            question=f"{n}?",
            answer=texts[0],
            references=tuple(texts),
            metadata={"answer_type": kind, "question_type": "what"},
        )
        for n, (texts, kind) in enumerate(zip(annotators, types, strict=True))
    ]


def _no_objects() -> list[Example]:
    # POPE reads everything without "no" as yes, so that only where "no" is right all nonsense is wrong.
    return [Example(question=f"{n}?", answer="no", metadata={"split": "ab"[n % 2]}) for n in range(4)]


def _gqa() -> list[Example]:
    words = [("yes", "verify"), ("light blue", "query"), ("left", "choose")]
    return [
        Example(question=f"{n}?", answer=word, metadata={"structural": kind, "group": kind, "steps": n})
        for n, (word, kind) in enumerate(words)
    ]


def _boxes() -> list[Example]:
    texts = ("[0.100,0.200,0.500,0.600]", "[0.000,0.000,1.000,0.500]", "[0.250,0.250,0.750,0.750]")
    return [Example(question=f"{n}?", answer=text, metadata={"category": "refcoco"}) for n, text in enumerate(texts)]


def _pointing() -> list[Example]:
    candidates = [(0.0, 0.0, 0.5, 0.5), (0.5, 0.5, 1.0, 1.0), (0.25, 0.25, 0.75, 0.75)]
    texts = ["[0.000,0.000,0.500,0.500]", "[0.500,0.500,1.000,1.000]", "[0.250,0.250,0.750,0.750]"]
    return [
        Example(question=f"{n}?", answer=text, metadata={"candidates": candidates, "right": n})
        for n, text in enumerate(texts)
    ]


def _grounded() -> list[Example]:
    texts = [f"{example.text_answer}[0.100,0.200,0.500,0.600]" for example in _captions()]
    return [Example(answer=text, references=(text,)) for text in texts]


def _vcr() -> list[Example]:
    options = ("a dog", "a cat", "a horse", "the sea")
    parts = [(0, "answer", "A"), (0, "rationale", "the sea"), (1, "answer", "B")]
    return [
        Example(question=f"{n} {part}?", answer=answer, choices=options, metadata={"pair": n, "part": part})
        for n, part, answer in parts
    ]


def _explained() -> list[Example]:
    reasons = ["a man in a coat stands here", "the sea is very calm", "two dogs run along some sand"]
    return [
        query.with_(answer=f"{reason} So the answer is {query.answer}.", metadata={"explanations": [reason]})
        for reason, query in zip(reasons, _answers(), strict=True)
    ]


CASES = {
    "vqa_explanation": (_explained(), 1.0),
    "clevr": (_texts("type"), 1.0),
    "vcr": (_vcr(), 1.0),
    "rec_accuracy": (_boxes(), 1.0),
    "pointqa_accuracy": (_texts("category"), 1.0),
    "visual7w_accuracy": (_pointing(), 1.0),
    "grounded_caption": (_grounded(), 10.0),
    "pope": (_no_objects(), 1.0),
    "gqa": (_gqa(), 1.0),
    "exact_match": (_texts("class"), 1.0),
    "two_name": (_texts("class"), 1.0),
    "two_name_upstream": (_pairs(), 1.0),
    "class_names": (_texts("class"), 1.0),
    "multiple_choice": (_choices(), 1.0),
    "seed_bench": (_choices(), 1.0),
    "mme": (_mme(), 400.0),  # two categories of at most 200 points
    "cider": (_captions(), 10.0),
    "vqa_accuracy": (_answers(), 1.0),
    "okvqa_accuracy": (_answers(), 1.0),
}


@pytest.fixture(params=sorted(metrics))
def name(request, monkeypatch):
    monkeypatch.setenv("KSHOT_CAPTION_TOKENIZER", "python")  # starting Java for each test takes too long
    if request.param in OPTIONAL:
        pytest.importorskip(OPTIONAL[request.param])
    return request.param


@pytest.fixture
def case(name):
    assert name in CASES, f"add queries of the metric {name!r} to CASES"
    queries, maximum = CASES[name]
    return metrics.get(name), queries, [query.text_answer for query in queries], maximum


def _check(result: MetricResult, queries: list[Example], maximum: float) -> None:
    assert isinstance(result, MetricResult)
    assert result.name
    assert isinstance(result.value, float)
    assert 0 <= result.value <= maximum * (1 + 1e-9)
    assert len(result.units) == len(queries)
    assert set(result.units) == set(range(len(result.items)))  # every unit has a prediction, every prediction a unit
    assert sum(result.items) / len(result.items) == pytest.approx(result.value, abs=1e-9)
    assert all(isinstance(value, float) and math.isfinite(value) for value in (*result.items, *result.details.values()))
    for label, (value, count) in result.categories.items():
        assert isinstance(label, str)
        assert 0 <= value <= maximum
        assert 0 < count <= len(queries)
    low, high = bootstrap_interval(result.items, resamples=50)
    assert low <= high


def test_perfect_predictions_give_the_maximum(case):
    metric, queries, perfect, maximum = case
    result = metric(perfect, queries)
    assert result.value == pytest.approx(maximum)
    _check(result, queries, maximum)


def test_empty_predictions_give_nothing(case):
    metric, queries, _, maximum = case
    result = metric([""] * len(queries), queries)
    assert result.value == pytest.approx(0, abs=1e-6)
    _check(result, queries, maximum)


def test_some_wrong_predictions_cost_some(case):
    metric, queries, perfect, maximum = case
    result = metric([*perfect[:-1], "something else entirely"], queries)
    assert 0 < result.value < maximum
    _check(result, queries, maximum)


def test_nonsense_is_scored_without_error(case):
    metric, queries, _, maximum = case
    for text in ("...", "\n\t", "ÅÄÖ 日本語 🙂", "'", '"', "A B C D yes no", "x" * 5000, "( [ \\"):
        _check(metric([text] * len(queries), queries), queries, maximum)


def test_same_input_same_result_and_nothing_is_changed(case):
    metric, queries, perfect, _ = case
    given = list(perfect)
    assert metric(given, queries) == metric(tuple(perfect), tuple(queries))
    assert given == perfect


def test_order_of_queries_does_not_matter(case):
    metric, queries, perfect, _ = case
    mixed = [*perfect[:-1], "x"]
    forth, back = metric(mixed, queries), metric(mixed[::-1], queries[::-1])
    assert back.value == pytest.approx(forth.value)
    assert sorted(back.items) == pytest.approx(sorted(forth.items))
    assert back.categories.keys() == forth.categories.keys()
    assert back.details == pytest.approx(forth.details)


def test_wrong_number_of_predictions(case):
    metric, queries, perfect, _ = case
    with pytest.raises(DataError, match=f"{len(queries) - 1} predictions for {len(queries)} queries"):
        metric(perfect[:-1], queries)
    with pytest.raises(DataError, match="predictions for"):
        metric([*perfect, "x"], queries)


def test_nothing_to_score(case):
    with pytest.raises(DataError, match="nothing to score"):
        case[0]([], [])


def test_query_without_references(case):
    metric, queries, perfect, _ = case
    unlabelled = [*queries[:-1], queries[-1].with_(answer=None, references=())]
    with pytest.raises(DataError, match=f"query '{queries[-1].id}' has no reference"):
        metric(perfect, unlabelled)


def test_prediction_that_is_no_text(case):
    metric, queries, perfect, _ = case
    with pytest.raises(DataError, match="NoneType, not text"):
        metric([*perfect[:-1], None], queries)


def test_metrics_need_no_torch_and_load_optional_packages_late():
    code = (
        "import sys; from kshot.metrics import metrics; metrics.names(); "
        "print([m for m in ('torch', 'transformers', 'nltk', 'pycocoevalcap') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_documented_names():
    package = importlib.import_module("kshot.metrics")
    for name in ("vqa_accuracy", "cider", "metrics", "MetricResult", "bootstrap_interval", "standard_error"):
        assert hasattr(package, name)
