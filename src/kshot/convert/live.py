"""LIVE's ``icv_cpk.pth`` (arXiv 2406.13185) as an adapter of method ``live``.

Upstream's training ends with a dictionary: the vectors ``icv_encoder.icv [1, layers, width]``, the scales
``icv_encoder.alpha [1, layers]`` as they were learnt, ``use_sigmoid`` (whether their sigmoid is the scale), and ``lmm_args``, the
settings of the model, of which ``layer_format`` says where the vectors are added (``...layers.<LAYER_NUM>`` or
``...layers.<LAYER_NUM>.mlp``) and ``intervention_layer`` on which layers (-1: all). MimIC's repository has LIVE, too: there an epoch
folder's ``encoder.pth`` holds ``ffn_shift [layers, width]`` and ``ffn_shift_scale [layers]``. Both add and rescale alike.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from kshot.convert.adapters import base_of, sizes, write_adapter
from kshot.convert.folder import check_free
from kshot.convert.pickled import load_pickled, tensor
from kshot.errors import ModelError, OptionError
from kshot.methods.live import LiveConfig
from kshot.models.anatomy import Anatomy

Placement = Literal["layer", "mlp"]
FILE, ENCODER = "icv_cpk.pth", "encoder.pth"
VECTORS, SCALES = "icv_encoder.icv", "icv_encoder.alpha"
KNOWN = frozenset(
    (VECTORS, SCALES, "use_sigmoid", "lmm_args", "icv_intervention_args", "temperature", "ffn_shift", "ffn_shift_scale")
)


@dataclass(frozen=True)
class Vectors:
    """What was learnt.

    Attributes:
        vectors: ``[rows, width]``.
        scales: ``[rows]``.
        sigmoid: whether the sigmoid of a scale is meant.
        layers: the decoder layer of each row; ``None``: all, in order.
        placement: where they are added; ``None`` if the file does not say.
        notes: what else the file holds.
    """

    vectors: torch.Tensor
    scales: torch.Tensor
    sigmoid: bool
    layers: list[int] | None
    placement: Placement | None
    notes: tuple[str, ...] = ()


def convert_live(
    source: str | os.PathLike[str],
    *,
    model: str | os.PathLike[str],
    out: str | os.PathLike[str],
    placement: str | None = None,
) -> Path:
    """Convert LIVE's learnt vectors into an adapter for kshot, PEFT and transformers.

    Nothing in the file is run (``weights_only``), and of the base model only the configuration is read. The vectors keep their type;
    the adapter is compared with the source when it is written.

    Args:
        source: ``icv_cpk.pth``, or the folder that holds it; or an epoch folder of LIVE as trained by MimIC's code.
        model: the base model: folder or Hub id.
        out: the new folder; must not exist, or be empty.
        placement: "layer" or "mlp": the outputs that are shifted. Needed only where the file does not say it.

    Returns:
        ``out``.

    Raises:
        ModelError: the source is not there, damaged, would run code, or its vectors do not fit the base model.
        OptionError: the placement is unknown, not known from the file, or not the file's; or ``out`` is not empty.
    """
    if placement is not None and placement not in get_args(Placement):
        raise OptionError(f"unknown placement {placement!r}: use 'layer' or 'mlp'")
    path, target = find_file(Path(source).expanduser(), (FILE, ENCODER), "LIVE"), Path(out).expanduser()
    check_free(target)
    found = read_live(path)
    place = _placement(found.placement, placement, path)
    base, anatomy = base_of(model)
    layers = _check(found, anatomy, path)
    config = LiveConfig(layers=found.layers, placement=place, sigmoid=found.sigmoid)
    row = {layer: number for number, layer in enumerate(layers)}
    return write_adapter(
        target,
        kind="live",
        source=path,
        model=model,
        base=base,
        config=config,
        values=lambda part: {
            "live_vector": found.vectors[row[part.number]],
            "live_alpha": found.scales[row[part.number]].reshape(1),
        },
        notes=found.notes,
    )


def find_file(source: Path, names: tuple[str, ...], program: str) -> Path:
    """The checkpoint file: ``source`` itself, or in it.

    Raises:
        ModelError: it is not there; the message says what is.
    """
    if source.is_file():
        return source
    if not source.is_dir():
        raise ModelError(f"no file or folder {str(source)!r}: give {' or '.join(names)}, or the folder that holds it")
    for name in names:
        if (source / name).is_file():
            return source / name
    inside = sorted(str(path.relative_to(source)) for name in names for path in source.glob(f"*/{name}"))
    if inside:
        raise ModelError(f"{source} holds several results of {program}; give one of them: {', '.join(inside)}")
    raise ModelError(f"{source} is no result of {program}: it has no {' and no '.join(names)}")


def read_live(path: Path) -> Vectors:
    """The vectors in a file.

    Raises:
        ModelError: it holds something else.
    """
    held = load_pickled(path)
    if "ffn_shift_scale" in held or "attn_shift_scale" in held:
        return _of_mimics_code(held, path)
    if "attn_shift" in held:
        raise ModelError(f"{path} is a result of MimIC, not of LIVE: kshot convert mimic")
    if "ffn_shift" in held:  # without a learnt scale, the whole vector is added
        vectors = tensor(held, "ffn_shift", path)
        return _of_mimics_code({**held, "ffn_shift_scale": vectors.new_ones(vectors.shape[:1])}, path)
    vectors, scales = tensor(held, VECTORS, path), tensor(held, SCALES, path)
    vectors = vectors[0] if vectors.ndim == 3 and vectors.shape[0] == 1 else vectors
    scales = scales[0] if scales.ndim == 2 and scales.shape[0] == 1 else scales
    if vectors.ndim != 2 or scales.shape != vectors.shape[:1]:
        raise ModelError(
            f"{path}: vectors {list(held[VECTORS].shape)} and scales {list(held[SCALES].shape)}; LIVE has [1, layers, width] and "
            "[1, layers]"
        )
    settings = held.get("lmm_args", held.get("icv_intervention_args"))
    settings = settings if isinstance(settings, Mapping) else {}
    notes = [f"trained on {settings['model_name']}"] if settings.get("model_name") else []
    odd = sorted(set(held) - KNOWN)
    if odd:
        notes.append(f"not used: {', '.join(odd)}")
    chosen = _layers(settings.get("intervention_layer", -1), path)
    return Vectors(vectors, scales, bool(held.get("use_sigmoid")), chosen, _format(settings, path), tuple(notes))


def _of_mimics_code(held: Mapping[str, Any], path: Path) -> Vectors:
    if "attn_shift" in held:
        raise ModelError(f"{path}: its vectors are added to the output of attention, which method live does not offer")
    vectors, scales = tensor(held, "ffn_shift", path), tensor(held, "ffn_shift_scale", path)
    if vectors.ndim != 2 or scales.shape != vectors.shape[:1]:
        raise ModelError(
            f"{path}: ffn_shift {list(vectors.shape)} and ffn_shift_scale {list(scales.shape)} differ in layers"
        )
    return Vectors(vectors, scales, False, None, "mlp", ("LIVE as trained by MimIC's code",))


def _layers(stored: Any, path: Path) -> list[int] | None:
    """Upstream's ``intervention_layer``."""
    if stored == -1 or stored is None:
        return None
    numbers = stored if isinstance(stored, list) else [stored]
    if not numbers or any(not isinstance(number, int) or number < 0 for number in numbers):
        raise ModelError(f"{path}: intervention_layer is {stored!r}, not -1, a number or a list of numbers")
    if len(set(numbers)) != len(numbers):
        raise ModelError(f"{path}: intervention_layer {stored!r} names a layer twice")
    return [int(number) for number in numbers]


