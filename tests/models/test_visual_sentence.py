"""Imagining and likelihood of models of visual sentences, at toy size."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache

from kshot import Episode, Example, load_model
from kshot.errors import ContextTooLong, DataError, ModelError, OptionError
from kshot.models.base import PictureModel
from kshot.models.code_sampling import CodeSampler, Sampling, random_numbers
from kshot.models.imagining import Imaginer
from kshot.models.reserved_cache import ReservedLayer, make_cache, select_rows
from kshot.models.visual_sentence import VisualSentenceModel
from kshot.models.visual_window import plan
from kshot.picture import Picture
from tests.visual.tiny import CODES, noise, noises, tiny_llama, tiny_processor, tiny_visual_model

T = 4  # tokens of a picture


@pytest.fixture(scope="module")
def model():
    return tiny_visual_model()


def random_ids(pictures: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, CODES, (pictures * T,), generator=torch.Generator().manual_seed(seed))


def biased(towards: int) -> VisualSentenceModel:
    """A model that wants one id above all, whatever the context."""
    model = tiny_visual_model()
    head = model.model.lm_head
    head.bias = torch.nn.Parameter(torch.zeros(head.out_features))
    head.bias.data[towards] = 1e4
    return model


# --- exactness --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [0, 1, 2, CODES - 1])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_length_is_exact_whichever_code_the_model_wants(code, temperature):
    """Code 2 is the end token of the model's generation settings, as in the published LVM."""
    found = biased(code).imagine_ids([random_ids(3)], 2, 3, sampling=Sampling(temperature=temperature))[0]
    assert found.ids.shape == (3, 2, T)
    assert (found.ids == code).all()


@pytest.mark.parametrize("special", range(CODES, CODES + 4))
def test_ids_that_are_no_codes_never_come(special):
    found = biased(special).imagine_ids([random_ids(3)], 1, 8, sampling=Sampling(top_k=0))[0]
    assert found.ids.max() < CODES


def test_greedy_equals_generate(model):
    ids = random_ids(3)
    expected = model.model.generate(
        ids[None], max_new_tokens=2 * T, do_sample=False, eos_token_id=None, pad_token_id=CODES,
        suppress_tokens=list(range(CODES, CODES + 4)), attention_mask=torch.ones_like(ids[None]),
    )[0, len(ids) :]  # fmt: skip
    found = model.imagine_ids([ids], 2, sampling=Sampling(temperature=0))[0].ids
    assert found.flatten().tolist() == expected.tolist()


def test_bos_stands_in_front(model):
    ids = random_ids(3)
    shown = torch.cat([torch.tensor([model.processor.bos_token_id]), ids])[None]
    expected = model.model.generate(
        shown, max_new_tokens=T, do_sample=False, eos_token_id=None, pad_token_id=CODES,
        suppress_tokens=list(range(CODES, CODES + 4)), attention_mask=torch.ones_like(shown),
    )[0, shown.shape[1] :]  # fmt: skip
    greedy = Sampling(temperature=0)
    with_bos = model.imagine_ids([ids], sampling=greedy, bos=True)[0].ids.flatten().tolist()
    assert with_bos == expected.tolist()
    assert with_bos != model.imagine_ids([ids], sampling=greedy)[0].ids.flatten().tolist()


def test_candidates_equal_those_imagined_alone(model):
    """Whatever else is asked for, and however it is batched."""
    prompts = [random_ids(3, 1), random_ids(2, 2), random_ids(3, 3), random_ids(5, 4)]
    options = {"sampling": Sampling(seed=5)}
    together = model.imagine_ids(prompts, 2, 4, **options)
    for batch_size in (1, 3, 16):
        again = model.imagine_ids(prompts, 2, 4, batch_size=batch_size, **options)
        assert all(torch.equal(a.ids, b.ids) for a, b in zip(together, again, strict=True))
    for prompt, found in zip(prompts, together, strict=True):
        fewer = model.imagine_ids([prompt], 1, 2, **options)[0]
        assert torch.equal(fewer.ids, found.ids[:2, :1])
    assert len({tuple(row.flatten().tolist()) for found in together for row in found.ids}) > 12


