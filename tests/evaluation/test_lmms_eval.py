"""The bridge to lmms-eval, against its own registry, requests and task classes; skipped where it is not installed."""

from __future__ import annotations

import importlib
import json

import numpy as np
import pytest
import torch
from PIL import Image

from kshot import Episode, Example
from kshot.errors import DataError, MissingExtra, OptionError
from tests.models.tiny import picture

try:
    import lmms_eval.api.model
    import lmms_eval.models  # noqa: F401
except ImportError as error:
    reason = f"lmms-eval cannot be imported: {error}"
else:
    reason = ""
needs_lmms_eval = pytest.mark.skipif(bool(reason), reason=reason)

COLOURS = {"red": (220, 30, 30), "blue": (30, 30, 220)}
DOCUMENTS = [{"image": picture(i, (64, 64)), "question": "what is it?", "answer": "red"} for i in range(3)]


@pytest.mark.skipif(not reason, reason="lmms-eval is installed")
def test_without_it_the_extra_is_named():
    with pytest.raises(MissingExtra, match=r"kshot\[lmms-eval\]"):
        importlib.import_module("kshot.evaluation.lmms_eval")


@pytest.fixture(scope="module")
def support(tmp_path_factory):
    folder = tmp_path_factory.mktemp("support")
    lines = []
    for number in range(6):
        name = list(COLOURS)[number % 2]
        Image.new("RGB", (64, 64), COLOURS[name]).save(folder / f"{number}.png")
        lines.append({"image": f"{number}.png", "question": "what is it?", "answer": name})
    (folder / "support.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    return folder / "support.jsonl"


@pytest.fixture(scope="module")
def bridge(support):
    if reason:
        pytest.skip(reason)
    from lmms_eval.models import get_model

    made = get_model("kshot").create_from_arg_string(
        f"pretrained=tiny,shots=4,support={support},style=plain", {"batch_size": 2, "device": "cpu"}
    )
    made.task_dict = {"toy": {"test": DOCUMENTS}}
    return made


def visuals(document):
    return [document["image"].convert("RGB")]


def requests(kind, *arguments):
    from lmms_eval.api.instance import Instance

    return [
        Instance(
            request_type=kind,
            arguments=given,
            idx=0,
            metadata={"task": "toy", "doc_id": number, "repeats": 1},
        )
        for number, given in enumerate(arguments)
    ]


def generation(settings, number=0, context="what is it?", shown=visuals):
    return (context, settings, shown, number, "toy", "test")


def shown_to(bridge, number):
    """The episode that a request is to become, made of the support file's lines."""
    query = Example((DOCUMENTS[number]["image"],), "what is it?", id=f"toy/test/{number}")
    places = bridge.retriever.choose(query, bridge.pool, 4, bridge.retriever.generator(0, 4, query))
    return Episode(tuple(bridge.pool[place] for place in places), query)


@needs_lmms_eval
def test_texts_are_those_of_kshot_on_the_same_episodes(bridge):
    from kshot.evaluation.lmms_eval import TEMPLATE

    found = bridge.generate_until(
        requests("generate_until", *(generation({"max_new_tokens": 4, "until": ["\n"]}, i) for i in range(3)))
    )
    episodes = [shown_to(bridge, i) for i in range(3)]
    assert all(episode.shots == 4 for episode in episodes)
    plain = bridge.vlm.answer(episodes, template=TEMPLATE, style="plain", max_new_tokens=4, stop=["\n"])
    assert found == [text.split("\n")[0].strip() for text in plain]
    assert any(found)


@needs_lmms_eval
def test_settings_differ_from_request_to_request_and_answers_keep_their_places(bridge):
    one, four = {"max_new_tokens": 1}, {"max_new_tokens": 4, "num_beams": 2}
    both = bridge.generate_until(
        requests("generate_until", generation(four, 0), generation(one, 1), generation(four, 2))
    )
    alone = [
        bridge.generate_until(requests("generate_until", generation(settings, number)))[0]
        for number, settings in enumerate((four, one, four))
    ]
    assert both == alone


@needs_lmms_eval
def test_the_loss_is_the_mean_over_the_answers_tokens_and_orders_options_as_scores_do(bridge):
    from kshot.evaluation.lmms_eval import TEMPLATE

    options = ["red", "blue", "green circle"]
    found = bridge.loglikelihood(
        requests("loglikelihood", *(("what is it?", f" {text}", visuals, 0, "toy", "test") for text in options))
    )
    expected = bridge.vlm.score([shown_to(bridge, 0)], options, template=TEMPLATE, style="plain", normalize=True)[0]
    np.testing.assert_allclose([-loss for loss, _ in found], expected, atol=1e-4)
    for text, (_, greedy) in zip(options, found, strict=True):
        encoded = bridge.vlm.encode(shown_to(bridge, 0), TEMPLATE, "plain", answer=text)
        with torch.no_grad():
            logits = bridge.vlm.model(**bridge.vlm.inputs([encoded])).logits[0]
        ids, mask = encoded.tokens.ids, encoded.tokens.answer_mask()
        says = [int(logits[place - 1].argmax()) == ids[place] for place, wanted in enumerate(mask) if wanted]
        assert greedy == all(says)


@needs_lmms_eval
def test_targets_may_be_functions_of_the_document_and_contexts_may_stand_alone(bridge):
    wanted = bridge.loglikelihood(
        requests("loglikelihood", ("what is it?", lambda document: document["answer"], visuals, 1, "toy", "test"))
    )
    assert wanted == bridge.loglikelihood(requests("loglikelihood", ("what is it?", "red", visuals, 1, "toy", "test")))
    assert len(bridge.loglikelihood(requests("loglikelihood", ("", "red")))[0]) == 2


@needs_lmms_eval
def test_image_marks_in_a_text_are_taken_out_with_a_word(bridge, caplog):
    settings = {"max_new_tokens": 2}
    marked = bridge.generate_until(requests("generate_until", generation(settings, context="<image>\nwhat is it?")))
    assert "1 texts held <image>" in caplog.text
    assert marked == bridge.generate_until(requests("generate_until", generation(settings)))


@needs_lmms_eval
def test_what_cannot_be_asked_is_refused(bridge, support, caplog):
    from kshot.evaluation.lmms_eval import KshotModel

    with pytest.raises(DataError, match="document 0 of toy shows a str"):
        bridge.generate_until(requests("generate_until", generation({}, shown=lambda document: ["film.mp4"])))
    with pytest.raises(OptionError, match="several rounds"):
        bridge.generate_until_multi_round([])
    with pytest.raises(OptionError, match="give both, or neither"):
        KshotModel("tiny", shots=2)
    with pytest.raises(OptionError, match="holds 6 examples"):
        KshotModel("tiny", shots=7, support=str(support))
    bridge.generate_until(
        requests("generate_until", generation({"do_sample": True, "temperature": 0.7, "max_new_tokens": 1}))
    )
    assert "greedy here" in caplog.text


@needs_lmms_eval
def test_an_adapter_acts(bridge, tmp_path):
    from lmms_eval.models import get_model
    from peft import get_peft_model

    from kshot import load_model
    from kshot.methods import LiveConfig
    from tests.methods.common import perturb

    model = get_peft_model(load_model("tiny").model, LiveConfig())
    perturb(model, size=1.0)
    model.save_pretrained(tmp_path)
    made = get_model("kshot").create_from_arg_string(f"pretrained=tiny,adapter={tmp_path},style=plain", {})
    bare = get_model("kshot").create_from_arg_string("pretrained=tiny,style=plain", {})
    asked = requests("loglikelihood", ("what is it?", "red", visuals, 0, "toy", "test"))
    made.task_dict = bare.task_dict = bridge.task_dict
    assert abs(made.loglikelihood(asked)[0][0] - bare.loglikelihood(asked)[0][0]) > 1e-3
