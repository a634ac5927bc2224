"""Models of kshot for lmms-eval: any model, with an adapter, and with demonstrations that have pictures.

lmms-eval finds :func:`manifest` through its entry points (group ``lmms_eval.models``): after ``pip install 'kshot[lmms-eval]'``,
``--model kshot`` works like a model of its own. Its requests hold a text, a function that gives the pictures, and the number of a
document; each becomes an episode.

Three of its habits matter. Its own few-shot examples are texts without pictures: leave ``--num_fewshot`` at 0 and give ``shots``. Its
multiple choice takes the option with the *least* figure, for its models give losses where its documentation speaks of
log-likelihoods: so does this one. And documents may put ``<image>`` into their texts: pictures stand before the text here, wherever
these marks were.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image
from tqdm import tqdm

from kshot.data.jsonl import read_examples
from kshot.data.retrieval import load_retriever
from kshot.episode import Episode, Example
from kshot.errors import DataError, MissingExtra, ModelError, OptionError
from kshot.models.base import PromptStyle
from kshot.models.batching import BatchRunner
from kshot.models.encoding import EncodedPrompt
from kshot.models.loading import load_model
from kshot.models.vlm import BATCH_SIZE, VLM
from kshot.prompt import IMAGE, Template

try:
    from lmms_eval.api.model import lmms
    from lmms_eval.models.registry_v2 import ModelManifest
except ImportError as error:
    raise MissingExtra("lmms-eval", "lmms-eval", "evaluating with lmms-eval") from error

logger = logging.getLogger(__name__)

NEW_TOKENS = 1024
"""What lmms-eval's own models take where a task does not say it."""
TEMPLATE = Template(IMAGE + "{question} {answer}", user=IMAGE + "{question}")


class Ways(NamedTuple):
    """How texts are generated; requests that agree in it are answered together."""

    new_tokens: int
    stop: tuple[str, ...]
    beams: int
    length_penalty: float


