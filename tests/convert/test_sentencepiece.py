"""Reading LLaMA's vocabulary without the sentencepiece library.

``sentencepiece/llama_like.model`` was trained by that library (0.2.3) on the project's own documentation with LLaMA's settings (700
pieces); ``cases.json`` has what its ``encode`` gives for texts.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kshot.convert.sentencepiece import llama_tokenizer, read_sentencepiece
from kshot.errors import ModelError
from tests.convert.vocabulary import PIECES, split, write_sentencepiece

HERE = Path(__file__).parent / "sentencepiece"


def test_ids_are_those_of_the_library():
    tokenizer = llama_tokenizer(HERE / "llama_like.model")
    cases = json.loads((HERE / "cases.json").read_text(encoding="utf-8"))
    assert len(cases) > 30
    for case in cases:
        assert tokenizer.encode(case["text"], add_special_tokens=False).ids == case["ids"], case["text"]
        assert tokenizer.decode(case["ids"]) == case["text"]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocabulary") / "tokenizer.model"
    write_sentencepiece(path)
    return llama_tokenizer(path)


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet=st.sampled_from([*"aeinstghUSER ?.:", "ß", "\n", "▁"]), min_size=1, max_size=30))
def test_any_text_is_joined_by_the_rules(small, text):
    assert small.encode(text, add_special_tokens=False).ids == split(text)


def test_pieces_and_special_tokens(tmp_path):
    write_sentencepiece(tmp_path / "tokenizer.model")
    model = read_sentencepiece(tmp_path / "tokenizer.model")
    assert [(p.text, p.kind) for p in model.pieces] == [(text, kind) for text, _, kind in PIECES]
    assert (model.unk, model.bos, model.eos, model.bpe, model.plain) == (0, 1, 2, True, True)


@pytest.mark.parametrize("options", [{"kind": 1}, {"keep_spaces": False}])
def test_other_vocabularies_are_refused(tmp_path, options):
    write_sentencepiece(tmp_path / "tokenizer.model", **options)
    with pytest.raises(ModelError, match=r"tokenizer\.model is not of LLaMA's kind"):
        llama_tokenizer(tmp_path / "tokenizer.model")


@settings(max_examples=25, deadline=None)
@given(data=st.binary(max_size=60), cut=st.integers(1, 3000))
def test_damaged_files_are_refused(tmp_path_factory, data, cut):
    path = tmp_path_factory.mktemp("damaged") / "tokenizer.model"
    write_sentencepiece(path)
    whole = path.read_bytes()
    for content in (data, whole[:-cut], data + whole):
        path.write_bytes(content)
        with suppress(ModelError):  # nothing else may come out of it
            assert read_sentencepiece(path).pieces  # cut between two fields, it is a smaller file of the same kind
