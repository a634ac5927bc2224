"""``kshot quickstart``: a small model learns from its context, before your eyes and offline."""

from __future__ import annotations

import io
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kshot.comparison import MethodComparison, compare_methods
from kshot.data.task import load_task
from kshot.errors import OptionError
from kshot.evaluation import plots, report
from kshot.evaluation.evaluate import evaluate
from kshot.evaluation.loading import AnyModel, load_any
from kshot.evaluation.results import Evaluation
from kshot.evaluation.runs import write_bytes, write_text
from kshot.evaluation.show import show
from kshot.models.base import Model
from kshot.models.vlm import VLM

if TYPE_CHECKING:
    from rich.console import Group

CONTROL = "shuffled-labels"
DIGITS, SCENES = "real digits", "scenes"
NOTES = {
    DIGITS: "handwriting, two digits a question, under names invented for it. Without demonstrations nobody can know the names, and "
    "with shuffled labels nobody can be right more often than 1 in 2.",
    SCENES: "the question is always 'What is it?'; only the demonstrations' answers show which of eight attributes is meant. Shuffled "
    "labels still show it, so they cost less: this is recognising a known task, the digits are learning a new one.",
}
COLUMNS = ("task", "demonstrations", "accuracy", "labels shuffled")
LEARNT_COLUMNS = ("task", "0 shots", "8 shots", "LIVE", "MimIC", "size", "time")
METHODS = {"live": "LIVE", "mimic": "MimIC"}
SHOTS = 8
LEARNT = {"colours": "colour of a scene", "pair": "invented pair"}
LEARNING = (
    "Demonstrations put into an adapter of a few kilobytes: what the model does with {shots} of them in its prompt is taught to it "
    "without them, from {samples} labelled pictures, a quarter of them held out. LIVE adds the same vector at every token, "
    "MimIC one that depends on the query."
)


@dataclass(frozen=True)
class Quickstart:
    """What the quickstart found.

    Attributes:
        digits, scenes: the two evaluations.
        learnt: adapters beside prompts, by task; empty if that was left out.
        folder: where everything was written.
        answer: what the model answered in the saved picture, and whether that is right.
        seconds: how long it took.
    """

    digits: Evaluation
    scenes: Evaluation
    learnt: dict[str, MethodComparison]
    folder: Path
    answer: tuple[str, bool]
    seconds: float

    def rows(self) -> list[tuple[str, ...]]:
        """The table as text, in the order of :data:`COLUMNS`."""
        lines: list[tuple[str, ...]] = []
        for name, result in ((DIGITS, self.digits), (SCENES, self.scenes)):
            for row in result.rows:
                if row.kind == CONTROL:
                    continue
                shots = f"{row.shots}{f' ({row.shots // 2} of each)' if name == DIGITS and row.shots else ''}"
                control = next((c for c in result.rows if (c.kind, c.shots) == (CONTROL, row.shots)), None)
                lines.append((name, shots, _figure(row), _figure(control)))
        return lines

    def learnt_rows(self) -> list[tuple[str, ...]]:
        """The table of adapters as text, in the order of :data:`LEARNT_COLUMNS`."""
        lines = []
        for name, found in self.learnt.items():
            scores = [found.row(method).score for method in ("zero_shot", "few_shot", *METHODS)]
            size = max(found.row(method).adapter_bytes for method in METHODS)
            seconds = sum(found.row(method).training_seconds for method in METHODS)
            lines.append((LEARNT[name], *map(str, scores), f"{size / 1000:.0f} kB", f"{seconds:.0f} s"))
        return lines

    def _learning(self) -> str:
        """What the second table is about."""
        return LEARNING.format(shots=SHOTS, samples=next(iter(self.learnt.values())).facts["samples"])

    def next_steps(self) -> list[tuple[str, str]]:
        """Commands to go on with, and what each is for."""
        return [
            (
                "look at a prompt, and at what the model makes of it",
                "kshot show --task scenes --model tiny --shots 8 --save scenes.png",
            ),
            (
                "try harder: five characters the model never saw, with all controls",
                "kshot evaluate --model tiny --task glyphs --ways 5 --shots-per-class 1,2,4 "
                "--control shuffled-labels,blank-images,no-query-image --out runs/glyphs",
            ),
            (
                "a model from the hub on your own pictures (one folder a class)",
                "kshot evaluate --model Qwen/Qwen3-VL-2B-Instruct --task image_folder --root PICTURES "
                "--shots 0,2,4 --out runs/mine",
            ),
        ]

    def __rich__(self) -> Group:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        questions = self.digits.rows[0].queries
        table = Table(title=f"The model {self.digits.model!r}, {questions} questions a line", title_justify="left")
        for name in COLUMNS:
            table.add_column(name, justify="left" if name == "task" else "right", no_wrap=True)
        previous = ""
        for name, *cells in self.rows():
            if name != previous:
                table.add_section()
            table.add_row("" if name == previous else name, *cells)
            previous = name
        said, right = self.answer
        tables = [table]
        if self.learnt:
            tables.append(Table(title="Demonstrations put into adapters", title_justify="left"))
            for name in LEARNT_COLUMNS:
                tables[-1].add_column(name, justify="left" if name == "task" else "right", no_wrap=name == "task")
            for line in self.learnt_rows():
                tables[-1].add_row(*line)
        lines = [
            *(f"{name}: {note}" for name, note in NOTES.items()),
            *([self._learning()] if self.learnt else []),
            "In brackets: 95 % intervals.",
            "",
            f"a prompt with the model's answer ({said!r}, {'right' if right else 'wrong'}): {self.folder / 'prompt.png'}",
            f"accuracy against demonstrations:  {self.folder / 'accuracy.png'}",
            f"all predictions, choices, hashes: {self.folder / 'digits'} and {self.folder / 'scenes'}",
            *([f"adapters and their predictions:    {self.folder / 'methods'}"] if self.learnt else []),
            f"{self.seconds:.0f} s",
            "",
            "What next?",
        ]
        for purpose, command in self.next_steps():
            lines += [f"- {purpose}:", f"  {command}"]
        return Group(*tables, Text("\n".join(lines)))

    def markdown(self) -> str:
        """The table as Markdown."""
        parts = ["# kshot quickstart", "\n".join(report.markdown_table(COLUMNS, self.rows()))]
        parts += [f"{name}: {note}" for name, note in NOTES.items()]
        if self.learnt:
            parts.append(self._learning())
            parts.append(
                "\n".join(report.markdown_table(LEARNT_COLUMNS[:-1], [line[:-1] for line in self.learnt_rows()]))
            )
        return "\n\n".join(parts) + "\n"


