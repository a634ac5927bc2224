"""How training-free methods are obtained: from activations of a frozen model on a support set.

:func:`fit_method` draws prompts from the support set, lets the method measure what it needs and puts the result into the model as an
adapter of PEFT, which is saved, loaded, switched off and unloaded like a trained one::

    model = fit_method(vlm, "task_vector", load_task("vqav2", ...), shots=8, samples=64)
    vlm.answer(episodes)                      # with the task vector
    model.save_pretrained("my_task_vector", save_embedding_layers=False)
    with model.disable_adapter():
        vlm.answer(episodes)                  # without

The labelled queries that are drawn are divided: activations come from the first part, and whatever has to be chosen (a layer, a
strength, heads) is chosen by the log-probability of the answers of the other part. Queries of the task itself are not touched.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import nn

from kshot.data.derived import generator
from kshot.data.task import Task
from kshot.episode import Episode, Example
from kshot.errors import DataError, OptionError
from kshot.methods.activations import answer_cue, bar, encoded, inputs_ends, log_probabilities, output_ends
from kshot.methods.layers import ShiftLayer
from kshot.methods.registration import Method, methods
from kshot.models.anatomy import Anatomy
from kshot.models.base import PromptStyle
from kshot.models.visual_sentence import VisualSentenceModel
from kshot.models.vlm import VLM
from kshot.prompt import Template

ADAPTER = "default"
Values = Mapping[tuple[int, str], torch.Tensor]
"""Parameters of an adapter: by number of the decoder layer and name."""


@dataclass(frozen=True)
class Estimate:
    """What a method found.

    Attributes:
        config: the configuration of the adapter.
        values: its parameters; those that are not given stay at their initial values.
        held_out: mean log-probability of the held-out answers under it, if it was measured.
    """

    config: Any
    values: Values
    held_out: float | None = None


@dataclass
class Material:
    """What a method is given to measure.

    Attributes:
        vlm: the model, without an adapter.
        shown: episodes with demonstrations whose queries have known answers.
        held_out: others, for choices.
        template, style: how they are written.
        seed: what everything random derives from.
        batch_size: prompts that are read together.
        cue: the tokens with which prompts end.
    """

    vlm: VLM | VisualSentenceModel
    shown: list[Episode]
    held_out: list[Episode]
    template: Template | None = None
    style: PromptStyle = "auto"
    seed: int = 0
    batch_size: int = 8
    cue: list[int] = field(default_factory=list)

    @property
    def anatomy(self) -> Anatomy:
        """The model's."""
        return self.vlm.anatomy

    @property
    def bare(self) -> list[Episode]:
        """The queries of :attr:`shown`, without demonstrations."""
        return [without(episode) for episode in self.shown]

    def ends(
        self, modules: Sequence[nn.Module], episodes: Sequence[Episode], answers: bool = False
    ) -> list[torch.Tensor]:
        """Outputs of modules at the last token of prompts: for each module ``[episodes, width]``, float32, on the CPU.

        Args:
            modules: parts of the decoder.
            episodes: what prompts are made of.
            answers: whether the queries' answers stand behind them.
        """
        return output_ends(self.vlm, modules, self.encoded(episodes, answers), self.batch_size)

    def input_ends(self, modules: Sequence[nn.Module], episodes: Sequence[Episode]) -> list[torch.Tensor]:
        """As :meth:`ends`, for what the modules are given."""
        return inputs_ends(self.vlm, modules, self.encoded(episodes), self.batch_size)

    def encoded(self, episodes: Sequence[Episode], answers: bool = False) -> list[Any]:
        """Prompts; with ``answers``, the queries' answers stand behind them."""
        return [encoded(self.vlm, e, self.template, self.style, answered=answers) for e in episodes]

    def best(self, candidates: Sequence[Estimate], doing: str) -> Estimate:
        """The candidate under which the held-out answers are most probable without demonstrations; the first of equals."""
        scored = []
        for candidate in bar(candidates, doing):
            scored.append(replace(candidate, held_out=self.score(candidate)))
        return max(scored, key=lambda candidate: candidate.held_out if candidate.held_out is not None else 0.0)

    def score(self, candidate: Estimate) -> float:
        """Mean log-probability of the held-out answers, without demonstrations, under a candidate."""
        model = install(self.vlm, candidate)
        try:
            return self.held_out_score()
        finally:
            model.unload()

    def held_out_score(self) -> float:
        """Mean log-probability of the held-out answers, without demonstrations, as the model is now."""
        prompts = self.encoded([without(episode) for episode in self.held_out], answers=True)
        with torch.no_grad():
            found = log_probabilities(self.vlm, prompts, self.batch_size)
        return float(found.double().mean())