def test_seed_and_key_change_the_candidates(model):
    ids = random_ids(3)
    base = model.imagine_ids([ids], 1, 4)[0].ids
    assert not torch.equal(base, model.imagine_ids([ids], 1, 4, sampling=Sampling(seed=1))[0].ids)
    assert not torch.equal(base, model.imagine_ids([ids], 1, 4, keys=["other"])[0].ids)
    torch.manual_seed(123)  # the global generator plays no part
    assert torch.equal(base, model.imagine_ids([ids], 1, 4)[0].ids)


def test_candidates_follow_the_models_distribution(model):
    """The first code of many candidates, against top-k probabilities computed by hand."""
    ids, top_k, draws = random_ids(2), 5, 4000
    logits = model.model(ids[None]).logits[0, -1, :CODES].double() / 1.5
    kept = logits.topk(top_k).indices
    expected = torch.zeros(CODES, dtype=torch.double)
    expected[kept] = logits[kept].softmax(0)
    sampler = CodeSampler(Sampling(top_k=top_k, temperature=1.5), CODES)
    numbers = torch.cat([random_numbers(0, "key", candidate, 1) for candidate in range(draws)])
    rows = model.model(ids[None]).logits[:, -1].expand(draws, -1)
    found = torch.bincount(sampler.choose(rows, numbers), minlength=CODES) / draws
    assert set(found.nonzero().flatten().tolist()) == set(kept.tolist())
    assert (found - expected).abs().max() < 4 * 0.5 / math.sqrt(draws)


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10**6), top_k=st.integers(0, CODES + 3), top_p=st.floats(0.05, 1.0), temperature=st.floats(0.1, 3.0),
    number=st.sampled_from([0.0, 0.25, 0.999, float(np.nextafter(np.float32(1), np.float32(0)))]),
)  # fmt: skip
def test_chosen_codes_have_probability(seed, top_k, top_p, temperature, number):
    """Also at the ends of the random numbers, and only codes that transformers' own processors leave."""
    logits = torch.randn(3, CODES + 4, generator=torch.Generator().manual_seed(seed)) * 4
    sampler = CodeSampler(Sampling(top_k, top_p, temperature), CODES)
    chosen = sampler.choose(logits, torch.full((3,), number))
    left = sampler.warpers(torch.empty(0, dtype=torch.long), logits[:, :CODES].clone())
    assert torch.isfinite(left.gather(1, chosen[:, None])).all()


def test_random_numbers_do_not_depend_on_how_many_are_drawn():
    assert torch.equal(random_numbers(3, "a", 1, 100)[:7], random_numbers(3, "a", 1, 7))
    assert not torch.equal(random_numbers(3, "a", 1, 7), random_numbers(3, "a", 2, 7))


# --- what is read once ------------------------------------------------------------------------------------------------------


class Reads:
    """Counts what a model reads: ``(rows, tokens)`` of each call."""

    def __init__(self, model: VisualSentenceModel):
        self.calls: list[tuple[int, int]] = []
        self.handle = model.model.register_forward_pre_hook(self.note, with_kwargs=True)

    def note(self, module, args, kwargs):
        self.calls.append(tuple(kwargs["input_ids"].shape))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.handle.remove()


def test_all_candidates_share_one_reading(model):
    with Reads(model) as reads:
        model.imagine_ids([random_ids(5)], 1, 8)
    assert reads.calls == [(1, 5 * T)] + [(8, 1)] * (T - 1)


