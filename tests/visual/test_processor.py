"""Visual sentences to ids and back, and the files beside a language model's weights."""

from __future__ import annotations

import json

import pytest
import torch

from kshot.errors import DataError, ModelError, OptionError
from kshot.visual.processor import VisualSentenceProcessor
from kshot.visual.tokenizer import VisualTokenizer
from tests.visual.vq import make_vq, pictures


@pytest.fixture(scope="module")
def processor():
    return VisualSentenceProcessor(VisualTokenizer(make_vq()))


def test_special_ids_follow_the_codes(processor):
    assert (processor.bos_token_id, processor.eos_token_id, processor.pad_token_id) == (64, 65, 66)
    assert processor.vocab_size == 164
    assert VisualSentenceProcessor(processor.tokenizer, 67).vocab_size == 67
    with pytest.raises(OptionError, match="66 ids has no room for 64 codes and 3 special ids"):
        VisualSentenceProcessor(processor.tokenizer, 66)


def test_sentences(processor):
    images = pictures(3)
    codes = processor.tokenizer.encode(images)
    found = processor([images[:2], images[2:]], bos=True, eos=True)
    ids, mask = found["input_ids"], found["attention_mask"]
    assert (tuple(ids.shape), ids.dtype, mask.dtype) == ((2, 130), torch.int64, torch.int64)
    assert ids[0].tolist() == [64, *codes[:2].flatten().tolist(), 65]
    assert ids[1].tolist() == [64, *codes[2].tolist(), 65] + [66] * 64
    assert mask.sum(1).tolist() == [130, 66]
    assert torch.equal(mask == 0, ids == 66)
    left = processor([images[:2], images[2:]], padding_side="left")
    assert left["input_ids"][1].tolist() == [66] * 64 + codes[2].tolist()
    assert left["attention_mask"][1].tolist() == [0] * 64 + [1] * 64
    assert tuple(processor([])["input_ids"].shape) == (0, 0)
    assert processor([[]], bos=True)["input_ids"].tolist() == [[64]]


def test_round_trip(processor):
    images = pictures(2)
    ids = processor([images], bos=True, eos=True)["input_ids"][0]
    wanted = processor.tokenizer.to_images(processor.tokenizer.encode(images))
    for form in (ids, ids.tolist(), ids.int()):
        assert [image.tobytes() for image in processor.decode(form)] == [image.tobytes() for image in wanted]
    assert processor.decode([]) == []
    assert processor.decode([64, 65, 66]) == []


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([0] * 63, "63 codes are no whole number of pictures: each is 64, and 63 are left over"),
        ([64] + [0] * 65, "65 codes are no whole number"),
        ([0] * 64 + [67], "id 67 at place 64 is no code .0 to 63. and none of the special ids 64 to 66"),
        ([-1] * 64, "id -1 at place 0"),
        ([0.5] * 64, "not integers"),
        (torch.zeros(1, 64, dtype=torch.long), "ids of one sentence"),
    ],
)
def test_wrong_ids(processor, ids, message):
    with pytest.raises(DataError, match=message):
        processor.decode(ids)


def test_wrong_sentences(processor):
    with pytest.raises(DataError, match=r"sentence 0 is a \w*Image"):
        processor(pictures(1))
    with pytest.raises(OptionError, match="padding_side"):
        processor([pictures(1)], padding_side="middle")


def test_saved_beside_a_model(processor, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 164}))
    processor.save_pretrained(tmp_path)
    names = {"config.json", "diffusion_pytorch_model.safetensors"}
    assert names <= {path.name for path in (tmp_path / "vq").iterdir()}
    loaded = VisualSentenceProcessor.from_pretrained(tmp_path)
    images = pictures(2)
    assert torch.equal(loaded([images])["input_ids"], processor([images])["input_ids"])
    assert (loaded.vocab_size, loaded.tokenizer.size, loaded.tokenizer.resize) == (164, 32, "squash")
    record = json.loads((tmp_path / "visual_processor.json").read_text())
    assert (record["bos_token_id"], record["eos_token_id"], record["pad_token_id"]) == (64, 65, 66)
    processor.save_pretrained(tmp_path)  # over itself


def test_what_does_not_belong_together(processor, tmp_path):
    def refuses(message):
        with pytest.raises(ModelError, match=message):
            VisualSentenceProcessor.from_pretrained(tmp_path)

    refuses("has no visual_processor.json")
    processor.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 8292}))
    refuses("vocabulary of 8292 ids, but its visual processor one of 164")
    with pytest.raises(ModelError, match="do not belong together"):
        processor.save_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()

    VisualTokenizer(make_vq(seed=1)).save_pretrained(tmp_path / "vq")
    refuses("is not the tokenizer that visual_processor.json was saved with")
    processor.tokenizer.save_pretrained(tmp_path / "vq")
    path = tmp_path / "visual_processor.json"
    record = json.loads(path.read_text())
    for changes, message in [
        (
            {"codes": 128, "bos_token_id": 128, "eos_token_id": 129, "pad_token_id": 130},
            "codebook of 64, but .* one of 128",
        ),
        ({"bos_token_id": 1}, "names other special ids than"),
        ({"format": 2}, "format 2, this kshot reads format 1"),
        ({"size": "x"}, "damaged"),
        ({"vocab_size": None}, "damaged"),
    ]:
        path.write_text(json.dumps(record | changes))
        refuses(message)
    path.write_text("[]")
    refuses("damaged")
    path.write_text(json.dumps(record))
    (tmp_path / "vq" / "diffusion_pytorch_model.safetensors").unlink()
    refuses("has no diffusion_pytorch_model.safetensors")
    (tmp_path / "vq").rename(tmp_path / "moved")
    refuses("not the tokenizer's folder vq/")