class KshotModel(lmms):
    """A model of kshot as lmms-eval sees it: ``--model kshot --model_args pretrained=...,adapter=...,shots=8,support=train.jsonl``.

    Args:
        pretrained: as ``load_model`` takes it: "tiny", a folder or a Hub id.
        adapter: folder of an adapter (``kshot distill``), or the Hub's.
        shots: demonstrations in each prompt.
        support: JSON Lines file that they come from (docs/how_to/your_own_data.md); their questions are to be written as the task
            writes its own.
        images: folder that its pictures' names are relative to. Default: the file's.
        retriever: chooses them: "fixed" (the same for all), "random", or another that needs nothing but examples.
        seed: of the choice.
        style: "plain", "chat" or "auto".
        max_new_tokens: at most so many, whatever a task says.
        batch_size: prompts a batch ("auto": 8).
        max_batch_size: of lmms-eval; not used.
        device: of the model.
        **options: further arguments of ``load_model``, such as ``dtype`` and ``quantization``.

    Raises:
        OptionError, DataError, ModelError: each with a remedy.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str = "tiny",
        *,
        adapter: str | None = None,
        shots: int = 0,
        support: str | None = None,
        images: str | None = None,
        retriever: str = "fixed",
        seed: int = 0,
        style: PromptStyle = "auto",
        max_new_tokens: int | None = None,
        batch_size: int | str | None = None,
        max_batch_size: Any = None,
        device: str | None = None,
        **options: Any,
    ):
        super().__init__()
        if (shots > 0) != (support is not None):
            raise OptionError(f"shots={shots}, support={support!r}: give both, or neither")
        if device is not None:
            options = {"device_map": device} | options
        loaded = load_model(pretrained, adapter=adapter, **options)
        if not isinstance(loaded, VLM):
            raise ModelError(f"{pretrained} answers by pictures; lmms-eval asks for texts")
        self.vlm, self.style, self.shots, self.seed = loaded, style, shots, seed
        self.most = max_new_tokens
        self.batch_size = int(str(batch_size)) if str(batch_size).isdigit() else BATCH_SIZE
        self.pool = read_examples(support, images, answered=True) if support is not None else ()
        if shots > len(self.pool):
            raise OptionError(f"shots={shots}, but {support} holds {len(self.pool)} examples")
        self.retriever = load_retriever(retriever)
        self.moved = 0

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """The text for each request, cut before the first of its ``until``; greedy or by beams, never sampled."""
        asked: dict[Ways, list[int]] = {}
        for number, request in enumerate(requests):
            asked.setdefault(self._ways(request.args[1]), []).append(number)
        found = [""] * len(requests)
        for ways, numbers in asked.items():
            episodes = [self._episode(requests[i].args[0], *requests[i].args[2:6]) for i in numbers]
            texts = self.vlm.answer(
                episodes,
                template=TEMPLATE,
                style=self.style,
                max_new_tokens=ways.new_tokens,
                stop=ways.stop,
                num_beams=ways.beams,
                length_penalty=ways.length_penalty,
                batch_size=self.batch_size,
            )
            for number, text in zip(numbers, texts, strict=True):
                found[number] = cut(text, ways.stop)
                context, settings = requests[number].args[:2]
                self.cache_hook.add_partial("generate_until", (context, settings), found[number])
        self._tell()
        return found

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """For each request the loss of its continuation (the mean over its tokens), and whether it is what the model would say."""
        prompts: list[EncodedPrompt] = []
        for request in requests:
            context, wanted, *rest = request.args
            answer = wanted(self._document(*rest[1:4])) if callable(wanted) else wanted
            episode = self._episode(context, *(rest or (None, 0, "", "")))
            prompts.append(self.vlm.encode(episode, TEMPLATE, self.style, answer=str(answer).strip()))
        with tqdm(total=len(prompts), desc="scoring", unit="request", disable=None) as progress:

            def work(batch: list[int]) -> list[tuple[float, bool]]:
                progress.update(len(batch))
                return losses(self.vlm, [prompts[i] for i in batch])

            self.vlm.reuse.refresh()
            kinds = [len(prompt.pictures) if self.vlm.encoder.dialect.equal_counts else 0 for prompt in prompts]
            found = BatchRunner(self.batch_size).run([len(prompt) for prompt in prompts], work, kinds)
        self._tell()
        return found

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Refused: an episode is one question."""
        raise OptionError("tasks of several rounds cannot be asked: in kshot, an episode is one question")

    def _ways(self, settings: dict[str, Any]) -> Ways:
        if settings.get("do_sample") and settings.get("temperature"):
            logger.warning("the task asks for sampling; answers are greedy here, the same each time")
        until = settings.get("until") or ()
        stop = (until,) if isinstance(until, str) else tuple(text for text in until if text)
        wanted = int(settings.get("max_new_tokens") or NEW_TOKENS)
        tokens = min(wanted, self.most) if self.most is not None else wanted
        return Ways(tokens, stop, int(settings.get("num_beams") or 1), float(settings.get("length_penalty") or 1.0))

    def _document(self, number: int, task: str, split: str) -> Any:
        return self.task_dict[task][split][number]

    def _episode(
        self, context: str, visuals: Callable[[Any], Iterable[Any] | None] | None, number: int, task: str, split: str
    ) -> Episode:
        """A request as an episode.

        Raises:
            DataError: a document shows something that is no picture (a video, a sound).
        """
        shown = list(visuals(self._document(number, task, split)) or ()) if visuals is not None else []
        for visual in shown:
            if not isinstance(visual, Image.Image):
                raise DataError(
                    f"document {number} of {task} shows a {type(visual).__name__} ({str(visual)[:40]!r}), not a picture",
                    remedy="leave out tasks of videos and sounds",
                )
        question = context
        if IMAGE in context:
            self.moved += 1
            question = context.replace(IMAGE, "").strip()
        query = Example(tuple(shown), question, id=f"{task}/{split}/{number}")
        chance = self.retriever.generator(self.seed, self.shots, query)
        return Episode(tuple(self.pool[i] for i in self.retriever.choose(query, self.pool, self.shots, chance)), query)

    def _tell(self) -> None:
        if self.moved:
            logger.warning("%d texts held %s: the pictures stand before the text instead", self.moved, IMAGE)
            self.moved = 0


@torch.inference_mode()
def losses(vlm: VLM, batch: Sequence[EncodedPrompt]) -> list[tuple[float, bool]]:
    """For the answer at the end of each prompt: the mean loss over its tokens, and whether each is the most probable."""
    masks = [encoded.tokens.answer_mask() for encoded in batch]
    keep = max(len(mask) - mask.index(True) for mask in masks)
    inputs = vlm.reuse.inputs(batch)
    logits = vlm.model(**inputs, use_cache=False, logits_to_keep=keep + 1).logits[:, -keep - 1 : -1].float()
    targets = inputs["input_ids"][:, -keep:]
    wanted = vlm.encoder.pad([[int(spoken) for spoken in mask] for mask in masks], 0)[0][:, -keep:].to(targets.device)
    chosen = logits.log_softmax(-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    loss = -(chosen * wanted).sum(-1) / wanted.sum(-1)
    greedy = ((logits.argmax(-1) == targets) | (wanted == 0)).all(-1)
    return list(zip(loss.tolist(), greedy.tolist(), strict=True))


def cut(text: str, stop: Sequence[str]) -> str:
    """What stands before the first of the stop texts, without spaces around."""
    for mark in stop:
        text = text.split(mark)[0]
    return text.strip()


def manifest() -> ModelManifest:
    """How lmms-eval finds the model: the entry point ``kshot`` of ``lmms_eval.models``."""
    return ModelManifest(model_id="kshot", simple_class_path=f"{__name__}.{KshotModel.__name__}")
