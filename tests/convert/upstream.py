"""Tiny checkpoints in the form in which upstream's Link-Context Learning saves them, and what upstream computes with them.

Written from the published description alone: a LLaMA whose embeddings of ``<im_patch>`` are replaced by the projected states of
a CLIP: of every image, or, as upstream's code does it, of the last image of a prompt only.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from PIL import Image
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from tests.convert.vocabulary import PIECES, write_sentencepiece

WIDTH, SEEN, IMAGE, PATCH_SIZE = 32, 24, 28, 14
PATCHES = (IMAGE // PATCH_SIZE) ** 2
MARKS = ("<im_patch>", "<im_start>", "<im_end>")


@dataclass
class Upstream:
    """A checkpoint and its CLIP on disk, and in memory what they hold."""

    folder: Path
    clip: Path
    state: dict[str, torch.Tensor]
    llama: Any
    vision: Any
    layer: int

    @property
    def patch(self) -> int:
        return len(PIECES)

    @torch.no_grad()
    def logits(self, ids: torch.Tensor, pixels: torch.Tensor, *, shown: str = "all") -> torch.Tensor:
        """Logits ``[1, T, V]`` of one prompt ``[1, T]`` with images ``[N, 3, H, W]``, of which all or the last are inserted."""
        states = self.vision(pixels, output_hidden_states=True).hidden_states[self.layer][:, 1:]
        weight, bias = (self.state[f"model.mm_projector.{part}"].float() for part in ("weight", "bias"))
        features = states @ weight.T + bias
        embedded = self.llama.get_input_embeddings()(ids).clone()
        places = torch.nonzero(ids[0] == self.patch).flatten()
        for number, image in enumerate(places.split(PATCHES)):
            if shown == "all" or number == len(features) - 1:
                embedded[0, image] = features[number]
        return self.llama(inputs_embeds=embedded).logits


def build(
    folder: Path,
    *,
    form: str = "bin",
    shards: int = 1,
    dtype: torch.dtype = torch.float32,
    words: str = "sentencepiece",
    tables: bool = True,
    vision_only: bool = False,
    layer: int = -2,
    rows: int | None = None,
    marks: tuple[str, ...] = MARKS,
    **config: Any,
) -> Upstream:
    """Write a checkpoint to ``folder/source`` and its CLIP to ``folder/clip``.

    Args:
        form: ``"bin"`` or ``"safetensors"``.
        shards: number of files; more than one have an index.
        words: ``"sentencepiece"`` (tokenizer.model and added_tokens.json) or ``"fast"`` (tokenizer.json).
        tables: with ``rotary_emb.inv_freq``, as transformers 4.29 saved it.
        vision_only: the CLIP's vision part alone.
        rows: rows of the embeddings, if not as many as tokens.
        marks: which of the three tokens the tokenizer has.
        config: changes to config.json.
    """
    torch.manual_seed(0)
    size = rows if rows is not None else len(PIECES) + len(MARKS)
    text = {
        "hidden_size": WIDTH,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": size,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 64,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    llama = hf.LlamaForCausalLM(hf.LlamaConfig(**text)).eval()
    for weight in llama.parameters():
        weight.data.normal_(0.0, 0.3)
    projector = torch.nn.Linear(SEEN, WIDTH)
    state = {name: tensor.detach().to(dtype) for name, tensor in llama.state_dict().items()}
    state |= {
        f"model.mm_projector.{name}": tensor.detach().to(dtype) for name, tensor in projector.state_dict().items()
    }
    if tables:
        for number in range(2):
            state[f"model.layers.{number}.self_attn.rotary_emb.inv_freq"] = torch.rand(4)
    llama.load_state_dict({name: state[name].float() for name in llama.state_dict()})

    source = folder / "source"
    source.mkdir(parents=True)
    _save(source, state, form, shards)
    saved = text | {
        "architectures": ["LlavaLlamaForCausalLM"],
        "model_type": "llava",
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "mm_hidden_size": SEEN,
        "mm_use_im_start_end": True,
        "mm_vision_select_layer": layer,
        "mm_vision_tower": "/somewhere/clip-vit-large-patch14",
        "sep_image_conv_front": False,
        "tie_word_embeddings": False,
        "torch_dtype": str(dtype).removeprefix("torch."),
        "transformers_version": "4.29.0",
        "tune_mm_mlp_adapter": False,
        "use_cache": False,
        "use_mm_proj": True,
    }
    (source / "config.json").write_text(json.dumps(saved | config))
    (source / "generation_config.json").write_text(
        json.dumps({"_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0})
    )
    _save_words(source, words, marks)
    return Upstream(source, folder / "clip", state, llama, _clip(folder / "clip", vision_only), layer)


def _save(source: Path, state: dict[str, torch.Tensor], form: str, shards: int) -> None:
    names = list(state)
    stem, ending = ("model", "safetensors") if form == "safetensors" else ("pytorch_model", "bin")
    places: dict[str, str] = {}
    for number in range(shards):
        part = {name: state[name].contiguous() for name in names[number::shards]}
        file = f"{stem}.{ending}" if shards == 1 else f"{stem}-{number + 1:05d}-of-{shards:05d}.{ending}"
        if form == "safetensors":
            save_file(part, source / file, metadata={"format": "pt"})
        else:
            torch.save(part, source / file)
        places |= dict.fromkeys(part, file)
    if shards > 1:
        index = {"metadata": {"total_size": sum(t.nbytes for t in state.values())}, "weight_map": places}
        (source / f"{stem}.{ending}.index.json").write_text(json.dumps(index))


def _save_words(source: Path, words: str, marks: tuple[str, ...]) -> None:
    added = {mark: len(PIECES) + MARKS.index(mark) for mark in marks}
    if words == "sentencepiece":
        write_sentencepiece(source / "tokenizer.model")
        (source / "added_tokens.json").write_text(json.dumps(added))
        special = {name: {"content": text, "lstrip": False} for name, text in SPECIAL.items()}
        (source / "special_tokens_map.json").write_text(json.dumps(special))
        settings = {"tokenizer_class": "LlamaTokenizer", "model_max_length": 30000, "padding_side": "right"}
        (source / "tokenizer_config.json").write_text(json.dumps(settings))
        return
    # As transformers 5 saves a LLaMA tokenizer.
    ids = {piece: number for number, (piece, _, _) in enumerate(PIECES)}
    merges = [(p[:cut], p[cut:]) for p in ids for cut in range(1, len(p)) if p[:cut] in ids and p[cut:] in ids]
    backend = Tokenizer(models.BPE(vocab=ids, merges=merges, fuse_unk=True, byte_fallback=True, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    backend.add_special_tokens([AddedToken(t, normalized=False) for t in ("<unk>", "<s>", "</s>")])
    backend.add_special_tokens([AddedToken(mark, normalized=False) for mark in marks])
    backend.save(str(source / "tokenizer.json"))
    (source / "tokenizer_config.json").write_text(json.dumps(SPECIAL | {"tokenizer_class": "LlamaTokenizer"}))


SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def _clip(folder: Path, vision_only: bool) -> Any:
    vision = {
        "hidden_size": SEEN,
        "intermediate_size": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": IMAGE,
        "patch_size": PATCH_SIZE,
    }
    words = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    words |= {"vocab_size": 20, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    if vision_only:
        tower = whole = hf.CLIPVisionModel(hf.CLIPVisionConfig(**vision)).eval()
    else:
        whole = hf.CLIPModel(hf.CLIPConfig(vision_config=vision, text_config=words)).eval()
        tower = whole.vision_model
    for weight in tower.parameters():
        weight.data.normal_(0.0, 0.2)
    whole.save_pretrained(folder)
    images = hf.CLIPImageProcessorPil(size={"shortest_edge": IMAGE}, crop_size={"height": IMAGE, "width": IMAGE})
    images.save_pretrained(folder)
    return tower


def square(image: Image.Image) -> Image.Image:
    """Upstream's ``Expand2square`` in white."""
    side = max(image.size)
    canvas = Image.new("RGB", (side, side), (255, 255, 255))
    canvas.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return canvas


def pixels(clip: Path, images: list[Image.Image]) -> torch.Tensor:
    """What upstream's CLIP is given for images."""
    processor = hf.CLIPImageProcessorPil.from_pretrained(clip)
    return processor([square(image) for image in images], return_tensors="pt")["pixel_values"]
