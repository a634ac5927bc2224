"""Does link-context training teach a model to learn from its context? From chance, on a fixed budget, beside the same without it.

The start is the embedded model's vision tower under a new language model that has only learnt to answer questions about single
pictures. From there three runs of equally many steps: ``episodes`` (link-context episodes of Omniglot's small1, 4 demonstrations of
each of 2 classes), ``questions`` (more of the same questions), and ``mix`` (half and half). On the way each is tested on characters
of other alphabets (small2): greedy answers over the whole vocabulary, and the likelier of the two names (chance: 1/2), with shuffled
labels as control; the latter also under names that no episode used; 5-way episodes, which none was trained on; new questions.

    python benchmarks/link_context.py --train images_background_small1.zip --test images_background_small2.zip

Writes ``results/link_context.csv`` and ``docs/pictures/link_context.png``. About half an hour of one core.
"""

from __future__ import annotations

import argparse
import csv
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file

import kshot
from kshot.data.drawing import SCENE_TASKS
from kshot.models.loading import load_model
from kshot.models.vlm import VLM
from kshot.training.tiny_language import label_piece_ids
from kshot.training.tiny_model import TinyShape, build_model
from kshot.training.train_answers import train_answers
from kshot.training.trainer import complete_checkpoints

ROOT = Path(__file__).resolve().parents[1]
ASKED = {"ask": "named", "held_out": "none"}
QUESTIONS = {"kind": "task", "task": "scenes", "options": ASKED, "style": "plain"}
SHORT = {"demonstration": "<image> is {answer}.", "query": "<image> is ", "instruction": "", "separator": ""}
"""A short form: what is to be learnt here is about pictures, not about words."""
RUNS: dict[str, dict[str, float]] = {
    "episodes": {"episodes": 1.0},
    "questions": {"questions": 1.0},
    "mix": {"episodes": 0.5, "questions": 0.5},
}
MEASURED = {
    "greedy": "2-way, 8 shots, greedy",
    "likelihood": "2-way, 8 shots, likelier name",
    "shuffled": "2-way, 8 shots, likelier name, labels shuffled",
    "unseen_names": "2-way, 8 shots, likelier name, names that no episode used",
    "five_way": "5-way, 5 shots, greedy",
    "questions": "questions about one picture, greedy",
}


def new_language(folder: Path, seed: int) -> None:
    """The embedded model with a language model that knows nothing."""
    vlm = load_model("tiny", device_map="cpu")
    fresh = build_model(TinyShape(), vlm.tokenizer, seed)
    for part in ("vision_tower", "multi_modal_projector"):
        getattr(fresh.model, part).load_state_dict(getattr(vlm.model.model, part).state_dict())
    fresh.generation_config = vlm.model.generation_config
    decoder = fresh.model.language_model
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():  # as the embedded model begins, see training/tiny_language.py
        decoder.norm.weight.fill_(0.15)
        words = decoder.embed_tokens.weight
        words.copy_(torch.randn(words.shape, generator=generator))
        labels = label_piece_ids(vlm.tokenizer)
        words[labels] = (words[labels] + torch.randn(words.shape[1], generator=generator)) / 2**0.5
    fresh.save_pretrained(folder)
    vlm.processor.save_pretrained(folder)


def names_of_one_token(folder: Path) -> tuple[list[str], list[str]]:
    """Names for training, and others for testing. (With names of several tokens the same takes several times as long.)"""
    tokenizer = load_model(folder, device_map="cpu").tokenizer
    pieces = [tokenizer.convert_ids_to_tokens(i) for i in label_piece_ids(tokenizer)]
    taken = {word for words in SCENE_TASKS.values() for word in words}
    single = [p for p in pieces if len(p) > 1 and len(tokenizer(p, add_special_tokens=False).input_ids) == 1]
    names = [name for name in single if name.islower() and name not in taken]
    return names[::2], names[1::2]


def measure(vlm: VLM, test: str, names: tuple[list[str], list[str]], episodes: int) -> dict[str, float]:
    """The figures of :data:`MEASURED`; ``names``: those of training, and others."""

    def omniglot(ways: int, shots: int, control: str = "none", others: bool = False, **options: Any) -> Any:
        task = kshot.load_task("omniglot", root=test, ways=ways, episodes=episodes, names=names[others], template=SHORT)
        return kshot.evaluate(vlm, task, shots=[shots], style="plain", controls=[control], **options)

    two, five = omniglot(2, 8), omniglot(5, 5)
    likelier = omniglot(2, 8, "shuffled-labels", scoring="likelihood")
    unseen = omniglot(2, 8, others=True, scoring="likelihood")
    task = kshot.load_task("scenes", episodes=episodes, **ASKED)
    questions = kshot.evaluate(vlm, task, shots=[0], style="plain")
    return {
        "greedy": two.value(8),
        "likelihood": likelier.value(8),
        "shuffled": likelier.value(8, "shuffled-labels"),
        "unseen_names": unseen.value(8),
        "five_way": five.value(5),
        "questions": questions.value(0),
    }


