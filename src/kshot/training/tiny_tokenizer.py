"""The embedded model's tokenizer: byte-level BPE, so that any text has tokens and none is unknown.

One thing is unusual: the words of the prompts' forms carry the space before them, all others have it as a token of its own. A label
therefore has the same tokens after "Answer:" and after "Answer: ", and what is learnt about copying it in one place holds in all.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from kshot.data.drawing import SCENE_TASKS, invent_name
from kshot.training.tiny_prompts import INSTRUCTIONS, QUESTIONS, TRAINED
from kshot.training.tiny_words import WORDS

SPECIAL = ("<pad>", "<s>", "</s>", "<image>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>")

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""No ``<s>`` here: the tokenizer adds it, with chat templates as without."""


def build_tokenizer(vocabulary: int = 1024, seed: int = 0, positions: int = 4096) -> PreTrainedTokenizerFast:
    """Train the tokenizer on the prompts' forms, ordinary words and invented names; takes about a second.

    Args:
        vocabulary: number of tokens, special ones and the 256 bytes included.
        seed: of the invented names.
        positions: ``model_max_length``.
    """
    forms = sorted(form_words(), key=lambda w: (-len(w), w))
    cues = [re.escape(w) for w in forms if w.endswith(":")]
    others = [re.escape(w) for w in forms if not w.endswith(":")]
    pattern = "|".join(
        [
            " ?(?:" + "|".join(cues) + ")",
            " ?(?:" + "|".join(others) + ")(?![A-Za-z])",
            "[A-Za-z]+",
            "[0-9]",
            r"\n+",
            r"\s",
            r"[^A-Za-z0-9\s]+",
        ]
    )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(np.random.default_rng([seed, 20])), trainer)
    bos = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", bos)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        padding_side="left",
        model_max_length=positions,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
        extra_special_tokens={"image_token": "<image>"},
    )


def form_words() -> set[str]:
    """Words (and words with a colon) of the trained forms, questions and instructions."""
    texts = [t.demonstration + " " + (t.query or "") + t.instruction for _, t in TRAINED]
    joined = " ".join([*texts, *QUESTIONS, *INSTRUCTIONS]).replace("<image>", " ")
    joined = re.sub(r"\{\w+\}", " ", joined)
    return set(re.findall(r"[A-Za-z]+:?", joined))


def _corpus(rng: np.random.Generator) -> Iterator[str]:
    """Form words often enough to become single tokens; then what labels are made of."""
    for word in sorted(form_words()):
        yield from [word] * 3000
        yield from [" " + word] * 3000
    for text in ("\n\n", ".", ":", "?", '"', "].", " "):
        yield from [text] * 3000
    for words in SCENE_TASKS.values():
        yield from words * 1000
    yield from WORDS * 15
    for _ in range(6000):
        yield invent_name(rng, seen=True)