def quickstart(
    *,
    out: str | os.PathLike[str] = "runs/quickstart",
    questions: int = 200,
    model: str | Model = "tiny",
    seed: int = 0,
    samples: int = 96,
) -> Quickstart:
    """Show in-context learning with the embedded model: real handwritten digits under invented names, and scenes with hidden tasks.

    Then put what demonstrations do into adapters (LIVE, MimIC), and ask without them. Offline, in less than two minutes on two cores.

    Args:
        out: folder for the run folders, the picture of a prompt and the plot.
        questions: number of questions per task and number of demonstrations.
        model: another model, by name, folder or hub id.
        seed: of the questions and of the choice of demonstrations.
        samples: labelled pictures that adapters learn from; 0 leaves adapters out.

    Raises:
        OptionError: fewer than one question, or too few samples.
    """
    if questions < 1:
        raise OptionError(f"questions={questions}: must be 1 or more")
    if samples and samples < 2 * SHOTS:
        raise OptionError(f"samples={samples}: must be {2 * SHOTS} or more, or 0 for no adapters")
    begin, folder = time.monotonic(), Path(out)
    print(
        "kshot quickstart: asking a small model questions on two tasks, offline; less than two minutes ...",
        file=sys.stderr,
    )
    the_model = load_any(model)
    digits = load_task("digits", ways=2, episodes=questions, seed=seed)
    scenes = load_task("scenes", episodes=questions, seed=seed)
    common: dict[str, Any] = {"seed": seed, "controls": CONTROL, "batch_size": 32}
    results = (
        evaluate(the_model, digits, shots_per_class=(0, 1, 2, 4), out=folder / "digits", **common),
        evaluate(the_model, scenes, shots=(0, 1, 2, 4, 8), out=folder / "scenes", **common),
    )
    shown = show(digits, the_model, shots=4, seed=seed, save=folder / "prompt.png")
    said = digits.parse(shown.answer or "")
    answer = said, said in shown.episode.query.references
    write_bytes(folder / "accuracy.png", plot(*results))
    learnt = _learn(the_model, folder / "methods", questions, samples, seed) if samples else {}
    found = Quickstart(*results, learnt, folder, answer, time.monotonic() - begin)
    write_text(folder / "results.md", found.markdown())
    return found


def _learn(model: AnyModel, folder: Path, questions: int, samples: int, seed: int) -> dict[str, MethodComparison]:
    """Adapters beside prompts, on a task that the model knows and on one that it has to learn."""
    if not isinstance(model, VLM):
        return {}
    tasks = {
        "colours": load_task("scenes", tasks="colour", episodes=questions, seed=seed),
        "pair": load_task("concept_pair", queries=questions, seed=seed),
    }
    return {
        name: compare_methods(
            model,
            task,
            methods=tuple(METHODS),
            shots=SHOTS,
            samples=samples,
            seed=seed,
            limit=None,
            out=folder / name,
            rounds=0,
            with_demonstrations=False,
            batch_size=32,
            trainer={"logging_steps": 10_000},  # no step by step: the table tells what has come of it
        )
        for name, task in tasks.items()
    }


def plot(digits: Evaluation, scenes: Evaluation) -> bytes:
    """Accuracy against demonstrations for both tasks, side by side, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 3.8), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, result, title in ((left, digits, "real digits, invented names"), (right, scenes, "scenes, hidden task")):
        plots.draw(axes, [result])
        axes.set_title(title, loc="left", fontsize="medium")
    right.set_ylabel("")
    image = io.BytesIO()
    figure.savefig(image, format="png", metadata={"Software": None})
    return image.getvalue()


def _figure(row: Any) -> str:
    if row is None:
        return ""
    low, high = row.interval
    return f"{row.value:.3f} [{low:.3f}, {high:.3f}]"