def _format(settings: Mapping[str, Any], path: Path) -> Placement | None:
    """The placement that upstream's ``layer_format`` means."""
    form = settings.get("layer_format")
    if form is None:
        return None
    end = str(form).rpartition("<LAYER_NUM>")[2]
    if end == "":
        return "layer"
    if end == ".mlp":
        return "mlp"
    raise ModelError(f"{path}: its vectors are added to {form!r}; method live offers decoder layers and their MLPs")


def _placement(stored: Placement | None, given: str | None, path: Path) -> Placement:
    if stored is None and given is None:
        raise OptionError(
            f"{path.name} does not say where its vectors are added: give --placement layer (outputs of decoder layers) or "
            "--placement mlp (of their MLPs)"
        )
    if stored is not None and given is not None and stored != given:
        raise OptionError(
            f"{path.name} says that its vectors are added to the output of the {stored}, not of the {given}"
        )
    return stored or ("layer" if given == "layer" else "mlp")


def _check(found: Vectors, anatomy: Anatomy, path: Path) -> list[int]:
    """The decoder layer of each row.

    Raises:
        ModelError: the vectors are those of another model.
    """
    rows, width = found.vectors.shape
    layers = list(range(rows)) if found.layers is None else found.layers
    count = len(anatomy.layers)
    wrong = rows != count if found.layers is None else (len(layers) != rows or max(layers) >= count)
    if wrong or width != anatomy.hidden_size:
        where = f" for layers {layers}" if found.layers is not None else ""
        raise ModelError(
            f"{path} has {rows} vectors of width {width}{where}, but {sizes(anatomy)}: give the model they were trained on"
        )
    return layers
