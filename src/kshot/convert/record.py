"""Whether a conversion is right, found out from the files it wrote, and the record that is kept of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from tqdm import tqdm

from kshot.convert.shards import Entry, octets
from kshot.convert.vision import vision_names
from kshot.convert.weights import Weights
from kshot.models.loading import quiet_unless_watched
from kshot.version import __version__

RECORD = "kshot_conversion.json"
SMALL = 64_000_000
"""Models of at most so many parameters are also run, beside the source."""
ROWS = 16
TOLERANCE = 1e-5
"""Of logits, in float32: the source's parts and the converted model may sum in another order."""


@dataclass(frozen=True)
class SelfTest:
    """What the comparison of a conversion with its source gave.

    Attributes:
        weights: how many weights were compared, byte by byte, as they are in the new files.
        different: the names of those that differ.
        projector: largest difference between the features of the source's projector and those of the converted one, on random
            input in the weights' own type.
        logits: largest difference of logits between the source's parts put together by hand and the new model, in float32, on a
            prompt with an image; ``None`` if the model is too large to be tried twice.
    """

    weights: int
    different: tuple[str, ...]
    projector: float
    logits: float | None

    @property
    def passed(self) -> bool:
        """Whether all is as it must be."""
        return not self.different and self.projector == 0.0 and (self.logits is None or self.logits <= TOLERANCE)

    def describe(self) -> str:
        """In words."""
        if not self.passed:
            return f"self-test FAILED: {asdict(self)}"
        run = (
            f", logits equal to {self.logits:.0e} in float32"
            if self.logits is not None
            else "; too large to be run here as a whole"
        )
        return (
            f"self-test passed: {self.weights} weights equal byte by byte, projector equal to {self.projector:.0e}{run}"
        )


def try_conversion(
    folder: Path, entries: Sequence[Entry], source: Weights, projector: str, tower: Weights, config: Any
) -> SelfTest:
    """Compare the weights in a folder with what they were made from.

    Args:
        folder: the converted model.
        entries: what was to be written.
        source: the checkpoint.
        projector: name of its projector.
        tower: the weights of the vision model.
        config: of the new model.
    """
    different: list[str] = []
    with Weights(folder) as written:
        for entry in tqdm(entries, desc="checking", unit="weight", disable=None, leave=False):
            found, wanted = written.get(entry.name), entry.make()
            if (
                found.dtype != wanted.dtype
                or found.shape != wanted.shape
                or not torch.equal(octets(found), octets(wanted))
            ):
                different.append(entry.name)
        difference = _projector_difference(written, source, projector)
    parameters = sum(torch.Size(entry.shape).numel() for entry in entries)
    logits = _logit_difference(folder, source, projector, tower, config) if parameters <= SMALL else None
    return SelfTest(len(entries), tuple(different), difference, logits)


def _projector_difference(written: Weights, source: Weights, projector: str) -> float:
    weight = source.get(f"{projector}.weight")
    bias = source.get(f"{projector}.bias") if f"{projector}.bias" in source else None
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(ROWS, weight.shape[1], generator=generator).to(weight.dtype)
    expected = torch.nn.functional.linear(features, weight, bias)
    found = features
    for layer in ("linear_1", "linear_2"):
        name = f"model.multi_modal_projector.{layer}"
        found = torch.nn.functional.linear(found, written.get(f"{name}.weight"), written.get(f"{name}.bias"))
    return float((found.float() - expected.float()).abs().max())


@torch.inference_mode()
def _logit_difference(folder: Path, source: Weights, projector: str, tower: Weights, config: Any) -> float:
    """The new model beside a LLaMA, a linear layer and a CLIP with the source's weights, on one prompt with one image."""
    generator = torch.Generator().manual_seed(0)
    image = config.image_token_index
    words = torch.randint(0, config.text_config.vocab_size, (1, 8), generator=generator)
    words[words == image] = (image + 1) % config.text_config.vocab_size
    ids = torch.cat([words[:, :4], torch.full((1, config.image_seq_length), image), words[:, 4:]], dim=1)
    vision = config.vision_config
    pixels = torch.randn(1, vision.num_channels, vision.image_size, vision.image_size, generator=generator)

    clip = transformers.CLIPVisionModel(vision).float().eval()
    clip.load_state_dict({own: tower.get(name).float() for own, name in vision_names(tower).items()})
    states = clip(pixels, output_hidden_states=True).hidden_states[config.vision_feature_layer]
    if config.vision_feature_select_strategy == "default":
        states = states[:, 1:]
    bias = source.get(f"{projector}.bias").float() if f"{projector}.bias" in source else None
    features = torch.nn.functional.linear(states, source.get(f"{projector}.weight").float(), bias)
    llama = transformers.LlamaForCausalLM(config.text_config).float().eval()
    own = {name: source.get(name) for name in llama.state_dict() if name in source}
    llama.load_state_dict(own, strict=not config.tie_word_embeddings)
    embedded = llama.get_input_embeddings()(ids)
    embedded[ids == image] = features[0]
    expected = llama(inputs_embeds=embedded).logits

    with quiet_unless_watched():
        model = transformers.LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    found = model(input_ids=ids, pixel_values=pixels).logits
    return float((found - expected).abs().max())


def write_record(
    folder: Path,
    *,
    kind: str,
    source: Path,
    vision: str,
    image_mode: str,
    entries: Sequence[Entry],
    marks: Mapping[str, int],
    notes: Sequence[str],
    result: SelfTest,
) -> None:
    """Keep in ``kshot_conversion.json`` where a model comes from and how it was tested."""
    record = {
        "kind": kind,
        "source": source.resolve().name,
        "vision": Path(vision).name if Path(vision).is_dir() else vision,
        "image_mode": image_mode,
        "tokens": dict(marks),
        "weights": len(entries),
        "parameters": sum(torch.Size(entry.shape).numel() for entry in entries),
        "dtypes": sorted({str(entry.dtype).removeprefix("torch.") for entry in entries}),
        "new_weights": [entry.name for entry in entries if not entry.origin],
        "notes": list(notes),
        "self_test": {"passed": result.passed, **asdict(result), "summary": result.describe()},
        "versions": {"kshot": __version__, "torch": torch.__version__, "transformers": transformers.__version__},
    }
    (folder / RECORD).write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def describe(folder: Path) -> str:
    """The record of a conversion, in a few lines."""
    record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    size = f"{record['parameters']:,} parameters ({', '.join(record['dtypes'])})"
    lines = [
        f"{folder}: {record['source']} with the vision tower of {record['vision']}, {size}",
        f"image mode: {record['image_mode']}; tokens: " + ", ".join(f"{m} {i}" for m, i in record["tokens"].items()),
        *(f"note: {note}" for note in record["notes"]),
        record["self_test"]["summary"],
    ]
    return "\n".join(lines)