def train(
    start: Path, data: dict[str, Any], out: Path, chosen: argparse.Namespace, steps: int, summary: float
) -> float:
    """One run of ``kshot train``; returns its CPU minutes."""
    began = time.process_time()
    trainer = {
        "max_steps": steps,
        "per_device_train_batch_size": chosen.batch,
        "learning_rate": chosen.rate,
        "lr_scheduler_type": "warmup_stable_decay",
        "lr_scheduler_kwargs": {"num_decay_steps": steps // 4},
        "warmup_steps": 60,
        "adam_beta2": 0.98,
        "save_steps": chosen.every,
    }
    train_answers(
        str(out),
        model=str(start),
        data=data,
        freeze="vision+projector",
        features=True,
        summary=summary,
        trainer=trainer,
        keep=10**6,
        work=f"{out}.work",
    )
    return (time.process_time() - began) / 60


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True, help="images_background_small1.zip")
    parser.add_argument("--test", required=True, help="images_background_small2.zip")
    parser.add_argument("--work", type=Path, default=Path("link_context.work"))
    parser.add_argument("--start-steps", type=int, default=300)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--every", type=int, default=150, help="steps between tests")
    parser.add_argument("--batch", type=int, default=56)
    parser.add_argument("--rate", type=float, default=1.5e-3)
    parser.add_argument(
        "--summary", type=float, default=4.0, help="weight of the summary loss where there are episodes"
    )
    parser.add_argument("--episodes", type=int, default=150, help="of each test on the way; 600 at the end")
    parser.add_argument("--runs", nargs="*", default=list(RUNS))
    parser.add_argument("--results", type=Path, default=ROOT / "results" / "link_context.csv")
    parser.add_argument("--picture", type=Path, default=ROOT / "docs" / "pictures" / "link_context.png")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    start = chosen.work / "start"
    if not start.exists():
        new_language(chosen.work / "new", 0)
        minutes = train(chosen.work / "new", {"questions": QUESTIONS}, start, chosen, chosen.start_steps, 0.0)
        print(f"start: {minutes:.1f} CPU minutes", flush=True)
    names = names_of_one_token(start)
    episodes = {
        "kind": "link", "source": chosen.train, "ways": 2, "sampler": "fixed", "shots_per_side": 4, "negatives": "random",
        "names": names[0], "novel": "all", "template": SHORT, "style": "plain", "loss": "shown",
    }  # fmt: skip
    sources = {"episodes": episodes, "questions": QUESTIONS}
    vlm = load_model(start, device_map="cpu")
    before = measure(vlm, chosen.test, names, 600)
    rows: list[dict[str, Any]] = []
    for name in chosen.runs:
        data = {part: {**sources[part], "share": share} for part, share in RUNS[name].items()}
        out = chosen.work / name
        minutes = train(start, data, out, chosen, chosen.steps, chosen.summary if "episodes" in data else 0.0)
        rows.append({"run": name, "step": 0, "cpu_minutes": 0.0, "episodes": 600, **before})
        for checkpoint in complete_checkpoints(Path(f"{out}.work")):
            step = int(checkpoint.name.rpartition("-")[2])
            weights = load_file(checkpoint / "model.safetensors")
            vlm.model.load_state_dict(
                {k: v for k, v in weights.items() if not k.startswith("summary_probe")}, strict=False
            )
            count = 600 if step == chosen.steps else chosen.episodes
            found = measure(vlm, chosen.test, names, count)
            rows.append(
                {"run": name, "step": step, "cpu_minutes": minutes * step / chosen.steps, "episodes": count, **found}
            )
            print({k: round(v, 3) if isinstance(v, float) else v for k, v in rows[-1].items()}, flush=True)
        write(rows, chosen)
    draw(rows, chosen.picture)


def write(rows: list[dict[str, Any]], chosen: argparse.Namespace) -> None:
    """All figures, with what they were measured with."""
    versions = {"kshot": kshot.__version__, "torch": torch.__version__, "transformers": transformers.__version__}
    settings = {
        "batch": chosen.batch,
        "rate": chosen.rate,
        "summary": chosen.summary,
        "start_steps": chosen.start_steps,
    }
    with chosen.results.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*rows[0], *settings, *versions])
        writer.writeheader()
        for row in rows:
            shown = {key: f"{value:.4f}" if isinstance(value, float) else value for key, value in row.items()}
            writer.writerow(shown | settings | versions)


def draw(rows: list[dict[str, Any]], picture: Path) -> None:
    """Accuracy against the step, a panel a figure, a line a run."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    shown = ("likelihood", "greedy", "questions")
    figure, panels = plt.subplots(1, len(shown), figsize=(11, 3.4), sharey=True, layout="constrained")
    for axes, what in zip(panels, shown, strict=True):
        for run in dict.fromkeys(row["run"] for row in rows):
            own = [row for row in rows if row["run"] == run]
            axes.plot([row["step"] for row in own], [row[what] for row in own], marker="o", label=run)
        if what == "likelihood":
            axes.axhline(0.5, color="gray", linestyle=":", label="chance")
        axes.set(title=MEASURED[what], xlabel="step", ylim=(-0.02, 1.02))
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("accuracy")
    panels[0].legend()
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
