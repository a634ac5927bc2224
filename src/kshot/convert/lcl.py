"""Link-Context Learning checkpoints (arXiv 2308.07891) as ``LlavaForConditionalGeneration``.

Upstream saves a LLaMA with one linear projector, ``model.mm_projector``, under a model type that transformers uses for another
class, without the vision tower. The conversion is exact: each weight is copied as it is, transformers' second projector
layer is the identity behind an activation that does nothing, and the vision tower is the CLIP that upstream names.

What it does not change is what the published weights have seen: upstream's code inserts only the last image of a prompt and leaves
the embedding of ``<im_patch>`` in the places of all others. ``image_mode="last_only"`` is kept in the converted folder and
followed by :func:`kshot.load_model`; plain transformers inserts all images.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from tqdm import tqdm
from transformers import GenerationConfig, LlamaConfig, LlavaConfig, LlavaProcessor

from kshot.convert.folder import GIGABYTE, check_free, check_space, new_folder
from kshot.convert.lcl_weights import PROJECTOR, lcl_entries
from kshot.convert.lcl_words import PATCH, Words, read_words
from kshot.convert.record import try_conversion, write_record
from kshot.convert.shards import Entry, write_sharded
from kshot.convert.vision import VisionSource, open_vision
from kshot.convert.weights import Weights, read_json
from kshot.errors import ModelError, OptionError
from kshot.models.image_mode import IMAGE_MODE, ImageMode

TURNS, WORDS_PER_TURN = 17, 64
"""Longest episodes that upstream trained on: 16 demonstrations and a query, each an image and at most so many tokens of text."""


def convert_lcl(
    source: str | os.PathLike[str],
    *,
    vision: str | os.PathLike[str],
    out: str | os.PathLike[str],
    image_mode: str = "all",
    shard_size: float = 5.0,
) -> Path:
    """Convert a checkpoint of Link-Context Learning into a model that transformers and kshot load.

    The weights keep their type. They are copied one by one, so that memory for the largest of them suffices. When all is written,
    it is compared with the source, and what was found is kept in ``kshot_conversion.json``.

    Args:
        source: the folder that upstream saved: config.json, weights (.bin or .safetensors, whole or sharded), tokenizer.
        vision: the CLIP whose vision tower the checkpoint was made with (openai/clip-vit-large-patch14): folder or Hub id.
        out: the new folder; must not exist, or be empty.
        image_mode: "all" inserts every image; "last_only" only the last of a prompt, as when the published weights were trained.
        shard_size: most gigabytes in a file.

    Returns:
        ``out``.

    Raises:
        ModelError: the source, its tokenizer or the vision model is not there, damaged, or of another kind.
        OptionError: an unknown image mode, or ``out`` is not empty.
    """
    if image_mode not in get_args(ImageMode):
        raise OptionError(f"unknown image mode {image_mode!r}: use 'all' or 'last_only'")
    if not shard_size > 0:
        raise OptionError(f"shard_size is {shard_size}: give a number of gigabytes above 0")
    folder, target = Path(source).expanduser(), Path(out).expanduser()
    check_free(target)
    upstream = _read_config(folder)
    tower = open_vision(str(vision))
    with Weights(folder) as weights, Weights(tower.folder) as vision_weights:
        plan = _plan(folder, upstream, weights, tower, vision_weights)
        setattr(plan.config, IMAGE_MODE, image_mode)
        check_space(target, sum(entry.size for entry in plan.entries))
        with new_folder(target) as place:
            processor, notes = _processor(plan, tower)
            processor.save_pretrained(place)
            plan.config.save_pretrained(place)
            _generation(folder, plan.config.text_config).save_pretrained(place)
            with tqdm(total=len(plan.entries), desc="converting", unit="weight", disable=None, leave=False) as bar:
                write_sharded(place, plan.entries, limit=int(shard_size * GIGABYTE), written=bar.update)
            found = try_conversion(place, plan.entries, weights, PROJECTOR, vision_weights, plan.config)
            write_record(
                place,
                kind="lcl",
                source=folder,
                vision=str(vision),
                image_mode=image_mode,
                entries=plan.entries,
                marks=plan.words.marks,
                notes=_notes(plan, image_mode) + notes,
                result=found,
            )
            if not found.passed:
                raise AssertionError(f"the converted weights differ from their source, which must not be: {found}")
    return target


@dataclass(frozen=True)
class Plan:
    """What will be written.

    Attributes:
        config: of the new model.
        entries: its weights.
        words: its tokenizer.
        dropped: weights of the source that have no place in it.
    """

    config: Any
    entries: list[Entry]
    words: Words
    dropped: tuple[str, ...]


def _read_config(folder: Path) -> dict[str, Any]:
    """Upstream's config.json.

    Raises:
        ModelError: no such folder, or a checkpoint of another architecture; the message says of which.
    """
    path = folder / "config.json"
    if not folder.is_dir():
        raise ModelError(
            f"no folder {str(folder)!r}: give the folder of a checkpoint, downloaded from the Hub or saved by upstream's training"
        )
    if not path.is_file():
        raise ModelError(f"{folder} is no checkpoint: it has no config.json")
    config = read_json(path)
    kind = config.get("model_type")
    if "text_config" in config or "vision_config" in config:
        raise ModelError(
            f"{folder} is a model of transformers already ({', '.join(config.get('architectures') or [str(kind)])}): load it as it is"
        )
    if kind != "llava":
        raise ModelError(
            f"{folder} is no checkpoint of Link-Context Learning: its model type is {kind!r}, not 'llava' "
            f"({', '.join(config.get('architectures') or ['no architecture named'])})"
        )
    return config


def _plan(folder: Path, upstream: dict[str, Any], weights: Weights, tower: VisionSource, vision: Weights) -> Plan:
    """Names, types and shapes of all weights to be written, and the configuration that fits them.

    Raises:
        ModelError: weights are missing or do not fit each other.
    """
    for name in ("model.embed_tokens.weight", f"{PROJECTOR}.weight"):
        if name not in weights:
            deep = f"{PROJECTOR}.0.weight" in weights
            raise ModelError(
                f"{folder} is no checkpoint of Link-Context Learning: it has no {name}"
                + ("; its projector has several layers, as in LLaVA 1.5" if deep else "")
            )
    first = weights.get("model.embed_tokens.weight")
    rows, width = first.shape
    projected, seen = weights.shape(f"{PROJECTOR}.weight")
    if projected != width:
        raise ModelError(
            f"{folder}: the projector gives features of width {projected}, but the embeddings have {width}"
        )
    if seen != tower.config.hidden_size:
        made_with = upstream.get("mm_vision_tower")
        raise ModelError(
            f"the vision model {tower.folder} gives features of width {tower.config.hidden_size}, but the checkpoint's projector "
            f"takes {seen}: give the CLIP it was made with" + (f" ({made_with})" if made_with else "")
        )
    words = read_words(folder, upstream, int(rows))
    config = _config(upstream, tower, words, first.dtype, int(rows), int(width))
    entries, dropped = lcl_entries(weights, vision, config)
    return Plan(config, entries, words, dropped)


def _config(
    upstream: dict[str, Any], tower: VisionSource, words: Words, dtype: torch.dtype, rows: int, width: int
) -> LlavaConfig:
    own = set(LlamaConfig().to_dict()) | {"rope_theta", "rope_scaling"}
    left_out = {"model_type", "architectures", "transformers_version", "_name_or_path", "torch_dtype", "dtype"}
    kept = {key: value for key, value in upstream.items() if key in own - left_out and value is not None}
    tokenizer = words.tokenizer
    pad = tokenizer.pad_token_id if upstream.get("pad_token_id") in (None, -1) else upstream["pad_token_id"]
    text = LlamaConfig(**kept | {"vocab_size": rows, "hidden_size": width, "pad_token_id": 0 if pad is None else pad})
    class_token_too = upstream.get("mm_vision_select_feature") == "cls_patch"
    context = TURNS * (tower.patches + len(words.marks) - 1 + WORDS_PER_TURN)
    settings: dict[str, Any] = {
        # The position tables of LLaMA grow as needed, and upstream trained far beyond the length that its configuration names.
        "kshot_max_context": max(text.max_position_embeddings, context),
        "architectures": ["LlavaForConditionalGeneration"],
        "dtype": str(dtype).removeprefix("torch."),
    }
    config = LlavaConfig(
        vision_config=tower.config.to_dict(),
        text_config=text.to_dict(),
        image_token_index=words.marks[PATCH],
        image_seq_length=tower.patches + class_token_too,
        projector_hidden_act="linear",
        multimodal_projector_bias=True,
        vision_feature_layer=upstream.get("mm_vision_select_layer", -2),
        vision_feature_select_strategy="full" if class_token_too else "default",
        tie_word_embeddings=text.tie_word_embeddings,
        **settings,
    )
    layers = tower.config.num_hidden_layers
    if not isinstance(config.vision_feature_layer, int) or not -layers - 1 <= config.vision_feature_layer <= layers:
        raise ModelError(
            f"config.json says mm_vision_select_layer is {config.vision_feature_layer}, but the vision tower has {layers} layers"
        )
    return config


def _processor(plan: Plan, tower: VisionSource) -> tuple[Any, tuple[str, ...]]:
    images, notes = tower.image_processor()
    strategy = plan.config.vision_feature_select_strategy
    processor = LlavaProcessor(
        images,
        plan.words.tokenizer,
        patch_size=tower.config.patch_size,
        num_additional_image_tokens=1,
        vision_feature_select_strategy=strategy,
        image_token=PATCH,
        chat_template=plan.words.chat_template,
    )
    return processor, notes


def _generation(folder: Path, text: Any) -> GenerationConfig:
    """Greedy decoding, as upstream's, with the source's special tokens."""
    ids = {name: getattr(text, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    own = read_json(folder / "generation_config.json")
    return GenerationConfig(**{name: number if own.get(name) is None else own[name] for name, number in ids.items()})


def _notes(plan: Plan, image_mode: str) -> tuple[str, ...]:
    notes = ["plain transformers pads images to squares in CLIP's mean colour; kshot in white, as upstream"]
    if plan.words.added:
        notes.append(f"the tokenizer lacked {', '.join(plan.words.added)}: added at the ids that upstream gives them")
    if image_mode == "last_only":
        notes.append("kshot inserts the last image of a prompt only; plain transformers inserts all images")
    rotary = sum(name.endswith("rotary_emb.inv_freq") for name in plan.dropped)
    if rotary:
        notes.append(f"{rotary} rotary tables were left out: they are computed")
    others = sorted(name for name in plan.dropped if not name.endswith("rotary_emb.inv_freq"))
    if others:
        notes.append(
            f"left out, for they come from elsewhere: {', '.join(others[:4])}{' ...' if len(others) > 4 else ''}"
        )
    return tuple(notes)