def test_equal_beginnings_are_read_once(model):
    begin = random_ids(4, 1)
    prompts = [torch.cat([begin, random_ids(1, seed)]) for seed in (2, 3)]
    with Reads(model) as reads:
        found = model.imagine_ids(prompts, 1, 2)
    assert reads.calls == [(1, 4 * T), (2, T)] + [(4, 1)] * (T - 1)
    alone = [model.imagine_ids([prompt], 1, 2)[0].ids for prompt in prompts]
    assert all(torch.equal(a.ids, b) for a, b in zip(found, alone, strict=True))


def test_a_sliding_window_reads_common_pictures_once(model):
    """Upstream's order: fill the context, then one picture further for each frame."""
    with Reads(model) as reads:
        found = model.imagine_ids([random_ids(4)], 4, 3)[0]
    # The context holds 6: two frames behind one reading, then twice 5 pictures, of which 3 and 2 are the prompt's.
    assert [call for call in reads.calls if call[1] > 1] == [(1, 4 * T), (1, 3 * T), (3, 2 * T), (1, 2 * T), (3, 3 * T)]
    assert found.notices == (
        "the context holds 6 pictures: from new frame 3 on older ones were left out (the last frame did not see the first 2)",
    )


def test_a_sliding_window_equals_upstreams_loop(model):
    """Re-reading the last five pictures for each frame, greedily."""
    ids, all_ids = random_ids(4), random_ids(4)
    suppressed = list(range(CODES, CODES + 4))
    for count in (2, 1, 1):
        shown = all_ids[-5 * T :][None]
        all_ids = torch.cat([all_ids, model.model.generate(
            shown, max_new_tokens=count * T, do_sample=False, eos_token_id=None, pad_token_id=CODES, suppress_tokens=suppressed,
            attention_mask=torch.ones_like(shown),
        )[0, shown.shape[1] :]])  # fmt: skip
    found = model.imagine_ids([ids], 4, sampling=Sampling(temperature=0))[0].ids
    assert found.flatten().tolist() == all_ids[4 * T :].tolist()


def test_sliding_by_more_reads_less_often(model):
    with Reads(model) as reads:
        found = model.imagine_ids([random_ids(5)], 4, slide=3)[0]
    assert [call for call in reads.calls if call[1] > 1] == [(1, 5 * T), (1, 3 * T)]
    assert found.frames == 4


@given(
    pictures=st.integers(0, 40), frames=st.integers(1, 40), capacity=st.integers(2, 20), slide=st.integers(1, 6),
    group=st.integers(1, 3), overflow=st.sampled_from(["error", "drop"]),
)  # fmt: skip
def test_every_plan_fits(pictures, frames, capacity, slide, group, overflow):
    try:
        found = plan(pictures, frames, capacity, overflow=overflow, slide=slide, group=group)
    except ContextTooLong:
        assert pictures + frames > capacity
        return
    total = pictures
    for stretch in found.stretches:
        assert stretch.first + stretch.seen == total
        assert stretch.first % group == 0
        assert stretch.frames >= 1
        assert stretch.seen + stretch.frames <= capacity
        assert stretch.seen >= min(pictures, 1)
        total += stretch.frames
    assert total == pictures + frames
    dropped = any(stretch.first for stretch in found.stretches)
    assert bool(found.notices) == dropped


@torch.no_grad()
def test_the_reserved_cache_is_the_dynamic_one(model):
    ids = torch.stack([random_ids(3, 1), random_ids(3, 2)])
    ours, theirs = make_cache(model.model.config, 3 * T), DynamicCache(config=model.model.config)
    assert isinstance(ours.layers[0], ReservedLayer)
    for part in (ids[:1, :5], None, ids[:, 5:9], ids[:, 9:]):
        if part is None:
            select_rows(ours, torch.tensor([0, 0]))
            theirs.batch_select_indices(torch.tensor([0, 0]))
            continue
        a = model.model(part, past_key_values=ours, use_cache=True).logits
        b = model.model(part, past_key_values=theirs, use_cache=True).logits
        assert torch.equal(a, b)
    with pytest.raises(ValueError, match="reserved for 12"):
        model.model(ids[:, :1], past_key_values=ours, use_cache=True)


