"""The course of a training run as a picture."""

from __future__ import annotations

import json
from pathlib import Path


def plot_log(log: Path, picture: Path) -> None:
    """Draw loss, its parts and the learning rate against the step, from a run's ``log.jsonl``."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    entries = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines() if line.strip()]
    entries = [entry for entry in entries if "loss" in entry]
    steps = [entry["step"] for entry in entries]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    names = sorted({name for entry in entries for name in entry if name == "loss" or name.endswith("_loss")})
    for name in names:
        left.plot(steps, [entry.get(name, float("nan")) for entry in entries], label=name.replace("_", " "))
    left.set(xlabel="step", ylabel="loss", title="Training loss")
    if len(names) > 1:
        left.legend()
    right.plot(steps, [entry.get("learning_rate", float("nan")) for entry in entries])
    right.set(xlabel="step", ylabel="learning rate", title="Learning rate")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.savefig(picture, dpi=120)
    plt.close(figure)
