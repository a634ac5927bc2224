"""The model card of a distilled adapter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kshot.data.task import Task
from kshot.models.visual_sentence import VisualSentenceModel
from kshot.models.vlm import VLM


def model_card(
    vlm: VLM | VisualSentenceModel, task: Task, request: Mapping[str, Any], figures: Mapping[str, Any]
) -> str:
    """README.md of an adapter: what it is, how it was made, how good it was on what was held out, how to use it.

    Args:
        vlm: the model that it belongs to.
        task: what it was distilled on.
        request: the options of the run, defaults filled in.
        figures: of all seeds, as they are in the record.
    """
    base, method = vlm.source or vlm.name, request["method"]
    chosen = figures["seeds"][str(figures["chosen"])]
    losses = request["losses"]
    used = [f"{losses[name]:g} x {words}" for name, words in WORDS.items() if losses[name]]
    rows = [
        ("method", method),
        ("base model", base),
        ("task", task.name),
        ("demonstrations of the teacher", f"{request['shots']} ({request['demonstrations']})"),
        ("training queries", f"{request['samples']}"),
        ("trained parameters", f"{chosen['parameters']:,}"),
        ("loss", " + ".join(used)),
        ("steps", f"{chosen['steps']:,}" + (f", epoch {chosen['epoch']:g} chosen" if "epoch" in chosen else "")),
    ]
    table = ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]
    header = [
        "---",
        f"base_model: {base}",
        "library_name: peft",
        "tags:",
        "- kshot",
        f"- {method}",
        f"- {task.name}",
        "---",
    ]
    lines = [*header, "", f"# {method} for {base} on {task.name}", ""]
    lines += [
        "What demonstrations do to the frozen model, distilled into an adapter with [kshot](https://pypi.org/project/kshot/).",
        "",
    ]
    lines += [*table, "", *_results(figures), "## Use", ""]
    lines += [
        "```python",
        "import kshot",
        "",
        f'model = kshot.load_model("{base}", adapter="FOLDER OR HUB ID OF THIS ADAPTER")',
        "```",
        "",
        "With PEFT alone:",
        "",
        "```python",
        "import kshot  # tells PEFT about the method",
        "from peft import PeftModel",
        "",
        'model = PeftModel.from_pretrained(model, "FOLDER OR HUB ID OF THIS ADAPTER")',
        "```",
        "",
        "All options and logs are in `training/`.",
        "",
    ]
    return "\n".join(lines)


WORDS = {
    "kl": "divergence from the teacher's answers",
    "align": "distance from the teacher's hidden states",
    "ce": "cross-entropy of the answer",
}


def _results(figures: Mapping[str, Any]) -> list[str]:
    """Figures on what was held out of the support set, with their spread over seeds."""
    if not figures["spread"]:
        return []
    seeds = figures["seeds"]
    chosen = seeds[str(figures["chosen"])]
    lines = [
        "## Held-out examples of the support set",
        "",
        "Not the task's test queries: run `kshot evaluate` for those.",
        "",
    ]
    for name, label in (("held_out_metric", chosen.get("metric", "metric")), ("held_out_loss", "loss of the answer")):
        if chosen.get(name) is None:
            continue
        over = figures["spread"][name]
        several = (
            f" (mean of {len(seeds)} seeds {over['mean']:.4g}, standard deviation {over['sd']:.2g})"
            if len(seeds) > 1
            else ""
        )
        lines.append(f"- {label}: {chosen[name]:.4g}{several}")
    return [*lines, ""]