def test_models_with_a_sliding_attention_keep_transformers_cache():
    config = tiny_llama().config
    config.sliding_window = 8
    assert isinstance(make_cache(config, 10), DynamicCache)


def test_wrong_lengths_are_noticed(model, monkeypatch):
    """The assertion is not there for show."""
    monkeypatch.setattr(
        Imaginer, "_continue", lambda self, window, parts, sampler, numbers, count: window[:, : count - 1]
    )
    with pytest.raises(AssertionError, match="3 new ids instead of 1 x 4"):
        model.imagine_ids([random_ids(3)])


# --- pictures and episodes --------------------------------------------------------------------------------------------------


def test_pictures_come_out(model):
    found = model.imagine([noises(3), noises(2, 7)], 2, 3)
    assert [(f.candidates, f.frames) for f in found] == [(3, 2), (3, 2)]
    assert found[0].pixels.shape == (3, 2, 3, 8, 8)
    assert found[0].images[2][1].size == (8, 8)
    expected = model.tokenizer.to_images(found[0].ids[2])[1]
    assert np.array_equal(np.asarray(found[0].images[2][1]), np.asarray(expected))
    mean = np.mean([np.asarray(row[0], float) for row in found[0].images], axis=0)
    assert np.abs(np.asarray(found[0].average(), float) - mean).max() <= 1.0


def analogy(pairs: int, query: int = 50) -> Episode:
    demonstrations = tuple(Example(noise(n), answer=noise(10 + n), id=f"pair {n}") for n in range(pairs))
    return Episode(demonstrations, Example(noise(query), id="query"))


def test_an_episode_is_an_analogy_prompt(model):
    shown = [noise(0), noise(10), noise(1), noise(11), noise(50)]
    found = model.imagine_episodes([analogy(2)], 1, 2)[0]
    assert torch.equal(found.ids, model.imagine([shown], 1, 2)[0].ids)
    assert isinstance(model, PictureModel)
    answer = model.answer_episodes([analogy(2)])[0]
    assert isinstance(answer, Picture)
    greedy = model.imagine([shown], temperature=0)[0].images[0][0]
    assert np.array_equal(np.asarray(answer.load()), np.asarray(greedy))


def test_an_example_is_a_sequential_prompt(model):
    film = Example(tuple(noises(4)), id="film")
    assert torch.equal(model.imagine_episodes([film])[0].ids, model.imagine([noises(4)])[0].ids)


def test_only_demonstrated_codes_come(model):
    episode = analogy(2)
    answers = [example.answer for example in episode.demonstrations]
    seen = set(model.tokenizer.encode(answers).flatten().tolist())
    found = model.imagine_episodes([episode], 1, 8, allowed_codes="demonstrations", top_k=0, temperature=3.0)[0]
    assert set(found.ids.flatten().tolist()) <= seen
    assert set(model.imagine_episodes([episode], 1, 8, top_k=0, temperature=3.0)[0].ids.flatten().tolist()) - seen
    listed = model.imagine([noises(5)], 1, 8, allowed_codes=[3, 7])[0].ids.flatten()
    assert set(listed.tolist()) <= {3, 7}


def test_rows_of_one_batch_have_their_own_codes(model):
    prompts = [random_ids(3, 1), random_ids(3, 2), random_ids(3, 3)]
    allowed = [torch.tensor([1]), None, torch.tensor([4])]
    found = model.imagine_ids(prompts, 1, 4, allowed=allowed)
    assert set(found[0].ids.flatten().tolist()) == {1}
    assert set(found[2].ids.flatten().tolist()) == {4}
    assert torch.equal(found[1].ids, model.imagine_ids([prompts[1]], 1, 4)[0].ids)


