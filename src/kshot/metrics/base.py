"""What a metric is: predictions and the examples they answer in, scores out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from kshot.episode import Example
from kshot.picture import Picture
from kshot.registry import Registry


@dataclass(frozen=True)
class MetricResult:
    """Scores of one run.

    Attributes:
        name: the main figure's name, e.g. ``"accuracy"``.
        value: the main figure, in the unit the field prints (accuracies 0..1, CIDEr as pycocoevalcap gives it, MME points).
        items: scores whose mean is ``value`` up to a constant factor, one per *unit*; bootstrap resamples them.
        units: for each prediction, the number of its unit in ``items`` (identity unless several predictions make one unit, as
            the two questions of an MME image do for acc+).
        details: further figures.
        categories: main figure per category (question type, dimension, class ...), with the number of predictions in it.
        note: how it was computed where that varies (tokenizer, stemmer), for the report.
        members: for categories whose figure is the mean of the items of some units: the numbers of these units. Such categories get
            intervals of their own.
    """

    name: str
    value: float
    items: tuple[float, ...]
    units: tuple[int, ...] = ()
    details: Mapping[str, float] = field(default_factory=dict)
    categories: Mapping[str, tuple[float, int]] = field(default_factory=dict)
    note: str = ""
    members: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


Metric = Callable[[Sequence[str], Sequence[Example]], MetricResult]
"""``metric(predictions, queries) -> MetricResult``: a pure function; ``queries[i].references`` are the accepted answers."""

metrics: Registry[Metric] = Registry(
    "metric",
    "kshot.metrics",
    (
        "kshot.metrics.vqa",
        "kshot.metrics.captions",
        "kshot.metrics.choice",
        "kshot.metrics.text",
        "kshot.metrics.link",
        "kshot.metrics.grounding",
        "kshot.metrics.pope",
        "kshot.metrics.gqa",
        "kshot.metrics.clevr",
        "kshot.metrics.vcr",
        "kshot.metrics.explanations",
    ),
)

PictureMetric = Callable[[Sequence[Picture], Sequence[Example]], MetricResult]
"""As :data:`Metric`, of answers that are pictures; they are compared in the size of the reference."""

picture_metrics: Registry[PictureMetric] = Registry(
    "picture metric",
    "kshot.picture_metrics",
    ("kshot.metrics.pictures", "kshot.metrics.dense", "kshot.metrics.quality"),
)


def reads_raw(metric: Metric) -> Metric:
    """Decorator of a metric that judges all that was generated, and not what the task's ``parse`` makes of it."""
    setattr(metric, _RAW, True)
    return metric


def wants_raw(metric: Metric | PictureMetric) -> bool:
    """Whether a metric judges all that was generated."""
    return bool(getattr(metric, _RAW, False))


_RAW = "reads_raw"
