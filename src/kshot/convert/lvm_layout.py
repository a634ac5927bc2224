"""The network of the LVM's tokenizer, told from its configuration and its weights, and its names in diffusers.

Upstream's ``VQGANModel`` (the LVM, open-muse) and ``diffusers.VQModel`` are the same network under other names: the same layers in the
same order, group norms of 32 groups and epsilon 1e-6, the same padding. Levels of the decoder are numbered from the finest upstream
and from the coarsest in diffusers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kshot.errors import ModelError

Shapes = Mapping[str, tuple[int, ...]]
RESOLUTION = 256
FIXED = {
    "use_conv_shortcut": (None, False),
    "resample_with_conv": (None, True),
    "decoder_hidden_channels": (None,),
    "decoder_channel_mult": (None,),
    "decoder_res_blocks": (None,),
    "extra_mid_res_blocks": (None,),
}
"""Settings for which only these values make a network that VQModel can be."""
ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
UPSTREAM_ATTENTION = {new: old for old, new in ATTENTION.items()}


@dataclass(frozen=True)
class Layout:
    """What there is to know of a ``VQGANModel``.

    Attributes:
        channels: of pictures.
        widths: of the levels, from the finest.
        blocks: residual blocks of a level of the encoder; the decoder has one more.
        attention: levels that have attention in their blocks.
        mid_attention: whether the middle has attention.
        latent, embedded: width of the latents before and behind ``quant_conv``.
        codes: size of the codebook.
        resolution: pixels a side that it was trained at.
    """

    channels: int
    widths: tuple[int, ...]
    blocks: int
    attention: tuple[int, ...]
    mid_attention: bool
    latent: int
    embedded: int
    codes: int
    resolution: int

    def config(self) -> dict[str, Any]:
        """The parameters of ``diffusers.VQModel``; for the released weights those of aMUSEd's, but for the sample size."""
        down = ["AttnDownEncoderBlock2D" if self._attends(level) else "DownEncoderBlock2D" for level in self._levels()]
        up = ["AttnUpDecoderBlock2D" if level in self.attention else "UpDecoderBlock2D" for level in self._levels()]
        return {
            "in_channels": self.channels,
            "out_channels": self.channels,
            "down_block_types": down,
            "up_block_types": up[::-1],
            "block_out_channels": list(self.widths),
            "layers_per_block": self.blocks,
            "act_fn": "silu",
            "latent_channels": self.latent,
            "sample_size": self.resolution,
            "num_vq_embeddings": self.codes,
            "norm_num_groups": 32,
            "vq_embed_dim": None if self.embedded == self.latent else self.embedded,
            "mid_block_add_attention": self.mid_attention,
            "lookup_from_codebook": True,
            "force_upcast": True,
        }

    def unused(self, name: str) -> bool:
        """Whether upstream has a weight of that name without ever using it.

        Its levels attend only if they have more than one attention, so that with one residual block a level the encoder's do nothing.
        """
        found = re.match(r"encoder\.down\.(\d+)\.attn\.", name)
        return found is not None and int(found[1]) in self.attention and not self._attends(int(found[1]))

    def _attends(self, level: int) -> bool:
        return level in self.attention and self.blocks > 1

    def _levels(self) -> range:
        return range(len(self.widths))


def upstream_name(name: str, levels: int) -> str:
    """The name that a weight of ``VQModel`` bears in ``VQGANModel``.

    Args:
        name: in diffusers.
        levels: how many levels the network has.
    """
    coder, _, rest = name.partition(".")
    if coder not in ("encoder", "decoder"):
        return name
    if found := re.fullmatch(r"(down|up)_blocks\.(\d+)\.(.+)", rest):
        way, level, inner = found[1], int(found[2]), found[3]
        inner = re.sub(r"^resnets\.", "block.", inner)
        inner = re.sub(r"^(down|up)samplers\.0\.", r"\1sample.", inner)
        inner = re.sub(r"^attentions\.(\d+)\.", r"attn.\1.", inner)
        rest = f"{way}.{level if way == 'down' else levels - 1 - level}.{inner}"
    elif found := re.fullmatch(r"mid_block\.resnets\.([01])\.(.+)", rest):
        rest = f"mid.block_{int(found[1]) + 1}.{found[2]}"
    elif rest.startswith("mid_block.attentions.0."):
        rest = "mid.attn_1." + rest.removeprefix("mid_block.attentions.0.")
    if found := re.fullmatch(r"(.*\.attn(?:_1|\.\d+))\.(.+)\.(weight|bias)", rest):
        rest = f"{found[1]}.{UPSTREAM_ATTENTION.get(found[2], found[2])}.{found[3]}"
    rest = re.sub(r"\bconv_shortcut\b", "nin_shortcut", rest)
    return f"{coder}.{re.sub(r'^conv_norm_out', 'norm_out', rest)}"


