"""Training-free methods against their papers' formulas, written here with hooks of our own, and where in a prompt they act."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from peft import PeftModel, get_peft_model

from kshot import load_model, load_task
from kshot.data.demonstrations import choose
from kshot.episode import Episode, Example
from kshot.errors import DataError, OptionError
from kshot.methods import methods, mtv
from kshot.methods.fit import draw, fit_method
from kshot.methods.icv import direction
from kshot.models.anatomy import examine
from kshot.models.vlm import VLM
from tests.methods.common import CUE, adapted, base, config_of, fresh, logits, perturb
from tests.models import tiny
from tests.models.test_families import QA, example

FREE = [name for name in methods if methods.get(name).estimate is not None]
QUICK = {"i2cl": {"steps": 2}, "mtv": {"iterations": 2, "rollouts": 2}, "function_vector": {"prompts": 2, "heads": 2}}
SUPPORT = [
    example(i, answer, f"what is number {i}?") for i, answer in enumerate(["red", "two", "green", "red", "two", "blue"])
]
SHAPE = {"shots": 2, "samples": 4, "template": QA, "style": "plain"}


def model_of(family: str = "llava") -> VLM:
    return VLM(fresh(family), tiny.build(family)[1])


def prompts(vlm: VLM, episodes, answers: bool = False):
    return [vlm.encode(e, QA, "plain", answer=e.query.text_answer if answers else None) for e in episodes]


@torch.no_grad()
def last_states(vlm: VLM, module, episodes, of_input: bool = False) -> torch.Tensor:
    """Output (or input) of a module at the last token of each prompt, one prompt at a time, without padding."""
    found = []

    def keep(module, given, output):
        found.append((given[0] if of_input else output if isinstance(output, torch.Tensor) else output[0])[0, -1])

    handle = module.register_forward_hook(keep)
    for prompt in prompts(vlm, episodes):
        vlm.model(**vlm.inputs([prompt]))
    handle.remove()
    return torch.stack(found)


def parameters(model: PeftModel) -> dict[str, torch.Tensor]:
    """Parameters of the adapter by layer number and name."""
    held = {}
    for name, value in model.named_parameters():
        if ".shift_" in name:
            held[name.split(".layers.")[1].split(".")[0], name.split(".")[-2]] = value.detach()
    return held


@pytest.fixture(scope="module")
def episodes() -> list[Episode]:
    return draw(SUPPORT, shots=2, samples=4, seed=0)


@pytest.mark.parametrize("method", FREE)
def test_fitted_saved_loaded_switched_off(method, tmp_path):
    _, inputs, _ = base("llava")
    expected = logits(base("llava")[0], inputs)
    vlm = model_of()
    model = fit_method(vlm, method, SUPPORT, **SHAPE, **QUICK.get(method, {}))
    with_method = logits(vlm.model, inputs)
    assert torch.isfinite(with_method).all()
    assert not torch.equal(with_method, expected)
    assert not any(p.requires_grad for p in model.parameters())
    with model.disable_adapter():
        assert torch.equal(logits(vlm.model, inputs), expected)
    model.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    if "cue" in written:
        assert written["cue"] == CUE
    loaded = PeftModel.from_pretrained(fresh("llava"), tmp_path).eval()
    assert torch.equal(logits(loaded.get_base_model(), inputs), with_method)
    again = model_of()
    other = fit_method(again, method, SUPPORT, **SHAPE, **QUICK.get(method, {}))
    assert all(torch.equal(value, parameters(model)[name]) for name, value in parameters(other).items())
    plain = model.unload()
    assert torch.equal(logits(plain, inputs), expected)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("task_vector", {"strength": 0.0}),
        ("function_vector", {"strength": 0.0}),
        ("icv", {"strength": 0.0}),
        ("i2cl", {"injected": 0.0, "kept": 1.0}),
        ("mtv", {"strength": 0.0}),
    ],
)
def test_without_strength_it_is_the_base_model(method, options):
    model, inputs, _ = base("llava")
    found = get_peft_model(fresh("llava"), config_of(method, **options)).eval()
    for name, parameter in found.named_parameters():
        if ".shift_" in name and "mixture" not in name:
            parameter.data.normal_()
    assert torch.equal(logits(found.get_base_model(), inputs), logits(model, inputs))


@pytest.mark.parametrize(
    ("method", "count"),
    [
        # Sizes of Idefics2-8B's decoder, and counts of arXiv 2610.07572's comparison.
        ("icv", lambda L, d, H: L * d),
        ("task_vector", lambda L, d, H: d),
        ("function_vector", lambda L, d, H: d),
        ("mtv", lambda L, d, H: L * d),
        ("i2cl", lambda L, d, H: 2 * d * L + 4 * L),
        ("stave", lambda L, d, H: 2 * d),
        ("hificl", lambda L, d, H: L * H * 2 * (8 * 8 + 8 * d // H)),
        ("mimic", lambda L, d, H: L * (2 * d + H)),
        ("live", lambda L, d, H: L * (d + 1)),
    ],
)
def test_numbers_of_parameters_are_the_published_ones(method, count):
    published = {"icv": 131_072, "mtv": 131_072, "task_vector": 4_096, "function_vector": 4_096, "i2cl": 262_272}
    published |= {"stave": 8_192, "hificl": 2_228_224, "mimic": 263_168, "live": 131_104}
    assert count(32, 4096, 32) == published[method]
    options = {"layers": [0]} if method in ("task_vector", "function_vector") else {}
    model = get_peft_model(fresh("llava"), methods.get(method).config(**options))
    anatomy = examine(base("llava")[0])
    held = sum(p.numel() for name, p in model.named_parameters() if ".shift_" in name)
    assert held == count(len(anatomy.layers), anatomy.hidden_size, anatomy.heads)


def test_a_task_vector_is_the_mean_state_and_takes_the_place_of_the_querys(episodes):
    vlm = model_of()
    layer = vlm.anatomy.layers[0]
    expected = last_states(vlm, layer, episodes[:2]).mean(0)
    query = prompts(vlm, [Episode((), episodes[3].query)], answers=True)
    inputs = vlm.inputs(query)
    place = query[0].tokens.span("answer")[0] - 1  # the prompt's last token; the answer follows

    def patch(module, given, output):
        output = output.clone()
        output[0, place] = expected
        return output

    handle = layer.register_forward_hook(patch)
    by_hand = logits(vlm.model, inputs)
    handle.remove()
    model = fit_method(vlm, "task_vector", SUPPORT, layers=[0], **SHAPE)
    torch.testing.assert_close(parameters(model)["0", "task_vector_state"], expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(logits(vlm.model, inputs), by_hand, rtol=0, atol=1e-4)


def test_the_layer_is_the_one_that_makes_held_out_answers_most_probable(episodes):
    chosen = fit_method(model_of(), "task_vector", SUPPORT, **SHAPE).peft_config["default"].layers
    scores = {}
    for number in (0, 1):
        vlm = model_of()
        fit_method(vlm, "task_vector", SUPPORT, layers=[number], **SHAPE)
        bare = [Episode((), e.query) for e in episodes[2:]]
        answers = [[e.query.text_answer] for e in bare]
        scores[number] = sum(row[0] for row in vlm.score(bare, answers, template=QA, style="plain"))
    assert abs(scores[0] - scores[1]) > 1e-3
    assert chosen == [max(scores, key=scores.__getitem__)]


def test_icv_is_the_first_principal_direction_added_with_the_old_length(episodes):
    vlm = model_of()
    bare = [Episode((), e.query) for e in episodes[:2]]
    layers = vlm.anatomy.layers
    moved = [last_states(vlm, layer, episodes[:2]) - last_states(vlm, layer, bare) for layer in layers]
    inputs = vlm.inputs(prompts(vlm, bare[:1]))
    vectors = []
    for differences in moved:
        _, basis = torch.linalg.eigh((differences.T @ differences).double())
        unit = basis[:, -1].float()
        vectors.append(unit * (differences @ unit).mean())  # the sign cancels

    def shift(vector):
        def hook(module, given, output):
            moved = output + 0.7 * vector
            return moved * output.norm(dim=-1, keepdim=True) / moved.norm(dim=-1, keepdim=True)

        return hook

    handles = [layer.register_forward_hook(shift(v)) for layer, v in zip(layers, vectors, strict=True)]
    by_hand = logits(vlm.model, inputs)
    for handle in handles:
        handle.remove()
    model = fit_method(vlm, "icv", SUPPORT, strength=0.7, **SHAPE)
    for number, vector in enumerate(vectors):
        found = parameters(model)[str(number), "icv_vector"]
        torch.testing.assert_close(found, vector, rtol=0, atol=1e-4 * float(vector.norm()))
    torch.testing.assert_close(logits(vlm.model, inputs), by_hand, rtol=0, atol=1e-4)


def test_the_principal_direction_is_not_centred_and_points_where_the_differences_do():
    random = torch.Generator().manual_seed(0)
    along = torch.nn.functional.normalize(torch.randn(12, generator=random), dim=0)
    differences = -5 * along + 0.1 * torch.randn(20, 12, generator=random)
    found = direction(differences)
    assert float(found @ -along) > 0.999  # of the centred differences it would be any direction of the noise
    assert abs(float(found.norm()) - 1) < 1e-6


def test_heads_are_ranked_by_their_causal_effect_and_summed_through_the_output_projection(episodes):
    from kshot.methods.function_vector import indirect_effects, shuffled
    from kshot.methods.heads import head_maps, mean_heads

    vlm = model_of()
    attention = vlm.anatomy.attention[1]
    heads, width = 4, 16
    clean = last_states(vlm, attention.o_proj, episodes[:2], of_input=True).mean(0)
    other = shuffled(episodes[0], 0)
    assert sorted(d.answer for d in other.demonstrations) == sorted(d.answer for d in episodes[0].demonstrations)
    encoded = prompts(vlm, [other])[0]
    target = prompts(vlm, [other], answers=True)[0].tokens
    target = target.ids[target.span("answer")[0]]

    @torch.no_grad()
    def probability(head):
        def patch(module, given):
            states = given[0].clone()
            if head is not None:
                states[0, -1, head * width : (head + 1) * width] = clean[head * width : (head + 1) * width]
            return (states,)

        handle = attention.o_proj.register_forward_pre_hook(patch)
        found = vlm.model(**vlm.inputs([encoded])).logits[0, -1].softmax(-1)[target]
        handle.remove()
        return float(found)

    effects = [probability(head) - probability(None) for head in range(heads)]
    material = SimpleNamespace(
        vlm=vlm, shown=episodes[:2], seed=0, batch_size=3, anatomy=vlm.anatomy,
        encoded=lambda some, answers=False: prompts(vlm, some, answers),
    )  # fmt: skip
    material.input_ends = lambda modules, some: [last_states(vlm, m, some, of_input=True) for m in modules]
    maps = head_maps(config_of("function_vector"), vlm.anatomy)
    means = mean_heads(material, maps)
    found = indirect_effects(material, maps, means, 1)[1]
    torch.testing.assert_close(found, torch.tensor(effects, dtype=torch.float64), rtol=0, atol=1e-7)
    assert max(map(abs, effects)) > 1e-5
    # The demonstrations were read once, unpatched.
    assert vlm.reuse.no_prefix is None
    assert vlm.reuse.statistics()["prefixes"]["misses"] == 1

    all_heads = {"heads": 8, "prompts": 1, "layers": [0]}
    model = fit_method(vlm, "function_vector", SUPPORT, **SHAPE, **all_heads)
    total = sum(m.o_proj.weight @ means[n].flatten() for n, m in enumerate(vlm.anatomy.attention))
    torch.testing.assert_close(parameters(model)["0", "function_vector_sum"], total.detach(), rtol=0, atol=1e-5)


def test_i2cl_mixes_mean_activations_of_demonstrations_read_alone(episodes):
    vlm = model_of()
    used = {d.id: d for e in episodes[:2] for d in e.demonstrations}
    alone = [Episode((), d) for d in used.values()]
    query = vlm.inputs(prompts(vlm, [Episode((), episodes[3].query)]))
    parts, means = [], []
    for layer in vlm.anatomy.layers:
        for module in (layer.self_attn, layer.mlp):
            kept = []
            handle = module.register_forward_hook(
                lambda m, given, out, kept=kept: kept.append((out if isinstance(out, torch.Tensor) else out[0])[0, -1])
            )
            for prompt in prompts(vlm, alone, answers=True):
                with torch.no_grad():
                    vlm.model(**vlm.inputs([prompt]))
            handle.remove()
            parts.append(module)
            means.append(torch.stack(kept).mean(0))

    def mix(mean):
        def hook(module, given, output):
            own = output if isinstance(output, torch.Tensor) else output[0]
            mixed = 0.3 * mean + 0.8 * own
            return mixed if isinstance(output, torch.Tensor) else (mixed, *output[1:])

        return hook

    handles = [module.register_forward_hook(mix(mean)) for module, mean in zip(parts, means, strict=True)]
    by_hand = logits(vlm.model, query)
    for handle in handles:
        handle.remove()
    fit_method(vlm, "i2cl", SUPPORT, injected=0.3, kept=0.8, steps=0, **SHAPE)
    torch.testing.assert_close(logits(vlm.model, query), by_hand, rtol=0, atol=1e-5)


def test_calibration_makes_the_support_sets_answers_more_probable_and_moves_coefficients_only(episodes):
    scores, vectors = [], []
    for steps in (0, 12):
        vlm = model_of()
        model = fit_method(vlm, "i2cl", SUPPORT, steps=steps, learning_rate=0.03, **SHAPE)
        bare = [Episode((), e.query) for e in episodes]
        rows = vlm.score(bare, [[e.query.text_answer] for e in bare], template=QA, style="plain")
        scores.append(sum(row[0] for row in rows))
        vectors.append({name: value for name, value in parameters(model).items() if "mixture" not in name[1]})
        mixtures = [value for name, value in parameters(model).items() if "mixture" in name[1]]
        assert all(value.tolist() == pytest.approx([0.1, 1.0]) for value in mixtures) == (steps == 0)
    assert scores[1] > scores[0] + 0.05
    assert all(torch.equal(value, vectors[1][name]) for name, value in vectors[0].items())


def test_reinforce_finds_the_heads_that_help(monkeypatch):
    """Head 1 of layer 0 is worth something, head 2 of layer 1 costs something, the others nothing."""
    tried = []

    class Replaced:
        def __init__(self, maps, means, gates, from_end):
            tried.append(gates)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            return None

    monkeypatch.setattr(mtv, "replaced", Replaced)
    reward = lambda vlm, batch: tried[-1][0][:, 1] - 2 * tried[-1][1][:, 2]  # noqa: E731
    monkeypatch.setattr(mtv, "answer_log_probabilities", reward)
    monkeypatch.setattr(mtv, "answer_length", lambda prompt: 1)
    material = SimpleNamespace(vlm=None, held_out=[Episode((), SUPPORT[0])], encoded=lambda some, answers: ["prompt"])
    maps = {0: (None, 4, 16), 1: (None, 4, 16)}
    found = mtv.find_heads(material, mtv.MtvConfig(iterations=40, rollouts=8), maps, {})
    assert [0, 1] in found
    assert [1, 2] not in found


def test_mtv_puts_mean_outputs_in_the_place_of_chosen_heads_alone(episodes):
    vlm = model_of()
    projection = vlm.anatomy.attention[1].o_proj
    mean = last_states(vlm, projection, episodes[:2], of_input=True).mean(0)
    query = prompts(vlm, [Episode((), episodes[3].query)], answers=True)
    place = query[0].tokens.span("answer")[0] - 1

    def patch(module, given):
        states = given[0].clone()
        states[0, place, 32:48] = mean[32:48]  # head 2, of width 16
        return (states,)

    handle = projection.register_forward_pre_hook(patch)
    by_hand = logits(vlm.model, vlm.inputs(query))
    handle.remove()
    fit_method(vlm, "mtv", SUPPORT, heads=[[1, 2]], **SHAPE)
    torch.testing.assert_close(logits(vlm.model, vlm.inputs(query)), by_hand, rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", ["task_vector", "function_vector", "mtv", "stave"])
def test_it_acts_at_the_same_token_whether_or_not_the_answer_and_the_demonstrations_are_read_with_it(method):
    model = adapted("llava", method).get_base_model()
    episodes = [Episode(tuple(SUPPORT[:2]), query) for query in SUPPORT[3:]]
    answers = [["red", "two"]] * len(episodes)
    rows = {}
    for reuse in (True, False):
        vlm = VLM(model, tiny.build("llava")[1], prefix_cache=reuse)
        rows[reuse] = vlm.score(episodes, answers, template=QA, style="plain")
        assert (vlm.reuse.statistics()["prefixes"]["misses"] > 0) == reuse  # read once, or not at all
        assert vlm.reuse.no_prefix is None  # the check of equal logits did not switch it off
        if not reuse:
            asked, answered = prompts(vlm, episodes[:1])[0], prompts(vlm, episodes[:1], answers=True)[0]
            end = len(asked) - 1
            expected = logits(model, vlm.inputs([asked]))[0, end]
            torch.testing.assert_close(logits(model, vlm.inputs([answered]))[0, end], expected, rtol=0, atol=1e-5)
    assert rows[True] == [pytest.approx(row, abs=1e-4) for row in rows[False]]


def test_padding_on_the_right_changes_nothing():
    for cue in (CUE, None):
        model = get_peft_model(fresh("llava"), config_of("task_vector", cue=cue)).eval()
        perturb(model)
        _, _, alone = base("llava")
        length = alone["input_ids"].shape[1]
        longer = dict(alone)
        longer["input_ids"] = torch.nn.functional.pad(alone["input_ids"], (0, 3))
        longer["attention_mask"] = torch.nn.functional.pad(alone["attention_mask"], (0, 3))
        longer["position_ids"] = torch.arange(length + 3)[None]
        found = logits(model.get_base_model(), longer)[:, :length]
        torch.testing.assert_close(found, logits(model.get_base_model(), alone), rtol=0, atol=1e-5)


def test_what_cannot_be_fitted_is_refused():
    vlm = model_of()
    with pytest.raises(OptionError, match="trained"):
        fit_method(vlm, "live", SUPPORT)
    with pytest.raises(OptionError, match="no option 'strenght'"):
        fit_method(vlm, "icv", SUPPORT, strenght=1.0, **SHAPE)
    with pytest.raises(OptionError, match="too few"):
        fit_method(vlm, "icv", SUPPORT, **SHAPE | {"samples": 7})
    with pytest.raises(OptionError, match="too few"):
        fit_method(vlm, "icv", SUPPORT, **SHAPE | {"shots": 6})
    with pytest.raises(OptionError, match="shots"):
        fit_method(vlm, "icv", SUPPORT, **SHAPE | {"shots": 0})
    with pytest.raises(DataError, match="no answer"):
        fit_method(vlm, "icv", [Episode((), Example(SUPPORT[0].images, "what?"))] * 2, **SHAPE)
    with pytest.raises(DataError, match="no support set"):
        fit_method(vlm, "icv", load_task("scenes", labels="invented"))
    fit_method(vlm, "icv", SUPPORT, strength=1.0, **SHAPE)
    with pytest.raises(OptionError, match="an adapter already"):
        fit_method(vlm, "icv", SUPPORT, **SHAPE)


def test_demonstrations_are_never_the_query_and_depend_on_the_seed():
    drawn = draw(SUPPORT, shots=3, samples=6, seed=1)
    assert len({e.query.id for e in drawn}) == 6
    assert all(e.query.id not in {d.id for d in e.demonstrations} and e.shots == 3 for e in drawn)
    assert drawn == draw(SUPPORT, shots=3, samples=6, seed=1)
    assert drawn != draw(SUPPORT, shots=3, samples=6, seed=2)


def test_the_embedded_model_answers_a_hidden_task_without_demonstrations():
    """Nothing tells the model that colours are meant, but the vectors."""
    task = load_task("scenes", tasks=["colour"], episodes=96)
    vlm = load_model("tiny")
    bare = choose(task, "random", 0, 0).episodes(task)

    def accuracy() -> float:
        said = vlm.answer(bare, template=task.template, stop=task.stop, max_new_tokens=6, batch_size=32)
        return sum(task.parse(text) == e.query.answer for text, e in zip(said, bare, strict=True)) / len(bare)

    before = accuracy()
    fit_method(vlm, "icv", task, shots=8, samples=32)
    assert accuracy() > before + 0.1