def test_a_long_episode_loses_whole_demonstrations(model):
    found = model.imagine_episodes([analogy(3)], overflow="drop")[0]
    assert found.notices == ("the context holds 6 pictures: the first 2 of the prompt's 7 were left out",)
    kept = Episode(analogy(3).demonstrations[1:], analogy(3).query)
    with_key = model.imagine_episodes([kept], keys=[found.key])[0]
    assert torch.equal(found.ids, with_key.ids)


# --- likelihood -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bos", [False, True])
def test_perplexity_is_the_plain_formula(model, bos):
    contexts, targets = [noises(3), noises(2, 5), noises(3, 9)], [noises(1, 20), noises(2, 21), noises(1, 23)]
    found = model.perplexity(contexts, targets, bos=bos)
    start = [model.processor.bos_token_id] if bos else []
    for context, target, value in zip(contexts, targets, found, strict=True):
        before = start + model.tokenizer.encode(context).flatten().tolist()
        after = model.tokenizer.encode(target).flatten().tolist()
        with torch.no_grad():
            logits = model.model(torch.tensor([before + after])).logits[0].double()
        logs = logits.log_softmax(-1)  # over all ids, those that are no codes included
        nll = [-float(logs[len(before) - 1 + place, code]) for place, code in enumerate(after)]
        assert value == pytest.approx(math.exp(sum(nll) / len(nll)), rel=1e-5)


def test_perplexity_from_nothing_but_bos(model):
    nll = model.nll_ids([torch.empty(0)], [random_ids(1)], bos=True)[0]
    assert nll.shape == (T,)
    with pytest.raises(DataError, match="no context"):
        model.nll_ids([torch.empty(0)], [random_ids(1)])


def test_the_last_token_of_the_context_is_only_foreseen(model):
    """Six pictures and BOS are 25 tokens, of which 24 are read."""
    assert model.nll_ids([random_ids(5)], [random_ids(1, 2)], bos=True)[0].isfinite().all()
    with pytest.raises(ContextTooLong, match=r"5 \+ 2 pictures.*24 tokens: 6 pictures of 4 tokens"):
        model.nll_ids([random_ids(5)], [random_ids(2, 2)])


# --- loading ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    place = tmp_path_factory.mktemp("visual") / "model"
    model.model.save_pretrained(place)
    model.processor.save_pretrained(place)
    return place


def test_a_folder_is_loaded(folder, model):
    found = load_model(folder)
    assert isinstance(found, VisualSentenceModel)
    assert torch.equal(found.imagine([noises(3)], 1, 2)[0].ids, model.imagine([noises(3)], 1, 2)[0].ids)
    said = found.describe()
    assert said["architecture"] == "LlamaForCausalLM"
    assert said["visual_tokenizer"]["fingerprint"] == model.tokenizer.fingerprint
    half = load_model(folder, dtype="bfloat16", name="half", context_pictures=3, rope_table_dtype="bfloat16")
    assert (half.model.dtype, half.name, half.capacity()) == (torch.bfloat16, "half", 3)
    assert half.model.config.rope_table_dtype == "bfloat16"
    assert half.imagine([noises(2)], 1, 2)[0].ids.shape == (2, 1, T)


def test_an_adapter_is_put_into_the_language_model(folder, tmp_path):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    lora = LoraConfig(target_modules=["q_proj", "v_proj"], r=4, init_lora_weights=False)
    get_peft_model(load_model(folder).model, lora).save_pretrained(tmp_path)
    changed = load_model(folder, adapter=tmp_path)
    assert changed.describe()["adapter"] == str(tmp_path)
    ids = random_ids(3)
    found = changed.imagine_ids([ids], 1, 4)[0].ids
    assert found.shape == (4, 1, T)
    assert not torch.equal(found, load_model(folder).imagine_ids([ids], 1, 4)[0].ids)


def test_weights_without_a_processor(model, tmp_path):
    model.model.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"visual_processor\.json.*kshot convert lvm .* --tokenizer"):
        load_model(tmp_path)


