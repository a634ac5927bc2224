"""What is kept of a conversion of a large vision model: where it comes from, what was put right, how it was tested."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from kshot.convert.record import RECORD
from kshot.convert.shards import Entry
from kshot.version import __version__


@dataclass(frozen=True)
class LVMTest:
    """What the comparison of a conversion with its source gave.

    Attributes:
        weights: how many weights were read back, turned back, and compared byte by byte.
        different: the names of those that differ.
    """

    weights: int
    different: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether all is as it must be."""
        return not self.different

    def describe(self) -> str:
        """In words."""
        if not self.passed:
            return f"self-test FAILED: {len(self.different)} of {self.weights} weights differ ({', '.join(self.different[:3])} ...)"
        return f"self-test passed: {self.weights} weights, turned back, are equal to the source byte by byte"


def write_record(
    folder: Path,
    *,
    source: str,
    layout: str,
    config: Any,
    codes: int,
    entries: Sequence[Entry],
    tokenizer: str | None,
    notes: Sequence[str],
    test: LVMTest,
) -> None:
    """Keep in ``kshot_conversion.json`` where a model comes from and how it was tested."""
    record = {
        "kind": "lvm",
        "source": source,
        "layout": layout,
        "shape": {
            "hidden": config.hidden_size, "inner": config.intermediate_size, "layers": config.num_hidden_layers,
            "heads": config.num_attention_heads, "kv_heads": config.num_key_value_heads, "context": config.max_position_embeddings,
        },
        "codes": codes,
        "vocabulary": config.vocab_size,
        "rope_table_dtype": config.rope_table_dtype,
        "tokenizer": tokenizer,
        "weights": len(entries),
        "parameters": sum(torch.Size(entry.shape).numel() for entry in entries),
        "dtypes": sorted({str(entry.dtype).removeprefix("torch.") for entry in entries}),
        "notes": list(notes),
        "self_test": {"passed": test.passed, **asdict(test), "summary": test.describe()},
        "versions": {"kshot": __version__, "torch": torch.__version__, "transformers": transformers.__version__},
    }  # fmt: skip
    (folder / RECORD).write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def describe(folder: Path) -> str:
    """The record of a conversion, in a few lines."""
    record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    shape = record["shape"]
    tokenizer = record["tokenizer"]
    lines = [
        f"{folder}: {record['source']}, {record['parameters']:,} parameters ({', '.join(record['dtypes'])}): {shape['layers']} layers "
        f"of width {shape['hidden']:,}, {shape['heads']} heads, {record['codes']:,} codes, up to {shape['context']:,} tokens",
        *(f"note: {note}" for note in record["notes"]),
        f"visual tokenizer {tokenizer} beside the weights"
        if tokenizer
        else "no visual tokenizer beside the weights (--tokenizer FOLDER): give one before kshot loads the model",
        record["self_test"]["summary"],
    ]
    return "\n".join(lines)