def fit_method(
    vlm: VLM | VisualSentenceModel,
    method: str | Method,
    source: Task | Sequence[Example] | Sequence[Episode],
    *,
    shots: int = 8,
    samples: int = 64,
    seed: int = 0,
    template: Template | None = None,
    style: PromptStyle = "auto",
    batch_size: int = 8,
    **options: Any,
) -> PeftModel:
    """Obtain a training-free method's adapter from a support set and put it into the model, active.

    Args:
        vlm: a model without adapters.
        method: ``"task_vector"``, ``"function_vector"``, ``"icv"``, ``"i2cl"`` or ``"mtv"``.
        source: a task, whose support set (not its queries) is drawn from; or the labelled examples of a support set; or episodes,
            whose queries have answers, to be used as they are.
        shots: demonstrations in each prompt.
        samples: labelled queries; the greater half is measured, the other decides about layers, strengths and heads.
        seed: everything random derives from it.
        template, style: how examples are written; template default: the task's, or else the model's.
        batch_size: prompts that are read together.
        options: the method's own: fields of its configuration.

    Returns:
        PEFT's model around ``vlm.model``, with the adapter ``"default"``; ``vlm`` itself now answers with it.

    Raises:
        OptionError: the method is one to be trained; the support set holds fewer examples than are needed; an unknown option.
        ModelError: the model cannot take the method.
        DataError: an episode has no answer.
    """
    chosen = method if isinstance(method, Method) else methods.get(method)
    if chosen.estimate is None:
        free = ", ".join(name for name in methods if methods.get(name).estimate is not None)
        raise OptionError(f"method {chosen.name!r} has to be trained; those that need no training are {free}")
    if getattr(vlm.model, "peft_config", None):
        raise OptionError(f"{vlm.name} has an adapter already: unload it first (model.unload())")
    chosen.check(vlm.anatomy)
    known = {f.name for f in fields(chosen.config) if f.init} - {"base", "peft_type", "task_type"}
    for name in options:
        if name not in known:
            raise OptionError(
                f"method {chosen.name!r} has no option {name!r}; its options are: {', '.join(sorted(known))}"
            )
    if isinstance(source, Task) and template is None:
        template = source.template
    episodes = draw(source, shots=shots, samples=samples, seed=seed)
    middle = (len(episodes) + 1) // 2
    material = Material(vlm, episodes[:middle], episodes[middle:], template, style, seed, batch_size)
    material.cue = answer_cue(vlm, material.bare, template, style)
    if "cue" in known:
        options.setdefault("cue", material.cue)
    gradients = {name: p.requires_grad for name, p in vlm.model.named_parameters()}
    try:
        vlm.model.requires_grad_(False)
        vlm.reuse.refresh()
        found = chosen.estimate(material, chosen.config(seed=seed, **options))
    except BaseException:
        for name, parameter in vlm.model.named_parameters():
            parameter.requires_grad_(gradients[name])
        raise
    return install(vlm, found)


def draw(source: Task | Sequence[Example] | Sequence[Episode], *, shots: int, samples: int, seed: int) -> list[Episode]:
    """Episodes whose queries have answers: drawn from a support set, each with its own demonstrations, or those given.

    Raises:
        OptionError: too few examples, or too few samples to divide.
        DataError: the task has no support set for all queries, or an episode's query has no answer.
    """
    if samples < 2:
        raise OptionError(f"samples={samples}: must be 2 or more, some to measure and some to choose by")
    if shots < 1:
        raise OptionError(f"shots={shots}: must be 1 or more: what demonstrations do is to be measured")
    items: Any = source.support if isinstance(source, Task) else source
    if len(items) and isinstance(items[0], Episode):
        episodes = list(items[:samples])
        for episode in episodes:
            if episode.query.answer is None:
                raise DataError(f"the query of episode {episode.id!r} has no answer", remedy="give labelled queries")
        if len(episodes) < 2:
            raise OptionError("at least 2 episodes are needed, some to measure and some to choose by")
        return episodes
    if not len(items) and isinstance(source, Task):
        raise DataError(
            f"the task {source.name!r} has no support set that all its queries share", remedy="give episodes instead"
        )
    order = generator(seed, "fit", "queries").permutation(len(items))
    queries = _labelled((items[int(i)] for i in order), samples)
    if len(queries) < samples or len(items) < shots + 1:
        raise OptionError(
            f"the support set holds {len(queries) if len(queries) < samples else len(items)} examples with answers: too few for "
            f"{samples} samples and {shots} shots"
        )
    return [Episode(tuple(_demonstrations(items, query, shots, seed)), query) for query in queries]


def _labelled(examples: Iterable[Example], most: int) -> list[Example]:
    found: list[Example] = []
    for example in examples:
        if example.answer is not None:
            found.append(example)
        if len(found) == most:
            break
    return found


def _demonstrations(support: Sequence[Example], query: Example, shots: int, seed: int) -> list[Example]:
    """Random examples of the support set that neither are the query nor show one of its images."""
    own = {picture.digest for picture in query.images}
    found: list[Example] = []
    for place in generator(seed, "fit", shots, query.id).permutation(len(support)):
        example = support[int(place)]
        if example.id == query.id or example.answer is None:
            continue
        if any(picture.digest in own for picture in example.images):
            continue
        found.append(example)
        if len(found) == shots:
            return found
    raise OptionError(
        f"the support set holds only {len(found)} demonstrations for {query.id!r}: too few for {shots} shots"
    )


def without(episode: Episode) -> Episode:
    """The episode without its demonstrations."""
    return replace(episode, demonstrations=())


def install(vlm: VLM | VisualSentenceModel, found: Estimate) -> PeftModel:
    """The model with an estimate as its active adapter."""
    config = copy.deepcopy(found.config)
    config.base = None
    config.inference_mode = True
    model = get_peft_model(vlm.model, config, adapter_name=ADAPTER)
    config = model.peft_config[ADAPTER]
    config.base_model_name_or_path = vlm.source or config.base_model_name_or_path
    with torch.no_grad():
        fill(model, found.values)
    return model.eval()


def fill(model: nn.Module, values: Values) -> None:
    """Set parameters of the adapter that was just put into a model.

    Raises:
        KeyError: it has no such parameter.
    """
    left = dict(values)
    for layer in model.modules():
        if isinstance(layer, ShiftLayer):
            for name in layer.adapter_layer_names:
                value = left.pop((layer.number, name), None)
                if value is not None:
                    getattr(layer, name)[ADAPTER].copy_(value)
    if left:
        raise KeyError(f"no place for {sorted(left)}")
