"""The tokenizer of a Link-Context Learning checkpoint, with upstream's token ids, and its chat template.

Upstream read its vocabulary with the slow LLaMA tokenizer of transformers 4.29, which takes the three tokens of an image out of a
text together with the white space around them, and tokenizes each stretch between them anew. Today's tokenizers do neither unless
they are told; without, an extra ``▁`` stands before each image and the text behind it begins with another token.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from kshot.convert.sentencepiece import llama_tokenizer, set_llama_pipeline
from kshot.convert.weights import read_json
from kshot.errors import ModelError

PATCH, START, END = "<im_patch>", "<im_start>", "<im_end>"
"""What stands for an image: one ``PATCH`` for each of its features, between ``START`` and ``END``."""

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
"""The system sentence of the conversations upstream was trained on (vicuna_v1.1); part of the format."""

CHAT_TEMPLATE = (
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}{% set turns = messages[1:] %}"
    "{% else %}{% set system = 'SYSTEM' %}{% set turns = messages %}{% endif %}"
    "{% if system is string %}{{ system }}{% else %}{% for part in system %}{{ part['text'] }}{% endfor %}{% endif %}"
    "{{ ' ' }}"
    "{% for turn in turns %}"
    "{{ 'USER: ' if turn['role'] == 'user' else 'ASSISTANT: ' }}"
    "{% if turn['content'] is string %}{{ turn['content'] }}{% else %}{% for part in turn['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{{ ' ' if turn['role'] == 'user' else eos_token }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


@dataclass(frozen=True)
class Words:
    """Tokenizer and marks of a checkpoint.

    Attributes:
        tokenizer: gives upstream's ids.
        marks: id of each token that is written for an image.
        added: those of them that the source's tokenizer did not have, and that were put at the ids upstream gives them.
    """

    tokenizer: Any
    marks: dict[str, int]
    added: tuple[str, ...]

    @property
    def image(self) -> str:
        """What is written for an image, its features still one token."""
        return f"{START}{PATCH}{END}" if START in self.marks else PATCH

    @property
    def chat_template(self) -> str:
        """Conversations as upstream wrote them: ``SYSTEM USER: ... ASSISTANT: ...</s>USER: ... ASSISTANT:``."""
        return CHAT_TEMPLATE.replace("SYSTEM", SYSTEM.replace("'", "\\'")).replace("IMAGE", self.image)


def read_words(folder: Path, config: dict[str, Any], rows: int) -> Words:
    """The tokenizer in a checkpoint's folder, repaired.

    Args:
        folder: the checkpoint.
        config: its config.json.
        rows: rows of its table of embeddings.

    Raises:
        ModelError: no tokenizer, or one without the tokens of an image where the embeddings have no room for them.
    """
    marks = [PATCH, START, END] if config.get("mm_use_im_start_end", True) else [PATCH]
    settings = _settings(folder)
    backend = _read(folder)
    held = json.loads(backend.to_str())
    added = {entry["content"]: entry for entry in held["added_tokens"]}
    for content, number in sorted(_named_ids(folder).items(), key=lambda item: item[1]):
        known = backend.token_to_id(content)
        if known is not None and known != number:
            raise ModelError(
                f"{folder}: {content!r} is token {known} in the vocabulary, but {number} among the added tokens"
            )
        special = content in marks or content in map(str, settings.values())
        added.setdefault(content, _token(number, content, special=special))
    size = 1 + max([*backend.get_vocab().values(), *(entry["id"] for entry in added.values())])
    missing = [mark for mark in marks if mark not in added and backend.token_to_id(mark) is None]
    if size + len(missing) > rows and missing:
        raise ModelError(
            f"the tokenizer in {folder} lacks {', '.join(missing)}, and the embeddings have no room for more tokens ({rows} rows, "
            f"{size} tokens); take the tokenizer files that were saved with this checkpoint"
        )
    ids = {mark: size + number for number, mark in enumerate(missing)}
    for mark in marks:
        known = added[mark]["id"] if mark in added else backend.token_to_id(mark)
        ids.setdefault(mark, known)
        # White space around an image is taken out, as the slow tokenizer did.
        added[mark] = _token(ids[mark], mark, special=True) | {"lstrip": True, "rstrip": True}
    beyond = {mark: number for mark, number in ids.items() if number >= rows}
    if beyond:
        raise ModelError(f"the tokenizer in {folder} gives ids that the {rows} embeddings do not have: {beyond}")
    held["added_tokens"] = sorted(added.values(), key=lambda entry: entry["id"])
    backend = Tokenizer.from_str(json.dumps(held))
    return Words(_fast(backend, settings, config), {mark: ids[mark] for mark in marks}, tuple(missing))


def _read(folder: Path) -> Tokenizer:
    """The vocabulary; sentencepiece first, because that is what upstream read."""
    if (folder / "tokenizer.model").is_file():
        return llama_tokenizer(folder / "tokenizer.model")
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ModelError(f"{folder} has no tokenizer: neither tokenizer.model nor tokenizer.json")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare exceptions
        raise ModelError(f"{path} is no tokenizer, or damaged: {error}") from error
    pipeline = json.loads(tokenizer.to_str())
    before = pipeline["pre_tokenizer"] or {}
    # LLaMA's vocabulary, set up as transformers does today: only the beginning of a text, or none that begins with a space, would get
    # a space of its own.
    if pipeline["normalizer"] is None and before.get("type") == "Metaspace" and before.get("split") is False:
        set_llama_pipeline(tokenizer)
    return tokenizer


def _named_ids(folder: Path) -> dict[str, int]:
    """Ids of added tokens that stand beside the vocabulary: in a file of their own, or in the tokenizer's configuration."""
    ids = dict(read_json(folder / "added_tokens.json"))
    listed = read_json(folder / "tokenizer_config.json").get("added_tokens_decoder") or {}
    ids |= {token["content"]: int(number) for number, token in listed.items()}
    wrong = {content: number for content, number in ids.items() if not isinstance(number, int)}
    if wrong:
        raise ModelError(f"the added tokens in {folder} have ids that are no numbers: {wrong}")
    return ids


def _token(number: int, content: str, *, special: bool) -> dict[str, Any]:
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": number, "content": content, "special": special} | plain


def _settings(folder: Path) -> dict[str, str]:
    """The special tokens that the tokenizer's files name: ``bos_token`` and the like."""
    named: dict[str, str] = {}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        for key, value in read_json(folder / file).items():
            content = value.get("content") if isinstance(value, dict) else value
            if key in ("bos_token", "eos_token", "unk_token", "pad_token") and isinstance(content, str) and content:
                named[key] = content
    return named


def _fast(backend: Tokenizer, settings: dict[str, str], config: dict[str, Any]) -> Any:
    """A tokenizer of transformers; special tokens that no file names are those of the configuration, or LLaMA's."""
    usual = {"unk": ("unk_token_id", 0), "bos": ("bos_token_id", 1), "eos": ("eos_token_id", 2)}
    special = dict(settings)
    for name, (key, number) in usual.items():
        value = config.get(key)
        content = backend.id_to_token(value if isinstance(value, int) else number)
        if f"{name}_token" not in special and content is not None:
            special[f"{name}_token"] = content
    if "pad_token" not in special and "unk_token" in special:
        special["pad_token"] = special["unk_token"]  # as upstream: pad = unk
    known = {key: content for key, content in special.items() if backend.token_to_id(content) is not None}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, padding_side="left", clean_up_tokenization_spaces=False, **known
    )