def test_a_processor_of_another_model(tmp_path):
    tiny_llama(CODES + 9).save_pretrained(tmp_path / "a")
    tiny_processor().save_pretrained(tmp_path / "b")
    for name in ("visual_processor.json", "vq"):
        (tmp_path / "b" / name).rename(tmp_path / "a" / name)
    with pytest.raises(ModelError, match=r"25.*20"):
        load_model(tmp_path / "a")


def test_options_of_visual_models_are_refused_by_others():
    with pytest.raises(OptionError, match="context_pictures"):
        load_model("tiny", context_pictures=3)


# --- bad input --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"temperature": -1.0}, OptionError, "temperature"),
        ({"temperature": math.nan}, OptionError, "temperature"),
        ({"top_p": 0.0}, OptionError, "top_p"),
        ({"top_k": -1}, OptionError, "top_k"),
        ({"frames": 0}, OptionError, "frames"),
        ({"candidates": 0}, OptionError, "candidates"),
        ({"slide": 0}, OptionError, "slide"),
        ({"slide": 6, "frames": 9}, ContextTooLong, "slide by less"),
        ({"overflow": "cut"}, OptionError, "overflow"),
        ({"keys": ["a", "b"]}, OptionError, "2 keys for 1 prompts"),
        ({"names": ["a", "b"]}, OptionError, "2 names for 1 prompts"),
        ({"allowed_codes": "all"}, OptionError, "allowed_codes"),
        ({"allowed_codes": [CODES]}, OptionError, "0 to 15"),
        ({"allowed_codes": []}, OptionError, "0 to 15"),
        ({"allowed_codes": "demonstrations"}, OptionError, "prompt 1 has 4 pictures"),
    ],
)
def test_bad_options(model, options, error, message):
    with pytest.raises(error, match=message):
        model.imagine([noises(4)], **options)


def test_a_prompt_that_is_too_long(model):
    with pytest.raises(ContextTooLong, match=r"prompt 1: a prompt of 6 pictures.*holds 6.*use at most 5.*24 tokens"):
        model.imagine([noises(6)])
    found = model.imagine([noises(8)], overflow="drop")[0]
    assert "first 3 of the prompt's 8" in found.notices[0]
    assert torch.equal(found.ids, model.imagine([noises(5, 3)], keys=[found.key])[0].ids)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.arange(6), "no whole pictures"),
        (torch.full((T,), CODES), "outside the codes"),
        (torch.full((T,), -1), "outside the codes"),
        (torch.empty(0, dtype=torch.long), "without pictures"),
    ],
)
def test_bad_ids(model, ids, message):
    with pytest.raises(DataError, match=message):
        model.imagine_ids([ids])


def test_bad_episodes(model):
    texts = Episode((Example(noise(0), answer="red", id="told"),), Example(noise(1)))
    with pytest.raises(DataError, match="'told' has a text"):
        model.imagine_episodes([texts])
    unanswered = Episode((Example(noise(0), id="mute"),), Example(noise(1)))
    with pytest.raises(DataError, match="'mute' has no answer"):
        model.imagine_episodes([unanswered])
    uneven = Episode((Example(noises(2), answer=noise(3)),), Example(noise(1)))
    with pytest.raises(DataError, match="query has 1 pictures, but its demonstrations 2"):
        model.imagine_episodes([uneven])
    with pytest.raises(DataError, match="no picture"):
        model.imagine_episodes([Example((), id="nothing")])
    with pytest.raises(DataError, match="single picture"):
        model.imagine(["one.png"])


def test_parts_that_do_not_belong_together():
    with pytest.raises(ModelError, match="vocabulary of 10"):
        VisualSentenceModel(tiny_llama(10), tiny_processor())
    with pytest.raises(ModelError, match="not even two pictures"):
        VisualSentenceModel(tiny_llama(positions=6), tiny_processor())
    with pytest.raises(OptionError, match="context_pictures"):
        tiny_visual_model(context_pictures=1)