def upstream_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a weight of ``VQModel`` in ``VQGANModel``: projections of attention are 1 x 1 convolutions there."""
    is_projection = re.search(r"\.attentions\.\d+\.to_(q|k|v|out\.0)\.weight$", name) is not None
    return (*shape, 1, 1) if is_projection else shape


def read_layout(shapes: Shapes, config: Mapping[str, Any], path: Path) -> Layout:
    """The layout of a checkpoint: what its configuration says, and for what it leaves out, what the weights show.

    Upstream's class has defaults for what a configuration leaves out, but they are not the released network's.

    Args:
        shapes: of the weights, by upstream's names.
        config: upstream's ``config.json``; empty if there is none.
        path: the weights, for messages.

    Raises:
        ModelError: it is the checkpoint of another network, a weight that tells the layout is missing, or the configuration is of a
            variant that ``VQModel`` cannot be.
    """
    _refuse_others(shapes, path)
    for name, allowed in FIXED.items():
        if config.get(name) not in allowed:
            raise ModelError(f"config.json says {name} is {config[name]!r}: diffusers.VQModel has no such network")
    levels = _count(shapes, r"encoder\.down\.(\d+)\.", path)
    resolution = _number(config, "resolution", RESOLUTION)
    blocks = _number(config, "num_res_blocks", _count(shapes, r"encoder\.down\.0\.block\.(\d+)\.", path))
    latent, embedded, codes = (
        _number(config, "z_channels", _shape(shapes, "encoder.conv_out.weight", path)[0]),
        _number(config, "quantized_embed_dim", _shape(shapes, "quantize.embedding.weight", path)[1]),
        _number(config, "num_embeddings", _shape(shapes, "quantize.embedding.weight", path)[0]),
    )
    channels = _number(config, "num_channels", _shape(shapes, "encoder.conv_in.weight", path)[1])
    return Layout(
        channels=channels,
        widths=_widths(shapes, config, levels, path),
        blocks=blocks,
        attention=_attention(shapes, config, levels, resolution),
        mid_attention="encoder.mid.attn_1.q.weight" in shapes
        if config.get("no_attn_mid_block") is None
        else not config["no_attn_mid_block"],
        latent=latent,
        embedded=embedded,
        codes=codes,
        resolution=resolution,
    )


def _refuse_others(shapes: Shapes, path: Path) -> None:
    """Name the network that a checkpoint is of, where it is a known other one."""
    if any(name.startswith("encoder.down_blocks.") for name in shapes):
        raise ModelError(f"{path} has diffusers' names already: it is a VQModel and needs no conversion")
    if "encoder.mid.0.conv1.weight" in shapes or (
        "encoder.conv_in.weight" in shapes and not _has(shapes, "quant_conv.")
    ):
        raise ModelError(
            f"{path} is a MaskGitVQGAN ({len(shapes)} tensors; with the released configuration 170), not a VQGANModel (277): it has "
            "no quant_conv, averages instead of striding, and has no equivalent in diffusers"
        )
    if not _has(shapes, "encoder.down.") or not _has(shapes, "quantize.embedding."):
        known = ", ".join(sorted(shapes)[:4]) or "no tensor"
        raise ModelError(f"{path} is no VQGANModel: it has no encoder.down and quantize.embedding, but {known} ...")


def _widths(shapes: Shapes, config: Mapping[str, Any], levels: int, path: Path) -> tuple[int, ...]:
    factors = config.get("channel_mult")
    if factors is None:
        return tuple(_shape(shapes, f"encoder.down.{level}.block.0.conv1.weight", path)[0] for level in range(levels))
    first = _number(config, "hidden_channels", _shape(shapes, "encoder.conv_in.weight", path)[0])
    if not isinstance(factors, list) or not factors or not all(isinstance(n, int) and n > 0 for n in factors):
        raise ModelError(f"config.json says channel_mult is {factors!r}, not a list of numbers above 0")
    return tuple(first * factor for factor in factors)


def _attention(shapes: Shapes, config: Mapping[str, Any], levels: int, resolution: int) -> tuple[int, ...]:
    sizes = config.get("attn_resolutions")
    if sizes is None:
        return tuple(level for level in range(levels) if _has(shapes, f"decoder.up.{level}.attn."))
    if not isinstance(sizes, list):
        raise ModelError(f"config.json says attn_resolutions is {sizes!r}, not a list")
    return tuple(level for level in range(levels) if resolution // 2**level in sizes)


def _number(config: Mapping[str, Any], name: str, otherwise: int) -> int:
    value = config.get(name)
    if value is None:
        return otherwise
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ModelError(f"config.json says {name} is {value!r}, not a number above 0")
    return value


def _count(shapes: Shapes, pattern: str, path: Path) -> int:
    numbers = {int(found[1]) for name in shapes if (found := re.match(pattern, name))}
    if not numbers:
        raise ModelError(f"{path} has no weight like {pattern.replace(chr(92), '')}")
    return max(numbers) + 1


def _shape(shapes: Shapes, name: str, path: Path) -> tuple[int, ...]:
    found = shapes.get(name)
    if found is None or len(found) < 2:
        raise ModelError(
            f"{path} has no {name}"
            if found is None
            else f"{path}: {name} has the shape {list(found)}, which is none of such a weight"
        )
    return found


def _has(shapes: Shapes, beginning: str) -> bool:
    return any(name.startswith(beginning) for name in shapes)
